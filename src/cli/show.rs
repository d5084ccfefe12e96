//! `retune show`

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::recipe_arguments::resize_modes;
use super::report::write;
use super::{GlobalArguments, print_bytes, print_json, print_result};
use crate::data::{Augmentation, DecodeOptions, ResizeMode, Transform, counted, open_training_images};
use crate::error::{Error, Result};
use crate::file::{require_replaceable, start_of};
use crate::report::{ContactSheet, Tile, augmented_tiles, preview, tiles_of_classes};

const EXAMPLES: &str = "\
Examples:
  Write a contact sheet:
    retune show photos --output sheet.png
  Show the images as the network sees them in the first epoch:
    retune show photos --augmented --output seen.png";

/// Show a contact sheet of a data set
///
/// Shows the first images of every class; with two classes, the last images of the second class. In a terminal, the contact
/// sheet is also displayed.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ShowArguments {
    /// Folder with one folder of images per class, or with `train` and `test` folders that contain them
    data: PathBuf,

    /// File to write, ending in .png, .jpg or .jpeg [default: only display in the terminal]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Number of images per class
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=1000))]
    per_class: u64,

    /// Width and height of each image
    #[arg(long, value_name = "PIXELS", default_value_t = 160, value_parser = clap::value_parser!(u32).range(8..=1024))]
    image_size: u32,

    /// Apply the EXIF orientation of images
    #[arg(long)]
    exif: bool,

    /// Show the images as the network sees them in training, with random augmentation
    #[arg(long)]
    augmented: bool,

    /// With --augmented, the seed of the run
    #[arg(long, value_name = "N", default_value_t = 0, requires = "augmented")]
    seed: u64,

    /// With --augmented, the --resize of the run
    #[arg(long, value_name = "HOW", default_value = "crop", value_parser = resize_modes(), requires = "augmented")]
    resize: ResizeMode,

    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',', requires = "augmented",
          help = format!("With --augmented, the augmentations of the run: {}", Augmentation::help()))]
    augment: Vec<Augmentation>,
}

pub fn run(global: &GlobalArguments, arguments: &ShowArguments) -> Result<ExitCode> {
    let shows = std::io::stdout().is_terminal() && !global.json && !global.quiet;
    if arguments.output.is_none() && !shows {
        return Err(
            Error::usage("standard output is not a terminal, and no output file is given").hint("add -o sheet.png")
        );
    }
    let encode = arguments.output.as_deref().map(encoder).transpose()?;
    if let Some(path) = &arguments.output {
        require_outside(path, &arguments.data)?;
        require_replaceable(path, "a contact sheet", |path| ContactSheet::is_start_of(&start_of(path)))?;
    }
    let (mut folder, notices) = open_training_images(&arguments.data)?;
    notices.iter().for_each(|notice| global.note(notice));
    folder.decoding = DecodeOptions::with_exif(arguments.exif);
    let count = arguments.per_class as usize;
    let rows: Vec<Vec<Tile>> = match arguments.augmented {
        true => {
            let transform = Transform::training(arguments.image_size, arguments.resize, &arguments.augment);
            augmented_tiles(&folder, count, usize::MAX, &transform, arguments.seed)
        }
        false => tiles_of_classes(&folder, count, usize::MAX, arguments.image_size),
    };
    if rows.iter().all(Vec::is_empty) {
        return Err(Error::new(format!("{}: none of the images could be read", arguments.data.display())));
    }
    let sheet = ContactSheet::new(&rows)?;
    if shows {
        print_bytes(&preview(&sheet, console::Term::stdout().size().1.into()))?;
    }
    if let Some((path, encode)) = arguments.output.as_ref().zip(encode) {
        write(path, &encode(&sheet)?)?;
        let images: usize = rows.iter().map(Vec::len).sum();
        if global.json {
            print_json(&serde_json::json!({
                "sheet": path.to_string_lossy(),
                "images": images,
                "width": sheet.width,
                "height": sheet.height,
            }))?;
        } else {
            let images = counted(images, "image", "images");
            let classes = counted(folder.classes.len(), "class", "classes");
            print_result(&format!("{}: {images} of {classes}", path.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses an output file inside the data set, where it would be taken for one of its images.
fn require_outside(output: &Path, data: &Path) -> Result<()> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (folder.canonicalize(), data.canonicalize()) {
        (Ok(folder), Ok(real)) if folder.starts_with(&real) => Err(Error::usage(format!(
            "--output {}: the file would be inside the folder of images {}",
            output.display(),
            data.display()
        ))
        .hint("choose a file outside the data set")),
        _ => Ok(()),
    }
}

type Encoder = fn(&ContactSheet) -> Result<Vec<u8>>;

/// The encoder for the extension of an output file.
fn encoder(path: &Path) -> Result<Encoder> {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    match extension.as_deref() {
        Some("png") => Ok(ContactSheet::png),
        Some("jpg" | "jpeg") => Ok(ContactSheet::jpeg),
        _ => {
            Err(Error::usage(format!("--output {}: expected a name that ends in .png, .jpg or .jpeg", path.display())))
        }
    }
}
