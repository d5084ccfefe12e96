//! The activation functions that a batch norm can apply.

/// A function of each element. A device implements a new one in one place: `device/cpu/activation.rs`,
/// `kernels/activation.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Activation {
    /// The identity.
    None = 0,
    /// `torch.nn.functional.relu`: negative values become zero, NaN stays.
    Relu = 1,
}
