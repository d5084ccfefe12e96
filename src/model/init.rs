//! Initialisation of parameters, as in PyTorch.
//!
//! Every parameter draws from a stream of its own, so its values depend on the seed and its name only, not on what was
//! drawn before.

use std::f64::consts::TAU;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::graph::{Initialisation, ParameterRole, ParameterSpecification};

/// Keeps these streams apart from those that other parts draw from the same seed.
const PURPOSE: &[u8; 16] = b"retune parameter";

/// The random numbers of one parameter, from the run's seed and the parameter's torch name.
pub fn parameter_stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&fnv1a(name).to_le_bytes());
    key[16..].copy_from_slice(PURPOSE);
    ChaCha8Rng::from_seed(key)
}

/// The initial values of a parameter in a network that is trained from scratch, in this crate's layout.
pub fn initial_values(parameter: &ParameterSpecification, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; parameter.shape.len()];
    let random = &mut parameter_stream(seed, &parameter.name);
    match parameter.initialisation {
        Initialisation::Zeros => {}
        Initialisation::Ones => values.fill(1.0),
        Initialisation::KaimingNormal { fan_out } => kaiming_normal(fan_out, &mut values, random),
        Initialisation::Uniform { fan_in } => uniform_fan_in(fan_in, &mut values, random),
    }
    values
}

/// The initial values of a parameter of a new head for fine-tuning: the weight is Xavier-uniform, the bias as from scratch.
pub fn head_values(parameter: &ParameterSpecification, seed: u64) -> Vec<f32> {
    match (parameter.role, parameter.shape.dims()) {
        (ParameterRole::LinearWeight, &[outputs, inputs]) => {
            let mut values = vec![0.0; outputs * inputs];
            xavier_uniform(inputs, outputs, &mut values, &mut parameter_stream(seed, &parameter.name));
            values
        }
        _ => initial_values(parameter, seed),
    }
}

/// A number in [0, 1), of 53 random bits.
pub fn uniform(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Xavier: uniform within `sqrt(6 / (fan_in + fan_out))`, as `torch.nn.init.xavier_uniform_` with gain 1.
pub fn xavier_uniform(fan_in: usize, fan_out: usize, values: &mut [f32], rng: &mut impl Rng) {
    fill_uniform((6.0 / (fan_in + fan_out) as f64).sqrt(), values, rng);
}

/// Kaiming: normal with deviation `sqrt(2 / fan_out)`, as `torch.nn.init.kaiming_normal_(mode="fan_out",
/// nonlinearity="relu")`.
pub fn kaiming_normal(fan_out: usize, values: &mut [f32], rng: &mut impl Rng) {
    let deviation = (2.0 / fan_out as f64).sqrt();
    for pair in values.chunks_mut(2) {
        let (first, second) = normal_pair(rng);
        for (value, normal) in pair.iter_mut().zip([first, second]) {
            *value = (deviation * normal) as f32;
        }
    }
}

/// Uniform within `1 / sqrt(fan_in)`: PyTorch's default for weight and bias of a linear layer.
pub fn uniform_fan_in(fan_in: usize, values: &mut [f32], rng: &mut impl Rng) {
    fill_uniform(1.0 / (fan_in as f64).sqrt(), values, rng);
}

fn fill_uniform(bound: f64, values: &mut [f32], rng: &mut impl Rng) {
    for value in values {
        *value = (bound * (2.0 * uniform(rng) - 1.0)) as f32;
    }
}

/// Two independent standard normal numbers (Box and Muller).
fn normal_pair(rng: &mut impl Rng) -> (f64, f64) {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    let (sine, cosine) = (TAU * uniform(rng)).sin_cos();
    (radius * cosine, radius * sine)
}

/// The 64-bit FNV-1a hash.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: usize = 200_000;

    fn stream() -> ChaCha8Rng {
        parameter_stream(7, "fc.weight")
    }

    /// Mean, variance and fourth moment over the variance squared.
    fn moments(values: &[f32]) -> (f64, f64, f64) {
        let count = values.len() as f64;
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
        let central = |power| values.iter().map(|&value| (f64::from(value) - mean).powi(power)).sum::<f64>() / count;
        (mean, central(2), central(4) / central(2).powi(2))
    }

    /// Checks the moments of a distribution to five standard errors of their estimates.
    fn assert_moments(values: &[f32], variance: f64, kurtosis: f64) {
        let (mean, found_variance, found_kurtosis) = moments(values);
        let count = values.len() as f64;
        assert!(mean.abs() < 5.0 * (variance / count).sqrt(), "mean {mean}");
        let spread = variance * ((kurtosis - 1.0) / count).sqrt();
        assert!((found_variance - variance).abs() < 5.0 * spread, "variance {found_variance}, expected {variance}");
        assert!((found_kurtosis - kurtosis).abs() < 0.06, "kurtosis {found_kurtosis}, expected {kurtosis}");
    }

    fn assert_uniform(values: &[f32], bound: f64) {
        assert_moments(values, bound * bound / 3.0, 1.8);
        let largest = values.iter().fold(0.0, |largest: f64, &value| largest.max(f64::from(value).abs()));
        assert!(largest <= bound * (1.0 + 1e-7), "largest {largest}, bound {bound}");
        assert!(largest > bound * 0.999, "largest {largest}, bound {bound}");
    }

    #[test]
    fn xavier_uniform_has_its_bound() {
        let mut values = vec![0.0; COUNT];
        xavier_uniform(512, 2, &mut values, &mut stream());
        assert_uniform(&values, (6.0f64 / 514.0).sqrt());
    }

    #[test]
    fn linear_defaults_have_their_bound() {
        let mut values = vec![0.0; COUNT];
        uniform_fan_in(512, &mut values, &mut stream());
        assert_uniform(&values, 1.0 / 512f64.sqrt());
        uniform_fan_in(100, &mut values, &mut stream());
        assert_uniform(&values, 0.1);
    }

    #[test]
    fn kaiming_normal_has_its_deviation() {
        let mut values = vec![0.0; COUNT + 1];
        kaiming_normal(576, &mut values, &mut stream());
        let variance = 2.0 / 576.0;
        assert_moments(&values, variance, 3.0);
        let deviation = variance.sqrt();
        let beyond = |limit: f64| values.iter().filter(|&&value| f64::from(value).abs() > limit * deviation).count();
        let share = beyond(2.0) as f64 / COUNT as f64;
        assert!((share - 0.0455).abs() < 0.0025, "{share} beyond two deviations");
        assert!(beyond(3.5) > 20, "tails");
        let neighbours: f64 = values.windows(2).map(|pair| f64::from(pair[0]) * f64::from(pair[1])).sum();
        let correlation = neighbours / COUNT as f64 / variance;
        assert!(correlation.abs() < 5.0 / (COUNT as f64).sqrt(), "correlation {correlation}");
    }

    #[test]
    fn streams_depend_on_seed_and_name() {
        let draw = |seed, name| parameter_stream(seed, name).next_u64();
        assert_eq!(draw(1, "conv1.weight"), draw(1, "conv1.weight"));
        assert_ne!(draw(1, "conv1.weight"), draw(2, "conv1.weight"));
        assert_ne!(draw(1, "conv1.weight"), draw(1, "fc.weight"));
    }

    #[test]
    fn fnv1a_matches_its_published_values() {
        assert_eq!(fnv1a(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a("a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a("foobar"), 0x8594_4171_f739_67e8);
    }
}
