//! Vectors of floats: one trait, and an implementation for each instruction set, selected once at run time.
//!
//! Hot loops are written once, generic over [`Vector`], as `#[inline(always)]` functions. `instantiate!` turns such a
//! loop into an ordinary function: three copies, each compiled for its instruction set, and a `match` on [`Level`].

use std::sync::OnceLock;

use crate::error::{Error, Result};

/// An instruction set, from the simplest to the widest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Portable Rust on arrays of eight floats.
    Portable,
    /// AVX2 with fused multiply-add: eight lanes.
    Avx2,
    /// AVX-512F: sixteen lanes.
    Avx512,
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Level::Portable => "portable code",
            Level::Avx2 => "AVX2",
            Level::Avx512 => "AVX-512",
        })
    }
}

impl Level {
    /// The widest level that this machine supports.
    pub fn widest() -> Level {
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx512f") {
                return Level::Avx512;
            }
            if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                return Level::Avx2;
            }
        }
        Level::Portable
    }

    /// The level that the environment variable `RETUNE_CPU` selects, if it is set.
    ///
    /// # Errors
    /// If it is a name other than `portable`, `avx2` and `avx512`.
    pub fn wanted() -> Result<Option<Level>> {
        let Some(name) = std::env::var_os("RETUNE_CPU") else { return Ok(None) };
        match name.to_str() {
            Some("portable") => Ok(Some(Level::Portable)),
            Some("avx2") => Ok(Some(Level::Avx2)),
            Some("avx512") => Ok(Some(Level::Avx512)),
            _ => Err(Error::usage(format!("RETUNE_CPU={}: expected portable, avx2 or avx512", name.display()))),
        }
    }

    /// The level in use: the widest, unless [`Level::wanted`] is lower. Evaluated once; later changes of the
    /// environment have no effect.
    pub fn current() -> Level {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| Level::wanted().ok().flatten().unwrap_or(Level::Avx512).min(Level::widest()))
    }

    /// Floats in a vector.
    pub fn lanes(self) -> usize {
        match self {
            Level::Portable | Level::Avx2 => 8,
            Level::Avx512 => 16,
        }
    }
}

/// A vector of floats.
///
/// # Safety
/// Every function may be called only if the instruction set of the implementation is available, and inside a function
/// compiled for it (`instantiate!` ensures this). Pointers must be valid for `LANES` floats, or `count`.
#[allow(clippy::missing_safety_doc, reason = "one contract for all functions, above")]
pub unsafe trait Vector: Copy {
    /// Floats in the vector.
    const LANES: usize;
    /// Rows of the matrix kernel's register block; it always has two vectors of columns.
    const BLOCK_ROWS: usize;
    /// Sets all lanes to `value`.
    unsafe fn splat(value: f32) -> Self;
    /// Loads all lanes; the address needs no alignment.
    unsafe fn load(source: *const f32) -> Self;
    /// Stores all lanes; the address needs no alignment.
    unsafe fn store(self, target: *mut f32);
    /// Stores the first `count` lanes only.
    unsafe fn store_first(self, target: *mut f32, count: usize);
    /// Loads the first `count` lanes only; the others are zero.
    unsafe fn load_first(source: *const f32, count: usize) -> Self;
    /// `self + other`
    unsafe fn add(self, other: Self) -> Self;
    /// `self - other`
    unsafe fn sub(self, other: Self) -> Self;
    /// `self * other`
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once if the hardware supports it.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// Prefetches the cache line at `address` to the L1 cache.
    unsafe fn prefetch(address: *const f32);
}

/// Portable Rust, which the compiler translates for the target's baseline.
#[derive(Clone, Copy)]
pub struct Portable([f32; 8]);

