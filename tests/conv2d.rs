//! Convolution and its two gradients on every device and in every precision, compared with the naive float64 versions
//! on the operands that the device multiplies.

mod reference;

use std::rc::Rc;

use half::bf16;
use proptest::prelude::*;
use reference::devices::{
    PRECISIONS, Workbench, added, assert_near, assert_schedules_agree, devices, error_of, kernel_devices, norm,
    operands, run_at_lower_levels, stored,
};
use reference::*;
use retune::device::{
    Activation, BatchNormForward, BatchNormMode, Conv2dForward, Conv2dInputGradient, Conv2dPass, Conv2dWeightGradient,
    Device, Precision,
};
use retune::tensor::Tensor;

/// For shapes whose products are computed directly.
const DIRECT_LIMIT: f64 = 2e-6;
/// For shapes for which a device may use Winograd's algorithm.
const WINOGRAD_LIMIT: f64 = 5e-5;

fn limit(shape: &Conv2dShape) -> f64 {
    let suits = (shape.kernel_height, shape.kernel_width, shape.stride) == (3, 3, 1);
    if suits { WINOGRAD_LIMIT } else { DIRECT_LIMIT }
}

fn shape(sizes: [usize; 9]) -> Conv2dShape {
    let [batch, height, width, input_channels, output_channels, kernel_height, kernel_width, stride, padding] = sizes;
    Conv2dShape { batch, height, width, input_channels, output_channels, kernel_height, kernel_width, stride, padding }
}

fn input_dims(shape: &Conv2dShape) -> [usize; 4] {
    [shape.batch, shape.height, shape.width, shape.input_channels]
}

fn output_dims(shape: &Conv2dShape) -> [usize; 4] {
    [shape.batch, shape.output_height(), shape.output_width(), shape.output_channels]
}

fn weight_dims(shape: &Conv2dShape) -> [usize; 4] {
    [shape.output_channels, shape.kernel_height, shape.kernel_width, shape.input_channels]
}

fn squares(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| value * value).collect()
}

/// The norm of sums of products with random signs whose squares add up to `squares`.
fn typical(squares: &[f64]) -> f64 {
    squares.iter().sum::<f64>().sqrt()
}

/// The expected results of a case, each with the norm that it would have if the signs of its terms were random.
struct Truth {
    output: Vec<f64>,
    output_size: f64,
    input_gradient: Vec<f64>,
    input_gradient_size: f64,
    weight_gradient: Vec<f64>,
    weight_gradient_size: f64,
}

/// Checks a result against the nearest of several allowed results; all elements must follow the same one. Returns the
/// result.
#[track_caller]
fn assert_nearest<'a>(
    what: &str,
    bench: &Workbench,
    tensor: &Tensor,
    truths: impl Iterator<Item = (&'a [f64], f64)>,
    limit: f64,
) -> Vec<f32> {
    let ours = bench.read(tensor);
    let errors: Vec<f64> = truths.map(|(truth, size)| error_of(tensor.element_type(), &ours, truth, size)).collect();
    assert!(errors.iter().any(|&error| error <= limit), "{what}: errors {errors:?}, limit {limit:.0e}");
    ours
}

struct Case {
    shape: Conv2dShape,
    input: Vec<f32>,
    weight: Vec<f32>,
    output_gradient: Vec<f32>,
    before: Vec<f32>,
}

impl Case {
    fn new(shape: Conv2dShape, seed: u64) -> Self {
        let mut random = Random(seed);
        Self {
            shape,
            input: random.normals(shape.input_len()),
            weight: random.normals(shape.weight_len()),
            output_gradient: random.normals(shape.output_len()),
            before: random.normals(shape.input_len()),
        }
    }

    /// Rounds the case to numbers that a device in this precision can store.
    fn stored(&self, precision: Precision) -> Self {
        let [input, weight, output_gradient, before] =
            [&self.input, &self.weight, &self.output_gradient, &self.before].map(|values| stored(precision, values));
        Self { shape: self.shape, input, weight, output_gradient, before }
    }

    /// In float32 on the CPU.
    fn check(&self) {
        self.check_on(Precision::Fp32, &devices());
    }

