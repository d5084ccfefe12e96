//! Max pooling and its gradient on every device and in every precision, compared with the naive float64 versions.

mod reference;

use std::rc::Rc;

use proptest::prelude::*;
use reference::devices::{
    PRECISIONS, Workbench, added, assert_schedules_agree, assert_stored_near, devices, kernel_devices,
    run_at_lower_levels, stored,
};
use reference::*;
use retune::device::{Device, MaxPoolWindow, Precision};

/// The position in its window of the element at `index` of the input, for the output element at `output`.
fn position(shape: &PoolShape, output: usize, index: usize) -> u8 {
    let (index, output) = (index / shape.channels, output / shape.channels);
    let (row, column) = (index / shape.width % shape.height, index % shape.width);
    let (output_row, output_column) =
        (output / shape.output_width() % shape.output_height(), output % shape.output_width());
    let row = row + shape.padding - output_row * shape.stride;
    let column = column + shape.padding - output_column * shape.stride;
    (row * shape.kernel + column) as u8
}

/// Numbers, with the payload of a NaN removed.
fn comparable(values: impl IntoIterator<Item = f32>) -> Vec<Option<u32>> {
    values.into_iter().map(|value| (!value.is_nan()).then(|| (value + 0.0).to_bits())).collect()
}

/// In float32 on the CPU.
fn check(shape: &PoolShape, input: &[f32], seed: u64) {
    check_on(Precision::Fp32, &devices(), shape, input, seed);
}

/// With kernels, in all precisions.
fn check_kernels(shape: &PoolShape, input: &[f32], seed: u64) {
    PRECISIONS.into_iter().for_each(|precision| check_on(precision, &kernel_devices(precision), shape, input, seed));
    assert_schedules_agree();
}

fn check_on(precision: Precision, devices: &[Rc<dyn Device>], shape: &PoolShape, input: &[f32], seed: u64) {
    let mut random = Random(seed);
    let input = &stored(precision, input);
    let PoolShape { batch, height, width, channels, kernel, stride, padding } = *shape;
    let window = MaxPoolWindow { size: kernel, stride, padding };
    let output_gradient = stored(precision, &random.normals(shape.output_len()));
    let before = stored(precision, &random.normals(shape.input_len()));
    let dims = [batch, height, width, channels];
    let output_dims = [batch, shape.output_height(), shape.output_width(), channels];
    let (truth, indices) = max_pool(shape, input);
    let truth = comparable(truth.into_iter().map(|value| value as f32));
    let truth_indices: Vec<u8> =
        indices.iter().enumerate().map(|(output, &index)| position(shape, output, index)).collect();
    let gradient_truth = max_pool_backward(shape, input, &output_gradient);
    for device in devices {
        let device = device.as_ref();
        let bench = Workbench::new(device);
        let input = bench.activation(dims, input);
        let (output, output_alone) = (bench.activation_output(output_dims), bench.activation_output(output_dims));
        let indices = bench.byte_output(output_dims);
        device.max_pool_forward(window, &input, &output, Some(&indices)).unwrap();
        device.max_pool_forward(window, &input, &output_alone, None).unwrap();
        assert_eq!(comparable(bench.read(&output)), truth, "{shape:?}");
        assert_eq!(comparable(bench.read(&output_alone)), truth, "without indices, {shape:?}");
        assert_eq!(bench.read_bytes(&indices), truth_indices, "indices, {shape:?}");
        for before in [None, Some(before.as_slice())] {
            let gradient = bench.activation_gradient(dims, before);
            let output_gradient = bench.activation(output_dims, &output_gradient);
            device.max_pool_backward(window, &indices, &output_gradient, &gradient).unwrap();
            let what = format!("input gradient, accumulate {}, {shape:?}", gradient.accumulate);
            let truth = added(before, gradient_truth.clone());
            assert_stored_near(&what, &bench, &gradient.tensor, &truth, 0.0, 1e-6);
        }
        bench.finish();
    }
}

/// The values of the input.
#[derive(Debug, Clone, Copy)]
enum Values {
    Normal,
    /// Few different numbers, so most windows have ties.
    Ties,
    /// Ties that include NaNs and infinities.
    Strange,
}

fn values(kind: Values, count: usize, random: &mut Random) -> Vec<f32> {
    let strange = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY, -0.0, 0.0, 1.0, -1.0];
    (0..count)
        .map(|_| match kind {
            Values::Normal => random.normal() as f32,
            Values::Ties => random.below(3) as f32 - 2.0,
            Values::Strange => strange[random.below(strange.len())],
        })
        .collect()
}

fn any_shape() -> impl Strategy<Value = PoolShape> {
    let images = (1usize..=3, 1usize..=15, 1usize..=15, 1usize..=40);
    (images, 1usize..=5, 1usize..=4, 0usize..=2)
        .prop_map(|((batch, height, width, channels), kernel, stride, padding)| {
            let padding = padding.min(kernel / 2);
            PoolShape { batch, height, width, channels, kernel, stride, padding }
        })
        .prop_filter("the window fits the image", |shape| {
            shape.height.min(shape.width) + 2 * shape.padding >= shape.kernel
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn passes_match_over_any_shape(
        shape in any_shape(),
        kind in prop::sample::select(vec![Values::Normal, Values::Ties, Values::Strange]),
        seed in any::<u64>(),
    ) {
        let input = values(kind, shape.input_len(), &mut Random(seed));
        check(&shape, &input, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kernels_match_over_any_shape(
        shape in any_shape(),
        kind in prop::sample::select(vec![Values::Normal, Values::Ties, Values::Strange]),
        seed in any::<u64>(),
    ) {
        let input = values(kind, shape.input_len(), &mut Random(seed));
        check_kernels(&shape, &input, seed);
    }
}

const RESNETS: PoolShape =
    PoolShape { batch: 2, height: 28, width: 28, channels: 64, kernel: 3, stride: 2, padding: 1 };

const OF_RESNETS: [PoolShape; 5] = [
    RESNETS,
    PoolShape { height: 17, width: 16, ..RESNETS },
    PoolShape { batch: 1, height: 1, width: 1, ..RESNETS },
    PoolShape { height: 2, width: 1, channels: 8, ..RESNETS },
    PoolShape { batch: 1, height: 15, width: 16, channels: 3, kernel: 15, stride: 1, padding: 7 },
];

#[test]
fn passes_match_at_resnets_shapes() {
    for shape in OF_RESNETS {
        for kind in [Values::Normal, Values::Ties, Values::Strange] {
            check(&shape, &values(kind, shape.input_len(), &mut Random(7)), 8);
        }
    }
}

#[test]
fn kernels_match_at_resnets_shapes() {
    for shape in OF_RESNETS {
        for kind in [Values::Normal, Values::Ties, Values::Strange] {
            check_kernels(&shape, &values(kind, shape.input_len(), &mut Random(7)), 8);
        }
    }
}

/// After a ReLU, whole windows are zero. Their gradient belongs to the first pixel.
const TIES: PoolShape = PoolShape { batch: 1, height: 6, width: 5, channels: 3, kernel: 3, stride: 2, padding: 1 };

#[test]
fn passes_match_where_all_values_tie() {
    for value in [0.0, -1.0, f32::NEG_INFINITY, f32::MIN] {
        check(&TIES, &vec![value; TIES.input_len()], 9);
    }
}

#[test]
fn kernels_match_where_all_values_tie() {
    for value in [0.0, -1.0, f32::NEG_INFINITY, f32::MIN] {
        check_kernels(&TIES, &vec![value; TIES.input_len()], 9);
    }
}

#[test]
fn lower_levels() {
    run_at_lower_levels("passes_match");
}
