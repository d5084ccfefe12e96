//! Tests of the emulator: the correct kernels of `tests/faults`, and kernels with one deliberate fault each. Every
//! fault must be found under every schedule, with its cause and location.

#![cfg(feature = "emulator")]

use std::collections::HashSet;
use std::rc::Rc;

use retune::device::cuda::driver::{ArithmeticUnit, Driver, Launch, Work};
use retune::device::cuda::emulator::Emulator;
use retune::error::Result;
use retune::tensor::Memory;

const WORK: Work = Work { operations: 0, unit: ArithmeticUnit::Float32, bytes_read: 0, bytes_written: 0 };
const THREADS: usize = 64;
const BLOCKS: usize = 4;
const COUNT: usize = BLOCKS * THREADS;
const SEEDS: u64 = 6;

/// Mirrors tests/faults/faults.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct FaultArguments {
    input: u64,
    output: u64,
    counter: u64,
    count: i32,
    amount: i32,
}

fn bytes_of<T: Copy>(arguments: &T) -> &[u8] {
    // SAFETY: the structs of these tests have no padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(arguments).cast(), size_of::<T>()) }
}

fn upload(emulator: &Emulator, values: &[f32]) -> Rc<Memory> {
    let memory = emulator.allocate(values.len() * 4).expect("enough memory");
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    emulator.upload(&bytes, memory.address()).expect("uploads");
    memory
}

fn download(emulator: &Emulator, memory: &Memory) -> Result<Vec<f32>> {
    let mut bytes = vec![0; memory.bytes()];
    emulator.download(memory.address(), &mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|bytes| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect())
}

/// The memory on which a kernel of `tests/faults` works.
struct Bench {
    emulator: Emulator,
    input: Rc<Memory>,
    output: Rc<Memory>,
    counter: Rc<Memory>,
}

fn input() -> Vec<f32> {
    (0..COUNT).map(|i| (i * 37 % 101) as f32).collect()
}

impl Bench {
    fn new(emulator: Result<Emulator>) -> Self {
        let emulator = emulator.expect("starts");
        let input = upload(&emulator, &input());
        let output = upload(&emulator, &[f32::NAN; COUNT]);
        let counter = upload(&emulator, &[0.0; 8]);
        Self { emulator, input, output, counter }
    }

    /// With an output that has not been written.
    fn with_fresh_output(emulator: Result<Emulator>) -> Self {
        let bench = Self::new(emulator);
        Self { output: bench.emulator.allocate(COUNT * 4).expect("enough memory"), ..bench }
    }

    fn arguments(&self) -> FaultArguments {
        FaultArguments {
            input: self.input.address(),
            output: self.output.address(),
            counter: self.counter.address(),
            count: COUNT as i32,
            amount: 1,
        }
    }

    fn launch(&self, kernel: &'static str) -> Result<()> {
        let threads = if kernel == "collective_of_half_a_warp" { 16 } else { THREADS as u32 };
        self.launch_with(kernel, [BLOCKS as u32, 1, 1], [threads, 1, 1], shared_bytes(kernel), &self.arguments())
    }

    fn launch_with<T: Copy>(
        &self,
        kernel: &'static str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        arguments: &T,
    ) -> Result<()> {
        let arguments = bytes_of(arguments);
        self.emulator.launch(&Launch { kernel, grid, block, shared_bytes, arguments, work: WORK })
    }

    fn result(&self) -> Vec<f32> {
        download(&self.emulator, &self.output).expect("downloads")
    }
}

fn shared_bytes(kernel: &str) -> u32 {
    match kernel {
        kernel if kernel.contains("dynamic_shared") => 4 * THREADS as u32,
        kernel if kernel.starts_with("multiply") || kernel.starts_with("load_matrix") => 2 * 16 * 24,
        kernel if kernel.starts_with("copies") => 2 * 16 * THREADS as u32,
        kernel if kernel.starts_with("copy") && kernel != "copy_vectors" => 16 * THREADS as u32,
        _ => 0,
    }
}

