//! The thread pool of the host, which stays awake between one kernel and the next.
//!
//! A training step consists of several hundred parallel pieces of work, most of them shorter than a millisecond, and waking a
//! sleeping thread takes 20 to 90 microseconds. So a thread of the pool looks for its next piece of work for
//! `AWAKE` before it sleeps. The caller takes part itself, and does not wait for threads that are late: a thread that
//! has not begun when the work runs out is not needed.
//!
//! How many threads take part must not change a result; see [`super::cpu`] for how work is divided.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// How long a thread looks for work before it sleeps.
const AWAKE: Duration = Duration::from_micros(300);

/// More threads than any machine has, and the maximum that [`Board::state`] can count.
const MOST: usize = u16::MAX as usize;

static DEFAULT: OnceLock<usize> = OnceLock::new();

thread_local! {
    /// The number that [`with`] requests; 0 outside of it.
    static WANTED: Cell<usize> = const { Cell::new(0) };
}

/// The number of threads that take part in the work of the calling thread: as many as the machine runs at once, unless [`set`]
/// or [`with`] sets another number.
pub fn count() -> usize {
    match WANTED.get() {
        0 => *DEFAULT.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from).min(MOST)),
        wanted => wanted,
    }
}

/// Fixes the number of threads for the whole process.
///
/// # Errors
/// If it is already fixed, at another number.
pub fn set(threads: usize) -> Result<()> {
    let threads = threads.clamp(1, MOST);
    match *DEFAULT.get_or_init(|| threads) {
        fixed if fixed == threads => Ok(()),
        fixed => Err(Error::new(format!("cannot use {threads} threads: {fixed} are already in use"))),
    }
}

/// Calls `function`, whose work uses this many threads.
pub fn with<R>(threads: usize, function: impl FnOnce() -> R) -> R {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            WANTED.set(self.0);
        }
    }
    let _restore = Restore(WANTED.replace(threads.clamp(1, MOST)));
    function()
}

/// The place where work is offered to the thread pool.
struct Board {
    /// `generation << 32 | room << 16 | entered`: the number of the offer, how many threads may still begin, how many have begun.
    state: AtomicU64,
    /// The number of those that have ended.
    left: AtomicUsize,
    work: UnsafeCell<Option<Work>>,
    /// The first panic of a member.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// The number of started threads. Held by the thread that offers work.
    owner: Mutex<usize>,
    /// Held by a thread that is about to sleep or to wake others.
    rest: Mutex<()>,
    /// The number of threads that sleep, or are about to.
    sleeping: AtomicUsize,
    wake: Condvar,
}

#[derive(Clone, Copy)]
struct Work(*const (dyn Fn(usize) + Sync));

// SAFETY: `work` is written by the owner alone while nobody is inside, and read by members only after they have
// entered, which the owner waits for; the function that it points to may be called from any thread. The rest is
// atomics and locks.
unsafe impl Sync for Board {}

static BOARD: Board = Board {
    state: AtomicU64::new(0),
    left: AtomicUsize::new(0),
    work: UnsafeCell::new(None),
    panic: Mutex::new(None),
    owner: Mutex::new(0),
    rest: Mutex::new(()),
    sleeping: AtomicUsize::new(0),
    wake: Condvar::new(),
};

const ENTERED: u64 = 0xFFFF;
const ROOM: u64 = 0xFFFF << 16;
const ONE_ENTERS: u64 = (1 << 16) - 1;
const GENERATION: u64 = 1 << 32;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `function(index)` on up to `participants` threads, the caller's among them, with indices below
/// `participants`, all different. Some may never be called: the others must then do their work, for example by taking jobs from a
/// counter. While the pool is busy with another caller's work, the caller works alone.
pub fn run(participants: usize, function: impl Fn(usize) + Sync) {
    let members = participants.min(count()).saturating_sub(1);
    let mut started = match BOARD.owner.try_lock() {
        Ok(started) if members > 0 => started,
        // A caller may have panicked while it held the lock; it has withdrawn its offer nevertheless.
        Err(TryLockError::Poisoned(started)) if members > 0 => started.into_inner(),
        _ => return function(0),
    };
    while *started < members {
        let name = format!("compute-{}", *started + 1);
        if std::thread::Builder::new().name(name).spawn(|| BOARD.serve()).is_err() {
            break;
        }
        *started += 1;
    }
    let function: &(dyn Fn(usize) + Sync) = &function;
    // SAFETY: only the lifetime changes; `Offer` ensures that nobody calls the function after this call.
    let function: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(function) };
    let offer = Offer::new(function, members as u64);
    function(0);
    drop(offer);
    let panic = lock(&BOARD.panic).take();
    drop(started);
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

/// Calls `work` with every item, on as many threads as take part. The items are handed out in order.
pub fn for_each<T>(items: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
    let items = Mutex::new(items);
    run(count(), |_| {
        loop {
            let item = lock(&items).next();
            match item {
                Some(item) => work(item),
                None => break,
            }
        }
    });
}

/// Work on the board. Dropping it waits until all who have begun have ended, also when the caller's own part panics.
struct Offer;

