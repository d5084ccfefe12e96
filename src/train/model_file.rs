//! `model.safetensors`: a state dict that torchvision loads as it is, with what a user of it must know.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::rc::Rc;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::evaluate::Testing;
use super::network::Network;
use super::recipe::{LARGEST_IMAGE_SIZE, Recipe};
use super::state_dict::{find_network, load_state_dict, state_dict};
use crate::data::transform::{MEAN, STANDARD_DEVIATION, test_shorter_side};
use crate::data::{ResizeMode, counted, first_names};
use crate::device::Device;
use crate::error::{Context, Error, Result};
use crate::model::{Recognised, ResNet, is_head};
use crate::printable::printable;
use crate::weights::{
    Found, HeadPolicy, IMAGENET_CLASSES, OutputTensor, TensorData, TensorFile, imagenet_classes, no_tensor, save,
};

/// Writes a trained model.
/// The outputs are divided by `temperature`: the final layer is, so that whoever loads the model gets calibrated probabilities.
pub fn save_model(
    path: &Path,
    network: &Network,
    recipe: &Recipe,
    classes: &[String],
    epoch: usize,
    temperature: Option<f64>,
) -> Result<()> {
    let mut transform = serde_json::json!({
        "interpolation": "bilinear, antialias",
        "mean": MEAN,
        "std": STANDARD_DEVIATION,
    });
    let size = recipe.image_size;
    match recipe.resize {
        ResizeMode::Crop => {
            transform["resize"] = test_shorter_side(size as u32).into();
            transform["center_crop"] = size.into();
        }
        ResizeMode::Squash => transform["squash"] = size.into(),
        ResizeMode::Pad => transform["pad"] = size.into(),
    }
    if recipe.exif {
        transform["exif"] = true.into();
    }
    let resnet = network.resnet();
    let json = |value: serde_json::Result<String>| value.context(|| "cannot write a model's metadata");
    let mut metadata = BTreeMap::from([
        ("format".to_string(), "pt".to_string()),
        ("architecture".to_string(), resnet.architecture.to_string()),
        ("width".to_string(), resnet.width.to_string()),
        ("classes".to_string(), json(serde_json::to_string(classes))?),
        ("transform".to_string(), transform.to_string()),
        ("recipe".to_string(), json(serde_json::to_string(recipe))?),
        ("epoch".to_string(), epoch.to_string()),
    ]);
    if recipe.average_mirror {
        metadata.insert(AVERAGE_MIRROR.into(), true.to_string());
    }
    let mut tensors = state_dict(network)?;
    if let Some(temperature) = temperature {
        metadata.insert(TEMPERATURE.into(), temperature.to_string());
        for tensor in tensors.iter_mut().filter(|tensor| is_head(&tensor.name)) {
            if let TensorData::F32(values) = &mut tensor.data {
                values.to_mut().iter_mut().for_each(|value| *value = (f64::from(*value) / temperature) as f32);
            }
        }
    }
    save(path, &tensors, &metadata)
}

/// The metadata field that says that outputs are averaged; see [`Recipe::average_mirror`].
const AVERAGE_MIRROR: &str = "average_mirror";

/// The metadata field with the temperature by which the final layer was divided.
const TEMPERATURE: &str = "temperature";

/// Writes `recipe` into the metadata of a saved model, unless it is there already. A missing or damaged file is left alone.
pub(super) fn update_recipe(path: &Path, recipe: &Recipe) -> Result<()> {
    let Ok(file) = TensorFile::open(path) else { return Ok(()) };
    let recipe = serde_json::to_string(recipe).context(|| "cannot write a model's metadata")?;
    let mut metadata = file.metadata().clone();
    if metadata.insert("recipe".into(), recipe.clone()) == Some(recipe) {
        return Ok(());
    }
    let tensors = file.entries().iter().map(|entry| {
        let bytes = file.bytes(&entry.name)?.to_vec();
        Ok(OutputTensor::bytes(&entry.name, entry.dtype, &entry.shape, bytes))
    });
    let tensors = tensors.collect::<Result<Vec<_>>>()?;
    // Some systems do not replace a file that is mapped into memory.
    drop(file);
    save(path, &tensors, &metadata)
}

