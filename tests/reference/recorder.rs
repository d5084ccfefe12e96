//! A device that passes every call on to another one and records it. It can add `augment` to a device without it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use retune::data::RgbImage;
use retune::device::{
    Augment, BatchNormBackward, Conv2dInputGradient, Conv2dShape, Device, Features, Gradient, ImageView, MaxPoolWindow,
    Precision, Resampling, read_f32, write_f32,
};
use retune::error::Result;
use retune::tensor::{ElementType, Memory, Tensor};

use super::delegate::Delegate;
use super::resampling::resample;

/// A gradient of an activation that a kernel has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GradientCall {
    /// The operation.
    pub operation: &'static str,
    /// The address of the gradient.
    pub address: u64,
    /// Whether it was added to the existing values.
    pub accumulate: bool,
}

/// See the module documentation.
pub struct Recorder {
    device: Rc<dyn Device>,
    precision: Precision,
    augments: bool,
    free_bytes: Cell<Option<usize>>,
    /// All allocations.
    pub allocations: RefCell<Vec<Rc<Memory>>>,
    /// All gradients of activations.
    pub gradients: RefCell<Vec<GradientCall>>,
    /// How many convolutions reduced a gradient for a batch norm.
    pub reductions: Cell<usize>,
}

impl Recorder {
    /// Records the calls on `device`.
    pub fn new(device: Rc<dyn Device>) -> Self {
        let (allocations, gradients, free_bytes) = (RefCell::default(), RefCell::default(), Cell::default());
        let precision = device.precision();
        let reductions = Cell::default();
        Self { device, precision, augments: false, free_bytes, allocations, gradients, reductions }
    }

    /// Claims to compute in this precision, whatever the device does.
    pub fn claiming(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// Like [`Recorder::new`], with `augment` from the reference.
    pub fn augmenting(device: Rc<dyn Device>) -> Self {
        Self { augments: true, ..Self::new(device) }
    }

    /// Reports this much free memory from now on, minus later allocations.
    pub fn pretend_free_bytes(&self, bytes: usize) {
        self.free_bytes.set(Some(bytes));
    }

    /// Finds the memory that contains an address.
    fn memory_at(&self, address: u64, bytes: usize) -> Vec<u8> {
        let allocations = self.allocations.borrow();
        let start = |memory: &Rc<Memory>| Tensor::new(memory.clone(), 0, [0].into(), ElementType::U8).address();
        let holds = |memory: &&Rc<Memory>| (start(memory)..start(memory) + memory.bytes() as u64).contains(&address);
        let memory = allocations.iter().rev().find(holds).expect("an allocation that contains the view");
        let offset = (address - start(memory)) as usize;
        let tensor = Tensor::new(memory.clone(), offset, [bytes].into(), ElementType::U8);
        let mut content = vec![0; bytes];
        self.device.download(&tensor, &mut content).expect("downloads");
        content
    }

    /// `augment` from the reference, with views in the layout that kernels read.
    fn augment_by_reference(&self, arguments: &Augment) -> Result<()> {
        let &[_, size, _, 3] = arguments.output.shape().dims() else { panic!("not a batch: {:?}", arguments.output) };
        let mut table = vec![0; arguments.views.bytes()];
        self.device.download(arguments.views, &mut table)?;
        let mut pixels = Vec::new();
        for view in table.as_chunks::<{ ImageView::BYTES }>().0 {
            let number = |index: usize| u32::from_ne_bytes(view[8 + 4 * index..][..4].try_into().expect("four bytes"));
            let [row_pixels, height, width, scaled_height, scaled_width] = [0, 1, 2, 3, 4].map(number);
            let (window_top, window_left, flips) = (number(5) as i32, number(6) as i32, number(7));
            let address = u64::from_ne_bytes(view[..8].try_into().expect("eight bytes"));
            let stretch = ((height as usize - 1) * row_pixels as usize + width as usize) * 3;
            let mut rows = self.memory_at(address, stretch);
            rows.resize(height as usize * row_pixels as usize * 3, 0);
            let image = RgbImage { width: row_pixels, height, pixels: rows };
            let whole = Resampling::whole(width, height);
            let (flip_columns, flip_rows) = (flips & 1 != 0, flips & 2 != 0);
            assert!(flips < 8, "the reference has no edits");
            let resampling =
                Resampling { scaled_height, scaled_width, window_top, window_left, flip_columns, flip_rows, ..whole };
            pixels.extend(resample(&image, &resampling, size));
        }
        let Some(table) = arguments.lookup_table else { return self.device.upload(&pixels, arguments.output) };
        let table = read_f32(self.device.as_ref(), table)?;
        let values = pixels.iter().enumerate().map(|(i, &byte)| table[i % 3 * 256 + usize::from(byte)]);
        write_f32(self.device.as_ref(), &values.collect::<Vec<_>>(), arguments.output)
    }

    /// Fills the latest allocation with NaN.
    pub fn poison_latest_allocation(&self) {
        let memory = self.allocations.borrow().last().expect("an allocation").clone();
        let bytes = memory.bytes();
        let all = Tensor::new(memory, 0, [bytes].into(), ElementType::U8);
        self.device.upload(&vec![0xFF; bytes], &all).expect("uploads");
    }

    fn note<'a>(&self, operation: &'static str, gradients: impl IntoIterator<Item = &'a Gradient>) {
        let calls = gradients.into_iter().map(|Gradient { tensor, accumulate }| GradientCall {
            operation,
            address: tensor.address(),
            accumulate: *accumulate,
        });
        self.gradients.borrow_mut().extend(calls);
    }
}

