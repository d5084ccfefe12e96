//! Gradient descent on every device, compared with the naive float64 version, and the compute copies of convolutions in
//! bf16.

mod reference;

use std::rc::Rc;

use proptest::prelude::*;
use reference::devices::{
    PRECISIONS, Workbench, assert_near, assert_schedules_agree, devices, kernel_devices, run_at_lower_levels,
};
use reference::update::assert_moved;
use reference::*;
use retune::device::Device;

/// Takes three steps. The error of the values is relative to their change, as in gradcheck.
fn check(len: usize, settings: Sgd, seed: u64) {
    check_on(&devices(), len, settings, seed);
}

fn check_kernels(len: usize, settings: Sgd, seed: u64) {
    check_on(&all_kernel_devices(), len, settings, seed);
    assert_schedules_agree();
}

fn all_kernel_devices() -> Vec<Rc<dyn Device>> {
    PRECISIONS.into_iter().flat_map(kernel_devices).collect()
}

fn check_on(devices: &[Rc<dyn Device>], len: usize, settings: Sgd, seed: u64) {
    let before = Random(seed).normals(len);
    for device in devices {
        let mut random = Random(!seed);
        let bench = Workbench::new(device.as_ref());
        let mut ours = settings.bench(device.as_ref(), &bench, &before);
        let mut truth: Vec<f64> = before.iter().map(|&value| value.into()).collect();
        let mut buffer: Option<Vec<f64>> = None;
        for step in 1..=3 {
            let gradients = random.normals(len);
            ours.step(&gradients, None, None);
            let doubles: Vec<f64> = gradients.iter().map(|&gradient| gradient.into()).collect();
            let (updated, next) = settings.step(&truth, &doubles, buffer.as_deref());
            let what = format!("after step {step} of {len} values with {settings:?}");
            assert_moved(&what, &ours.values(), &before, &updated, settings.rate);
            if settings.momentum != 0.0 {
                assert_near(&format!("velocity {what}"), &ours.slot("velocity"), &next, (len as f64).sqrt(), 2e-6);
            }
            (truth, buffer) = (updated, Some(next));
        }
        bench.finish();
    }
}

