//! Batch normalisation and its gradients on every device and in every precision, compared with the naive float64
//! versions.

mod reference;

use std::rc::Rc;

use proptest::prelude::*;
use reference::devices::{
    PRECISIONS, Workbench, added, assert_near, assert_schedules_agree, assert_stored_near, devices, kernel_devices,
    norm, run_at_lower_levels, stored,
};
use reference::*;
use retune::device::{
    Activation, BatchNormBackward, BatchNormForward, BatchNormMode, Device, Gradient, MaxPoolWindow, Precision,
};
use retune::tensor::Tensor;

const LIMIT: f64 = 1e-5;
const EPSILON: f32 = 1e-5;

/// The optional arguments that a case has.
#[derive(Debug, Clone, Copy)]
struct Options {
    training: bool,
    residual: bool,
    activation: Activation,
    momentum: f32,
    input_gradient: bool,
    residual_gradient: bool,
    weight_gradient: bool,
    bias_gradient: bool,
    accumulate: bool,
}

impl Options {
    fn has_activation(&self) -> bool {
        self.activation != Activation::None
    }

    fn mode(&self) -> BatchNormMode {
        if self.training { BatchNormMode::Training } else { BatchNormMode::Running }
    }

    /// Whether the backward pass needs the input of the forward pass.
    fn needs_input(&self) -> bool {
        self.weight_gradient || (self.input_gradient && self.training) || (self.has_activation() && !self.residual)
    }
}

struct Case {
    dims: [usize; 4],
    options: Options,
    input: Vec<f32>,
    residual: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    running: [Vec<f32>; 2],
    output_gradient: Vec<f32>,
    before: [Vec<f32>; 2],
}

impl Case {
    fn new(dims: [usize; 4], options: Options, seed: u64) -> Self {
        let mut random = Random(seed);
        let (count, channels) = (dims.iter().product(), dims[3]);
        let centres: Vec<(f64, f64)> =
            (0..channels).map(|_| (random.uniform(-3.0, 3.0), random.uniform(0.5, 2.0))).collect();
        let input = (0..count).map(|index| {
            let (mean, deviation) = centres[index % channels];
            // A few random values may be nearly equal, and then the normalised values consist of rounding errors.
            let side = if index / channels % 2 == 0 { 1.0 } else { -1.0 };
            (mean + deviation * (side + 0.5 * random.normal())) as f32
        });
        let input = input.collect();
        Self {
            dims,
            options,
            input,
            residual: random.normals(count),
            weight: random.normals(channels),
            bias: random.normals(channels),
            running: [random.normals(channels), random.uniforms(channels, 0.5, 2.0)],
            output_gradient: random.normals(count),
            before: [random.normals(count), random.normals(count)],
        }
    }

    fn channels(&self) -> usize {
        self.dims[3]
    }

    fn statistics(&self) -> Statistics {
        if self.options.training {
            return batch_statistics(&self.input, self.channels());
        }
        let [mean, variance] = self.running.clone().map(|values| values.into_iter().map(f64::from).collect());
        Statistics { mean, variance }
    }

    /// Rounds the case to numbers that a device in this precision can store.
    fn stored(self, precision: Precision) -> Self {
        let Self { dims, options, input, residual, weight, bias, running, output_gradient, before } = self;
        let [input, residual, output_gradient] =
            [input, residual, output_gradient].map(|values| stored(precision, &values));
        let before = before.map(|values| stored(precision, &values));
        Self { dims, options, input, residual, weight, bias, running, output_gradient, before }
    }

    /// In float32 on the CPU.
    fn check(self) {
        for device in devices() {
            self.check_on(device.as_ref());
        }
    }

    /// With kernels, in all precisions.
    fn check_kernels(dims: [usize; 4], options: Options, seed: u64) {
        for precision in PRECISIONS {
            let case = Self::new(dims, options, seed).stored(precision);
            kernel_devices(precision).iter().for_each(|device| case.check_on(device.as_ref()));
            assert_schedules_agree();
        }
    }

    fn check_on(&self, device: &dyn Device) {
        let bench = Workbench::new(device);
        let (output, saved_statistics) = self.check_forward(device, &bench, LIMIT);
        self.check_backward(device, &bench, &output, &saved_statistics);
        bench.finish();
    }

