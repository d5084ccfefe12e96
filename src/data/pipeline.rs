//! An ordered, bounded, parallel pipeline.
//!
//! Workers take single items in the requested order, so that all of them work on the same group; the worker that
//! finishes the last item of a group assembles it. One consumer receives the groups in order. How far the workers may run
//! ahead of it is bounded in groups and in bytes. The contents of a group never depend on the workers.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Context, Error, Result};

/// The work of a [`Pipeline`].
pub(super) trait Job: Send + Sync + 'static {
    /// State that a worker keeps from item to item, such as buffers.
    type Scratch;
    /// The result for one item.
    type Item: Send;
    /// The type of what the consumer receives.
    type Group: Send;

    fn scratch(&self) -> Self::Scratch;

    /// Items in a group, at least one; the last group may have fewer.
    fn group_size(&self) -> usize;

    /// How many groups may be in the pipeline at once, at least one.
    fn groups_ahead(&self) -> usize;

    /// No item is prepared while those in the pipeline have at least this many bytes, unless the consumer waits for it.
    fn bytes_ahead(&self) -> usize {
        usize::MAX
    }

    /// Bytes that an item counts towards [`Job::bytes_ahead`].
    fn bytes(_item: &Self::Item) -> usize {
        0
    }

    /// Prepares the item with this index.
    fn prepare(&self, scratch: &mut Self::Scratch, index: usize) -> Result<Self::Item>;

    /// Assembles a group from its items, whose indices are `indices`.
    fn assemble(&self, indices: &[usize], items: Vec<Result<Self::Item>>) -> Result<Self::Group>;

    /// The error that the consumer receives if a worker panicked on this item.
    fn panicked(&self, index: usize) -> Error;
}

/// Worker threads, and the groups they make. Dropping it stops and joins them.
pub(super) struct Pipeline<J: Job> {
    shared: Arc<Shared<J>>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared<J: Job> {
    job: J,
    order: Vec<usize>,
    state: Mutex<State<J>>,
    /// Signals that a group is complete, or that the pipeline failed.
    ready: Condvar,
    /// Signals that more items may be prepared, or that the pipeline stopped.
    room: Condvar,
}

struct State<J: Job> {
    /// The next position in the order that a worker will take.
    next_position: usize,
    /// The number of the group that the consumer receives next.
    next_group: usize,
    /// Groups in the pipeline; the first is number `next_group`.
    assemblies: VecDeque<Assembly<J>>,
    /// Bytes of their items.
    bytes: usize,
    failure: Option<Error>,
    stopped: bool,
}

struct Assembly<J: Job> {
    items: Vec<Option<Result<J::Item>>>,
    missing: usize,
    bytes: usize,
    group: Option<Result<J::Group>>,
}

/// Locks a mutex, poisoned or not: a worker that panics leaves the state consistent and reports itself.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<J: Job> Pipeline<J> {
    /// Starts workers on the items of `order`, from group number `first_group` on.
    pub(super) fn start(job: J, order: Vec<usize>, first_group: usize, workers: usize) -> Self {
        let state = State {
            next_position: first_group.saturating_mul(job.group_size()).min(order.len()),
            next_group: first_group,
            assemblies: VecDeque::new(),
            bytes: 0,
            failure: None,
            stopped: false,
        };
        let threads = workers.clamp(1, (order.len() - state.next_position).max(1));
        let (ready, room) = (Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { job, order, state: Mutex::new(state), ready, room });
        let mut workers = Vec::with_capacity(threads);
        for number in 0..threads {
            let shared_of_worker = Arc::clone(&shared);
            let spawned = std::thread::Builder::new()
                .name(format!("data worker {number}"))
                .spawn(move || shared_of_worker.work())
                .context(|| "cannot start a data worker");
            match spawned {
                Ok(worker) => workers.push(worker),
                // Fewer workers give the same groups.
                Err(error) if workers.is_empty() => lock(&shared.state).failure = Some(error),
                Err(_) => break,
            }
        }
        Self { shared, workers }
    }
}

impl<J: Job> Iterator for Pipeline<J> {
    type Item = Result<J::Group>;

