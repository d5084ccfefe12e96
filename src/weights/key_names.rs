//! Naming schemes: the keys of other programs' ResNets, as torchvision names them.

/// The final layer's name in torchvision's ResNets.
pub(super) const HEAD: &str = "fc";
/// Names of modules that follow the body.
const HEADS: [&str; 6] = [HEAD, "head", "classifier", "linear", "last_linear", "heads"];
/// Names of heads of self-supervised training, whose outputs are not classes.
const PROJECTORS: [&str; 7] =
    ["projector", "projection", "projection_head", "contrastive_head", "mlp", "predictor", "prototypes"];

/// Names of modules, without a number at their end, that are or may be part of the body. One that torchvision's networks do not have
/// belongs to another architecture.
const BODY: [&str; 13] = [
    "conv",
    "bn",
    "norm",
    "layer",
    "stage",
    "block",
    "stem",
    "root",
    "transition",
    "maxpool",
    "attnpool",
    "se",
    "cbam",
];

/// What a key without prefix belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// The body: torchvision's name, or its own if torchvision has none for it.
    Body(String),
    /// What follows the body.
    Head,
    /// Something else that was saved with the network, such as a loss with weights.
    Other,
}

/// Whether a key without prefix belongs to a module that follows the body.
pub(super) fn is_head(name: &str) -> bool {
    let module = name.split('.').next().unwrap_or_default();
    HEADS.contains(&module) || is_projector(name)
}

/// Whether a key or module, without prefix, belongs to a head whose outputs are not classes.
pub(super) fn is_projector(name: &str) -> bool {
    PROJECTORS.contains(&name.split('.').next().unwrap_or_default())
}

/// How a program names the parts of a ResNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// torchvision and timm: `conv1`, `layer1.0.conv1`, ..., `fc`.
    Torchvision,
    /// Hugging Face transformers: `embedder.embedder.convolution`, `encoder.stages.0.layers.0.layer.0.convolution`, ...
    Transformers,
    /// `torch.nn.Sequential(*resnet.children())`: `0` is `conv1`, `1` is `bn1`, `4` to `7` are `layer1` to `layer4`.
    Sequential,
}

impl Naming {
    pub const ALL: [Self; 3] = [Self::Torchvision, Self::Transformers, Self::Sequential];

    /// A key near the beginning that every network of this scheme has, also one that is related to torchvision's.
    pub fn first_key(self) -> &'static str {
        match self {
            Self::Torchvision => "layer1.0.conv1.weight",
            Self::Transformers => "embedder.embedder.convolution.weight",
            Self::Sequential => "0.weight",
        }
    }

    /// A key of the last stage: it rules out the many modules that have something like the first key.
    pub fn late_key(self) -> &'static str {
        match self {
            Self::Torchvision => "layer4.0.conv1.weight",
            Self::Transformers => "encoder.stages.3.layers.0.layer.0.convolution.weight",
            Self::Sequential => "7.0.conv1.weight",
        }
    }

    /// The library that uses these names, if not torchvision.
    pub fn origin(self) -> Option<&'static str> {
        match self {
            Self::Torchvision => None,
            Self::Transformers => Some("Hugging Face transformers"),
            Self::Sequential => Some("torch.nn.Sequential"),
        }
    }

    /// What a key without prefix belongs to.
    pub fn part(self, key: &str) -> Part {
        let module = key.split('.').next().unwrap_or_default();
        let name = match self {
            Self::Torchvision => BODY.contains(&module.trim_end_matches(|c: char| c.is_ascii_digit())).then_some(None),
            Self::Transformers => ["embedder", "encoder"].contains(&module).then(|| from_transformers(key)),
            Self::Sequential => match module.parse() {
                Ok(0..=LAST_CHILD) => Some(from_sequential(key)),
                Ok(_) => return Part::Head,
                Err(_) => None,
            },
        };
        match name {
            _ if is_head(key) => Part::Head,
            Some(name) => Part::Body(name.unwrap_or_else(|| key.to_owned())),
            None => Part::Other,
        }
    }
}

/// The position of the last stage among the children of a torchvision ResNet.
const LAST_CHILD: usize = 7;

/// The children of a torchvision ResNet by their position. The third and fourth, ReLU and pooling, have no parameters.
fn from_sequential(key: &str) -> Option<String> {
    let (child, rest) = key.split_once('.')?;
    let module = match child {
        "0" => "conv1",
        "1" => "bn1",
        "4" => "layer1",
        "5" => "layer2",
        "6" => "layer3",
        "7" => "layer4",
        _ => return None,
    };
    Some(format!("{module}.{rest}"))
}

