//! AdamW on every device, against the definition in float64.

mod reference;

use std::rc::Rc;

use proptest::prelude::*;
use reference::devices::{
    PRECISIONS, Workbench, assert_near, assert_schedules_agree, devices, kernel_devices, run_at_lower_levels,
};
use reference::update::{UpdateBench, assert_moved};
use reference::*;
use retune::device::Device;
use retune::error::Error;
use retune::optim::{GroupSettings, OptimizerKind, OptimizerSettings};

#[derive(Debug, Clone, Copy)]
struct Betas(f64, f64);

const EPSILON: f64 = 1e-6;

fn settings(Betas(beta1, beta2): Betas) -> OptimizerSettings {
    chosen(&[("beta1", beta1), ("beta2", beta2), ("epsilon", EPSILON)]).unwrap()
}

fn chosen(hyperparameters: &[(&str, f64)]) -> Result<OptimizerSettings, Error> {
    let given = hyperparameters.iter().map(|&(name, value)| (name.to_string(), value)).collect();
    OptimizerSettings::new(OptimizerKind::find("adamw")?, &given)
}

fn all_kernel_devices() -> Vec<Rc<dyn Device>> {
    PRECISIONS.into_iter().flat_map(kernel_devices).collect()
}

/// Takes four steps.
fn check(devices: &[Rc<dyn Device>], len: usize, group: GroupSettings, betas: Betas, seed: u64) {
    let before = Random(seed).normals(len);
    let GroupSettings { learning_rate, weight_decay } = group;
    let Betas(beta1, beta2) = betas;
    for device in devices {
        let mut random = Random(!seed);
        let bench = Workbench::new(device.as_ref());
        let mut ours = UpdateBench::new(device.as_ref(), &bench, settings(betas), group, &before);
        let mut truth: Vec<f64> = before.iter().map(|&value| value.into()).collect();
        let (mut means, mut squares) = (vec![0.0; len], vec![0.0; len]);
        for step in 1..=4 {
            let gradients = random.normals(len);
            ours.step(&gradients, None, None);
            for (i, value) in truth.iter_mut().enumerate() {
                let gradient = f64::from(gradients[i]);
                means[i] = beta1 * means[i] + (1.0 - beta1) * gradient;
                squares[i] = beta2 * squares[i] + (1.0 - beta2) * gradient * gradient;
                let mean: f64 = means[i] / (1.0 - beta1.powi(step));
                let square: f64 = squares[i] / (1.0 - beta2.powi(step));
                *value =
                    *value * (1.0 - learning_rate * weight_decay) - learning_rate * mean / (square.sqrt() + EPSILON);
            }
            let what = format!("after step {step} of {len} values with {group:?}, {betas:?}");
            assert_moved(&what, &ours.values(), &before, &truth, learning_rate);
            let typical = (len as f64).sqrt();
            assert_near(&format!("mean {what}"), &ours.slot("exp_avg"), &means, typical * (1.0 - beta1), 2e-6);
            assert_near(&format!("square {what}"), &ours.slot("exp_avg_sq"), &squares, typical * (1.0 - beta2), 2e-6);
        }
        bench.finish();
    }
}

fn steps() -> impl Strategy<Value = (usize, GroupSettings, Betas)> {
    let len = prop_oneof![1usize..=40, 1usize..=2000];
    (len, 0.001f32..1.0, prop_oneof![Just(0.0f32), 0.001f32..0.5], 0.0f32..0.95, 0.5f32..0.999).prop_map(
        |(len, rate, decay, beta1, beta2)| {
            let group = GroupSettings { learning_rate: rate.into(), weight_decay: decay.into() };
            (len, group, Betas(beta1.into(), beta2.into()))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn steps_match_over_any_settings((len, group, betas) in steps(), seed in any::<u64>()) {
        check(&devices(), len, group, betas, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kernels_match_over_any_settings((len, group, betas) in steps(), seed in any::<u64>()) {
        check(&all_kernel_devices(), len, group, betas, seed);
        assert_schedules_agree();
    }
}

#[test]
fn steps_match_over_many_values() {
    let group = GroupSettings { learning_rate: 0.1, weight_decay: 0.25 };
    check(&devices(), 200_001, group, Betas(0.9, 0.999), 1);
    check(&all_kernel_devices(), 70_001, group, Betas(0.9, 0.999), 2);
}

/// Weight decay does not go through the gradient, and the first step has the length of the learning rate in each
/// direction.
#[test]
fn steps_match_the_definition() {
    for device in devices().into_iter().chain(all_kernel_devices()) {
        let bench = Workbench::new(device.as_ref());
        let group = GroupSettings { learning_rate: 0.125, weight_decay: 1.0 };
        let mut ours = UpdateBench::new(device.as_ref(), &bench, settings(Betas(0.5, 0.75)), group, &[1.0, -2.0]);
        ours.step(&[0.5, -16.0], None, None);
        assert_eq!((ours.slot("exp_avg"), ours.slot("exp_avg_sq")), (vec![0.25, -8.0], vec![0.0625, 64.0]));
        for (value, expected) in ours.values().into_iter().zip([0.875 - 0.125, -1.75 + 0.125]) {
            assert!((value - expected).abs() < 1e-6, "{value}, expected {expected}");
        }
        bench.finish();
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    for (name, value, expected) in [
        ("beta1", 1.0, "beta1 1: expected at least 0 and less than 1"),
        ("beta2", -0.1, "beta2 -0.1: expected at least 0 and less than 1"),
        ("beta2", f64::NAN, "beta2 NaN: expected at least 0 and less than 1"),
        ("epsilon", 0.0, "epsilon 0: expected more than 0"),
        ("epsilon", f64::INFINITY, "epsilon inf: expected more than 0"),
        ("momentum", 0.9, "there is no hyperparameter momentum, only beta1, beta2, epsilon"),
    ] {
        assert_eq!(chosen(&[(name, value)]).unwrap_err().message(), format!("optimizer adamw: {expected}"));
    }
}

#[test]
fn defaults_are_those_of_torch() {
    let values: Vec<_> = chosen(&[("beta2", 0.95)]).unwrap().values().map(|(of, value)| (of.name, value)).collect();
    assert_eq!(values, [("beta1", 0.9), ("beta2", 0.95), ("epsilon", 1e-8)]);
}

#[test]
fn lower_levels() {
    run_at_lower_levels("steps_match");
}
