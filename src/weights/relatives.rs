//! Networks that resemble torchvision's ResNets without being one, and networks of other families, by the keys that show it.

use std::collections::HashMap;

/// What is supported.
pub(super) const SUPPORTED: &str = "supported are torchvision's ResNets and Wide ResNets: one 7 x 7 convolution, then four stages of \
                                    basic or bottleneck blocks, under torchvision's key names with any prefix";

/// Shapes by torchvision's key names, without prefix.
type Shapes<'a> = HashMap<&'a str, &'a [usize]>;

/// Whether the keys are those of a relative.
type Test = fn(&Shapes) -> bool;

/// What tells a relative apart, and the reason why it is refused. The more special come first.
#[rustfmt::skip]
const RELATIVES: &[(Test, &str)] = &[
    (|keys| keys.values().any(|shape| shape.len() == 5), "its convolutions have three dimensions, as those for videos"),
    (|keys| has_module(keys, &["attnpool"]), "its pooling has weights, as that of CLIP's ResNets"),
    (|keys| has_module(keys, &["convs"]), "its blocks divide their channels into scales (Res2Net)"),
    (|keys| has_module(keys, &["paths"]), "its blocks select kernels (SKNet)"),
    (|keys| keys.contains_key("layer1.0.conv2.fc1.weight"), "its blocks have split attention (ResNeSt)"),
    (is_efficient_channel_attention, "its blocks have efficient channel attention (ECA-ResNet)"),
    (|keys| has_module(keys, &["se", "se_module", "se_layer", "se_block", "seblock"]),
        "its blocks have squeeze-and-excitation modules (SE-ResNet)"),
    (|keys| has_module(keys, &["cbam", "bam", "ca", "sa", "attention", "attn"]), "its blocks have attention modules"),
    (|keys| has_module(keys, &["aa", "blurpool"]) || keys.keys().any(|key| key.ends_with(".filt")),
        "it blurs before it halves the resolution (BlurPool)"),
    (|keys| has_module(keys, &["conv2_offset", "offset", "conv_offset"]), "it has deformable convolutions"),
    (has_deep_stem, "its stem has several convolutions instead of one (ResNet-C, ResNet-D, ResNet-T)"),
    (|keys| keys.keys().any(|key| key.starts_with("layer0.")), "its stem is a module `layer0`, as in SENet"),
    (|keys| matches!(first(keys), Some(&[_, 12 | 48, ..])), "it turns blocks of pixels into channels first (space-to-depth)"),
    (|keys| matches!(first(keys), Some(&[_, 1, ..])), "it takes grey images: its first convolution has one input channel, expected three"),
    (|keys| matches!(first(keys), Some(&[_, inputs, ..]) if inputs != 3), "its first convolution does not take the three channels of an image"),
    (|keys| !keys.contains_key("layer4.0.conv1.weight") && keys.contains_key("layer3.0.conv1.weight"),
        "it has three stages, as the ResNets for CIFAR"),
    (|keys| matches!(first(keys), Some(&[_, _, 3, 3])), "its first convolution is 3 x 3, as in ResNets for small images such as CIFAR's"),
    (|keys| matches!(first(keys), Some(&[_, _, height, width]) if (height, width) != (7, 7)), "its first convolution is not 7 x 7"),
    (|keys| keys.iter().any(|(key, shape)| key.ends_with(".downsample.1.weight") && shape.len() == 4),
        "its shortcuts have a pooling before the convolution (ResNet-D)"),
    (is_pre_activated, "its blocks begin with the batch norm (pre-activation ResNet, ResNetV2)"),
    (|keys| keys.contains_key("layer5.0.conv1.weight"), "it has more than four stages"),
];

/// The reason why a network with the stages of a ResNet is none of torchvision's.
pub(super) fn difference(keys: &Shapes) -> Option<&'static str> {
    RELATIVES.iter().find(|(shows, _)| shows(keys)).map(|(_, reason)| *reason)
}

