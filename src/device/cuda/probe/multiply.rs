//! wgmma: which bytes of shared memory a descriptor names, and which thread has which sum.
//!
//! Shared memory is filled with small integers that differ from place to place, so every product is exact, and reading another
//! byte than the model gives another product.

use serde_json::json;

use super::answer::{Answer, Description, launch, upload};
use super::swizzle::{apply, descriptor_code, span};
use crate::device::cuda::arguments::kernel_arguments;
use crate::device::cuda::driver::Driver;
use crate::device::cuda::nvidia::tensor_map::Swizzle;
use crate::error::Result;

/// Rows of A and of the product.
const ROWS: usize = 64;
/// Bytes of a row of K in one step.
const STEP_BYTES: usize = 32;
/// Where B begins. A, with all shifts, ends before.
const B_START: usize = 16 << 10;
/// Bytes of shared memory.
const BYTES: usize = 64 << 10;

kernel_arguments! {
    struct ProbeMultiplyArguments {
        content: u64,
        dump: u64,
        a: u64,
        b: u64,
        steps: u32,
        a_advance: u32,
        b_advance: u32,
        bytes: u32,
    }
}

/// The dimension of an operand whose elements are contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contiguous {
    K,
    /// Rows of A, columns of B.
    Other,
}

/// A descriptor, and the layout that it stands for.
#[derive(Debug, Clone, Copy)]
struct Operand {
    contiguous: Contiguous,
    swizzle: Swizzle,
    /// In bytes, as the next two.
    start: usize,
    leading: usize,
    stride: usize,
    base_offset: usize,
    /// Bytes from one step to the next.
    advance: usize,
}

impl Operand {
    /// The descriptor of a matrix that lies as bulk copies with this swizzle leave it: rows of the swizzle's span, dense.
    fn dense(contiguous: Contiguous, swizzle: Swizzle) -> Self {
        let span = span(swizzle);
        let (leading, stride, advance) = match (contiguous, swizzle) {
            // Matrices of 8 rows of 16 bytes, here column by column of them: eight along rows, then the next along K.
            (Contiguous::K, Swizzle::None) => (1024, 128, 2 * 1024),
            // The leading offset is not used.
            (Contiguous::K, _) => (16, 8 * span, STEP_BYTES),
            (Contiguous::Other, Swizzle::None) => (1024, 128, 2 * 1024),
            // Eight rows of K, then the next eight; the next columns after 64 rows.
            (Contiguous::Other, _) => (64 * span, 8 * span, 16 * span),
        };
        Self { contiguous, swizzle, start: 0, leading, stride, base_offset: 0, advance }
    }

    fn descriptor(&self) -> u64 {
        let field = |bytes: usize| (bytes as u64 & 0x3_ffff) >> 4;
        field(self.start)
            | field(self.leading) << 16
            | field(self.stride) << 32
            | (self.base_offset as u64 & 7) << 49
            | descriptor_code(self.swizzle) << 62
    }

    /// The byte of shared memory at which an element begins. `row` counts rows of A or columns of B.
    fn place(&self, step: usize, row: usize, k: usize, element_bytes: usize) -> usize {
        let span = span(self.swizzle);
        let within = match (self.contiguous, self.swizzle) {
            (Contiguous::K, Swizzle::None) => {
                let byte = k * element_bytes;
                row / 8 * self.stride + row % 8 * 16 + byte / 16 * self.leading + byte % 16
            }
            (Contiguous::K, _) => row / 8 * self.stride + row % 8 * span + k * element_bytes,
            (Contiguous::Other, Swizzle::None) => {
                row / 8 * self.stride + row % 8 * element_bytes + k / 8 * self.leading + k % 8 * 16
            }
            (Contiguous::Other, _) => {
                let of_row = span / element_bytes;
                row / of_row * self.leading + row % of_row * element_bytes + k / 8 * self.stride + k % 8 * span
            }
        };
        apply(self.swizzle, self.start + step * self.advance + within)
    }

