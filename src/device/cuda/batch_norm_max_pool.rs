//! Launches of `kernels/batch_norm_max_pool.cu`.

use super::arguments::kernel_arguments;
use super::batch_norm::{BatchNormChannels, BatchNormSums, Pass, Reduction, THREADS, pixel_count, workspace};
use super::driver::{ArithmeticUnit, Work};
use super::engine::{Cuda, group_length, of_type};
use crate::device::interface::{Activation, BatchNormBackward, BatchNormForward, BatchNormMode, MaxPoolWindow};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// The window that the kernels are written for.
pub(super) const WINDOW: MaxPoolWindow = MaxPoolWindow { size: 3, stride: 2, padding: 1 };

kernel_arguments! {
    struct PoolGeometry {
        batch: i32,
        height: i32,
        width: i32,
        channels: i32,
        output_height: i32,
        output_width: i32,
    }
}

kernel_arguments! {
    struct BatchNormMaxPoolForwardArguments {
        input: u64,
        output: u64,
        indices: u64,
        norm: BatchNormChannels,
        geometry: PoolGeometry,
        activation: Activation,
        vectorised: i32,
        pixels_per_block: i32,
        padding: i32,
    }
}

kernel_arguments! {
    struct BatchNormMaxPoolReduceArguments {
        input: u64,
        indices: u64,
        output_gradient: u64,
        saved_statistics: u64,
        sums: BatchNormSums,
        geometry: PoolGeometry,
        activation: Activation,
        vectorised: i32,
        quads: i32,
        quads_per_block: i32,
    }
}

kernel_arguments! {
    struct BatchNormMaxPoolBackwardArguments {
        input: u64,
        indices: u64,
        output_gradient: u64,
        saved_statistics: u64,
        sums: u64,
        input_gradient: u64,
        geometry: PoolGeometry,
        activation: Activation,
        vectorised: i32,
        accumulate: i32,
        quads: i32,
        quads_per_block: i32,
        padding: i32,
    }
}

impl PoolGeometry {
    /// # Errors
    /// When a tensor is no activation, or the window is another.
    fn new(window: MaxPoolWindow, input: &Tensor, output: &Tensor) -> Result<Self> {
        let (shape, output_shape) = (input.shape(), output.shape());
        let (&[batch, height, width, channels], &[_, output_height, output_width, _]) =
            (shape.dims(), output_shape.dims())
        else {
            return Err(Error::new(format!("batch_norm_max_pool: expected [N, H, W, C], found {shape:?}")));
        };
        if window != WINDOW {
            return Err(Error::new(format!("batch_norm_max_pool: expected {WINDOW:?}, found {window:?}")));
        }
        pixel_count(input)?;
        let [batch, height, width] = [batch, height, width].map(|extent| extent as i32);
        let [output_height, output_width] = [output_height, output_width].map(|extent| extent as i32);
        Ok(Self { batch, height, width, channels: channels as i32, output_height, output_width })
    }

    fn quads(&self) -> usize {
        let half = |extent: i32| extent as usize / 2 + extent as usize % 2;
        self.batch as usize * half(self.height) * half(self.width)
    }
}

pub(super) fn forward(
    cuda: &Cuda,
    window: MaxPoolWindow,
    arguments: &BatchNormForward,
    indices: &Tensor,
) -> Result<()> {
    let BatchNormForward { input, output, .. } = arguments;
    if arguments.residual.is_some() {
        return Err(Error::new("batch_norm_max_pool: found a residual, expected none"));
    }
    let geometry = PoolGeometry::new(window, input, output)?;
    let norm = BatchNormChannels::new(arguments)?;
    let length = group_length(input);
    let pass = Pass::new(cuda, output.shape().rows(), output.shape().channels(), length);
    let work = Work {
        operations: (4 * input.len() + output.len() * window.size * window.size) as u64,
        unit: ArithmeticUnit::Float32,
        bytes_read: input.bytes() as u64 + norm.bytes(),
        bytes_written: (output.bytes() + indices.bytes()) as u64 + norm.bytes(),
    };
    cuda.launch(
        of_type(input.element_type(), "batch_norm_max_pool_forward_fp32", "batch_norm_max_pool_forward_bf16"),
        pass.grid,
        THREADS,
        0,
        &BatchNormMaxPoolForwardArguments {
            input: input.address(),
            output: output.address(),
            indices: indices.address(),
            norm,
            geometry,
            activation: arguments.activation,
            vectorised: i32::from(length > 1),
            pixels_per_block: pass.places_per_block as i32,
            padding: 0,
        },
        work,
    )
}

