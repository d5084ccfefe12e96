//! Images that a data set contains more than once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dataset::Splits;
use super::decode::{DecodeOptions, Decoder};
use super::fingerprint::{BAND_VALUES, BANDS, Detail, Fingerprint};
use super::pipeline::{Job, Pipeline};
use super::rgb_image::RgbImage;
use super::role::Role;
use crate::device::threads;
use crate::error::{Error, Result};

/// Images that are handed over at once.
const GROUP: usize = 16;

/// With how many of the images that look like it an image is compared in detail: those that look most like it.
const NEAREST: usize = 8;

/// How many images, those with the most similar brightness, an image is compared with part by part to find these.
const LIKEST: usize = 32;

/// Images that are searched for before the user can end the search.
const SEARCHED_AT_ONCE: usize = 512;

/// Pairs whose details are in memory at once.
const PAIRS_AT_ONCE: usize = 4096;

/// An image of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its split.
    pub role: Role,
    /// An index into the samples of the split.
    pub index: usize,
}

/// Images of which each looks like at least one other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Duplicates {
    /// At least two: training images first, then validation images, then test images.
    pub members: Vec<Member>,
    /// Whether the files are identical.
    pub is_identical: bool,
}

/// What was found in the images of a data set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Examination {
    /// Images that occur more than once, in the order of the first of each.
    pub duplicates: Vec<Duplicates>,
    /// Images that could be read.
    pub read: usize,
    /// Why the others could not be read, by their files.
    pub unread: HashMap<PathBuf, String>,
    /// Of these, images with an EXIF orientation other than upright.
    pub turned: usize,
}

impl Splits {
    /// Decodes every image once and searches for those that are identical or look the same; images that cannot be read are left out.
    /// `tell` is called with the number of examined images and that of all; its error ends the search.
    ///
    /// # Errors
    /// Those of `tell`; a worker that cannot be started.
    pub fn examine(&self, workers: usize, mut tell: impl FnMut(usize, usize) -> Result<()>) -> Result<Examination> {
        let (mut members, mut files) = (Vec::new(), Vec::new());
        for (role, folder) in self.by_role() {
            for (index, sample) in folder.samples.iter().enumerate() {
                members.push(Member { role, index });
                files.push((sample.path.clone(), folder.decoding));
            }
        }
        let files = Arc::new(files);
        let mut fingerprints = Vec::with_capacity(files.len());
        let examine = Examine { files: files.clone(), see: Fingerprint::of_file };
        let mut unread = HashMap::new();
        for group in Pipeline::start(examine, (0..files.len()).collect(), 0, workers) {
            for found in group? {
                if let Err(error) = &found {
                    unread.insert(files[fingerprints.len()].0.clone(), error.message().to_string());
                }
                fingerprints.push(found.ok());
            }
            tell(fingerprints.len(), members.len())?;
        }
        let mut sets = identical(&fingerprints);
        let pairs = candidates(&fingerprints, &mut sets, || tell(members.len(), members.len()))?;
        for pairs in pairs.chunks(PAIRS_AT_ONCE) {
            let mut images: Vec<usize> = pairs.iter().flat_map(|&(one, other)| [one, other]).collect();
            images.sort_unstable();
            images.dedup();
            let mut details = Vec::with_capacity(images.len());
            let examine = Examine { files: files.clone(), see: Detail::of_file };
            for group in Pipeline::start(examine, images.clone(), 0, workers) {
                details.extend(group?.into_iter().map(Result::ok));
                tell(members.len(), members.len())?;
            }
            let detail = |image: &usize| details.get(images.binary_search(image).ok()?)?.as_ref();
            for (one, other) in pairs {
                let is_united = sets.smallest(*one) == sets.smallest(*other);
                if !is_united && detail(one).zip(detail(other)).is_some_and(|(one, other)| one.shows_the_same_as(other))
                {
                    sets.unite(*one, *other);
                }
            }
        }
        let read = fingerprints.iter().flatten();
        let duplicates = sets.into_groups().into_iter().map(|group| Duplicates {
            is_identical: group
                .windows(2)
                .all(|pair| content(&fingerprints, pair[0]) == content(&fingerprints, pair[1])),
            members: group.into_iter().map(|index| members[index]).collect(),
        });
        Ok(Examination {
            duplicates: duplicates.collect(),
            unread,
            read: read.clone().count(),
            turned: read.filter(|fingerprint| fingerprint.is_turned).count(),
        })
    }
}

fn content(fingerprints: &[Option<Fingerprint>], index: usize) -> Option<[u8; 32]> {
    Some(fingerprints[index].as_ref()?.content)
}

struct Examine<T> {
    files: Arc<Vec<(PathBuf, DecodeOptions)>>,
    see: fn(&Path, &mut Decoder, &mut RgbImage) -> Result<T>,
}

impl<T: Send + 'static> Job for Examine<T> {
    type Scratch = (Decoder, RgbImage);
    type Item = T;
    type Group = Vec<Result<T>>;

    fn scratch(&self) -> Self::Scratch {
        Default::default()
    }

    fn group_size(&self) -> usize {
        GROUP
    }

    fn groups_ahead(&self) -> usize {
        2
    }

    fn prepare(&self, (decoder, image): &mut Self::Scratch, index: usize) -> Result<T> {
        let (path, options) = &self.files[index];
        if decoder.options() != *options {
            *decoder = Decoder::new(*options);
        }
        (self.see)(path, decoder, image)
    }

    fn assemble(&self, _: &[usize], items: Vec<Result<T>>) -> Result<Self::Group> {
        // Images that cannot be read are reported when they are used.
        Ok(items)
    }

    fn panicked(&self, index: usize) -> Error {
        Error::new(format!("a data worker failed on {}", self.files[index].0.display()))
            .hint("this is a bug: please report it, and move the file away to continue")
    }
}