fn first<'a>(keys: &Shapes<'a>) -> Option<&'a [usize]> {
    keys.get("conv1.weight").copied()
}

/// Whether a module inside a block, or at the top, has one of these names.
fn has_module(keys: &Shapes, names: &[&str]) -> bool {
    keys.keys().any(|key| key.split('.').any(|module| names.contains(&module)))
}

/// Its convolutions run along the channels, so that their weights have three extents.
fn is_efficient_channel_attention(keys: &Shapes) -> bool {
    let of_module = |key: &str| has_module(&HashMap::from([(key, [].as_slice())]), &["eca", "se"]);
    keys.iter().any(|(key, shape)| key.ends_with(".conv.weight") && shape.len() == 3 && of_module(key))
}

fn has_deep_stem(keys: &Shapes) -> bool {
    keys.keys().any(|key| {
        key.starts_with("stem.")
            || matches!(key.strip_prefix("conv"), Some(rest) if rest.starts_with(['2', '3', '4']))
            || key.strip_prefix("conv1.").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    })
}

/// The first batch norm of a block has the channels of the input.
fn is_pre_activated(keys: &Shapes) -> bool {
    let shape = |name: &str| keys.get(format!("layer2.0.{name}.weight").as_str()).copied();
    matches!((shape("conv1"), shape("bn1")), (Some(&[outputs, inputs, ..]), Some(&[channels])) if channels == inputs && inputs != outputs)
}

/// Parts of keys that show what other network it is.
const OTHERS: &[(&[&str], &str)] = &[
    (&["lora_A", "lora_down"], "an adapter (LoRA)"),
    (
        &["word_embeddings.weight", "embed_tokens.weight", "wte.weight", "token_embedding.weight"],
        "a language model or CLIP",
    ),
    (&["down_blocks.0.", "input_blocks.0."], "a diffusion model"),
    (&["relative_position_bias_table"], "a Swin Transformer or MaxViT"),
    (&["class_token", "cls_token", "patch_embed.proj."], "a Vision Transformer"),
    (&["layer_scale", "conv_dw.weight", "dwconv.weight"], "a ConvNeXt"),
    (&["trunk_output.", "s1.b1.conv1."], "a RegNet"),
    (
        &["conv_stem.weight", "features.1.0.block.", "_conv_stem.weight", "features.1.block.0.0."],
        "an EfficientNet or MobileNetV3",
    ),
    (&["features.1.conv.0.", "features.18.0.weight"], "a MobileNet"),
    (&["denseblock1."], "a DenseNet"),
    (&["layers.8.0.layers."], "an MNASNet"),
    (&["Mixed_5b.", "inception3a."], "an Inception or GoogLeNet"),
    (&["squeeze.weight"], "a SqueezeNet"),
    (&["stage2.0.branch2."], "a ShuffleNet"),
    (&["stages.0.blocks.0.norm1.", "block1.unit01."], "a ResNetV2 (BiT)"),
    (&["transition1.", "stage2.0.fuse_layers"], "an HRNet"),
    (&["model.0.conv.weight"], "a YOLO"),
    (&["classifier.6.weight"], "a VGG or AlexNet"),
];

