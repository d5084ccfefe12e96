//! The kernels of the stem (7 x 7, stride 2, three channels) on the emulator, compared with float64 on operands rounded
//! as the kernels round them. The remaining differences are the order of float32 additions and the rounding of the
//! result.

#![cfg(feature = "emulator")]

mod reference;

use std::rc::Rc;

use reference::devices::{Workbench, assert_near, assert_stored_near, emulated, operands, stored};
use reference::*;
use retune::device::cuda::Cuda;
use retune::device::cuda::dry_run::{DryRun, RecordedLaunch};
use retune::device::cuda::gpus::GpuModel;
use retune::device::{Conv2dForward, Conv2dPass, Conv2dWeightGradient, Device, Precision};

const PRECISIONS: [Precision; 2] = [Precision::Bf16, Precision::Tf32];

/// The limit for the norm of the error relative to that of the result, for sums of `products` terms. A partial sum of i
/// terms has sqrt(i / products) of the size of the whole and is rounded by at most 2^-24 of itself. Independent
/// roundings amount to less than this limit (0.41 of it if each is as large as possible). An operand that is not
/// rounded to tf32 causes 1e-4, a missing product 1e-2. A value stored in bf16 stands for all numbers that round to it.
fn limit(products: usize) -> f64 {
    2f64.powi(-24) * (products as f64).sqrt()
}

fn shape([batch, height, width, output_channels, padding]: [usize; 5]) -> Conv2dShape {
    Conv2dShape {
        batch,
        height,
        width,
        input_channels: 3,
        output_channels,
        kernel_height: 7,
        kernel_width: 7,
        stride: 2,
        padding,
    }
}

fn squares(values: &[f32]) -> Vec<f32> {
    values.iter().map(|value| value * value).collect()
}

fn typical(squares: &[f64]) -> f64 {
    squares.iter().sum::<f64>().sqrt()
}

struct Case {
    shape: Conv2dShape,
    precision: Precision,
    input: Vec<f32>,
    weight: Vec<f32>,
    output_gradient: Vec<f32>,
}

impl Case {
    /// The input has a non-zero mean, as pixels have, so that statistics are not about zero.
    fn new(shape: Conv2dShape, precision: Precision, seed: u64) -> Self {
        let mut random = Random(seed);
        let input: Vec<f32> = random.normals(shape.input_len()).iter().map(|value| value + 0.5).collect();
        Self {
            shape,
            precision,
            input: stored(precision, &input),
            weight: stored(precision, &random.normals(shape.weight_len())),
            output_gradient: stored(precision, &random.normals(shape.output_len())),
        }
    }

    fn input_dims(&self) -> [usize; 4] {
        [self.shape.batch, self.shape.height, self.shape.width, 3]
    }

    fn output_dims(&self) -> [usize; 4] {
        [self.shape.batch, self.shape.output_height(), self.shape.output_width(), self.shape.output_channels]
    }

    fn weight_dims(&self) -> [usize; 4] {
        [self.shape.output_channels, 7, 7, 3]
    }

    /// Returns output and statistics.
    fn forward(&self, cuda: &Cuda, with_statistics: bool, truth: Option<(&[f64], f64)>) -> (Vec<f32>, Vec<f32>) {
        let bench = Workbench::new(cuda);
        let output = bench.activation_output(self.output_dims());
        let rows = cuda.statistics_rows(output.shape());
        let statistics = with_statistics.then(|| bench.output([rows, 2, self.shape.output_channels]));
        let arguments = Conv2dForward {
            input: &bench.activation(self.input_dims(), &self.input),
            weight: &bench.activation(self.weight_dims(), &self.weight),
            output: &output,
            statistics: statistics.as_ref(),
            workspace: &bench.workspace(cuda.conv2d_workspace(&self.shape, Conv2dPass::Forward)),
        };
        cuda.conv2d_forward(&self.shape, &arguments).unwrap();
        if let Some((truth, typical)) = truth {
            let what = format!("output in {} of {:?}", self.precision, self.shape);
            assert_stored_near(&what, &bench, &output, truth, typical, limit(147));
        }
        let results = (bench.read(&output), statistics.map(|statistics| bench.read(&statistics)).unwrap_or_default());
        bench.finish();
        results
    }