impl Offer {
    fn new(work: &'static (dyn Fn(usize) + Sync), room: u64) -> Offer {
        // SAFETY: the last offer is closed and all have left it, so nobody else looks at `work`.
        unsafe { *BOARD.work.get() = Some(Work(work)) };
        lock(&BOARD.panic).take();
        BOARD.left.store(0, Ordering::Relaxed);
        let generation = (BOARD.state.load(Ordering::Relaxed) / GENERATION).wrapping_add(1);
        // Sequentially consistent with `sleeping`: either the sleeper sees this offer or it is seen here.
        BOARD.state.store((generation << 32) | (room << 16), Ordering::SeqCst);
        if BOARD.sleeping.load(Ordering::SeqCst) > 0 {
            drop(lock(&BOARD.rest));
            BOARD.wake.notify_all();
        }
        Offer
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        let entered = (BOARD.state.fetch_and(!ROOM, Ordering::AcqRel) & ENTERED) as usize;
        wait_until(|| BOARD.left.load(Ordering::Acquire) == entered);
    }
}

impl Board {
    /// The loop of a pool thread.
    fn serve(&self) {
        let mut seen = 0;
        loop {
            let state = self.next_offer(seen);
            seen = state / GENERATION;
            let Some(index) = self.enter(state) else { continue };
            // SAFETY: entered, so the owner waits for `left` before it takes the work away.
            let work = unsafe { &*(*self.work.get()).expect("an open offer has work").0 };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(index))) {
                lock(&self.panic).get_or_insert(panic);
            }
            self.left.fetch_add(1, Ordering::Release);
        }
    }

    /// Waits for an offer other than `seen` that has room.
    fn next_offer(&self, seen: u64) -> u64 {
        let open = |order| {
            let state = self.state.load(order);
            (state / GENERATION != seen && state & ROOM != 0).then_some(state)
        };
        let mut found = None;
        let begin = Instant::now();
        let awake = || begin.elapsed() < AWAKE;
        wait_until(|| {
            found = open(Ordering::Acquire);
            found.is_some() || !awake()
        });
        if let Some(state) = found {
            return state;
        }
        let mut rest = lock(&self.rest);
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        let state = loop {
            match open(Ordering::SeqCst) {
                Some(state) => break state,
                None => rest = self.wake.wait(rest).unwrap_or_else(PoisonError::into_inner),
            }
        };
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
        state
    }

    /// Takes a place in the offer that `state` is of; `None` if it is full, closed or replaced.
    fn enter(&self, mut state: u64) -> Option<usize> {
        let generation = state / GENERATION;
        while state / GENERATION == generation && state & ROOM != 0 {
            match self.state.compare_exchange_weak(state, state - ONE_ENTERS, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some((state & ENTERED) as usize + 1),
                Err(now) => state = now,
            }
        }
        None
    }
}

/// Waits, without sleeping, for another thread.
pub fn wait_until(mut done: impl FnMut() -> bool) {
    loop {
        for _ in 0..16 {
            for _ in 0..8 {
                if done() {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        // The other thread may need this processor.
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Miri is ten thousand times slower, and tries other orders of the threads itself.
    const FEWER: usize = if cfg!(miri) { 100 } else { 1 };

    /// Every number once, however many take part, and from several callers at once.
    #[test]
    fn all_work_is_done() {
        std::thread::scope(|scope| {
            for caller in 0..3 {
                scope.spawn(move || {
                    for round in 0..2000 / FEWER {
                        let threads = 1 + (round + caller) % 4;
                        let jobs = round % 7;
                        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
                        with(threads, || {
                            run(threads, |index| {
                                assert!(index < threads);
                                loop {
                                    let job = next.fetch_add(1, Ordering::Relaxed);
                                    if job >= jobs {
                                        break;
                                    }
                                    done.fetch_add(job + 1, Ordering::Relaxed);
                                }
                            });
                        });
                        assert_eq!(done.into_inner(), jobs * (jobs + 1) / 2);
                    }
                });
            }
        });
    }

    #[test]
    fn indices_differ() {
        with(4, || {
            let taken = [const { AtomicUsize::new(0) }; 4];
            for _ in 0..200 / FEWER {
                run(4, |index| {
                    let before = taken[index].fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(20));
                    assert_eq!(taken[index].fetch_sub(1, Ordering::Relaxed), before + 1);
                    assert_eq!(before, 0);
                });
            }
        });
    }

    #[test]
    fn members_wake_after_sleep() {
        with(2, || {
            for _ in 0..5 {
                std::thread::sleep(AWAKE * 10);
                let both = AtomicUsize::new(0);
                let begin = Instant::now();
                // The caller waits for the other, if the other has the thread pool first.
                run(2, |_| {
                    both.fetch_add(1, Ordering::Relaxed);
                    wait_until(|| both.load(Ordering::Relaxed) == 2 || begin.elapsed() > Duration::from_millis(200));
                });
                assert!(both.into_inner() >= 1);
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        for _ in 0..50_usize.div_ceil(FEWER) {
            let result = catch_unwind(|| {
                with(2, || {
                    run(2, |index| {
                        std::thread::sleep(Duration::from_micros(200));
                        assert_eq!(index, 2, "planted");
                    });
                });
            });
            assert!(result.is_err());
        }
        all_work_is_done();
    }

    #[test]
    fn nested_work_is_done_by_the_caller() {
        let sum = AtomicUsize::new(0);
        with(3, || {
            run(3, |_| {
                run(3, |inner| {
                    sum.fetch_add(1 + 100 * inner, Ordering::Relaxed);
                });
            });
        });
        assert!((1..=3).contains(&sum.into_inner()));
    }

    #[test]
    fn a_number_is_fixed_once() {
        let fixed = count();
        assert!(set(fixed).is_ok());
        assert!(set(fixed + 1).is_err());
        assert_eq!(with(5, count), 5);
        assert_eq!(count(), fixed);
    }
}
