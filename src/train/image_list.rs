//! The list of a run's images with their names, sizes and classes, to detect images that differ from those at the start of a run. A
//! sample of the images also has a digest of the file's content, to detect another data set with the same names and sizes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::data::{Role, Splits};
use crate::error::{Context, Result};
use crate::file::write_atomically;

/// An image: in `images.jsonl`, a line with these values in a list. There may be millions, so names are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Train, test or validation.
    split: Arc<str>,
    /// Its path below the folder of the split, with `/` between folders; characters that are not Unicode are replaced.
    path: Box<str>,
    class: Arc<str>,
    bytes: u64,
    /// The SHA-256 of the start of the file, for a sample of the images.
    content: Option<Box<str>>,
}

/// The number of images with a digest of their content. Reading all images of a large data set would take minutes.
const SAMPLES: usize = 64;
/// The number of bytes of a file that its digest covers.
const SAMPLE_BYTES: u64 = 1 << 18;

/// The images of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageList {
    entries: Vec<Entry>,
    digest: String,
}

impl ImageList {
    /// Reads the size of every image.
    pub fn of(splits: &Splits) -> Self {
        let (mut entries, mut files) = (Vec::new(), Vec::<&Path>::new());
        for role in [Role::Train, Role::Test, Role::Validation] {
            let Some(folder) = splits.of(role) else { continue };
            let split: Arc<str> = role.name().into();
            let classes: Vec<Arc<str>> = folder.classes.iter().map(|class| class.as_str().into()).collect();
            files.extend(folder.samples.iter().map(|sample| sample.path.as_path()));
            entries.extend(folder.samples.iter().map(|sample| Entry {
                split: split.clone(),
                path: folder.name_of(&sample.path).into(),
                class: classes[sample.class].clone(),
                // An image that no longer exists is reported when it is read.
                bytes: fs::metadata(&sample.path).map_or(0, |found| found.len()),
                content: None,
            }));
        }
        for index in evenly_spaced(files.len()) {
            entries[index].content = digest_of_start(files[index]).map(String::into_boxed_str);
        }
        Self::new(entries)
    }

    fn new(entries: Vec<Entry>) -> Self {
        let mut hash = Sha256::new();
        for Entry { split, path, class, bytes, content } in &entries {
            for text in [split.as_ref(), path, class, content.as_deref().unwrap_or_default()] {
                hash.update((text.len() as u64).to_le_bytes());
                hash.update(text);
            }
            hash.update(bytes.to_le_bytes());
        }
        Self { entries, digest: hexadecimal(hash) }
    }

