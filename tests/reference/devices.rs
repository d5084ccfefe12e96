//! The devices on which operations are tested, and memory on them that detects misuse.

// Each test binary compiles this module and uses only part of it.
#![allow(dead_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::Command;
use std::rc::Rc;

use half::bf16;
use retune::device::cpu::Cpu;
use retune::device::cpu::simd::Level;
use retune::device::{Device, Gradient, Precision, read_f32, write_f32, write_i32};
use retune::tensor::{ElementType, Shape, Tensor};

use super::rounding::RoundingDevice;

/// The devices that are fast enough for many cases: the CPU.
pub fn devices() -> Vec<Rc<dyn Device>> {
    vec![Rc::new(Cpu)]
}

/// All precisions, the finest first.
pub const PRECISIONS: [Precision; 3] = [Precision::Fp32, Precision::Tf32, Precision::Bf16];

/// The devices in this precision that are slow, so tests run few cases on them: the emulator with two schedules, if it
/// was built. In tf32 and bf16 also the CPU with rounded operands and results, so that these tests run without the
/// emulator too. With RETUNE_TEST_CUDA in the environment, only the first GPU.
pub fn kernel_devices(precision: Precision) -> Vec<Rc<dyn Device>> {
    if tests_gpu() {
        return emulator(precision, 0).into_iter().collect();
    }
    let mut devices: Vec<Rc<dyn Device>> = Vec::new();
    if precision != Precision::Fp32 {
        devices.push(Rc::new(RoundingDevice::new(precision)));
    }
    devices.extend([1, 2].into_iter().filter_map(|seed| emulator(precision, seed)));
    devices
}

fn tests_gpu() -> bool {
    std::env::var_os("RETUNE_TEST_CUDA").is_some()
}

/// The CUDA kernels on the emulator, with a different schedule for each seed, or on the GPU with RETUNE_TEST_CUDA.
#[cfg(feature = "emulator")]
pub fn emulated(seed: u64, precision: Precision) -> retune::device::cuda::Cuda {
    use retune::device::cuda::Cuda;
    use retune::device::cuda::driver::Driver;
    use retune::device::cuda::emulator::Emulator;
    use retune::device::cuda::modules::MODULES;
    use retune::device::cuda::nvidia::Nvidia;
    let driver: Box<dyn Driver> = match tests_gpu() {
        true => Box::new(Nvidia::open(0, MODULES).expect("a GPU")),
        false => Box::new(Emulator::new(seed).expect("a processor that can run the emulator")),
    };
    Cuda::new(driver, precision).expect("support for every precision")
}

/// Like [`emulated`]; `None` if the emulator was not built.
#[cfg(feature = "emulator")]
pub fn emulator(precision: Precision, seed: u64) -> Option<Rc<dyn Device>> {
    Some(Rc::new(emulated(seed, precision)))
}

/// Like [`emulated`]; `None` if the emulator was not built.
#[cfg(not(feature = "emulator"))]
pub fn emulator(_precision: Precision, _seed: u64) -> Option<Rc<dyn Device>> {
    None
}

/// The values of an activation as a device in this precision stores them.
pub fn stored(precision: Precision, values: &[f32]) -> Vec<f32> {
    match precision.activation_type() {
        ElementType::Bf16 => values.iter().map(|&value| bf16::from_f32(value).to_f32()).collect(),
        _ => values.to_vec(),
    }
}

/// The operands that a convolution in this precision multiplies: in tf32 ten bits of mantissa, rounded to nearest, ties
/// away from zero.
pub fn operands(precision: Precision, values: &[f32]) -> Vec<f32> {
    match precision {
        Precision::Tf32 => values.iter().map(|&value| round_to_tf32(value)).collect(),
        Precision::Fp32 | Precision::Bf16 => stored(precision, values),
    }
}

fn round_to_tf32(value: f32) -> f32 {
    let rounded = f32::from_bits(value.to_bits().wrapping_add(0x1000) & !0x1FFF);
    if value.is_finite() { rounded } else { value }
}

/// Runs the tests of this binary whose names contain `filter` once for each instruction set below the one in use, in
/// separate processes because a process selects its level only once.
pub fn run_at_lower_levels(filter: &str) {
    if std::env::var_os("RETUNE_CPU").is_some() {
        return;
    }
    for (level, name) in [(Level::Portable, "portable"), (Level::Avx2, "avx2")] {
        if level >= Level::widest() {
            continue;
        }
        let run = Command::new(std::env::current_exe().expect("the path of the test binary"))
            .arg(filter)
            .env("RETUNE_CPU", name)
            .output()
            .expect("another run of the tests");
        let output = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "RETUNE_CPU={name}:\n{output}{}", String::from_utf8_lossy(&run.stderr));
        assert!(!output.contains(" 0 passed"), "no test is called {filter}:\n{output}");
    }
}

