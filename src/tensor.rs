//! Shapes, element types, and handles to device memory. Nothing here computes.

use std::any::Any;
use std::fmt;
use std::rc::Rc;

/// The type of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// IEEE single precision.
    F32,
    /// The upper half of an [`ElementType::F32`].
    Bf16,
    /// Signed 32-bit integer: class indices.
    I32,
    /// Unsigned byte: argmax indices, pixels.
    U8,
}

impl ElementType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }
}

/// Up to four extents, outermost first: `[N, H, W, C]` for activations.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    extents: [usize; 4],
    rank: usize,
}

impl Shape {
    /// The extents, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.extents[..self.rank]
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }

    /// Whether any extent is zero.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The innermost extent: channels, features or classes.
    pub fn channels(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// The product of all extents but the innermost.
    pub fn rows(&self) -> usize {
        self.len() / self.channels().max(1)
    }
}

impl<const RANK: usize> From<[usize; RANK]> for Shape {
    fn from(dims: [usize; RANK]) -> Self {
        const { assert!(RANK <= 4, "a shape has at most four extents") };
        let mut extents = [1; 4];
        extents[..RANK].copy_from_slice(&dims);
        Self { extents, rank: RANK }
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.dims().iter().map(usize::to_string).collect();
        f.write_str(&dims.join("x"))
    }
}

/// An allocation on a device. Dropping the last handle releases it.
///
/// Not `Send`: all work on a device is issued from one thread, which is what makes the kernels' view of their
/// arguments as plain slices sound.
pub struct Memory {
    address: u64,
    bytes: usize,
    owner: Box<dyn Any>,
}

impl Memory {
    /// Describes `bytes` at `address`, released when `owner` is dropped.
    pub fn new(address: u64, bytes: usize, owner: Box<dyn Any>) -> Self {
        Self { address, bytes, owner }
    }

    /// Its address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The owner of the memory, by which a device recognises its own allocations.
    pub fn owner(&self) -> &dyn Any {
        self.owner.as_ref()
    }
}

/// A dense array in device memory. Cloning clones the handle.
#[derive(Clone)]
pub struct Tensor {
    memory: Rc<Memory>,
    offset: usize,
    shape: Shape,
    element_type: ElementType,
}

impl Tensor {
    /// The array of `shape` that starts `offset` bytes into `memory`.
    ///
    /// # Panics
    /// When it would reach past the end of `memory` or is not aligned to its element.
    pub fn new(memory: Rc<Memory>, offset: usize, shape: Shape, element_type: ElementType) -> Self {
        let tensor = Self { memory, offset, shape, element_type };
        assert!(offset + tensor.bytes() <= tensor.memory.bytes, "a tensor must lie within its memory");
        assert!(tensor.address().is_multiple_of(element_type.size() as u64), "a tensor must be aligned");
        tensor
    }

    /// The array of `shape` that starts at element `start` of this one.
    pub fn part(&self, start: usize, shape: Shape) -> Self {
        let offset = self.offset + start * self.element_type.size();
        assert!(start + shape.len() <= self.len(), "a part must lie within the whole");
        Self::new(self.memory.clone(), offset, shape, self.element_type)
    }

    /// The allocation that contains it.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The address of the first element on the device.
    pub fn address(&self) -> u64 {
        self.memory.address + self.offset as u64
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The type of its elements.
    pub fn element_type(&self) -> ElementType {
        self.element_type
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.len() * self.element_type.size()
    }

    /// Whether two tensors share a byte.
    pub fn overlaps(&self, other: &Tensor) -> bool {
        let (start, end) = (self.address(), self.address() + self.bytes() as u64);
        let (other_start, other_end) = (other.address(), other.address() + other.bytes() as u64);
        start < other_end && other_start < end
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({:?} {:?} at {:#x})", self.element_type, self.shape, self.address())
    }
}
