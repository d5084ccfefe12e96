//! The tensor-core convolutions on the emulator, compared with float64 on operands rounded as the kernels round them.
//! The remaining differences are the order of float32 additions and the rounding of the result.

#![cfg(feature = "emulator")]

mod reference;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use reference::devices::{Workbench, operands, stored};
use reference::*;
use retune::device::cuda::Cuda;
use retune::device::cuda::driver::{Capabilities, Driver, Launch};
use retune::device::cuda::emulator::Emulator;
use retune::device::{
    Activation, BatchNormBackward, BatchNormMode, Conv2dForward, Conv2dInputGradient, Conv2dPass, Device, Precision,
    Recording,
};
use retune::error::Result;
use retune::tensor::Memory;

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

/// Half a unit in the last place, relative to the value.
fn rounding(precision: Precision) -> f64 {
    match precision {
        Precision::Fp32 | Precision::Tf32 => 2f64.powi(-24),
        Precision::Bf16 => 2f64.powi(-8),
    }
}

/// Checks every element, and the norm.
///
/// `squares` is the sum of the squared products of each element; its square root q is the standard deviation of sums of
/// products with random signs. Partial sums stay within 4 q. Each of at most `terms` additions in float32 rounds by
/// 2^-24 of a partial sum, so if all rounded in the same direction the error would be `terms` 2^-22 q. One rounding of
/// the result is added.
///
/// Rounding errors do not all have the same sign, so the norm over many elements is far smaller. The rounding to bf16
/// is uniform within half a unit in the last place, 2^-8 / sqrt(3) of the power of two below the value. The mean square
/// of the values is more than (4/3)^2 of that power, so the error is less than 2^-9 of the norm. For float32 results
/// the limit is 1e-5: a random walk of 4608 roundings causes 2e-6, an operand that is not rounded to tf32 1e-4.
#[track_caller]
fn check(what: &str, precision: Precision, ours: &[f32], truth: &[f64], squares: &[f64], terms: usize) {
    assert_eq!(ours.len(), truth.len(), "{what}: lengths differ");
    for (i, ((&ours, &truth), &squares)) in ours.iter().zip(truth).zip(squares).enumerate() {
        let sum = terms as f64 * 2f64.powi(-22) * squares.sqrt();
        let limit = sum + rounding(precision) * (truth.abs() + sum);
        let difference = (f64::from(ours) - truth).abs();
        assert!(difference <= limit, "{what}: element {i} is {ours}, expected {truth} within {limit:.1e}");
    }
    let limit = if precision == Precision::Bf16 { 2f64.powi(-9) } else { 1e-5 };
    if truth.len() >= 1000 {
        let error = relative_error(ours, truth);
        assert!(error <= limit, "{what}: error {error:.2e}, limit {limit:.1e}");
    }
}

struct Case {
    shape: Conv2dShape,
    precision: Precision,
    input: Vec<f32>,
    weight: Vec<f32>,
    output_gradient: Vec<f32>,
    before: Vec<f32>,
}

/// The expected results of a case, and the sum of squared products of each element.
struct Truth {
    output: Vec<f64>,
    output_squares: Vec<f64>,
    input_gradient: Vec<f64>,
    input_gradient_squares: Vec<f64>,
}

#[derive(PartialEq)]
struct Results {
    output: Vec<f32>,
    statistics: Vec<f32>,
    input_gradients: [Vec<f32>; 2],
}

impl Case {
    /// With values that the storage of the precision holds exactly. tf32 rounds them further when they become operands.
    fn new(shape: Conv2dShape, precision: Precision, seed: u64) -> Self {
        let mut random = Random(seed);
        let mut values = |count: usize| stored(precision, &random.normals(count));
        Self {
            shape,
            precision,
            input: values(shape.input_len()),
            weight: values(shape.weight_len()),
            output_gradient: values(shape.output_len()),
            before: values(shape.input_len()),
        }
    }

