//! Global average pooling and its gradient on every device and in every precision, compared with the naive float64
//! versions.

mod reference;

use std::rc::Rc;

use proptest::prelude::*;
use reference::devices::{
    PRECISIONS, Workbench, added, assert_near, assert_schedules_agree, assert_stored_near, devices, kernel_devices,
    run_at_lower_levels, stored,
};
use reference::*;
use retune::device::{Device, Precision};

const LIMIT: f64 = 2e-6;

/// In float32 on the CPU.
fn check(dims: [usize; 4], seed: u64) {
    check_on(Precision::Fp32, &devices(), dims, seed);
}

/// With kernels, in all precisions.
fn check_kernels(dims: [usize; 4], seed: u64) {
    PRECISIONS.into_iter().for_each(|precision| check_on(precision, &kernel_devices(precision), dims, seed));
    assert_schedules_agree();
}

fn check_on(precision: Precision, devices: &[Rc<dyn Device>], dims: [usize; 4], seed: u64) {
    let mut random = Random(seed);
    let [batch, height, width, channels] = dims;
    let pixels = height * width;
    let input = stored(precision, &random.normals(batch * pixels * channels));
    // The output of the head is float32.
    let output_gradient = random.normals(batch * channels);
    let before = stored(precision, &random.normals(input.len()));
    // The sum of `pixels` terms with random signs is smaller than the terms by this factor.
    let typical = ((batch * channels) as f64 / pixels as f64).sqrt();
    for device in devices {
        let device = device.as_ref();
        let bench = Workbench::new(device);
        let output = bench.output([batch, channels]);
        device.avg_pool_forward(&bench.activation(dims, &input), &output).unwrap();
        let truth = avg_pool(batch, pixels, channels, &input);
        assert_near(&format!("output for {dims:?}"), &bench.read(&output), &truth, typical, LIMIT);
        for before in [None, Some(before.as_slice())] {
            let gradient = bench.activation_gradient(dims, before);
            let output_gradient_tensor = bench.input([batch, channels], &output_gradient);
            device.avg_pool_backward(&output_gradient_tensor, &gradient).unwrap();
            let truth = added(before, avg_pool_backward(batch, pixels, channels, &output_gradient));
            let what = format!("input gradient, accumulate {}, for {dims:?}", gradient.accumulate);
            assert_stored_near(&what, &bench, &gradient.tensor, &truth, 0.0, LIMIT);
        }
        bench.finish();
    }
}

fn any_dims() -> impl Strategy<Value = [usize; 4]> {
    [1usize..=5, 1usize..=13, 1usize..=13, 1usize..=70]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn passes_match_over_any_shape(dims in any_dims(), seed in any::<u64>()) {
        check(dims, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kernels_match_over_any_shape(dims in any_dims(), seed in any::<u64>()) {
        check_kernels(dims, seed);
    }
}

const OF_RESNETS: [[usize; 4]; 4] = [[2, 7, 7, 512], [1, 1, 1, 512], [128, 2, 2, 64], [1, 1, 1, 1]];

#[test]
fn passes_match_at_resnets_shapes() {
    OF_RESNETS.into_iter().zip(1..).for_each(|(dims, seed)| check(dims, seed));
}

#[test]
fn kernels_match_at_resnets_shapes() {
    OF_RESNETS.into_iter().zip(1..).for_each(|(dims, seed)| check_kernels(dims, seed));
}

#[test]
fn lower_levels() {
    run_at_lower_levels("passes_match");
}
