//! Host memory, and the kernels' view of it as slices.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::tensor::{ElementType, Memory, Tensor};

/// Cache lines are 64 bytes; 256 keeps buffers that a plan placed at multiples of 256 aligned for every vector unit.
const ALIGNMENT: usize = 256;

/// Owns one allocation. The pages of a large one are zeroed, and become resident, when they are first touched.
struct HostAllocation {
    pointer: NonNull<u8>,
    layout: Layout,
}

impl Drop for HostAllocation {
    fn drop(&mut self) {
        // SAFETY: `pointer` came from `alloc_zeroed` with this layout and is released once.
        unsafe { dealloc(self.pointer.as_ptr(), self.layout) };
    }
}

/// For smaller allocations, the system is not asked how much memory is available.
const QUESTIONED: usize = 256 << 20;

/// Bytes that this process can still make resident, if the system reports them: the memory that Linux considers available, limited
/// by the control group. A system that overcommits memory would end the process when it touches more.
pub(super) fn available() -> Option<usize> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let table = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)?;
    let limit = number("/sys/fs/cgroup/memory.max");
    let group = limit.map(|limit| limit.saturating_sub(number("/sys/fs/cgroup/memory.current").unwrap_or(0)));
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// Zeroed memory.
pub(super) fn allocate(bytes: usize) -> Result<Rc<Memory>> {
    let too_much = || Error::out_of_memory("cpu", bytes, available());
    if bytes >= QUESTIONED && available().is_some_and(|available| bytes > available) {
        return Err(too_much());
    }
    let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT).map_err(|_| too_much())?;
    // SAFETY: the layout's size is not zero.
    let pointer = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(too_much)?;
    let address = pointer.as_ptr().expose_provenance() as u64;
    Ok(Rc::new(Memory::new(address, bytes, Box::new(HostAllocation { pointer, layout }))))
}

/// Rust types whose every bit pattern is a value, with the element type that they stand for.
///
/// # Safety
/// Any bytes must be a valid value, and the size must be that of `ELEMENT_TYPE`.
pub(super) unsafe trait Element: Copy {
    const ELEMENT_TYPE: ElementType;
}

// SAFETY: any four bytes are a float.
unsafe impl Element for f32 {
    const ELEMENT_TYPE: ElementType = ElementType::F32;
}
// SAFETY: any four bytes are an integer.
unsafe impl Element for i32 {
    const ELEMENT_TYPE: ElementType = ElementType::I32;
}
// SAFETY: any byte is a byte.
unsafe impl Element for u8 {
    const ELEMENT_TYPE: ElementType = ElementType::U8;
}

/// All the slices of one kernel call. It refuses a slice for writing that overlaps another slice of the call.
///
/// A kernel takes every slice from one `Views` and drops them before it returns; tensors never leave their thread. So
/// no two slices that exist at the same time overlap unless both are for reading.
#[derive(Default)]
pub(super) struct Views {
    taken: [(u64, u64, bool); 12],
    count: usize,
}

impl Views {
    /// The elements of a tensor, for reading.
    pub(super) fn read<'a, T: Element>(&mut self, tensor: &'a Tensor) -> &'a [T] {
        let pointer = self.take::<T>(tensor, false);
        // SAFETY: `take` has checked type, owner and overlap; the tensor's borrow keeps the allocation alive; the
        // allocation was zeroed, so all of it is initialised.
        unsafe { std::slice::from_raw_parts(pointer, tensor.len()) }
    }

    /// The elements of a tensor, for writing.
    #[allow(clippy::mut_from_ref)]
    pub(super) fn write<'a, T: Element>(&mut self, tensor: &'a Tensor) -> &'a mut [T] {
        let pointer = self.take::<T>(tensor, true);
        // SAFETY: as in `read`, and no other slice of this call overlaps.
        unsafe { std::slice::from_raw_parts_mut(pointer, tensor.len()) }
    }

    /// A workspace, given in bytes, as floats.
    #[allow(clippy::mut_from_ref)]
    pub(super) fn workspace<'a>(&mut self, tensor: &'a Tensor) -> &'a mut [f32] {
        let pointer = self.take::<u8>(tensor, true).cast::<f32>();
        assert!(pointer.is_aligned(), "the plan aligns workspaces");
        // SAFETY: as in `write`; any four bytes are a float.
        unsafe { std::slice::from_raw_parts_mut(pointer, tensor.bytes() / 4) }
    }

    fn take<T: Element>(&mut self, tensor: &Tensor, writes: bool) -> *mut T {
        assert!(tensor.memory().owner().is::<HostAllocation>(), "{tensor:?} does not lie in host memory");
        assert_eq!(tensor.element_type(), T::ELEMENT_TYPE, "wrong element type");
        let (start, end) = (tensor.address(), tensor.address() + tensor.bytes() as u64);
        for &(other_start, other_end, other_writes) in &self.taken[..self.count] {
            let overlaps = start < other_end && other_start < end;
            assert!(!(overlaps && (writes || other_writes)), "an output of a kernel overlaps another argument");
        }
        self.taken[self.count] = (start, end, writes);
        self.count += 1;
        std::ptr::with_exposed_provenance_mut(start as usize)
    }
}

/// All bytes of a tensor, for a copy to the host.
pub(super) fn bytes(tensor: &Tensor) -> &[u8] {
    assert!(tensor.memory().owner().is::<HostAllocation>(), "{tensor:?} does not lie in host memory");
    let pointer = std::ptr::with_exposed_provenance(tensor.address() as usize);
    // SAFETY: the allocation is the host's, initialised, and kept alive by the tensor; nobody writes to it meanwhile
    // because tensors never leave their thread.
    unsafe { std::slice::from_raw_parts(pointer, tensor.bytes()) }
}

/// All bytes of a tensor, for a copy from the host.
#[allow(clippy::mut_from_ref)]
pub(super) fn bytes_mut(tensor: &Tensor) -> &mut [u8] {
    assert!(tensor.memory().owner().is::<HostAllocation>(), "{tensor:?} does not lie in host memory");
    let pointer = std::ptr::with_exposed_provenance_mut(tensor.address() as usize);
    // SAFETY: as in `bytes`; the caller, an upload, holds no other slice of device memory.
    unsafe { std::slice::from_raw_parts_mut(pointer, tensor.bytes()) }
}
