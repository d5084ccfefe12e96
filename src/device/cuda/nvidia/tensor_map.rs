//! Tensor maps, which describe a tensor in device memory to bulk copies (TMA). Only GPUs since compute capability 9.0 have them.

use std::ffi::c_void;

use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle,
};

use super::failures::{CUDA_13_DRIVER, failure};
use crate::error::{Error, Result};

/// How a copy permutes pieces of 16 bytes in shared memory, so that a column of a matrix lies in different banks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    None,
    /// Within 32 bytes.
    Bytes32,
    /// Within 64 bytes.
    Bytes64,
    /// Within 128 bytes.
    Bytes128,
}

/// Which part of a tensor one copy takes.
#[derive(Debug, Clone)]
pub enum Extent {
    /// A box: its size in each dimension, the innermost first.
    Tile(Vec<u32>),
    /// Pixels of a tensor of channels, columns, rows and images, as a convolution reads them.
    Im2col {
        /// First column and row of the pixels, relative to those of the tensor.
        lower: [i32; 2],
        /// Last column and row of the pixels, relative to those of the tensor.
        upper: [i32; 2],
        /// Channels of a pixel.
        channels: u32,
        /// Pixels of a copy.
        pixels: u32,
        /// Step from pixel to pixel, in both directions.
        stride: u32,
    },
}

/// Encodes the map of a tensor of bf16 at `address`, dense, with these sizes, the innermost first. What a copy takes from
/// outside the tensor is zero.
///
/// # Errors
/// When the driver does not know tensor maps, or refuses this one.
pub fn encode(address: u64, sizes: &[u64], extent: &Extent, swizzle: Swizzle) -> Result<Vec<u8>> {
    let symbol = match extent {
        Extent::Tile(_) => "cuTensorMapEncodeTiled",
        Extent::Im2col { .. } => "cuTensorMapEncodeIm2col",
    };
    // SAFETY: the symbol is only looked up, never called as this type.
    if unsafe { sys::culib().get::<unsafe extern "C" fn()>(symbol.as_bytes()) }.is_err() {
        return Err(Error::new(format!("the NVIDIA driver is too old: it has no {symbol}"))
            .hint(format!("update NVIDIA's driver to {CUDA_13_DRIVER} or later")));
    }
    let swizzle = match swizzle {
        Swizzle::None => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        Swizzle::Bytes32 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::Bytes64 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::Bytes128 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let element = CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    let interleave = CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE;
    let promotion = CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE;
    let fill = CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
    // Bytes from one index to the next, of all dimensions but the innermost.
    let strides: Vec<u64> = (1..sizes.len()).map(|dimension| 2 * sizes[..dimension].iter().product::<u64>()).collect();
    let rank = sizes.len() as u32;
    let tensor = std::ptr::without_provenance_mut::<c_void>(address as usize);
    let mut map = CUtensorMap { opaque: [0; 16] };
    let answer = match extent {
        Extent::Tile(extents) => {
            assert_eq!(extents.len(), sizes.len());
            let steps = vec![1; sizes.len()];
            // SAFETY: `map` is a local, and every other array has as many elements as `rank` says. The driver does not read
            // the tensor.
            unsafe {
                sys::cuTensorMapEncodeTiled(
                    &mut map,
                    element,
                    rank,
                    tensor,
                    sizes.as_ptr(),
                    strides.as_ptr(),
                    extents.as_ptr(),
                    steps.as_ptr(),
                    interleave,
                    swizzle,
                    promotion,
                    fill,
                )
            }
        }
        Extent::Im2col { lower, upper, channels, pixels, stride } => {
            assert_eq!(sizes.len(), 4);
            let steps = [1, *stride, *stride, 1];
            // SAFETY: as above; the corners have two elements, as many as a tensor of rank 4 has columns and rows.
            unsafe {
                sys::cuTensorMapEncodeIm2col(
                    &mut map,
                    element,
                    rank,
                    tensor,
                    sizes.as_ptr(),
                    strides.as_ptr(),
                    lower.as_ptr(),
                    upper.as_ptr(),
                    *channels,
                    *pixels,
                    steps.as_ptr(),
                    interleave,
                    swizzle,
                    promotion,
                    fill,
                )
            }
        }
    };
    answer.result().map_err(|error| failure("cannot encode a tensor map", error))?;
    Ok(map.opaque.iter().flat_map(|word| word.to_ne_bytes()).collect())
}