/// A length and settings.
fn steps() -> impl Strategy<Value = (usize, Sgd)> {
    (
        prop_oneof![1usize..=40, 1usize..=2000],
        0.001f32..1.0,
        prop_oneof![Just(0.0f32), 0.001f32..0.5],
        prop_oneof![Just(0.0f32), 0.1f32..0.99],
    )
        .prop_map(|(len, rate, weight_decay, momentum)| {
            (len, Sgd { rate: rate.into(), weight_decay: weight_decay.into(), momentum: momentum.into() })
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn steps_match_over_any_settings((len, settings) in steps(), seed in any::<u64>()) {
        check(len, settings, seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kernels_match_over_any_settings((len, settings) in steps(), seed in any::<u64>()) {
        check_kernels(len, settings, seed);
    }
}

#[test]
fn steps_match_over_many_values() {
    let settings = Sgd { rate: 0.1, weight_decay: 0.25, momentum: 0.875 };
    check(200_001, settings, 1);
    check(200_001, Sgd { momentum: 0.0, ..settings }, 2);
}

#[test]
fn kernels_match_over_many_values() {
    let settings = Sgd { rate: 0.1, weight_decay: 0.25, momentum: 0.875 };
    check_kernels(200_001, settings, 1);
    check_kernels(200_001, Sgd { momentum: 0.0, ..settings }, 2);
}

/// Weight decay is added to the gradient, so it also enters the velocity.
#[test]
fn steps_match_the_definition() {
    for device in devices().into_iter().chain(all_kernel_devices()) {
        let device = device.as_ref();
        let bench = Workbench::new(device);
        let settings = Sgd { rate: 0.5, weight_decay: 0.25, momentum: 0.5 };
        let mut ours = settings.bench(device, &bench, &[1.0, -2.0]);
        for _ in 0..2 {
            ours.step(&[0.5, 1.0], None, None);
        }
        // First velocity 0.75, 0.5; values 0.625, -2.25; second velocity 1.03125, 0.6875.
        assert_eq!(ours.slot("velocity"), [1.03125, 0.6875]);
        assert_eq!(ours.values(), [0.109375, -2.59375]);
        bench.finish();
    }
}

/// Two groups, as in a network: the norm of both together, its effect on a step, and the cases in which nothing
/// changes.
fn check_clipping(devices: &[Rc<dyn Device>], lengths: [usize; 2], max_norm: f32, seed: u64) {
    for device in devices {
        let device = device.as_ref();
        let bench = Workbench::new(device);
        let gradients = lengths.map(|len| Random(seed ^ len as u64).normals(len));
        let tensors = [0, 1].map(|group| bench.input([lengths[group]], &gradients[group]));
        let sums = device.gradient_norm_sums(&lengths);
        let (sums, norm) = (bench.variable([sums], &vec![0.0; sums]), bench.variable([1], &[0.0]));
        device.gradient_norm(&[&tensors[0], &tensors[1]], &sums, &norm).unwrap();
        let truth = gradients.iter().flatten().map(|&gradient| f64::from(gradient).powi(2)).sum::<f64>().sqrt();
        let found = bench.read(&norm)[0];
        // Sums of up to a thousand squares in float32; the square root halves the error.
        assert!((f64::from(found) - truth).abs() <= 1e-6 * truth, "norm {found}, truth {truth}, {lengths:?}");

        let settings = Sgd { rate: 0.1, weight_decay: 0.25, momentum: 0.5 };
        let before = Random(!seed).normals(lengths[0]);
        let step = |loss: f32, gradients: &[f32], norm_value: Option<f32>| {
            let mut ours = settings.bench(device, &bench, &before);
            ours.step(gradients, Some(loss), norm_value.map(|norm| (norm, max_norm)));
            // A skipped step does not write the compute copy either.
            (ours.raw_values(), ours.slot("velocity"))
        };
        let plain = step(1.0, &gradients[0], None);
        for norm in [f32::NAN, f32::INFINITY] {
            let unchanged = (before.clone(), vec![0.0; lengths[0]]);
            assert!(step(norm, &gradients[0], None) == unchanged, "a loss of {norm}");
            assert!(step(-norm, &gradients[0], Some(1.0)) == unchanged, "a loss of {}", -norm);
            assert!(step(1.0, &gradients[0], Some(norm)) == unchanged, "a norm of {norm}");
        }
        assert!(
            step(1.0, &gradients[0], Some(0.5 * max_norm)) == plain,
            "gradients below the maximum norm are unchanged"
        );
        let long = 4.0 * max_norm;
        let quarter: Vec<f64> =
            gradients[0].iter().map(|&g| f64::from(g) * f64::from(max_norm) / (f64::from(long) + 1e-6)).collect();
        let start: Vec<f64> = before.iter().map(|&value| value.into()).collect();
        let (_, velocity) = settings.step(&start, &quarter, None);
        let clipped = step(1.0, &gradients[0], Some(long)).1;
        assert_near("clipped velocity", &clipped, &velocity, (lengths[0] as f64).sqrt(), 2e-6);
        bench.finish();
    }
}

#[test]
fn gradients_are_clipped_together_and_non_finite_steps_are_skipped() {
    for (seed, lengths) in [(1, [1, 1]), (2, [37, 300]), (3, [2000, 7]), (4, [300_001, 1026])] {
        check_clipping(&devices(), lengths, 0.75, seed);
    }
}

#[test]
fn kernels_clip_gradients_together_and_skip_non_finite_steps() {
    for (seed, lengths) in [(1, [1, 1]), (2, [37, 300]), (3, [2000, 7]), (4, [70_001, 1026])] {
        check_clipping(&all_kernel_devices(), lengths, 0.75, seed);
        assert_schedules_agree();
    }
}

#[test]
fn lower_levels() {
    run_at_lower_levels("steps_match");
    run_at_lower_levels("gradients_are_clipped");
}
