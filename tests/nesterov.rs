//! Gradient descent with Nesterov momentum on every device, compared with the definition in float64.

mod reference;

use std::collections::BTreeMap;
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

fn settings(momentum: f64) -> OptimizerSettings {
    chosen("momentum", momentum).unwrap()
}

fn chosen(name: &str, value: f64) -> Result<OptimizerSettings, Error> {
    OptimizerSettings::new(OptimizerKind::find("nesterov")?, &BTreeMap::from([(name.to_string(), value)]))
}

fn all_kernel_devices() -> Vec<Rc<dyn Device>> {
    PRECISIONS.into_iter().flat_map(kernel_devices).collect()
}

/// Takes three steps.
fn check(devices: &[Rc<dyn Device>], len: usize, group: GroupSettings, momentum: f64, seed: u64) {
    let before = Random(seed).normals(len);
    for device in devices {
        let mut random = Random(!seed);
        let bench = Workbench::new(device.as_ref());
        let mut ours = UpdateBench::new(device.as_ref(), &bench, settings(momentum), group, &before);
        let mut truth: Vec<f64> = before.iter().map(|&value| value.into()).collect();
        let mut velocity = vec![0.0; len];
        for step in 1..=3 {
            let gradients = random.normals(len);
            ours.step(&gradients, None, None);
            for ((value, velocity), &gradient) in truth.iter_mut().zip(&mut velocity).zip(&gradients) {
                let gradient = f64::from(gradient) + group.weight_decay * *value;
                *velocity = momentum * *velocity + gradient;
                *value -= group.learning_rate * (gradient + momentum * *velocity);
            }
            let what = format!("after step {step} of {len} values with {group:?}, momentum {momentum}");
            assert_moved(&what, &ours.values(), &before, &truth, group.learning_rate);
            assert_near(&format!("velocity {what}"), &ours.slot("velocity"), &velocity, (len as f64).sqrt(), 2e-6);
        }
        bench.finish();
    }
}

fn steps() -> impl Strategy<Value = (usize, GroupSettings, f64)> {
    let len = prop_oneof![1usize..=40, 1usize..=2000];
    (len, 0.001f32..1.0, prop_oneof![Just(0.0f32), 0.001f32..0.5], 0.1f32..0.99).prop_map(
        |(len, rate, decay, momentum)| {
            (len, GroupSettings { learning_rate: rate.into(), weight_decay: decay.into() }, momentum.into())
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn steps_match_over_any_settings((len, group, momentum) in steps(), seed in any::<u64>()) {
        check(&devices(), len, group, momentum, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kernels_match_over_any_settings((len, group, momentum) in steps(), seed in any::<u64>()) {
        check(&all_kernel_devices(), len, group, momentum, seed);
        assert_schedules_agree();
    }
}

#[test]
fn steps_match_over_many_values() {
    let group = GroupSettings { learning_rate: 0.1, weight_decay: 0.25 };
    check(&devices(), 200_001, group, 0.875, 1);
    check(&all_kernel_devices(), 70_001, group, 0.875, 2);
}

/// The update looks ahead: the first step is longer than that of plain momentum by the momentum times the velocity.
#[test]
fn steps_match_the_definition() {
    for device in devices().into_iter().chain(all_kernel_devices()) {
        let bench = Workbench::new(device.as_ref());
        let group = GroupSettings { learning_rate: 0.5, weight_decay: 0.25 };
        let mut ours = UpdateBench::new(device.as_ref(), &bench, settings(0.5), group, &[1.0, -2.0]);
        ours.step(&[0.5, 1.0], None, None);
        // Gradients with decay are 0.75 and 0.5, which are the first velocities. Steps are 1.5 times half of them.
        assert_eq!(ours.slot("velocity"), [0.75, 0.5]);
        assert_eq!(ours.values(), [0.4375, -2.375]);
        bench.finish();
    }
}

#[test]
fn nesterov_needs_momentum() {
    let refusal = |name, value| chosen(name, value).unwrap_err().message().to_string();
    // Without momentum it would be plain SGD.
    assert_eq!(refusal("momentum", 0.0), "optimizer nesterov: momentum 0: expected more than 0 and less than 1");
    assert_eq!(refusal("beta1", 0.8), "optimizer nesterov: there is no hyperparameter beta1, only momentum");
}

#[test]
fn lower_levels() {
    run_at_lower_levels("steps_match");
}
