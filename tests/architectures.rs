//! The table of architectures, and the properties of each row that need no device.

use std::collections::BTreeMap;

use retune::graph::{Activation, Freezing, Initialisation, Layer, ParameterRole};
use retune::model::{Architecture, Recognised, ResNet, init, is_head, recognise};

type Shapes = BTreeMap<String, Vec<usize>>;

fn shapes(resnet: ResNet) -> Shapes {
    resnet.state_dict().into_iter().map(|key| (key.name, key.shape)).collect()
}

fn find(shapes: &Shapes) -> Result<Recognised, String> {
    recognise(|name| shapes.get(name).map(Vec::as_slice))
}

fn resnet(name: &str, width: usize, classes: usize) -> ResNet {
    ResNet { architecture: name.parse().unwrap(), width, classes }
}

/// Parameters, and billions of multiply-adds at 224 x 224, from torchvision's documentation.
const PUBLISHED: [(&str, usize, f64); 7] = [
    ("resnet18", 11_689_512, 1.81),
    ("resnet34", 21_797_672, 3.66),
    ("resnet50", 25_557_032, 4.09),
    ("resnet101", 44_549_160, 7.80),
    ("resnet152", 60_192_808, 11.51),
    ("wide_resnet50_2", 68_883_240, 11.40),
    ("wide_resnet101_2", 126_886_696, 22.75),
];

#[test]
fn sizes_are_torchvisions() {
    for (name, parameters, giga) in PUBLISHED {
        let specification = resnet(name, 64, 1000).specification();
        let all = specification.parameters();
        let trainable = all.iter().filter(|parameter| !parameter.role.is_buffer());
        assert_eq!(trainable.map(|parameter| parameter.shape.len()).sum::<usize>(), parameters, "{name}");
        let shape = retune::graph::BatchShape { batch: 1, height: 224, width: 224 };
        let phase = retune::graph::Phase::Evaluation;
        let reduction = retune::ops::LossReduction::Sum;
        let graph = specification.graph(&retune::device::cpu::Cpu, shape, &phase, reduction, &[]).unwrap().graph;
        let found = graph.multiply_adds() as f64 / 1e9;
        assert!((found - giga).abs() < 0.011, "{name}: {found}");
        assert_eq!(graph.parameters(), all, "{name}");
    }
}

#[test]
fn every_state_dict_is_recognised_as_its_own() {
    for architecture in Architecture::all() {
        for width in [1, 3, 64] {
            let resnet = ResNet { architecture, width, classes: 7 };
            let mut shapes = shapes(resnet);
            let mut expected = Recognised { architecture, width, classes: Some(7) };
            assert_eq!(find(&shapes), Ok(expected));
            assert_eq!(expected.resnet(2), resnet);
            shapes.retain(|name, _| !is_head(name));
            expected.classes = None;
            assert_eq!(find(&shapes), Ok(expected));
            assert_eq!(expected.resnet(2).classes, 2);
        }
        assert_eq!(architecture.name().parse::<Architecture>().unwrap(), architecture);
    }
}

#[test]
fn other_state_dicts_are_refused_with_a_reason() {
    let changed = |name: &str, change: &dyn Fn(&mut Shapes)| {
        let mut shapes = shapes(resnet(name, 4, 3));
        change(&mut shapes);
        find(&shapes).unwrap_err()
    };
    assert_eq!(find(&Shapes::new()).unwrap_err(), "there is no conv1.weight");
    let without = |key: &'static str| move |shapes: &mut Shapes| drop(shapes.remove(key));
    let with = |key: &'static str, shape: &'static [usize]| {
        move |shapes: &mut Shapes| drop(shapes.insert(key.into(), shape.to_vec()))
    };
    for (found, expected) in [
        (changed("resnet18", &without("layer1.0.conv2.weight")), "there is no layer1.0.conv2.weight"),
        (
            changed("resnet18", &without("layer2.1.conv1.weight")),
            "no known architecture has 2, 1, 2 and 2 basic blocks",
        ),
        (
            changed("resnet50", &with("layer4.3.conv1.weight", &[32, 128, 1, 1])),
            "no known architecture has 3, 4, 6 and 4 bottleneck blocks",
        ),
        (
            changed("resnet152", &with("layer1.0.conv2.weight", &[8, 8, 3, 3])),
            "no known architecture has 3, 8, 36 and 3 bottleneck blocks of 2 x the width",
        ),
        (
            changed("resnet50", &with("layer1.0.conv2.weight", &[8, 1, 3, 3])),
            "its 3 x 3 convolutions are grouped (ResNeXt)",
        ),
        (
            changed("resnet18", &with("conv1.weight", &[0, 3, 7, 7])),
            "conv1.weight has shape [0, 3, 7, 7], which is not that of a convolution",
        ),
        (changed("resnet18", &with("fc.weight", &[3])), "fc.weight has shape [3], which is not that of a linear layer"),
    ] {
        assert_eq!(found, expected);
    }
}

