//! Multinomial logistic regression: the linear layer that minimises the cross entropy of labelled features, with a penalty on its
//! weights. The function is convex, so its minimum does not depend on where the search begins, and no learning rate is involved.

use crate::device::threads;
use crate::optim::{Stopping, minimise};

/// Labelled features: the inputs of a final layer.
#[derive(Debug, Clone, Copy)]
pub struct Examples<'a> {
    /// `[N, D]`
    pub features: &'a [f32],
    /// `N` classes.
    pub targets: &'a [usize],
    /// `N` factors of the examples' losses. Only their ratios matter.
    pub weights: &'a [f64],
}

/// A linear layer, in torch's layout.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearLayer {
    /// `[classes, D]`
    pub weight: Vec<f32>,
    /// `[classes]`
    pub bias: Vec<f32>,
}

impl LinearLayer {
    /// The logits of each example.
    pub fn logits(&self, features: &[f32]) -> impl Iterator<Item = Vec<f64>> {
        let dimension = self.weight.len() / self.bias.len();
        features.chunks_exact(dimension).map(move |row| {
            let products = self.weight.chunks_exact(dimension).map(|weights| {
                row.iter().zip(weights).map(|(&x, &weight)| f64::from(x) * f64::from(weight)).sum::<f64>()
            });
            products.zip(&self.bias).map(|(sum, &bias)| sum + f64::from(bias)).collect()
        })
    }

    /// The sum of the losses of examples, times the weights of their classes, and the number of those that are classified correctly.
    pub fn evaluate(&self, features: &[f32], targets: &[usize], class_weights: &[f64]) -> (f64, usize) {
        let (mut loss, mut correct) = (0.0, 0);
        for (mut logits, &target) in self.logits(features).zip(targets) {
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            correct += usize::from(logits.iter().position(|&logit| logit == largest) == Some(target));
            loss += class_weights[target] * cross_entropy(&mut logits, target);
        }
        (loss, correct)
    }
}

/// The result of [`Regression::fit`].
#[derive(Debug, Clone)]
pub struct Fit {
    /// The layer.
    pub layer: LinearLayer,
    /// Weights and biases as the search left them, from which a similar fit can begin.
    pub point: Vec<f64>,
    /// Steps of the search.
    pub steps: usize,
    /// Whether it reached the minimum.
    pub converged: bool,
}

/// The largest absolute value of the gradient at the minimum. The loss is a mean, of the order of 1.
const STOPPING: Stopping = Stopping { gradient: 1e-6, steps: 1000 };

/// Examples that are prepared for fits with different penalties.
pub struct Regression<'a> {
    examples: Examples<'a>,
    classes: usize,
    dimension: usize,
    /// `[N, D]`: features minus their mean, divided by `scale`. The bias makes up for the mean, so that it changes nothing but how
    /// fast the search is.
    centred: Vec<f32>,
    mean: Vec<f64>,
    /// The root of the mean square of all centred features, so that a penalty means the same for any network.
    scale: f64,
    /// The weights of the examples, with a sum of 1.
    shares: Vec<f64>,
}

impl<'a> Regression<'a> {
    /// Prepares examples of `classes` classes. There must be at least one, and every feature must be finite.
    pub fn new(examples: Examples<'a>, classes: usize) -> Self {
        let count = examples.targets.len();
        assert!(count > 0 && examples.weights.len() == count && examples.features.len().is_multiple_of(count));
        let dimension = examples.features.len() / count;
        let sum: f64 = examples.weights.iter().sum();
        let shares: Vec<f64> = examples.weights.iter().map(|weight| weight / sum).collect();
        let mut mean = vec![0.0; dimension];
        let rows = || examples.features.chunks_exact(dimension).zip(&shares);
        for (row, share) in rows() {
            mean.iter_mut().zip(row).for_each(|(mean, &feature)| *mean += share * f64::from(feature));
        }
        let mut square = 0.0;
        for (row, share) in rows() {
            let distance = |(&feature, mean): (&f32, &f64)| (f64::from(feature) - mean).powi(2);
            square += share * row.iter().zip(&mean).map(distance).sum::<f64>();
        }
        // Equal features have no scale.
        let scale = Some((square / dimension as f64).sqrt()).filter(|&scale| scale > 0.0).unwrap_or(1.0);
        let centre = |(index, &feature): (usize, &f32)| ((f64::from(feature) - mean[index % dimension]) / scale) as f32;
        let centred = examples.features.iter().enumerate().map(centre).collect();
        Self { examples, classes, dimension, centred, mean, scale, shares }
    }

