//! The max pool of ResNet-18, batch 32: 3 x 3 with stride 2 over 112 x 112 pixels of 64 channels.
//!
//! Bytes: the input and the output, or their gradients, and one byte of argmax index for each output.

mod measurement;
mod tensors;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use retune::device::cpu::Cpu;
use retune::device::{Device, Gradient, MaxPoolWindow};
use retune::tensor::ElementType;
use tensors::{filled, zeroed};

fn max_pool(criterion: &mut Criterion) {
    let window = MaxPoolWindow { size: 3, stride: 2, padding: 1 };
    let (input, output) = (filled([32, 112, 112, 64]), filled([32, 56, 56, 64]));
    let indices = zeroed([32, 56, 56, 64], ElementType::U8);
    let mut group = criterion.benchmark_group("max_pool");
    group.throughput(Throughput::Bytes((input.bytes() + output.bytes() + indices.bytes()) as u64));
    group.bench_function("forward", |bencher| {
        bencher.iter(|| Cpu.max_pool_forward(window, &input, &output, Some(&indices)).unwrap());
    });
    // The argmax indices that the backward pass needs, whichever benchmarks are selected.
    Cpu.max_pool_forward(window, &input, &output, Some(&indices)).unwrap();
    let gradient = Gradient { tensor: input, accumulate: false };
    group.bench_function("backward", |bencher| {
        bencher.iter(|| Cpu.max_pool_backward(window, &indices, &output, &gradient).unwrap());
    });
}

criterion_group! {
    name = benches;
    config = measurement::brief();
    targets = max_pool
}
criterion_main!(benches);
