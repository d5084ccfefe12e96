//! The activation functions as types, so that each loop over elements is compiled once for each function.

/// An activation function and its derivative.
pub(super) trait Function: Copy {
    /// Returns the result.
    fn apply(self, value: f32) -> f32;

    /// Returns the gradient with respect to the argument, given that of the result. `value` is the argument or, if the
    /// plan kept the result instead, the result.
    fn backward(self, value: f32, gradient: f32) -> f32;
}

/// `Activation::None`.
#[derive(Clone, Copy)]
pub(super) struct Identity;

impl Function for Identity {
    #[inline(always)]
    fn apply(self, value: f32) -> f32 {
        value
    }

    #[inline(always)]
    fn backward(self, _value: f32, gradient: f32) -> f32 {
        gradient
    }
}

/// `Activation::Relu`.
#[derive(Clone, Copy)]
pub(super) struct Relu;

impl Function for Relu {
    #[inline(always)]
    fn apply(self, value: f32) -> f32 {
        if value < 0.0 { 0.0 } else { value }
    }

    #[inline(always)]
    fn backward(self, value: f32, gradient: f32) -> f32 {
        // A NaN passes the gradient, as in torch.
        if value <= 0.0 { 0.0 } else { gradient }
    }
}

/// Evaluates an expression in which `function` is the [`Function`] of a [`crate::device::Activation`].
macro_rules! with_function {
    ($activation:expr, |$function:ident| $body:expr) => {
        match $activation {
            $crate::device::interface::Activation::None => {
                let $function = $crate::device::cpu::activation::Identity;
                $body
            }
            $crate::device::interface::Activation::Relu => {
                let $function = $crate::device::cpu::activation::Relu;
                $body
            }
        }
    };
}
pub(super) use with_function;