    /// Returns the output and the saved statistics.
    fn check_forward(&self, device: &dyn Device, bench: &Workbench, limit: f64) -> (Vec<f32>, Vec<f32>) {
        let (Self { dims, options, .. }, channels) = (self, self.channels());
        let pixels = self.input.len() / channels;
        let input = bench.activation(*dims, &self.input);
        let statistics = options.training.then(|| {
            let statistics = bench.output([device.statistics_rows(input.shape()), 2, channels]);
            device.batch_norm_statistics(&input, &statistics).unwrap();
            statistics
        });
        let output = bench.activation_output(*dims);
        let saved_statistics = bench.output([4, channels]);
        let [running_mean, running_variance] = [0, 1].map(|index| bench.variable([channels], &self.running[index]));
        let residual = options.residual.then(|| bench.activation(*dims, &self.residual));
        let arguments = BatchNormForward {
            mode: options.mode(),
            input: &input,
            statistics: statistics.as_ref(),
            weight: &bench.input([channels], &self.weight),
            bias: &bench.input([channels], &self.bias),
            running_mean: &running_mean,
            running_variance: &running_variance,
            saved_statistics: &saved_statistics,
            residual: residual.as_ref(),
            activation: options.activation,
            output: &output,
            epsilon: EPSILON,
            momentum: options.momentum,
        };
        device.batch_norm_forward(&arguments).unwrap();

        let used = self.statistics();
        let reference = BatchNorm { gamma: &self.weight, beta: &self.bias, epsilon: EPSILON.into() };
        let residual = options.residual.then_some(self.residual.as_slice());
        let truth = reference.forward(&self.input, &used, residual, options.activation);
        let what = format!("{dims:?} {options:?}");
        // The norm after a ReLU or with a small weight may be small.
        let typical = 0.3 * (truth.len() as f64).sqrt();
        let ours = assert_stored_near(&format!("output of {what}"), bench, &output, &truth, typical, limit);
        let running = [bench.read(&running_mean), bench.read(&running_variance)];
        if options.training {
            let [mean, variance] = self.running.clone().map(|values| values.into_iter().map(f64::from).collect());
            let before = Statistics { mean, variance };
            let truth = running_statistics(&before, &used, pixels, options.momentum.into());
            assert_near(&format!("running mean of {what}"), &running[0], &truth.mean, 0.1, LIMIT);
            assert_near(&format!("running variance of {what}"), &running[1], &truth.variance, 0.0, LIMIT);
        } else {
            assert_eq!(running, self.running, "running statistics of {what} changed");
        }
        (ours, bench.read(&saved_statistics))
    }

