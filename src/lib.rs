//! Fine-tunes an ImageNet ResNet on a folder of images.
//!
//! Modules depend downwards only: `cli` -> `report` -> `train` -> `model`, `data`, `optim`, `weights` -> `graph` -> `ops` ->
//! `device` -> `tensor`. `ARCHITECTURE.md` has an overview.
//!
//! Unsafe code is limited to `device` and to the mapping of files; `docs/unsafe.md` lists it.

#![deny(unsafe_code)]

pub mod cli;
pub mod data;
#[allow(unsafe_code)]
pub mod device;
pub mod drawing;
pub mod error;
pub mod fetch;
pub mod file;
pub mod gradcheck;
pub mod graph;
pub mod model;
pub mod onnx;
pub mod ops;
pub mod optim;
pub mod printable;
pub mod protobuf;
pub mod report;
pub mod tensor;
pub mod train;
pub mod weights;

pub use error::{Error, Result};