    /// The next group. Blocks until it is complete. `None` after the last group and after an error.
    fn next(&mut self) -> Option<Result<J::Group>> {
        let groups = self.shared.order.len().div_ceil(self.shared.job.group_size());
        let mut state = lock(&self.shared.state);
        if state.stopped || state.next_group >= groups {
            return None;
        }
        loop {
            if state.assemblies.front().is_some_and(|assembly| assembly.group.is_some()) {
                let assembly = state.assemblies.pop_front()?;
                state.next_group += 1;
                state.bytes -= assembly.bytes;
                state.stopped = matches!(assembly.group, Some(Err(_)));
                self.shared.room.notify_all();
                return assembly.group;
            }
            if let Some(error) = state.failure.take() {
                state.stopped = true;
                self.shared.room.notify_all();
                return Some(Err(error));
            }
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<J: Job> Drop for Pipeline<J> {
    fn drop(&mut self) {
        lock(&self.shared.state).stopped = true;
        self.shared.room.notify_all();
        for worker in self.workers.drain(..) {
            // A panic was reported when it happened.
            let _ = worker.join();
        }
    }
}

/// Turns a panic of its worker into an error for the consumer, which would otherwise wait forever.
struct PanicReporter<'a, J: Job> {
    shared: &'a Shared<J>,
    index: usize,
}

impl<J: Job> Drop for PanicReporter<'_, J> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = self.shared.job.panicked(self.index);
            lock(&self.shared.state).failure.get_or_insert(error);
            self.shared.ready.notify_all();
        }
    }
}

impl<J: Job> Shared<J> {
    /// The loop of a worker.
    fn work(&self) {
        let mut scratch = self.job.scratch();
        let size = self.job.group_size();
        while let Some(position) = self.claim() {
            let index = self.order[position];
            let _reporter = PanicReporter { shared: self, index };
            let item = self.job.prepare(&mut scratch, index);
            if let Some(items) = self.deliver(position, item) {
                let number = position / size;
                let start = number * size;
                let group = self.job.assemble(&self.order[start..start + items.len()], items);
                self.complete(number, group);
            }
        }
    }

