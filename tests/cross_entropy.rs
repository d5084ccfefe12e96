//! Softmax cross entropy and its gradient on every device, compared with the naive float64 version. It is float32 in
//! every precision.

mod reference;

use std::rc::Rc;

use proptest::prelude::*;
use reference::devices::{
    PRECISIONS, Workbench, assert_near, assert_schedules_agree, devices, kernel_devices, run_at_lower_levels,
};
use reference::*;
use retune::device::{CrossEntropy as Arguments, Device, LossReduction};

const LIMIT: f64 = 1e-5;

/// What is not in the batch.
#[derive(Debug, Clone, PartialEq)]
struct Loss {
    reduction: Reduction,
    smoothing: f32,
    /// One for each class, or none for weights of 1.
    weights: Option<Vec<f32>>,
    /// The share of each row's own target, if targets are mixed.
    share: Option<f32>,
}

impl From<Reduction> for Loss {
    fn from(reduction: Reduction) -> Self {
        Self { reduction, smoothing: 0.0, weights: None, share: None }
    }
}

/// Returns loss, correct rows and gradient, computed with and without the gradient.
fn run(device: &dyn Device, logits: &[f32], targets: &[usize], loss: &Loss) -> (f32, f32, Vec<f32>) {
    let (batch, classes) = (targets.len(), logits.len() / targets.len());
    let bench = Workbench::new(device);
    let logits = bench.input([batch, classes], logits);
    let targets = bench.targets(targets);
    let weights = loss.weights.as_ref().map(|weights| bench.input([classes], weights));
    let share = loss.share.map(|share| bench.input([1], &[share]));
    let gradient = bench.output([batch, classes]);
    let results = [None, Some(&gradient)].map(|logits_gradient| {
        let result = bench.output([2]);
        let arguments = Arguments {
            logits: &logits,
            targets: &targets,
            share: share.as_ref(),
            class_weights: weights.as_ref(),
            label_smoothing: loss.smoothing,
            reduction: match loss.reduction {
                Reduction::Sum => LossReduction::Sum,
                Reduction::Mean => LossReduction::Mean,
            },
            result: &result,
            logits_gradient,
        };
        device.cross_entropy(&arguments).unwrap();
        bench.read(&result)
    });
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&results[0]), bits(&results[1]), "the gradient changes the loss");
    let gradient = bench.read(&gradient);
    bench.finish();
    (results[0][0], results[0][1], gradient)
}

fn check(logits: &[f32], targets: &[usize], loss: &Loss) {
    check_on(&devices(), logits, targets, loss);
}

fn check_kernels(logits: &[f32], targets: &[usize], loss: &Loss) {
    check_on(&all_kernel_devices(), logits, targets, loss);
    assert_schedules_agree();
}

fn all_kernel_devices() -> Vec<Rc<dyn Device>> {
    PRECISIONS.into_iter().flat_map(kernel_devices).collect()
}

fn check_on(devices: &[Rc<dyn Device>], logits: &[f32], targets: &[usize], loss: &Loss) {
    let ones = vec![1.0; logits.len() / targets.len()];
    let weights: Vec<f64> = loss.weights.as_ref().unwrap_or(&ones).iter().map(|&weight| weight.into()).collect();
    let truth = smoothed_cross_entropy(
        logits,
        targets,
        loss.share.map(f64::from),
        loss.reduction,
        loss.smoothing.into(),
        &weights,
    );
    let scale = match loss.reduction {
        Reduction::Sum => 1.0,
        Reduction::Mean => 1.0 / targets.len() as f64,
    };
    for device in devices {
        let (loss, correct, gradient) = run(device.as_ref(), logits, targets, loss);
        let typical = 0.1 * scale;
        assert_near("loss", &[loss], &[truth.loss], typical * targets.len() as f64, LIMIT);
        assert_near("gradient", &gradient, &truth.gradient, typical * (targets.len() as f64).sqrt(), LIMIT);
        assert_eq!(correct, truth.correct as f32, "correct rows of {targets:?}");
    }
}

/// Logits, each with a target. Rounded logits contain ties.
fn batches() -> impl Strategy<Value = (Vec<f32>, Vec<usize>)> {
    let sizes = prop_oneof![(1usize..=70, 1usize..=12), (1usize..=5, 1usize..=300)];
    (sizes, 0.1f64..20.0, any::<bool>(), any::<u64>()).prop_map(|((batch, classes), spread, rounds, seed)| {
        let mut random = Random(seed);
        let logit = |random: &mut Random| {
            let value = random.normal() * spread;
            if rounds { (value / spread).round() as f32 } else { value as f32 }
        };
        let logits = (0..batch * classes).map(|_| logit(&mut random)).collect();
        (logits, random.labels(batch, classes))
    })
}

