//! L-BFGS: minimises a smooth function of many variables on the host, from its values and gradients.
//!
//! Nocedal and Wright, *Numerical Optimization* (2006), algorithms 7.4 and 7.5: the last few steps and changes of the gradient
//! approximate the inverse Hessian. The length of a step is found by bisection (Lewis and Overton, *Nonsmooth optimization via
//! quasi-Newton methods*, 2013), which ensures that the approximation stays positive definite.

use std::collections::VecDeque;

/// Pairs of a step and the change of the gradient that are kept.
const HISTORY: usize = 10;

/// Required decrease of the function, as a fraction of what its slope promises.
const DECREASE: f64 = 1e-4;

/// Required flattening of the slope along a step.
const FLATTENING: f64 = 0.9;

/// Attempts to find the length of one step.
const ATTEMPTS: usize = 40;

/// When to stop.
#[derive(Debug, Clone, Copy)]
pub struct Stopping {
    /// The largest absolute value of the gradient at which the minimum counts as reached.
    pub gradient: f64,
    /// The maximum number of steps.
    pub steps: usize,
}

/// A point with its value.
#[derive(Debug, Clone)]
pub struct Minimum {
    /// The variables.
    pub point: Vec<f64>,
    /// The value of the function.
    pub value: f64,
    /// The largest absolute value of the gradient.
    pub gradient: f64,
    /// Steps that were taken.
    pub steps: usize,
}

/// Minimises `function` from `point`. `function` returns its value and writes its gradient to the second argument. Stops early
/// where rounding leaves no smaller value to be found.
pub fn minimise(
    mut point: Vec<f64>,
    stopping: Stopping,
    mut function: impl FnMut(&[f64], &mut [f64]) -> f64,
) -> Minimum {
    let mut gradient = vec![0.0; point.len()];
    let mut value = function(&point, &mut gradient);
    let (mut trial, mut trial_gradient) = (point.clone(), gradient.clone());
    let mut history: VecDeque<Pair> = VecDeque::with_capacity(HISTORY);
    let mut steps = 0;
    while steps < stopping.steps && largest(&gradient) > stopping.gradient {
        let mut direction = direction(&gradient, &history);
        let mut slope = dot(&gradient, &direction);
        if slope >= 0.0 {
            // Rounding has spoilt the approximation.
            history.clear();
            direction = gradient.iter().map(|g| -g).collect();
            slope = -dot(&gradient, &gradient);
        }
        // Without a history, nothing tells the scale of the first step.
        let mut length = if history.is_empty() { 1.0 / norm(&gradient).max(1.0) } else { 1.0 };
        let (mut too_short, mut too_long) = (0.0, f64::INFINITY);
        let mut found = None;
        for _ in 0..ATTEMPTS {
            for ((trial, at), step) in trial.iter_mut().zip(&point).zip(&direction) {
                *trial = at + length * step;
            }
            let trial_value = function(&trial, &mut trial_gradient);
            if !trial_value.is_finite() || trial_value > value + DECREASE * length * slope {
                too_long = length;
            } else if dot(&trial_gradient, &direction) < FLATTENING * slope {
                too_short = length;
            } else {
                found = Some(trial_value);
                break;
            }
            length = if too_long.is_finite() { (too_short + too_long) / 2.0 } else { 2.0 * length };
        }
        let Some(trial_value) = found else { break };
        let pair = Pair { step: difference(&trial, &point), change: difference(&trial_gradient, &gradient) };
        // Always true in exact arithmetic, because the slope is flatter than before.
        if dot(&pair.step, &pair.change) > 0.0 {
            if history.len() == HISTORY {
                history.pop_front();
            }
            history.push_back(pair);
        }
        std::mem::swap(&mut point, &mut trial);
        std::mem::swap(&mut gradient, &mut trial_gradient);
        value = trial_value;
        steps += 1;
    }
    Minimum { gradient: largest(&gradient), point, value, steps }
}

/// A step and the change of the gradient over it.
struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
}

/// The gradient times the negative of the approximate inverse Hessian.
fn direction(gradient: &[f64], history: &VecDeque<Pair>) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut factors = Vec::with_capacity(history.len());
    for Pair { step, change } in history.iter().rev() {
        let factor = dot(step, &direction) / dot(step, change);
        add(&mut direction, -factor, change);
        factors.push(factor);
    }
    if let Some(Pair { step, change }) = history.back() {
        let scale = dot(step, change) / dot(change, change);
        direction.iter_mut().for_each(|value| *value *= scale);
    }
    for (Pair { step, change }, factor) in history.iter().zip(factors.into_iter().rev()) {
        let other = dot(change, &direction) / dot(step, change);
        add(&mut direction, factor - other, step);
    }
    direction
}

fn add(sum: &mut [f64], factor: f64, values: &[f64]) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * value);
}

fn difference(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(values: &[f64]) -> f64 {
    dot(values, values).sqrt()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXACT: Stopping = Stopping { gradient: 1e-9, steps: 1000 };

    #[test]
    fn a_curved_valley() {
        // Rosenbrock's function, chained over ten variables; the minimum is at ones.
        let minimum = minimise(vec![-1.2; 10], EXACT, |x, gradient| {
            gradient.fill(0.0);
            let mut value = 0.0;
            for i in 0..x.len() - 1 {
                let (valley, slope) = (x[i + 1] - x[i] * x[i], 1.0 - x[i]);
                value += 100.0 * valley * valley + slope * slope;
                gradient[i] -= 400.0 * x[i] * valley + 2.0 * slope;
                gradient[i + 1] += 200.0 * valley;
            }
            value
        });
        assert!(minimum.gradient <= 1e-9, "{minimum:?}");
        // From this point there is a second, local minimum, with the first variable at about -1.
        assert!(minimum.point.iter().skip(1).all(|x| (x - 1.0).abs() < 1e-6), "{minimum:?}");
    }

    #[test]
    fn scales_that_differ_a_millionfold() {
        let scales: Vec<f64> = (0..7).map(|power| 10f64.powi(power)).collect();
        let minimum = minimise(vec![5.0; 7], EXACT, |x, gradient| {
            for ((slope, x), scale) in gradient.iter_mut().zip(x).zip(&scales) {
                *slope = scale * (x - 3.0);
            }
            x.iter().zip(&scales).map(|(x, scale)| scale * (x - 3.0) * (x - 3.0) / 2.0).sum()
        });
        assert!(minimum.gradient <= 1e-9, "{minimum:?}");
        assert!(minimum.point.iter().all(|x| (x - 3.0).abs() < 1e-8), "{minimum:?}");
        assert!(minimum.steps < 200, "{minimum:?}");
    }

    #[test]
    fn it_stops_at_the_maximum_number_of_steps() {
        let parabola = |x: &[f64], gradient: &mut [f64]| {
            gradient[0] = 4.0 * x[0].powi(3);
            x[0].powi(4)
        };
        let minimum = minimise(vec![100.0], Stopping { gradient: 0.0, steps: 3 }, parabola);
        assert_eq!(minimum.steps, 3);
        assert!(minimum.value < 1e8 && minimum.value > 0.0, "{minimum:?}");
    }
}
