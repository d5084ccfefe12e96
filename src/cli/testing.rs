//! The flag that says how images are tested.

use crate::train::{ModelFile, Testing};

/// `--average-mirror`
#[derive(clap::Args)]
pub struct AverageMirror {
    /// Average the outputs for each image and for its mirror image, which takes twice the time [default: as the model was trained for]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    average_mirror: Option<bool>,
}

impl AverageMirror {
    /// How images are tested with this model.
    pub fn testing(&self, model: &ModelFile) -> Testing {
        let testing = model.testing();
        Testing { average_mirror: self.average_mirror.unwrap_or(testing.average_mirror), ..testing }
    }
}
