//! Event files that TensorBoard reads: records of a length, its checksum, a message, its checksum.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::metrics::{HeldOut, Metric};
use crate::error::{Context, Result};
use crate::protobuf::Message;

/// An event file, open for appending.
pub struct TensorBoard {
    path: PathBuf,
    file: File,
    batches: usize,
}

impl TensorBoard {
    /// Begins an event file in the run's folder. Steps are counted in batches, of which an epoch has this many.
    pub fn create(folder: &Path, batches: usize) -> Result<Self> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let mut number = 0;
        loop {
            let path = folder.join(format!("events.out.tfevents.{seconds:010}.retune.{}.{number}", std::process::id()));
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                opened => {
                    let file = opened.context(|| format!("cannot write {}", path.display()))?;
                    let mut board = Self { path, file, batches };
                    board.append(event().bytes(3, "brain.Event:2"))?;
                    return Ok(board);
                }
            }
        }
    }

    /// Appends a metric.
    pub fn add(&mut self, metric: &Metric) -> Result<()> {
        let (epoch, scalars) = match *metric {
            Metric::Progress { epoch, train_loss, train_acc } => {
                (epoch, vec![("loss/train", train_loss), ("accuracy/train", train_acc)])
            }
            Metric::Epoch { epoch, held_out, images_per_second, .. } => {
                let [loss, accuracy] = match held_out {
                    HeldOut::Test { .. } => ["loss/test", "accuracy/test"],
                    HeldOut::Validation { .. } => ["loss/val", "accuracy/val"],
                };
                let scalars = vec![
                    (loss, held_out.loss()),
                    (accuracy, held_out.accuracy()),
                    ("images_per_second", images_per_second),
                ];
                (epoch as f64, scalars)
            }
            Metric::Head { .. }
            | Metric::Trials { .. }
            | Metric::Test { .. }
            | Metric::Changed { .. }
            | Metric::Stopped { .. }
            | Metric::Skipped { .. } => {
                return Ok(());
            }
        };
        let summary = scalars.into_iter().fold(Message::new(), |summary, (tag, value)| {
            summary.message(1, Message::new().bytes(1, tag).float(2, value as f32))
        });
        let step = (epoch * self.batches as f64).round() as i64;
        self.append(event().integer(2, step).message(5, summary))
    }

    fn append(&mut self, event: Message) -> Result<()> {
        let record = record(&event.into_bytes());
        self.file.write_all(&record).context(|| format!("cannot write {}", self.path.display()))
    }
}

fn event() -> Message {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
    Message::new().double(1, now)
}

/// TensorFlow's `TFRecord`.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_checksum(&length).to_le_bytes());
    record.extend_from_slice(data);
    record.extend_from_slice(&masked_checksum(data).to_le_bytes());
    record
}

/// Masks a checksum, because checksums of data that contains checksums are weak.
fn masked_checksum(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checksum of RFC 3720's example, and a record that is parsed again.
    #[test]
    fn records_have_their_length_and_checksums() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        let record = record(b"abc");
        assert_eq!(record.len(), 3 + 16);
        assert_eq!(record[..8], 3u64.to_le_bytes());
        assert_eq!(record[8..12], masked_checksum(&3u64.to_le_bytes()).to_le_bytes());
        assert_eq!(record[12..15], *b"abc");
        assert_eq!(record[15..], masked_checksum(b"abc").to_le_bytes());
    }
}
