//! The average pool of ResNet-18, batch 32: 7 x 7 pixels of 512 channels.
//!
//! Bytes: the activation, read in the forward pass or written in the backward pass, and its averages.

mod measurement;
mod tensors;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use retune::device::cpu::Cpu;
use retune::device::{Device, Gradient};
use tensors::filled;

fn avg_pool(criterion: &mut Criterion) {
    let (activation, averages) = (filled([32, 7, 7, 512]), filled([32, 512]));
    let mut group = criterion.benchmark_group("avg_pool");
    group.throughput(Throughput::Bytes((activation.bytes() + averages.bytes()) as u64));
    group.bench_function("forward", |bencher| {
        bencher.iter(|| Cpu.avg_pool_forward(&activation, &averages).unwrap());
    });
    let gradient = Gradient { tensor: activation, accumulate: false };
    group.bench_function("backward", |bencher| {
        bencher.iter(|| Cpu.avg_pool_backward(&averages, &gradient).unwrap());
    });
}

criterion_group! {
    name = benches;
    config = measurement::brief();
    targets = avg_pool
}
criterion_main!(benches);
