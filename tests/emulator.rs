//! The emulator's own tests: kernels of `tests/faults` that are right, and beside each those with one planted fault.

#![cfg(feature = "emulator")]

use retune::device::cuda::driver::{ArithmeticUnit, Driver, Launch, Work};
use retune::device::cuda::emulator::Emulator;
use retune::error::Result;
use retune::tensor::Memory;

use std::rc::Rc;

const WORK: Work = Work { operations: 0, unit: ArithmeticUnit::Float32, bytes_read: 0, bytes_written: 0 };

#[repr(C)]
#[derive(Clone, Copy)]
struct MemoryArguments {
    input: u64,
    output: u64,
    count: i32,
    step: i32,
}

fn bytes_of<T: Copy>(arguments: &T) -> &[u8] {
    // SAFETY: the structs of these tests have no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(arguments).cast(), size_of::<T>()) }
}

fn upload(emulator: &Emulator, values: &[f32]) -> Rc<Memory> {
    let memory = emulator.allocate(values.len() * 4).expect("there is memory");
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    emulator.upload(&bytes, memory.address()).expect("uploads");
    memory
}

fn download(emulator: &Emulator, memory: &Memory) -> Vec<f32> {
    let mut bytes = vec![0; memory.bytes()];
    emulator.download(memory.address(), &mut bytes).expect("downloads");
    bytes.chunks_exact(4).map(|bytes| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect()
}

fn launch<T: Copy>(
    emulator: &Emulator,
    kernel: &'static str,
    grid: u32,
    block: u32,
    shared_bytes: u32,
    arguments: &T,
) -> Result<()> {
    let arguments = bytes_of(arguments);
    emulator.launch(&Launch { kernel, grid: [grid, 1, 1], block: [block, 1, 1], shared_bytes, arguments, work: WORK })
}

#[test]
fn runs_kernels() {
    for seed in 0..8 {
        let emulator = Emulator::new(seed).expect("starts");
        let values: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        let input = upload(&emulator, &values);
        let output = emulator.allocate(4000).expect("there is memory");
        let arguments = MemoryArguments { input: input.address(), output: output.address(), count: 1000, step: 0 };
        launch(&emulator, "increment", 16, 64, 0, &arguments).expect("runs");
        assert!(download(&emulator, &output).iter().zip(&values).all(|(new, old)| *new == old + 1.0));
        let sums = emulator.allocate(64).expect("there is memory");
        let arguments = MemoryArguments { output: sums.address(), ..arguments };
        launch(&emulator, "sum_blocks", 16, 64, 0, &arguments).expect("runs");
        let truth: Vec<f32> = values.chunks(64).map(|values| values.iter().sum()).collect();
        assert_eq!(download(&emulator, &sums), truth);
    }
}