#[test]
fn a_bottleneck_strides_at_its_3x3_convolution() {
    for (name, inner) in [("resnet50", 8), ("wide_resnet50_2", 16)] {
        let specification = resnet(name, 8, 2).specification();
        let convolution = |name: &str| match specification.layer(name).map(|layer| (layer.input_channels, layer.layer))
        {
            Some((inputs, Layer::Conv2d(options))) => (inputs, options.channels, options.kernel, options.stride),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(convolution("layer1.0.downsample.0"), (8, 32, 1, 1), "the channels differ, though the stride is 1");
        assert_eq!(convolution("layer1.0.conv1"), (8, inner, 1, 1));
        assert_eq!(convolution("layer2.0.downsample.0"), (32, 64, 1, 2));
        assert_eq!(convolution("layer2.0.conv1"), (32, 2 * inner, 1, 1));
        assert_eq!(convolution("layer2.0.conv2"), (2 * inner, 2 * inner, 3, 2));
        assert_eq!(convolution("layer2.0.conv3"), (2 * inner, 64, 1, 1));
        assert!(specification.layer("layer2.1.downsample.0").is_none());
        let activation = |name: &str| match specification.layer(name).map(|layer| layer.layer) {
            Some(Layer::BatchNorm { activation, .. }) => activation,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(["bn1", "bn2", "bn3"].map(|part| activation(&format!("layer2.0.{part}"))), [Activation::Relu; 3]);
        assert_eq!(activation("layer2.0.downsample.1"), Activation::None);
        let last = specification.layer("layer2.0.bn3").unwrap();
        assert_eq!((last.output.as_str(), last.inputs.len()), ("layer2.0", 2));
    }
}

#[test]
fn modules_are_stages_and_their_blocks() {
    let specification = resnet("resnet18", 64, 2).specification();
    let expected = "conv1 bn1 layer1 layer1.0 layer1.1 layer2 layer2.0 layer2.1 layer3 layer3.0 layer3.1 layer4 layer4.0 \
                    layer4.1 fc";
    assert_eq!(specification.modules().join(" "), expected);
    let check = |modules: &[&str]| {
        let modules = modules.iter().map(|module| module.to_string()).collect();
        specification.check_freezing(&Freezing { modules, batch_norm: false }).map_err(|error| error.to_string())
    };
    assert!(check(&["conv1", "layer1.0.conv2", "layer4"]).is_ok());
    assert!(check(&["layer5"]).unwrap_err().contains("resnet18 has no module \"layer5\""));
    assert!(check(&["maxpool"]).unwrap_err().contains("no module"));
    assert!(check(&["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]).is_err());
}

#[test]
fn parameters_begin_by_their_rule() {
    let parameters = resnet("resnet50", 4, 3).parameters();
    let named = |name: &str| parameters.iter().find(|parameter| parameter.name == name).unwrap();
    let convolution = named("layer1.0.conv2.weight");
    assert_eq!(convolution.initialisation, Initialisation::KaimingNormal { fan_out: 36 });
    assert_eq!(named("fc.bias").initialisation, Initialisation::Uniform { fan_in: 128 });
    let values = |name: &str| init::initial_values(named(name), 1);
    assert!(values("bn1.weight").iter().chain(&values("bn1.running_var")).all(|&value| value == 1.0));
    assert!(values("bn1.bias").iter().chain(&values("bn1.running_mean")).all(|&value| value == 0.0));
    let bound = (1.0 / 128f32.sqrt(), (6.0 / 131f32).sqrt());
    let largest = |values: &[f32]| values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let (weight, fresh) = (values("fc.weight"), init::head_values(named("fc.weight"), 1));
    assert!(largest(&weight) <= bound.0 && largest(&weight) > 0.9 * bound.0);
    assert!(largest(&fresh) <= bound.1 && largest(&fresh) > 0.9 * bound.1);
    assert_eq!(init::head_values(named("fc.bias"), 1), values("fc.bias"));
    assert_eq!(named("fc.bias").role, ParameterRole::LinearBias);
}

#[test]
fn torchvision_builds_full_width_only() {
    let call = resnet("wide_resnet50_2", 64, 2).torchvision_call();
    assert_eq!(call.as_deref(), Some("torchvision.models.wide_resnet50_2(num_classes=2)"));
    assert_eq!(resnet("resnet34", 32, 2).torchvision_call(), None);
    assert_eq!(resnet("resnet34", 32, 2).to_string(), "resnet34 of width 32");
    assert_eq!(resnet("resnet34", 64, 2).to_string(), "resnet34");
}
