//! One launch of the probe, and what the GPU answered.

use std::rc::Rc;

use serde::Serialize;
use serde_json::Value;

use crate::device::cuda::arguments::KernelArguments;
use crate::device::cuda::driver::{ArithmeticUnit, Driver, Launch, Work};
use crate::error::Result;
use crate::tensor::Memory;

/// The result of one case.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// What the case does.
    pub name: String,
    /// `load` or `multiply`.
    pub kind: &'static str,
    /// All numbers of the case.
    pub parameters: Value,
    /// Whether the model claims to know the result. If not, the case only records one.
    pub is_predicted: bool,
    /// Whether the copy was complete within half a second; a product always is.
    pub is_complete: bool,
    /// Words of 4 bytes in the dump.
    pub words: usize,
    /// Those that differ from the model.
    pub differences: usize,
    /// The first difference, in words.
    pub first_difference: Option<String>,
    /// What the GPU wrote: shared memory after a copy, or the accumulators of each thread.
    #[serde(skip)]
    pub dump: Vec<u8>,
}

impl Answer {
    /// Whether the GPU did what the model says.
    pub fn matches(&self) -> bool {
        self.is_complete && self.differences == 0
    }

    /// Whether the model is wrong about this GPU.
    pub fn is_failure(&self) -> bool {
        self.is_predicted && !self.matches()
    }

    /// Compares a dump with what the model expects, both as words of 4 bytes that `show` prints.
    pub(super) fn compare(
        case: Description,
        dump: Vec<u8>,
        expected: &[u8],
        is_complete: bool,
        show: fn([u8; 4]) -> String,
    ) -> Self {
        assert_eq!(dump.len(), expected.len(), "a dump has the length that the case asks for");
        let words = |bytes: &[u8]| bytes.as_chunks::<4>().0.to_vec();
        let (found, wanted) = (words(&dump), words(expected));
        let mut different = (0..found.len()).filter(|&index| found[index] != wanted[index]).peekable();
        let first_difference = different.peek().map(|&index| {
            format!("byte {} is {}, the model says {}", 4 * index, show(found[index]), show(wanted[index]))
        });
        let differences = different.count();
        let Description { name, kind, parameters, is_predicted } = case;
        let words = found.len();
        Self { name, kind, parameters, is_predicted, is_complete, words, differences, first_difference, dump }
    }
}

/// A case as it is written to the file.
pub(super) struct Description {
    pub name: String,
    pub kind: &'static str,
    pub parameters: Value,
    pub is_predicted: bool,
}

/// Memory of the GPU with this content.
pub(super) fn upload(driver: &dyn Driver, content: &[u8]) -> Result<Rc<Memory>> {
    let memory = driver.allocate(content.len())?;
    driver.upload(content, memory.address())?;
    Ok(memory)
}

/// Launches one block of 128 threads.
pub(super) fn launch(
    driver: &dyn Driver,
    kernel: &'static str,
    shared_bytes: usize,
    arguments: &impl KernelArguments,
) -> Result<()> {
    // Nothing is timed.
    let work = Work { operations: 0, unit: ArithmeticUnit::TensorBf16, bytes_read: 0, bytes_written: 0 };
    let shared_bytes = shared_bytes as u32;
    let arguments = arguments.as_bytes();
    driver.launch(&Launch { kernel, grid: [1, 1, 1], block: [128, 1, 1], shared_bytes, arguments, work })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(dump: Vec<u8>, is_predicted: bool, is_complete: bool) -> Answer {
        let case = Description { name: "a".into(), kind: "load", parameters: Value::Null, is_predicted };
        let show = |word| u32::from_le_bytes(word).to_string();
        Answer::compare(case, dump, &[1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0], is_complete, show)
    }

    #[test]
    fn differences_are_counted_and_the_first_is_named() {
        let same = compared(vec![1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0], true, true);
        assert!(same.matches() && !same.is_failure() && same.first_difference.is_none(), "{same:?}");
        let other = compared(vec![1, 0, 0, 0, 2, 1, 0, 0, 4, 0, 0, 0], true, true);
        assert!(!other.matches() && other.is_failure());
        assert_eq!((other.words, other.differences), (3, 2));
        assert_eq!(other.first_difference.as_deref(), Some("byte 4 is 258, the model says 2"));
        assert!(!compared(other.dump, false, true).is_failure());
        assert!(compared(same.dump, true, false).is_failure(), "a copy that was given up is a failure");
    }
}