    fn parameters(&self) -> serde_json::Value {
        json!({
            "contiguous": if self.contiguous == Contiguous::K { "k" } else { "other" },
            "swizzle": if self.swizzle == Swizzle::None { 0 } else { span(self.swizzle) },
            "start": self.start, "leading": self.leading, "stride": self.stride, "base_offset": self.base_offset,
            "advance": self.advance, "descriptor": format!("{:016x}", self.descriptor()),
        })
    }
}

/// The format of the operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Bf16,
    Tf32,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Tf32 => 4,
        }
    }

    /// The number at this index of shared memory: an integer from -8 to 8, by a hash of the index.
    fn number(self, index: usize) -> f32 {
        let mixed = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed >> 40) % 17) as f32 - 8.0
    }

    /// The content of shared memory.
    fn content(self) -> Vec<u8> {
        let numbers = (0..BYTES / self.bytes()).map(|index| self.number(index));
        match self {
            Self::Bf16 => numbers.flat_map(|number| half::bf16::from_f32(number).to_le_bytes()).collect(),
            Self::Tf32 => numbers.flat_map(f32::to_le_bytes).collect(),
        }
    }
}

/// A product of one warpgroup.
#[derive(Debug, Clone)]
pub(super) struct Multiply {
    what: &'static str,
    kernel: &'static str,
    element: Element,
    columns: usize,
    steps: usize,
    a: Operand,
    b: Operand,
    is_predicted: bool,
}

impl Multiply {
    pub(super) fn name(&self) -> String {
        format!("{}, {}", self.kernel, self.what)
    }

    /// The product in rows.
    fn product(&self) -> Vec<f32> {
        let depth = STEP_BYTES / self.element.bytes();
        let read = |operand: &Operand, step, row, k| {
            let size = self.element.bytes();
            self.element.number(operand.place(step, row, k, size) / size)
        };
        let mut product = vec![0.0; ROWS * self.columns];
        for (step, k) in (0..self.steps).flat_map(|step| (0..depth).map(move |k| (step, k))) {
            let b: Vec<f32> = (0..self.columns).map(|column| read(&self.b, step, column, k)).collect();
            for (row, sums) in product.chunks_mut(self.columns).enumerate() {
                let a = read(&self.a, step, row, k);
                sums.iter_mut().zip(&b).for_each(|(sum, b)| *sum += a * b);
            }
        }
        product
    }

    /// The accumulators of each thread.
    fn predict(&self) -> Vec<u8> {
        let product = self.product();
        let accumulators = self.columns / 2;
        let sum_of = |index: usize| {
            let (thread, accumulator) = (index / accumulators, index % accumulators);
            let (row, column) = position(thread, accumulator);
            product[row * self.columns + column]
        };
        (0..128 * accumulators).flat_map(|index| sum_of(index).to_le_bytes()).collect()
    }

    fn describe(&self) -> Description {
        let parameters = json!({
            "kernel": self.kernel, "columns": self.columns, "steps": self.steps,
            "a": self.a.parameters(), "b": self.b.parameters(),
        });
        Description { name: self.name(), kind: "multiply", parameters, is_predicted: self.is_predicted }
    }
}

/// Row and column of the sum that a thread of the warpgroup has in an accumulator.
fn position(thread: usize, accumulator: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    let (eight_columns, rest) = (accumulator / 4, accumulator % 4);
    (16 * warp + lane / 4 + rest / 2 * 8, 8 * eight_columns + lane % 4 * 2 + rest % 2)
}

