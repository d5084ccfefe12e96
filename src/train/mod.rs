//! Training: the recipe, the loop, what it measures and what it saves. Nothing here prints.

mod checkpoint;
mod diagnose;
mod evaluate;
mod logit_gradients;
mod metrics;
mod model_file;
mod network;
mod recipe;
mod run;
mod state_dict;
mod tensorboard;
mod trainer;

pub use checkpoint::{Best, Checkpoint, Position, save_checkpoint};
pub use diagnose::find_not_finite;
pub use evaluate::{Prediction, batch_shape, evaluate, softmax};
pub use logit_gradients::{LogitGradients, logit_gradients};
pub use metrics::{Metric, MetricsFile, Totals};
pub use model_file::{ModelFile, load_model, save_model};
pub use network::{BatchResult, Network, Purpose};
pub use recipe::{LARGEST_IMAGE_SIZE, LARGEST_WIDTH, Recipe};
pub use run::{CheckpointEvery, Checkpointing, Event, MemoryPlan, Pace, Run, RunFolder, Summary};
pub use state_dict::{
    copy_head, initialise, load_state_dict, load_state_dict_named, new_head, recognise, save_state_dict, state_dict,
};
pub use tensorboard::TensorBoard;
pub use trainer::{Trainable, Trainer};