    fn truth(&self) -> Truth {
        let Self { shape, precision, .. } = self;
        let input = operands(*precision, &self.input);
        let weight = operands(*precision, &self.weight);
        let output_gradient = operands(*precision, &self.output_gradient);
        Truth {
            output: conv2d(shape, &input, &weight),
            output_squares: conv2d(shape, &squares(&input), &squares(&weight)),
            input_gradient: conv2d_input_gradient(shape, &weight, &output_gradient),
            input_gradient_squares: conv2d_input_gradient(shape, &squares(&weight), &squares(&output_gradient)),
        }
    }

    fn forward(&self, cuda: &Cuda, with_statistics: bool) -> (Vec<f32>, Vec<f32>) {
        let shape = &self.shape;
        let bench = Workbench::new(cuda);
        let output = bench.activation_output(output_dims(shape));
        let rows = cuda.statistics_rows(output.shape());
        let statistics = with_statistics.then(|| bench.output([rows, 2, shape.output_channels]));
        let arguments = Conv2dForward {
            input: &bench.activation(input_dims(shape), &self.input),
            weight: &bench.activation(weight_dims(shape), &self.weight),
            output: &output,
            statistics: statistics.as_ref(),
            workspace: &bench.workspace(cuda.conv2d_workspace(shape, Conv2dPass::Forward)),
        };
        cuda.conv2d_forward(shape, &arguments).unwrap();
        let results = (bench.read(&output), statistics.map(|statistics| bench.read(&statistics)).unwrap_or_default());
        bench.finish();
        results
    }

    fn input_gradient(&self, cuda: &Cuda, accumulate: bool) -> Vec<f32> {
        let shape = &self.shape;
        let bench = Workbench::new(cuda);
        let before = accumulate.then_some(self.before.as_slice());
        let gradient = bench.activation_gradient(input_dims(shape), before);
        let arguments = Conv2dInputGradient {
            output_gradient: &bench.activation(output_dims(shape), &self.output_gradient),
            weight: &bench.activation(weight_dims(shape), &self.weight),
            input_gradient: &gradient,
            batch_norm: None,
            workspace: &bench.workspace(cuda.conv2d_workspace(shape, Conv2dPass::InputGradient)),
        };
        cuda.conv2d_input_gradient(shape, &arguments).unwrap();
        let result = bench.read(&gradient.tensor);
        bench.finish();
        result
    }

    /// The backward passes of this convolution and of the batch norm that wrote its input, whose own input and output are the
    /// case's values as they are. Returns the gradient of the batch norm's input and residual, weight and bias.
    fn reduced(&self, cuda: &Cuda, accumulate: bool, residual: bool, is_fused: bool) -> [Vec<f32>; 4] {
        let shape = &self.shape;
        let (dims, channels) = (input_dims(shape), shape.input_channels);
        let bench = Workbench::new(cuda);
        let before = accumulate.then_some(self.before.as_slice());
        let gradient = bench.activation_gradient(dims, before);
        let random = |seed: u64| Random(seed).normals(channels);
        let [mean, inverse, weight, summand] = [5, 6, 7, 8].map(random);
        let inverse: Vec<f32> = inverse.iter().map(|value| value.abs() + 0.1).collect();
        let factor = weight.iter().zip(&inverse).map(|(weight, inverse)| weight * inverse);
        let saved: Vec<f32> = [mean, inverse.clone(), factor.collect(), summand].concat();
        let reducing = cuda.reducing_workspace(shape).expect("supports the shape");
        let workspace = bench.workspace(if is_fused { reducing } else { cuda.batch_norm_workspace(dims.into()) });
        let [weight_gradient, bias_gradient] = [0, 1].map(|_| bench.output([channels]));
        let (normalised, residual_gradient) =
            (bench.activation_gradient(dims, None), bench.activation_gradient(dims, None));
        let [input, output] = [&self.input, &self.before].map(|values| bench.activation(dims, values));
        let [weight, bias] = [0, 1].map(|_| bench.input([channels], &weight));
        let saved_statistics = bench.input([4, channels], &saved);
        let backward = |is_reduced: bool| BatchNormBackward {
            mode: BatchNormMode::Training,
            input: Some(&input),
            output: residual.then_some(&output),
            activation: Activation::Relu,
            output_gradient: &gradient.tensor,
            is_reduced,
            weight: &weight,
            bias: &bias,
            saved_statistics: &saved_statistics,
            input_gradient: Some(&normalised),
            residual_gradient: Some(&residual_gradient),
            weight_gradient: Some(&weight_gradient),
            bias_gradient: Some(&bias_gradient),
            workspace: &workspace,
        };
        let batch_norm = backward(false);
        let arguments = Conv2dInputGradient {
            output_gradient: &bench.activation(output_dims(shape), &self.output_gradient),
            weight: &bench.activation(weight_dims(shape), &self.weight),
            input_gradient: &gradient,
            batch_norm: is_fused.then_some(&batch_norm),
            workspace: &bench.workspace(cuda.conv2d_workspace(shape, Conv2dPass::InputGradient)),
        };
        cuda.conv2d_input_gradient(shape, &arguments).unwrap();
        cuda.batch_norm_backward(&backward(is_fused)).unwrap();
        let results = [&normalised.tensor, &residual_gradient.tensor, &weight_gradient, &bias_gradient];
        let results = results.map(|tensor| bench.read(tensor));
        bench.finish();
        results
    }