/// A correct kernel, and element `i` of its result.
type Right = (&'static str, fn(&[f32], usize) -> f32);

/// The opposite thread in a block, after three exchanges, an odd number.
fn opposite(i: usize) -> usize {
    i / THREADS * THREADS + THREADS - 1 - i % THREADS
}

/// A sum that is computed into the first element. The others hold partial sums or stay unchanged.
fn total(input: &[f32], i: usize) -> f32 {
    if i == 0 { input.iter().sum() } else { f32::NAN }
}

fn shuffled(input: &[f32], i: usize) -> f32 {
    let (first, lane) = (i / 32 * 32, i % 32);
    let warp = &input[first..first + 32];
    let mut sum = warp.iter().sum::<f32>() - warp[lane];
    sum += warp[lane ^ 8];
    if lane < 16 {
        sum += warp[3] + warp[if lane == 0 { 15 } else { lane }];
    }
    sum += warp[lane.saturating_sub(1)];
    sum + 11.0 + 2.0 + 4.0
}

fn multiplied(input: &[f32], i: usize) -> f32 {
    let row = i % 32 / 4;
    32.0 * (input[row] + input[row + 8])
}

const RIGHT: [Right; 16] = [
    ("increment", |input, i| input[i] + 1.0),
    ("copy_vectors", |input, i| input[i]),
    ("static_shared", |input, i| input[i]),
    ("dynamic_shared", |input, i| input[i]),
    ("local_array", |input, i| input[i] + 4.0),
    ("exchange_right", |input, i| input[opposite(i)]),
    ("exchange_in_warp_right", |input, i| input[i ^ 31]),
    ("count_right", |_, _| THREADS as f32),
    ("bytes_side_by_side", |input, i| input[i]),
    ("shuffles_right", shuffled),
    ("multiply_right", multiplied),
    ("copies_right", |input, i| 4.0 * input[4 * (THREADS - 1 - i % THREADS)]),
    ("copy_once_right", |input, i| input[4 * (i % THREADS)]),
    ("sum_right", total),
    ("sum_in_two_levels", total),
    ("sum_with_one_fence_right", total),
];

fn agrees(result: &[f32], truth: fn(&[f32], usize) -> f32) -> bool {
    let input = input();
    result.iter().enumerate().all(|(i, &value)| truth(&input, i).is_nan() || truth(&input, i) == value)
}

#[test]
fn right_kernels_pass_under_every_schedule() {
    for (kernel, truth) in RIGHT {
        for seed in 0..SEEDS {
            let checked: &[fn(u64) -> Result<Emulator>] =
                if Emulator::can_check() { &[Emulator::checked, Emulator::strict] } else { &[] };
            for start in [Emulator::new as fn(u64) -> Result<Emulator>, Emulator::poisoned].iter().chain(checked) {
                let bench = Bench::new(start(seed));
                // Launches twice: the first launch must leave nothing behind that affects the second.
                for _ in 0..2 {
                    bench.launch(kernel).unwrap_or_else(|error| panic!("{kernel}, seed {seed}: {error}"));
                    assert!(agrees(&bench.result(), truth), "{kernel}, seed {seed}: {:?}", bench.result());
                }
            }
        }
    }
}

/// What happens with a fault if accesses are not checked.
enum Unchecked {
    /// The same error, or one with this text.
    Found(&'static str),
    /// Some schedules give a result that differs from that of this correct kernel.
    Wrong(&'static str),
    /// Nothing reliable.
    Unseen,
}
use Unchecked::{Found, Unseen, Wrong};

/// A kernel with one fault, the error if accesses are checked, and the effect if they are not. If the schedule
/// determines what fails first, the errors are alternatives.
const FAULTS: [(&str, &str, Unchecked); 53] = [
    // Global memory.
    ("read_past_end", "out of bounds: reads 4 bytes at offset 1024 of an allocation of 1024 bytes", Unseen),
    ("read_before_start", "out of bounds: reads 4 bytes at offset -4 of an allocation of 1024 bytes", Unseen),
    (
        "write_past_end",
        "out of bounds: writes 4 bytes at offset 1024 of an allocation of 1024 bytes",
        Found("wrote past the end of an allocation of 1024 bytes"),
    ),
    (
        "write_before_start",
        "out of bounds: writes 4 bytes at offset -4 of an allocation of 1024 bytes",
        Found("wrote before the start of an allocation of 1024 bytes"),
    ),
    ("write_far_away", "where nothing is allocated", Found("where nothing is allocated")),
    ("copy_vectors_misaligned", "misaligned: an access of type ", Unseen),
    ("atomic_misaligned", "which is not a multiple of 4", Found("which is not a multiple of 4")),
    // Shared memory.
    ("static_shared_past_end", "out of bounds: index 64 of an array of type 'float [64]'", Unseen),
    (
        "static_shared_past_end_by_pointer",
        "out of bounds: writes 4 bytes at offset 256 of only_by_pointer, 256 bytes of shared memory",
        Unseen,
    ),
    (
        "dynamic_shared_past_end",
        "out of bounds: writes 4 bytes at offset 256 of 256 bytes of dynamic shared memory",
        Found("wrote past the end of its 256 bytes of dynamic shared memory"),
    ),
    (
        "dynamic_shared_before_start",
        "out of bounds: writes 4 bytes at offset -4 of 256 bytes of dynamic shared memory",
        Unseen,
    ),
    (
        "read_unwritten_static_shared",
        "uninitialised: reads shared memory that nothing has written, offset 0 of kept (256 bytes)",
        Wrong("static_shared"),
    ),
    (
        "read_unwritten_dynamic_shared",
        "uninitialised: reads shared memory that nothing has written, offset 0 of dynamic shared memory (256 bytes)",
        Wrong("dynamic_shared"),
    ),
    // Local memory.
    ("local_array_past_end", "out of bounds: index 4 of an array of type 'float [4]'", Unseen),
    ("local_array_too_large", "local variables", Found("local variables")),
    ("local_variable_of_another_thread", "beyond its own local variables", Unseen),
    // Barriers, and races without them.
    ("no_barrier_after_writing", "race: reads|uninitialised: reads shared", Wrong("exchange_right")),
    ("no_barrier_before_overwriting", "race: ", Wrong("exchange_right")),
    ("no_syncwarp_after_writing", "race: reads|uninitialised: reads shared", Wrong("exchange_in_warp_right")),
    ("no_syncwarp_before_overwriting", "race: ", Wrong("exchange_in_warp_right")),
    ("syncwarp_instead_of_barrier", "race: reads|uninitialised: reads shared", Wrong("exchange_right")),
    ("shuffle_instead_of_syncwarp", "race: reads|uninitialised: reads shared", Unseen),
    ("count_without_atomics", "race: ", Unseen),
    ("all_write_one_place", "race: writes offset 0 of last (4 bytes)", Unseen),
    ("words_overlap", "race: writes offset", Unseen),
    ("divergent_barrier", "divergent barrier: waits at __syncthreads (barriers.cu:", Found("divergent barrier")),
    ("barrier_in_uneven_loop", "__syncthreads (barriers.cu:", Found("__syncthreads (barriers.cu:")),
    ("exit_before_barrier", "exit", Found("exit")),
    ("warp_waits_and_block_waits", "deadlock: waits forever at ", Found("deadlock: waits forever at ")),
    // Warp collectives.
    ("divergent_collective", "divergent warp collective", Found("divergent warp collective")),
    ("shuffle_in_part_of_warp", "wait for it at __shfl_xor_sync (collectives.cu:|have exited", Found("exit")),
    ("shuffle_from_outside_mask", "reads lane 16, which is outside the mask 0x0000ffff", Found("reads lane 16")),
    (
        "mask_without_own_lane",
        "which lacks its own lane|which is outside the mask 0xfffffffe",
        Found("mask 0xfffffffe"),
    ),
    ("collective_after_exit", "exit", Found("exit")),
    ("collective_of_half_a_warp", "of which the lanes 0xffff0000 do not exist", Found("do not exist")),
    ("multiply_in_part_of_warp", "wait for it at mma (bf16) (collectives.cu:|have exited", Found("exit")),
    ("multiply_at_two_places", "divergent warp collective: calls mma (bf16)", Found("divergent warp collective")),
    ("load_matrix_misaligned", "which is not a multiple of 16", Found("ldmatrix (collectives.cu:")),
    // Asynchronous copies.
    ("copies_without_wait", "the destination of a cp.async", Wrong("copies_right")),
    ("copies_with_weak_wait", "the destination of a cp.async", Wrong("copies_right")),
    ("copies_without_commit", "the destination of a cp.async", Wrong("copies_right")),
    (
        "copies_without_barrier",
        "race: |the destination of a cp.async|uninitialised: reads shared",
        Wrong("copies_right"),
    ),
    ("copies_overwrite_what_is_read", "race: writes|the destination of a cp.async", Wrong("copies_right")),
    ("copy_to_misaligned", "cp.async (copies.cu:", Found("which is not a multiple of 16")),
    ("copy_from_misaligned", "cp.async (copies.cu:", Found("which is not a multiple of 16")),
    ("copy_from_past_end", "out of bounds: reads 16 bytes", Unseen),
    ("copy_to_past_end", "out of bounds: writes 16 bytes", Unseen),
    ("copy_to_global", "cp.async to memory that is not shared", Unseen),
    // Blocks that share global memory.
    ("blocks_write_one_place", "has written with nothing that orders the two", Unseen),
    ("read_what_another_block_writes", "of another block has ", Unseen),
    ("write_what_another_block_reads", "of another block has ", Unseen),
    ("read_written_by_constant_cache", "__ldg reads offset", Unseen),
    ("trap", "__trap", Found("__trap")),
];

/// Races between blocks that count their arrivals, with one part of the pattern missing.
const UNORDERED_SUMS: [&str; 7] = [
    "sum_without_fence",
    "sum_without_barrier",
    "sum_without_acquiring_fence",
    "sum_without_atomic",
    "sum_with_one_fence_of_another",
    "sum_with_one_fence_and_no_barrier",
    "sum_with_one_fence_and_none_to_acquire",
];

fn assert_names_place(kernel: &str, message: &str) {
    for part in ["emulator: ", &format!("kernel {kernel}, block ("), ", 0, 0), thread (", ", 0, 0): "] {
        assert!(message.contains(part), "{kernel}: no {part:?} in {message:?}");
    }
}

#[test]
fn every_fault_is_found_where_accesses_are_checked() {
    let mut missed = Vec::new();
    let sums = UNORDERED_SUMS.iter().map(|&kernel| (kernel, "with nothing that orders the two"));
    for (kernel, cause) in FAULTS.iter().map(|(kernel, cause, _)| (*kernel, *cause)).chain(sums) {
        for seed in 0..SEEDS {
            for start in [Emulator::checked, Emulator::strict] {
                let bench = Bench::new(start(seed));
                let Err(error) = bench.launch(kernel) else {
                    missed.push(format!("{kernel}, seed {seed}: no fault was found"));
                    continue;
                };
                if !cause.split('|').any(|cause| error.message().contains(cause)) {
                    missed.push(format!("{kernel}, seed {seed}: {error}"));
                }
                assert_names_place(kernel, error.message());
                // The emulator continues after an error.
                bench.launch("increment").expect("a correct kernel runs after a failed one");
                let left = download(&bench.emulator, &bench.input).expect("downloads");
                assert!(bench.result().iter().zip(&left).all(|(new, old)| *new == old + 1.0), "{kernel}, seed {seed}");
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn most_faults_show_where_accesses_are_not_checked() {
    let mut missed = Vec::new();
    for (kernel, _, outcome) in &FAULTS {
        match outcome {
            Found(cause) => {
                for seed in 0..SEEDS {
                    let bench = Bench::new(Emulator::new(seed));
                    match bench.launch(kernel) {
                        Ok(()) => missed.push(format!("{kernel}, seed {seed}: no fault was found")),
                        Err(error)
                            if error.message().contains(&format!("kernel {kernel}"))
                                && error.message().contains(cause) => {}
                        Err(error) => missed.push(format!("{kernel}, seed {seed}: {error}")),
                    }
                }
            }
            Wrong(right) => {
                let truth = RIGHT.iter().find(|(name, _)| name == right).expect("a correct kernel").1;
                let shows = (0..4 * SEEDS).any(|seed| {
                    let bench = Bench::new(Emulator::new(seed));
                    bench.launch(kernel).is_err() || !agrees(&bench.result(), truth)
                });
                if !shows {
                    missed.push(format!("{kernel}: the result is right under every schedule"));
                }
            }
            Unseen => {}
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn an_unwritten_output_is_found() {
    for seed in 0..SEEDS {
        // NaN in memory that was not written...
        let bench = Bench::with_fresh_output(Emulator::poisoned(seed));
        bench.launch("leave_last_unwritten").expect("runs");
        let result = bench.result();
        assert!(result[COUNT - 1].is_nan() && !result[..COUNT - 1].iter().any(|value| value.is_nan()));
        // ...or an error when it is read.
        let bench = Bench::with_fresh_output(Emulator::strict(seed));
        bench.launch("leave_last_unwritten").expect("runs");
        let error = download(&bench.emulator, &bench.output).expect_err("the memory was not written");
        assert!(error.message().contains("nothing has written, offset 1020 of"), "{error}");
        bench.launch("increment").expect("runs");
        assert!(agrees(&bench.result(), RIGHT[0].1));

        let bench = Bench::with_fresh_output(Emulator::strict(seed));
        let error = bench.launch("add_to_unwritten").expect_err("the memory was not written");
        assert!(error.message().contains("uninitialised: reads global memory that nothing has written"), "{error}");
        assert_names_place("add_to_unwritten", error.message());
        // New memory is zero by default.
        let bench = Bench::with_fresh_output(Emulator::checked(seed));
        bench.launch("add_to_unwritten").expect("runs");
        assert_eq!(bench.result(), input());
    }
}

#[test]
fn released_and_null_memory_is_found() {
    for seed in 0..SEEDS {
        for (start, checked) in [(Emulator::new as fn(u64) -> Result<Emulator>, false), (Emulator::checked, true)] {
            let bench = Bench::new(start(seed));
            let arguments = FaultArguments { input: 0, ..bench.arguments() };
            let grid = [BLOCKS as u32, 1, 1];
            let error = bench.launch_with("increment", grid, [64, 1, 1], 0, &arguments).expect_err("null");
            assert!(error.message().contains("a null pointer"), "{error}");
            assert!(!checked || error.message().contains("reads 4 bytes at"), "{error}");
            assert_names_place("increment", error.message());

            let arguments = bench.arguments();
            let Bench { emulator, input, output, counter } = bench;
            drop(output);
            let bench = Bench { emulator, output: input.clone(), input, counter };
            let error = bench.launch_with("increment", grid, [64, 1, 1], 0, &arguments).expect_err("released");
            assert!(error.message().contains("of a released allocation of 1024 bytes"), "{error}");
            assert_names_place("increment", error.message());
        }
    }
}

#[test]
fn invalid_launches_are_refused() {
    for emulator in [Emulator::new(0), Emulator::checked(0)] {
        let bench = Bench::new(emulator);
        let arguments = bench.arguments();
        let refused = |kernel, grid, block, shared_bytes, cause: &str| {
            let error = bench.launch_with(kernel, grid, block, shared_bytes, &arguments).expect_err(cause);
            assert!(error.message().contains(cause) && error.message().contains(kernel), "{cause}: {error}");
            // A recording rejects it when it is made.
            let recorded =
                bench.emulator.record(&mut || bench.launch_with(kernel, grid, block, shared_bytes, &arguments));
            assert!(recorded.is_err_and(|error| error.message().contains(cause)), "{cause}");
        };
        refused("no_such_kernel", [1, 1, 1], [64, 1, 1], 0, "there is no kernel with this name");
        refused("increment", [1, 1, 1], [96, 1, 1], 0, "96 threads per block, but its launch bounds allow 64");
        refused("increment", [1, 1, 1], [1025, 1, 1], 0, "(1025, 1, 1) threads per block, at most 1024 are possible");
        refused("increment", [1, 1, 1], [32, 0, 1], 0, "(32, 0, 1) threads per block");
        refused("increment", [0, 1, 1], [64, 1, 1], 0, "a grid of (0, 1, 1) blocks");
        refused("increment", [1, 65536, 1], [64, 1, 1], 0, "a grid of (1, 65536, 1) blocks");
        refused(
            "increment",
            [1, 1, 1],
            [64, 1, 1],
            231_425,
            "231425 bytes of dynamic shared memory, at most 231424 are possible",
        );
        let error = bench.launch_with("increment", [1, 1, 1], [64, 1, 1], 0, &[0u64; 3]).expect_err("too few");
        assert!(error.message().contains("24 bytes of arguments, but its parameter has 32"), "{error}");
    }
}

#[test]
fn copies_stay_within_allocations() {
    for emulator in [Emulator::new(0), Emulator::strict(0)] {
        let emulator = emulator.expect("starts");
        let memory = upload(&emulator, &[1.0; 100]);
        let refused = |result: Result<()>, cause: &str| {
            let error = result.expect_err(cause);
            assert!(error.message().contains(cause), "{error}");
        };
        refused(emulator.upload(&[0; 404], memory.address()), "404 bytes at offset 0 of an allocation of 400 bytes");
        refused(emulator.upload(&[0; 4], memory.address() + 400), "4 bytes at offset 400");
        refused(emulator.download(memory.address() - 4, &mut [0; 8]), "8 bytes at offset -4");
        refused(emulator.download(0, &mut [0; 8]), "where nothing is allocated");
        let address = memory.address();
        drop(memory);
        refused(emulator.download(address, &mut [0; 8]), "of a released allocation of 400 bytes");
    }
    assert!(Emulator::new(0).expect("starts").allocate(usize::MAX / 4).is_err());
}

#[test]
fn recordings_are_replayed() {
    let bench = Bench::new(Emulator::new(3));
    let recording = bench.emulator.record(&mut || bench.launch("increment")).expect("records");
    assert!(bench.result().iter().all(|value| value.is_nan()), "a recorded launch does not run");
    recording.replay().expect("runs");
    assert!(agrees(&bench.result(), RIGHT[0].1));

    let refuses = |step: &mut dyn FnMut() -> Result<()>| {
        let error = bench.emulator.record(step).err().expect("copies and waits cannot be recorded");
        assert!(error.message().contains("while launches are recorded"), "{error}");
    };
    refuses(&mut || bench.emulator.synchronize());
    refuses(&mut || bench.emulator.upload(&[0; 4], bench.output.address()));
    refuses(&mut || bench.emulator.download(bench.output.address(), &mut [0; 4]));
    refuses(&mut || bench.emulator.time(&mut || Ok(())).map(drop));
    refuses(&mut || bench.emulator.record(&mut || Ok(())).map(drop));
    // None of the failures leaves it recording.
    bench.emulator.synchronize().expect("no recording in progress");
    // A recording keeps its machine, and finds faults as a launch does.
    let failing = bench.emulator.record(&mut || bench.launch("trap")).expect("records");
    drop(bench);
    assert!(failing.replay().is_err());
}

#[test]
fn every_planted_kernel_is_tested() {
    let mut tested: HashSet<&str> = RIGHT.iter().map(|(kernel, _)| *kernel).collect();
    tested.extend(FAULTS.iter().map(|(kernel, _, _)| *kernel));
    tested.extend(UNORDERED_SUMS);
    tested.extend(["leave_last_unwritten", "add_to_unwritten"]);
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults");
    let mut planted = 0;
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("a text");
        for declaration in text.split("extern \"C\" __global__ void __launch_bounds__(kThreads) ").skip(1) {
            let name = declaration.split('(').next().expect("a name");
            assert!(tested.contains(name), "{name} is not tested");
            planted += 1;
        }
    }
    assert_eq!(planted, tested.len());
}
