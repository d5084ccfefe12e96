//! The head of ResNet-18, batch 32: from 512 features to the 1000 classes of ImageNet, all three passes.
//!
//! Elements: multiply-adds.

mod measurement;
mod tensors;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use retune::device::cpu::Cpu;
use retune::device::{Conv2dPass, Device, Gradient};
use tensors::{filled, workspace};

const BATCH: usize = 32;
const INPUTS: usize = 512;
const OUTPUTS: usize = 1000;

fn linear(criterion: &mut Criterion) {
    let (input, output) = (filled([BATCH, INPUTS]), filled([BATCH, OUTPUTS]));
    let (weight, bias) = (filled([OUTPUTS, INPUTS]), filled([OUTPUTS]));
    let workspace_for = |pass| workspace(Cpu.linear_workspace(BATCH, INPUTS, OUTPUTS, pass));
    let mut group = criterion.benchmark_group("linear");
    group.throughput(Throughput::Elements((BATCH * INPUTS * OUTPUTS) as u64));

    let workspace = workspace_for(Conv2dPass::Forward);
    group.bench_function("forward", |bencher| {
        bencher.iter(|| Cpu.linear_forward(&input, &weight, &bias, &output, &workspace).unwrap());
    });
    let workspace = workspace_for(Conv2dPass::InputGradient);
    let input_gradient = Gradient { tensor: filled([BATCH, INPUTS]), accumulate: false };
    group.bench_function("input gradient", |bencher| {
        bencher.iter(|| Cpu.linear_input_gradient(&output, &weight, &input_gradient, &workspace).unwrap());
    });
    let workspace = workspace_for(Conv2dPass::WeightGradient);
    group.bench_function("weight gradient", |bencher| {
        bencher.iter(|| {
            Cpu.linear_weight_gradient(Some(&input), &output, Some(&weight), Some(&bias), &workspace).unwrap();
        });
    });
}

criterion_group! {
    name = benches;
    config = measurement::brief();
    targets = linear
}
criterion_main!(benches);