    fn run(&self, seed: u64) -> Results {
        let emulator = Emulator::new(seed).expect("starts");
        self.run_on(&Cuda::new(Box::new(emulator), self.precision).expect("supports every precision"))
    }

    fn run_on(&self, cuda: &Cuda) -> Results {
        let (output, statistics) = self.forward(cuda, true);
        let (without_statistics, _) = self.forward(cuda, false);
        assert!(output == without_statistics, "statistics change the output of {:?}", self.shape);
        let input_gradients = [false, true].map(|accumulate| self.input_gradient(cuda, accumulate));
        Results { output, statistics, input_gradients }
    }

    fn check(&self, schedules: u64) {
        let Self { shape, precision, .. } = self;
        let truth = self.truth();
        let results = self.run(1);
        let filter = shape.kernel_height * shape.kernel_width;
        let what = format!("output in {precision} of {shape:?}");
        check(&what, *precision, &results.output, &truth.output, &truth.output_squares, filter * shape.input_channels);
        for (accumulate, ours) in [false, true].into_iter().zip(&results.input_gradients) {
            let what = format!("input gradient in {precision}, accumulate {accumulate}, of {shape:?}");
            let before = if accumulate { self.before.as_slice() } else { &[] };
            let mut expected = truth.input_gradient.clone();
            let mut squares = truth.input_gradient_squares.clone();
            for (i, &before) in before.iter().enumerate() {
                expected[i] += f64::from(before);
                squares[i] += f64::from(before).powi(2);
            }
            check(&what, *precision, ours, &expected, &squares, filter * shape.output_channels + 1);
        }
        self.check_statistics(&results);
        for seed in 2..=schedules {
            assert!(self.run(seed) == results, "another schedule changes bits of {shape:?} in {precision}");
        }
    }

    /// Row 0 is the total, the last rows are the blocks of 128 pixels. Sums are compared with the sum of magnitudes: a
    /// value goes through fewer than 2^7 additions, each of which rounds by at most 2^-24 of it.
    fn check_statistics(&self, results: &Results) {
        let channels = self.shape.output_channels;
        let pixels = results.output.len() / channels;
        let rows: Vec<&[f32]> = results.statistics.chunks_exact(2 * channels).collect();
        let blocks = pixels.div_ceil(128);
        let of_blocks =
            (0..blocks).map(|block| (rows[rows.len() - blocks + block], block * 128..pixels.min(block * 128 + 128)));
        for (row, pixels) in std::iter::once((rows[0], 0..pixels)).chain(of_blocks) {
            for channel in 0..channels {
                let values: Vec<f64> =
                    pixels.clone().map(|pixel| f64::from(results.output[pixel * channels + channel])).collect();
                let sum: f64 = values.iter().sum();
                let mean = sum / values.len() as f64;
                let deviations: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
                let magnitudes: f64 = values.iter().map(|value| value.abs()).sum();
                let squares: f64 = values.iter().map(|value| value.powi(2)).sum();
                let limit = 2f64.powi(-17);
                let (ours, our_deviations) = (f64::from(row[channel]), f64::from(row[channels + channel]));
                let what = format!("channel {channel}, pixels {pixels:?}, {} of {:?}", self.precision, self.shape);
                assert!((ours - sum).abs() <= limit * magnitudes, "sum {ours}, expected {sum}: {what}");
                assert!(
                    (our_deviations - deviations).abs() <= limit * squares,
                    "deviations {our_deviations}, expected {deviations}: {what}"
                );
            }
        }
    }
}

