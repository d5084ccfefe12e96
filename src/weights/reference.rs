//! Reference files (`retune-reference-1`): what another program computed, to check this one against.
//!
//! Metadata, all strings: `format`, `arch`, `width`, `num_classes`, `loss_reduction`, `lr`, `head_lr`, `weight_decay`,
//! `momentum`, `freeze`, `freeze_batch_norm`, `margin`, `source`; see [`Reference`]. Tensors, float32 unless said:
//!
//! - `input` `[N, 3, H, W]`, `target` `[N]` int64; `param/NAME`: parameters and buffers to begin with
//! - `logits`, `loss`, `grad/NAME`, `buffer/NAME`: of the first training step
//! - `step1/NAME`, `step3/NAME`: parameters after one and three steps on that batch (optional)
//! - `ema3/NAME`: the moving average of the parameters after three steps, with the decay `ema` of the metadata, and its running
//!   statistics, computed from the two halves of the batch (optional)
//! - `eval_logits`, `activation/MODULE` (optional)
//! - `noise/ANY`, one number for any of those names: the relative error of PyTorch's own float32 on that tensor, against
//!   its float64 (optional, else 0)
//! - `noise_tf32/ANY` and `noise_bf16/ANY`, the same for PyTorch with tf32 convolutions and for its autocast to bfloat16
//!   (optional; without them a device in that precision cannot be judged). `scripts/make-fixtures.py` says how it
//!   measures them on a CPU, and adds them to a file that has none.

use std::path::Path;
use std::str::FromStr;

use super::state_dict::{TensorEntry, TensorFile, printable};
use crate::device::{Mixture, Precision};
use crate::error::{Error, Result};
use crate::ops::LossReduction;

/// The value of the metadata field `format`.
pub const FORMAT: &str = "retune-reference-1";

/// A reference file: its recipe, checked, and its tensors.
#[derive(Debug)]
pub struct Reference {
    /// The name of the architecture, such as `resnet18`; whether there is one is not checked here.
    pub arch: String,
    /// Channels after the first convolution; 64 in the published networks.
    pub width: usize,
    /// Classes of the head.
    pub num_classes: usize,
    /// How the batch's losses were combined.
    pub loss_reduction: LossReduction,
    /// The decay of the average of the parameters, where the file has one.
    pub ema: Option<f64>,
    /// The share of the loss that was spread evenly over all classes; 0 where the file does not say.
    pub label_smoothing: f64,
    /// The weight of each class in the loss; all 1 where the file does not say.
    pub class_weights: Option<Vec<f64>>,
    /// What was done to the images and targets of the training steps, if they were mixed; `eval_logits` are those of the images alone.
    pub mixture: Option<Mixture>,
    /// Learning rate of the body.
    pub learning_rate: f64,
    /// Learning rate of the head.
    pub head_learning_rate: f64,
    /// Weight decay of both.
    pub weight_decay: f64,
    /// `sgd` where the file does not say.
    pub optimizer: String,
    /// Whether batch norms and biases have no weight decay; false by default.
    pub no_decay_norm_bias: bool,
    /// Names of frozen modules.
    pub freeze: Vec<String>,
    /// Whether those modules also normalise by their running statistics.
    pub freeze_batch_norm: bool,
    /// Smallest ReLU input in absolute value, over the root mean square of that layer's inputs.
    pub margin: f64,
    /// The program that made the file.
    pub source: String,
    file: TensorFile,
}

