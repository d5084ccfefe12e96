//! One step of gradient descent over the 11.2 million parameters of a ResNet-18 with two classes.
//!
//! Bytes: values and gradients read, values written; with momentum also the velocities, read and written.

mod measurement;
mod tensors;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use retune::device::cpu::Cpu;
use retune::device::{Device, UpdateArguments, write_f32};
use retune::optim::{GroupSettings, OptimizerSettings};
use tensors::filled;

const PARAMETERS: usize = 11_177_538;

fn sgd(criterion: &mut Criterion) {
    let (values, gradients, velocity) = (filled([PARAMETERS]), filled([PARAMETERS]), filled([PARAMETERS]));
    let mut group = criterion.benchmark_group("sgd");
    let words = filled([3]);
    for (name, momentum, slots, passes) in [("plain", 0.0, &[][..], 3), ("with momentum", 0.9, &[velocity][..], 5)] {
        let optimizer = OptimizerSettings::sgd(momentum).unwrap().build();
        let settings = GroupSettings { learning_rate: 5e-5, weight_decay: 1e-3 };
        let mut values_of_words = [0.0; 3];
        optimizer.words(&settings, 1, 0.0, &mut values_of_words);
        write_f32(&Cpu, &values_of_words, &words).unwrap();
        group.throughput(Throughput::Bytes((passes * values.bytes()) as u64));
        let arguments = UpdateArguments {
            rule: optimizer.rule(),
            values: &values,
            gradients: &gradients,
            slots,
            compute_copy: None,
            words: &words,
            loss: None,
            clip: None,
        };
        group.bench_function(name, |bencher| bencher.iter(|| Cpu.update(&arguments).unwrap()));
    }
}

criterion_group! {
    name = benches;
    config = measurement::brief();
    targets = sgd
}
criterion_main!(benches);
