//! Tensors in the CPU's memory, with or without initial values.

#![allow(dead_code, reason = "no bench needs all of them")]

use retune::device::cpu::Cpu;
use retune::device::{Device, write_f32};
use retune::tensor::{ElementType, Shape, Tensor};

/// Numbers from -0.5 to 0.5. Outputs are filled too, because the system provides a page only when it is first written.
pub fn filled<const RANK: usize>(dims: [usize; RANK]) -> Tensor {
    let tensor = zeroed(dims, ElementType::F32);
    let numbers: Vec<f32> = (0..tensor.len()).map(|i| (i * 7919 % 1021) as f32 / 1020.0 - 0.5).collect();
    write_f32(&Cpu, &numbers, &tensor).unwrap();
    tensor
}

pub fn zeroed<const RANK: usize>(dims: [usize; RANK], element_type: ElementType) -> Tensor {
    let shape = Shape::from(dims);
    Tensor::new(Cpu.allocate(shape.len() * element_type.size()).unwrap(), 0, shape, element_type)
}

pub fn workspace(bytes: usize) -> Tensor {
    zeroed([bytes], ElementType::U8)
}