    /// Minimises the mean cross entropy plus `penalty / 2` times the sum of the squared weights (of features of mean square 1). The search
    /// begins at the end of a similar fit, or at zero.
    pub fn fit(&self, penalty: f64, begin: Option<&[f64]>) -> Fit {
        let begin = begin.map_or_else(|| vec![0.0; self.classes * (self.dimension + 1)], <[f64]>::to_vec);
        let minimum = minimise(begin, STOPPING, |point, gradient| self.loss(penalty, point, gradient));
        let (weights, biases) = minimum.point.split_at(self.classes * self.dimension);
        let weight = weights.iter().map(|weight| (weight / self.scale) as f32).collect();
        let bias = biases.iter().zip(weights.chunks_exact(self.dimension)).map(|(bias, weights)| {
            let at_mean: f64 = weights.iter().zip(&self.mean).map(|(weight, mean)| weight / self.scale * mean).sum();
            (bias - at_mean) as f32
        });
        Fit {
            layer: LinearLayer { weight, bias: bias.collect() },
            steps: minimum.steps,
            converged: minimum.gradient <= STOPPING.gradient,
            point: minimum.point,
        }
    }

    /// The penalised loss at `point`, which consists of the weights and then the biases, and its gradient.
    fn loss(&self, penalty: f64, point: &[f64], gradient: &mut [f64]) -> f64 {
        let (classes, dimension) = (self.classes, self.dimension);
        let (weights, biases) = point.split_at(classes * dimension);
        // Probabilities minus targets, times the example's share: the gradient of the loss with respect to the logits.
        let mut errors = vec![0.0; self.shares.len() * classes];
        let mut losses = vec![0.0; self.shares.len()];
        let rows_at_once = self.shares.len().div_ceil(threads::count());
        let parts = errors.chunks_mut(rows_at_once * classes).zip(losses.chunks_mut(rows_at_once));
        threads::for_each(parts.enumerate(), |(part, (errors, losses))| {
            for (row, (errors, loss)) in errors.chunks_exact_mut(classes).zip(losses).enumerate() {
                let example = part * rows_at_once + row;
                let features = &self.centred[example * dimension..][..dimension];
                for ((logit, weights), bias) in errors.iter_mut().zip(weights.chunks_exact(dimension)).zip(biases) {
                    *logit = bias + dot(features, weights);
                }
                *loss = self.shares[example] * cross_entropy(errors, self.examples.targets[example]);
                errors.iter_mut().for_each(|error| *error *= self.shares[example]);
            }
        });
        let (weight_gradient, bias_gradient) = gradient.split_at_mut(classes * dimension);
        bias_gradient.fill(0.0);
        for errors in errors.chunks_exact(classes) {
            bias_gradient.iter_mut().zip(errors).for_each(|(sum, error)| *sum += error);
        }
        // Each thread makes the sums of some classes, over all examples in order, so that the result does not depend on their number.
        let classes_at_once = classes.div_ceil(threads::count());
        let parts = weight_gradient.chunks_mut(classes_at_once * dimension).enumerate();
        threads::for_each(parts, |(part, sums)| {
            let first = part * classes_at_once;
            let own = &weights[first * dimension..][..sums.len()];
            sums.iter_mut().zip(own).for_each(|(sum, weight)| *sum = penalty * weight);
            for (features, errors) in self.centred.chunks_exact(dimension).zip(errors.chunks_exact(classes)) {
                for (sums, &error) in sums.chunks_exact_mut(dimension).zip(&errors[first..]) {
                    sums.iter_mut().zip(features).for_each(|(sum, &x)| *sum += error * f64::from(x));
                }
            }
        });
        let squares: f64 = weights.iter().map(|weight| weight * weight).sum();
        losses.iter().sum::<f64>() + penalty / 2.0 * squares
    }
}

/// Replaces logits by probabilities minus the target, and returns the cross entropy.
fn cross_entropy(logits: &mut [f64], target: usize) -> f64 {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let of_target = logits[target] - largest;
    logits.iter_mut().for_each(|logit| *logit = (*logit - largest).exp());
    let sum: f64 = logits.iter().sum();
    logits.iter_mut().for_each(|value| *value /= sum);
    logits[target] -= 1.0;
    sum.ln() - of_target
}

