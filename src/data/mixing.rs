//! mixup and CutMix: what each batch of training draws.

use std::f64::consts::TAU;

use super::random::{Purpose, RandomStream};
use crate::device::Mixture;

/// The settings of mixup and CutMix. If both are set, each batch has one of them, with equal probability, as with `RandomChoice` of
/// `torchvision.transforms.v2`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixing {
    /// The parameter `alpha` of `MixUp` of `torchvision.transforms.v2` (Zhang et al. 2017), above 0.
    pub mixup: Option<f64>,
    /// The parameter `alpha` of its `CutMix` (Yun et al. 2019), above 0.
    pub cutmix: Option<f64>,
}

/// One of the two, with its parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Method {
    Mixup(f64),
    CutMix(f64),
}

impl Mixing {
    /// The mixture of a batch of `images` images of `size` x `size` pixels, which depends on nothing else. A single image is not mixed.
    pub fn draw(&self, seed: u64, epoch: u64, batch: u64, images: usize, size: usize) -> Mixture {
        let mut random = RandomStream::new(seed, Purpose::Mixing, epoch, batch);
        let method = match *self {
            Self { mixup: Some(alpha), cutmix: None } => Method::Mixup(alpha),
            Self { mixup: None, cutmix: Some(alpha) } => Method::CutMix(alpha),
            Self { mixup: Some(mixup), cutmix: Some(cutmix) } => {
                [Method::Mixup(mixup), Method::CutMix(cutmix)][random.below(2) as usize]
            }
            Self { mixup: None, cutmix: None } => return Mixture::NONE,
        };
        match method {
            _ if images < 2 => Mixture::NONE,
            Method::Mixup(alpha) => {
                let share = beta(&mut random, alpha) as f32;
                Mixture { share, weight: share, top: 0, left: 0, bottom: size as u32, right: size as u32 }
            }
            Method::CutMix(alpha) => {
                let share = beta(&mut random, alpha);
                let [column, row] = [(); 2].map(|()| random.below(size as u64));
                cut(share, row, column, size as u64)
            }
        }
    }
}

/// The rectangle around a pixel that takes `1 - share` of the image, as far as it lies inside of it, and the share that it leaves.
fn cut(share: f64, row: u64, column: u64, size: u64) -> Mixture {
    let half = (0.5 * (1.0 - share).sqrt() * size as f64) as u64;
    let range = |centre: u64| [centre.saturating_sub(half) as u32, (centre + half).min(size) as u32];
    let ([top, bottom], [left, right]) = (range(row), range(column));
    let area = f64::from(bottom - top) * f64::from(right - left);
    let share = (1.0 - area / (size * size) as f64) as f32;
    Mixture { share, weight: 0.0, top, left, bottom, right }
}

/// A number from Beta(alpha, alpha): the share of one of two numbers from Gamma(alpha) in their sum.
fn beta(random: &mut RandomStream, alpha: f64) -> f64 {
    let [own, other] = [(); 2].map(|()| ln_gamma(random, alpha));
    1.0 / (1.0 + (other - own).exp())
}

/// The logarithm of a number from Gamma(alpha), by the method of Marsaglia and Tsang (2000). The number itself may be too small or too large
/// for a float.
fn ln_gamma(random: &mut RandomStream, alpha: f64) -> f64 {
    if alpha < 1.0 {
        let of_next = ln_gamma(random, alpha + 1.0);
        return (of_next + above_zero(random).ln() / alpha).max(f64::MIN / 4.0);
    }
    let d = alpha - 1.0 / 3.0;
    let c = 1.0 / (3.0 * d.sqrt());
    loop {
        let normal = normal(random);
        let v = (1.0 + c * normal).powi(3);
        if v > 0.0 && above_zero(random).ln() < 0.5 * normal * normal + d * (1.0 - v + v.ln()) {
            return d.ln() + v.ln();
        }
    }
}

/// A number of the standard normal distribution, by the method of Box and Muller.
fn normal(random: &mut RandomStream) -> f64 {
    (-2.0 * above_zero(random).ln()).sqrt() * (TAU * random.unit()).cos()
}

