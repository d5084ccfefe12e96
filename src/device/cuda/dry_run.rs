//! Drivers that keep their launches: one that runs nothing, for planning without a GPU, and one that times each launch.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::driver::{Capabilities, Driver, Launch, Work};
use super::gpus::GpuModel;
use crate::device::interface::Recording;
use crate::error::{Error, Result};
use crate::tensor::Memory;

/// A launch that owns its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedLaunch {
    /// The `extern "C"` name of the `__global__` function.
    pub kernel: &'static str,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
    /// The bytes of the kernel's parameter.
    pub arguments: Vec<u8>,
    /// For the roofline.
    pub work: Work,
    /// Its duration, if it was measured.
    pub duration: Option<Duration>,
}

impl RecordedLaunch {
    fn new(launch: &Launch, duration: Option<Duration>) -> Self {
        let Launch { kernel, grid, block, shared_bytes, arguments, work } = *launch;
        Self { kernel, grid, block, shared_bytes, arguments: arguments.to_vec(), work, duration }
    }
}

/// The launches of a driver; clones share them.
#[derive(Debug, Clone, Default)]
pub struct LaunchLog {
    launches: Rc<RefCell<Vec<RecordedLaunch>>>,
}

impl LaunchLog {
    /// Removes and returns the launches since the last call.
    pub fn take(&self) -> Vec<RecordedLaunch> {
        self.launches.take()
    }

    fn push(&self, launch: RecordedLaunch) {
        self.launches.borrow_mut().push(launch);
    }
}

/// Addresses start here, so that none is null.
const FIRST_ADDRESS: u64 = 1 << 40;
const ALIGNMENT: u64 = 256;

/// A driver without a device: allocations are ranges of addresses without memory, uploads are discarded, downloads
/// give zeros, and launches are kept.
pub struct DryRun {
    model: &'static GpuModel,
    log: LaunchLog,
    next_address: Cell<u64>,
}

impl DryRun {
    /// Behaves like this GPU.
    pub fn new(model: &'static GpuModel) -> Self {
        Self { model, log: LaunchLog::default(), next_address: Cell::new(FIRST_ADDRESS) }
    }

    /// The launches that it keeps.
    pub fn log(&self) -> LaunchLog {
        self.log.clone()
    }

    /// Bytes of all allocations so far; none is ever released.
    pub fn allocated_bytes(&self) -> u64 {
        self.next_address.get() - FIRST_ADDRESS
    }
}

struct RecordedLaunches {
    log: LaunchLog,
    launches: Vec<RecordedLaunch>,
}

impl Recording for RecordedLaunches {
    fn replay(&self) -> Result<()> {
        self.launches.iter().for_each(|launch| self.log.push(launch.clone()));
        Ok(())
    }
}

impl Driver for Rc<DryRun> {
    fn name(&self) -> String {
        format!("dry run for {}", self.model.name)
    }

    fn description(&self) -> String {
        self.model.description.into()
    }

    fn capabilities(&self) -> Capabilities {
        self.model.capabilities
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }

    fn allocate(&self, bytes: usize) -> Result<Rc<Memory>> {
        let address = self.next_address.get();
        self.next_address.set(address + (bytes as u64).next_multiple_of(ALIGNMENT));
        Ok(Rc::new(Memory::new(address, bytes, Box::new(()))))
    }

    fn upload(&self, _source: &[u8], _address: u64) -> Result<()> {
        Ok(())
    }

    fn download(&self, _address: u64, target: &mut [u8]) -> Result<()> {
        target.fill(0);
        Ok(())
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        self.log.push(RecordedLaunch::new(launch, None));
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn record(&self, step: &mut dyn FnMut() -> Result<()>) -> Result<Rc<dyn Recording>> {
        let before = self.log.take();
        let result = step();
        let launches = self.log.launches.replace(before);
        result?;
        Ok(Rc::new(RecordedLaunches { log: self.log(), launches }))
    }

    fn time(&self, _work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        Err(Error::new(format!("{}: a dry run cannot measure time", self.name())))
    }
}

/// Times each launch separately on another driver, and keeps the launches.
pub struct Stopwatch {
    driver: Box<dyn Driver>,
    log: LaunchLog,
}

impl Stopwatch {
    /// Launches on this driver.
    pub fn new(driver: Box<dyn Driver>) -> Self {
        Self { driver, log: LaunchLog::default() }
    }

    /// The launches that it keeps, with durations.
    pub fn log(&self) -> LaunchLog {
        self.log.clone()
    }
}

impl Driver for Stopwatch {
    fn name(&self) -> String {
        self.driver.name()
    }

    fn description(&self) -> String {
        self.driver.description()
    }

    fn capabilities(&self) -> Capabilities {
        self.driver.capabilities()
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        self.driver.free_bytes()
    }

    fn allocate(&self, bytes: usize) -> Result<Rc<Memory>> {
        self.driver.allocate(bytes)
    }

    fn upload(&self, source: &[u8], address: u64) -> Result<()> {
        self.driver.upload(source, address)
    }

    fn download(&self, address: u64, target: &mut [u8]) -> Result<()> {
        self.driver.download(address, target)
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        let duration = self.driver.time(&mut || self.driver.launch(launch))?;
        self.log.push(RecordedLaunch::new(launch, Some(duration)));
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }

    fn record(&self, _step: &mut dyn FnMut() -> Result<()>) -> Result<Rc<dyn Recording>> {
        Err(Error::new("launches that are timed one by one cannot be recorded as a whole"))
    }

    fn time(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        self.driver.time(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::driver::ArithmeticUnit;

    fn launch(driver: &Rc<DryRun>, kernel: &'static str) -> Result<()> {
        let work = Work { operations: 1, unit: ArithmeticUnit::Float32, bytes_read: 2, bytes_written: 3 };
        let launch = Launch { kernel, grid: [1; 3], block: [32, 1, 1], shared_bytes: 0, arguments: &[7], work };
        driver.launch(&launch)
    }

    #[test]
    fn launches_are_kept_in_order_and_recordings_replay_them() {
        let driver = Rc::new(DryRun::new(GpuModel::find("t4").unwrap()));
        let names = |log: &LaunchLog| log.take().iter().map(|launch| launch.kernel).collect::<Vec<_>>();
        launch(&driver, "first").unwrap();
        let recording = driver.record(&mut || launch(&driver, "recorded")).unwrap();
        launch(&driver, "second").unwrap();
        assert_eq!(names(&driver.log()), ["first", "second"]);
        recording.replay().unwrap();
        recording.replay().unwrap();
        assert_eq!(names(&driver.log()), ["recorded", "recorded"]);
        assert_eq!(names(&driver.log()), [""; 0]);
    }

    #[test]
    fn allocations_do_not_overlap() {
        let driver = Rc::new(DryRun::new(GpuModel::find("t4").unwrap()));
        let (first, second) = (driver.allocate(257).unwrap(), driver.allocate(1).unwrap());
        assert!(first.address() > 0 && first.address().is_multiple_of(ALIGNMENT));
        assert_eq!(second.address(), first.address() + 512);
        assert_eq!(driver.allocated_bytes(), 768);
        let mut target = [1; 3];
        driver.download(second.address(), &mut target).unwrap();
        assert_eq!(target, [0; 3]);
    }
}
