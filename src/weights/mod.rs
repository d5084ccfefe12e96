//! State dicts: reading, writing and matching them.
//!
//! Torch's key names and layouts exist only here; [`layout`] converts them at load and at save.

mod file_kind;
pub mod head;
mod key_names;
pub mod layout;
pub mod matching;
pub mod network;
mod pth;
pub mod reference;
pub mod save;
pub mod state_dict;

pub use head::{Head, head_from};
pub use matching::{HeadPolicy, MatchReport, NamedShape, ShapeMismatch, match_state_dict};
pub use reference::Reference;
pub use safetensors::Dtype;
pub use save::{OutputTensor, TensorData, save};
pub use state_dict::{TensorEntry, TensorFile};
