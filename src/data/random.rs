//! Random numbers that do not depend on the worker, the platform or the versions of crates.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The purpose of a stream of random numbers; streams with different purposes are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The order of the samples in one epoch.
    Order = 1,
    /// The crop and flip of one sample in one epoch.
    Augmentation = 2,
    /// Which samples of one class are held out for the test.
    Split = 3,
    /// The contents of one drawn image.
    Drawing = 4,
    /// The part of the images of one class that is held out in each round of cross-validation.
    Folds = 5,
    /// Which images of one class are held back for trials of learning rates.
    Trials = 6,
    /// The samples of one epoch, where every class is equally likely.
    BalancedSampling = 7,
    /// What mixup and CutMix do to one batch of one epoch.
    Mixing = 8,
}

/// An independent stream of random numbers, identified by its seed, purpose and two more numbers.
#[derive(Debug, Clone)]
pub struct RandomStream(ChaCha8Rng);

impl RandomStream {
    /// Creates a stream. The purpose determines the meaning of `major` and `minor`, such as epoch and sample.
    pub fn new(seed: u64, purpose: Purpose, major: u64, minor: u64) -> Self {
        let mut key = [0u8; 32];
        key[0..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&(purpose as u64).to_le_bytes());
        key[16..24].copy_from_slice(&major.to_le_bytes());
        key[24..32].copy_from_slice(&minor.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// An integer uniform in [0, bound), without bias (Lemire's method); 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        let rejected = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(bound);
            if product as u64 >= rejected {
                return (product >> 64) as u64;
            }
        }
    }

    /// Puts the items in a uniformly random order (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}