    fn check_backward(&self, device: &dyn Device, bench: &Workbench, output: &[f32], saved_statistics: &[f32]) {
        let (Self { dims, options, .. }, channels) = (self, self.channels());
        let before = |index: usize| options.accumulate.then_some(self.before[index].as_slice());
        let reference = BatchNorm { gamma: &self.weight, beta: &self.bias, epsilon: EPSILON.into() };
        let statistics = self.statistics();
        // Uses the device's own mask: the forward pass has been checked, and rounding may flip values near zero.
        let mask = options.has_activation().then_some(output);
        let without_coupling = reference.frozen_backward(&self.input, &statistics, mask, &self.output_gradient);
        let truth = match options.training {
            true => reference.training_backward(&self.input, mask, &self.output_gradient),
            false => without_coupling.clone(),
        };
        for with_input in [true, false] {
            if !with_input && options.needs_input() {
                continue;
            }
            let input = with_input.then(|| bench.activation(*dims, &self.input));
            let output = (options.has_activation() && options.residual).then(|| bench.activation(*dims, output));
            let input_gradient = options.input_gradient.then(|| bench.activation_gradient(*dims, before(0)));
            let residual_gradient =
                (options.residual && options.residual_gradient).then(|| bench.activation_gradient(*dims, before(1)));
            let weight_gradient = options.weight_gradient.then(|| bench.output([channels]));
            let bias_gradient = options.bias_gradient.then(|| bench.output([channels]));
            let arguments = BatchNormBackward {
                mode: options.mode(),
                input: input.as_ref(),
                output: output.as_ref(),
                activation: options.activation,
                output_gradient: &bench.activation(*dims, &self.output_gradient),
                is_reduced: false,
                weight: &bench.input([channels], &self.weight),
                bias: &bench.input([channels], &self.bias),
                saved_statistics: &bench.input([4, channels], saved_statistics),
                input_gradient: input_gradient.as_ref(),
                residual_gradient: residual_gradient.as_ref(),
                weight_gradient: weight_gradient.as_ref(),
                bias_gradient: bias_gradient.as_ref(),
                workspace: &bench.workspace(device.batch_norm_workspace((*dims).into())),
            };
            device.batch_norm_backward(&arguments).unwrap();
            let what = format!("of {dims:?} {options:?}, input {with_input}");
            let sums = (self.output_gradient.len() as f64).sqrt();
            if let Some(gradient) = input_gradient {
                let typical = norm(&without_coupling.input);
                let truth = added(before(0), truth.input.clone());
                let what = format!("input gradient {what}");
                assert_stored_near(&what, bench, &gradient.tensor, &truth, typical, LIMIT);
            }
            if let Some(gradient) = residual_gradient {
                let truth = added(before(1), truth.residual.clone());
                let what = format!("residual gradient {what}");
                assert_stored_near(&what, bench, &gradient.tensor, &truth, 0.0, 1e-7);
            }
            if let Some(gradient) = weight_gradient {
                assert_near(&format!("weight gradient {what}"), &bench.read(&gradient), &truth.gamma, sums, LIMIT);
            }
            if let Some(gradient) = bias_gradient {
                assert_near(&format!("bias gradient {what}"), &bench.read(&gradient), &truth.beta, sums, LIMIT);
            }
        }
    }
}

fn any_options() -> impl Strategy<Value = Options> {
    let momentum = prop::sample::select(vec![0.1f32, 0.0, 1.0, 0.3]);
    (prop::array::uniform8(any::<bool>()), momentum).prop_map(|(flags, momentum)| {
        let [training, residual, relu, input_gradient, residual_gradient, weight_gradient, bias_gradient, accumulate] =
            flags;
        Options {
            training,
            residual,
            activation: if relu { Activation::Relu } else { Activation::None },
            momentum,
            input_gradient,
            residual_gradient,
            weight_gradient,
            bias_gradient,
            accumulate,
        }
    })
}