const PRECISIONS: [Precision; 2] = [Precision::Bf16, Precision::Tf32];

fn check_all(cases: &[[usize; 9]], schedules: u64) {
    for (i, &sizes) in cases.iter().enumerate() {
        for precision in PRECISIONS {
            Case::new(shape(sizes), precision, i as u64).check(schedules);
        }
    }
}

/// ResNet-18's layers for small images: `[batch, height, width, C, K, R, S, stride, padding]`.
#[test]
fn layers_of_resnet() {
    check_all(
        &[
            [2, 14, 14, 64, 64, 3, 3, 1, 1],
            [1, 14, 14, 64, 128, 3, 3, 2, 1],
            [1, 14, 14, 64, 128, 1, 1, 2, 0],
            [1, 10, 10, 128, 128, 3, 3, 1, 1],
            [1, 10, 10, 128, 256, 3, 3, 2, 1],
            [1, 10, 10, 128, 256, 1, 1, 2, 0],
            [1, 7, 7, 256, 256, 3, 3, 1, 1],
            [1, 7, 7, 256, 512, 3, 3, 2, 1],
            [1, 7, 7, 256, 512, 1, 1, 2, 0],
            [1, 4, 4, 512, 512, 3, 3, 1, 1],
        ],
        1,
    );
}

/// Sizes that are not multiples of a tile, one-pixel images, filters larger than the image, more than one group of
/// blocks.
#[test]
fn odd_sizes() {
    check_all(
        &[
            [1, 1, 1, 8, 8, 1, 1, 1, 0],
            [1, 1, 1, 8, 8, 3, 3, 1, 1],
            [1, 1, 1, 24, 40, 7, 7, 2, 3],
            [2, 5, 7, 24, 72, 3, 3, 1, 1],
            [1, 6, 6, 40, 200, 3, 3, 2, 1],
            [3, 7, 9, 8, 72, 1, 1, 2, 0],
            [1, 13, 11, 40, 24, 5, 3, 2, 2],
            [1, 3, 3, 16, 8, 5, 5, 1, 2],
            [3, 4, 5, 8, 8, 2, 2, 2, 0],
            [1, 9, 2, 8, 16, 2, 1, 2, 1],
            [2, 12, 12, 8, 136, 3, 3, 1, 0],
            [1, 8, 8, 72, 8, 1, 1, 1, 3],
            [1, 5, 5, 24, 264, 3, 3, 1, 1],
            [1, 93, 91, 8, 24, 1, 1, 1, 0],
            [1, 6, 6, 200, 40, 3, 3, 2, 1],
            [1, 5, 5, 264, 8, 1, 1, 2, 0],
        ],
        3,
    );
}

/// The reduction in the convolution has the bits of the passes of batch norm, except for the order of its sums.
fn check_reduction(sizes: [usize; 9], precision: Precision) {
    let case = Case::new(shape(sizes), precision, 11);
    let on = |seed| Cuda::new(Box::new(Emulator::new(seed).expect("starts")), precision).expect("supports it");
    for (accumulate, residual) in [(false, false), (false, true), (true, false), (true, true)] {
        let [fused, separate] = [true, false].map(|is_fused| case.reduced(&on(1), accumulate, residual, is_fused));
        let what = format!("{precision}, accumulate {accumulate}, residual {residual}, {:?}", case.shape);
        assert!(fused[1] == separate[1], "the masked gradient differs: {what}");
        // The sums are those of the stored gradients: of up to 2^13 terms here, each rounded by 2^-24 at most 2^7 times.
        let typical = separate[1].iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt() + 1e-30;
        for (index, name, limit) in [(2, "weight gradient", 1e-5), (3, "bias gradient", 1e-5)] {
            let difference = fused[index].iter().zip(&separate[index]).map(|(a, b)| f64::from(a - b).powi(2));
            let error = difference.sum::<f64>().sqrt() / typical;
            assert!(error <= limit, "{name}: error {error:.1e}: {what}");
        }
        let truth: Vec<f64> = separate[0].iter().copied().map(f64::from).collect();
        let error = relative_error(&fused[0], &truth);
        let limit = if precision == Precision::Bf16 { 2f64.powi(-9) } else { 1e-5 };
        assert!(error <= limit, "input gradient: error {error:.1e}: {what}");
        for seed in 2..=3 {
            assert!(case.reduced(&on(seed), accumulate, residual, true) == fused, "another schedule: {what}");
        }
    }
}

