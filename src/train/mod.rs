//! Training: the recipe, the loop, what it measures and what it saves.

mod evaluate;
mod metrics;
mod recipe;
mod state_dict;

pub use evaluate::{Prediction, batch_shape, evaluate, softmax};
pub use metrics::{Metric, MetricsFile, Totals};
pub use recipe::Recipe;
pub use state_dict::{
    copy_head, initialise, load_state_dict, load_state_dict_named, new_head, recognise, save_state_dict, state_dict,
};
