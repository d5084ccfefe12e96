//! Kernel parameters: plain structs that a kernel's source declares as well.
//!
//! The build reads every `kernel_arguments!` and has the C++ compilers assert that the struct of the same name in
//! `kernels/` has the same fields, of the same types, at the same offsets (`build/arguments.rs`).

/// A struct that a kernel takes by value, or a part of one.
///
/// # Safety
/// The type must be `repr(C)` without padding, so that all its bytes are initialised.
pub(super) unsafe trait KernelArguments: Copy {
    /// Its bytes.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: by the trait's contract every byte is initialised; the slice borrows from `self`.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

/// Declares a kernel's parameter struct, or a part of one, and proves at compile time that it has no padding. Fields are
/// `u64` (addresses and counts), `u32`, `i32`, `f32`, enums of `repr(i32)`, or other such structs.
macro_rules! kernel_arguments {
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident { $($(#[$field_attribute:meta])* $field:ident: $type:ty,)+ }) => {
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy)]
        $visibility struct $name { $($(#[$field_attribute])* $field: $type,)+ }

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())+, "a kernel's arguments have no padding");

        // SAFETY: `repr(C)`, of numbers, enums of a fixed size and structs of those, and as large as its fields together.
        unsafe impl crate::device::cuda::arguments::KernelArguments for $name {}
    };
}
pub(super) use kernel_arguments;
