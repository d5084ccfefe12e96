//! How to use the model of a run: from the command line, and in a complete Python program.

use std::fmt::Write;
use std::path::Path;

use maud::{Markup, html};

use super::super::record::RunRecord;
use crate::data::ResizeMode;
use crate::data::transform::{MEAN, STANDARD_DEVIATION, test_shorter_side};
use crate::model::ResNet;
use crate::printable::is_hidden;

/// Where the list of classes breaks its lines.
const LINE: usize = 96;

pub(super) fn usage(run: &RunRecord) -> Markup {
    let model = run.folder.join("model.safetensors");
    let (recipe, classes) = (&run.config.recipe, run.config.classes.len());
    let resnet = recipe.architecture.parse().map(|architecture| ResNet { architecture, width: recipe.width, classes });
    let torchvision = resnet.ok().and_then(|resnet| resnet.torchvision_call());
    let onnx = run.folder.join("model.onnx");
    html! {
        section {
            h2 { "Using the model" }
            pre { code {
                "retune predict " (model.display()) " new.jpg\n"
                "retune eval " (model.display()) " more-photos\n"
                "retune convert " (model.display()) " " (onnx.display())
            } }
            @match &torchvision {
                Some(call) => {
                    p { "In Python, after " code { "pip install pillow safetensors torch torchvision" } ":" }
                    pre.python { code { (program(run, &Network::Torchvision { call, model: &model })) } }
                }
                None => {
                    p {
                        "torchvision has no network of this width, but ONNX Runtime runs the model that " code { "retune convert" }
                        " writes. In Python, after " code { "pip install onnxruntime pillow torch torchvision" } ":"
                    }
                    pre.python { code { (program(run, &Network::Onnx { model: &onnx })) } }
                }
            }
            p.note {
                "The program prepares an image as retune does it for tests and predictions. The list of classes and the preprocessing are in \
                 the metadata of model.safetensors, too."
            }
        }
    }
}

/// The network in a program.
enum Network<'a> {
    Torchvision { call: &'a str, model: &'a Path },
    Onnx { model: &'a Path },
}

/// A Python program that classifies the image that its argument names.
fn program(run: &RunRecord, network: &Network) -> String {
    let recipe = &run.config.recipe;
    let mut imports = vec!["import sys", "", "import torch", "import torchvision.transforms as T"];
    let (load, logits) = match network {
        Network::Torchvision { call, model } => {
            imports.insert(3, "import torchvision");
            imports.extend(["from PIL import Image", "from safetensors.torch import load_file"]);
            let load = format!(
                "net = {call}\nnet.load_state_dict(load_file({}))\nnet.eval()\n",
                literal(&model.to_string_lossy())
            );
            let logits = match recipe.average_mirror {
                true => "    logits = (net(pixels)[0] + net(pixels.flip(3))[0]) / 2\n",
                false => "    logits = net(pixels)[0]\n",
            };
            (load, format!("with torch.inference_mode():\n{logits}"))
        }
        Network::Onnx { model } => {
            imports.insert(2, "import onnxruntime");
            imports.push("from PIL import Image");
            let load = format!("net = onnxruntime.InferenceSession({})\n", literal(&model.to_string_lossy()));
            let run =
                "def run(images):\n    return torch.from_numpy(net.run(None, {\"input\": images.numpy()})[0][0])\n\n";
            let logits = match recipe.average_mirror {
                true => "logits = (run(pixels) + run(pixels.flip(3))) / 2\n",
                false => "logits = run(pixels)\n",
            };
            (format!("{load}\n{run}"), logits.to_string())
        }
    };
    let size = recipe.image_size;
    let resize = match recipe.resize {
        ResizeMode::Crop => format!("T.Resize({}),\n    T.CenterCrop({size})", test_shorter_side(size as u32)),
        ResizeMode::Squash => format!("T.Resize(({size}, {size}))"),
        ResizeMode::Pad => {
            format!("T.Lambda(lambda image: ImageOps.pad(image, ({size}, {size}), Image.Resampling.BILINEAR))")
        }
    };
    if recipe.exif || recipe.resize == ResizeMode::Pad {
        imports
            .iter_mut()
            .filter(|line| line.starts_with("from PIL"))
            .for_each(|line| *line = "from PIL import Image, ImageOps");
    }
    let image = if recipe.exif {
        "image = ImageOps.exif_transpose(Image.open(sys.argv[1])).convert(\"RGB\")\n"
    } else {
        "image = Image.open(sys.argv[1]).convert(\"RGB\")\n"
    };
    format!(
        "{}\n\n{}\n{load}\ntransform = T.Compose([\n    {resize},\n    T.ToTensor(),\n    \
         T.Normalize(mean={MEAN:?}, std={STANDARD_DEVIATION:?}),\n])\n\n{image}pixels = transform(image)[None]\n{logits}\
         probabilities = logits.softmax(0)\nfor index in probabilities.argsort(descending=True)[:5]:\n    \
         print(f\"{{classes[index]}}: {{probabilities[index]:.4f}}\")\n",
        imports.join("\n"),
        list(&run.config.classes),
    )
}

/// The list of classes, in lines of limited length.
fn list(classes: &[String]) -> String {
    let literals: Vec<String> = classes.iter().map(|class| literal(class)).collect();
    let one_line = format!("classes = [{}]\n", literals.join(", "));
    if one_line.chars().count() <= LINE {
        return one_line;
    }
    let mut text = String::from("classes = [");
    let mut room = 0;
    for literal in literals {
        let length = literal.chars().count() + 2;
        if length > room {
            text.push_str("\n   ");
            room = LINE - 4;
        }
        room = room.saturating_sub(length);
        let _ = write!(text, " {literal},");
    }
    text.push_str("\n]\n");
    text
}

/// A string in Python. Characters that would be invisible on the page are escaped.
fn literal(text: &str) -> String {
    let mut literal = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => literal.extend(['\\', c]),
            c if is_hidden(c) && u32::from(c) <= 0xff => {
                let _ = write!(literal, "\\x{:02x}", u32::from(c));
            }
            c if is_hidden(c) => {
                let _ = write!(literal, "\\u{:04x}", u32::from(c));
            }
            c => literal.push(c),
        }
    }
    literal.push('"');
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_those_of_python() {
        for (text, expected) in [
            ("hot dog", r#""hot dog""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("a\nb\u{1b}\u{ad}\u{202e}c", r#""a\x0ab\x1b\xad\u202ec""#),
            ("漢字 🌭 'x'", r#""漢字 🌭 'x'""#),
        ] {
            assert_eq!(literal(text), expected);
        }
    }

    #[test]
    fn long_lists_have_several_lines() {
        let few = ["ant", "bee"].map(String::from);
        assert_eq!(list(&few), "classes = [\"ant\", \"bee\"]\n");
        let many: Vec<String> = (0..50).map(|class| format!("class {class}")).collect();
        let text = list(&many);
        assert!(
            text.starts_with("classes = [\n    \"class 0\", \"class 1\",") && text.ends_with("\"class 49\",\n]\n"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= LINE), "{text}");
        assert!(text.lines().count() < 12, "{text}");
    }
}