/// A network in a file, with what its user needs to know.
#[derive(Debug)]
pub struct ModelFile {
    /// The network.
    pub resnet: ResNet,
    /// Names of the classes. If the file has none, those of ImageNet for as many classes, else numbers.
    pub classes: Vec<String>,
    /// Rows and columns of the images that the network is applied to.
    pub image_size: usize,
    /// How images become squares of that size.
    pub resize: ResizeMode,
    /// Whether images are rotated according to their EXIF orientation.
    pub exif: bool,
    /// Whether the outputs for an image and for its mirror image are averaged.
    pub average_mirror: bool,
    /// The temperature by which the final layer was divided, if one was fitted.
    pub temperature: Option<f64>,
    /// The weights under torchvision's names.
    pub weights: TensorFile,
    /// Where the weights were found in the file, and what was ignored.
    pub notices: Vec<String>,
    /// Where the names of the classes come from, if not from the file. It concerns those who see the names.
    pub names_notice: Option<&'static str>,
}

impl ModelFile {
    /// From keys, shapes and metadata; no tensor is read.
    ///
    /// # Errors
    /// When the file holds no supported network, one without a final layer, or one whose final layer has a single output, or when its
    /// metadata contradicts it.
    pub fn describe(file: &TensorFile) -> Result<Self> {
        let shown = file.path().display();
        let Found { network, weights, notices, other_head, ignored, .. } = find_network(file)?;
        let Some(outputs) = network.classes else {
            const NONE: &str = "has no final layer (fc)";
            // The head is there, but not all of it could be read.
            if let Some((key, object)) = weights.missing_tensors().first() {
                return Err(Error::new(format!(
                    "{shown}: the {} has no complete final layer: {} is not a plain tensor",
                    network.architecture,
                    printable(key)
                ))
                .hint(no_tensor(key, object)));
            }
            let reason = match (other_head.as_slice(), ignored.as_slice()) {
                ([], []) => format!("{NONE}; the keys of the file are {}", file.first_names()),
                ([], keys) => format!("{NONE}; keys of no network are {}", first_names(keys)),
                (modules, _) => format!(
                    "has no single final layer: its head is {}, expected the tensors fc.weight and fc.bias",
                    first_names(modules)
                ),
            };
            return Err(Error::new(format!("{shown}: the {} {reason}", network.architecture))
                .hint("fine-tune it first: retune train DATA --weights FILE"));
        };
        // Its softmax would always be 1. What the number means, and where one class ends, is not in the file.
        if outputs == 1 {
            return Err(Error::new(format!(
                "{shown}: the final layer of the {} has one output: one number, as of a sigmoid or a regression, from which no \
                 probabilities of classes follow",
                network.architecture
            ))
            .hint("fine-tune it, which replaces the final layer: retune train DATA --weights FILE"));
        }
        let resnet = network.resnet(outputs);
        let mut names_notice = None;
        let classes = match class_names(file)? {
            Some(classes) => classes,
            None if outputs == IMAGENET_CLASSES => {
                names_notice =
                    Some("the weights have no class names: using those of ImageNet, which also has 1000 classes");
                imagenet_classes()
            }
            None => (0..outputs).map(|class| class.to_string()).collect(),
        };
        if classes.len() != outputs {
            return Err(Error::new(format!(
                "{shown}: {}, but the final layer has {}",
                counted(classes.len(), "class name", "class names"),
                counted(outputs, "output", "outputs")
            )));
        }
        let Preprocessing { image_size, resize, exif } = preprocessing(file)?;
        let average_mirror = field(file, AVERAGE_MIRROR)?.unwrap_or(false);
        let temperature = field(file, TEMPERATURE)?;
        Ok(Self {
            resnet,
            classes,
            image_size,
            resize,
            exif,
            average_mirror,
            temperature,
            weights,
            notices,
            names_notice,
        })
    }

    /// How images are tested.
    pub fn testing(&self) -> Testing {
        Testing { image_size: self.image_size, average_mirror: self.average_mirror, threshold: None }
    }
}

/// A field of the metadata, if there is one.
fn field<T: FromStr>(file: &TensorFile, name: &str) -> Result<Option<T>> {
    let parse = |text: &String| text.parse().ok();
    match file.metadata().get(name).map(parse) {
        Some(None) => Err(Error::new(format!("{}: unreadable `{name}` in the metadata", file.path().display()))),
        found => Ok(found.flatten()),
    }
}

/// How images become the input of a network.
#[derive(Debug, Clone, Copy)]
struct Preprocessing {
    /// Rows and columns.
    image_size: usize,
    /// How images become squares of that size.
    resize: ResizeMode,
    /// Whether they are rotated according to their EXIF orientation.
    exif: bool,
}

