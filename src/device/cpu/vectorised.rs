//! Lets the compiler vectorise plain loops for the instruction set of the machine.

/// Compiles each function once for every instruction set and selects one at run time.
///
/// The loops are plain Rust: the compiler forms no fused multiply-adds and keeps the order of sums, so every copy gives
/// the same bits.
macro_rules! vectorised {
    ($($(#[$attribute:meta])* fn $name:ident ( $($argument:ident: $type:ty),* $(,)? ) $body:block)*) => {$(
        $(#[$attribute])*
        #[allow(unsafe_code, clippy::too_many_arguments)]
        fn $name($($argument: $type),*) {
            #[inline(always)]
            fn plain($($argument: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2")]
            fn avx512($($argument: $type),*) {
                plain($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2($($argument: $type),*) {
                plain($($argument),*)
            }

            match $crate::device::cpu::simd::Level::current() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level is only reported if the machine supports these instruction sets.
                $crate::device::cpu::simd::Level::Avx512 => unsafe { avx512($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::device::cpu::simd::Level::Avx2 => unsafe { avx2($($argument),*) },
                _ => plain($($argument),*),
            }
        }
    )*};
}
pub(crate) use vectorised;
