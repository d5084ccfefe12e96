//! Decoded images that stay in the memory of a device, so that later epochs neither decode nor copy them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::rgb_image::RgbImage;
use crate::device::Device;
use crate::error::Result;
use crate::tensor::{ElementType, Memory, Tensor};

/// Images are stored one after another in pieces of this many bytes; a larger image has a piece of its own.
const PIECE_BYTES: usize = 64 << 20;

/// Bytes to leave free on a device, for the driver and for images that do not fit, which pass through it one by one.
const RESERVED_BYTES: usize = 1 << 30;

/// Images begin at multiples of this.
const ALIGNMENT: usize = 16;

/// The contents of an [`ImageStore`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Number of images.
    pub images: usize,
    /// Bytes of the images.
    pub bytes: usize,
}

/// Device memory for the decoded images of one or more data sets. It keeps the first images that fit and removes none.
pub struct ImageStore {
    device: Rc<dyn Device>,
    /// Bytes that the store may still allocate.
    allowed: Cell<usize>,
    latest: RefCell<Option<Piece>>,
    stored: Cell<Stored>,
}

struct Piece {
    memory: Rc<Memory>,
    used: usize,
}

impl ImageStore {
    /// Creates an empty store of at most `limit` bytes. Without a limit, it may use the memory that is free on the device when an image
    /// arrives, except for a reserve.
    pub fn new(device: Rc<dyn Device>, limit: Option<usize>) -> Self {
        Self {
            device,
            allowed: Cell::new(limit.unwrap_or(usize::MAX)),
            latest: RefCell::default(),
            stored: Cell::default(),
        }
    }

    /// The device on which the images are kept.
    pub fn device(&self) -> &Rc<dyn Device> {
        &self.device
    }

    /// The number of stored images and their bytes.
    pub fn stored(&self) -> Stored {
        self.stored.get()
    }

    /// Copies an image to the device, where it stays as long as the tensor, `[height, width, 3]`. `None` if there is no room
    /// for it.
    pub(super) fn keep(&self, image: &RgbImage) -> Result<Option<Tensor>> {
        let bytes = image.pixels.len();
        let Some((memory, offset)) = self.place(bytes)? else { return Ok(None) };
        let shape = [image.height as usize, image.width as usize, 3].into();
        let kept = Tensor::new(memory, offset, shape, ElementType::U8);
        self.device.upload(&image.pixels, &kept)?;
        let Stored { images, bytes: before } = self.stored.get();
        self.stored.set(Stored { images: images + 1, bytes: before + bytes });
        Ok(Some(kept))
    }

    fn place(&self, bytes: usize) -> Result<Option<(Rc<Memory>, usize)>> {
        let mut latest = self.latest.borrow_mut();
        if let Some(piece) = latest.as_mut() {
            let offset = piece.used.next_multiple_of(ALIGNMENT);
            if offset + bytes <= piece.memory.bytes() {
                piece.used = offset + bytes;
                return Ok(Some((piece.memory.clone(), offset)));
            }
        }
        let free = self.device.free_bytes()?.map_or(usize::MAX, |free| free.saturating_sub(RESERVED_BYTES));
        let size = PIECE_BYTES.max(bytes).min(self.allowed.get()).min(free);
        if size < bytes {
            return Ok(None);
        }
        // Free memory may be fragmented, or another program may have taken it: then there is no room either.
        let Ok(memory) = self.device.allocate(size) else { return Ok(None) };
        self.allowed.set(self.allowed.get() - size);
        let left = |piece: &Piece| piece.memory.bytes() - piece.used;
        let piece = Piece { memory: memory.clone(), used: bytes };
        if latest.as_ref().is_none_or(|latest| left(latest) < left(&piece)) {
            *latest = Some(piece);
        }
        Ok(Some((memory, 0)))
    }
}