impl Reference {
    /// Opens a reference file and checks its metadata and the shapes of its tensors; no tensor but the targets and the
    /// noise is read.
    ///
    /// # Errors
    /// When it is not a safetensors file, when a field of its metadata is missing or invalid, or when a tensor is missing or
    /// does not fit the others.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_file(TensorFile::open(path)?)
    }

    /// Like [`Reference::open`], for a file whose header has been read.
    ///
    /// # Errors
    /// Those of [`Reference::open`].
    pub fn from_file(file: TensorFile) -> Result<Self> {
        let fields = Fields(&file);
        let reference = {
            fields.one_of("format", &[(FORMAT, ())])?;
            // Every file has it, whatever its optimiser; `number` reads it.
            fields.not_negative("momentum")?;
            Self {
                arch: fields.text("arch")?.to_owned(),
                width: fields.count("width")?,
                num_classes: fields.count("num_classes")?,
                loss_reduction: fields
                    .one_of("loss_reduction", &[("sum", LossReduction::Sum), ("mean", LossReduction::Mean)])?,
                ema: fields.optional("ema", Fields::decay)?,
                label_smoothing: fields.optional("label_smoothing", Fields::share)?.unwrap_or(0.0),
                class_weights: fields.optional("class_weights", Fields::weights)?,
                mixture: fields.mixture()?,
                learning_rate: fields.not_negative("lr")?,
                head_learning_rate: fields.not_negative("head_lr")?,
                weight_decay: fields.not_negative("weight_decay")?,
                optimizer: fields.optional("optimizer", Fields::text)?.unwrap_or("sgd").to_string(),
                no_decay_norm_bias: fields
                    .optional("no_decay_norm_bias", |fields, key| fields.one_of(key, &BOOLEANS))?
                    .unwrap_or(false),
                freeze: fields.list("freeze")?,
                freeze_batch_norm: fields.one_of("freeze_batch_norm", &BOOLEANS)?,
                margin: fields.not_negative("margin")?,
                source: fields.text("source")?.to_owned(),
                file,
            }
        };
        reference.check_batch()?;
        reference.check_parameters()?;
        reference.check_noise()?;
        Ok(reference)
    }

    /// The file, for its tensors by their full names, such as `grad/conv1.weight`.
    pub fn file(&self) -> &TensorFile {
        &self.file
    }

    /// A number of the metadata that is not negative, where the file has it: a hyperparameter of the optimiser.
    ///
    /// # Errors
    /// When it is not such a number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        Fields(&self.file).optional(key, Fields::not_negative)
    }

    /// Shape of `input`: images, channels (3), height, width.
    pub fn input_shape(&self) -> [usize; 4] {
        match self.file.get("input").map(|entry| entry.shape.as_slice()) {
            Some(&[images, channels, height, width]) => [images, channels, height, width],
            _ => [0; 4],
        }
    }

    /// PyTorch's own relative error in this precision on a tensor, named in full. In float32 it is 0 if the file does not contain
    /// it.
    pub fn noise(&self, precision: Precision, name: &str) -> Option<f64> {
        let name = format!("{}{name}", noise_prefix(precision));
        let told = || self.file.read_f32(&name).ok()?.first().copied().map(f64::from);
        match (self.file.contains(&name), precision) {
            (true, _) => told(),
            (false, Precision::Fp32) => Some(0.0),
            (false, Precision::Tf32 | Precision::Bf16) => None,
        }
    }

    /// Whether the file contains PyTorch's own error in this precision for any tensor.
    pub fn has_noise(&self, precision: Precision) -> bool {
        self.group(noise_prefix(precision)).next().is_some()
    }

    /// Initial parameters and buffers: torch names, without `param/`.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.group("param/")
    }

    /// Torch names of parameters that have a gradient, `grad/<name>`.
    pub fn gradients(&self) -> impl Iterator<Item = &str> {
        self.group("grad/")
    }

    /// Torch names of buffers after the first forward, `buffer/<name>`.
    pub fn buffers(&self) -> impl Iterator<Item = &str> {
        self.group("buffer/")
    }

    /// Torch names of parameters whose values after one SGD step are in the file, `step1/<name>`.
    pub fn after_one_step(&self) -> impl Iterator<Item = &str> {
        self.group("step1/")
    }

    /// Torch names of parameters whose values after three SGD steps are in the file, `step3/<name>`.
    pub fn after_three_steps(&self) -> impl Iterator<Item = &str> {
        self.group("step3/")
    }

    /// Torch names of averaged parameters and their running statistics after three steps, `ema3/<name>`.
    pub fn averages(&self) -> impl Iterator<Item = &str> {
        self.group("ema3/")
    }

    /// Names of modules whose outputs are in the file, `activation/<module>`.
    pub fn activations(&self) -> impl Iterator<Item = &str> {
        self.group("activation/")
    }

    fn group(&self, prefix: &'static str) -> impl Iterator<Item = &str> {
        self.file.names().filter_map(move |name| name.strip_prefix(prefix))
    }

    fn error(&self, problem: impl std::fmt::Display) -> Error {
        Error::new(format!("{}: {problem}", self.file.path().display()))
    }

    fn expect_shape(&self, name: &str, expected: &[usize]) -> Result<&TensorEntry> {
        let entry = self.file.entry(name)?;
        if entry.shape != expected {
            let name = printable(name);
            return Err(self.error(format_args!("tensor {name}: expected shape {expected:?}, found {:?}", entry.shape)));
        }
        Ok(entry)
    }

    fn check_batch(&self) -> Result<()> {
        let input = self.file.entry("input")?;
        let &[images, 3, 1..=usize::MAX, 1..=usize::MAX] = input.shape.as_slice() else {
            return Err(self.error(format_args!(
                "tensor input: expected shape [images, 3, height, width], found {:?}",
                input.shape
            )));
        };
        if images == 0 {
            return Err(self.error("tensor input: expected at least one image, found none"));
        }
        self.expect_shape("target", &[images])?;
        self.expect_shape("logits", &[images, self.num_classes])?;
        self.expect_shape("loss", &[])?;
        if self.file.contains("eval_logits") {
            self.expect_shape("eval_logits", &[images, self.num_classes])?;
        }
        let targets = self.file.read_i64("target")?;
        let in_range = |target: i64| usize::try_from(target).is_ok_and(|target| target < self.num_classes);
        match targets.iter().find(|&&target| !in_range(target)) {
            None => Ok(()),
            Some(target) => {
                Err(self
                    .error(format_args!("tensor target: found class {target}, expected 0 to {}", self.num_classes - 1)))
            }
        }
    }

    fn check_parameters(&self) -> Result<()> {
        let first = self.file.entry("param/conv1.weight")?;
        if first.shape.first() != Some(&self.width) {
            let shape = &first.shape;
            return Err(
                self.error(format_args!("metadata width is {}, but param/conv1.weight is {shape:?}", self.width))
            );
        }
        let head = self.file.entry("param/fc.weight")?;
        if head.shape.first() != Some(&self.num_classes) {
            let (classes, shape) = (self.num_classes, &head.shape);
            return Err(self.error(format_args!("metadata num_classes is {classes}, but param/fc.weight is {shape:?}")));
        }
        for group in ["grad/", "buffer/", "step1/", "step3/", "ema3/"] {
            for name in self.group(group) {
                let parameter = self.file.entry(&format!("param/{name}"))?;
                self.expect_shape(&format!("{group}{name}"), &parameter.shape)?;
            }
        }
        Ok(())
    }

    fn check_noise(&self) -> Result<()> {
        for prefix in [Precision::Fp32, Precision::Tf32, Precision::Bf16].map(noise_prefix) {
            for name in self.group(prefix) {
                let name = format!("{prefix}{name}");
                match self.file.read_f32(&name)?[..] {
                    [noise] if noise.is_finite() && noise >= 0.0 => {}
                    _ => {
                        let name = printable(&name);
                        return Err(self.error(format_args!("tensor {name}: expected one finite number of at least 0")));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The prefix of the names of tensors that contain PyTorch's own error in this precision.
fn noise_prefix(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp32 => "noise/",
        Precision::Tf32 => "noise_tf32/",
        Precision::Bf16 => "noise_bf16/",
    }
}

/// The metadata of a reference file.
struct Fields<'a>(&'a TensorFile);

/// The metadata values for yes and no.
const BOOLEANS: [(&str, bool); 2] = [("true", true), ("false", false)];

impl<'a> Fields<'a> {
    fn text(&self, key: &str) -> Result<&'a str> {
        self.0.metadata().get(key).map(String::as_str).ok_or_else(|| {
            Error::new(format!("{}: metadata field {key} is missing", self.0.path().display()))
                .hint(format!("the metadata of a reference file contains `format` = `{FORMAT}` and the whole recipe"))
        })
    }

    fn bad(&self, key: &str, expected: &str) -> Error {
        let found = self.0.metadata().get(key).map(|found| printable(found)).unwrap_or_default();
        Error::new(format!("{}: metadata field {key}: expected {expected}, found {found:?}", self.0.path().display()))
    }

    fn parse<T: FromStr>(&self, key: &str, expected: &str, good: impl Fn(&T) -> bool) -> Result<T> {
        self.text(key)?.parse().ok().filter(good).ok_or_else(|| self.bad(key, expected))
    }

    fn count(&self, key: &str) -> Result<usize> {
        self.parse(key, "a whole number of at least 1", |&count| count >= 1)
    }

    fn not_negative(&self, key: &str) -> Result<f64> {
        self.parse(key, "a finite number of at least 0", |number: &f64| number.is_finite() && *number >= 0.0)
    }

    fn share(&self, key: &str) -> Result<f64> {
        self.parse(key, "a number from 0 to 1", |number| (0.0..=1.0).contains(number))
    }

    fn decay(&self, key: &str) -> Result<f64> {
        self.parse(key, "a number above 0 and below 1", |number| *number > 0.0 && *number < 1.0)
    }

    /// A number above 0 for each class.
    fn weights(&self, key: &str) -> Result<Vec<f64>> {
        let classes = self.count("num_classes")?;
        let is_weight = |weight: &f64| *weight > 0.0 && weight.is_finite();
        let weights = self.text(key)?.split(',').map(|weight| weight.trim().parse().ok().filter(is_weight));
        let weights: Option<Vec<f64>> = weights.collect();
        let weights = weights.filter(|weights| weights.len() == classes);
        weights.ok_or_else(|| self.bad(key, &format!("{classes} numbers above 0, with commas between them")))
    }

    /// mixup with its share, or CutMix with its rectangle.
    fn mixture(&self) -> Result<Option<Mixture>> {
        let &[_, _, height, width] = self.0.entry("input")?.shape.as_slice() else { return Ok(None) };
        let (height, width) = (height as u32, width as u32);
        let mixup = self.optional("mixup", Fields::share)?.map(|share| share as f32);
        let cutmix = self.optional("cutmix", |fields, key| {
            let edges: Option<Vec<u32>> = fields.text(key)?.split(',').map(|edge| edge.trim().parse().ok()).collect();
            match edges.as_deref() {
                Some(&[top, left, bottom, right])
                    if top <= bottom && bottom <= height && left <= right && right <= width =>
                {
                    let area = f64::from(bottom - top) * f64::from(right - left);
                    let share = (1.0 - area / (f64::from(height) * f64::from(width))) as f32;
                    Ok(Mixture { share, weight: 0.0, top, left, bottom, right })
                }
                _ => Err(fields
                    .bad(key, &format!("top, left, bottom and right of a rectangle in {height} x {width} pixels"))),
            }
        })?;
        match (mixup, cutmix) {
            (Some(_), Some(_)) => Err(self.bad("mixup", "no such field beside cutmix")),
            (Some(share), None) => {
                Ok(Some(Mixture { share, weight: share, top: 0, left: 0, bottom: height, right: width }))
            }
            (None, cutmix) => Ok(cutmix),
        }
    }

    fn one_of<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<T> {
        let found = self.text(key)?;
        choices.iter().find(|(choice, _)| *choice == found).map(|&(_, value)| value).ok_or_else(|| {
            let names: Vec<&str> = choices.iter().map(|&(choice, _)| choice).collect();
            self.bad(key, &names.join(" or "))
        })
    }

    fn optional<T>(&self, key: &str, read: impl Fn(&Self, &str) -> Result<T>) -> Result<Option<T>> {
        self.0.metadata().contains_key(key).then(|| read(self, key)).transpose()
    }

    fn list(&self, key: &str) -> Result<Vec<String>> {
        let text = self.text(key)?;
        Ok(text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }
}