    /// SHA-256 of all names, sizes and classes and of the sample of contents, in order.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Writes `images.jsonl` atomically.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_atomically(path, |writer| {
            for Entry { split, path, class, bytes, content } in &self.entries {
                let line = serde_json::to_string(&(split.as_ref(), path, class.as_ref(), bytes, content))?;
                writeln!(writer, "{line}")?;
            }
            Ok(())
        })
    }

    /// Reads `images.jsonl`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let doing = || format!("cannot read {}", path.display());
        let text = fs::read_to_string(path).context(doing)?;
        let entries = text.lines().map(|line| {
            let (split, path, class, bytes, content): (String, _, String, _, _) = serde_json::from_str(line)?;
            Ok(Entry { split: split.into(), path, class: class.into(), bytes, content })
        });
        Ok(Self::new(entries.collect::<serde_json::Result<Vec<Entry>>>().context(doing)?))
    }

    /// The difference between these images and `earlier` ones: `2 added (first train/cat/9.jpg), 1 of another size (...)`. `None` if there is
    /// none.
    pub fn difference(&self, earlier: &Self) -> Option<String> {
        let (now, before) = (self.by_name(), earlier.by_name());
        let is_sampled = self.entries.len().max(earlier.entries.len()) > SAMPLES;
        let mut kinds = [
            ("added", Vec::new()),
            ("removed", Vec::new()),
            ("of another size", Vec::new()),
            ("of another class", Vec::new()),
            (if is_sampled { "or more of other content" } else { "of other content" }, Vec::new()),
        ];
        for (name, found) in &now {
            match before.get(name) {
                None => kinds[0].1.push(name),
                Some(known) if known.class != found.class => kinds[3].1.push(name),
                Some(known) if known.bytes != found.bytes => kinds[2].1.push(name),
                Some(known) if differ(&known.content, &found.content) => kinds[4].1.push(name),
                Some(_) => {}
            }
        }
        kinds[1].1.extend(before.keys().filter(|name| !now.contains_key(name)));
        let told = kinds.iter().filter_map(|(kind, names)| {
            let (split, path) = names.first()?;
            let first = if names.len() == 1 { "" } else { "first " };
            Some(format!("{} {kind} ({first}{split}: {path})", names.len()))
        });
        match told.collect::<Vec<String>>().join(", ") {
            none if none.is_empty() && self.digest == earlier.digest => None,
            none if none.is_empty() => Some("the same images in another order".into()),
            told => Some(told),
        }
    }

    /// The difference from the images with the digest `earlier`, whose list is in the file at `path`. `None` if there is none.
    pub fn difference_from(&self, earlier: &str, path: &Path) -> Option<String> {
        if earlier == self.digest {
            return None;
        }
        let list = Self::open(path).ok().filter(|list| list.digest == earlier);
        let difference = list.and_then(|list| self.difference(&list));
        Some(difference.unwrap_or_else(|| "names, sizes, classes or contents differ".into()))
    }

    /// The split and the name of every image.
    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|entry| (&*entry.split, &*entry.path))
    }

    /// Whether there is an image that `earlier` lacks, or whose size or content differs there.
    pub fn has_new_images(&self, earlier: &Self) -> bool {
        let before = earlier.by_name();
        self.entries.iter().any(|now| {
            let known = before.get(&(&*now.split, &*now.path));
            known.is_none_or(|known| known.bytes != now.bytes || differ(&known.content, &now.content))
        })
    }

    /// Whether the test images have the same names, classes and sizes.
    pub fn has_tests_of(&self, other: &Self) -> bool {
        fn tests(list: &ImageList) -> impl Iterator<Item = (&str, &str, u64)> {
            let tests = list.entries.iter().filter(|entry| &*entry.split == "test");
            tests.map(|entry| (&*entry.path, &*entry.class, entry.bytes))
        }
        tests(self).eq(tests(other))
    }

    fn by_name(&self) -> BTreeMap<(&str, &str), &Entry> {
        self.entries.iter().map(|entry| ((&*entry.split, &*entry.path), entry)).collect()
    }
}

/// Whether two digests show that the contents of an image differ. Where images were added or removed, others were sampled.
fn differ(one: &Option<Box<str>>, other: &Option<Box<str>>) -> bool {
    one.as_ref().zip(other.as_ref()).is_some_and(|(one, other)| one != other)
}

/// The indices of the sample.
fn evenly_spaced(images: usize) -> impl Iterator<Item = usize> {
    let samples = images.min(SAMPLES);
    (0..samples).map(move |sample| sample * images / samples)
}