    fn weight_gradient(&self, cuda: &Cuda) -> Vec<f32> {
        let bench = Workbench::new(cuda);
        let gradient = bench.output(self.weight_dims());
        let arguments = Conv2dWeightGradient {
            input: &bench.activation(self.input_dims(), &self.input),
            output_gradient: &bench.activation(self.output_dims(), &self.output_gradient),
            weight_gradient: &gradient,
            workspace: &bench.workspace(cuda.conv2d_workspace(&self.shape, Conv2dPass::WeightGradient)),
        };
        cuda.conv2d_weight_gradient(&self.shape, &arguments).unwrap();
        let result = bench.read(&gradient);
        bench.finish();
        result
    }

    fn check_forward(&self, schedules: u64) {
        let Self { shape, precision, .. } = self;
        let input = operands(*precision, &self.input);
        let weight = operands(*precision, &self.weight);
        let truth = conv2d(shape, &input, &weight);
        let size = typical(&conv2d(shape, &squares(&input), &squares(&weight)));
        let cuda = emulated(1, *precision);
        let (output, statistics) = self.forward(&cuda, true, Some((&truth, size)));
        self.check_statistics(&output, &statistics);
        let again = self.forward(&cuda, true, None);
        assert!(again == (output.clone(), statistics.clone()), "the second run of {shape:?} has different bits");
        assert!(self.forward(&cuda, false, None).0 == output, "statistics change the output of {shape:?}");
        for seed in 2..=schedules {
            let other = self.forward(&emulated(seed, *precision), true, None);
            assert!(other.0 == output, "another schedule changes the output of {shape:?} in {precision}");
            assert!(other.1 == statistics, "another schedule changes the statistics of {shape:?} in {precision}");
        }
    }

    fn check_weight_gradient(&self, schedules: u64) {
        let Self { shape, precision, .. } = self;
        let input = operands(*precision, &self.input);
        let output_gradient = operands(*precision, &self.output_gradient);
        let truth = conv2d_weight_gradient(shape, &input, &output_gradient);
        let size = typical(&conv2d_weight_gradient(shape, &squares(&input), &squares(&output_gradient)));
        let ours = self.weight_gradient(&emulated(1, *precision));
        let pixels = shape.batch * shape.output_height() * shape.output_width();
        assert_near(&format!("weight gradient in {precision} of {shape:?}"), &ours, &truth, size, limit(pixels));
        for seed in 2..=schedules {
            let other = self.weight_gradient(&emulated(seed, *precision));
            assert!(other == ours, "another schedule changes the weight gradient of {shape:?} in {precision}");
        }
    }