// SAFETY: needs no instruction set beyond the baseline.
unsafe impl Vector for Portable {
    const LANES: usize = 8;
    const BLOCK_ROWS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; 8])
    }

    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: the caller guarantees eight floats.
        Portable(unsafe { source.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: the caller guarantees eight floats.
        unsafe { target.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn store_first(self, target: *mut f32, count: usize) {
        // SAFETY: the caller guarantees `count` floats; `min` keeps the source in range.
        unsafe { target.copy_from_nonoverlapping(self.0.as_ptr(), count.min(8)) }
    }

    #[inline(always)]
    unsafe fn load_first(source: *const f32, count: usize) -> Self {
        let mut lanes = [0.0; 8];
        // SAFETY: the caller guarantees `count` floats; `min` keeps the target in range.
        unsafe { source.copy_to_nonoverlapping(lanes.as_mut_ptr(), count.min(8)) };
        Portable(lanes)
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i] * other.0[i]))
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // `f32::mul_add` is a slow library call on targets whose baseline lacks it.
        if cfg!(target_arch = "aarch64") {
            Portable(std::array::from_fn(|i| self.0[i].mul_add(factor.0[i], addend.0[i])))
        } else {
            Portable(std::array::from_fn(|i| self.0[i] * factor.0[i] + addend.0[i]))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_address: *const f32) {}
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use std::arch::x86_64::*;

    /// Eight lanes.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256);

    /// A mask of the first `count` of eight lanes.
    #[inline(always)]
    unsafe fn mask_of_eight(count: usize) -> __m256i {
        const ONES_THEN_ZEROS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: reads eight of sixteen numbers from an offset of at most eight; the caller guarantees AVX2.
        unsafe { _mm256_loadu_si256(ONES_THEN_ZEROS.as_ptr().add(8 - count.min(8)).cast()) }
    }

    // SAFETY: all functions use only AVX2 and FMA.
    unsafe impl Vector for Avx2 {
        const LANES: usize = 8;
        const BLOCK_ROWS: usize = 6;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: AVX2 is available, by the trait's contract.
            Avx2(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(source: *const f32) -> Self {
            // SAFETY: AVX2 and eight readable floats, by the trait's contract.
            Avx2(unsafe { _mm256_loadu_ps(source) })
        }

        #[inline(always)]
        unsafe fn store(self, target: *mut f32) {
            // SAFETY: AVX2 and eight writable floats, by the trait's contract.
            unsafe { _mm256_storeu_ps(target, self.0) }
        }

        #[inline(always)]
        unsafe fn store_first(self, target: *mut f32, count: usize) {
            // SAFETY: AVX2 and `count` writable floats, by the trait's contract.
            unsafe { _mm256_maskstore_ps(target, mask_of_eight(count), self.0) }
        }

        #[inline(always)]
        unsafe fn load_first(source: *const f32, count: usize) -> Self {
            // SAFETY: AVX2 and `count` readable floats, by the trait's contract.
            Avx2(unsafe { _mm256_maskload_ps(source, mask_of_eight(count)) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: AVX2 is available, by the trait's contract.
            Avx2(unsafe { _mm256_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: AVX2 is available, by the trait's contract.
            Avx2(unsafe { _mm256_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: AVX2 is available, by the trait's contract.
            Avx2(unsafe { _mm256_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
            // SAFETY: FMA is available, by the trait's contract.
            Avx2(unsafe { _mm256_fmadd_ps(self.0, factor.0, addend.0) })
        }

        #[inline(always)]
        unsafe fn prefetch(address: *const f32) {
            // SAFETY: a prefetch accesses no memory that is visible to the program, and never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }
    }

    /// Sixteen lanes.
    #[derive(Clone, Copy)]
    pub struct Avx512(__m512);

    /// A mask of the first `count` of sixteen lanes.
    #[inline(always)]
    fn mask_of_sixteen(count: usize) -> __mmask16 {
        ((1u32 << count.min(16)) - 1) as __mmask16
    }

    // SAFETY: all functions use only AVX-512F.
    unsafe impl Vector for Avx512 {
        const LANES: usize = 16;
        const BLOCK_ROWS: usize = 14;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: AVX-512F is available, by the trait's contract.
            Avx512(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn load(source: *const f32) -> Self {
            // SAFETY: AVX-512F and sixteen readable floats, by the trait's contract.
            Avx512(unsafe { _mm512_loadu_ps(source) })
        }

        #[inline(always)]
        unsafe fn store(self, target: *mut f32) {
            // SAFETY: AVX-512F and sixteen writable floats, by the trait's contract.
            unsafe { _mm512_storeu_ps(target, self.0) }
        }

        #[inline(always)]
        unsafe fn store_first(self, target: *mut f32, count: usize) {
            // SAFETY: AVX-512F and `count` writable floats, by the trait's contract.
            unsafe { _mm512_mask_storeu_ps(target, mask_of_sixteen(count), self.0) }
        }

        #[inline(always)]
        unsafe fn load_first(source: *const f32, count: usize) -> Self {
            // SAFETY: AVX-512F and `count` readable floats, by the trait's contract.
            Avx512(unsafe { _mm512_maskz_loadu_ps(mask_of_sixteen(count), source) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: AVX-512F is available, by the trait's contract.
            Avx512(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: AVX-512F is available, by the trait's contract.
            Avx512(unsafe { _mm512_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: AVX-512F is available, by the trait's contract.
            Avx512(unsafe { _mm512_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
            // SAFETY: AVX-512F is available, by the trait's contract.
            Avx512(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
        }

        #[inline(always)]
        unsafe fn prefetch(address: *const f32) {
            // SAFETY: a prefetch accesses no memory that is visible to the program, and never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }
    }
}

/// Makes `unsafe fn name(level, arguments)` from a generic `#[inline(always)] unsafe fn body<V: Vector>(arguments)`.
///
/// The new function is as safe as `body` itself; `level` must be one that this machine supports.
macro_rules! instantiate {
    ($(#[$attribute:meta])* $visibility:vis unsafe fn $name:ident = $body:ident ( $($argument:ident: $type:ty),* $(,)? )) => {
        $(#[$attribute])*
        $visibility unsafe fn $name(level: $crate::device::cpu::simd::Level, $($argument: $type),*) {
            use $crate::device::cpu::simd;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            unsafe fn avx512($($argument: $type),*) {
                // SAFETY: compiled for this instruction set; the caller guarantees the rest.
                unsafe { $body::<simd::Avx512>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($argument: $type),*) {
                // SAFETY: compiled for this instruction set; the caller guarantees the rest.
                unsafe { $body::<simd::Avx2>($($argument),*) }
            }
            // SAFETY: a level exists only if the machine supports it; the caller guarantees the rest.
            unsafe {
                match level {
                    #[cfg(target_arch = "x86_64")]
                    simd::Level::Avx512 => avx512($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    simd::Level::Avx2 => avx2($($argument),*),
                    _ => $body::<simd::Portable>($($argument),*),
                }
            }
        }
    };
}
pub(crate) use instantiate;
