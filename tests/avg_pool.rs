//! Global average pooling and its gradient on every device, against the naive float64 versions.

mod reference;

use proptest::prelude::*;
use reference::devices::{Workbench, added, assert_near, devices, run_at_lower_levels};
use reference::*;

const LIMIT: f64 = 2e-6;

fn check(batch: usize, height: usize, width: usize, channels: usize, seed: u64) {
    let mut random = Random(seed);
    let (pixels, dims) = (height * width, [batch, height, width, channels]);
    let input = random.normals(batch * pixels * channels);
    let output_gradient = random.normals(batch * channels);
    let before = random.normals(input.len());
    // A sum of so many random signs is that much smaller than its terms.
    let typical = ((batch * channels) as f64 / pixels as f64).sqrt();
    for device in devices() {
        let device = device.as_ref();
        let bench = Workbench::new(device);
        let output = bench.output([batch, channels]);
        device.avg_pool_forward(&bench.input(dims, &input), &output).unwrap();
        let truth = avg_pool(batch, pixels, channels, &input);
        assert_near(&format!("output for {dims:?}"), &bench.read(&output), &truth, typical, LIMIT);
        for before in [None, Some(before.as_slice())] {
            let gradient = bench.gradient(dims, before);
            let output_gradient_tensor = bench.input([batch, channels], &output_gradient);
            device.avg_pool_backward(&output_gradient_tensor, &gradient).unwrap();
            let truth = added(before, avg_pool_backward(batch, pixels, channels, &output_gradient));
            let what = format!("input gradient, accumulate {}, for {dims:?}", gradient.accumulate);
            assert_near(&what, &bench.read(&gradient.tensor), &truth, 0.0, LIMIT);
        }
        bench.finish();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn passes_match_over_any_shape(
        (batch, height, width) in (1usize..=5, 1usize..=13, 1usize..=13),
        channels in 1usize..=70,
        seed in any::<u64>(),
    ) {
        check(batch, height, width, channels, seed);
    }
}

#[test]
fn passes_match_at_resnets_shapes() {
    check(2, 7, 7, 512, 1);
    check(1, 1, 1, 512, 2);
    check(128, 2, 2, 64, 3);
    check(1, 1, 1, 1, 4);
}

#[test]
fn lower_levels() {
    run_at_lower_levels("passes_match");
}