pub(super) fn cases() -> Vec<Multiply> {
    use Contiguous::{K, Other};
    const ALL: Swizzle = Swizzle::Bytes128;
    let kernel = |columns: usize, a: Contiguous, b: Contiguous| match (columns, a, b) {
        (232, _, K) => "probe_bf16_232_kk",
        (232, _, Other) => "probe_bf16_232_kn",
        (_, K, K) => "probe_bf16_64_kk",
        (_, K, Other) => "probe_bf16_64_kn",
        (_, Other, K) => "probe_bf16_64_mk",
        (_, Other, Other) => "probe_bf16_64_mn",
    };
    let bf16 = |what, columns, steps, a: Operand, mut b: Operand| {
        b.start += B_START;
        let kernel = kernel(columns, a.contiguous, b.contiguous);
        Multiply { what, kernel, element: Element::Bf16, columns, steps, a, b, is_predicted: true }
    };
    let tf32 = |what, mut a: Operand, mut b: Operand, shift: usize, stride: usize| {
        (a.stride, b.stride) = (stride, stride);
        (a.start, b.start) = (128 * shift, B_START + 128 * shift);
        let kernel = "probe_tf32_64_kk";
        Multiply { what, kernel, element: Element::Tf32, columns: 64, steps: 4, a, b, is_predicted: true }
    };
    let dense = Operand::dense;
    let (k, other) = (dense(K, ALL), dense(Other, ALL));
    let shifted = |operand: Operand, rows: usize| Operand { start: rows * span(operand.swizzle), ..operand };
    let strided = |operand: Operand, stride: usize| Operand { stride, ..operand };
    let mut cases = vec![
        bf16("swizzle of 128 bytes, one step", 64, 1, k, k),
        bf16("swizzle of 128 bytes, four steps", 64, 4, k, k),
        bf16("swizzle of 64 bytes, two steps", 64, 2, dense(K, Swizzle::Bytes64), dense(K, Swizzle::Bytes64)),
        bf16("swizzle of 32 bytes, one step", 64, 1, dense(K, Swizzle::Bytes32), dense(K, Swizzle::Bytes32)),
        bf16("no swizzle, two steps", 64, 2, dense(K, Swizzle::None), dense(K, Swizzle::None)),
        bf16("swizzle of 128 bytes, four steps", 64, 4, k, other),
        bf16("swizzle of 128 bytes, four steps", 64, 4, other, k),
        bf16("swizzle of 128 bytes, one step", 64, 1, other, other),
        bf16("swizzle of 128 bytes, four steps", 64, 4, other, other),
        bf16("swizzle of 64 bytes, two steps", 64, 2, dense(Other, Swizzle::Bytes64), dense(Other, Swizzle::Bytes64)),
        bf16("swizzle of 32 bytes, two steps", 64, 2, dense(Other, Swizzle::Bytes32), dense(Other, Swizzle::Bytes32)),
        bf16("no swizzle, two steps", 64, 2, dense(Other, Swizzle::None), dense(Other, Swizzle::None)),
        bf16("swizzle of 128 bytes, four steps", 232, 4, k, k),
        bf16("swizzle of 128 bytes, four steps", 232, 4, k, other),
        tf32("swizzle of 128 bytes, four steps", k, k, 0, 1024),
        tf32("A and B begin at row 3", k, k, 3, 1024),
        tf32("groups of 8 rows overlap by 4", k, k, 0, 512),
    ];
    // Rows of K-contiguous operands begin anywhere in the pattern: the taps of a shifted patch.
    for (what_a, what_b, rows) in [
        ("A begins at row 1", "B begins at row 1", 1),
        ("A begins at row 3", "B begins at row 3", 3),
        ("A begins at row 7", "B begins at row 7", 7),
        ("A begins at row 8", "B begins at row 8", 8),
        ("A begins at row 58", "B begins at row 58", 58),
    ] {
        cases.push(bf16(what_a, 64, 4, shifted(k, rows), k));
        cases.push(bf16(what_b, 64, 4, k, shifted(k, rows)));
        cases.push(bf16(what_b, 232, 4, k, shifted(k, rows)));
    }
    let narrow = dense(K, Swizzle::Bytes64);
    cases.push(bf16("swizzle of 64 bytes, A and B begin at row 3", 64, 2, shifted(narrow, 3), shifted(narrow, 3)));
    // K itself begins anywhere: positions of a weight gradient.
    cases.push(bf16("B begins at row 1 of K", 64, 4, k, shifted(other, 1)));
    cases.push(bf16("B begins at row 3 of K", 64, 4, k, shifted(other, 3)));
    cases.push(bf16("A begins at row 3 of K", 64, 4, shifted(other, 3), k));
    cases.push(bf16("A begins at row 1 of K, B at row 58", 64, 4, shifted(other, 1), shifted(other, 58)));
    cases.push(bf16("B begins at row 3 of K", 232, 1, k, shifted(other, 3)));
    // Rows that overlap, and one group of rows for all.
    for (what, stride) in [
        ("groups of 8 rows overlap by 1", 896),
        ("groups of 8 rows overlap by 4", 512),
        ("groups of 8 rows overlap by 7", 128),
        ("all groups of 8 rows are the same", 0),
    ] {
        cases.push(bf16(what, 64, 4, strided(k, stride), strided(k, stride)));
        cases.push(bf16(what, 64, 4, strided(other, stride), strided(other, stride)));
    }
    cases.push(bf16("groups of 8 rows lie 9 rows apart", 232, 4, k, strided(k, 1152)));
    cases.push(bf16(
        "columns after 64 overlap with those before by 60 rows of K",
        232,
        1,
        k,
        Operand { leading: 512, ..other },
    ));
    // What the base offset of a descriptor does to a shifted start is not known; these come last, in case they fail.
    for (what, base_offset) in [("A begins at row 3, base offset 3", 3), ("A begins at row 3, base offset 5", 5)] {
        let unknown = bf16(what, 64, 4, Operand { base_offset, ..shifted(k, 3) }, k);
        cases.push(Multiply { is_predicted: false, ..unknown });
    }
    let unknown =
        bf16("B begins at row 3 of K, base offset 3", 64, 4, k, Operand { base_offset: 3, ..shifted(other, 3) });
    cases.push(Multiply { is_predicted: false, ..unknown });
    cases
}