delegate_device!(Recorder);

impl Delegate for Recorder {
    fn inner(&self) -> &dyn Device {
        self.device.as_ref()
    }

    fn features(&self) -> Features {
        let features = self.device.features();
        // A single call would hide one of the two operations.
        Features { augment: self.augments || features.augment, conv2d_batch_norm: false, ..features }
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn free_bytes(&self) -> Result<Option<usize>> {
        match self.free_bytes.get() {
            Some(bytes) => Ok(Some(bytes)),
            None => self.device.free_bytes(),
        }
    }

    fn allocate(&self, bytes: usize) -> Result<Rc<Memory>> {
        let memory = self.device.allocate(bytes)?;
        self.free_bytes.set(self.free_bytes.get().map(|free| free.saturating_sub(bytes)));
        self.allocations.borrow_mut().push(memory.clone());
        Ok(memory)
    }

    fn augment(&self, arguments: &Augment) -> Result<()> {
        match self.augments {
            true => self.augment_by_reference(arguments),
            false => self.device.augment(arguments),
        }
    }

    fn conv2d_input_gradient(&self, shape: &Conv2dShape, arguments: &Conv2dInputGradient) -> Result<()> {
        self.note("conv2d", [arguments.input_gradient]);
        self.reductions.set(self.reductions.get() + usize::from(arguments.batch_norm.is_some()));
        self.device.conv2d_input_gradient(shape, arguments)
    }

    fn batch_norm_backward(&self, arguments: &BatchNormBackward) -> Result<()> {
        self.note("batch_norm", [arguments.input_gradient, arguments.residual_gradient].into_iter().flatten());
        self.device.batch_norm_backward(arguments)
    }

    fn batch_norm_max_pool_backward(
        &self,
        window: MaxPoolWindow,
        batch_norm: &BatchNormBackward,
        indices: &Tensor,
    ) -> Result<()> {
        self.note("batch_norm_max_pool", batch_norm.input_gradient);
        self.device.batch_norm_max_pool_backward(window, batch_norm, indices)
    }

    fn max_pool_backward(
        &self,
        window: MaxPoolWindow,
        indices: &Tensor,
        output_gradient: &Tensor,
        input_gradient: &Gradient,
    ) -> Result<()> {
        self.note("max_pool", [input_gradient]);
        self.device.max_pool_backward(window, indices, output_gradient, input_gradient)
    }

    fn avg_pool_backward(&self, output_gradient: &Tensor, input_gradient: &Gradient) -> Result<()> {
        self.note("avg_pool", [input_gradient]);
        self.device.avg_pool_backward(output_gradient, input_gradient)
    }

    fn linear_input_gradient(
        &self,
        output_gradient: &Tensor,
        weight: &Tensor,
        input_gradient: &Gradient,
        workspace: &Tensor,
    ) -> Result<()> {
        self.note("linear", [input_gradient]);
        self.device.linear_input_gradient(output_gradient, weight, input_gradient, workspace)
    }
}
