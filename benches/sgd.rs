//! One step of gradient descent over the 11.2 million parameters of a ResNet-18 with two classes.
//!
//! Bytes: values and gradients read, values written; with momentum also the velocities, read and written.

mod measurement;
mod tensors;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use retune::device::cpu::Cpu;
use retune::device::{Device, SgdStep};
use tensors::filled;

const PARAMETERS: usize = 11_177_538;

fn sgd(criterion: &mut Criterion) {
    let (values, gradients, velocity) = (filled([PARAMETERS]), filled([PARAMETERS]), filled([PARAMETERS]));
    let mut group = criterion.benchmark_group("sgd");
    for (name, momentum, velocity, passes) in [("plain", 0.0, None, 3), ("with momentum", 0.9, Some(&velocity), 5)] {
        group.throughput(Throughput::Bytes((passes * values.bytes()) as u64));
        let arguments = SgdStep {
            values: &values,
            gradients: &gradients,
            velocity,
            copy: None,
            learning_rate: 5e-5,
            momentum,
            weight_decay: 1e-3,
            loss: None,
            clip: None,
        };
        group.bench_function(name, |bencher| bencher.iter(|| Cpu.sgd(&arguments).unwrap()));
    }
}

criterion_group! {
    name = benches;
    config = measurement::brief();
    targets = sgd
}
criterion_main!(benches);