/// Sets of identical files, by their indices.
fn identical(fingerprints: &[Option<Fingerprint>]) -> Sets {
    let mut sets = Sets::new(fingerprints.len());
    let mut known = HashMap::new();
    for (index, fingerprint) in fingerprints.iter().enumerate() {
        if let Some(fingerprint) = fingerprint {
            sets.unite(index, *known.entry(fingerprint.content).or_insert(index));
        }
    }
    sets
}

/// The images to search for others that look the same at first sight.
struct Search<'a> {
    fingerprints: &'a [Option<Fingerprint>],
    /// For each band, the images with each of its values. Of identical files, only the first counts.
    buckets: Vec<Vec<Vec<usize>>>,
}

impl<'a> Search<'a> {
    fn new(fingerprints: &'a [Option<Fingerprint>], sets: &mut Sets) -> Self {
        let mut buckets = vec![vec![Vec::new(); BAND_VALUES]; BANDS];
        for (index, fingerprint) in fingerprints.iter().enumerate() {
            if sets.smallest(index) != index {
                continue;
            }
            for (band, buckets) in buckets.iter_mut().enumerate() {
                if let Some(value) = fingerprint.as_ref().and_then(|fingerprint| fingerprint.band(band)) {
                    buckets[value].push(index);
                }
            }
        }
        Self { fingerprints, buckets }
    }

    /// The images that look most like this one.
    fn near(&self, image: usize) -> Vec<usize> {
        let Some(fingerprint) = &self.fingerprints[image] else { return Vec::new() };
        let mut likest: Vec<(f64, usize)> = Vec::new();
        for (band, buckets) in self.buckets.iter().enumerate() {
            let Some(bucket) = fingerprint.band(band).map(|value| &buckets[value]) else { continue };
            // An identical file that is not the first is in no bucket.
            if bucket.binary_search(&image).is_err() {
                return Vec::new();
            }
            for &other in bucket.iter().filter(|other| **other != image) {
                let Some(of_other) = &self.fingerprints[other] else { continue };
                if (0..band).any(|earlier| fingerprint.band(earlier) == of_other.band(earlier)) {
                    continue;
                }
                let Some(likeness) = fingerprint.likeness(of_other) else { continue };
                if likest.len() < LIKEST || likest.last().is_some_and(|(least, _)| likeness > *least) {
                    likest.push((likeness, other));
                    likest.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(&other.1)));
                    likest.truncate(LIKEST);
                }
            }
        }
        let looks_like =
            |other: &usize| self.fingerprints[*other].as_ref().is_some_and(|of| fingerprint.looks_like(of));
        likest.into_iter().map(|(_, other)| other).filter(looks_like).take(NEAREST).collect()
    }
}

/// Pairs of images that look the same at first sight, in order. `tell` may end the search.
fn candidates(
    fingerprints: &[Option<Fingerprint>],
    sets: &mut Sets,
    mut tell: impl FnMut() -> Result<()>,
) -> Result<Vec<(usize, usize)>> {
    let search = Search::new(fingerprints, sets);
    let images: Vec<usize> = (0..fingerprints.len()).collect();
    let mut pairs = Vec::new();
    for part in images.chunks(SEARCHED_AT_ONCE) {
        let mut found = vec![Vec::new(); part.len()];
        threads::for_each(part.iter().zip(&mut found), |(&image, near)| *near = search.near(image));
        for (&image, near) in part.iter().zip(found) {
            pairs.extend(near.into_iter().map(|near| (image.min(near), image.max(near))));
        }
        tell()?;
    }
    pairs.sort_unstable();
    pairs.dedup();
    Ok(pairs)
}

/// Disjoint sets of numbers, each known by its smallest.
struct Sets {
    /// A smaller number of the same set; the smallest has itself.
    smaller: Vec<usize>,
}

impl Sets {
    fn new(count: usize) -> Self {
        Self { smaller: (0..count).collect() }
    }

    fn smallest(&mut self, mut number: usize) -> usize {
        while self.smaller[number] != number {
            self.smaller[number] = self.smaller[self.smaller[number]];
            number = self.smaller[number];
        }
        number
    }

    fn unite(&mut self, one: usize, other: usize) {
        let (one, other) = (self.smallest(one), self.smallest(other));
        self.smaller[one.max(other)] = one.min(other);
    }

    /// The sets of at least two numbers.
    fn into_groups(mut self) -> Vec<Vec<usize>> {
        let mut groups = vec![Vec::new(); self.smaller.len()];
        for number in 0..groups.len() {
            groups[self.smallest(number)].push(number);
        }
        groups.retain(|group| group.len() > 1);
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_grow_together() {
        let mut sets = Sets::new(8);
        for (one, other) in [(7, 3), (1, 5), (3, 3), (5, 7), (2, 6)] {
            sets.unite(one, other);
        }
        assert_eq!(sets.into_groups(), [vec![1, 3, 5, 7], vec![2, 6]]);
    }
}