pub(super) fn run(driver: &dyn Driver, case: Multiply) -> Result<Answer> {
    let content = upload(driver, &case.element.content())?;
    let expected = case.predict();
    let mut dump = vec![0; expected.len()];
    let target = driver.allocate(dump.len())?;
    let arguments = ProbeMultiplyArguments {
        content: content.address(),
        dump: target.address(),
        a: case.a.descriptor(),
        b: case.b.descriptor(),
        steps: case.steps as u32,
        a_advance: (case.a.advance / 16) as u32,
        b_advance: (case.b.advance / 16) as u32,
        bytes: BYTES as u32,
    };
    launch(driver, case.kernel, BYTES, &arguments)?;
    driver.download(target.address(), &mut dump)?;
    let show = |word| f32::from_le_bytes(word).to_string();
    Ok(Answer::compare(case.describe(), dump, &expected, true, show))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stores a matrix in shared memory by a formula of its own and reads it through the model's.
    fn reads_back(operand: Operand, rows: usize, steps: usize, stored: impl Fn(usize, usize) -> usize) {
        for (step, row, k) in (0..steps * rows * 16).map(|index| (index / (16 * rows), index / 16 % rows, index % 16)) {
            assert_eq!(
                operand.place(step, row, k, 2),
                stored(row, 16 * step + k),
                "{operand:?}: step {step}, {row}, {k}"
            );
        }
    }

    #[test]
    fn dense_operands_lie_as_bulk_copies_leave_them() {
        let swizzled = |swizzle, row: usize, byte: usize| apply(swizzle, row * span(swizzle) + byte);
        for (swizzle, steps) in [(Swizzle::Bytes128, 4), (Swizzle::Bytes64, 2), (Swizzle::Bytes32, 1)] {
            // A box of channels by pixels: K are channels, or pixels.
            let by_k = |row, k: usize| swizzled(swizzle, row, 2 * k);
            reads_back(Operand::dense(Contiguous::K, swizzle), 64, steps, by_k);
            // Boxes of 64 pixels, one for each group of channels.
            let of_row = span(swizzle) / 2;
            let by_row = |row: usize, k| swizzled(swizzle, row / of_row * 64 + k, row % of_row * 2);
            reads_back(Operand::dense(Contiguous::Other, swizzle), 64, 4, by_row);
        }
    }

    #[test]
    fn a_shifted_start_reads_the_shifted_rows() {
        for rows in [1, 3, 7, 8, 58] {
            let operand = Operand { start: 128 * rows, ..Operand::dense(Contiguous::K, Swizzle::Bytes128) };
            reads_back(operand, 64, 4, |row, k| apply(Swizzle::Bytes128, (row + rows) * 128 + 2 * k));
            let operand = Operand { start: 128 * rows, ..Operand::dense(Contiguous::Other, Swizzle::Bytes128) };
            reads_back(operand, 64, 4, |row, k| apply(Swizzle::Bytes128, (k + rows) * 128 + 2 * row));
        }
    }

    #[test]
    fn descriptors_have_their_fields() {
        let operand = Operand {
            contiguous: Contiguous::K,
            swizzle: Swizzle::Bytes128,
            start: 0x40,
            leading: 16,
            stride: 1024,
            base_offset: 3,
            advance: 32,
        };
        let expected = 4 | 1 << 16 | 64 << 32 | 3 << 49 | 1 << 62;
        assert_eq!(operand.descriptor(), expected);
        assert_eq!(Operand { swizzle: Swizzle::Bytes64, ..operand }.descriptor() >> 62, 2);
        assert_eq!(Operand { swizzle: Swizzle::Bytes32, ..operand }.descriptor() >> 62, 3);
        assert_eq!(Operand { swizzle: Swizzle::None, ..operand }.descriptor() >> 62, 0);
    }

    #[test]
    fn every_sum_has_one_thread() {
        for columns in [64, 232] {
            let mut seen = vec![false; ROWS * columns];
            for (thread, accumulator) in (0..128).flat_map(|thread| (0..columns / 2).map(move |index| (thread, index)))
            {
                let (row, column) = position(thread, accumulator);
                assert!(!std::mem::replace(&mut seen[row * columns + column], true), "{thread}, {accumulator}");
            }
            assert!(seen.into_iter().all(|seen| seen));
        }
        assert_eq!(position(0, 3), (8, 1));
        assert_eq!(position(33, 4), (16, 10));
    }

    /// A wrong address must not give the right product, and the buffer must hold what is read.
    #[test]
    fn products_are_exact_differ_and_stay_in_the_buffer() {
        let mut products: Vec<(String, Vec<u8>)> = Vec::new();
        for case in cases() {
            for (operand, rows) in [(&case.a, ROWS), (&case.b, case.columns)] {
                let depth = STEP_BYTES / case.element.bytes();
                for (step, row, k) in (0..case.steps * rows * depth)
                    .map(|index| (index / (rows * depth), index / depth % rows, index % depth))
                {
                    let place = operand.place(step, row, k, case.element.bytes());
                    let end = if operand.start < B_START { B_START } else { BYTES };
                    assert!(place + case.element.bytes() <= end, "{}: {place}", case.name());
                }
            }
            let product = case.product();
            assert!(product.iter().all(|sum| sum.fract() == 0.0 && sum.abs() < 2f32.powi(24)));
            assert!(product.iter().any(|&sum| sum != 0.0));
            let predicted = case.predict();
            if case.is_predicted && case.columns == 64 {
                for (other, earlier) in &products {
                    let same = predicted.iter().zip(earlier).filter(|(a, b)| a == b).count();
                    assert!(same < predicted.len(), "{} and {other}", case.name());
                }
                products.push((case.name(), predicted));
            }
        }
    }

    #[test]
    fn content_has_the_numbers_of_the_model() {
        let bf16 = Element::Bf16.content();
        let tf32 = Element::Tf32.content();
        assert_eq!((bf16.len(), tf32.len()), (BYTES, BYTES));
        for index in [0, 1, 777, 12_345] {
            let number = half::bf16::from_le_bytes([bf16[2 * index], bf16[2 * index + 1]]).to_f32();
            assert_eq!(number, Element::Bf16.number(index));
            let bytes = tf32[4 * index..4 * index + 4].try_into().unwrap();
            assert_eq!(f32::from_le_bytes(bytes), Element::Tf32.number(index));
        }
        let distinct: std::collections::BTreeSet<i32> =
            (0..1000).map(|index| Element::Bf16.number(index) as i32).collect();
        assert!(distinct.into_iter().eq(-8..=8));
    }
}
