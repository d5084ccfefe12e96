//! Which network a set of keys belongs to.

use std::collections::{BTreeMap, BTreeSet};

use super::matching::NamedShape;

/// What the keys of the head begin with.
pub const HEAD_PREFIX: &str = "fc.";

/// Blocks in each of the four stages, and the names of the networks with basic blocks and with bottlenecks.
const RESNETS: [([usize; 4], Option<&str>, Option<&str>); 4] = [
    ([2, 2, 2, 2], Some("resnet18"), None),
    ([3, 4, 6, 3], Some("resnet34"), Some("resnet50")),
    ([3, 4, 23, 3], None, Some("resnet101")),
    ([3, 8, 36, 3], None, Some("resnet152")),
];

/// Names the network that keys, without wrapper, belong to, as in `resnet50` or `a Hugging Face ResNet, ...`.
pub fn recognise(keys: impl Iterator<Item = NamedShape>) -> Option<String> {
    let keys: BTreeMap<String, Vec<usize>> = keys.map(|key| (key.name, key.shape)).collect();
    if keys.keys().any(|name| name.contains("embedder.embedder.convolution")) {
        return Some("a Hugging Face transformers ResNet; give torchvision's or timm's file instead".to_owned());
    }
    let mut blocks: [BTreeSet<&str>; 4] = Default::default();
    for name in keys.keys() {
        let mut parts = name.split('.');
        let stage = parts.next().and_then(|part| part.strip_prefix("layer")).and_then(|stage| stage.parse().ok());
        if let (Some(stage @ 1..=4), Some(block)) = (stage, parts.next()) {
            blocks[stage - 1usize].insert(block);
        }
    }
    let counts = blocks.map(|blocks| blocks.len());
    let (_, basic, bottleneck) = RESNETS.iter().find(|(stages, ..)| *stages == counts)?;
    let name = if keys.contains_key("layer1.0.conv3.weight") { bottleneck } else { basic };
    let width = keys.get("conv1.weight").and_then(|shape| shape.first());
    let name = (*name)?;
    Some(match width {
        Some(&width) if width != 64 => format!("{name} of width {width}"),
        _ => name.to_owned(),
    })
}
