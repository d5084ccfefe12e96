//! Naming schemes: the keys of other programs' ResNets, as torchvision names them.

/// The final layer's name in torchvision's ResNets.
pub(super) const HEAD: &str = "fc";
/// Names of modules that follow the body.
const HEADS: [&str; 6] = [HEAD, "head", "classifier", "linear", "last_linear", "heads"];
/// Names of heads of self-supervised training, whose outputs are not classes.
const PROJECTORS: [&str; 7] =
    ["projector", "projection", "projection_head", "contrastive_head", "mlp", "predictor", "prototypes"];

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

    /// The key of the first convolution.
    pub fn first_key(self) -> &'static str {
        match self {
            Self::Torchvision => "conv1.weight",
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

    /// Torchvision's name of a key of the body; `None` for any other key.
    pub fn torchvision_name(self, key: &str) -> Option<String> {
        match self {
            Self::Torchvision => (!is_head(key)).then(|| key.to_owned()),
            Self::Transformers => from_transformers(key),
            Self::Sequential => from_sequential(key),
        }
    }

    /// Whether a key without prefix belongs to a module that follows the body.
    pub fn is_head(self, key: &str) -> bool {
        let module = key.split('.').next().unwrap_or_default();
        is_head(key) || (self == Self::Sequential && module.parse().is_ok_and(|module: usize| module > 7))
    }
}

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
