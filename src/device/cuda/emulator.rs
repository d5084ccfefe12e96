//! The driver that runs `kernels/*.cu` on the CPU: each CUDA thread is a fiber of a machine in C++
//! (`kernels/emulator`).
//!
//! For tests. Its results are those of the kernels; its faults name kernel, block, thread and cause.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::driver::{Capabilities, Driver, Launch};
use crate::device::interface::Recording;
use crate::device::threads;
use crate::error::{Error, Result};
use crate::tensor::Memory;

/// Mirrors the declaration in `kernels/emulator/interface.cpp`.
#[repr(C)]
struct LaunchDescription {
    kernel: *const c_char,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    host_threads: u32,
    arguments: *const c_void,
    argument_bytes: usize,
}

/// A machine in C++.
#[repr(C)]
struct Machine {
    opaque: [u8; 0],
}

// SAFETY: the functions of kernels/emulator/interface.cpp, with the same types.
unsafe extern "C" {
    fn retune_emulator_supported() -> bool;
    fn retune_emulator_can_check() -> bool;
    fn retune_emulator_create(seed: u64, poisoned: bool, checked: bool) -> *mut Machine;
    fn retune_emulator_destroy(machine: *mut Machine);
    fn retune_emulator_allocate(machine: *mut Machine, bytes: usize) -> u64;
    fn retune_emulator_release(machine: *mut Machine, address: u64);
    fn retune_emulator_upload(
        machine: *mut Machine,
        source: *const c_void,
        target: u64,
        bytes: usize,
        message: *mut c_char,
        capacity: usize,
    ) -> bool;
    fn retune_emulator_download(
        machine: *mut Machine,
        source: u64,
        target: *mut c_void,
        bytes: usize,
        message: *mut c_char,
        capacity: usize,
    ) -> bool;
    fn retune_emulator_check(description: *const LaunchDescription, message: *mut c_char, capacity: usize) -> bool;
    fn retune_emulator_launch(
        machine: *mut Machine,
        description: *const LaunchDescription,
        message: *mut c_char,
        capacity: usize,
        place: *mut u64,
    ) -> bool;
}

/// A machine, for as long as its memory or a recording is in use.
struct Handle(*mut Machine);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `retune_emulator_create`, destroyed once, and every user of it holds the handle.
        unsafe { retune_emulator_destroy(self.0) };
    }
}

struct Allocation {
    machine: Rc<Handle>,
    address: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: the machine lives, and the address is one of its allocations, released once.
        unsafe { retune_emulator_release(self.machine.0, self.address) };
    }
}

/// A launch that owns its arguments.
struct OwnedLaunch {
    kernel: &'static str,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    arguments: Vec<u8>,
}

struct LaunchList {
    machine: Rc<Handle>,
    launches: Vec<OwnedLaunch>,
}

impl Recording for LaunchList {
    fn replay(&self) -> Result<()> {
        self.launches.iter().try_for_each(|launch| run(&self.machine, launch))
    }
}

/// Runs the kernels on the CPU.
///
/// A seed selects the schedule: 0 runs threads and blocks in order, every other number in a different order. A correct
/// kernel gives the same bits for every seed.
pub struct Emulator {
    machine: Rc<Handle>,
    recorded: RefCell<Option<Vec<OwnedLaunch>>>,
}

impl Emulator {
    /// The fastest mode: blocks are distributed over the threads of [`threads`]. With the environment variable
    /// `RETUNE_EMULATOR_CHECKED` set to 1 it is like [`Self::checked`].
    ///
    /// # Errors
    /// When this processor lacks instructions that the emulator was compiled for.
    pub fn new(seed: u64) -> Result<Self> {
        Self::create(seed, false, checked_by_environment())
    }

    /// Like [`Self::new`], but fresh memory is full of NaN (and with `RETUNE_EMULATOR_CHECKED` like [`Self::strict`]), to
    /// test that nothing relies on zeroed memory.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn poisoned(seed: u64) -> Result<Self> {
        Self::create(seed, true, checked_by_environment())
    }

    /// Checks every load and store: that it lies within one allocation, shared array or the thread's own variables,
    /// is aligned, does not race with another thread, and reads neither unwritten shared memory nor the destination of a
    /// copy in progress. About ten times slower.
    ///
    /// # Errors
    /// When this build cannot, see [`Self::can_check`].
    pub fn checked(seed: u64) -> Result<Self> {
        Self::create(seed, false, true)
    }

    /// Like [`Self::checked`], and neither a kernel nor a copy may read fresh memory before it is written.
    /// Fresh memory is full of NaN.
    ///
    /// # Errors
    /// As for [`Self::checked`].
    pub fn strict(seed: u64) -> Result<Self> {
        Self::create(seed, true, true)
    }

    /// Whether [`Self::checked`] and [`Self::strict`] are possible. They are not if the kernels were compiled with a
    /// sanitizer instead, or the program has lost its symbol table.
    pub fn can_check() -> bool {
        // SAFETY: no arguments, no state.
        unsafe { retune_emulator_can_check() }
    }

    fn create(seed: u64, poisoned: bool, checked: bool) -> Result<Self> {
        // SAFETY: no arguments, no state.
        if !unsafe { retune_emulator_supported() } {
            return Err(Error::new("the emulator was compiled for processors with AVX2 and FMA, which this one lacks"));
        }
        if checked && !Self::can_check() {
            return Err(Error::new(
                "this emulator cannot check accesses: it was built with RETUNE_EMULATOR_FLAGS that \
                                   instrument them otherwise, or the program was stripped of its symbols",
            ));
        }
        // SAFETY: a fresh machine, which the handle owns.
        let machine = Rc::new(Handle(unsafe { retune_emulator_create(seed, poisoned, checked) }));
        Ok(Self { machine, recorded: RefCell::default() })
    }

    fn refuse_in_recording(&self, what: &str) -> Result<()> {
        match *self.recorded.borrow() {
            Some(_) => Err(Error::new(format!("{what} while launches are recorded"))),
            None => Ok(()),
        }
    }
}

