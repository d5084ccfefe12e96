//! The NVIDIA driver behind [`Driver`]. cudarc loads libcuda when it is first used, so the same program runs on
//! machines without one.
//!
//! Only cudarc's thin layer is used: its safe one tracks events, which a captured graph does not allow, and would be a
//! second owner of memory.

mod failures;
mod gpu;
pub mod tensor_map;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ffi::{CString, c_void};
use std::rc::Rc;
use std::time::Duration;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::driver::{Capabilities, Driver, Launch};
use super::modules::{CODES, CUDA_VERSION, Module};
use crate::device::interface::Recording;
use crate::error::{Error, Result};
use crate::tensor::Memory;
pub use failures::no_device;
use failures::{
    Build, CUDA_13_DRIVER, describe, failure, initialisation_failure, is_fault, kernel_fault, load_failure,
    no_such_device, split_version,
};
pub use gpu::Gpu;
use gpu::SYNC_VARIABLE;

/// The functions that this file calls, directly or through cudarc. cudarc panics if one is missing, so they are looked up first.
const SYMBOLS: [&str; 36] = [
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
];
const STREAM_SYMBOLS: [&str; 3] = ["cuStreamCreate", "cuStreamDestroy_v2", "cuStreamSynchronize"];

/// Shared memory, static and dynamic together, that a kernel gets without asking.
const SHARED_BYTES_UNASKED: u32 = 48 << 10;

/// Pinned buffers that uploads go through, in turn: those of two steps, each with images and targets.
const STAGING_BUFFERS: usize = 4;
/// A larger upload waits, so that not as much memory is pinned.
const STAGING_BYTES: usize = 256 << 20;

/// Kernels whose names are kept until they are known to have run.
const REMEMBERED_LAUNCHES: usize = 1024;

/// Whether libcuda can be loaded.
pub fn is_driver_present() -> bool {
    // SAFETY: loads the library, whose initialisers are NVIDIA's own.
    unsafe { sys::is_culib_present() }
}

/// The GPUs of this machine, in the driver's order; empty if it finds none.
///
/// # Errors
/// When there is no driver library, or it does not work.
pub fn gpus() -> Result<Vec<Gpu>> {
    if !is_driver_present() {
        return Err(Error::new("there is no NVIDIA driver library (libcuda.so.1)").hint(
            "install NVIDIA's driver; in a container, start it with the GPU passed through (docker run --gpus all)",
        ));
    }
    let missing = SYMBOLS.iter().chain(&STREAM_SYMBOLS).find(|symbol| {
        // SAFETY: the symbol is only looked up, never called as this type.
        unsafe { sys::culib().get::<unsafe extern "C" fn()>(symbol.as_bytes()) }.is_err()
    });
    if let Some(symbol) = missing {
        return Err(Error::new(format!("the NVIDIA driver is too old: it has no {symbol}"))
            .hint(format!("update NVIDIA's driver to {CUDA_13_DRIVER} or later")));
    }
    match result::init() {
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(Vec::new()),
        answer => answer.map_err(|DriverError(code)| initialisation_failure(code, &describe(code)))?,
    }
    let mut version = 0;
    // SAFETY: the pointer is to a local.
    let known = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    known.map_err(|error| failure("cannot query the driver's version", error))?;
    let driver = split_version(version);
    let count = result::device::get_count().map_err(|error| failure("cannot count the GPUs", error))?;
    (0..count).map(|index| describe_gpu(index, driver)).collect()
}

fn describe_gpu(index: i32, driver: (u32, u32)) -> Result<Gpu> {
    let ask = || -> Result<Gpu, DriverError> {
        let device = result::device::get(index)?;
        // SAFETY: `device` comes from `get`.
        let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
        let number = |name| attribute(name).map(|value| u32::try_from(value).unwrap_or(0));
        let compute_capability = number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? * 10
            + number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let capabilities = Capabilities {
            compute_capability,
            multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes_per_block: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        };
        Ok(Gpu {
            index: index as usize,
            name: result::device::get_name(device)?,
            compute_capability,
            // SAFETY: `device` comes from `get`.
            bytes: unsafe { result::device::total_mem(device) }?,
            driver,
            capabilities,
        })
    };
    ask().map_err(|error| failure(&format!("cannot query cuda:{index}"), error))
}

