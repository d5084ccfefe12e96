//! The fully connected layer and its gradients on every device, compared with the naive float64 versions. It is float32
//! in every precision.

mod reference;

use std::rc::Rc;

use proptest::prelude::*;
use reference::devices::{
    PRECISIONS, Workbench, added, assert_near, assert_schedules_agree, devices, kernel_devices, run_at_lower_levels,
};
use reference::*;
use retune::device::{Conv2dPass, Device};

const LIMIT: f64 = 2e-6;

fn check((batch, inputs, outputs): (usize, usize, usize), seed: u64) {
    check_on(&devices(), (batch, inputs, outputs), seed);
}

fn check_kernels((batch, inputs, outputs): (usize, usize, usize), seed: u64) {
    let devices: Vec<_> = PRECISIONS.into_iter().flat_map(kernel_devices).collect();
    check_on(&devices, (batch, inputs, outputs), seed);
    assert_schedules_agree();
}

fn check_on(devices: &[Rc<dyn Device>], (batch, inputs, outputs): (usize, usize, usize), seed: u64) {
    let mut random = Random(seed);
    let input = random.normals(batch * inputs);
    let (weight, bias) = (random.normals(outputs * inputs), random.normals(outputs));
    let output_gradient = random.normals(batch * outputs);
    let before = random.normals(input.len());
    let truth = linear_backward(outputs, &input, &weight, &output_gradient);
    // The norm of `count` sums of `terms` products with random signs.
    let typical = |count: usize, terms: usize| ((count * terms) as f64).sqrt();
    let sizes = format!("{batch} x {inputs} to {outputs}");
    for device in devices {
        let device = device.as_ref();
        let bench = Workbench::new(device);
        let workspace = |pass| bench.workspace(device.linear_workspace(batch, inputs, outputs, pass));
        let input_tensor = bench.input([batch, inputs], &input);
        let weight_tensor = bench.input([outputs, inputs], &weight);
        let output_gradient_tensor = bench.input([batch, outputs], &output_gradient);

        let output = bench.output([batch, outputs]);
        let bias_tensor = bench.input([outputs], &bias);
        let forward = workspace(Conv2dPass::Forward);
        device.linear_forward(&input_tensor, &weight_tensor, &bias_tensor, &output, &forward).unwrap();
        let output_truth = linear(&input, &weight, &bias);
        let size = typical(batch * outputs, inputs + 1);
        assert_near(&format!("output of {sizes}"), &bench.read(&output), &output_truth, size, LIMIT);

        for before in [None, Some(before.as_slice())] {
            let gradient = bench.gradient([batch, inputs], before);
            let scratch = workspace(Conv2dPass::InputGradient);
            device.linear_input_gradient(&output_gradient_tensor, &weight_tensor, &gradient, &scratch).unwrap();
            let what = format!("input gradient, accumulate {}, of {sizes}", gradient.accumulate);
            let truth = added(before, truth.input.clone());
            assert_near(&what, &bench.read(&gradient.tensor), &truth, typical(batch * inputs, outputs), LIMIT);
        }

        for (with_weight, with_bias) in [(true, true), (true, false), (false, true)] {
            let weight_gradient = with_weight.then(|| bench.output([outputs, inputs]));
            let bias_gradient = with_bias.then(|| bench.output([outputs]));
            device
                .linear_weight_gradient(
                    with_weight.then_some(&input_tensor),
                    &output_gradient_tensor,
                    weight_gradient.as_ref(),
                    bias_gradient.as_ref(),
                    &workspace(Conv2dPass::WeightGradient),
                )
                .unwrap();
            if let Some(gradient) = weight_gradient {
                let size = typical(outputs * inputs, batch);
                assert_near(&format!("weight gradient of {sizes}"), &bench.read(&gradient), &truth.weight, size, LIMIT);
            }
            if let Some(gradient) = bias_gradient {
                let size = typical(outputs, batch);
                assert_near(&format!("bias gradient of {sizes}"), &bench.read(&gradient), &truth.bias, size, LIMIT);
            }
        }
        bench.finish();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn passes_match_over_any_shape(sizes in (1usize..=40, 1usize..=70, 1usize..=40), seed in any::<u64>()) {
        check(sizes, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kernels_match_over_any_shape(sizes in (1usize..=40, 1usize..=70, 1usize..=40), seed in any::<u64>()) {
        check_kernels(sizes, seed);
    }
}

const OF_RESNETS: [(usize, usize, usize); 7] =
    [(1, 512, 1000), (3, 512, 2), (128, 512, 2), (1, 1, 1), (1, 8, 1), (65, 1, 3), (2, 513, 257)];

#[test]
fn passes_match_at_resnets_shapes() {
    OF_RESNETS.into_iter().zip(0..).for_each(|(sizes, seed)| check(sizes, seed));
}

#[test]
fn kernels_match_at_resnets_shapes() {
    OF_RESNETS.into_iter().zip(0..).for_each(|(sizes, seed)| check_kernels(sizes, seed));
}

#[test]
fn lower_levels() {
    run_at_lower_levels("passes_match");
}