fn checked_by_environment() -> bool {
    std::env::var_os("RETUNE_EMULATOR_CHECKED").is_some_and(|value| value == "1")
}

/// Calls a function of the machine that writes a message if it fails.
fn call(function: impl FnOnce(*mut c_char, usize) -> bool) -> Result<()> {
    let mut message = [0u8; 1024];
    if function(message.as_mut_ptr().cast(), message.len()) {
        return Ok(());
    }
    let text = CStr::from_bytes_until_nul(&message).map_or("unknown failure".into(), CStr::to_string_lossy);
    Err(Error::new(format!("emulator: {text}")))
}

/// Calls `function` with the C++ view of a launch.
fn describe(launch: &OwnedLaunch, function: impl FnOnce(&LaunchDescription) -> Result<()>) -> Result<()> {
    let kernel =
        CString::new(launch.kernel).map_err(|_| Error::new("the name of a kernel must not contain a zero byte"))?;
    function(&LaunchDescription {
        kernel: kernel.as_ptr(),
        grid: launch.grid,
        block: launch.block,
        shared_bytes: launch.shared_bytes,
        host_threads: u32::try_from(threads::count()).unwrap_or(u32::MAX),
        arguments: launch.arguments.as_ptr().cast(),
        argument_bytes: launch.arguments.len(),
    })
}

fn run(machine: &Handle, launch: &OwnedLaunch) -> Result<()> {
    describe(launch, |description| {
        let mut place = 0;
        let result = call(|message, capacity| {
            // SAFETY: the machine lives; the description and all that it points to live until the call returns. Kernels
            // write to the machine's own memory, of which Rust holds no reference.
            unsafe { retune_emulator_launch(machine.0, description, message, capacity, &mut place) }
        });
        match (result, std::env::current_exe()) {
            (Err(error), Ok(program)) if place != 0 => {
                let program = program.display();
                Err(error.hint(format!("run `addr2line -ipfCe {program} {place:#x}` to find the line of the access")))
            }
            (result, _) => result,
        }
    })
}

impl Driver for Emulator {
    fn name(&self) -> String {
        "emulator".into()
    }

    fn description(&self) -> String {
        "the CUDA kernels on the CPU, for tests".into()
    }

    fn capabilities(&self) -> Capabilities {
        // Few multiprocessors, so that a small problem is split as a large one is on hardware.
        Capabilities { compute_capability: 90, multiprocessors: 4, shared_bytes_per_block: 232_448 - 1024 }
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }

    fn allocate(&self, bytes: usize) -> Result<Rc<Memory>> {
        // SAFETY: the machine lives.
        let address = unsafe { retune_emulator_allocate(self.machine.0, bytes) };
        if address == 0 {
            return Err(Error::new(format!(
                "cannot allocate {:.1} GiB of memory for the emulator",
                bytes as f64 / (1u64 << 30) as f64
            ))
            .hint("use smaller batches or smaller images"));
        }
        Ok(Rc::new(Memory::new(address, bytes, Box::new(Allocation { machine: self.machine.clone(), address }))))
    }

    fn upload(&self, source: &[u8], address: u64) -> Result<()> {
        self.refuse_in_recording("a copy to the device")?;
        call(|message, capacity| {
            // SAFETY: the machine lives and checks the target; the source has that many bytes.
            unsafe {
                let source_address = source.as_ptr().cast();
                retune_emulator_upload(self.machine.0, source_address, address, source.len(), message, capacity)
            }
        })
    }

    fn download(&self, address: u64, target: &mut [u8]) -> Result<()> {
        self.refuse_in_recording("a copy from the device")?;
        call(|message, capacity| {
            // SAFETY: the machine lives and checks the source; the target has that many bytes.
            unsafe {
                let target_address = target.as_mut_ptr().cast();
                retune_emulator_download(self.machine.0, address, target_address, target.len(), message, capacity)
            }
        })
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let launch = OwnedLaunch {
            kernel: launch.kernel,
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            arguments: launch.arguments.to_vec(),
        };
        if let Some(recorded) = &mut *self.recorded.borrow_mut() {
            describe(&launch, |description| {
                // SAFETY: the description and all that it points to live until the call returns.
                call(|message, capacity| unsafe { retune_emulator_check(description, message, capacity) })
            })?;
            recorded.push(launch);
            return Ok(());
        }
        run(&self.machine, &launch)
    }

    fn synchronize(&self) -> Result<()> {
        self.refuse_in_recording("a wait for the device")
    }

    fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Rc<dyn Recording>> {
        self.refuse_in_recording("a second recording")?;
        *self.recorded.borrow_mut() = Some(Vec::new());
        let result = step();
        let launches = self.recorded.borrow_mut().take().unwrap_or_default();
        result?;
        Ok(Rc::new(LaunchList { machine: self.machine.clone(), launches }))
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        self.refuse_in_recording("a measurement")?;
        let start = Instant::now();
        work()?;
        Ok(start.elapsed())
    }
}
