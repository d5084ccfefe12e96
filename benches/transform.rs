//! Images per second on one core: decoding, and the training and test transform of a decoded image.
//!
//! `cargo bench --bench transform` draws its own image of 500 x 375 and stores it as JPEG. With
//! `RETUNE_BENCH_FOLDER=FOLDER` (one folder per class) it measures whole epochs over those files instead.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use criterion::Criterion;
use retune::data::{
    Decoder, Draw, ImageFolder, Loader, LoaderOptions, Mode, PaddedImage, ResizeMode, Transform, Transformer,
};

const IMAGE_SIZE: u32 = 224;

fn drawn(width: u32, height: u32) -> Vec<u8> {
    let level =
        |x: u32, y: u32, c: u32| (128.0 + 100.0 * (x as f64 / (9 + c) as f64).sin() * (y as f64 / 13.0).cos()) as u8;
    (0..height).flat_map(|y| (0..width).flat_map(move |x| [0, 1, 2].map(|c| level(x, y, c)))).collect()
}

fn one_image(criterion: &mut Criterion) {
    let mut jpeg = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 90);
    image::ImageEncoder::write_image(encoder, &drawn(500, 375), 500, 375, image::ExtendedColorType::Rgb8)
        .expect("encoding to memory");

    let (mut decoder, mut image) = (Decoder::default(), PaddedImage::default());
    criterion.bench_function("decode a JPEG of 500 x 375", |bencher| {
        bencher.iter(|| decoder.decode_bytes(black_box(&jpeg), &mut image));
    });
    decoder.decode_bytes(&jpeg, &mut image).expect("a valid JPEG");
    let mut transformer = Transformer::default();
    let (training, test) =
        (Transform::training(IMAGE_SIZE, ResizeMode::Crop, &[]), Transform::test(IMAGE_SIZE, ResizeMode::Crop));
    let mut index = 0;
    criterion.bench_function("training transform", |bencher| {
        bencher.iter(|| {
            index += 1;
            transformer.transform(&image, &training, Draw { index, ..Draw::default() })
        });
    });
    criterion.bench_function("test transform", |bencher| {
        bencher.iter(|| transformer.transform(&image, &test, Draw::default()));
    });
}

fn whole_epochs(folder: &str) -> retune::Result<()> {
    let folder = Arc::new(ImageFolder::open(folder)?);
    let (mut decoder, mut image) = (Decoder::default(), PaddedImage::default());
    let start = Instant::now();
    for sample in &folder.samples {
        decoder.decode_file(&sample.path, &mut image)?;
    }
    println!("decoding alone: {:.1} images/s", folder.len() as f64 / start.elapsed().as_secs_f64());
    for mode in [Mode::Train { seed: 0 }, Mode::Evaluate] {
        for workers in [1, 2] {
            let options = LoaderOptions {
                batch_size: 32,
                image_size: IMAGE_SIZE,
                resize: ResizeMode::Crop,
                mode,
                workers,
                strict: true,
            };
            let loader = Loader::new(Arc::clone(&folder), options)?;
            let start = Instant::now();
            for batch in loader.epoch(0) {
                black_box(batch?.images.len());
            }
            let rate = folder.len() as f64 / start.elapsed().as_secs_f64();
            println!("{mode:?}, {workers} workers: {rate:.1} images/s");
        }
    }
    Ok(())
}

fn main() {
    match std::env::var("RETUNE_BENCH_FOLDER") {
        Ok(folder) => {
            if let Err(error) = whole_epochs(&folder) {
                eprintln!("error: {error}");
                std::process::exit(1);
            }
        }
        Err(_) => {
            let mut criterion = Criterion::default().configure_from_args();
            one_image(&mut criterion);
            criterion.final_summary();
        }
    }
}