/// Bytes on both sides of every tensor, which no kernel may change.
const FENCE: usize = 256;
const FENCE_BYTE: u8 = 0xA5;
/// Four such bytes are a NaN.
const POISON: u8 = 0xFF;

/// Places the arguments of a kernel between fences. [`Workbench::finish`] checks that fences and inputs are unchanged.
pub struct Workbench<'a> {
    device: &'a dyn Device,
    unchanged: RefCell<Vec<(Tensor, Vec<u8>)>>,
    /// All bytes that were read.
    transcript: RefCell<Vec<u8>>,
}

thread_local! {
    /// For each precision of the emulator, the bytes read from each instance, keyed by its address.
    static TRANSCRIPTS: RefCell<BTreeMap<String, BTreeMap<usize, Vec<u8>>>> = RefCell::default();
}

/// Checks that emulators of one precision with different schedules gave the same bits on all workbenches that were
/// finished since the last call.
#[track_caller]
pub fn assert_schedules_agree() {
    for (precision, transcripts) in TRANSCRIPTS.take() {
        let mut transcripts = transcripts.values();
        let first = transcripts.next();
        assert!(transcripts.all(|other| Some(other) == first), "{precision}: the schedule changes results");
    }
}

impl<'a> Workbench<'a> {
    /// Creates an empty workbench.
    pub fn new(device: &'a dyn Device) -> Self {
        Self { device, unchanged: RefCell::default(), transcript: RefCell::default() }
    }

