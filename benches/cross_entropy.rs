//! The loss of ResNet-18, batch 32: cross entropy over the 1000 classes of ImageNet.
//!
//! Bytes: the logits, which are read, and their gradient if it is written.

mod measurement;
mod tensors;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use retune::device::cpu::Cpu;
use retune::device::{CrossEntropy, Device, LossReduction, write_i32};
use retune::tensor::{ElementType, Tensor};
use tensors::{filled, zeroed};

const BATCH: usize = 32;
const CLASSES: usize = 1000;

fn cross_entropy(criterion: &mut Criterion) {
    let (logits, gradient, result) = (filled([BATCH, CLASSES]), filled([BATCH, CLASSES]), filled([2]));
    let targets = zeroed([BATCH], ElementType::I32);
    let classes: Vec<i32> = (0..BATCH).map(|row| (row * CLASSES / BATCH) as i32).collect();
    write_i32(&Cpu, &classes, &targets).unwrap();

    let mut group = criterion.benchmark_group("cross_entropy");
    for (name, logits_gradient) in [("loss alone", None), ("with gradient", Some(&gradient))] {
        let written = logits_gradient.map_or(0, Tensor::bytes);
        group.throughput(Throughput::Bytes((logits.bytes() + written) as u64));
        let arguments = CrossEntropy {
            logits: &logits,
            targets: &targets,
            class_weights: None,
            share: None,
            label_smoothing: 0.0,
            reduction: LossReduction::Sum,
            result: &result,
            logits_gradient,
        };
        group.bench_function(name, |bencher| bencher.iter(|| Cpu.cross_entropy(&arguments).unwrap()));
    }
}

criterion_group! {
    name = benches;
    config = measurement::brief();
    targets = cross_entropy
}
criterion_main!(benches);
