//! Devices that pass most calls on to another device. A new method of [`Device`] needs one line in this file.

use std::rc::Rc;

use retune::device::{
    Accumulate, Augment, BatchNormBackward, BatchNormForward, Conv2dForward, Conv2dInputGradient, Conv2dPass,
    Conv2dShape, Conv2dWeightGradient, CrossEntropy, Device, Features, Gradient, MaxPoolWindow, Mix, Precision,
    Recording, UpdateArguments,
};
use retune::error::Result;
use retune::tensor::{Memory, Shape, Tensor};

/// Calls `$callback!` with the signatures of all methods of [`Device`], without `&self`.
macro_rules! with_device_methods {
    ($callback:ident $(, $argument:ty)?) => {
        $callback! {
            $($argument,)?
            fn name() -> String;
            fn description() -> String;
            fn features() -> Features;
            fn precision() -> Precision;
            fn free_bytes() -> Result<Option<usize>>;
            fn allocate(bytes: usize) -> Result<Rc<Memory>>;
            fn upload(source: &[u8], target: &Tensor) -> Result<()>;
            fn download(source: &Tensor, target: &mut [u8]) -> Result<()>;
            fn synchronize() -> Result<()>;
            fn record(step: &mut dyn FnMut() -> Result<()>) -> Result<Option<Rc<dyn Recording>>>;
            fn augment(arguments: &Augment) -> Result<()>;
            fn mix(arguments: &Mix) -> Result<()>;
            fn statistics_rows(shape: Shape) -> usize;
            fn conv2d_workspace(shape: &Conv2dShape, pass: Conv2dPass) -> usize;
            fn conv2d_forward(shape: &Conv2dShape, arguments: &Conv2dForward) -> Result<()>;
            fn conv2d_batch_norm(
                shape: &Conv2dShape,
                convolution: &Conv2dForward,
                batch_norm: &BatchNormForward
            ) -> Result<()>;
            fn reducing_workspace(shape: &Conv2dShape) -> Option<usize>;
            fn conv2d_input_gradient(shape: &Conv2dShape, arguments: &Conv2dInputGradient) -> Result<()>;
            fn conv2d_weight_gradient(shape: &Conv2dShape, arguments: &Conv2dWeightGradient) -> Result<()>;
            fn batch_norm_statistics(input: &Tensor, statistics: &Tensor) -> Result<()>;
            fn batch_norm_workspace(shape: Shape) -> usize;
            fn batch_norm_forward(arguments: &BatchNormForward) -> Result<()>;
            fn batch_norm_backward(arguments: &BatchNormBackward) -> Result<()>;
            fn max_pool_forward(
                window: MaxPoolWindow,
                input: &Tensor,
                output: &Tensor,
                indices: Option<&Tensor>
            ) -> Result<()>;
            fn max_pool_backward(
                window: MaxPoolWindow,
                indices: &Tensor,
                output_gradient: &Tensor,
                input_gradient: &Gradient
            ) -> Result<()>;
            fn has_batch_norm_max_pool(window: MaxPoolWindow) -> bool;
            fn batch_norm_max_pool_forward(
                window: MaxPoolWindow,
                batch_norm: &BatchNormForward,
                indices: &Tensor
            ) -> Result<()>;
            fn batch_norm_max_pool_backward(
                window: MaxPoolWindow,
                batch_norm: &BatchNormBackward,
                indices: &Tensor
            ) -> Result<()>;
            fn avg_pool_forward(input: &Tensor, output: &Tensor) -> Result<()>;
            fn avg_pool_backward(output_gradient: &Tensor, input_gradient: &Gradient) -> Result<()>;
            fn linear_workspace(batch: usize, inputs: usize, outputs: usize, pass: Conv2dPass) -> usize;
            fn linear_forward(
                input: &Tensor,
                weight: &Tensor,
                bias: &Tensor,
                output: &Tensor,
                workspace: &Tensor
            ) -> Result<()>;
            fn linear_input_gradient(
                output_gradient: &Tensor,
                weight: &Tensor,
                input_gradient: &Gradient,
                workspace: &Tensor
            ) -> Result<()>;
            fn linear_weight_gradient(
                input: Option<&Tensor>,
                output_gradient: &Tensor,
                weight_gradient: Option<&Tensor>,
                bias_gradient: Option<&Tensor>,
                workspace: &Tensor
            ) -> Result<()>;
            fn cross_entropy(arguments: &CrossEntropy) -> Result<()>;
            fn accumulate(arguments: &Accumulate) -> Result<()>;
            fn gradient_norm_sums(gradients: &[usize]) -> usize;
            fn gradient_norm(gradients: &[&Tensor], sums: &Tensor, norm: &Tensor) -> Result<()>;
            fn update(arguments: &UpdateArguments) -> Result<()>;
        }
    };
}

macro_rules! define_delegate {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        /// A device that overrides some methods of another one. [`delegate_device!`] makes it a [`Device`].
        pub trait Delegate {
            /// The device to which all other calls are passed.
            fn inner(&self) -> &dyn Device;

            $(
                #[allow(missing_docs)]
                fn $name(&self, $($argument: $type),*) -> $result {
                    self.inner().$name($($argument),*)
                }
            )*
        }
    };
}
with_device_methods!(define_delegate);

macro_rules! implement_device {
    ($device:ty, $(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        const _: () = {
            use std::rc::Rc;

            use retune::device::*;
            use retune::error::Result;
            use retune::tensor::{Memory, Shape, Tensor};

            impl Device for $device {
                $(fn $name(&self, $($argument: $type),*) -> $result {
                    $crate::reference::delegate::Delegate::$name(self, $($argument),*)
                })*
            }
        };
    };
}

/// Implements [`Device`] for a [`Delegate`].
macro_rules! delegate_device {
    ($device:ty) => {
        with_device_methods!(implement_device, $device);
    };
}

/// A device whose convolutions do not reduce gradients for batch norms, so that sums have the order of separate passes.
pub struct WithoutReductions(pub Rc<dyn Device>);

delegate_device!(WithoutReductions);

impl Delegate for WithoutReductions {
    fn inner(&self) -> &dyn Device {
        self.0.as_ref()
    }

    fn reducing_workspace(&self, _shape: &Conv2dShape) -> Option<usize> {
        None
    }
}