    /// With kernels, in all precisions.
    fn check_kernels(&self) {
        for precision in PRECISIONS {
            let devices = kernel_devices(precision);
            if !devices.is_empty() {
                self.stored(precision).check_on(precision, &devices);
            }
        }
        assert_schedules_agree();
    }

    /// The expected results for these operands.
    fn truth(&self, operands: impl Fn(&[f32]) -> Vec<f32>) -> Truth {
        let shape = &self.shape;
        let [input, weight, output_gradient] = [&self.input, &self.weight, &self.output_gradient].map(|v| operands(v));
        let (input_squares, weight_squares, gradient_squares) =
            (squares(&input), squares(&weight), squares(&output_gradient));
        Truth {
            output: conv2d(shape, &input, &weight),
            output_size: typical(&conv2d(shape, &input_squares, &weight_squares)),
            input_gradient: conv2d_input_gradient(shape, &weight, &output_gradient),
            input_gradient_size: typical(&conv2d_input_gradient(shape, &weight_squares, &gradient_squares)),
            weight_gradient: conv2d_weight_gradient(shape, &input, &output_gradient),
            weight_gradient_size: typical(&conv2d_weight_gradient(shape, &input_squares, &gradient_squares)),
        }
    }

    fn check_on(&self, precision: Precision, devices: &[Rc<dyn Device>]) {
        let mut truths = vec![self.truth(|values| operands(precision, values))];
        // If a shape does not suit its tensor cores, a device may multiply exactly.
        if precision == Precision::Tf32 {
            truths.push(self.truth(<[f32]>::to_vec));
        }
        for device in devices {
            let device = device.as_ref();
            for with_statistics in [false, true] {
                self.check_forward(device, with_statistics, &truths);
            }
            for before in [None, Some(self.before.as_slice())] {
                self.check_input_gradient(device, before, &truths);
            }
            self.check_weight_gradient(device, &truths);
        }
    }

    fn check_forward(&self, device: &dyn Device, with_statistics: bool, truths: &[Truth]) {
        let shape = &self.shape;
        let bench = Workbench::new(device);
        let output = bench.activation_output(output_dims(shape));
        let channels = shape.output_channels;
        let rows = device.statistics_rows(output.shape());
        let statistics = with_statistics.then(|| bench.output([rows, 2, channels]));
        let arguments = Conv2dForward {
            input: &bench.activation(input_dims(shape), &self.input),
            weight: &bench.activation(weight_dims(shape), &self.weight),
            output: &output,
            statistics: statistics.as_ref(),
            workspace: &bench.workspace(device.conv2d_workspace(shape, Conv2dPass::Forward)),
        };
        device.conv2d_forward(shape, &arguments).unwrap();
        let all = truths.iter().map(|truth| (truth.output.as_slice(), truth.output_size));
        let ours = assert_nearest(&format!("output of {shape:?}"), &bench, &output, all, limit(shape));
        // Batch norm reads the statistics, so they are compared as it uses them. They describe the output as it is
        // stored.
        if let Some(statistics) = statistics.filter(|_| ours.len() > channels) {
            let saved_statistics = bench.output([4, channels]);
            let (ones, zeros) = (vec![1.0; channels], vec![0.0; channels]);
            let arguments = BatchNormForward {
                mode: BatchNormMode::Training,
                input: &output,
                statistics: Some(&statistics),
                weight: &bench.input([channels], &ones),
                bias: &bench.input([channels], &zeros),
                running_mean: &bench.variable([channels], &zeros),
                running_variance: &bench.variable([channels], &ones),
                saved_statistics: &saved_statistics,
                residual: None,
                activation: Activation::None,
                output: &bench.activation_output(output_dims(shape)),
                epsilon: 1e-5,
                momentum: 0.1,
            };
            device.batch_norm_forward(&arguments).unwrap();
            let saved_statistics = bench.read(&saved_statistics);
            let expected = batch_statistics(&ours, channels);
            let deviation: Vec<f64> = expected.variance.iter().map(|variance| variance.sqrt()).collect();
            let inverse: Vec<f64> = expected.variance.iter().map(|variance| 1.0 / (variance + 1e-5).sqrt()).collect();
            let what = format!("statistics of {shape:?}");
            assert_near(&what, &saved_statistics[..channels], &expected.mean, norm(&deviation), 1e-5);
            assert_near(&what, &saved_statistics[channels..2 * channels], &inverse, 0.0, 1e-5);
        }
        bench.finish();
    }

