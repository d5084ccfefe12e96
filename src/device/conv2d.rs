//! The geometry of a two-dimensional convolution, shared by every back end.

/// Sizes of one convolution. Activations are NHWC; the weight is
/// `[output_channels, kernel_height, kernel_width, input_channels]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Conv2dShape {
    /// Images in the batch.
    pub batch: usize,
    /// Rows of the input.
    pub height: usize,
    /// Columns of the input.
    pub width: usize,
    /// Channels of the input.
    pub input_channels: usize,
    /// Channels of the output.
    pub output_channels: usize,
    /// Rows of the filter.
    pub kernel_height: usize,
    /// Columns of the filter.
    pub kernel_width: usize,
    /// Step of the filter, the same in both directions.
    pub stride: usize,
    /// Zeros around the input, the same on all four sides.
    pub padding: usize,
}

impl Conv2dShape {
    /// Rows of the output.
    pub fn output_height(&self) -> usize {
        (self.height + 2 * self.padding - self.kernel_height) / self.stride + 1
    }

    /// Columns of the output.
    pub fn output_width(&self) -> usize {
        (self.width + 2 * self.padding - self.kernel_width) / self.stride + 1
    }

    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.height * self.width * self.input_channels
    }

    /// Elements of the output.
    pub fn output_len(&self) -> usize {
        self.batch * self.output_height() * self.output_width() * self.output_channels
    }

    /// Elements of the weight.
    pub fn weight_len(&self) -> usize {
        self.output_channels * self.kernel_height * self.kernel_width * self.input_channels
    }

    /// Multiplications with additions that a direct convolution takes.
    pub fn multiply_adds(&self) -> usize {
        self.output_len() * self.kernel_height * self.kernel_width * self.input_channels
    }
}

/// The three computations of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Conv2dPass {
    /// Output from input and weight.
    Forward,
    /// Gradient of the input from that of the output, and the weight.
    InputGradient,
    /// Gradient of the weight from that of the output, and the input.
    WeightGradient,
}