/// The GPU with this number.
pub fn gpu(index: usize) -> Result<Gpu> {
    let all = gpus()?;
    let found = all.iter().find(|gpu| gpu.index == index).cloned();
    found.ok_or_else(|| no_such_device(index, &all))
}

/// The primary context of a GPU, the one stream, and the loaded kernels. Allocations and recordings keep it alive.
struct Context {
    name: String,
    device: sys::CUdevice,
    handle: sys::CUcontext,
    stream: sys::CUstream,
    modules: Vec<sys::CUmodule>,
    waits_for_each: bool,
    /// Kernels that are not known to have ended well, the oldest first.
    launched: RefCell<VecDeque<&'static str>>,
    /// Kernels of the step that is being recorded.
    recording: RefCell<Option<Vec<&'static str>>>,
}

impl Context {
    /// Retains the context and creates the stream; releases them if that fails halfway.
    fn new(gpu: &Gpu) -> Result<Self> {
        let name = format!("cuda:{}", gpu.index);
        let failed = |error| failure(&format!("cannot use {name} ({})", gpu.name), error);
        let device = result::device::get(gpu.index as i32).map_err(failed)?;
        // SAFETY: `device` comes from `get`.
        let handle = unsafe { result::primary_ctx::retain(device) }.map_err(failed)?;
        let mut context = Self {
            name: name.clone(),
            device,
            handle,
            stream: std::ptr::null_mut(),
            modules: Vec::new(),
            waits_for_each: std::env::var_os(SYNC_VARIABLE).is_some_and(|value| value != "0" && !value.is_empty()),
            launched: RefCell::default(),
            recording: RefCell::default(),
        };
        context.enter()?;
        let kind = result::stream::StreamKind::NonBlocking;
        context.stream = result::stream::create(kind).map_err(failed)?;
        Ok(context)
    }