    fn check_input_gradient(&self, device: &dyn Device, before: Option<&[f32]>, truths: &[Truth]) {
        let shape = &self.shape;
        let bench = Workbench::new(device);
        let gradient = bench.activation_gradient(input_dims(shape), before);
        let arguments = Conv2dInputGradient {
            output_gradient: &bench.activation(output_dims(shape), &self.output_gradient),
            weight: &bench.activation(weight_dims(shape), &self.weight),
            input_gradient: &gradient,
            batch_norm: None,
            workspace: &bench.workspace(device.conv2d_workspace(shape, Conv2dPass::InputGradient)),
        };
        device.conv2d_input_gradient(shape, &arguments).unwrap();
        let what = format!("input gradient, accumulate {}, of {shape:?}", gradient.accumulate);
        let with_before: Vec<_> = truths
            .iter()
            .map(|truth| (added(before, truth.input_gradient.clone()), truth.input_gradient_size))
            .collect();
        let all = with_before.iter().map(|(truth, size)| (truth.as_slice(), *size));
        assert_nearest(&what, &bench, &gradient.tensor, all, limit(shape));
        bench.finish();
    }

    fn check_weight_gradient(&self, device: &dyn Device, truths: &[Truth]) {
        let shape = &self.shape;
        let bench = Workbench::new(device);
        let gradient = bench.output(weight_dims(shape));
        let arguments = Conv2dWeightGradient {
            input: &bench.activation(input_dims(shape), &self.input),
            output_gradient: &bench.activation(output_dims(shape), &self.output_gradient),
            weight_gradient: &gradient,
            workspace: &bench.workspace(device.conv2d_workspace(shape, Conv2dPass::WeightGradient)),
        };
        device.conv2d_weight_gradient(shape, &arguments).unwrap();
        let what = format!("weight gradient of {shape:?}");
        let all = truths.iter().map(|truth| (truth.weight_gradient.as_slice(), truth.weight_gradient_size));
        assert_nearest(&what, &bench, &gradient, all, limit(shape));
        bench.finish();
    }
}

fn any_shape() -> impl Strategy<Value = Conv2dShape> {
    let images = (1usize..=3, 1usize..=17, 1usize..=17);
    let channels = (1usize..=37, 1usize..=37);
    let filter = (1usize..=7, 1usize..=7, 1usize..=3, 0usize..=3);
    (images, channels, filter)
        .prop_map(|((n, h, w), (c, k), (r, s, stride, padding))| shape([n, h, w, c, k, r, s, stride, padding]))
        .prop_filter("the filter fits the image", |shape| {
            let room = 2 * shape.padding;
            shape.height + room >= shape.kernel_height && shape.width + room >= shape.kernel_width
        })
        .prop_filter("the naive version takes no seconds", |shape| shape.multiply_adds() < 2_000_000)
}