fn digest_of_start(path: &Path) -> Option<String> {
    // Opening a pipe would wait for ever.
    if !path.is_file() {
        return None;
    }
    let mut start = Vec::new();
    File::open(path).ok()?.take(SAMPLE_BYTES).read_to_end(&mut start).ok()?;
    Some(hexadecimal(Sha256::new_with_prefix(start)))
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(&str, &str, &str, u64)]) -> ImageList {
        let entry = |&(split, path, class, bytes): &(&str, &str, &str, u64)| Entry {
            split: split.into(),
            path: path.into(),
            class: class.into(),
            bytes,
            content: None,
        };
        ImageList::new(entries.iter().map(entry).collect())
    }

    #[test]
    fn differences_are_counted_by_kind() {
        let before = list(&[("train", "a/1", "a", 5), ("train", "a/2", "a", 5), ("test", "b/1", "b", 7)]);
        assert_eq!(before.difference(&before.clone()), None);
        let now = list(&[
            ("train", "a/1", "b", 5),
            ("train", "a/3", "a", 5),
            ("train", "a/4", "a", 5),
            ("test", "b/1", "b", 8),
        ]);
        assert_eq!(
            now.difference(&before).unwrap(),
            "2 added (first train: a/3), 1 removed (train: a/2), 1 of another size (test: b/1), 1 of another class (train: a/1)"
        );
        let moved = list(&[("train", "a/1", "a", 5), ("train", "a/2", "a", 5), ("train", "b/1", "b", 7)]);
        assert_eq!(moved.difference(&before).unwrap(), "1 added (train: b/1), 1 removed (test: b/1)");
        let turned = list(&[("train", "a/2", "a", 5), ("train", "a/1", "a", 5), ("test", "b/1", "b", 7)]);
        assert_eq!(turned.difference(&before).unwrap(), "the same images in another order");
    }

    #[test]
    fn test_images_are_compared_alone() {
        let one = list(&[("train", "a/1", "a", 5), ("test", "b/1", "b", 7)]);
        assert!(one.has_tests_of(&list(&[
            ("train", "a/2", "a", 6),
            ("train", "a/3", "a", 6),
            ("test", "b/1", "b", 7)
        ])));
        assert!(!one.has_tests_of(&list(&[("train", "a/1", "a", 5), ("test", "b/1", "b", 8)])));
        assert!(!one.has_tests_of(&list(&[("train", "a/1", "a", 5)])));
    }

    #[test]
    fn the_content_of_a_sample_is_compared() {
        let mut before = list(&[("train", "a/1", "a", 5), ("train", "a/2", "a", 5), ("test", "b/1", "b", 7)]);
        before.entries[1].content = Some("0a".into());
        let before = ImageList::new(before.entries);
        let mut entries = before.entries.clone();
        entries[1].content = Some("0b".into());
        let now = ImageList::new(entries);
        assert_eq!(now.difference(&before).unwrap(), "1 of other content (train: a/2)");
        let mut added = list(&[("train", "a/0", "a", 5)]).entries;
        added.extend(before.entries.iter().cloned());
        added[2].content = None;
        added[3].content = Some("0c".into());
        assert_eq!(ImageList::new(added).difference(&before).unwrap(), "1 added (train: a/0)");
        // Of more images, only a sample is compared.
        let mut many: Vec<Entry> = (0..=SAMPLES).map(|_| before.entries[1].clone()).collect();
        for (index, entry) in many.iter_mut().enumerate() {
            entry.path = format!("a/{index}").into();
        }
        let earlier = ImageList::new(many.clone());
        many[3].content = Some("0b".into());
        assert_eq!(ImageList::new(many).difference(&earlier).unwrap(), "1 or more of other content (train: a/3)");
        for images in [0, 1, 63, 64, 65, 1000] {
            let spaced: Vec<usize> = evenly_spaced(images).collect();
            assert_eq!(spaced.len(), images.min(SAMPLES));
            assert!(spaced.is_sorted_by(|a, b| a < b) && spaced.iter().all(|&index| index < images));
        }
    }

    /// Names may contain every separator that files use.
    #[test]
    fn lists_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("images.jsonl");
        let written = list(&[("train", "a/\n\t\"1\u{1b}[31m", "a\r", 5), ("test", "ü", "", u64::MAX)]);
        let mut entries = written.entries;
        entries[0].content = Some("0a".into());
        let written = ImageList::new(entries);
        written.save(&path).unwrap();
        assert_eq!(ImageList::open(&path).unwrap(), written);
        assert_ne!(list(&[("train", "ab", "c", 1)]).digest(), list(&[("train", "a", "bc", 1)]).digest());
    }
}