/// With as many partial sums as a vector register has room for.
fn dot(features: &[f32], weights: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (features, left) = features.as_chunks::<8>();
    let (weights, left_weights) = weights.as_chunks::<8>();
    for (features, weights) in features.iter().zip(weights) {
        for ((sum, &feature), weight) in sums.iter_mut().zip(features).zip(weights) {
            *sum += f64::from(feature) * weight;
        }
    }
    let rest: f64 = left.iter().zip(left_weights).map(|(&feature, weight)| f64::from(feature) * weight).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: usize = 3;
    const DIMENSION: usize = 19;

    /// Features with means and scales far from 0 and 1, which say something about the class.
    fn features(count: usize) -> (Vec<f32>, Vec<usize>) {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        let targets: Vec<usize> = (0..count).map(|example| example * 7 % CLASSES).collect();
        let feature = |(target, place): (usize, usize)| 40.0 + 3.0 * random() + ((target + place) % CLASSES) as f32;
        let places = targets.iter().flat_map(|&target| (0..DIMENSION).map(move |place| (target, place)));
        let values = places.map(feature).collect();
        (values, targets)
    }

    fn fit(features: &[f32], targets: &[usize], weights: &[f64], penalty: f64) -> Fit {
        Regression::new(Examples { features, targets, weights }, CLASSES).fit(penalty, None)
    }

    /// The largest entry of the gradient of the loss, from its definition, at a layer.
    fn gradient(features: &[f32], targets: &[usize], penalty: f64, layer: &LinearLayer) -> f64 {
        let count = targets.len() as f64;
        let mean: Vec<f64> = (0..DIMENSION)
            .map(|place| features.iter().skip(place).step_by(DIMENSION).map(|&x| f64::from(x)).sum::<f64>() / count)
            .collect();
        let square: f64 =
            features.iter().enumerate().map(|(index, &x)| (f64::from(x) - mean[index % DIMENSION]).powi(2)).sum();
        let scale = (square / features.len() as f64).sqrt();
        // With respect to weights for centred features of mean square 1.
        let mut sums: Vec<f64> = layer.weight.iter().map(|&weight| penalty * scale * f64::from(weight)).collect();
        let mut biases = [0.0; CLASSES];
        for (x, &target) in features.chunks_exact(DIMENSION).zip(targets) {
            let logit = |class: usize| {
                let row = layer.weight[class * DIMENSION..][..DIMENSION].iter().zip(x);
                f64::from(layer.bias[class]) + row.map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>()
            };
            let exponentials: Vec<f64> = (0..CLASSES).map(|class| logit(class).exp()).collect();
            let sum: f64 = exponentials.iter().sum();
            for (class, exponential) in exponentials.iter().enumerate() {
                let error = (exponential / sum - f64::from(u8::from(class == target))) / count;
                biases[class] += error;
                for (place, &x) in x.iter().enumerate() {
                    sums[class * DIMENSION + place] += error * (f64::from(x) - mean[place]) / scale;
                }
            }
        }
        sums.iter().chain(&biases).fold(0.0, |largest, value| largest.max(value.abs()))
    }

    #[test]
    fn the_gradient_is_zero_at_the_minimum() {
        let (features, targets) = features(200);
        for penalty in [1e-3, 1e-2, 1.0] {
            let found = fit(&features, &targets, &[1.0; 200], penalty);
            assert!(found.converged, "{penalty}: {} steps", found.steps);
            // The weights are rounded to float32, and features are about 40.
            let rounding = gradient(&features, &targets, penalty, &found.layer);
            assert!(rounding < 3e-5, "{penalty}: {rounding:e}");
            let elsewhere = fit(&features, &targets, &[1.0; 200], penalty * 2.0);
            let other = gradient(&features, &targets, penalty, &elsewhere.layer);
            assert!(other > 10.0 * rounding, "{penalty}: {other:e}, {rounding:e}");
        }
    }

    #[test]
    fn it_does_not_depend_on_threads_or_where_it_begins() {
        let (features, targets) = features(101);
        let whole = fit(&features, &targets, &[1.0; 101], 1e-3);
        let alone = threads::with(1, || fit(&features, &targets, &[1.0; 101], 1e-3));
        let many = threads::with(5, || fit(&features, &targets, &[1.0; 101], 1e-3));
        assert_eq!((&whole.point, &whole.layer), (&alone.point, &alone.layer));
        assert_eq!((&whole.point, &whole.layer), (&many.point, &many.layer));
        let examples = Examples { features: &features, targets: &targets, weights: &[1.0; 101] };
        let other = fit(&features, &targets, &[1.0; 101], 1.0).point;
        let later = Regression::new(examples, CLASSES).fit(1e-3, Some(&other));
        let far = whole.point.iter().zip(&later.point).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far < 1e-2, "{far:e}");
    }

    #[test]
    fn a_weight_of_two_is_the_example_twice() {
        let (features, targets) = features(60);
        let weights: Vec<f64> = (0..60).map(|example| if example < 20 { 2.0 } else { 1.0 }).collect();
        let weighted = fit(&features, &targets, &weights, 1e-2);
        let (mut twice, mut twice_targets) = (features.clone(), targets.clone());
        twice.extend(&features[..20 * DIMENSION]);
        twice_targets.extend(&targets[..20]);
        let repeated = fit(&twice, &twice_targets, &[1.0; 80], 1e-2);
        let far = weighted.point.iter().zip(&repeated.point).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far < 1e-3, "{far:e}");
        let plain = fit(&features, &targets, &[1.0; 60], 1e-2);
        let far = weighted.point.iter().zip(&plain.point).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far > 1e-2, "{far:e}");
    }

    #[test]
    fn classes_without_examples_and_equal_features_do_no_harm() {
        let found = fit(&[2.0; 4 * DIMENSION], &[0, 1, 1, 1], &[1.0; 4], 1e-3);
        assert!(found.converged);
        let LinearLayer { weight, bias } = found.layer;
        assert!(weight.iter().all(|weight| *weight == 0.0), "{weight:?}");
        assert!((bias[1] - bias[0] - 3f32.ln()).abs() < 1e-3 && bias[2] < bias[0] - 5.0, "{bias:?}");
    }
}