    /// The next position in the order, once the consumer is near enough to it; `None` at the end.
    fn claim(&self) -> Option<usize> {
        let size = self.job.group_size();
        let mut state = lock(&self.state);
        loop {
            let position = state.next_position;
            if state.stopped || state.failure.is_some() || position >= self.order.len() {
                return None;
            }
            let ahead = position / size - state.next_group;
            // The group that the consumer waits for is never delayed.
            if ahead == 0 || ahead < self.job.groups_ahead() && state.bytes < self.job.bytes_ahead() {
                if ahead == state.assemblies.len() {
                    let missing = size.min(self.order.len() - position);
                    let items = (0..missing).map(|_| None).collect();
                    state.assemblies.push_back(Assembly { items, missing, bytes: 0, group: None });
                }
                state.next_position += 1;
                return Some(position);
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts an item into its group, and returns all items of the group if this was the last one.
    fn deliver(&self, position: usize, item: Result<J::Item>) -> Option<Vec<Result<J::Item>>> {
        let size = self.job.group_size();
        let bytes = item.as_ref().map_or(0, J::bytes);
        let mut state = lock(&self.state);
        let ahead = position / size - state.next_group;
        let assembly = state.assemblies.get_mut(ahead)?;
        assembly.items[position % size] = Some(item);
        assembly.missing -= 1;
        assembly.bytes += bytes;
        let items = (assembly.missing == 0).then(|| std::mem::take(&mut assembly.items));
        state.bytes += bytes;
        drop(state);
        items.map(|items| items.into_iter().flatten().collect())
    }

    fn complete(&self, number: usize, group: Result<J::Group>) {
        let mut state = lock(&self.state);
        let ahead = number - state.next_group;
        if let Some(assembly) = state.assemblies.get_mut(ahead) {
            assembly.group = Some(group);
        }
        self.ready.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    /// Squares numbers; an item has ten bytes.
    #[derive(Default)]
    struct Squares {
        groups_ahead: usize,
        bytes_ahead: Option<usize>,
        panics_on: Option<usize>,
        fails_on: Option<usize>,
        prepared: Arc<AtomicUsize>,
    }

    impl Job for Squares {
        type Scratch = Vec<usize>;
        type Item = usize;
        type Group = (Vec<usize>, Vec<Option<usize>>);

        fn scratch(&self) -> Vec<usize> {
            Vec::new()
        }

        fn group_size(&self) -> usize {
            3
        }

        fn groups_ahead(&self) -> usize {
            self.groups_ahead.max(1)
        }

        fn bytes_ahead(&self) -> usize {
            self.bytes_ahead.unwrap_or(usize::MAX)
        }

        fn bytes(_: &usize) -> usize {
            10
        }

        fn prepare(&self, seen: &mut Vec<usize>, index: usize) -> Result<usize> {
            assert_ne!(Some(index), self.panics_on, "on purpose");
            seen.push(index);
            // Later items are often ready before earlier ones.
            std::thread::sleep(Duration::from_micros(if index.is_multiple_of(2) { 300 } else { 0 }));
            self.prepared.fetch_add(1, Ordering::Relaxed);
            if index.is_multiple_of(5) { Err(Error::new("no multiples of five")) } else { Ok(index * index) }
        }

        fn assemble(&self, indices: &[usize], items: Vec<Result<usize>>) -> Result<Self::Group> {
            match self.fails_on.filter(|index| indices.contains(index)) {
                Some(index) => Err(Error::new(format!("the group of {index} failed"))),
                None => Ok((indices.to_vec(), items.into_iter().map(Result::ok).collect())),
            }
        }

        fn panicked(&self, index: usize) -> Error {
            Error::new(format!("panicked on {index}"))
        }
    }

    fn order() -> Vec<usize> {
        (0..20).map(|n| n * 7 % 20).collect()
    }

    /// Waits until the number of prepared items has not changed for a while.
    fn settled(prepared: &AtomicUsize) -> usize {
        let mut before = usize::MAX;
        loop {
            let now = prepared.load(Ordering::Relaxed);
            if now == before {
                return now;
            }
            before = now;
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[test]
    fn groups_come_in_order_for_any_number_of_workers() {
        for workers in [0, 1, 2, 7, 100] {
            for (groups_ahead, bytes_ahead) in [(1, None), (4, None), (4, Some(0)), (4, Some(25))] {
                for first_group in [0, 2, 6] {
                    let job = Squares { groups_ahead, bytes_ahead, ..Squares::default() };
                    let groups: Result<Vec<_>> = Pipeline::start(job, order(), first_group, workers).collect();
                    let expected: Vec<_> = order()[first_group * 3..]
                        .chunks(3)
                        .map(|indices| {
                            let square = |&index: &usize| (!index.is_multiple_of(5)).then_some(index * index);
                            (indices.to_vec(), indices.iter().map(square).collect::<Vec<_>>())
                        })
                        .collect();
                    assert_eq!(groups.unwrap(), expected, "{workers} workers from group {first_group}");
                }
            }
        }
    }

    #[test]
    fn an_empty_order_and_a_late_start_have_no_groups() {
        for (order, first_group) in [(Vec::new(), 0), (order(), 7), (order(), usize::MAX)] {
            assert!(Pipeline::start(Squares::default(), order, first_group, 2).next().is_none());
        }
    }

    #[test]
    fn workers_run_ahead_by_groups_and_bytes_only() {
        // Two groups may be in the pipeline; or one, and three items more until their 60 bytes are too many.
        for (groups_ahead, bytes_ahead, first, then) in [(2, None, 6, 9), (1, None, 3, 6), (5, Some(60), 6, 9)] {
            let prepared = Arc::new(AtomicUsize::new(0));
            let job = Squares { groups_ahead, bytes_ahead, prepared: prepared.clone(), ..Squares::default() };
            // No multiple of five, which would have no bytes.
            let order = (0..40).filter(|index: &usize| !index.is_multiple_of(5)).collect();
            let mut pipeline = Pipeline::start(job, order, 0, 1);
            assert_eq!(settled(&prepared), first);
            pipeline.next().unwrap().unwrap();
            assert_eq!(settled(&prepared), then);
            drop(pipeline);
            assert_eq!(prepared.load(Ordering::Relaxed), then, "dropping it stops the workers");
        }
    }

    #[test]
    fn a_panic_of_a_worker_is_an_error() {
        for workers in [1, 4] {
            let job = Squares { groups_ahead: 2, panics_on: Some(7), ..Squares::default() };
            let mut pipeline = Pipeline::start(job, (0..20).collect(), 0, workers);
            // Groups that were complete before the panic may still come.
            let error = pipeline.find_map(Result::err).expect("an error");
            assert_eq!(error.message(), "panicked on 7");
            assert!(pipeline.next().is_none());
        }
    }

    #[test]
    fn a_group_that_fails_is_the_last() {
        for workers in [1, 4] {
            let job = Squares { groups_ahead: 3, fails_on: Some(7), ..Squares::default() };
            let groups: Vec<_> = Pipeline::start(job, (0..20).collect(), 0, workers).collect();
            assert_eq!(groups.len(), 3);
            assert_eq!(groups[2].as_ref().unwrap_err().message(), "the group of 7 failed");
        }
    }
}
