//! Handing out jobs to the threads of the current rayon pool, each with a piece of scratch memory.

use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Floats in a cache line. Scratch memory is cut in multiples of it.
pub const LINE: usize = 16;

/// Rounds up to whole cache lines.
pub fn lines(len: usize) -> usize {
    len.next_multiple_of(LINE)
}

/// The part of `memory` that begins at a cache line. Loses up to `LINE - 1` floats.
pub fn aligned(memory: &mut [f32]) -> &mut [f32] {
    let offset = memory.as_ptr().align_offset(4 * LINE).min(memory.len());
    &mut memory[offset..]
}

/// Calls `run(job, scratch)` once for every job in `0..jobs`. Each thread takes the next job when it is free and
/// works in `scratch_len` floats of its own, so a job's result must not depend on what is in them.
pub fn run(jobs: usize, scratch: &mut [f32], scratch_len: usize, run: impl Fn(usize, &mut [f32]) + Sync) {
    let scratch_len = lines(scratch_len.max(1));
    let workers = (scratch.len() / scratch_len).min(rayon::current_num_threads()).min(jobs.max(1));
    assert!(workers > 0, "the workspace is too small");
    let next = AtomicUsize::new(0);
    scratch[..workers * scratch_len].par_chunks_exact_mut(scratch_len).with_max_len(1).for_each(|scratch| {
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            if job >= jobs {
                break;
            }
            run(job, scratch);
        }
    });
}

/// Floats of scratch memory that [`run`] needs to occupy all threads.
pub fn scratch_total(scratch_len: usize) -> usize {
    lines(scratch_len.max(1)) * rayon::current_num_threads()
}

/// A pointer that jobs may share. Whoever writes through it says why no two jobs touch the same float.
#[derive(Clone, Copy)]
pub struct Shared(pub *mut f32);

// SAFETY: a plain address; every use of it is unsafe and is justified where it happens.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The address `offset` floats further on.
    ///
    /// # Safety
    /// It must lie in the same allocation.
    pub unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: by the caller.
        unsafe { self.0.add(offset) }
    }
}
