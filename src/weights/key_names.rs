//! Key names of other programs, as torchvision's.

/// The key names of Hugging Face's `ResNetForImageClassification` and `ResNetModel`, of basic blocks, as torchvision's; none
/// where a key is not one of theirs.
pub(super) fn from_transformers(key: &str) -> Option<String> {
    if let Some(part) = key.strip_prefix("classifier.1.") {
        return Some(format!("fc.{part}"));
    }
    let key = key.strip_prefix("resnet.").unwrap_or(key);
    if let Some(rest) = key.strip_prefix("embedder.embedder.") {
        return layer(rest, "conv1", "bn1");
    }
    let rest = key.strip_prefix("encoder.stages.")?;
    let (stage, rest) = rest.split_once(".layers.")?;
    let (block, rest) = rest.split_once('.')?;
    let (stage, block) = (stage.parse::<usize>().ok()?, block.parse::<usize>().ok()?);
    let inner = match rest.strip_prefix("shortcut.") {
        Some(rest) => layer(rest, "downsample.0", "downsample.1"),
        None => {
            let (number, rest) = rest.strip_prefix("layer.")?.split_once('.')?;
            let number = number.parse::<usize>().ok()? + 1;
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
            ("resnet.embedder.embedder.convolution.weight", "conv1.weight"),
            ("resnet.embedder.embedder.normalization.running_var", "bn1.running_var"),
            ("embedder.embedder.normalization.bias", "bn1.bias"),
            ("resnet.encoder.stages.0.layers.1.layer.0.convolution.weight", "layer1.1.conv1.weight"),
            (
                "resnet.encoder.stages.3.layers.0.layer.1.normalization.num_batches_tracked",
                "layer4.0.bn2.num_batches_tracked",
            ),
            ("resnet.encoder.stages.1.layers.0.shortcut.convolution.weight", "layer2.0.downsample.0.weight"),
            ("resnet.encoder.stages.1.layers.0.shortcut.normalization.weight", "layer2.0.downsample.1.weight"),
            ("classifier.1.bias", "fc.bias"),
        ] {
            assert_eq!(from_transformers(theirs).as_deref(), Some(ours), "{theirs}");
        }
        for other in [
            "conv1.weight",
            "layer1.0.conv1.weight",
            "fc.weight",
            "encoder.stages.x.layers.0.layer.0.convolution.weight",
        ] {
            assert_eq!(from_transformers(other), None, "{other}");
        }
    }
}
