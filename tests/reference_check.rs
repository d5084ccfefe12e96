//! Tests of the reference itself: each backward pass against central finite differences of its forward pass, and both
//! against values from PyTorch 2.15.

mod reference;

use reference::*;
use retune::device::Activation;

const STEP: f64 = 1e-5;

/// Float64, so that rounding does not dominate finite differences.
fn values(random: &mut Random, count: usize) -> Vec<f64> {
    (0..count).map(|_| random.normal()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Compares a gradient with the slopes of `loss` at `point`.
#[track_caller]
fn assert_gradient(what: &str, point: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
    assert_eq!(point.len(), gradient.len(), "{what}: lengths differ");
    for i in 0..point.len() {
        let mut moved = point.to_vec();
        moved[i] = point[i] + STEP;
        let above = loss(&moved);
        moved[i] = point[i] - STEP;
        let slope = (above - loss(&moved)) / (2.0 * STEP);
        let error = (slope - gradient[i]).abs();
        assert!(error <= 2e-7 * (1.0 + slope.abs()), "{what}[{i}]: slope {slope}, gradient {}", gradient[i]);
    }
}

#[track_caller]
fn assert_close(ours: &[f64], truth: &[f64]) {
    assert_eq!(ours.len(), truth.len());
    for (i, (a, b)) in ours.iter().zip(truth).enumerate() {
        assert!((a - b).abs() <= 1e-12 * (1.0 + b.abs()), "[{i}]: {a} is not {b}");
    }
}

/// Multiples of a quarter in a fixed pattern, from which the PyTorch values below were computed.
fn pattern(count: usize, factor: usize, modulus: usize, offset: f64) -> Vec<f64> {
    (0..count).map(|i| ((i * factor) % modulus) as f64 / 4.0 - offset).collect()
}

fn conv2d_shape(sizes: [usize; 9]) -> Conv2dShape {
    let [batch, height, width, input_channels, output_channels, kernel_height, kernel_width, stride, padding] = sizes;
    Conv2dShape { batch, height, width, input_channels, output_channels, kernel_height, kernel_width, stride, padding }
}

#[test]
fn conv2d_gradients_are_slopes() {
    let mut random = Random(1);
    for sizes in [
        [2, 5, 4, 3, 2, 3, 3, 1, 1],
        [1, 7, 6, 2, 3, 3, 3, 2, 1],
        [2, 6, 5, 1, 2, 1, 1, 2, 0],
        [1, 9, 8, 2, 2, 7, 7, 2, 3],
        [2, 1, 1, 3, 2, 3, 3, 1, 1],
        [1, 4, 6, 2, 1, 2, 3, 3, 2],
    ] {
        let shape = conv2d_shape(sizes);
        let input = values(&mut random, shape.input_len());
        let weight = values(&mut random, shape.weight_len());
        let upstream = values(&mut random, shape.output_len());
        let by_input = conv2d_input_gradient(&shape, &weight, &upstream);
        assert_gradient("conv2d input", &input, &by_input, |x| dot(&conv2d(&shape, x, &weight), &upstream));
        let by_weight = conv2d_weight_gradient(&shape, &input, &upstream);
        assert_gradient("conv2d weight", &weight, &by_weight, |w| dot(&conv2d(&shape, &input, w), &upstream));
    }
}

#[test]
fn conv2d_is_pytorchs() {
    let shape = conv2d_shape([2, 3, 4, 2, 3, 3, 2, 2, 1]);
    let (input, weight) = (pattern(48, 7, 11, 1.0), pattern(36, 5, 13, 1.5));
    let upstream = pattern(36, 3, 7, 0.5);
    let output = [
        -0.625, -0.625, 1.8125, 2.6875, 2.5625, -4.0625, -1.1875, -0.6875, 0.625, -0.5625, -0.1875, 2.625, -0.3125,
        2.125, -0.3125, -1.5, 1.1875, -2.625, 2.0, -2.375, 2.1875, -0.5, 2.625, -0.75, 1.9375, -0.9375, -0.5625,
        0.3125, -0.25, -0.8125, 1.25, -2.0, -1.1875, 2.625, -1.5, -0.75,
    ];
    let by_input = [
        0.875, 1.0, -1.0, 0.4375, 1.0625, -0.75, 0.875, 0.375, -2.0, -0.5, 1.6875, -2.0625, 0.6875, 1.8125, -1.0,
        -0.75, -0.3125, 1.875, -1.0625, 0.25, 0.75, -1.1875, -0.9375, 0.625, -0.625, 1.4375, 0.625, -1.6875, 0.875,
        1.0, -1.0, 0.4375, 0.5625, -1.9375, -1.75, 0.5625, -2.0, -0.5, 1.6875, -2.0625, -0.9375, 1.0, 1.0, 0.75,
        -0.3125, 1.875, -1.0625, 0.25,
    ];
    let by_weight = [
        1.25, -0.1875, 0.5625, 1.0625, 1.125, 0.375, -1.9375, 2.25, 0.375, 0.375, -0.375, -1.5, 1.25, 0.625, 0.375,
        0.375, -2.25, 2.75, 0.875, -0.125, -0.9375, -0.125, 0.75, 0.4375, 0.8125, -0.3125, 0.1875, 1.0, 1.8125,
        -1.4375, -1.5625, 3.1875, 1.25, -0.1875, 0.5625, 1.0625,
    ];
    assert_close(&conv2d(&shape, &input, &weight), &output);
    assert_close(&conv2d_input_gradient(&shape, &weight, &upstream), &by_input);
    assert_close(&conv2d_weight_gradient(&shape, &input, &upstream), &by_weight);
}

#[test]
fn batch_norm_gradients_are_slopes() {
    let mut random = Random(2);
    for (pixels, channels, with_residual, relu) in
        [(12, 3, false, false), (9, 2, false, true), (10, 3, true, true), (7, 1, true, false), (2, 2, false, false)]
    {
        let count = pixels * channels;
        let activation = if relu { Activation::Relu } else { Activation::None };
        let input = values(&mut random, count);
        let added = values(&mut random, count);
        let residual = with_residual.then_some(added.as_slice());
        let (gamma, beta) = (values(&mut random, channels), values(&mut random, channels));
        let upstream = values(&mut random, count);
        // A large epsilon keeps statistics over two pixels well conditioned.
        let epsilon = 0.1;
        let norm = BatchNorm { gamma: &gamma, beta: &beta, epsilon };
        let running = Statistics {
            mean: values(&mut random, channels),
            variance: (0..channels).map(|_| random.uniform(0.5, 2.0)).collect(),
        };

        for training in [true, false] {
            let statistics = |x: &[f64]| if training { batch_statistics(x, channels) } else { running.clone() };
            let loss = |norm: &BatchNorm<f64>, x: &[f64], residual: Option<&[f64]>| {
                dot(&norm.forward(x, &statistics(x), residual, activation), &upstream)
            };
            let output = norm.forward(&input, &statistics(&input), residual, activation);
            let mask = relu.then_some(output.as_slice());
            let gradients = if training {
                norm.training_backward(&input, mask, &upstream)
            } else {
                norm.frozen_backward(&input, &running, mask, &upstream)
            };
            assert_gradient("batch_norm input", &input, &gradients.input, |x| loss(&norm, x, residual));
            assert_gradient("batch_norm gamma", &gamma, &gradients.gamma, |gamma| {
                loss(&BatchNorm { gamma, beta: &beta, epsilon }, &input, residual)
            });
            assert_gradient("batch_norm beta", &beta, &gradients.beta, |beta| {
                loss(&BatchNorm { gamma: &gamma, beta, epsilon }, &input, residual)
            });
            if with_residual {
                assert_gradient("batch_norm residual", &added, &gradients.residual, |r| loss(&norm, &input, Some(r)));
            }
        }
    }
}

#[test]
fn batch_norm_is_pytorchs() {
    let input = pattern(48, 7, 11, 1.0);
    let norm = BatchNorm { gamma: &[1.5, -0.5], beta: &[0.25, 0.5], epsilon: 1e-5 };
    let statistics = batch_statistics(&input, 2);
    let output = norm.forward(&input, &statistics, None, Activation::Relu);
    assert_close(&output[..6], &[0.0, 0.2337233889320718, 0.0, 0.0, 0.8539932885199346, 1.0130695676674715]);

    let initial = Statistics { mean: vec![0.0; 2], variance: vec![1.0; 2] };
    let running = running_statistics(&initial, &statistics, 24, 0.1);
    assert_close(&running.mean, &[0.017708333333333336, 0.03229166666666667]);
    assert_close(&running.variance, &[0.9671082427536233, 0.9671082427536232]);

    let gradients = norm.training_backward(&input, Some(&output), &pattern(48, 3, 7, 0.5));
    let by_input = [
        -0.07644879454196718,
        -0.04512776073401082,
        -0.07739551383288079,
        0.12273325269797494,
        1.3244808885999246,
        0.24662441461863924,
    ];
    assert_close(&gradients.input[..6], &by_input);
    assert_close(&gradients.gamma, &[0.012989102978923278, 0.49358591319908596]);
    assert_close(&gradients.beta, &[1.0, 4.0]);
}

#[test]
fn max_pool_gradient_is_slope() {
    let mut random = Random(3);
    for (batch, height, width, channels, kernel, stride, padding) in
        [(2, 7, 6, 2, 3, 2, 1), (1, 1, 1, 3, 3, 2, 1), (1, 5, 5, 1, 2, 1, 0), (1, 8, 5, 2, 3, 3, 0)]
    {
        let shape = PoolShape { batch, height, width, channels, kernel, stride, padding };
        let input = values(&mut random, shape.input_len());
        let upstream = values(&mut random, shape.output_len());
        let gradient = max_pool_backward(&shape, &input, &upstream);
        assert_gradient("max_pool", &input, &gradient, |x| dot(&max_pool(&shape, x).0, &upstream));
    }
}

#[test]
fn max_pool_chooses_as_pytorch_does() {
    let nan = f64::NAN;
    let input = [1.0, 3.0, 3.0, 0.0, 3.0, 3.0, 2.0, 1.0, 0.0, 1.0, nan, 1.0, 0.0, 0.0, 1.0, nan];
    let shape = PoolShape { batch: 1, height: 4, width: 4, channels: 1, kernel: 3, stride: 2, padding: 1 };
    let (values, indices) = max_pool(&shape, &input);
    assert_eq!(indices, [1, 1, 4, 15]);
    assert_eq!(values[..3], [3.0, 3.0, 3.0]);
    assert!(values[3].is_nan());
}

#[test]
fn avg_pool_and_linear_gradients_are_slopes() {
    let mut random = Random(4);
    let (batch, pixels, channels, outputs) = (3, 5, 4, 2);
    let input = values(&mut random, batch * pixels * channels);
    let upstream = values(&mut random, batch * channels);
    let gradient = avg_pool_backward(batch, pixels, channels, &upstream);
    assert_gradient("avg_pool", &input, &gradient, |x| dot(&avg_pool(batch, pixels, channels, x), &upstream));

    let input = values(&mut random, batch * channels);
    let (weight, bias) = (values(&mut random, outputs * channels), values(&mut random, outputs));
    let upstream = values(&mut random, batch * outputs);
    let gradients = linear_backward(outputs, &input, &weight, &upstream);
    assert_gradient("linear input", &input, &gradients.input, |x| dot(&linear(x, &weight, &bias), &upstream));
    assert_gradient("linear weight", &weight, &gradients.weight, |w| dot(&linear(&input, w, &bias), &upstream));
    assert_gradient("linear bias", &bias, &gradients.bias, |b| dot(&linear(&input, &weight, b), &upstream));
}

#[test]
fn cross_entropy_gradient_is_slope() {
    let mut random = Random(5);
    let targets = random.labels(6, 5);
    let logits = values(&mut random, 30);
    for reduction in [Reduction::Sum, Reduction::Mean] {
        let gradient = cross_entropy(&logits, &targets, reduction).gradient;
        assert_gradient("cross_entropy", &logits, &gradient, |x| cross_entropy(x, &targets, reduction).loss);
        let smoothed =
            |x: &[f64]| smoothed_cross_entropy(x, &targets, None, reduction, 0.2, &[0.5, 1.0, 3.0, 0.25, 2.0]);
        assert_gradient("smoothed", &logits, &smoothed(&logits).gradient, |x| smoothed(x).loss);
    }
}

#[test]
fn cross_entropy_is_pytorchs() {
    let logits = [1.0, 2.0, 3.0, 0.5, -1.0, 0.25];
    let summed = cross_entropy(&logits, &[1, 0], Reduction::Sum);
    let gradient = [
        0.09003057317038043,
        -0.7552715289452023,
        0.6652409557748218,
        -0.500482270186785,
        0.11145747105020275,
        0.38902479913658217,
    ];
    assert_close(&[summed.loss], &[2.1017181508462945]);
    assert_close(&summed.gradient, &gradient);
    assert_eq!(summed.correct, 1);
    assert_close(&[cross_entropy(&logits, &[1, 0], Reduction::Mean).loss], &[1.0508590754231473]);
    let weights = [0.5, 2.0, 1.25];
    let smoothed = |reduction| {
        smoothed_cross_entropy(&[0.5, -1.25, 2.0, -0.75, 0.25, 1.5], &[1, 0], None, reduction, 0.3, &weights)
    };
    let gradient = [
        0.2638558232407136,
        -1.5454600359205752,
        1.2816042126798617,
        -0.3451007852328194,
        -0.05076846210170261,
        0.39586924733452206,
    ];
    assert_close(&[smoothed(Reduction::Sum).loss], &[7.077641661826345]);
    assert_close(&smoothed(Reduction::Sum).gradient, &gradient);
    assert_close(&[smoothed(Reduction::Mean).loss], &[2.8310566647305375]);
    let mixed = |reduction| {
        let logits = [0.5, -1.25, 2.0, -0.75, 0.25, 1.5];
        smoothed_cross_entropy(&logits, &[1, 0], Some(0.4), reduction, 0.3, &weights)
    };
    let gradient = [
        -0.05754089148697629,
        -0.7248178823262302,
        0.7823587738132066,
        -0.08739526067651081,
        -0.7610914015831822,
        0.8484866622596929,
    ];
    assert_close(&[mixed(Reduction::Sum).loss], &[5.301913556398616]);
    assert_close(&mixed(Reduction::Sum).gradient, &gradient);
    assert_close(&[mixed(Reduction::Mean).loss], &[2.650956778199308]);
    // Logits that overflow a naive exponential.
    assert_close(&[cross_entropy(&[1000.0, 0.0], &[1], Reduction::Sum).loss], &[1000.0]);
}

#[test]
fn sgd_is_pytorchs() {
    let settings = Sgd { rate: 0.1, weight_decay: 0.01, momentum: 0.9 };
    let (mut parameter, mut buffer) = (vec![1.0, -2.0], None);
    for gradient in [[0.5, 1.0], [-0.25, 0.5], [1.0, 0.0]] {
        let (updated, next) = settings.step(&parameter, &gradient, buffer.as_deref());
        (parameter, buffer) = (updated, Some(next));
    }
    assert_close(&parameter, &[0.8065597489999999, -2.354359698]);
    assert_close(&buffer.unwrap(), &[1.20591251, 1.20257698]);
}

#[test]
fn relative_error_notices() {
    assert_eq!(relative_error(&[1.0, 2.0], &[1.0, 2.0]), 0.0);
    assert_eq!(relative_error(&[0.0], &[0.0]), 0.0);
    assert!((relative_error(&[3.0, 4.0], &[3.0, 5.0]) - 1.0 / 34f64.sqrt()).abs() < 1e-12);
    assert_eq!(relative_error(&[1.0], &[0.0]), f64::INFINITY);
    assert!(relative_error(&[f32::NAN], &[1.0]).is_nan());
    assert!(relative_error(&[1.0], &[f64::NAN]).is_nan());
}