/// Filters of 3 x 3, mostly with stride 1, with channel counts that fit tiles and others.
fn shape_of_residual_block() -> impl Strategy<Value = Conv2dShape> {
    let channels = prop::sample::select(vec![16usize, 31, 32, 33, 48, 64]);
    let images = (1usize..=3, 3usize..=29, 3usize..=29);
    (images, channels.clone(), channels, 1usize..=2)
        .prop_map(|((n, h, w), c, k, stride)| shape([n, h, w, c, k, 3, 3, stride, 1]))
        .prop_filter("the naive version takes no seconds", |shape| shape.multiply_adds() < 8_000_000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn passes_match_over_any_shape(shape in any_shape(), seed in any::<u64>()) {
        Case::new(shape, seed).check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn passes_match_in_residual_blocks(shape in shape_of_residual_block(), seed in any::<u64>()) {
        Case::new(shape, seed).check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kernels_match_over_any_shape(
        shape in any_shape().prop_filter("an emulator is slow", |shape| shape.multiply_adds() < 300_000),
        seed in any::<u64>(),
    ) {
        Case::new(shape, seed).check_kernels();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kernels_match_in_residual_blocks(
        shape in shape_of_residual_block()
            .prop_filter("an emulator is slow", |shape| shape.multiply_adds() < 3_000_000),
        seed in any::<u64>(),
    ) {
        Case::new(shape, seed).check_kernels();
    }
}

const OF_RESNETS: [[usize; 9]; 10] = [
    // The stem, with an even and an odd image size.
    [2, 32, 32, 3, 64, 7, 7, 2, 3],
    [1, 33, 31, 3, 8, 7, 7, 2, 3],
    // Residual blocks of the four stages, with fewer pixels or channels.
    [1, 14, 14, 64, 64, 3, 3, 1, 1],
    [2, 14, 14, 32, 64, 3, 3, 2, 1],
    [2, 14, 14, 64, 128, 1, 1, 2, 0],
    [2, 7, 7, 128, 128, 3, 3, 1, 1],
    [1, 7, 7, 96, 160, 3, 3, 2, 1],
    // The late layers for a small image.
    [1, 1, 1, 512, 64, 3, 3, 1, 1],
    [3, 2, 1, 64, 128, 3, 3, 2, 1],
    [1, 1, 1, 64, 128, 1, 1, 2, 0],
];

#[test]
fn passes_match_at_resnets_shapes() {
    for (seed, sizes) in OF_RESNETS.into_iter().enumerate() {
        Case::new(shape(sizes), seed as u64).check();
    }
}

#[test]
fn kernels_match_at_resnets_shapes() {
    for (seed, sizes) in OF_RESNETS.into_iter().enumerate() {
        let mut shape = shape(sizes);
        // Reduces the batch to one image for shapes that take seconds on the emulator.
        if shape.multiply_adds() > 3_000_000 {
            shape.batch = 1;
        }
        Case::new(shape, seed as u64).check_kernels();
    }
}

/// Enough pixels that partial statistics, and sums over the batch, are combined in more than one step.
#[test]
fn kernels_match_over_many_pixels() {
    for (seed, sizes) in [[1, 96, 96, 8, 8, 1, 1, 1, 0], [3, 57, 61, 3, 8, 1, 1, 1, 0], [2, 67, 66, 4, 5, 3, 3, 2, 1]]
        .into_iter()
        .enumerate()
    {
        Case::new(shape(sizes), 200 + seed as u64).check_kernels();
    }
}

/// Enough tiles and channels that a device uses Winograd's algorithm, with whole and partial tiles.
#[test]
fn passes_match_where_winograd_pays() {
    for (seed, sizes) in [
        [2, 20, 20, 32, 32, 3, 3, 1, 1],
        [1, 27, 25, 48, 32, 3, 3, 1, 1],
        [3, 17, 19, 32, 48, 3, 3, 1, 1],
        [1, 24, 32, 32, 64, 3, 3, 1, 1],
        [8, 14, 14, 32, 32, 3, 3, 1, 1],
    ]
    .into_iter()
    .enumerate()
    {
        Case::new(shape(sizes), 50 + seed as u64).check();
    }
}

const EDGES: [[usize; 9]; 12] = [
    [1, 1, 1, 1, 1, 1, 1, 1, 0],
    // Padding wider than the image, and filters that cover nothing but padding.
    [1, 1, 1, 3, 5, 7, 7, 1, 3],
    [2, 2, 3, 4, 3, 1, 1, 1, 3],
    [1, 1, 2, 5, 7, 2, 1, 3, 2],
    // With a stride longer than the filter, no output reads some of the pixels.
    [2, 10, 11, 3, 17, 1, 1, 3, 0],
    [1, 8, 9, 5, 6, 2, 2, 3, 0],
    // One row, one column.
    [1, 1, 40, 7, 9, 1, 5, 1, 0],
    [1, 40, 1, 7, 9, 5, 1, 1, 0],
    [1, 1, 64, 48, 48, 3, 3, 1, 1],
    // One channel and many.
    [1, 9, 9, 1, 200, 3, 3, 1, 1],
    [1, 9, 9, 200, 1, 3, 3, 1, 1],
    // The stride skips the last row and column of the image.
    [1, 8, 6, 16, 16, 1, 1, 2, 0],
];

#[test]
fn passes_match_at_edges() {
    for (seed, sizes) in EDGES.into_iter().enumerate() {
        Case::new(shape(sizes), 100 + seed as u64).check();
    }
}

#[test]
fn kernels_match_at_edges() {
    for (seed, sizes) in EDGES.into_iter().enumerate() {
        Case::new(shape(sizes), 100 + seed as u64).check_kernels();
    }
}

#[test]
fn lower_levels() {
    run_at_lower_levels("passes_match");
}

/// A convolution fused with batch norm gives the bits of a convolution followed by batch norm.
#[test]
fn with_a_batch_norm_behind_it() {
    let devices = PRECISIONS.into_iter().flat_map(kernel_devices).chain(devices());
    let mut finished = 0;
    for device in devices.filter(|device| device.features().conv2d_batch_norm) {
        for sizes in [
            [3, 29, 30, 3, 64, 7, 7, 2, 3],
            [4, 14, 15, 32, 48, 3, 3, 1, 1],
            [2, 28, 28, 64, 80, 3, 3, 1, 1],
            [5, 8, 9, 24, 40, 1, 1, 2, 0],
            [1, 7, 7, 64, 128, 3, 3, 1, 1],
            [9, 7, 7, 96, 40, 3, 3, 2, 1],
            [2, 4, 4, 33, 31, 1, 1, 1, 0],
            [2, 6, 7, 16, 20, 3, 3, 1, 1],
            [12, 28, 28, 16, 128, 1, 1, 1, 0],
            [12, 28, 28, 16, 100, 1, 1, 1, 0],
        ] {
            let activations = [Activation::None, Activation::Relu];
            for (with_residual, activation) in [false, true].into_iter().flat_map(|with| activations.map(|a| (with, a)))
            {
                let shape = shape(sizes);
                let bits =
                    |in_one_pass| after_batch_norm(device.as_ref(), &shape, with_residual, activation, in_one_pass);
                assert_eq!(bits(true), bits(false), "{sizes:?}, residual {with_residual}, {activation:?}");
                finished += 1;
            }
        }
    }
    assert!(finished >= 4 * 40, "the CPU and all precisions of the kernels fuse batch norm: {finished}");
}

fn after_batch_norm(
    device: &dyn Device,
    shape: &Conv2dShape,
    with_residual: bool,
    activation: Activation,
    in_one_pass: bool,
) -> Vec<u32> {
    let (bench, mut random) = (Workbench::new(device), Random(11));
    let (channels, dims) = (shape.output_channels, output_dims(shape));
    let mut random_activation = |dims: [usize; 4]| {
        let exact = random.normals(dims.iter().product()).into_iter().map(|value| bf16::from_f32(value).to_f32());
        bench.activation(dims, &exact.collect::<Vec<_>>())
    };
    let (input, weight, residual) =
        (random_activation(input_dims(shape)), random_activation(weight_dims(shape)), random_activation(dims));
    let mut vector = |low, high| bench.variable([channels], &random.uniforms(channels, low, high));
    let output = bench.activation_output(dims);
    let between = if in_one_pass { output.clone() } else { bench.activation_output(dims) };
    let convolution = Conv2dForward {
        input: &input,
        weight: &weight,
        output: &between,
        statistics: None,
        workspace: &bench.workspace(device.conv2d_workspace(shape, Conv2dPass::Forward)),
    };
    let batch_norm = BatchNormForward {
        mode: BatchNormMode::Running,
        input: &between,
        statistics: None,
        weight: &vector(-1.0, 1.0),
        bias: &vector(-1.0, 1.0),
        running_mean: &vector(-1.0, 1.0),
        running_variance: &vector(0.1, 4.0),
        saved_statistics: &bench.output([4, channels]),
        residual: with_residual.then_some(&residual),
        activation,
        output: &output,
        epsilon: 1e-5,
        momentum: 0.1,
    };
    if in_one_pass {
        device.conv2d_batch_norm(shape, &convolution, &batch_norm).unwrap();
    } else {
        device.conv2d_forward(shape, &convolution).unwrap();
        device.batch_norm_forward(&batch_norm).unwrap();
    }
    bench.read(&output).into_iter().map(f32::to_bits).collect()
}