/// Uniform in (0, 1].
fn above_zero(random: &mut RandomStream) -> f64 {
    1.0 - random.unit()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 40;

    fn draws(mixing: Mixing, batches: u64) -> Vec<Mixture> {
        (0..batches).map(|batch| mixing.draw(3, 1, batch, 8, SIZE)).collect()
    }

    /// Mean and variance of Beta(a, a) are 1/2 and 1 / (8 a + 4); the standard errors of both are below 0.004.
    #[test]
    fn shares_have_the_moments_of_their_distribution() {
        for alpha in [0.05, 0.2, 1.0, 1.5, 8.0] {
            let mixtures = draws(Mixing { mixup: Some(alpha), cutmix: None }, 20_000);
            let shares: Vec<f64> = mixtures.iter().map(|mixture| mixture.share.into()).collect();
            let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / 20_000.0;
            let centre = mean(&mut shares.iter().copied());
            let variance = mean(&mut shares.iter().map(|share| (share - 0.5).powi(2)));
            let expected = 1.0 / (8.0 * alpha + 4.0);
            assert!((centre - 0.5).abs() < 0.015, "{alpha}: mean {centre}");
            assert!((variance / expected - 1.0).abs() < 0.06, "{alpha}: variance {variance}, not {expected}");
            // A fourth moment tells Beta from other distributions of the same variance: 3 / (16 (2 a + 1) (2 a + 3)).
            let fourth = mean(&mut shares.iter().map(|share| (share - 0.5).powi(4)));
            let expected = 3.0 / (16.0 * (2.0 * alpha + 1.0) * (2.0 * alpha + 3.0));
            assert!((fourth / expected - 1.0).abs() < 0.1, "{alpha}: fourth moment {fourth}, not {expected}");
        }
    }

    #[test]
    fn extreme_parameters_give_shares() {
        for alpha in [f64::MIN_POSITIVE, 1e-300, 1e-6, 1e6, 1e20, f64::MAX] {
            for mixture in draws(Mixing { mixup: Some(alpha), cutmix: None }, 200) {
                assert!((0.0..=1.0).contains(&mixture.share), "{alpha}: {mixture:?}");
                match alpha > 1.0 {
                    true => assert!((mixture.share - 0.5).abs() < 0.01, "{alpha}: {mixture:?}"),
                    false => assert!(mixture.share * (1.0 - mixture.share) < 0.01 || alpha < 1e-305, "{mixture:?}"),
                }
            }
        }
    }

    /// The figures are those of `CutMix.make_params` of torchvision with these draws.
    #[test]
    fn rectangles_are_those_of_torchvision() {
        for (share, row, column, expected) in [
            (0.75, 20, 20, (10, 10, 30, 30, 0.75)),
            (0.75, 0, 39, (0, 29, 10, 40, 0.93125)),
            (0.5, 5, 36, (0, 22, 19, 40, 0.78625)),
            (0.4, 39, 3, (24, 0, 40, 18, 0.82)),
            (0.0, 20, 20, (0, 0, 40, 40, 0.0)),
            (1.0, 7, 7, (7, 7, 7, 7, 1.0)),
            (0.9999, 7, 7, (7, 7, 7, 7, 1.0)),
        ] {
            let (top, left, bottom, right, share_left) = expected;
            let expected = Mixture { share: share_left as f32, weight: 0.0, top, left, bottom, right };
            assert_eq!(cut(share, row, column, 40), expected, "{share} {row} {column}");
        }
    }

    #[test]
    fn rectangles_lie_inside_of_the_image_and_leave_their_share() {
        let mixtures = draws(Mixing { mixup: None, cutmix: Some(1.0) }, 2000);
        for mixture in &mixtures {
            let Mixture { share, weight, top, left, bottom, right } = *mixture;
            assert!(top <= bottom && bottom <= SIZE as u32 && left <= right && right <= SIZE as u32, "{mixture:?}");
            let area = f64::from((bottom - top) * (right - left));
            assert_eq!((share, weight), ((1.0 - area / 1600.0) as f32, 0.0));
        }
        assert!(mixtures.iter().any(|mixture| mixture.top == 0) && mixtures.iter().any(|mixture| mixture.right == 40));
    }

    #[test]
    fn a_draw_depends_on_seed_epoch_and_batch_alone() {
        let mixing = Mixing { mixup: Some(0.4), cutmix: Some(1.0) };
        let all = draws(mixing, 50);
        assert_eq!(all[17], mixing.draw(3, 1, 17, 8, SIZE));
        assert_eq!(all[17], mixing.draw(3, 1, 17, 2, SIZE));
        for (seed, epoch, batch) in [(4, 1, 17), (3, 2, 17), (3, 1, 18)] {
            assert_ne!(all[17], mixing.draw(seed, epoch, batch, 8, SIZE));
        }
        assert_eq!(mixing.draw(3, 1, 17, 1, SIZE), Mixture::NONE);
    }

    #[test]
    fn half_of_the_batches_have_each_if_both_are_set() {
        let mixtures = draws(Mixing { mixup: Some(1.0), cutmix: Some(1.0) }, 1000);
        let cut = mixtures.iter().filter(|mixture| mixture.weight == 0.0).count();
        assert!((440..560).contains(&cut), "{cut}");
    }
}
