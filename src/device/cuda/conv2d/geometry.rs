//! The sizes of a convolution, as all its kernels take them.

use crate::device::cuda::arguments::kernel_arguments;
use crate::device::interface::Conv2dShape;

kernel_arguments! {
    pub(super) struct Conv2dGeometry {
        batch: i32,
        height: i32,
        width: i32,
        input_channels: i32,
        output_height: i32,
        output_width: i32,
        output_channels: i32,
        kernel_height: i32,
        kernel_width: i32,
        stride: i32,
        padding: i32,
    }
}

impl Conv2dGeometry {
    pub(super) fn new(shape: &Conv2dShape) -> Self {
        Self {
            batch: shape.batch as i32,
            height: shape.height as i32,
            width: shape.width as i32,
            input_channels: shape.input_channels as i32,
            output_height: shape.output_height() as i32,
            output_width: shape.output_width() as i32,
            output_channels: shape.output_channels as i32,
            kernel_height: shape.kernel_height as i32,
            kernel_width: shape.kernel_width as i32,
            stride: shape.stride as i32,
            padding: shape.padding as i32,
        }
    }
}
