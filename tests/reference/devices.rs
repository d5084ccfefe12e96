//! The devices that the tests of the operations run on, and memory on them that notices misuse.

// Each test binary compiles this module and uses its own part of it.
#![allow(dead_code)]

use std::cell::RefCell;
use std::process::Command;
use std::rc::Rc;

use retune::device::cpu::Cpu;
use retune::device::cpu::simd::Level;
use retune::device::{Device, Gradient, read_f32, write_f32, write_i32};
use retune::tensor::{ElementType, Shape, Tensor};

/// Every device that this machine can test on.
pub fn devices() -> Vec<Rc<dyn Device>> {
    vec![
        Rc::new(Cpu),
        #[cfg(feature = "emulator")]
        Rc::new(emulated(1, retune::device::Precision::Fp32)),
    ]
}

/// The CUDA kernels on the emulator, which schedules as `seed` says.
#[cfg(feature = "emulator")]
pub fn emulated(seed: u64, precision: retune::device::Precision) -> retune::device::cuda::Cuda {
    let emulator = retune::device::cuda::emulator::Emulator::new(seed).expect("starts");
    retune::device::cuda::Cuda::new(Box::new(emulator), precision).expect("has every precision")
}

/// Runs the tests of this binary whose names contain `filter` in a process for each instruction set below the one in
/// use, because a process chooses its level once.
pub fn run_at_lower_levels(filter: &str) {
    if std::env::var_os("RETUNE_CPU").is_some() {
        return;
    }
    for (level, name) in [(Level::Portable, "portable"), (Level::Avx2, "avx2")] {
        if level >= Level::widest() {
            continue;
        }
        let run = Command::new(std::env::current_exe().expect("a test knows its own file"))
            .arg(filter)
            .env("RETUNE_CPU", name)
            .output()
            .expect("the tests run once more");
        let output = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "RETUNE_CPU={name}:\n{output}{}", String::from_utf8_lossy(&run.stderr));
        assert!(!output.contains(" 0 passed"), "no test is called {filter}:\n{output}");
    }
}

/// Bytes on both sides of every tensor, which no kernel may change.
const FENCE: usize = 256;
const FENCE_BYTE: u8 = 0xA5;
/// Four of them are a NaN.
const POISON: u8 = 0xFF;

/// Places the arguments of a kernel between fences. [`Workbench::finish`] checks that fences and inputs are as they
/// were.
pub struct Workbench<'a> {
    device: &'a dyn Device,
    unchanged: RefCell<Vec<(Tensor, Vec<u8>)>>,
}

impl<'a> Workbench<'a> {
    /// An empty one.
    pub fn new(device: &'a dyn Device) -> Self {
        Self { device, unchanged: RefCell::default() }
    }

    fn place(&self, shape: Shape, element_type: ElementType, fill: u8) -> Tensor {
        let bytes = shape.len() * element_type.size();
        let memory = self.device.allocate(bytes + 2 * FENCE).expect("there is memory");
        for (offset, bytes, fill) in [(0, FENCE, FENCE_BYTE), (FENCE, bytes, fill), (FENCE + bytes, FENCE, FENCE_BYTE)]
        {
            let part = Tensor::new(memory.clone(), offset, [bytes].into(), ElementType::U8);
            self.device.upload(&vec![fill; bytes], &part).expect("uploads");
            if fill == FENCE_BYTE {
                self.unchanged.borrow_mut().push((part, vec![fill; bytes]));
            }
        }
        Tensor::new(memory, FENCE, shape, element_type)
    }

    fn keep(&self, tensor: &Tensor) {
        let mut bytes = vec![0; tensor.bytes()];
        self.device.download(tensor, &mut bytes).expect("downloads");
        self.unchanged.borrow_mut().push((tensor.clone(), bytes));
    }

    /// Something that the kernel only reads.
    pub fn input(&self, shape: impl Into<Shape>, values: &[f32]) -> Tensor {
        let tensor = self.variable(shape, values);
        self.keep(&tensor);
        tensor
    }

    /// Class indices, which the kernel only reads.
    pub fn targets(&self, targets: &[usize]) -> Tensor {
        let tensor = self.place([targets.len()].into(), ElementType::I32, POISON);
        let targets: Vec<i32> = targets.iter().map(|&target| target as i32).collect();
        write_i32(self.device, &targets, &tensor).expect("uploads");
        self.keep(&tensor);
        tensor
    }

    /// Something that the kernel changes.
    pub fn variable(&self, shape: impl Into<Shape>, values: &[f32]) -> Tensor {
        let tensor = self.place(shape.into(), ElementType::F32, POISON);
        write_f32(self.device, values, &tensor).expect("uploads");
        tensor
    }

    /// Something that the kernel writes in full: it begins as NaN.
    pub fn output(&self, shape: impl Into<Shape>) -> Tensor {
        self.place(shape.into(), ElementType::F32, POISON)
    }

    /// Bytes that the kernel writes in full.
    pub fn byte_output(&self, shape: impl Into<Shape>) -> Tensor {
        self.place(shape.into(), ElementType::U8, POISON)
    }

    /// Scratch memory of exactly this size, full of NaN.
    pub fn workspace(&self, bytes: usize) -> Tensor {
        self.place([bytes].into(), ElementType::U8, POISON)
    }

    /// A gradient that is added to `before`, or, without one, overwrites NaN.
    pub fn gradient(&self, shape: impl Into<Shape>, before: Option<&[f32]>) -> Gradient {
        let tensor = match before {
            Some(values) => self.variable(shape, values),
            None => self.output(shape),
        };
        Gradient { tensor, accumulate: before.is_some() }
    }

    /// What a tensor holds.
    pub fn read(&self, tensor: &Tensor) -> Vec<f32> {
        read_f32(self.device, tensor).expect("downloads")
    }

    /// What a tensor of bytes holds.
    pub fn read_bytes(&self, tensor: &Tensor) -> Vec<u8> {
        let mut bytes = vec![0; tensor.bytes()];
        self.device.download(tensor, &mut bytes).expect("downloads");
        bytes
    }

    /// Checks that nothing was written that is not an output.
    #[track_caller]
    pub fn finish(self) {
        for (tensor, before) in self.unchanged.into_inner() {
            let mut after = vec![0; tensor.bytes()];
            self.device.download(&tensor, &mut after).expect("downloads");
            assert!(before == after, "a kernel wrote to an input or past the end of a buffer: {tensor:?}");
        }
    }
}

/// Checks `||ours - truth|| <= limit * ||truth||`. `typical` replaces the size of the truth where that is smaller: the
/// size that it would have if its terms had not happened to cancel.
#[track_caller]
pub fn assert_near(what: &str, ours: &[f32], truth: &[f64], typical: f64, limit: f64) {
    assert_eq!(ours.len(), truth.len(), "{what}: lengths differ");
    let difference = ours.iter().zip(truth).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum::<f64>().sqrt();
    let size = norm(truth).max(typical);
    let error = if difference == 0.0 { 0.0 } else { difference / size };
    assert!(error <= limit, "{what}: error {error:.2e}, limit {limit:.0e}, {} elements", truth.len());
}

/// The length of a vector.
pub fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// `truth`, added to what was there before.
pub fn added(before: Option<&[f32]>, mut truth: Vec<f64>) -> Vec<f64> {
    for (truth, &before) in truth.iter_mut().zip(before.unwrap_or_default()) {
        *truth += f64::from(before);
    }
    truth
}
