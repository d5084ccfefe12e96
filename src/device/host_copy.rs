//! Copies between tensors and values of the host.

use half::bf16;

use super::interface::Device;
use crate::error::{Error, Result};
use crate::tensor::{ElementType, Tensor};

/// Copies values to a tensor of float32 or bf16, to which they are rounded (to nearest, ties to even).
pub fn write_f32(device: &dyn Device, values: &[f32], target: &Tensor) -> Result<()> {
    if target.element_type() == ElementType::Bf16 {
        check_host_copy(target, ElementType::Bf16, values.len())?;
        let bytes: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_ne_bytes()).collect();
        return device.upload(&bytes, target);
    }
    check_host_copy(target, ElementType::F32, values.len())?;
    // SAFETY: floats have no padding, any byte of them may be read, and bytes need no alignment.
    let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
    device.upload(bytes, target)
}

/// Copies a tensor of float32 or bf16 to the host.
pub fn read_f32(device: &dyn Device, source: &Tensor) -> Result<Vec<f32>> {
    if source.element_type() == ElementType::Bf16 {
        let mut bytes = vec![0; source.bytes()];
        device.download(source, &mut bytes)?;
        let (pairs, _) = bytes.as_chunks::<2>();
        return Ok(pairs.iter().map(|&pair| bf16::from_ne_bytes(pair).to_f32()).collect());
    }
    let mut values = vec![0.0; source.len()];
    check_host_copy(source, ElementType::F32, source.len())?;
    // SAFETY: as in `write_f32`, and any bytes make floats.
    let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values.as_slice())) };
    device.download(source, bytes)?;
    Ok(values)
}

/// Copies class indices to a tensor.
pub fn write_i32(device: &dyn Device, values: &[i32], target: &Tensor) -> Result<()> {
    check_host_copy(target, ElementType::I32, values.len())?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    device.upload(&bytes, target)
}

fn check_host_copy(tensor: &Tensor, element_type: ElementType, len: usize) -> Result<()> {
    if tensor.element_type() != element_type || tensor.len() != len {
        return Err(Error::new(format!(
            "a copy of {len} {element_type:?} elements to or from a tensor of {} {:?}",
            tensor.len(),
            tensor.element_type()
        )));
    }
    Ok(())
}
