//! Training: how a run starts, its loop, what it measures and what it saves. Nothing here prints.

mod average;
mod checkpoint;
mod class_weights;
mod config;
mod data_check;
mod diagnose;
mod evaluate;
mod events;
mod features;
mod folder;
mod head_fit;
mod image_list;
mod lock;
mod logistic;
mod logit_gradients;
mod memory;
mod metrics;
mod model_file;
mod network;
mod recipe;
mod recipe_file;
mod run;
mod start;
mod state_dict;
mod tensorboard;
mod trainer;
mod trials;

pub use average::{STATISTICS_IMAGES, Statistics, recompute_statistics};
pub use checkpoint::{Best, Checkpoint, Choice, Position, save_checkpoint};
pub use class_weights::ClassWeights;
pub use config::RunConfig;
pub use data_check::{DataCheck, DuplicateImage, DuplicateImages, EarlierImages, few_steps, open_data_of_run};
pub use diagnose::find_not_finite;
pub use evaluate::{Prediction, batch_shape, classify, evaluate, softmax};
pub use events::{Event, Pace, Summary};
pub use features::{Features, features};
pub use folder::{RunFolder, reserve};
pub use head_fit::{HeadFit, TrainingFeatures, fit_head};
pub use image_list::ImageList;
pub use lock::FolderLock;
pub use logistic::{Examples, Fit, LinearLayer, Regression};
pub use logit_gradients::{LogitGradients, logit_gradients};
pub use memory::MemoryPlan;
pub use metrics::{HeldOut, Metric, MetricsFile, Totals, Trial, TriedPenalty};
pub use model_file::{Body, ModelFile, body_digest, class_names, load_body, load_model, save_model};
pub use network::{BatchResult, Network, Purpose};
pub use recipe::{Hyperparameters, LARGEST_IMAGE_SIZE, LARGEST_WIDTH, Recipe, SMALLEST_IMAGE_SIZE};
pub use recipe_file::{NamedRecipe, RECIPES, RecipeFile, read_recipe, recipe_text};
pub use run::{CheckpointEvery, Checkpointing, Run, RunOptions};
pub use start::Start;
pub use state_dict::{
    copy_head, find_network, initialise, load_state_dict, load_state_dict_named, new_head, save_state_dict, state_dict,
};
pub use tensorboard::TensorBoard;
pub use trainer::{LossSettings, Trainable, Trainer, TrainerState, Weights};
pub use trials::{Division, TrialEvent, Trials, try_learning_rates};