#[test]
fn reductions_of_batch_norms() {
    for precision in PRECISIONS {
        for sizes in [
            [2, 14, 14, 64, 64, 3, 3, 1, 1],
            [1, 15, 13, 64, 128, 3, 3, 2, 1],
            [2, 15, 13, 72, 16, 1, 1, 2, 0],
            [1, 10, 10, 128, 128, 3, 3, 1, 1],
            [1, 7, 7, 200, 24, 3, 3, 1, 1],
            [2, 5, 1, 8, 8, 1, 1, 3, 0],
            [1, 93, 91, 8, 8, 1, 1, 1, 0],
        ] {
            check_reduction(sizes, precision);
        }
    }
}

/// The emulator with a given number of multiprocessors, from which launch code chooses the width of tiles. Records the
/// kernels.
struct Multiprocessors {
    emulator: Emulator,
    count: u32,
    kernels: Rc<RefCell<BTreeSet<&'static str>>>,
}

impl Driver for Multiprocessors {
    fn name(&self) -> String {
        self.emulator.name()
    }

    fn description(&self) -> String {
        self.emulator.description()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { multiprocessors: self.count, ..self.emulator.capabilities() }
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        self.emulator.free_bytes()
    }

    fn allocate(&self, bytes: usize) -> Result<Rc<Memory>> {
        self.emulator.allocate(bytes)
    }

    fn upload(&self, source: &[u8], address: u64) -> Result<()> {
        self.emulator.upload(source, address)
    }

    fn download(&self, address: u64, target: &mut [u8]) -> Result<()> {
        self.emulator.download(address, target)
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        self.kernels.borrow_mut().insert(launch.kernel);
        self.emulator.launch(launch)
    }

    fn synchronize(&self) -> Result<()> {
        self.emulator.synchronize()
    }

    fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Rc<dyn Recording>> {
        self.emulator.record(step)
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        self.emulator.time(work)
    }
}

/// Every kernel of `kernels/conv2d_tensor.cu` runs, and the width of the tile changes no bit.
#[test]
fn width_of_tiles() {
    let kernels = Rc::new(RefCell::new(BTreeSet::new()));
    for precision in PRECISIONS {
        for sizes in [[2, 9, 9, 120, 200, 3, 3, 2, 1], [1, 8, 17, 72, 80, 3, 3, 1, 1], [1, 6, 6, 128, 128, 1, 1, 2, 0]]
        {
            let case = Case::new(shape(sizes), precision, 7);
            let [narrow, wide] = [1 << 10, 1].map(|count| {
                let emulator = Emulator::new(3).expect("starts");
                let driver = Multiprocessors { emulator, count, kernels: kernels.clone() };
                let cuda = Cuda::new(Box::new(driver), precision).expect("supports every precision");
                let reduced = [false, true].map(|residual| case.reduced(&cuda, true, residual, true));
                (case.run_on(&cuda), reduced)
            });
            assert!(narrow == wide, "the width of the tile changes bits of {:?} in {precision}", case.shape);
        }
    }
    let mut others = kernels.borrow_mut();
    others.retain(|kernel| kernel.starts_with("conv2d_"));
    drop(others);
    let expected: BTreeSet<String> = ["forward", "input_gradient", "reduce"]
        .iter()
        .flat_map(|pass| ["64", "128"].map(|width| format!("conv2d_{pass}_{width}")))
        .flat_map(|name| ["bf16", "tf32"].map(|precision| format!("{name}_{precision}")))
        .collect();
    assert_eq!(kernels.borrow().iter().map(|kernel| kernel.to_string()).collect::<BTreeSet<_>>(), expected);
}