/// Small images, one-pixel images, and images that are split into several blocks of pixels.
fn any_dims() -> impl Strategy<Value = [usize; 4]> {
    let small = [1usize..=4, 1usize..=9, 1usize..=9, 1usize..=37].prop_map(|dims| dims);
    let one_pixel = (2usize..=9, 1usize..=70).prop_map(|(batch, channels)| [batch, 1, 1, channels]);
    let many_blocks = (2usize..=3, 7usize..=9, 200usize..=600).prop_map(|(n, side, c)| [n, side, side, c]);
    prop_oneof![4 => small, 1 => one_pixel, 1 => many_blocks]
        .prop_filter("more than one value per channel", |dims| dims[0] * dims[1] * dims[2] > 1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn passes_match_over_any_shape(dims in any_dims(), options in any_options(), seed in any::<u64>()) {
        Case::new(dims, options, seed).check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kernels_match_over_any_shape(dims in any_dims(), options in any_options(), seed in any::<u64>()) {
        Case::check_kernels(dims, options, seed);
    }
}

const ALL: Options = Options {
    training: true,
    residual: true,
    activation: Activation::Relu,
    momentum: 0.1,
    input_gradient: true,
    residual_gradient: true,
    weight_gradient: true,
    bias_gradient: true,
    accumulate: false,
};

const OF_RESNETS: [[usize; 4]; 6] =
    [[2, 28, 28, 64], [1, 56, 56, 16], [4, 7, 7, 512], [3, 1, 1, 512], [1, 1, 2, 7], [2, 40, 41, 1]];

/// The three uses of batch norm in a block.
const PLACES: [(bool, Activation); 3] =
    [(false, Activation::Relu), (false, Activation::None), (true, Activation::Relu)];

#[test]
fn passes_match_at_resnets_shapes() {
    for (seed, dims) in OF_RESNETS.into_iter().enumerate() {
        for training in [true, false] {
            for (residual, activation) in PLACES {
                let options = Options { training, residual, activation, ..ALL };
                Case::new(dims, options, seed as u64).check();
            }
        }
    }
}

#[test]
fn kernels_match_at_resnets_shapes() {
    for (seed, dims) in OF_RESNETS.into_iter().enumerate() {
        for training in [true, false] {
            for (residual, activation) in PLACES {
                Case::check_kernels(dims, Options { training, residual, activation, ..ALL }, seed as u64);
            }
        }
    }
    // Enough pixels that statistics are combined in more than one step.
    Case::check_kernels([2, 70, 66, 9], ALL, 9);
}

/// Channels whose mean is a thousand deviations, where naive sums of squares lose all digits. The limit is the error of
/// `x * scale + shift` in float32 with exact statistics.
fn check_far_from_zero(precision: Precision, devices: &[Rc<dyn Device>]) {
    // bf16 cannot distinguish 1000 from 1001. Sums over the few bf16 values near 20 round in the same direction each
    // time, so errors that usually cancel add up, and exceed the limit for any float32 result.
    let (mean, variance_limit) = if precision == Precision::Bf16 { (20.0, 5e-5) } else { (1000.0, LIMIT) };
    for (dims, activation) in [
        ([2, 60, 60, 3], Activation::None),
        ([2, 9, 9, 64], Activation::Relu),
        ([1, 1, 2, 5], Activation::None),
        ([1, 180, 181, 1], Activation::Relu),
    ] {
        let options = Options { residual: false, activation, ..ALL };
        let mut case = Case::new(dims, options, 5);
        let (channels, mut random) = (dims[3], Random(6));
        case.input = (0..case.input.len()).map(|_| (mean + random.normal()) as f32).collect();
        case = case.stored(precision);
        let statistics = case.statistics();
        let reference = BatchNorm { gamma: &case.weight, beta: &case.bias, epsilon: EPSILON.into() };
        let truth = reference.forward(&case.input, &statistics, None, activation);
        let in_float32 = (0..case.input.len()).map(|index| {
            let channel = index % channels;
            let inverse = 1.0 / (statistics.variance[channel] + f64::from(EPSILON)).sqrt();
            let scale = case.weight[channel] * inverse as f32;
            let value = case.input[index] * scale + (case.bias[channel] - statistics.mean[channel] as f32 * scale);
            if activation == Activation::Relu { value.max(0.0) } else { value }
        });
        let noise = relative_error(&in_float32.collect::<Vec<_>>(), &truth);
        let limit = (4.0 * noise).max(LIMIT);
        for device in devices {
            let device = device.as_ref();
            let bench = Workbench::new(device);
            let input = bench.activation(dims, &case.input);
            let partial = bench.output([device.statistics_rows(input.shape()), 2, channels]);
            device.batch_norm_statistics(&input, &partial).unwrap();
            let (output, saved_statistics) = (bench.activation_output(dims), bench.output([4, channels]));
            let [running_mean, running_variance] = [0, 1].map(|index| bench.variable([channels], &case.running[index]));
            let arguments = BatchNormForward {
                mode: BatchNormMode::Training,
                input: &input,
                statistics: Some(&partial),
                weight: &bench.input([channels], &case.weight),
                bias: &bench.input([channels], &case.bias),
                running_mean: &running_mean,
                running_variance: &running_variance,
                saved_statistics: &saved_statistics,
                residual: None,
                activation,
                output: &output,
                epsilon: EPSILON,
                momentum: 1.0,
            };
            device.batch_norm_forward(&arguments).unwrap();
            let what = format!("of {dims:?} far from zero, float32's own error {noise:.1e}");
            assert_stored_near(&format!("output {what}"), &bench, &output, &truth, 0.0, limit);
            let pixels = case.input.len() / channels;
            let unbiased = running_statistics(&statistics, &statistics, pixels, 1.0);
            assert_near(&format!("mean {what}"), &bench.read(&running_mean), &unbiased.mean, 0.0, 1e-7);
            let variance = bench.read(&running_variance);
            assert_near(&format!("variance {what}"), &variance, &unbiased.variance, 0.0, variance_limit);
            bench.finish();
        }
    }
}

#[test]
fn passes_match_far_from_zero() {
    check_far_from_zero(Precision::Fp32, &devices());
}

#[test]
fn kernels_match_far_from_zero() {
    PRECISIONS.into_iter().for_each(|precision| check_far_from_zero(precision, &kernel_devices(precision)));
}

/// A constant channel has zero variance: only epsilon keeps the result finite, and it multiplies rounding errors by
/// 316.
fn check_constant_channels(devices: &[Rc<dyn Device>]) {
    let mut case = Case::new([2, 5, 5, 6], Options { residual: false, ..ALL }, 3);
    case.input = (0..case.input.len()).map(|index| (index % 6) as f32 - 2.0).collect();
    for device in devices {
        let bench = Workbench::new(device.as_ref());
        let (output, _) = case.check_forward(device.as_ref(), &bench, 5e-5);
        assert!(output.iter().all(|value| value.is_finite()));
        bench.finish();
    }
}

#[test]
fn passes_match_in_constant_channels() {
    check_constant_channels(&devices());
}

#[test]
fn kernels_match_in_constant_channels() {
    PRECISIONS.into_iter().for_each(|precision| check_constant_channels(&kernel_devices(precision)));
}

/// Gradients at a NaN are those of torch: `threshold_backward` sets them to zero where the value is at most zero, which a NaN is
/// not.
#[test]
fn gradients_pass_the_relu_at_not_a_number() {
    for residual in [false, true] {
        for device in devices().into_iter().chain(PRECISIONS.into_iter().flat_map(kernel_devices)) {
            let bench = Workbench::new(device.as_ref());
            let dims = [1, 1, 4, 1];
            let values = bench.activation(dims, &[-1.0, 0.0, f32::NAN, 1.0]);
            let bias_gradient = bench.output([1]);
            let arguments = BatchNormBackward {
                mode: BatchNormMode::Running,
                input: (!residual).then_some(&values),
                output: residual.then_some(&values),
                activation: Activation::Relu,
                output_gradient: &bench.activation(dims, &[2.0, 3.0, 4.0, 5.0]),
                is_reduced: false,
                weight: &bench.input([1], &[1.0]),
                bias: &bench.input([1], &[0.0]),
                saved_statistics: &bench.input([4, 1], &[0.0, 1.0, 1.0, 0.0]),
                input_gradient: None,
                residual_gradient: None,
                weight_gradient: None,
                bias_gradient: Some(&bias_gradient),
                workspace: &bench.workspace(device.batch_norm_workspace(dims.into())),
            };
            device.batch_norm_backward(&arguments).unwrap();
            assert_eq!(bench.read(&bias_gradient), [4.0 + 5.0], "{}, residual {residual}", device.name());
            bench.finish();
        }
    }
}

const STEM_WINDOW: MaxPoolWindow = MaxPoolWindow { size: 3, stride: 2, padding: 1 };

/// The results of a batch norm and the max pooling after it.
struct Pooled {
    output: Vec<f32>,
    indices: Vec<u8>,
    running: [Vec<f32>; 2],
    input_gradient: Vec<f32>,
    weight_gradient: Vec<f32>,
    bias_gradient: Vec<f32>,
}

impl Case {
    fn pooled_dims(&self) -> [usize; 4] {
        let [batch, height, width, channels] = self.dims;
        [batch, STEM_WINDOW.output_extent(height), STEM_WINDOW.output_extent(width), channels]
    }

    /// In one pass, or in separate ones.
    fn pool(&self, device: &dyn Device, is_fused: bool) -> Pooled {
        let bench = Workbench::new(device);
        let (Self { dims, options, .. }, channels, pooled_dims) = (self, self.channels(), self.pooled_dims());
        let input = bench.activation(*dims, &self.input);
        let statistics = options.training.then(|| {
            let statistics = bench.output([device.statistics_rows(input.shape()), 2, channels]);
            device.batch_norm_statistics(&input, &statistics).unwrap();
            statistics
        });
        let [output, normalised] = [pooled_dims, *dims].map(|dims| bench.activation_output(dims));
        let (saved_statistics, indices) = (bench.output([4, channels]), bench.byte_output(pooled_dims));
        let [running_mean, running_variance] = [0, 1].map(|index| bench.variable([channels], &self.running[index]));
        let [weight, bias] = [&self.weight, &self.bias].map(|values| bench.input([channels], values));
        let forward = |output| BatchNormForward {
            mode: options.mode(),
            input: &input,
            statistics: statistics.as_ref(),
            weight: &weight,
            bias: &bias,
            running_mean: &running_mean,
            running_variance: &running_variance,
            saved_statistics: &saved_statistics,
            residual: None,
            activation: options.activation,
            output,
            epsilon: EPSILON,
            momentum: options.momentum,
        };
        let before = options.accumulate.then_some(self.before[0].as_slice());
        let input_gradient = bench.activation_gradient(*dims, before);
        let [weight_gradient, bias_gradient] = [0, 1].map(|_| bench.output([channels]));
        let workspace = bench.workspace(device.batch_norm_workspace((*dims).into()));
        let count = pooled_dims.iter().product();
        let output_gradient = bench.activation(pooled_dims, &self.output_gradient[..count]);
        let backward = |output_gradient| BatchNormBackward {
            mode: options.mode(),
            input: Some(&input),
            output: None,
            activation: options.activation,
            output_gradient,
            is_reduced: false,
            weight: &weight,
            bias: &bias,
            saved_statistics: &saved_statistics,
            input_gradient: options.input_gradient.then_some(&input_gradient),
            residual_gradient: None,
            weight_gradient: options.weight_gradient.then_some(&weight_gradient),
            bias_gradient: options.bias_gradient.then_some(&bias_gradient),
            workspace: &workspace,
        };
        if is_fused {
            device.batch_norm_max_pool_forward(STEM_WINDOW, &forward(&output), &indices).unwrap();
            device.batch_norm_max_pool_backward(STEM_WINDOW, &backward(&output_gradient), &indices).unwrap();
        } else {
            device.batch_norm_forward(&forward(&normalised)).unwrap();
            device.max_pool_forward(STEM_WINDOW, &normalised, &output, Some(&indices)).unwrap();
            let gradient = bench.activation_gradient(*dims, None);
            device.max_pool_backward(STEM_WINDOW, &indices, &output_gradient, &gradient).unwrap();
            device.batch_norm_backward(&backward(&gradient.tensor)).unwrap();
        }
        let wanted = |is_wanted: bool, tensor: &Tensor| if is_wanted { bench.read(tensor) } else { Vec::new() };
        let Gradient { tensor: input_gradient, .. } = &input_gradient;
        let pooled = Pooled {
            output: bench.read(&output),
            indices: bench.read_bytes(&indices),
            running: [bench.read(&running_mean), bench.read(&running_variance)],
            input_gradient: wanted(options.input_gradient, input_gradient),
            weight_gradient: wanted(options.weight_gradient, &weight_gradient),
            bias_gradient: wanted(options.bias_gradient, &bias_gradient),
        };
        bench.finish();
        pooled
    }

    /// One pass has the bits of separate ones; only sums over pixels have another order.
    fn check_pooled(dims: [usize; 4], options: Options, seed: u64) {
        for precision in PRECISIONS {
            let case = Self::new(dims, options, seed).stored(precision);
            let devices = kernel_devices(precision);
            let supported = |device: &&Rc<dyn Device>| device.has_batch_norm_max_pool(STEM_WINDOW);
            assert!(!cfg!(feature = "emulator") || devices.iter().any(|device| supported(&device)));
            for device in devices.iter().filter(supported) {
                let device = device.as_ref();
                let [fused, separate] = [true, false].map(|is_fused| case.pool(device, is_fused));
                let what = format!("{dims:?} {options:?} in {precision}");
                assert!(fused.output == separate.output && fused.indices == separate.indices, "{what}");
                assert!(fused.running == separate.running, "{what}");
                let sums = (case.output_gradient.len() as f64).sqrt();
                let near = |name: &str, ours: &[f32], other: &[f32], typical, limit| {
                    let truth: Vec<f64> = other.iter().copied().map(f64::from).collect();
                    assert_near(&format!("{name} of {what}"), ours, &truth, typical, limit);
                };
                near("weight gradient", &fused.weight_gradient, &separate.weight_gradient, sums, LIMIT);
                near("bias gradient", &fused.bias_gradient, &separate.bias_gradient, sums, LIMIT);
                if options.training && precision != Precision::Bf16 {
                    let typical = norm(&separate.input_gradient.iter().copied().map(f64::from).collect::<Vec<_>>());
                    near("input gradient", &fused.input_gradient, &separate.input_gradient, typical, LIMIT);
                } else if options.training {
                    // Another order of sums moves a few values across a rounding boundary.
                    let differs = fused.input_gradient.iter().zip(&separate.input_gradient).filter(|(a, b)| a != b);
                    assert!(differs.count() * 100 <= fused.input_gradient.len() + 100, "{what}");
                    near("input gradient", &fused.input_gradient, &separate.input_gradient, sums, 1e-3);
                } else {
                    assert!(fused.input_gradient == separate.input_gradient, "input gradient of {what}");
                }
            }
            assert_schedules_agree();
        }
    }
}

const POOLED: Options = Options { residual: false, residual_gradient: false, ..ALL };

#[test]
fn kernels_pool_what_they_normalise() {
    let shapes = [[2, 28, 28, 64], [1, 112, 112, 8], [2, 17, 16, 24], [1, 1, 2, 5], [3, 2, 1, 8], [2, 9, 9, 300]];
    for (seed, dims) in shapes.into_iter().enumerate() {
        for training in [true, false] {
            for activation in [Activation::Relu, Activation::None] {
                Case::check_pooled(dims, Options { training, activation, ..POOLED }, seed as u64);
            }
        }
    }
    for (weight_gradient, bias_gradient, input_gradient) in
        [(true, false, false), (false, true, false), (false, false, true), (false, false, false)]
    {
        let options = Options { weight_gradient, bias_gradient, input_gradient, ..POOLED };
        Case::check_pooled([2, 11, 13, 16], options, 7);
    }
    Case::check_pooled([2, 11, 13, 16], Options { accumulate: true, ..POOLED }, 8);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kernels_pool_any_shape(dims in any_dims(), options in any_options(), seed in any::<u64>()) {
        Case::check_pooled(dims, Options { residual: false, residual_gradient: false, ..options }, seed);
    }
}

/// A diverged network must show it: a ReLU that maps NaN to zero would hide it.
#[test]
fn not_a_number_passes_the_relu() {
    for residual in [false, true] {
        let options = Options { training: false, residual, ..ALL };
        for device in devices().into_iter().chain(PRECISIONS.into_iter().flat_map(kernel_devices)) {
            let mut case = Case::new([1, 2, 2, 3], options, 4).stored(device.precision());
            case.input[4] = f32::NAN;
            let bench = Workbench::new(device.as_ref());
            let dims = case.dims;
            let output = bench.activation_output(dims);
            let residual = residual.then(|| bench.activation(dims, &case.residual));
            let arguments = BatchNormForward {
                mode: BatchNormMode::Running,
                input: &bench.activation(dims, &case.input),
                statistics: None,
                weight: &bench.input([3], &case.weight),
                bias: &bench.input([3], &case.bias),
                running_mean: &bench.input([3], &case.running[0]),
                running_variance: &bench.input([3], &case.running[1]),
                saved_statistics: &bench.output([4, 3]),
                residual: residual.as_ref(),
                activation: Activation::Relu,
                output: &output,
                epsilon: EPSILON,
                momentum: 0.1,
            };
            device.batch_norm_forward(&arguments).unwrap();
            let nans: Vec<bool> = bench.read(&output).iter().map(|value| value.is_nan()).collect();
            assert_eq!(nans.iter().position(|&nan| nan), Some(4));
            assert_eq!(nans.iter().filter(|&&nan| nan).count(), 1);
            bench.finish();
        }
    }
}

#[test]
fn lower_levels() {
    run_at_lower_levels("passes_match");
}
