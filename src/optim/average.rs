//! The exponential moving average of the parameters.
//!
//! ```text
//! average = keep * average + (1 - keep) * parameter, after step t, counted from 1
//! keep = min(decay, 1 - t^(-2/3))
//! ```
//!
//! The first step copies the parameters and later ones average them, as `torch.optim.swa_utils.AveragedModel` with
//! `get_ema_multi_avg_fn(decay)`. The second term is the warm-up of timm's `ModelEmaV3`: without it, a run that is short beside
//! `1 / (1 - decay)` steps would have an average of little but its first parameters. With it, such a run averages about its last
//! `t^(2/3)` steps. It ends after `(1 - decay)^(-3/2)` steps: 32 for a decay of 0.9, and 1000 for one of 0.99.

/// The name of the state slot that contains the average.
pub const AVERAGE_SLOT: &str = "ema";

/// The factors of the average and of the parameter after step `step`, which counts from 1. Their sum is exactly 1, so that the
/// average of a parameter that no longer changes becomes that parameter.
pub(super) fn words(decay: f64, step: u64) -> [f32; 2] {
    let warm_up = 1.0 - (step.max(1) as f64).powf(-2.0 / 3.0);
    let keep = (decay.min(warm_up) as f32).min(1.0 - f32::EPSILON / 2.0);
    [keep, 1.0 - keep]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decay_rises_to_its_value() {
        assert_eq!(words(0.9, 1), [0.0, 1.0]);
        let keep = |decay, step| f64::from(words(decay, step)[0]);
        assert!((keep(0.9, 2) - 0.370_039_5).abs() < 1e-6 && (keep(0.9, 8) - 0.75).abs() < 1e-6);
        assert!(keep(0.9, 31) < 0.9 && keep(0.9, 32) == f64::from(0.9f32) && keep(0.9, 1_000_000) == f64::from(0.9f32));
        assert_eq!(words(0.25, 2), [0.25, 0.75]);
        for decay in [0.1, 0.9, 0.999, 0.9999, 1.0 - 1e-12] {
            for step in [1, 2, 3, 10, 1000, u64::MAX] {
                let [keep, add] = words(decay, step);
                assert!(keep + add == 1.0 && add > 0.0, "{decay} {step}");
            }
        }
    }
}
