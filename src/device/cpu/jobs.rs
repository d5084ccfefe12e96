//! Distributes jobs to the thread pool, each with its own scratch memory.
//!
//! Each thread takes the next job when it is free. The result of a job must not depend on the thread that runs it or on
//! the contents of its scratch memory, so that it does not depend on the number of threads.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::device::threads;

/// Floats in a cache line. Scratch memory is divided into multiples of it.
pub const LINE: usize = 16;

/// Rounds up to whole cache lines.
pub fn lines(len: usize) -> usize {
    len.next_multiple_of(LINE)
}

/// Returns the part of `memory` that begins at a cache line. Up to `LINE - 1` floats are lost.
pub fn aligned(memory: &mut [f32]) -> &mut [f32] {
    let offset = memory.as_ptr().align_offset(4 * LINE).min(memory.len());
    &mut memory[offset..]
}

/// Calls `run(job, scratch)` once for every job in `0..jobs`, with `scratch_len` floats for each thread.
pub fn run(jobs: usize, scratch: &mut [f32], scratch_len: usize, run: impl Fn(usize, &mut [f32]) + Sync) {
    run_phases(1, |_| jobs, scratch, scratch_len, |_, job, scratch| run(job, scratch));
}

/// Calls `run(phase, job, scratch)` once for every job in `0..jobs(phase)` of every phase. The jobs of a phase start
/// when all jobs of the previous phase have ended.
pub fn run_phases(
    phases: usize,
    jobs: impl Fn(usize) -> usize + Sync,
    scratch: &mut [f32],
    scratch_len: usize,
    run: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let scratch_len = lines(scratch_len.max(1));
    let most = (0..phases).map(&jobs).max().unwrap_or(0);
    let workers = (scratch.len() / scratch_len).min(most.max(1));
    assert!(workers > 0, "the workspace is too small");
    let scratch = Shared(scratch.as_mut_ptr());
    let (next, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
    threads::run(workers, |worker| {
        // SAFETY: there are `workers` pieces, and no two threads have the same number.
        let scratch = unsafe { std::slice::from_raw_parts_mut(scratch.at(worker * scratch_len), scratch_len) };
        let (mut phase, mut begin) = (0, 0);
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            while phase < phases && job >= begin + jobs(phase) {
                begin += jobs(phase);
                phase += 1;
            }
            if phase == phases {
                break;
            }
            // Another thread is running each unfinished job of the previous phase, so this loop ends.
            threads::wait_until(|| ended.load(Ordering::Acquire) >= begin);
            let _ended = Ended(&ended);
            run(phase, job - begin, scratch);
        }
    });
}

/// Counts a job when it ends, even by a panic, because others wait for it.
struct Ended<'a>(&'a AtomicUsize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// Floats of scratch memory that [`run`] needs to occupy all threads.
pub fn scratch_total(scratch_len: usize) -> usize {
    lines(scratch_len.max(1)) * threads::count()
}

/// Calls `run(index, piece)` once for every piece of `len` elements of `values`; the last may be shorter.
pub fn for_each_piece<T: Send>(values: &mut [T], len: usize, run: impl Fn(usize, &mut [T]) + Sync) {
    let pieces = Pieces::new(values, len);
    for_each(pieces.count(), |index| {
        // SAFETY: each job has its own index.
        run(index, unsafe { pieces.piece(index) });
    });
}

/// Calls `run(job)` once for every job in `0..jobs`.
pub fn for_each(jobs: usize, run: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    threads::run(jobs, |_| {
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            if job >= jobs {
                break;
            }
            run(job);
        }
    });
}

/// A slice divided into pieces that jobs can write to at the same time.
pub struct Pieces<'a, T> {
    values: *mut T,
    total: usize,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out pieces that do not overlap, of values that may be sent to other threads.
unsafe impl<T: Send> Sync for Pieces<'_, T> {}

impl<'a, T> Pieces<'a, T> {
    /// Divides into pieces of `len` elements; the last may be shorter.
    pub fn new(values: &'a mut [T], len: usize) -> Self {
        Pieces { values: values.as_mut_ptr(), total: values.len(), len: len.max(1), borrowed: PhantomData }
    }

    /// The number of pieces.
    pub fn count(&self) -> usize {
        self.total.div_ceil(self.len)
    }

    /// Returns one piece.
    ///
    /// # Safety
    /// Nothing else may access the piece with this index at the same time.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn piece(&self, index: usize) -> &mut [T] {
        let begin = (index * self.len).min(self.total);
        let len = self.len.min(self.total - begin);
        // SAFETY: in range of the borrowed slice; the caller guarantees exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.values.add(begin), len) }
    }
}

/// A pointer that jobs can share. Code that writes through it must justify that no two jobs access the same float.
#[derive(Clone, Copy)]
pub struct Shared(pub *mut f32);

// SAFETY: a plain address; every use of it is unsafe and is justified there.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Returns the address `offset` floats further on.
    ///
    /// # Safety
    /// It must lie in the same allocation.
    pub unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: by the caller.
        unsafe { self.0.add(offset) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A job of a phase sees everything that the previous phase wrote.
    #[test]
    fn phases_follow_each_other() {
        for participants in 1..5 {
            threads::with(participants, || {
                const JOBS: usize = 40;
                let counts = [const { AtomicUsize::new(0) }; 30];
                let mut scratch = vec![0.0; scratch_total(1)];
                let jobs = |phase: usize| if phase % 7 == 3 { 0 } else { JOBS - phase };
                run_phases(counts.len(), jobs, &mut scratch, 1, |phase, job, _| {
                    assert!(job < jobs(phase));
                    for (earlier, count) in counts[..phase].iter().enumerate() {
                        assert_eq!(count.load(Ordering::Relaxed), jobs(earlier), "phase {earlier}");
                    }
                    counts[phase].fetch_add(1, Ordering::Relaxed);
                });
                for (phase, count) in counts.iter().enumerate() {
                    assert_eq!(count.load(Ordering::Relaxed), jobs(phase));
                }
            });
        }
    }

    #[test]
    #[should_panic(expected = "planted")]
    fn a_panic_of_a_job_ends_the_phases() {
        let mut scratch = vec![0.0; scratch_total(1)];
        run_phases(3, |_| 8, &mut scratch, 1, |phase, job, _| assert!(phase < 1 || job != 5, "planted"));
    }

    #[test]
    fn pieces_cover_the_slice() {
        let mut values = vec![0; 103];
        for_each_piece(&mut values, 10, |index, piece| piece.fill(index));
        assert!(values.iter().enumerate().all(|(index, &piece)| piece == index / 10));
        for_each_piece(&mut values[..0], 10, |_, _| unreachable!("no pieces"));
    }
}
