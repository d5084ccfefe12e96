//! Means of a few numbers and their uncertainty, by Student's t distribution.

use std::f64::consts::{FRAC_2_PI, FRAC_PI_2};

/// The probability that an interval covers the mean.
const CONFIDENCE: f64 = 0.95;

/// The mean of some numbers, and how much they vary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// How many there are; at least one.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, with `count - 1` in the denominator; none for a single number.
    pub deviation: Option<f64>,
}

impl Sample {
    /// Those of these numbers; none if there are none.
    pub fn of(numbers: &[f64]) -> Option<Self> {
        let count = numbers.len();
        let mean = numbers.iter().sum::<f64>() / count as f64;
        let squares: f64 = numbers.iter().map(|number| (number - mean).powi(2)).sum();
        let deviation = (count > 1).then(|| (squares / (count - 1) as f64).sqrt());
        (count > 0).then_some(Self { count, mean, deviation })
    }

    /// The 95 % interval of the mean, by Student's t distribution with `count - 1` degrees of freedom; none for a single number, and for
    /// numbers that are all the same, which say nothing of how much they might vary.
    pub fn interval(&self) -> Option<[f64; 2]> {
        // Equal numbers may differ by the rounding of their mean.
        let deviation = self.deviation.filter(|deviation| *deviation > 1e-12)?;
        let half = quantile(CONFIDENCE, self.count - 1) * deviation / (self.count as f64).sqrt();
        Some([self.mean - half, self.mean + half])
    }
}

/// The number that the absolute value of a variable with Student's t distribution exceeds with the probability `1 - confidence`.
fn quantile(confidence: f64, degrees: usize) -> f64 {
    let (mut low, mut high) = (0.0, FRAC_PI_2);
    // The angle whose tangent is t / sqrt(degrees) is bounded, and the probability increases with it.
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        match probability_within(middle, degrees) < confidence {
            true => low = middle,
            false => high = middle,
        }
    }
    low.tan() * (degrees as f64).sqrt()
}

/// The probability that the absolute value is at most `tan(angle) * sqrt(degrees)`: equations 26.7.3 and 26.7.4 of Abramowitz and Stegun,
/// "Handbook of Mathematical Functions".
fn probability_within(angle: f64, degrees: usize) -> f64 {
    let (sine, cosine) = angle.sin_cos();
    // Powers of the cosine from the first or the second one on, each with the ratio of products of odd and even numbers.
    let first = if degrees % 2 == 1 { cosine } else { 1.0 };
    let (mut sum, mut term) = (0.0, first);
    for power in ((degrees % 2)..degrees.saturating_sub(1)).step_by(2) {
        sum += term;
        term *= cosine * cosine * (power + 1) as f64 / (power + 2) as f64;
    }
    match degrees % 2 {
        1 => FRAC_2_PI * (angle + sine * sum),
        _ => sine * sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two-sided, from the usual tables.
    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (degrees, ninety_five, ninety_nine) in [
            (1, 12.706, 63.657),
            (2, 4.303, 9.925),
            (3, 3.182, 5.841),
            (4, 2.776, 4.604),
            (5, 2.571, 4.032),
            (6, 2.447, 3.707),
            (9, 2.262, 3.250),
            (10, 2.228, 3.169),
            (29, 2.045, 2.756),
            (30, 2.042, 2.750),
            (120, 1.980, 2.617),
        ] {
            assert!((quantile(0.95, degrees) - ninety_five).abs() < 6e-4, "{degrees}: {}", quantile(0.95, degrees));
            assert!((quantile(0.99, degrees) - ninety_nine).abs() < 6e-4, "{degrees}: {}", quantile(0.99, degrees));
        }
    }

    #[test]
    fn a_mean_has_the_interval_of_the_textbook() {
        // The mean is 3 and the deviation 1.5811, so half the interval is 2.776 * 1.5811 / sqrt(5).
        let sample = Sample::of(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        assert_eq!((sample.count, sample.mean), (5, 3.0));
        assert!((sample.deviation.unwrap() - 2.5f64.sqrt()).abs() < 1e-12);
        let [low, high] = sample.interval().unwrap();
        assert!((low - 1.0368).abs() < 1e-4 && (high - 4.9632).abs() < 1e-4, "{low} {high}");
    }

    #[test]
    fn nothing_is_said_of_what_is_not_known() {
        assert_eq!(Sample::of(&[]), None);
        let single = Sample::of(&[0.5]).unwrap();
        assert_eq!((single.deviation, single.interval()), (None, None));
        assert_eq!(Sample::of(&[0.1, 0.1, 0.1]).unwrap().interval(), None);
    }
}