    fn place(&self, shape: Shape, element_type: ElementType, fill: u8) -> Tensor {
        let bytes = shape.len() * element_type.size();
        let memory = self.device.allocate(bytes + 2 * FENCE).expect("enough memory");
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

    /// A tensor that the kernel only reads.
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

    /// A tensor that the kernel changes.
    pub fn variable(&self, shape: impl Into<Shape>, values: &[f32]) -> Tensor {
        let tensor = self.place(shape.into(), ElementType::F32, POISON);
        write_f32(self.device, values, &tensor).expect("uploads");
        tensor
    }

    /// A tensor that the kernel overwrites completely. It starts as NaN.
    pub fn output(&self, shape: impl Into<Shape>) -> Tensor {
        self.place(shape.into(), ElementType::F32, POISON)
    }

    /// A tensor of bytes that the kernel overwrites completely.
    pub fn byte_output(&self, shape: impl Into<Shape>) -> Tensor {
        self.place(shape.into(), ElementType::U8, POISON)
    }

    /// A workspace of exactly this size, filled with NaN.
    pub fn workspace(&self, bytes: usize) -> Tensor {
        self.place([bytes].into(), ElementType::U8, POISON)
    }

    /// An activation or its gradient, which the kernel only reads. The device must be able to store the values exactly.
    #[track_caller]
    pub fn activation(&self, shape: impl Into<Shape>, values: &[f32]) -> Tensor {
        let tensor = self.activation_variable(shape, values);
        self.keep(&tensor);
        tensor
    }

    /// An activation that the kernel changes.
    #[track_caller]
    pub fn activation_variable(&self, shape: impl Into<Shape>, values: &[f32]) -> Tensor {
        let tensor = self.place(shape.into(), self.activation_type(), POISON);
        write_f32(self.device, values, &tensor).expect("uploads");
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!(self.read(&tensor).iter().zip(values).all(same), "the test must round its values");
        tensor
    }

    /// An activation that the kernel overwrites completely. It starts as NaN.
    pub fn activation_output(&self, shape: impl Into<Shape>) -> Tensor {
        self.place(shape.into(), self.activation_type(), POISON)
    }

    /// A gradient of an activation that is added to `before` or, without `before`, overwrites NaN.
    #[track_caller]
    pub fn activation_gradient(&self, shape: impl Into<Shape>, before: Option<&[f32]>) -> Gradient {
        let tensor = match before {
            Some(values) => self.activation_variable(shape, values),
            None => self.activation_output(shape),
        };
        Gradient { tensor, accumulate: before.is_some() }
    }

    fn activation_type(&self) -> ElementType {
        self.device.precision().activation_type()
    }

    /// A gradient that is added to `before` or, without `before`, overwrites NaN.
    pub fn gradient(&self, shape: impl Into<Shape>, before: Option<&[f32]>) -> Gradient {
        let tensor = match before {
            Some(values) => self.variable(shape, values),
            None => self.output(shape),
        };
        Gradient { tensor, accumulate: before.is_some() }
    }

    /// Reads a tensor.
    pub fn read(&self, tensor: &Tensor) -> Vec<f32> {
        let values = read_f32(self.device, tensor).expect("downloads");
        self.transcript.borrow_mut().extend(values.iter().flat_map(|value| value.to_ne_bytes()));
        values
    }

    /// Reads a tensor of bytes.
    pub fn read_bytes(&self, tensor: &Tensor) -> Vec<u8> {
        let mut bytes = vec![0; tensor.bytes()];
        self.device.download(tensor, &mut bytes).expect("downloads");
        self.transcript.borrow_mut().extend(&bytes);
        bytes
    }

    /// Checks that only outputs were written.
    #[track_caller]
    pub fn finish(self) {
        for (tensor, before) in self.unchanged.into_inner() {
            let mut after = vec![0; tensor.bytes()];
            self.device.download(&tensor, &mut after).expect("downloads");
            assert!(before == after, "a kernel wrote to an input or past the end of a buffer: {tensor:?}");
        }
        if self.device.name() != "emulator" {
            return;
        }
        let address = std::ptr::from_ref(self.device).addr();
        TRANSCRIPTS.with_borrow_mut(|transcripts| {
            let transcripts = transcripts.entry(self.device.precision().to_string()).or_default();
            transcripts.entry(address).or_default().append(&mut self.transcript.into_inner());
        });
    }
}

/// Checks `||ours - truth|| <= limit * ||truth||`. If `typical` is larger than the norm of the truth, it replaces it:
/// it is the norm that the truth would have if its terms did not cancel.
#[track_caller]
pub fn assert_near(what: &str, ours: &[f32], truth: &[f64], typical: f64, limit: f64) {
    let error = error_of(ElementType::F32, ours, truth, typical);
    assert!(error <= limit, "{what}: error {error:.2e}, limit {limit:.0e}, {} elements", truth.len());
}

/// [`assert_near`] for a tensor of any element type, with [`error_of`]. Returns its values.
#[track_caller]
pub fn assert_stored_near(
    what: &str,
    bench: &Workbench,
    tensor: &Tensor,
    truth: &[f64],
    typical: f64,
    limit: f64,
) -> Vec<f32> {
    let ours = bench.read(tensor);
    let element_type = tensor.element_type();
    let error = error_of(element_type, &ours, truth, typical);
    assert!(error <= limit, "{what}, {element_type:?}: error {error:.2e}, limit {limit:.0e}, {} elements", truth.len());
    ours
}

/// `||ours - truth|| / ||truth||`, or relative to `typical` if that is larger.
///
/// A result that was rounded to bf16 stands for all numbers that round to it, and the one nearest to the truth counts.
/// It must be as near as a float32 result, so a wrong rounding is detected like a wrong number, and no limit depends on
/// the format.
#[track_caller]
pub fn error_of(element_type: ElementType, ours: &[f32], truth: &[f64], typical: f64) -> f64 {
    assert_eq!(ours.len(), truth.len(), "lengths differ");
    let distance = |(&value, &truth): (&f32, &f64)| {
        if element_type != ElementType::Bf16 {
            return f64::from(value) - truth;
        }
        let [low, high] = rounded_from(value);
        // NaN on either side is neither below nor above, and must not give a distance of zero.
        match (truth < low, truth > high) {
            (true, _) => low - truth,
            (_, true) => truth - high,
            _ if truth.is_nan() || value.is_nan() => f64::NAN,
            _ => 0.0,
        }
    };
    let difference = ours.iter().zip(truth).map(distance).map(|distance| distance * distance).sum::<f64>().sqrt();
    let size = norm(truth).max(typical);
    if difference == 0.0 { 0.0 } else { difference / size }
}

/// The range of numbers whose nearest bf16 is this one.
fn rounded_from(value: f32) -> [f64; 2] {
    let bits = (value.to_bits() >> 16) as u16;
    let (inward, outward) = (bits.wrapping_sub(1), bits + 1);
    let middle = |other: u16| (f64::from(value) + f64::from(bf16::from_bits(other).to_f32())) / 2.0;
    match value {
        0.0 => [-1.0, 1.0].map(|sign| sign * f64::from(bf16::from_bits(1).to_f32()) / 2.0),
        _ if value > 0.0 => [middle(inward), middle(outward)],
        _ => [middle(outward), middle(inward)],
    }
}

/// The Euclidean norm of a vector.
pub fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// `truth`, added to the values that were there before.
pub fn added(before: Option<&[f32]>, mut truth: Vec<f64>) -> Vec<f64> {
    for (truth, &before) in truth.iter_mut().zip(before.unwrap_or_default()) {
        *truth += f64::from(before);
    }
    truth
}