    /// Row 0 is the total, the last rows are the blocks of 128 pixels. A value goes through fewer than 2^7 additions,
    /// each of which rounds by at most 2^-24 of the sum of magnitudes.
    fn check_statistics(&self, output: &[f32], statistics: &[f32]) {
        let channels = self.shape.output_channels;
        let pixels = output.len() / channels;
        let rows: Vec<&[f32]> = statistics.chunks_exact(2 * channels).collect();
        let blocks = pixels.div_ceil(128);
        let of_blocks =
            (0..blocks).map(|block| (rows[rows.len() - blocks + block], block * 128..pixels.min(block * 128 + 128)));
        for (row, pixels) in std::iter::once((rows[0], 0..pixels)).chain(of_blocks) {
            for channel in 0..channels {
                let values: Vec<f64> =
                    pixels.clone().map(|pixel| f64::from(output[pixel * channels + channel])).collect();
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

/// `[batch, height, width, K, padding]`: even and odd widths, tiles of one and of many runs, one-pixel images and
/// outputs, channel counts that are not multiples of a tile, and padding other than half of the filter. The last two
/// have more tiles than blocks, and the last one has more than one group of statistics.
const SIZES: [[usize; 5]; 15] = [
    [2, 32, 32, 64, 3],
    [1, 9, 224, 64, 3],
    [1, 5, 300, 16, 3],
    [1, 29, 31, 24, 3],
    [3, 15, 14, 72, 3],
    [1, 1, 1, 8, 3],
    [5, 1, 1, 200, 3],
    [2, 2, 64, 8, 3],
    [1, 64, 2, 40, 3],
    [150, 2, 2, 8, 3],
    [1, 7, 7, 8, 0],
    [2, 12, 11, 16, 0],
    [1, 10, 12, 8, 4],
    [3, 60, 67, 16, 3],
    [2, 130, 128, 8, 3],
];

#[test]
fn forward() {
    for (i, &sizes) in SIZES.iter().enumerate() {
        for precision in PRECISIONS {
            Case::new(shape(sizes), precision, i as u64).check_forward(3);
        }
    }
}

/// Widths for which the rows of the output are not aligned to 16 bytes or to 4.
#[test]
fn forward_to_any_number_of_channels() {
    for channels in [1, 2, 3, 6, 12, 65, 70] {
        for precision in PRECISIONS {
            Case::new(shape([2, 13, 18, channels, 3]), precision, channels as u64).check_forward(2);
        }
    }
}

#[test]
fn weight_gradient() {
    for (i, &sizes) in SIZES.iter().enumerate() {
        for precision in PRECISIONS {
            Case::new(shape(sizes), precision, i as u64).check_weight_gradient(3);
        }
    }
}

/// The launches of a pass over two images of ResNet's size on an H200.
fn launches(precision: Precision, pass: Conv2dPass) -> Vec<RecordedLaunch> {
    let driver = DryRun::new(GpuModel::find("h200").expect("in the table"));
    let log = driver.log();
    let cuda = Cuda::new(Box::new(Rc::new(driver)), precision).expect("supports every precision");
    let shape = shape([2, 224, 224, 64, 3]);
    let bench = Workbench::new(&cuda);
    let [input, weight, output] = [(); 3].map(|()| bench.activation_output([1]));
    let workspace = bench.workspace(cuda.conv2d_workspace(&shape, pass));
    match pass {
        Conv2dPass::WeightGradient => {
            let gradient = bench.output([1]);
            let arguments = Conv2dWeightGradient {
                input: &input,
                output_gradient: &output,
                weight_gradient: &gradient,
                workspace: &workspace,
            };
            cuda.conv2d_weight_gradient(&shape, &arguments).unwrap();
        }
        Conv2dPass::Forward | Conv2dPass::InputGradient => {
            let arguments = Conv2dForward {
                input: &input,
                weight: &weight,
                output: &output,
                statistics: None,
                workspace: &workspace,
            };
            cuda.conv2d_forward(&shape, &arguments).unwrap();
        }
    }
    log.take()
}

/// Checks which kernels run: the results above would be the same if the plain kernels ran instead. Their shared memory
/// must be what the kernel file states.
#[test]
fn kernels_of_resnet() {
    let expected = [
        (Precision::Bf16, Conv2dPass::Forward, vec![("conv2d_stem_forward_bf16", 33972)]),
        (Precision::Tf32, Conv2dPass::Forward, vec![("conv2d_stem_forward_tf32", 63436)]),
        (
            Precision::Bf16,
            Conv2dPass::WeightGradient,
            vec![("conv2d_stem_weight_gradient_bf16", 28852), ("conv2d_stem_weight_gradient_sum_bf16", 0)],
        ),
        (
            Precision::Tf32,
            Conv2dPass::WeightGradient,
            vec![("conv2d_stem_weight_gradient_tf32", 56268), ("conv2d_stem_weight_gradient_sum_tf32", 0)],
        ),
    ];
    for (precision, pass, expected) in expected {
        let launches = launches(precision, pass);
        let launches: Vec<_> = launches.iter().map(|launch| (launch.kernel, launch.shared_bytes)).collect();
        assert_eq!(launches, expected);
    }
}
