//! Executes transforms on a device with its `augment`.

use std::cell::RefCell;

use super::transform::{Transform, lookup_table};
use crate::device::{Augment, Device, ImageView, write_f32};
use crate::error::Result;
use crate::tensor::{ElementType, Shape, Tensor};

/// Device memory for the transform of a batch.
pub struct Augmenter {
    /// The lookup table, `[3, 256]`.
    lookup_table: Tensor,
    /// The views of a batch.
    views: Tensor,
    batch_size: usize,
    /// Memory for edits, once a batch has some.
    workspace: RefCell<Option<Tensor>>,
}

impl Augmenter {
    /// Allocates the memory for batches of at most this many images.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn new(device: &dyn Device, batch_size: usize) -> Result<Self> {
        let table = allocate(device, [3, 256].into(), ElementType::F32)?;
        write_f32(device, lookup_table().as_flattened(), &table)?;
        let views = allocate(device, [batch_size * ImageView::BYTES].into(), ElementType::U8)?;
        Ok(Self { lookup_table: table, views, batch_size, workspace: RefCell::default() })
    }

    /// Device memory for the edits of a batch of this many images.
    pub fn bytes_of_edits(transform: &Transform, images: usize) -> usize {
        match transform.has_edits() {
            true => images.saturating_mul(Augment::workspace_bytes(transform.image_size() as usize)),
            false => 0,
        }
    }

    /// Writes the normalised pixels of these views, `[n, image_size, image_size, 3]`.
    ///
    /// # Errors
    /// When a view is not inside its image.
    pub fn augment(&self, device: &dyn Device, views: &[ImageView], output: &Tensor) -> Result<()> {
        let entries = views.iter().map(ImageView::bytes).collect::<Result<Vec<_>>>()?;
        let table = self.views.part(0, [entries.len() * ImageView::BYTES].into());
        device.upload(entries.as_flattened(), &table)?;
        self.launch(device, views, &table, Some(&self.lookup_table), output)
    }

    /// Launches `augment` with a table of these views.
    pub(super) fn launch(
        &self,
        device: &dyn Device,
        views: &[ImageView],
        table: &Tensor,
        lookup_table: Option<&Tensor>,
        output: &Tensor,
    ) -> Result<()> {
        let pixels = |view: &ImageView| u64::from(view.resampling.height) * u64::from(view.resampling.width);
        let source_pixels = views.iter().map(pixels).sum();
        let mut workspace = self.workspace.borrow_mut();
        let workspace = match views.iter().all(|view| view.resampling.edits.is_empty()) {
            true => None,
            false => Some(match &mut *workspace {
                Some(existing) => existing,
                none => none.insert(allocate_workspace(device, self.batch_size, output.shape().dims()[1])?),
            }),
        };
        let workspace = workspace.map(|workspace| &*workspace);
        device.augment(&Augment { views: table, lookup_table, output, source_pixels, workspace })
    }
}

/// The memory that `augment` needs for edits, with counters of zero.
fn allocate_workspace(device: &dyn Device, images: usize, image_size: usize) -> Result<Tensor> {
    let bytes = Augment::workspace_bytes(image_size);
    let workspace = allocate(device, [images, bytes].into(), ElementType::U8)?;
    for image in 0..images {
        device.upload(&[0; 16], &workspace.part(image * bytes, [16].into()))?;
    }
    Ok(workspace)
}

/// Allocates device memory for a tensor.
pub(super) fn allocate(device: &dyn Device, shape: Shape, element_type: ElementType) -> Result<Tensor> {
    Ok(Tensor::new(device.allocate(shape.len() * element_type.size())?, 0, shape, element_type))
}