fn reductions() -> impl Strategy<Value = Reduction> {
    prop::sample::select(vec![Reduction::Sum, Reduction::Mean])
}

/// A batch with a loss that has label smoothing, weights of classes, mixed targets, or several of them.
fn smoothed() -> impl Strategy<Value = ((Vec<f32>, Vec<usize>), Loss)> {
    let share = prop::option::of(prop_oneof![0.0f32..=1.0, Just(0.0), Just(0.5), Just(1.0)]);
    let kinds = (0.0f32..=1.0, 0..3, share, any::<u64>());
    (batches(), reductions(), kinds).prop_map(|(batch, reduction, (smoothing, kind, share, seed))| {
        let classes = batch.0.len() / batch.1.len();
        let weights = (kind != 0).then(|| Random(seed).uniforms(classes, 0.2, 3.0));
        (batch, Loss { reduction, smoothing: if kind == 1 { 0.0 } else { smoothing }, weights, share })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn loss_and_gradient_match((logits, targets) in batches(), reduction in reductions()) {
        check(&logits, &targets, &reduction.into());
    }

    #[test]
    fn loss_and_gradient_match_with_smoothing_and_weights(((logits, targets), loss) in smoothed()) {
        check(&logits, &targets, &loss);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn kernels_match((logits, targets) in batches(), reduction in reductions()) {
        check_kernels(&logits, &targets, &reduction.into());
    }

    #[test]
    fn kernels_match_with_smoothing_and_weights(((logits, targets), loss) in smoothed()) {
        check_kernels(&logits, &targets, &loss);
    }
}

fn of_imagenets_size() -> (Vec<f32>, Vec<usize>) {
    let mut random = Random(1);
    (random.normals(128 * 1000), random.labels(128, 1000))
}

#[test]
fn loss_and_gradient_match_at_imagenets_size() {
    let (logits, targets) = of_imagenets_size();
    check(&logits, &targets, &Reduction::Sum.into());
}

#[test]
fn kernels_match_at_imagenets_size() {
    let (logits, targets) = of_imagenets_size();
    check_kernels(&logits, &targets, &Reduction::Sum.into());
}

const OVERFLOWING: [(&[f32], &[usize], Reduction); 3] = [
    (&[1000.0, 0.0, -1000.0, 88.0, 89.0, 90.0], &[1, 0], Reduction::Sum),
    (&[1e30, -1e30], &[0], Reduction::Mean),
    (&[-500.0, -500.0, -500.0], &[2], Reduction::Sum),
];

#[test]
fn loss_and_gradient_match_where_exponentials_overflow() {
    OVERFLOWING.into_iter().for_each(|(logits, targets, reduction)| check(logits, targets, &reduction.into()));
}

#[test]
fn kernels_match_where_exponentials_overflow() {
    OVERFLOWING.into_iter().for_each(|(logits, targets, reduction)| check_kernels(logits, targets, &reduction.into()));
}

#[test]
fn first_of_equal_logits_counts_as_the_answer() {
    for device in devices().into_iter().chain(all_kernel_devices()) {
        let correct =
            |logits: &[f32], targets: &[usize]| run(device.as_ref(), logits, targets, &Reduction::Sum.into()).1;
        assert_eq!(correct(&[2.0, 2.0, 1.0], &[0]), 1.0);
        assert_eq!(correct(&[2.0, 2.0, 1.0], &[1]), 0.0);
        assert_eq!(correct(&[0.0; 6], &[0, 1]), 1.0);
    }
}

/// A diverged network must show it.
#[test]
fn not_a_number_is_not_hidden() {
    for device in devices().into_iter().chain(all_kernel_devices()) {
        let (loss, _, gradient) =
            run(device.as_ref(), &[0.0, f32::NAN, 1.0, 0.5, 0.25, 1.0], &[0, 2], &Reduction::Sum.into());
        assert!(loss.is_nan());
        assert!(gradient[..3].iter().all(|value| value.is_nan()), "{gradient:?}");
        assert!(gradient[3..].iter().all(|value| value.is_finite()), "{gradient:?}");
    }
}

#[test]
fn lower_levels() {
    run_at_lower_levels("loss_and_gradient_match");
}
