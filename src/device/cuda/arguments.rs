//! Kernel parameters: plain structs that a `.cu` file declares once more.

/// A struct that a kernel takes by value, field for field as its `.cu` file declares it.
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

/// Declares a kernel's parameter struct and proves at compile time that it has no padding.
macro_rules! kernel_arguments {
    ($(#[$attribute:meta])* struct $name:ident { $($(#[$field_attribute:meta])* $field:ident: $type:ty,)+ }) => {
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy)]
        struct $name { $($(#[$field_attribute])* $field: $type,)+ }

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())+, "a kernel's arguments have no padding");

        // SAFETY: `repr(C)`, of numbers and enums of a fixed size, and as large as its fields together.
        unsafe impl crate::device::cuda::arguments::KernelArguments for $name {}
    };
}
pub(super) use kernel_arguments;