pub(super) fn backward(
    cuda: &Cuda,
    window: MaxPoolWindow,
    arguments: &BatchNormBackward,
    indices: &Tensor,
) -> Result<()> {
    let output_gradient = arguments.output_gradient;
    let input = arguments.input.ok_or_else(|| Error::new("batch_norm_max_pool: the gradients need the input"))?;
    let geometry = PoolGeometry::new(window, input, output_gradient)?;
    let (quads, channels, length) = (geometry.quads(), input.shape().channels(), group_length(input));
    let has_slope = arguments.mode == BatchNormMode::Training && arguments.input_gradient.is_some();
    let bytes = |tensor: Option<&Tensor>| tensor.map_or(0, Tensor::bytes) as u64;
    let read = (input.bytes() + output_gradient.bytes() + indices.bytes()) as u64;
    if has_slope || arguments.weight_gradient.is_some() || arguments.bias_gradient.is_some() {
        let blocks = Reduction::new(input.shape()).blocks;
        let quads_per_block = quads.div_ceil(blocks).max(1);
        let blocks = quads.div_ceil(quads_per_block).max(1);
        let rows = workspace(input.shape()) as u64;
        cuda.launch(
            of_type(input.element_type(), "batch_norm_max_pool_reduce_fp32", "batch_norm_max_pool_reduce_bf16"),
            [blocks, 1, 1],
            THREADS,
            THREADS * length * 4,
            &BatchNormMaxPoolReduceArguments {
                input: input.address(),
                indices: indices.address(),
                output_gradient: output_gradient.address(),
                saved_statistics: arguments.saved_statistics.address(),
                sums: BatchNormSums::new(cuda, arguments, blocks, 1)?,
                geometry,
                activation: arguments.activation,
                vectorised: i32::from(length > 1),
                quads: quads as i32,
                quads_per_block: quads_per_block as i32,
            },
            Work {
                operations: 10 * input.len() as u64,
                unit: ArithmeticUnit::Float32,
                bytes_read: read + rows,
                bytes_written: rows + bytes(arguments.weight_gradient) + bytes(arguments.bias_gradient),
            },
        )?;
    }
    let Some(gradient) = arguments.input_gradient else { return Ok(()) };
    let pass = Pass::new(cuda, quads, channels, length);
    cuda.launch(
        of_type(input.element_type(), "batch_norm_max_pool_backward_fp32", "batch_norm_max_pool_backward_bf16"),
        pass.grid,
        THREADS,
        0,
        &BatchNormMaxPoolBackwardArguments {
            input: input.address(),
            indices: indices.address(),
            output_gradient: output_gradient.address(),
            saved_statistics: arguments.saved_statistics.address(),
            sums: if has_slope { arguments.workspace.address() } else { 0 },
            input_gradient: gradient.tensor.address(),
            geometry,
            activation: arguments.activation,
            vectorised: i32::from(length > 1),
            accumulate: i32::from(gradient.accumulate),
            quads: quads as i32,
            quads_per_block: pass.places_per_block as i32,
            padding: 0,
        },
        Work {
            operations: 10 * input.len() as u64,
            unit: ArithmeticUnit::Float32,
            bytes_read: read + if gradient.accumulate { input.bytes() as u64 } else { 0 },
            bytes_written: input.bytes() as u64,
        },
    )
}