/// That of the network in a file.
fn preprocessing(file: &TensorFile) -> Result<Preprocessing> {
    let Some(text) = file.metadata().get("transform") else {
        return Ok(Preprocessing { image_size: 224, resize: ResizeMode::Crop, exif: false });
    };
    let unreadable = || format!("{}: unreadable `transform` in the metadata", file.path().display());
    let transform: serde_json::Value = serde_json::from_str(text).context(unreadable)?;
    let keys = [("center_crop", ResizeMode::Crop), ("squash", ResizeMode::Squash), ("pad", ResizeMode::Pad)];
    let found = keys.into_iter().find_map(|(key, resize)| Some((transform[key].as_u64()?, resize)));
    let found = found.filter(|(size, _)| (1..=LARGEST_IMAGE_SIZE as u64).contains(size));
    let (size, resize) = found.ok_or_else(|| Error::new(unreadable()))?;
    Ok(Preprocessing { image_size: size as usize, resize, exif: transform["exif"].as_bool().unwrap_or(false) })
}

impl Recipe {
    /// This recipe for the network that was found in a file, with its image size and resize mode where the file names them.
    pub fn for_weights(self, found: &Found<Recognised>) -> Self {
        let Found { network, weights, .. } = found;
        let (image_size, resize) = ModelFile::describe(weights)
            .map_or((self.image_size, self.resize), |model| (model.image_size, model.resize));
        Self { architecture: network.architecture.to_string(), width: network.width, image_size, resize, ..self }
    }
}

/// The names of the classes in the metadata of a file.
///
/// # Errors
/// When they are not a list of names.
pub fn class_names(file: &TensorFile) -> Result<Option<Vec<String>>> {
    let text = file.metadata().get("classes");
    let names: Option<Vec<String>> = text
        .map(|text| serde_json::from_str(text))
        .transpose()
        .context(|| format!("{}: unreadable `classes` in the metadata", file.path().display()))?;
    let mut seen = HashSet::new();
    match names.iter().flatten().find(|name| !seen.insert(name.as_str())) {
        Some(name) => Err(Error::new(format!("{}: two of its classes are named {name}", file.path().display()))
            .hint("give each class a name of its own in `classes` of the metadata")),
        None => Ok(names),
    }
}

/// Loads a model for evaluation.
///
/// # Errors
/// Those of [`ModelFile::describe`], and when the weights do not fit or are not finite.
pub fn load_model(device: Rc<dyn Device>, file: &TensorFile) -> Result<(Network, ModelFile)> {
    let model = ModelFile::describe(file)?;
    let mut network = Network::new(device, model.resnet)?;
    load_state_dict(&mut network, &model.weights, HeadPolicy::Exact)?;
    Ok((network, model))
}

/// A network whose head is not used, with what its user needs to know.
pub struct Body {
    /// The network. Its head has one output, and is zero.
    pub network: Network,
    /// Rows and columns of the images that it is applied to.
    pub image_size: usize,
    /// How images become squares of that size.
    pub resize: ResizeMode,
    /// Whether images are rotated according to their EXIF orientation.
    pub exif: bool,
    /// Where the weights were found in the file, and what was ignored.
    pub notices: Vec<String>,
}

/// Loads a network for its features. The file may have a head for any number of classes, or none.
///
/// # Errors
/// When the file holds no supported network, the weights do not fit or are not finite, or the metadata is damaged.
pub fn load_body(device: Rc<dyn Device>, file: &TensorFile) -> Result<Body> {
    let Found { network: recognised, weights, notices, .. } = find_network(file)?;
    let Preprocessing { image_size, resize, exif } = preprocessing(file)?;
    let mut network = Network::new(device, recognised.resnet(1))?;
    load_state_dict(&mut network, &weights, HeadPolicy::Replace)?;
    Ok(Body { network, image_size, resize, exif, notices })
}

/// The SHA-256 of a network's parameters and running statistics without its head: equal digests give equal features.
pub fn body_digest(network: &Network) -> Result<String> {
    let mut digest = Sha256::new();
    for parameter in network.resnet().parameters().iter().filter(|parameter| !is_head(&parameter.name)) {
        digest.update(&parameter.name);
        for value in network.parameters().read(network.device(), &parameter.name)? {
            digest.update(value.to_le_bytes());
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
