//! mixup and CutMix on every device and in every precision, compared with torchvision's formula in float32, to the bit.

mod reference;

use std::rc::Rc;

use proptest::prelude::*;
use reference::devices::{
    PRECISIONS, Workbench, assert_schedules_agree, devices, kernel_devices, run_at_lower_levels, stored,
};
use reference::*;
use retune::device::{Device, Mix, Mixture, Precision};

/// In float32 on the CPU.
fn check(case: &Case) {
    check_on(Precision::Fp32, &devices(), case);
}

/// With kernels, in all precisions.
fn check_kernels(case: &Case) {
    PRECISIONS.into_iter().for_each(|precision| check_on(precision, &kernel_devices(precision), case));
    assert_schedules_agree();
}

#[derive(Debug)]
struct Case {
    dims: [usize; 4],
    weight: f32,
    /// The first row and column, and those after the last ones.
    rectangle: [usize; 4],
    seed: u64,
}

fn check_on(precision: Precision, devices: &[Rc<dyn Device>], case: &Case) {
    let Case { dims, weight, rectangle, seed } = *case;
    let images = stored(precision, &Random(seed).normals(dims.iter().product()));
    let truth = stored(precision, &if dims[0] > 1 { mix(&images, dims, weight, rectangle) } else { images.clone() });
    let [top, left, bottom, right] = rectangle.map(|edge| edge as u32);
    for device in devices {
        let bench = Workbench::new(device.as_ref());
        let ours = bench.activation_variable(dims, &images);
        let mixture = Mixture { share: f32::NAN, weight, top, left, bottom, right };
        let words = bench.input([Mixture::WORDS], &mixture.words());
        device.mix(&Mix { images: &ours, words: &words }).unwrap();
        assert!(bench.read(&ours) == truth, "{} in {precision}: {case:?}", device.name());
        bench.finish();
    }
}

fn range(extent: usize) -> impl Strategy<Value = [usize; 2]> {
    prop_oneof![Just([0, extent]), [0..=extent, 0..=extent].prop_map(|[a, b]| [a.min(b), a.max(b)])]
}

fn cases() -> impl Strategy<Value = Case> {
    let weight = prop_oneof![Just(0.0f32), Just(1.0), 0.0f32..=1.0];
    (1usize..=11, 1usize..=20, 1usize..=20, weight, any::<u64>()).prop_flat_map(
        |(count, height, width, weight, seed)| {
            (range(height), range(width)).prop_map(move |([top, bottom], [left, right])| {
                let rectangle = [top, left, bottom, right];
                Case { dims: [count, height, width, 3], weight, rectangle, seed }
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn images_match_over_any_rectangle(case in cases()) {
        check(&case);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kernels_match_over_any_rectangle(case in cases()) {
        check_kernels(&case);
    }
}

/// Several blocks of threads, whose last one is not full.
#[test]
fn kernels_match_at_larger_sizes() {
    for dims in [[3, 64, 64, 3], [5, 33, 63, 3]] {
        check_kernels(&Case { dims, weight: 0.3, rectangle: [0, 0, dims[1], dims[2]], seed: 1 });
        check_kernels(&Case { dims, weight: 0.0, rectangle: [10, 31, 29, 50], seed: 2 });
    }
}

#[test]
fn lower_instruction_sets_match() {
    run_at_lower_levels("images_match");
}
