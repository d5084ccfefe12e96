//! State dicts: files of tensors, the networks in them, and how their keys fit a network of this crate.
//!
//! [`find()`] is the only place that knows prefixes, nested dictionaries and other programs' key names; [`layout`] converts torch's
//! memory layout at load and at save.

mod file_kind;
mod find;
pub(crate) mod finite;
pub mod head;
mod imagenet;
mod key_names;
pub mod layout;
pub mod matching;
mod pth;
pub mod reference;
mod relatives;
pub mod save;
pub mod state_dict;

pub use find::{Found, find};
pub(crate) use find::{no_tensor, not_plain};
pub use head::{Head, head_from};
pub use imagenet::{IMAGENET_CLASSES, imagenet_classes};
pub use matching::{HeadPolicy, MatchReport, NamedShape, ShapeMismatch, match_state_dict};
pub use reference::Reference;
pub use safetensors::Dtype;
pub use save::{OutputTensor, TensorData, save};
pub use state_dict::{TensorEntry, TensorFile};