    /// Makes the context the current one of this thread, to which all calls to the driver refer.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained as long as `self` lives.
        self.check("cannot use the GPU", unsafe { result::ctx::set_current(self.handle) })
    }

    /// Turns the driver's answer into an error; the error for a fault names kernels, whichever call reports it.
    fn check<T>(&self, doing: &str, answer: Result<T, DriverError>) -> Result<T> {
        answer.map_err(|DriverError(code)| {
            if is_fault(code) {
                let launched: Vec<&str> = self.launched.borrow().iter().copied().collect();
                return kernel_fault(&self.name, &describe(code), &launched);
            }
            Error::new(format!("{}: {doing}: {}", self.name, describe(code)))
        })
    }

    fn remember(&self, kernel: &'static str) {
        let mut launched = self.launched.borrow_mut();
        if launched.len() == REMEMBERED_LAUNCHES {
            launched.pop_front();
        }
        launched.push_back(kernel);
    }

    fn synchronize(&self, doing: &str) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        self.check(doing, unsafe { result::stream::synchronize(self.stream) })?;
        self.launched.borrow_mut().clear();
        Ok(())
    }

    fn free_bytes(&self) -> Option<usize> {
        result::mem_get_info().ok().map(|(free, _)| free)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // An error here was reported before, or the process releases the resource.
        let _ = self.enter();
        // SAFETY: nothing else uses the stream, the modules or the context: allocations and recordings keep `self`.
        unsafe {
            if !self.stream.is_null() {
                let _ = result::stream::synchronize(self.stream);
            }
            for &module in &self.modules {
                let _ = result::module::unload(module);
            }
            if !self.stream.is_null() {
                let _ = result::stream::destroy(self.stream);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// Device memory.
struct Allocation {
    address: sys::CUdeviceptr,
    context: Rc<Context>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // An error here was reported before, and the process releases the memory.
        let _ = self.context.enter();
        // SAFETY: the address comes from `malloc_sync`; the stream, on which all its users were launched, has come to
        // rest.
        unsafe {
            let _ = result::stream::synchronize(self.context.stream);
            let _ = result::free_sync(self.address);
        }
    }
}

/// A point in the stream.
struct StreamEvent {
    handle: sys::CUevent,
    context: Rc<Context>,
}

impl StreamEvent {
    fn new(context: &Rc<Context>, flags: sys::CUevent_flags) -> Result<Self> {
        let handle = context.check("cannot create an event", result::event::create(flags))?;
        Ok(Self { handle, context: context.clone() })
    }

    fn record(&self) -> Result<()> {
        // SAFETY: event and stream are alive and of one context.
        let answer = unsafe { result::event::record(self.handle, self.context.stream) };
        self.context.check("cannot record an event", answer)
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive.
        self.context.check("a launch failed", unsafe { result::event::synchronize(self.handle) })
    }
}

impl Drop for StreamEvent {
    fn drop(&mut self) {
        let _ = self.context.enter();
        // SAFETY: the event is not used afterwards.
        let _ = unsafe { result::event::destroy(self.handle) };
    }
}

/// Pinned host memory, from which the GPU copies asynchronously.
struct Staging {
    pointer: *mut u8,
    bytes: usize,
    /// Signals that the last copy from it is complete.
    copied: StreamEvent,
}

impl Staging {
    /// `None` if the machine has no memory to pin.
    fn new(context: &Rc<Context>, bytes: usize) -> Result<Option<Self>> {
        let copied = StreamEvent::new(context, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        // SAFETY: no flags: plain memory, which `drop` frees.
        match unsafe { result::malloc_host(bytes, 0) } {
            Ok(pointer) => Ok(Some(Self { pointer: pointer.cast(), bytes, copied })),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(error) => context.check("cannot pin memory", Err(error)),
        }
    }

    fn upload(&self, source: &[u8], address: u64) -> Result<()> {
        self.copied.wait()?;
        let context = &self.copied.context;
        // SAFETY: `source` is at most as long as the buffer, which no copy reads any more. The caller guarantees the
        // target.
        let answer = unsafe {
            std::ptr::copy_nonoverlapping(source.as_ptr(), self.pointer, source.len());
            let staged = std::slice::from_raw_parts(self.pointer, source.len());
            result::memcpy_htod_async(address, staged, context.stream)
        };
        context.check("cannot copy to the GPU", answer)?;
        self.copied.record()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = self.copied.context.enter();
        let _ = self.copied.wait();
        // SAFETY: the pointer comes from `malloc_host`, and the last copy from it is done.
        let _ = unsafe { result::free_host(self.pointer.cast()) };
    }
}

/// A kernel.
struct Function {
    handle: sys::CUfunction,
    /// Maximum dynamic shared memory of a launch.
    shared_bytes: Cell<u32>,
}

/// One NVIDIA GPU.
pub struct Nvidia {
    gpu: Gpu,
    functions: HashMap<&'static str, Function>,
    staging: RefCell<[Option<Staging>; STAGING_BUFFERS]>,
    next_staging: Cell<usize>,
    context: Rc<Context>,
}

impl Nvidia {
    /// Opens a GPU and loads these kernels, which are [`MODULES`](super::modules::MODULES) unless a test has others.
    ///
    /// # Errors
    /// When there is no such GPU, or the driver cannot run the kernels.
    pub fn open(index: usize, modules: &'static [Module]) -> Result<Self> {
        let gpu = gpu(index)?;
        let mut context = Context::new(&gpu)?;
        let mut functions = HashMap::new();
        let refused = |DriverError(code), source| {
            load_failure(code, &describe(code), source, &gpu, &Build { cuda: CUDA_VERSION, codes: CODES })
        };
        for module in modules {
            // SAFETY: the image is a whole fatbin, made by nvcc, and lives as long as the program.
            let loaded = unsafe { result::module::load_data(module.image.as_ptr().cast()) };
            let handle = loaded.map_err(|error| refused(error, module.source))?;
            context.modules.push(handle);
            for &kernel in module.kernels {
                let doing = format!("cannot find the kernel {kernel} of {}", module.source);
                let name = CString::new(kernel).map_err(|_| Error::new(doing.clone()))?;
                // SAFETY: the module stays loaded as long as the context.
                let found = unsafe { result::module::get_function(handle, name) };
                let handle = context.check(&doing, found)?;
                // The driver loads code when it is first used, which must not happen while a launch is being recorded.
                let static_bytes = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
                // SAFETY: the function was found just now.
                let known = unsafe { result::function::get_function_attribute(handle, static_bytes) };
                let static_bytes = known.map_err(|error| refused(error, module.source))?;
                let unasked = SHARED_BYTES_UNASKED.saturating_sub(u32::try_from(static_bytes).unwrap_or(0));
                functions.insert(kernel, Function { handle, shared_bytes: Cell::new(unasked) });
            }
        }
        Ok(Self { gpu, functions, staging: RefCell::default(), next_staging: Cell::new(0), context: Rc::new(context) })
    }

    fn require_no_recording(&self, what: &str) -> Result<()> {
        match self.context.recording.borrow().is_some() {
            true => Err(Error::new(format!("{}: {what} while a step is being recorded", self.context.name))),
            false => Ok(()),
        }
    }
}

impl Driver for Nvidia {
    fn name(&self) -> String {
        self.context.name.clone()
    }

    fn description(&self) -> String {
        self.gpu.description()
    }

    fn capabilities(&self) -> Capabilities {
        self.gpu.capabilities
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        self.context.enter()?;
        Ok(self.context.free_bytes())
    }

    fn allocate(&self, bytes: usize) -> Result<Rc<Memory>> {
        self.require_no_recording("cannot allocate memory")?;
        self.context.enter()?;
        // SAFETY: fresh memory; it is set before anyone sees it.
        let address = match unsafe { result::malloc_sync(bytes.max(1)) } {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                return Err(Error::out_of_memory(&self.context.name, bytes, self.context.free_bytes()));
            }
            answer => self.context.check(&format!("cannot allocate {bytes} bytes"), answer)?,
        };
        let allocation = Allocation { address, context: self.context.clone() };
        // SAFETY: the range was allocated just now.
        let cleared = unsafe { result::memset_d8_async(address, 0, bytes.max(1), self.context.stream) };
        self.context.check("cannot clear memory", cleared)?;
        Ok(Rc::new(Memory::new(address, bytes, Box::new(allocation))))
    }

    fn upload(&self, source: &[u8], address: u64) -> Result<()> {
        self.require_no_recording("cannot copy to the GPU")?;
        if source.is_empty() {
            return Ok(());
        }
        self.context.enter()?;
        if source.len() <= STAGING_BYTES {
            let turn = self.next_staging.get();
            self.next_staging.set((turn + 1) % STAGING_BUFFERS);
            let buffer = &mut self.staging.borrow_mut()[turn];
            if buffer.as_ref().is_none_or(|buffer| buffer.bytes < source.len()) {
                *buffer = None;
                *buffer = Staging::new(&self.context, source.len().next_power_of_two())?;
            }
            if let Some(buffer) = buffer {
                return buffer.upload(source, address);
            }
        }
        // SAFETY: `source` stays until the stream has come to rest. The caller answers for the target.
        let answer = unsafe { result::memcpy_htod_async(address, source, self.context.stream) };
        self.context.check("cannot copy to the GPU", answer)?;
        self.context.synchronize("cannot copy to the GPU")
    }

    fn download(&self, address: u64, target: &mut [u8]) -> Result<()> {
        self.require_no_recording("cannot copy from the GPU")?;
        if target.is_empty() {
            return Ok(());
        }
        self.context.enter()?;
        // SAFETY: `target` stays until the stream has come to rest. The caller answers for the source.
        let answer = unsafe { result::memcpy_dtoh_async(target, address, self.context.stream) };
        self.context.check("cannot copy from the GPU", answer)?;
        self.context.synchronize("cannot copy from the GPU")
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let Launch { kernel, grid, block, shared_bytes, arguments, .. } = launch;
        let context = &self.context;
        let unknown = || Error::new(format!("{}: this build has no kernel {kernel}", context.name));
        let function = self.functions.get(kernel).ok_or_else(unknown)?;
        context.enter()?;
        if *shared_bytes > function.shared_bytes.get() {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function's module is loaded as long as the context.
            let answer =
                unsafe { result::function::set_function_attribute(function.handle, attribute, *shared_bytes as i32) };
            context.check(
                &format!("{kernel}: the GPU does not have {shared_bytes} bytes of shared memory for a block"),
                answer,
            )?;
            function.shared_bytes.set(*shared_bytes);
        }
        let mut length = arguments.len();
        let mut parameters: [*mut c_void; 5] = [
            std::ptr::without_provenance_mut(sys::CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT as usize),
            arguments.as_ptr().cast_mut().cast(),
            std::ptr::without_provenance_mut(sys::CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT as usize),
            (&raw mut length).cast(),
            std::ptr::without_provenance_mut(sys::CU_LAUNCH_PARAM_END_AS_INT as usize),
        ];
        // SAFETY: the driver copies the parameters before it returns. That grid, shared memory and pointers are what
        // the kernel expects is the contract of launch code, which the emulator checks.
        let answer = unsafe {
            sys::cuLaunchKernel(
                function.handle,
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                block[2],
                *shared_bytes,
                context.stream,
                std::ptr::null_mut(),
                parameters.as_mut_ptr(),
            )
        };
        context.check(
            &format!("cannot launch {kernel} (grid {grid:?}, block {block:?}, {shared_bytes} bytes of shared memory)"),
            answer.result(),
        )?;
        if let Some(recorded) = context.recording.borrow_mut().as_mut() {
            recorded.push(kernel);
            return Ok(());
        }
        context.remember(kernel);
        if context.waits_for_each {
            context.synchronize(kernel)?;
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        self.require_no_recording("cannot wait")?;
        self.context.enter()?;
        self.context.synchronize("a launch failed")
    }

    fn can_record(&self) -> bool {
        !self.context.waits_for_each
    }

    fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Rc<dyn Recording>> {
        let context = &self.context;
        self.require_no_recording("cannot start another recording")?;
        context.enter()?;
        let doing = "cannot record a step";
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and not the default one, and no capture is under way.
        context.check(doing, unsafe { result::stream::begin_capture(context.stream, mode) })?;
        context.recording.replace(Some(Vec::new()));
        let issued = step();
        let kernels = context.recording.take().unwrap_or_default();
        // SAFETY: a capture was begun on this stream. It is ended even if the step failed.
        let captured = unsafe { result::stream::end_capture(context.stream) };
        if let (Err(error), Ok(graph)) = (&issued, &captured) {
            if !graph.is_null() {
                // SAFETY: the graph came from the capture and nothing else uses it.
                let _ = unsafe { result::graph::destroy(*graph) };
            }
            return Err(error.clone());
        }
        issued?;
        let graph = context.check(doing, captured)?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the graph came from the capture; it is not needed once it is instantiated.
        let (instantiated, _) = unsafe { (result::graph::instantiate(graph, flags), result::graph::destroy(graph)) };
        let graph = context.check(doing, instantiated)?;
        Ok(Rc::new(RecordedStep { graph, kernels, context: context.clone() }))
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        self.require_no_recording("cannot measure time")?;
        let context = &self.context;
        context.enter()?;
        let event = || StreamEvent::new(context, sys::CUevent_flags::CU_EVENT_DEFAULT);
        let (start, end) = (event()?, event()?);
        start.record()?;
        work()?;
        end.record()?;
        context.synchronize("a launch failed")?;
        let mut milliseconds = 0.0;
        // SAFETY: both events were recorded with timing, and the stream has passed them.
        let answer = unsafe { sys::cuEventElapsedTime(&mut milliseconds, start.handle, end.handle) }.result();
        context.check("cannot measure", answer)?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds).max(0.0) / 1e3))
    }
}

/// A CUDA graph.
struct RecordedStep {
    graph: sys::CUgraphExec,
    kernels: Vec<&'static str>,
    context: Rc<Context>,
}

impl Recording for RecordedStep {
    fn replay(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: graph and stream are alive; the memory that its launches name is kept by the owner of the recording.
        let answer = unsafe { result::graph::launch(self.graph, self.context.stream) };
        self.context.check("cannot launch a recorded step", answer)?;
        self.kernels.iter().for_each(|kernel| self.context.remember(kernel));
        Ok(())
    }
}

impl Drop for RecordedStep {
    fn drop(&mut self) {
        // An error here was reported before.
        let _ = self.context.enter();
        // SAFETY: the graph is not used after this; the driver lets a launch that is under way end.
        let _ = unsafe { result::graph::exec_destroy(self.graph) };
    }
}