/// The family of a network that is no ResNet.
pub(super) fn family<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<&'static str> {
    let shows = |part: &&str| names.clone().any(|name| name.contains(part));
    OTHERS.iter().find(|(parts, _)| parts.iter().any(shows)).map(|(_, family)| *family)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torchvision's ResNet-18 as far as the table looks at it, changed by these keys. A shape without extents removes the key.
    fn with(changes: &[(&'static str, &'static [usize])]) -> Option<&'static str> {
        let mut keys: Shapes = HashMap::from([
            ("conv1.weight", [64, 3, 7, 7].as_slice()),
            ("layer1.0.conv1.weight", &[64, 64, 3, 3]),
            ("layer1.0.conv2.weight", &[64, 64, 3, 3]),
            ("layer2.0.conv1.weight", &[128, 64, 3, 3]),
            ("layer2.0.bn1.weight", &[128]),
            ("layer2.0.downsample.0.weight", &[128, 64, 1, 1]),
            ("layer2.0.downsample.1.weight", &[128]),
            ("layer3.0.conv1.weight", &[256, 128, 3, 3]),
            ("layer4.0.conv1.weight", &[512, 256, 3, 3]),
        ]);
        for &(key, shape) in changes {
            keys.insert(key, shape);
        }
        keys.retain(|_, shape| !shape.is_empty());
        difference(&keys)
    }

    #[test]
    fn relatives_are_told_apart() {
        type Changes = &'static [(&'static str, &'static [usize])];
        let relatives: &[(Changes, &str)] = &[
            (
                &[("conv1.weight", &[]), ("conv1.0.weight", &[32, 3, 3, 3]), ("conv1.3.weight", &[32, 32, 3, 3])],
                "several conv",
            ),
            (&[("conv2.weight", &[32, 32, 3, 3]), ("conv1.weight", &[32, 3, 3, 3])], "several conv"),
            (&[("conv2.weight", &[32, 32, 3, 3]), ("attnpool.q_proj.weight", &[8, 8])], "CLIP"),
            (&[("conv1.weight", &[64, 3, 3, 3])], "CIFAR"),
            (&[("conv1.weight", &[16, 3, 3, 3]), ("layer4.0.conv1.weight", &[])], "three stages"),
            (&[("conv1.weight", &[64, 3, 5, 5])], "not 7 x 7"),
            (&[("conv1.weight", &[64, 1, 7, 7])], "grey"),
            (&[("conv1.weight", &[64, 4, 7, 7])], "three channels"),
            (&[("conv1.weight", &[64, 48, 3, 3])], "space-to-depth"),
            (&[("layer2.0.downsample.0.weight", &[]), ("layer2.0.downsample.1.weight", &[128, 64, 1, 1])], "ResNet-D"),
            (&[("layer1.0.se.fc1.weight", &[4, 64, 1, 1])], "SE-ResNet"),
            (&[("layer1.0.se.conv.weight", &[1, 1, 3])], "ECA-ResNet"),
            (&[("layer1.0.convs.0.weight", &[26, 26, 3, 3])], "Res2Net"),
            (&[("layer1.0.conv2.fc1.weight", &[32, 64, 1, 1]), ("conv1.0.weight", &[32, 3, 3, 3])], "ResNeSt"),
            (&[("layer1.0.conv1.paths.0.conv.weight", &[64, 64, 3, 3])], "SKNet"),
            (&[("layer1.0.ca.fc1.weight", &[4, 64, 1, 1])], "attention modules"),
            (&[("layer2.0.aa.filt", &[128, 1, 3, 3])], "BlurPool"),
            (&[("layer2.0.bn1.weight", &[64])], "ResNetV2"),
            (&[("layer5.0.conv1.weight", &[1024, 512, 3, 3])], "more than four"),
            (&[("layer1.0.conv1.0.weight", &[64, 64, 3, 3, 3])], "videos"),
            (&[("conv1.weight", &[]), ("layer0.conv1.weight", &[64, 3, 7, 7])], "SENet"),
        ];
        for (changes, expected) in relatives {
            let found = with(changes).unwrap_or_else(|| panic!("{changes:?}"));
            assert!(found.contains(expected), "{found}, expected {expected}");
        }
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn other_networks_are_named() {
        let of = |name: &'static str| family(["a.b", name].into_iter());
        assert_eq!(of("model.features.1.conv.0.0.weight"), Some("a MobileNet"));
        assert_eq!(of("vit.encoder.cls_token"), Some("a Vision Transformer"));
        assert_eq!(of("classifier.6.weight"), Some("a VGG or AlexNet"));
        assert_eq!(of("linear.weight"), None);
    }
}