/// The body of Hugging Face's `ResNetModel`. Basic blocks have two convolutions a block, bottlenecks three.
fn from_transformers(key: &str) -> Option<String> {
    if let Some(rest) = key.strip_prefix("embedder.embedder.") {
        return layer(rest, "conv1", "bn1");
    }
    let rest = key.strip_prefix("encoder.stages.")?;
    let (stage, rest) = rest.split_once(".layers.")?;
    let (block, rest) = rest.split_once('.')?;
    let (stage, block) = (stage.parse::<usize>().ok().filter(|&stage| stage < 4)?, block.parse::<usize>().ok()?);
    let inner = match rest.strip_prefix("shortcut.") {
        Some(rest) => layer(rest, "downsample.0", "downsample.1"),
        None => {
            let (number, rest) = rest.strip_prefix("layer.")?.split_once('.')?;
            let number = number.parse::<usize>().ok().filter(|&number| number < 3)? + 1;
            layer(rest, &format!("conv{number}"), &format!("bn{number}"))
        }
    };
    Some(format!("layer{}.{block}.{}", stage + 1, inner?))
}

fn layer(rest: &str, convolution: &str, normalization: &str) -> Option<String> {
    match rest.split_once('.')? {
        ("convolution", part) => Some(format!("{convolution}.{part}")),
        ("normalization", part) => Some(format!("{normalization}.{part}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_belongs_to_the_body_or_the_head_or_neither() {
        use Naming::{Sequential, Torchvision, Transformers};
        let body = |name: &str| Part::Body(name.into());
        for (naming, key, part) in [
            (Torchvision, "layer4.1.bn2.bias", body("layer4.1.bn2.bias")),
            // These are part of another network than torchvision's.
            (Torchvision, "conv2.weight", body("conv2.weight")),
            (Torchvision, "layer5.0.conv1.weight", body("layer5.0.conv1.weight")),
            (Torchvision, "layer1.0.se.fc1.weight", body("layer1.0.se.fc1.weight")),
            (Torchvision, "fc.3.weight", Part::Head),
            (Torchvision, "projector.0.weight", Part::Head),
            (Torchvision, "criterion.weight", Part::Other),
            (Torchvision, "aux.weight", Part::Other),
            (Torchvision, "n_averaged", Part::Other),
            (Torchvision, "layernorm_loss", Part::Other),
            (Transformers, "embedder.embedder.convolution.weight", body("conv1.weight")),
            (Transformers, "encoder.stages.9.weight", body("encoder.stages.9.weight")),
            (Transformers, "pooler.weight", Part::Other),
            (Sequential, "4.0.conv1.weight", body("layer1.0.conv1.weight")),
            (Sequential, "3.weight", body("3.weight")),
            (Sequential, "8.1.weight", Part::Head),
            (Sequential, "loss.weight", Part::Other),
        ] {
            assert_eq!(naming.part(key), part, "{key}");
        }
    }

    #[test]
    fn of_transformers_become_torchvisions() {
        for (theirs, ours) in [
            ("embedder.embedder.convolution.weight", "conv1.weight"),
            ("embedder.embedder.normalization.running_var", "bn1.running_var"),
            ("embedder.embedder.normalization.bias", "bn1.bias"),
            ("encoder.stages.0.layers.1.layer.0.convolution.weight", "layer1.1.conv1.weight"),
            ("encoder.stages.3.layers.0.layer.1.normalization.num_batches_tracked", "layer4.0.bn2.num_batches_tracked"),
            ("encoder.stages.1.layers.0.shortcut.convolution.weight", "layer2.0.downsample.0.weight"),
            ("encoder.stages.1.layers.0.shortcut.normalization.weight", "layer2.0.downsample.1.weight"),
            ("encoder.stages.2.layers.5.layer.2.convolution.weight", "layer3.5.conv3.weight"),
            ("encoder.stages.2.layers.5.layer.2.normalization.bias", "layer3.5.bn3.bias"),
        ] {
            assert_eq!(from_transformers(theirs).as_deref(), Some(ours), "{theirs}");
        }
        for other in [
            "conv1.weight",
            "layer1.0.conv1.weight",
            "fc.weight",
            "encoder.stages.x.layers.0.layer.0.convolution.weight",
            "encoder.stages.18446744073709551615.layers.0.layer.0.convolution.weight",
            "encoder.stages.0.layers.0.layer.18446744073709551615.convolution.weight",
            "classifier.1.bias",
        ] {
            assert_eq!(from_transformers(other), None, "{other}");
        }
    }
}
