//! Images that a data set contains more than once.

use std::collections::HashMap;
use std::path::PathBuf;

use super::dataset::{Role, Splits};
use super::decode::{DecodeOptions, Decoder};
use super::fingerprint::{BAND_VALUES, BANDS, Fingerprint};
use super::pipeline::{Job, Pipeline};
use super::rgb_image::RgbImage;
use crate::error::{Error, Result};

/// Images that are handed over at once.
const GROUP: usize = 16;

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
        let mut fingerprints = Vec::with_capacity(files.len());
        let order = (0..files.len()).collect();
        for group in Pipeline::start(Examine { files }, order, 0, workers) {
            fingerprints.extend(group?);
            tell(fingerprints.len(), members.len())?;
        }
        let read = fingerprints.iter().flatten();
        let duplicates = groups(&fingerprints).into_iter().map(|group| Duplicates {
            is_identical: group
                .windows(2)
                .all(|pair| content(&fingerprints, pair[0]) == content(&fingerprints, pair[1])),
            members: group.into_iter().map(|index| members[index]).collect(),
        });
        Ok(Examination {
            duplicates: duplicates.collect(),
            read: read.clone().count(),
            turned: read.filter(|fingerprint| fingerprint.is_turned).count(),
        })
    }
}

fn content(fingerprints: &[Option<Fingerprint>], index: usize) -> Option<[u8; 32]> {
    Some(fingerprints[index].as_ref()?.content)
}

struct Examine {
    files: Vec<(PathBuf, DecodeOptions)>,
}

impl Job for Examine {
    type Scratch = (Decoder, RgbImage);
    type Item = Fingerprint;
    type Group = Vec<Option<Fingerprint>>;

    fn scratch(&self) -> Self::Scratch {
        Default::default()
    }

    fn group_size(&self) -> usize {
        GROUP
    }

    fn groups_ahead(&self) -> usize {
        2
    }

    fn prepare(&self, (decoder, image): &mut Self::Scratch, index: usize) -> Result<Fingerprint> {
        let (path, options) = &self.files[index];
        if decoder.options() != *options {
            *decoder = Decoder::new(*options);
        }
        Fingerprint::of_file(path, decoder, image)
    }

    fn assemble(&self, _: &[usize], items: Vec<Result<Fingerprint>>) -> Result<Self::Group> {
        // Images that cannot be read are reported when they are used.
        Ok(items.into_iter().map(Result::ok).collect())
    }

    fn panicked(&self, index: usize) -> Error {
        Error::new(format!("a data worker failed on {}", self.files[index].0.display()))
            .hint("this is a bug: please report it, and move the file away to continue")
    }
}

/// Indices of images that are identical or look the same, directly or by way of others, in order.
fn groups(fingerprints: &[Option<Fingerprint>]) -> Vec<Vec<usize>> {
    let mut sets = Sets::new(fingerprints.len());
    let mut known = HashMap::new();
    for (index, fingerprint) in fingerprints.iter().enumerate() {
        if let Some(fingerprint) = fingerprint {
            sets.unite(index, *known.entry(fingerprint.content).or_insert(index));
        }
    }
    for band in 0..BANDS {
        let mut buckets = vec![Vec::new(); BAND_VALUES];
        for (index, fingerprint) in fingerprints.iter().enumerate() {
            if let Some(fingerprint) = fingerprint
                && let Some(value) = fingerprint.band(band)
            {
                buckets[value].push((index, fingerprint));
            }
        }
        for bucket in buckets {
            for (position, (index, fingerprint)) in bucket.iter().enumerate() {
                for (other, of_other) in &bucket[..position] {
                    if fingerprint.resembles(of_other) {
                        sets.unite(*index, *other);
                    }
                }
            }
        }
    }
    sets.into_groups()
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
