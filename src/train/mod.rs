//! Training: the recipe, the loop, what it measures and what it saves. Nothing here prints.

mod checkpoint;
mod evaluate;
mod metrics;
mod model_file;
mod recipe;
mod run;
mod state_dict;
mod tensorboard;

pub use checkpoint::{Best, Checkpoint, Position, save_checkpoint};
pub use evaluate::{Prediction, batch_shape, evaluate, softmax};
pub use metrics::{Metric, MetricsFile, Totals};
pub use model_file::{ModelFile, load_model, save_model};
pub use recipe::{LARGEST_IMAGE_SIZE, LARGEST_WIDTH, Recipe};
pub use run::{CheckpointEvery, Checkpointing, Event, MemoryPlan, Pace, Run, RunFolder, Summary};
pub use state_dict::{
    copy_head, initialise, load_state_dict, load_state_dict_named, new_head, recognise, save_state_dict, state_dict,
};
pub use tensorboard::TensorBoard;
