//! The data module against Pillow and torchvision (fixtures by `scripts/make-pillow-fixtures.py`), and against misuse.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use retune::data::random::{Purpose, RandomStream};
use retune::data::transform::{CROP_SCALE, central_crop, resized_size, sample_random_resized_crop, test_shorter_side};
use retune::data::transformer::normalize;
use retune::data::{
    Augmentation, Batch, CropBox, DecodeOptions, Decoder, Draw, FileKind, ImageFolder, Loader, LoaderOptions, Mode,
    Operation, PaddedImage, ResizeMode, RgbImage, Role, Transform, Transformer, decode_file, epoch_order, open_dataset,
    open_labelled, open_labelled_by, open_table, open_training_images,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pillow").join(name)
}

fn manifest(key: &str) -> Vec<Value> {
    let text = fs::read_to_string(fixture("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    manifest[key].as_array().unwrap().clone()
}

fn picture(value: &Value) -> RgbImage {
    decode_file(fixture(value.as_str().unwrap())).unwrap()
}

fn integers<const N: usize>(value: &Value) -> [u32; N] {
    std::array::from_fn(|i| value[i].as_u64().unwrap() as u32)
}

fn worst_difference(ours: &[u8], theirs: &[u8]) -> u8 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0)
}

/// Images that only this test creates: every pixel encodes its position.
fn drawn(width: u32, height: u32) -> RgbImage {
    let pixels = (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, (x ^ y) as u8])).collect();
    RgbImage { width, height, pixels }
}

mod decoding {
    use super::*;

    #[test]
    fn every_kind_of_file_decodes_as_pillow_decodes_it() {
        for case in manifest("decoded") {
            let (ours, theirs) = (picture(&case["input"]), picture(&case["expected"]));
            assert_eq!((ours.width, ours.height), (theirs.width, theirs.height), "{case}");
            let worst = worst_difference(&ours.pixels, &theirs.pixels);
            println!("{}: {worst}", case["input"]);
            assert!(u64::from(worst) <= case["tolerance"].as_u64().unwrap(), "{case}: {worst} levels off");
        }
    }

    /// With EXIF, `PIL.ImageOps.exif_transpose`; without it, the stored rows, except for TIFF.
    #[test]
    fn pictures_are_turned_as_pillow_turns_them() {
        let mut turned = 0;
        for case in manifest("turned") {
            let (path, theirs) = (fixture(case["input"].as_str().unwrap()), picture(&case["expected"]));
            let mut decoder = Decoder::new(DecodeOptions::with_exif(true));
            let (mut ours, mut padded, mut upper) = (RgbImage::default(), PaddedImage::default(), RgbImage::default());
            decoder.decode_file(&path, &mut ours).unwrap();
            assert_eq!((ours.width, ours.height), (theirs.width, theirs.height), "{case}");
            let worst = worst_difference(&ours.pixels, &theirs.pixels);
            assert!(u64::from(worst) <= case["tolerance"].as_u64().unwrap(), "{case}: {worst} levels off");

            decoder.decode_file(&path, &mut padded).unwrap();
            let colours: Vec<u8> = padded.pixels.chunks_exact(4).flat_map(|pixel| pixel[..3].to_vec()).collect();
            assert!(colours == ours.pixels, "{case}");
            let told = |width, height| {
                assert_eq!((width, height), (ours.width, ours.height), "{case}");
                10
            };
            decoder.decode_file_rows(&path, &mut upper, told).unwrap();
            assert!(
                upper.pixels[..10 * ours.width as usize * 3] == ours.pixels[..10 * ours.width as usize * 3],
                "{case}"
            );
            turned += usize::from(decode_file(&path).unwrap() != ours);
        }
        // Orientations 2 to 8 of a JPEG, a progressive JPEG, a PNG, a WebP.
        assert_eq!(turned, 10);
    }

    #[test]
    fn padded_pixels_have_the_same_colours() {
        for case in manifest("decoded") {
            let path = fixture(case["input"].as_str().unwrap());
            let (rgb, mut padded) = (decode_file(&path).unwrap(), PaddedImage::default());
            Decoder::default().decode_file(&path, &mut padded).unwrap();
            assert_eq!((padded.width, padded.height), (rgb.width, rgb.height), "{case}");
            let colours: Vec<u8> = padded.pixels.chunks_exact(4).flat_map(|pixel| pixel[..3].to_vec()).collect();
            assert!(colours == rgb.pixels, "{case}");
        }
    }

    #[test]
    fn upper_rows_are_those_of_the_whole_picture() {
        let mut shortened = 0;
        for case in manifest("decoded") {
            let path = fixture(case["input"].as_str().unwrap());
            let whole = decode_file(&path).unwrap();
            for rows in 0..=whole.height {
                let mut upper = RgbImage::default();
                let told = |width, height| {
                    assert_eq!((width, height), (whole.width, whole.height), "{case}");
                    rows
                };
                Decoder::default().decode_file_rows(&path, &mut upper, told).unwrap();
                assert!(upper.height >= rows && upper.width == whole.width, "{case}");
                let wanted = (rows * whole.width * 3) as usize;
                assert!(upper.pixels[..wanted] == whole.pixels[..wanted], "{case}: {rows} rows");
                shortened += usize::from(upper.height < whole.height);
            }
        }
        assert!(shortened > 0);
    }

    fn reason(name: &str, bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = decode_file(&path).unwrap_err();
        let message = error.message();
        assert!(!message.contains('\n'), "{message}");
        message.strip_prefix(&format!("cannot decode {}: ", path.display())).expect(message).to_owned()
    }

    #[test]
    fn broken_files_are_errors_of_one_line() {
        assert_eq!(reason("empty.jpg", b""), "the file is empty");
        let expected = "expected a JPEG, PNG, GIF, BMP, TIFF, WebP or PNM image, found";
        assert_eq!(reason("page.jpg", b"<!DOCTYPE html>\n<html>"), format!("{expected} an HTML page"));
        assert_eq!(reason("photo.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), format!("{expected} a HEIC image"));
        assert_eq!(reason("other.jpg", b"\x80\x81\n\x83"), format!(r#"{expected} "\x80\x81\n\x83""#));
        assert_eq!(
            reason("huge.ppm", b"P6 60000 60000 255\n"),
            "it has 60000 x 60000 pixels; at most 178956970 are accepted"
        );
        let missing = decode_file("no/such/picture.jpg").unwrap_err().to_string();
        assert_eq!(missing, "cannot decode no/such/picture.jpg: No such file or directory (os error 2)");
        let folder = decode_file(fixture("")).unwrap_err().to_string();
        assert!(folder.ends_with("it is not a file"), "{folder}");
    }

    #[test]
    fn webp_that_lacks_bytes_is_refused_as_pillow_refuses_it() {
        let chunk = |name: &[u8; 4], length: u32, content: &[u8]| {
            [&name[..], &length.to_le_bytes(), content, &[0][..content.len() % 2]].concat()
        };
        let riff = |chunks: &[&[u8]]| {
            let content = chunks.concat();
            [&b"RIFF"[..], &(content.len() as u32 + 4).to_le_bytes(), b"WEBP", &content].concat()
        };
        let decode = |bytes: &[u8]| {
            let mut image = RgbImage::default();
            Decoder::default()
                .decode_bytes(bytes, &mut image)
                .map(|()| image)
                .map_err(|error| error.message().to_owned())
        };
        for name in ["lossy.webp", "lossless.webp", "lossless-alpha.webp", "turned.webp"] {
            let whole = fs::read(fixture(name)).unwrap();
            let expected = decode(&whole).unwrap();
            for lacking in [1, 3, 50] {
                for place in [whole.len() / 2, whole.len() - lacking] {
                    let gap = [&whole[..place], &whole[place + lacking..]].concat();
                    assert_eq!(
                        decode(&gap).unwrap_err(),
                        format!(
                            "cannot decode the image: truncated WebP data: its header states {} bytes, and the file has {}",
                            whole.len(),
                            gap.len()
                        ),
                        "{name}"
                    );
                }
            }
            // What follows the end is not read.
            for after in [&b"\0"[..], b"RIFF", &[7; 100]] {
                assert_eq!(decode(&[&whole, after].concat()).unwrap(), expected, "{name}");
            }
            // A part that goes beyond the end.
            let part = whole[12..16].escape_ascii().to_string();
            let length = u32::from_le_bytes(whole[16..20].try_into().unwrap());
            let long = chunk(whole[12..16].try_into().unwrap(), whole.len() as u32, &whole[20..20 + length as usize]);
            assert_eq!(
                decode(&riff(&[&long])).unwrap_err(),
                format!(
                    "cannot decode the image: damaged WebP data: its part \"{}\" at byte 12 ends beyond the end of the image at byte {}",
                    part.trim(),
                    12 + long.len()
                )
            );
        }
        // Programs that remove metadata forget the flag that announces it. Pillow reads such files.
        let lossy = &fs::read(fixture("lossy.webp")).unwrap()[12..];
        let size = decode_file(fixture("lossy.webp")).unwrap();
        let extended = |flags: u8| {
            let [width, height] = [size.width - 1, size.height - 1].map(u32::to_le_bytes);
            chunk(b"VP8X", 10, &[&[flags, 0, 0, 0], &width[..3], &height[..3]].concat())
        };
        for flags in [0, 0x04, 0x08, 0x10, 0x1C] {
            assert_eq!(decode(&riff(&[&extended(flags), lossy])).unwrap(), size, "{flags}");
        }
        let rest = riff(&[&extended(0), lossy, b"EXI"]);
        assert!(decode(&rest).unwrap_err().contains(r#"its part "EXI" at byte"#));
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let hint = |bytes: &[u8]| {
            let error = Decoder::default().decode_bytes(bytes, &mut RgbImage::default()).unwrap_err();
            error.hint_text().map(str::to_owned)
        };
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
        assert_eq!(hint(pointer).unwrap(), "fetch the images with: git lfs pull");
        assert!(hint(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic").unwrap().starts_with("convert it to JPEG"));
        assert_eq!(hint(b"P6 60000 60000 255\n"), None);
    }

    #[test]
    fn every_truncation_of_a_photo_is_an_error() {
        for name in ["picture.jpg", "progressive.jpg", "restart-markers.jpg", "cmyk.jpg", "turned.jpg"] {
            let whole = fs::read(fixture(name)).unwrap();
            for length in 0..whole.len() {
                let result = Decoder::default().decode_bytes(&whole[..length], &mut RgbImage::default());
                assert!(result.is_err(), "{name} cut to {length} of {} bytes", whole.len());
            }
        }
        let whole = fs::read(fixture("picture.jpg")).unwrap();
        assert_eq!(reason("cut.jpg", &whole[..whole.len() - 9]), "truncated JPEG: the data end before the end marker");
    }

    /// Whatever sampling factors a JPEG claims for its components.
    #[test]
    fn any_sampling_of_a_jpeg_is_decoded_or_refused() {
        for name in ["picture.jpg", "progressive.jpg", "cmyk.jpg", "grey.jpg"] {
            let mut bytes = fs::read(fixture(name)).unwrap();
            let frame = bytes.windows(2).position(|marker| matches!(marker, [0xFF, 0xC0 | 0xC2])).unwrap();
            let components = usize::from(bytes[frame + 9]);
            let mut counts = [0; 2];
            for code in 0..1 << (4 * components.min(3)) {
                for component in 0..components {
                    let [across, down] = [2, 0].map(|bit| (code >> (4 * component.min(2) + bit) & 3) as u8 + 1);
                    bytes[frame + 11 + 3 * component] = across << 4 | down;
                }
                let result = Decoder::default().decode_bytes(&bytes, &mut RgbImage::default());
                counts[usize::from(result.is_ok())] += 1;
                if let Err(error) = result {
                    assert!(!error.message().contains("decoder gave up"), "{name}: {error}");
                }
            }
            assert!(counts[1] > 0 && (counts[0] > 0) == (components > 1), "{name}: {counts:?}");
        }
    }

    #[test]
    fn what_follows_the_end_of_a_jpeg_is_ignored() {
        let mut bytes = fs::read(fixture("picture.jpg")).unwrap();
        bytes.extend_from_slice(b"\xFF\xD8 a thumbnail, or a film");
        let mut image = RgbImage::default();
        Decoder::default().decode_bytes(&bytes, &mut image).unwrap();
        assert_eq!(image, decode_file(fixture("picture.jpg")).unwrap());
    }

    #[test]
    fn damaged_bytes_never_panic() {
        let mut random = RandomStream::new(1, Purpose::Split, 0, 0);
        let (mut decoder, mut image) = (Decoder::default(), RgbImage::default());
        for case in manifest("decoded") {
            let whole = fs::read(fixture(case["input"].as_str().unwrap())).unwrap();
            for _ in 0..rounds() {
                let mut bytes = whole.clone();
                for _ in 0..1 + random.below(4) {
                    let place = random.below(bytes.len() as u64) as usize;
                    bytes[place] = random.below(256) as u8;
                }
                if random.below(4) == 0 {
                    bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
                }
                match decoder.decode_bytes(&bytes, &mut image) {
                    Ok(()) => assert_eq!(image.pixels.len(), image.width as usize * image.height as usize * 3),
                    Err(error) => assert!(!error.message().contains("its decoder gave up"), "{error}"),
                }
            }
        }
    }

    /// More rounds on request: `RETUNE_FUZZ_ROUNDS=100000 cargo test --release damaged`.
    fn rounds() -> u32 {
        std::env::var("RETUNE_FUZZ_ROUNDS").ok().and_then(|value| value.parse().ok()).unwrap_or(200)
    }
}

mod transforming {
    use retune::device::{AffineMap, Colour, Erased, Resampling};

    use super::*;

    fn crop(draw: Draw, width: u32, height: u32) -> CropBox {
        let Resampling { top, left, height, width, .. } =
            Transform::training(224, ResizeMode::Crop, &[]).draw(draw, width, height);
        CropBox { top, left, height, width }
    }

    /// What `noise` of `scripts/make-pillow-fixtures.py` makes, too.
    fn noise(width: u32, height: u32, number: usize) -> RgbImage {
        let level = |index: u64| {
            let value = (index + ((number as u64) << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let level = ((value ^ (value >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 56) as u8;
            if number.is_multiple_of(2) { level } else { level / 128 * 255 }
        };
        let pixels = (1..=u64::from(width) * u64::from(height) * 3).map(level).collect();
        RgbImage { width, height, pixels }
    }

    fn digest(pixels: &[u8]) -> String {
        Sha256::digest(pixels)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn padded(image: &RgbImage) -> PaddedImage {
        let pixels = image.pixels.as_chunks::<3>().0.iter().flat_map(|&[red, green, blue]| [red, green, blue, 9]);
        PaddedImage { width: image.width, height: image.height, pixels: pixels.collect() }
    }

    #[test]
    fn crops_resize_as_pillow_resizes_them() {
        let mut transformer = Transformer::default();
        for case in manifest("resized_crops") {
            let (source, expected) = (picture(&case["input"]), picture(&case["expected"]));
            let [top, left, height, width] = integers(&case["crop"]);
            let [new_width, new_height] = integers(&case["size"]);
            let mut ours = vec![7; expected.pixels.len()];
            let crop = CropBox { top, left, height, width };
            transformer.resized_crop(&source, crop, new_width, new_height, &mut ours).unwrap();
            assert_eq!(worst_difference(&ours, &expected.pixels), 0, "{case}");
        }
    }

    #[test]
    fn crops_of_noise_resize_as_pillow_resizes_them() {
        let mut transformer = Transformer::default();
        for (number, case) in manifest("noise_crops").iter().enumerate() {
            let [source_width, source_height, top, left, height, width, new_width, new_height] = integers(case);
            let source = noise(source_width, source_height, number);
            let crop = CropBox { top, left, height, width };
            let mut ours = vec![7; (new_width * new_height * 3) as usize];
            transformer.resized_crop(&source, crop, new_width, new_height, &mut ours).unwrap();
            assert_eq!(digest(&ours), case[8], "{case}");
            let mut pixels = vec![7; (new_width * new_height * 4) as usize];
            transformer.resized_crop(&padded(&source), crop, new_width, new_height, &mut pixels).unwrap();
            let colours: Vec<u8> = pixels.as_chunks::<4>().0.iter().flat_map(|pixel| pixel[..3].to_vec()).collect();
            assert!(colours == ours, "{case}");
        }
    }

    #[test]
    fn the_test_transform_is_that_of_torchvision() {
        let mut transformer = Transformer::default();
        for case in manifest("test_transforms") {
            let (source, expected) = (picture(&case["input"]), picture(&case["expected"]));
            let shorter_side = case["shorter_side"].as_u64().unwrap() as u32;
            let image_size = case["image_size"].as_u64().unwrap() as u32;
            let transform = Transform::resize_and_center_crop(shorter_side, image_size);
            let ours = transformer.transform(&source, &transform, Draw::default()).unwrap();
            assert_eq!(worst_difference(&ours, &expected.pixels), 0, "{case}");
        }
        for (number, case) in manifest("noise_tests").iter().enumerate() {
            let [width, height, shorter_side, image_size] = integers(case);
            let source = noise(width, height, number);
            let transform = Transform::resize_and_center_crop(shorter_side, image_size);
            let ours = transformer.transform(&source, &transform, Draw::default()).unwrap();
            assert_eq!(digest(&ours), case[4], "{case}");
            assert!(transformer.transform(&padded(&source), &transform, Draw::default()).unwrap() == ours, "{case}");
        }
    }

    #[test]
    fn the_test_transform_scales_by_256_to_224() {
        assert_eq!([224, 32, 64, 1, 7].map(test_shorter_side), [256, 37, 73, 1, 8]);
        assert_eq!(Transform::test(32, ResizeMode::Crop), Transform::resize_and_center_crop(37, 32));
        let operations = [Operation::Resize { shorter_side: 37 }, Operation::CenterCrop { size: 32 }];
        assert_eq!(Transform::test(32, ResizeMode::Crop).operations(), operations);
    }

    #[test]
    fn squashed_and_padded_images_are_those_of_torchvision_and_pillow() {
        let mut transformer = Transformer::default();
        for (number, case) in manifest("resize_modes").iter().enumerate() {
            let [width, height, size] = integers(case);
            let transform = Transform::test(size, case[3].as_str().unwrap().parse().unwrap());
            // Two cases for each image.
            let ours = transformer.transform(&noise(width, height, number / 2), &transform, Draw::default()).unwrap();
            assert_eq!(digest(&ours), case[4], "{case}");
        }
        assert_eq!("stretch".parse::<ResizeMode>().unwrap_err().kind(), retune::error::ErrorKind::Usage);
        // One pixel remains of a ribbon.
        let ribbon = Transform::test(8, ResizeMode::Pad).draw(Draw::default(), 500, 1);
        assert_eq!((ribbon.scaled_width, ribbon.scaled_height, ribbon.window_top), (8, 1, -4));
    }

    #[test]
    fn training_crops_the_squashed_or_the_padded_image() {
        let (width, height, size) = (400, 100, 64);
        let scale: Augmentation = "crop-scale=0.35-0.5".parse().unwrap();
        let draw = |resize, index| {
            Transform::training(size, resize, &[scale]).draw(Draw { index, ..Draw::default() }, width, height)
        };
        let share = |crop: Resampling| f64::from(crop.width * crop.height) / f64::from(width * height);
        for index in 0..300 {
            let squashed = draw(ResizeMode::Squash, index);
            assert!((0.34..0.51).contains(&share(squashed)), "{squashed:?}");
            // The image has the ratio 4, and is not cut to a ratio of at most 4/3.
            let ratio = f64::from(squashed.width) / f64::from(squashed.height) / 4.0;
            assert!((0.73..1.37).contains(&ratio), "{squashed:?}");
            assert_eq!((squashed.scaled_width, squashed.scaled_height, squashed.window_top), (size, size, 0));
        }
        // What is not black is where the image is in the padded square.
        let white = white_image(width, height);
        let (mut black, mut crops) = (0, BTreeSet::new());
        for index in 0..300 {
            let padded = draw(ResizeMode::Pad, index);
            let pixels = Transformer::default().apply(&white, &padded, size).unwrap();
            black += pixels.iter().filter(|&&byte| byte == 0).count();
            assert!(pixels.contains(&255), "{padded:?}");
            // The image keeps its aspect ratio but for that of the crop.
            let scales = [(padded.scaled_width, padded.width), (padded.scaled_height, padded.height)];
            let [across, down] = scales.map(|(to, from)| f64::from(to) / f64::from(from));
            assert!((0.7..1.42).contains(&(across / down)), "{padded:?}");
            crops.insert((padded.left, padded.window_top));
        }
        let share = black as f64 / f64::from(300 * size * size * 3);
        assert!((0.5..0.75).contains(&share), "{share}");
        assert!(crops.len() > 200);
        // A crop of a very narrow image may not find it, and is then the whole image.
        let narrow = Transform::training(8, ResizeMode::Pad, &["crop-scale=0.01-0.01".parse().unwrap()]);
        for index in 0..300 {
            let drawn = narrow.draw(Draw { index, ..Draw::default() }, 1000, 1);
            let pixels = Transformer::default().apply(&white_image(1000, 1), &drawn, 8).unwrap();
            assert!(pixels.contains(&255), "{drawn:?}");
        }
    }

    fn white_image(width: u32, height: u32) -> RgbImage {
        RgbImage { width, height, pixels: vec![255; (width * height * 3) as usize] }
    }

    #[test]
    fn the_crop_scale_is_a_share_of_the_area() {
        let [small, default] = ["crop-scale=0.01-0.02", "crop-scale=0.08-1"].map(|text| text.parse().unwrap());
        assert_eq!(String::from(small), "crop-scale=0.01-0.02");
        let draw = |augmentations: &[Augmentation], index| {
            let transform = Transform::training(32, ResizeMode::Crop, augmentations);
            transform.draw(Draw { index, ..Draw::default() }, 400, 300)
        };
        for index in 0..300 {
            let crop = draw(&[small], index);
            let share = f64::from(crop.width * crop.height) / f64::from(400 * 300);
            assert!((0.009..0.0211).contains(&share), "{crop:?}");
            assert_eq!(draw(&[small, default], index), draw(&[], index));
        }
        assert_eq!(Augmentation::besides_default(&[small, default]), []);
        assert_eq!(Augmentation::besides_default(&[default, small]), [small]);
        for wrong in ["crop-scale", "crop-scale=0.5", "crop-scale=0-1", "crop-scale=0.5-0.4", "crop-scale=0.5-1.1"] {
            let error = wrong.parse::<Augmentation>().unwrap_err();
            assert!(error.to_string().contains("such as 0.35-1"), "{error}");
        }
    }

    #[test]
    fn resized_sizes_are_those_of_torchvision() {
        for case in manifest("resized_sizes") {
            let [width, height, shorter_side, new_width, new_height] = integers(&case);
            assert_eq!(resized_size(width, height, shorter_side), (new_width, new_height), "{case}");
        }
    }

    #[test]
    fn the_fallback_crop_is_that_of_torchvision() {
        for case in manifest("crop_fallbacks") {
            let [picture_width, picture_height, top, left, height, width] = integers(&case);
            assert_eq!(central_crop(picture_width, picture_height), CropBox { top, left, height, width }, "{case}");
        }
    }

    #[test]
    fn a_ribbon_always_falls_back() {
        for index in 0..100 {
            let crop = crop(Draw { index, ..Draw::default() }, 20000, 10);
            assert_eq!(crop, CropBox { top: 0, left: 9993, height: 10, width: 13 });
        }
    }

    #[test]
    fn crops_are_distributed_as_those_of_torchvision() {
        for case in manifest("crop_means") {
            let [width, height] = integers(&case["size"]);
            let draws = 100_000;
            let mut random = RandomStream::new(3, Purpose::Augmentation, 0, 0);
            let mut sums = [[0.0; 4]; 2];
            for _ in 0..draws {
                let crop = sample_random_resized_crop(&mut random, width, height, CROP_SCALE);
                let values = [crop.top, crop.left, crop.height, crop.width].map(f64::from);
                for (i, value) in values.into_iter().enumerate() {
                    sums[0][i] += value;
                    sums[1][i] += value * value;
                }
            }
            for i in 0..4 {
                let mean = sums[0][i] / f64::from(draws);
                let deviation = (sums[1][i] / f64::from(draws) - mean * mean).max(0.0).sqrt();
                let theirs = case["mean"][i].as_f64().unwrap();
                let their_deviation = case["deviation"][i].as_f64().unwrap();
                let standard_error = their_deviation / case["draws"].as_f64().unwrap().sqrt();
                assert!((mean - theirs).abs() <= 4.0 * standard_error + 1e-9, "{case}: mean {i} is {mean}");
                assert!(
                    (deviation - their_deviation).abs() <= 0.03 * their_deviation + 1e-3,
                    "{case}: {i} {deviation}"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn crops_lie_inside_and_keep_their_bounds(width in 1u32..3000, height in 1u32..3000, seed: u64) {
            let crop = crop(Draw { seed, epoch: 1, index: 2 }, width, height);
            prop_assert!(crop.width >= 1 && crop.left + crop.width <= width);
            prop_assert!(crop.height >= 1 && crop.top + crop.height <= height);
            if crop != central_crop(width, height) {
                // Each side was rounded by half a pixel at most.
                let (w, h) = (f64::from(crop.width), f64::from(crop.height));
                let area = f64::from(width) * f64::from(height);
                prop_assert!((w + 0.5) * (h + 0.5) >= 0.08 * area);
                prop_assert!((w + 0.5) / (h - 0.5) >= 0.75 && (w - 0.5) / (h + 0.5) <= 4.0 / 3.0);
            }
        }

        #[test]
        fn any_crop_scales_to_any_size(
            width in 1u32..60, height in 1u32..60, size in 1u32..40, shorter_side in 1u32..40, seed: u64
        ) {
            let source = drawn(width, height);
            let mut transformer = Transformer::default();
            for transform in [Transform::training(size, ResizeMode::Crop, &[]), Transform::resize_and_center_crop(shorter_side, size)] {
                let draw = Draw { seed, ..Draw::default() };
                prop_assert!(transformer.transform(&source, &transform, draw).is_ok());
            }
        }
    }

    #[test]
    fn augmentations_are_independent_and_half_of_them_flip() {
        let drawn = |seed, epoch, index| {
            Transform::training(224, ResizeMode::Crop, &[]).draw(Draw { seed, epoch, index }, 400, 300)
        };
        let crop = |seed, epoch, index| crop(Draw { seed, epoch, index }, 400, 300);
        let all: Vec<Resampling> = (0..4000).map(|index| drawn(5, 0, index)).collect();
        let flips = all.iter().filter(|drawn| drawn.flip_columns).count();
        assert!((1800..2200).contains(&flips), "{flips}");
        assert_eq!(all[17], drawn(5, 0, 17));
        for other in [crop(5, 1, 17), crop(6, 0, 17), crop(5, 0, 18)] {
            assert_ne!(crop(5, 0, 17), other);
        }
    }

    #[test]
    fn flips_exchange_left_and_right_or_top_and_bottom() {
        let source = drawn(5, 4);
        let whole = Resampling::whole(4, 4);
        let mut transformer = Transformer::default();
        let straight = transformer.apply(&source, &whole, 4).unwrap();
        let flipped = transformer.apply(&source, &Resampling { flip_columns: true, ..whole }, 4).unwrap();
        let upside_down = transformer.apply(&source, &Resampling { flip_rows: true, ..whole }, 4).unwrap();
        for y in 0..4 {
            for x in 0..4 {
                let (a, b) = ((y * 4 + x) * 3, (y * 4 + 3 - x) * 3);
                assert_eq!(straight[a..a + 3], flipped[b..b + 3]);
                let c = ((3 - y) * 4 + x) * 3;
                assert_eq!(straight[a..a + 3], upside_down[c..c + 3]);
            }
        }
        assert_eq!(straight[3..6], [1, 0, 1]);
    }

    #[test]
    fn augmentations_are_read_and_replace_their_default() {
        let flip: Augmentation = "horizontal-flip=0".parse().unwrap();
        assert_eq!(String::from(flip), "horizontal-flip=0");
        let transform = Transform::training(32, ResizeMode::Crop, &[flip]);
        let operations = [
            Operation::RandomResizedCrop { size: 32, scale: CROP_SCALE, resize: ResizeMode::Crop },
            Operation::Augmentation(flip),
        ];
        assert_eq!(transform.operations(), operations);
        assert!((0..100).all(|index| !transform.draw(Draw { index, ..Draw::default() }, 90, 70).flip_columns));
        for wrong in ["horizontal-flip", "horizontal-flip=", "horizontal-flip=1.1", "horizontal-flip=NaN", "turn=1"] {
            let error = wrong.parse::<Augmentation>().unwrap_err();
            assert_eq!(error.kind(), retune::error::ErrorKind::Usage, "{error}");
        }
    }

    fn training(words: &str) -> Transform {
        let augmentations: Vec<Augmentation> = words.split_whitespace().map(|word| word.parse().unwrap()).collect();
        Transform::training(40, ResizeMode::Crop, &augmentations)
    }

    fn draws(words: &str, count: usize) -> Vec<Resampling> {
        let transform = training(words);
        (0..count).map(|index| transform.draw(Draw { index, ..Draw::default() }, 400, 300)).collect()
    }

    #[test]
    fn augmentations_of_pixels_leave_crops_and_flips_as_they_are() {
        let plain = draws("", 200);
        let off = "brightness=0 contrast=0 saturation=0 hue=0 rotation=0 translate=0 zoom=0 shear=0 random-erasing=0";
        assert_eq!(draws(off, 200), plain);
        let all = "random-erasing=1 trivial-augment hue=0.1 saturation=0.2 contrast=0.3 brightness=0.4 shear=5 zoom=0.1 rotation=9";
        let edited = draws(all, 200);
        for (edited, plain) in edited.iter().zip(&plain) {
            assert!(edited.edits.affine.is_some() && edited.edits.erased.is_some());
            assert_eq!(Resampling { edits: plain.edits, ..*edited }, *plain);
        }
        // The order of the words does not matter.
        let mut words: Vec<&str> = all.split(' ').collect();
        words.reverse();
        assert_eq!(draws(&words.join(" "), 200), edited);
        assert_eq!(
            training("hue=0.1 brightness=0.4").operations().iter().map(Operation::to_string).collect::<Vec<_>>(),
            ["random-resized-crop", "horizontal-flip=0.5", "brightness=0.4", "hue=0.1", "colours in random order"]
        );
    }

    #[test]
    fn wrong_amounts_are_refused() {
        for (word, expected) in [
            ("hue=0.6", "hue=0.6: expected a number from 0 to 0.5"),
            ("rotation", "rotation: expected a number from 0 to 180"),
            ("contrast=-1", "contrast=-1: expected a number from 0 to 10"),
            ("zoom=NaN", "zoom=NaN: expected a number from 0 to 0.9"),
            ("trivial-augment=1", "unknown augmentation trivial-augment=1; expected one of horizontal-flip="),
        ] {
            let error = word.parse::<Augmentation>().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        for word in ["hue=0.25", "trivial-augment", "random-erasing=1", "crop-scale=0.2-0.75"] {
            assert_eq!(word.parse::<Augmentation>().unwrap().to_string(), word);
        }
    }

    #[test]
    fn colour_jitter_is_drawn_as_by_torchvision() {
        let mut orders = BTreeSet::new();
        let (mut least, mut most) = ([f32::MAX; 3], [f32::MIN; 3]);
        for drawn in draws("brightness=0.2 contrast=1.5 saturation=0.5 hue=0.25", 2000) {
            let mut order = String::new();
            let mut note = |index: usize, factor: f32| {
                (least[index], most[index]) = (least[index].min(factor), most[index].max(factor));
                ['b', 'c', 's'][index]
            };
            for colour in drawn.edits.colours.into_iter().flatten() {
                order.push(match colour {
                    Colour::Brightness(factor) => note(0, factor),
                    Colour::Contrast(factor) => note(1, factor),
                    Colour::Saturation(factor) => note(2, factor),
                    Colour::Hue(shift) if !(64..193).contains(&shift) => 'h',
                    other => panic!("{other:?}"),
                });
            }
            orders.insert(order);
        }
        assert_eq!(orders.len(), 24, "all permutations");
        for (index, (from, to)) in [(0.8, 1.2), (0.0, 2.5), (0.5, 1.5)].into_iter().enumerate() {
            assert!(from <= least[index] && least[index] < from + 0.02, "{index}: {least:?}");
            assert!(most[index] <= to && to - 0.02 < most[index], "{index}: {most:?}");
        }
    }

    #[test]
    fn erased_rectangles_are_distributed_as_those_of_torchvision() {
        for case in manifest("erased_means") {
            let size = case["size"].as_u64().unwrap() as u32;
            let transform = Transform::training(size, ResizeMode::Crop, &["random-erasing=0.4".parse().unwrap()]);
            let (mut sums, mut count, draws) = ([0.0; 4], 0.0, 20_000);
            for index in 0..draws {
                let drawn = transform.draw(Draw { index, ..Draw::default() }, 64, 64);
                let Some(Erased { top, left, height, width }) = drawn.edits.erased else { continue };
                count += 1.0;
                assert!(top + height <= size && left + width <= size);
                sums.iter_mut().zip([top, left, height, width]).for_each(|(sum, value)| *sum += f64::from(value));
            }
            assert!((count / draws as f64 - 0.4).abs() < 0.02, "{count}");
            for (i, sum) in sums.iter().enumerate() {
                let (mean, deviation) = (case["mean"][i].as_f64().unwrap(), case["deviation"][i].as_f64().unwrap());
                let standard_error = deviation * (1.0 / case["draws"].as_f64().unwrap() + 1.0 / count).sqrt();
                assert!((sum / count - mean).abs() <= 4.0 * standard_error, "{case}: mean {i} is {}", sum / count);
            }
        }
    }

    #[test]
    fn trivial_augment_draws_the_operations_of_torchvision() {
        let drawn: Vec<Resampling> = draws("trivial-augment", 14 * 61 * 20);
        let share = |matches: &dyn Fn(&Resampling) -> bool| {
            drawn.iter().filter(|drawn| matches(drawn)).count() as f64 / drawn.len() as f64
        };
        for case in manifest("trivial_augment") {
            let name = case["name"].as_str().unwrap();
            let magnitudes: Vec<f64> =
                case["magnitudes"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
            // The value of an operation on colours, as torchvision's magnitude.
            let value = |drawn: &Resampling| -> Option<f64> {
                match (name, drawn.edits.colours[0]?) {
                    ("Brightness", Colour::Brightness(factor))
                    | ("Color", Colour::Saturation(factor))
                    | ("Contrast", Colour::Contrast(factor))
                    | ("Sharpness", Colour::Sharpness(factor)) => Some(f64::from(factor) - 1.0),
                    ("Posterize", Colour::Posterize(bits)) => Some(bits.into()),
                    ("Solarize", Colour::Solarize(threshold)) => Some(threshold.into()),
                    ("AutoContrast", Colour::AutoContrast) | ("Equalize", Colour::Equalize) => Some(0.0),
                    _ => None,
                }
            };
            match &case["matrix"] {
                Value::Null if name == "Identity" => {
                    let none = share(&|drawn| drawn.edits.is_empty());
                    assert!((0.06..0.085).contains(&none), "{none}");
                }
                Value::Null => {
                    let values: Vec<f64> = drawn.iter().filter_map(value).collect();
                    let share = values.len() as f64 / drawn.len() as f64;
                    assert!((0.06..0.085).contains(&share), "{name}: {share}");
                    let expected: Vec<f64> = match case["signed"].as_bool().unwrap() {
                        true => magnitudes.iter().flat_map(|&magnitude| [magnitude, -magnitude]).collect(),
                        // A byte is below a threshold if it is below the next integer.
                        false => magnitudes.iter().map(|magnitude| magnitude.ceil()).collect(),
                    };
                    let is = |value: f64, other: f64| (value - other).abs() < 1e-5;
                    assert!(values.iter().all(|&value| expected.iter().any(|&other| is(value, other))), "{name}");
                    assert!(expected.iter().all(|&other| values.iter().any(|&value| is(value, other))), "{name}");
                }
                matrix => {
                    let matrix: [f64; 6] = std::array::from_fn(|i| matrix[i].as_f64().unwrap());
                    let expected = AffineMap::new(matrix);
                    // The magnitudes are float32.
                    let is = |found: AffineMap| {
                        let pairs = found.across.into_iter().chain(found.down);
                        let mut pairs = pairs.zip(expected.across.into_iter().chain(expected.down));
                        pairs.all(|(found, expected)| found.abs_diff(expected) < 1 << 14)
                    };
                    let largest = share(&|drawn| drawn.edits.affine.is_some_and(is));
                    assert!((0.25..2.0).contains(&(largest * 14.0 * 62.0)), "{name}: {largest}");
                }
            }
        }
    }

    #[test]
    fn a_vertical_flip_leaves_the_other_draws_as_they_are() {
        let augmentations = ["vertical-flip=0.25".parse().unwrap()];
        let (plain, flipped) = (
            Transform::training(224, ResizeMode::Crop, &[]),
            Transform::training(224, ResizeMode::Crop, &augmentations),
        );
        let mut flips = 0;
        for index in 0..4000 {
            let draw = Draw { seed: 5, epoch: 0, index };
            let drawn = flipped.draw(draw, 400, 300);
            assert_eq!(Resampling { flip_rows: false, ..drawn }, plain.draw(draw, 400, 300));
            flips += usize::from(drawn.flip_rows);
        }
        assert!((850..1150).contains(&flips), "{flips}");
    }

    #[test]
    fn normalisation_gives_the_floats_of_pytorch() {
        let levels: Vec<u8> = (0..=255).flat_map(|level| [level; 3]).collect();
        let mut ours = vec![0.0; 768];
        normalize(&levels, &mut ours).unwrap();
        let theirs = fs::read(fixture("normalized-levels.f32")).unwrap();
        let theirs: Vec<f32> = theirs.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn misuse_is_an_error() {
        let source = drawn(5, 4);
        let mut transformer = Transformer::default();
        let outside = CropBox { top: 1, left: 0, height: 4, width: 5 };
        assert!(transformer.resized_crop(&source, outside, 2, 2, &mut [0; 12]).is_err());
        let overflowing = CropBox { top: u32::MAX, left: u32::MAX, height: 2, width: 2 };
        assert!(transformer.resized_crop(&source, overflowing, 2, 2, &mut [0; 12]).is_err());
        let whole = CropBox { top: 0, left: 0, height: 4, width: 5 };
        assert!(transformer.resized_crop(&source, whole, 2, 2, &mut [0; 11]).is_err());
        let mut refuse = |image: &RgbImage, transform: &Transform| {
            assert!(transformer.transform(image, transform, Draw::default()).is_err(), "{transform:?}");
        };
        refuse(&source, &Transform::test(0, ResizeMode::Crop));
        refuse(&source, &Transform::resize_and_center_crop(0, 2));
        refuse(&RgbImage::default(), &Transform::test(2, ResizeMode::Crop));
        assert!(normalize(&[0; 6], &mut [0.0; 3]).is_err());
    }
}

mod random_streams {
    use super::*;

    /// Known values: a seed must mean the same after every update.
    #[test]
    fn numbers_stay_the_same() {
        let mut random = RandomStream::new(42, Purpose::Order, 7, 0);
        let numbers: Vec<u64> = (0..4).map(|_| random.below(1_000_000)).collect();
        let unit = random.unit();
        assert_eq!(
            (numbers, unit, epoch_order(8, Mode::Train { seed: 1 }, 0)),
            (NUMBERS.to_vec(), UNIT, ORDER.to_vec())
        );
    }

    const NUMBERS: [u64; 4] = [408739, 493274, 714333, 490199];
    const UNIT: f64 = 0.03691139618240202;
    const ORDER: [usize; 8] = [4, 6, 0, 3, 7, 2, 5, 1];

    #[test]
    fn integers_are_uniform() {
        let mut random = RandomStream::new(0, Purpose::Split, 0, 0);
        let mut counts = [0u32; 5];
        for _ in 0..50_000 {
            counts[random.below(5) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9600..10400).contains(count)), "{counts:?}");
        assert_eq!(random.below(0), 0);
        assert_eq!(random.below(1), 0);
    }
}

/// A folder of small images: `(path, contents)`; images get different pixels.
fn folder_of(files: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (number, file) in files.iter().enumerate() {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut ppm = b"P6 24 20 255\n".to_vec();
        ppm.extend(drawn(24, 20).pixels.iter().map(|byte| byte.wrapping_mul(9).wrapping_add(31 * number as u8)));
        fs::write(path, ppm).unwrap();
    }
    root
}

fn names(folder: &ImageFolder) -> Vec<String> {
    let name = |path: &Path| path.strip_prefix(&folder.root).unwrap().to_str().unwrap().to_owned();
    folder.samples.iter().map(|sample| name(&sample.path)).collect()
}

mod folders {
    use super::*;

    #[test]
    fn pictures_are_found_in_the_order_of_torchvision() {
        let root = folder_of(&[
            "b/2.jpg",
            "b/10.JPG",
            "b/notes.txt",
            "b/a/z.png",
            "b/a-b/y.Png",
            "b/a/deep/er/x.webp",
            "b/noextension",
            "a/1.tiff",
            "a/.ppm",
            "a/._1.pgm",
            "Z/1.bmp",
            "Z/2.jpeg",
            "Z/3.tif",
            "loose.jpg",
        ]);
        let folder = ImageFolder::open(root.path()).unwrap();
        assert_eq!(folder.classes, ["Z", "a", "b"]);
        assert_eq!(
            names(&folder),
            [
                "Z/1.bmp",
                "Z/2.jpeg",
                "Z/3.tif",
                "a/.ppm",
                "a/1.tiff",
                "b/10.JPG",
                "b/2.jpg",
                "b/noextension",
                "b/a/z.png",
                "b/a-b/y.Png",
                "b/a/deep/er/x.webp",
            ]
        );
        // `b/noextension` is an image: see `what_is_no_image_of_a_class_is_counted`.
        assert_eq!(folder.class_counts(), [3, 2, 6]);
        assert_eq!((folder.len(), folder.is_empty()), (11, false));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_but_not_in_circles() {
        use std::os::unix::fs::symlink;
        let root = folder_of(&["a/1.jpg", "b/2.jpg", "b/in/3.jpg"]);
        let elsewhere = folder_of(&["more/4.jpg"]);
        symlink(elsewhere.path().join("more"), root.path().join("a/link")).unwrap();
        symlink(root.path(), root.path().join("b/in/top")).unwrap();
        symlink("..", root.path().join("b/in/up")).unwrap();
        symlink(".", root.path().join("b/in/self")).unwrap();
        symlink("nowhere", root.path().join("b/broken")).unwrap();
        symlink("b", root.path().join("c")).unwrap();
        let folder = ImageFolder::open(root.path()).unwrap();
        assert_eq!(folder.classes, ["a", "b", "c"]);
        let found = names(&folder);
        assert!(found.contains(&"a/link/4.jpg".to_owned()));
        assert_eq!(found.iter().filter(|name| name.starts_with("b/") && name.ends_with("/2.jpg")).count(), 1);
        assert!(found.contains(&"c/2.jpg".to_owned()));
        // Seen from b and from c.
        assert!(
            !found.iter().any(|name| ["/top/", "/up/", "/self/"].iter().any(|link| name.contains(link))),
            "{found:?}"
        );
        let set_aside: Vec<_> = folder.not_read.foreign.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(set_aside, [("self", 2), ("top", 2), ("up", 2)]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn names_that_are_not_unicode_work() {
        use std::os::unix::ffi::OsStrExt;
        let root = folder_of(&["a/1.ppm"]);
        let odd = root.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
        fs::create_dir(&odd).unwrap();
        fs::copy(root.path().join("a/1.ppm"), odd.join(std::ffi::OsStr::from_bytes(b"\xff\xfe.PPM"))).unwrap();
        let folder = ImageFolder::open(root.path()).unwrap();
        assert_eq!(folder.classes, ["a", "caf\u{fffd}"]);
        assert_eq!(folder.len(), 2);
        assert_eq!(decode_file(&folder.samples[1].path).unwrap().width, 24);
        let twin = root.path().join(std::ffi::OsStr::from_bytes(b"caf\xe8"));
        fs::create_dir(twin).unwrap();
        let message = ImageFolder::open(root.path()).unwrap_err().to_string();
        assert!(message.ends_with("look the same\nhint: rename one of them"), "{message}");
    }

    /// The message, with the folder's path shown as `DATA`.
    fn message<T: std::fmt::Debug>(root: &Path, result: retune::Result<T>) -> String {
        result.unwrap_err().to_string().replace(root.to_str().unwrap(), "DATA")
    }

    #[test]
    fn bad_folders_are_clear_errors() {
        let root = folder_of(&["one/1.jpg", "file"]);
        let path = root.path();
        assert_eq!(
            message(path, ImageFolder::open(path.join("missing"))),
            "there is no folder DATA/missing\nhint: check the spelling of the path"
        );
        assert_eq!(
            message(path, ImageFolder::open(path.join("file"))),
            "DATA/file is a file; expected a folder of class folders"
        );
        assert_eq!(
            message(path, ImageFolder::open(path.join("one"))),
            "DATA/one contains no folders; expected one for each class\n\
             hint: put the images of each class into a folder that has the name of the class"
        );
        assert_eq!(
            message(path, ImageFolder::open(path).unwrap().require_two_classes()),
            "DATA has only one class folder, one; a classifier needs at least two\n\
             hint: add a folder of images of another class"
        );
        fs::create_dir_all(path.join("empty/inner")).unwrap();
        assert_eq!(
            message(path, ImageFolder::open(path)),
            format!(
                "the class folder DATA/empty contains no images; the accepted extensions are {}\n\
                 hint: put images into the folder, or remove it",
                FileKind::image_extensions()
            )
        );
    }

    #[test]
    fn train_and_test_folders_share_their_classes() {
        for test_name in ["test", "val"] {
            let root = folder_of(&["train/b/1.jpg", "train/c/1.jpg", "train/a/1.jpg"]);
            for class in ["c", "b"] {
                fs::create_dir_all(root.path().join(test_name).join(class)).unwrap();
                let target = root.path().join(test_name).join(class).join("2.jpg");
                fs::copy(root.path().join("train/a/1.jpg"), target).unwrap();
            }
            let splits = open_dataset(root.path(), None, 0).unwrap();
            assert_eq!(splits.train.classes, ["a", "b", "c"]);
            assert_eq!(splits.test.classes, ["a", "b", "c"]);
            assert_eq!(splits.test.samples.iter().map(|sample| sample.class).collect::<Vec<_>>(), [1, 2]);
            let contradiction = open_dataset(root.path(), Some(0.5), 0).unwrap_err();
            assert_eq!(contradiction.kind(), retune::error::ErrorKind::Usage);

            fs::rename(root.path().join(test_name).join("c"), root.path().join(test_name).join("d")).unwrap();
            assert_eq!(
                message(root.path(), open_dataset(root.path(), None, 0)),
                format!(
                    "DATA/{test_name}/d contains 1 image of a class that the training images lack: theirs are a, b, c\n\
                     hint: give the class images to train on, or move the folder away"
                )
            );
            // An empty folder does no harm.
            fs::remove_file(root.path().join(test_name).join("d/2.jpg")).unwrap();
            let place = root.path().join(test_name).display().to_string();
            assert_eq!(
                open_dataset(root.path(), None, 0).unwrap().notices,
                [
                    format!("{place}: the empty folder d is not used, as no known class has such a name"),
                    format!("{place} has no image of the classes a, c"),
                ]
            );
            fs::remove_file(root.path().join(test_name).join("b/2.jpg")).unwrap();
            assert_eq!(
                message(root.path(), open_dataset(root.path(), None, 0)),
                format!(
                    "DATA/{test_name} contains no images in its class folders b, d\n\
                     hint: put images into the class folders, or remove DATA/{test_name}"
                )
            );
        }
    }

    #[test]
    fn a_data_set_without_a_test_is_an_error() {
        let root = folder_of(&["a/1.jpg", "b/1.jpg"]);
        assert_eq!(
            message(root.path(), open_dataset(root.path(), None, 0)),
            "DATA contains no train/ and test/ (or val/) folders, and no test fraction is given\n\
             hint: make both folders, or hold out part of every class for testing with --test-fraction 0.2"
        );
        assert_eq!(
            message(root.path(), open_dataset(root.path(), Some(0.2), 0)),
            "DATA: the class a has one image; two are needed to train on one and test on the other\n\
             hint: add images to the class, or remove it"
        );
        let root = folder_of(&["train/a/1.jpg", "train/b/1.jpg"]);
        assert_eq!(
            message(root.path(), open_dataset(root.path(), None, 0)),
            "DATA has a train/ folder, but no test/ or val/ folder beside it, and no test fraction is given\n\
             hint: make the folder, or hold out part of every class for testing with --test-fraction 0.2"
        );
        let other = folder_of(&["train/a/1.jpg", "train/b/1.jpg", "notes/x.txt", "tst/a/1.jpg", "tst/b/1.jpg"]);
        let error = open_dataset(other.path(), None, 0).unwrap_err();
        assert_eq!(
            error.hint_text().unwrap(),
            "rename tst/ to test if it contains the images to test on, or hold out part of every class for testing with \
             --test-fraction 0.2"
        );
        for fraction in [0.0, 1.0, -0.1, f64::NAN, f64::INFINITY] {
            let error = open_dataset(root.path(), Some(fraction), 0).unwrap_err();
            assert_eq!(error.kind(), retune::error::ErrorKind::Usage, "{error}");
        }
    }

    #[test]
    fn splits_have_the_names_that_people_give_them() {
        let names = [
            ("Train", "Val", None),
            ("training", "validation", None),
            ("TRAIN_SET", "testing", None),
            ("train-images", "dev", None),
            ("train", "valid", Some("test")),
            ("Training", "Validation", Some("Evaluation")),
        ];
        for (train, held_out, test) in names {
            let mut files = Vec::new();
            for split in [Some(train), Some(held_out), test].into_iter().flatten() {
                files.extend(["cat/1.jpg", "dog/1.jpg"].map(|file| format!("{split}/{file}")));
            }
            let root = folder_of(&files.iter().map(String::as_str).collect::<Vec<_>>());
            let splits = open_dataset(root.path(), None, 0).unwrap();
            assert_eq!(splits.train.root, root.path().join(train));
            assert_eq!(splits.test.root, root.path().join(test.unwrap_or(held_out)));
            let validation = splits.validation.as_ref().map(|folder| folder.root.clone());
            assert_eq!(validation, test.map(|_| root.path().join(held_out)));
            assert_eq!(splits.choosing().root, root.path().join(held_out));
            assert_eq!(splits.notices, Vec::<String>::new());
            for class in ["cat", "dog"] {
                assert!(Role::of(class.as_ref()).is_none());
            }
        }
        // Within a common name, beside other folders, and in a folder of the same name.
        let root = folder_of(&[
            "seg_train/seg_train/cat/1.jpg",
            "seg_train/seg_train/dog/1.jpg",
            "seg_test/cat/1.jpg",
            "seg_test/dog/1.jpg",
            "seg_pred/1.jpg",
        ]);
        let splits = open_dataset(root.path(), None, 0).unwrap();
        assert_eq!(splits.train.root, root.path().join("seg_train/seg_train"));
        assert_eq!(splits.test.root, root.path().join("seg_test"));
        assert_eq!(
            splits.notices,
            ["not read, as it is not a folder of training, validation or test images: seg_pred"]
        );
        let labelled = open_labelled(root.path(), &["cat", "dog"].map(String::from)).unwrap();
        assert_eq!((labelled.folder, labelled.role), (root.path().join("seg_test"), Some(Role::Test)));
        let root = folder_of(&["x_train/1.jpg", "x_test/1.jpg", "y/1.jpg", "y/2.jpg"]);
        assert!(
            open_dataset(root.path(), Some(0.5), 0).unwrap_err().message().contains("the class x_test has one image")
        );
        let root = folder_of(&["x_train/1.jpg", "x_train/2.jpg", "x_test/1.jpg", "x_test/2.jpg"]);
        let error = message(root.path(), open_dataset(root.path(), Some(0.5), 0));
        assert!(error.contains("so the classes of the images are not known"), "{error}");
        let root = folder_of(&["1_train/a/1.jpg", "1_test/a/1.jpg", "2_train/a/1.jpg", "2_test/a/1.jpg"]);
        let error = message(root.path(), open_dataset(root.path(), Some(0.5), 0));
        assert!(
            error.starts_with("DATA contains several data sets, each with its own splits: 1_test, 1_train"),
            "{error}"
        );
        let root = folder_of(&["Train/a/1.jpg", "training/a/1.jpg", "val/a/1.jpg"]);
        assert_eq!(
            message(root.path(), open_dataset(root.path(), None, 0)),
            "DATA contains two folders of training images: Train and training\n\
             hint: keep one of them there, and move the other away"
        );
    }

    #[test]
    fn folders_of_splits_are_never_classes() {
        let cases: [(&[&str], &str); 6] = [
            (
                &["photos/train/a/1.jpg", "photos/train/b/1.jpg", "photos/test/a/1.jpg"],
                "DATA contains no class folders; one level down there is DATA/photos/test and DATA/photos/train\n\
                 hint: give DATA/photos as the data set",
            ),
            (
                &["a/train/1.jpg", "a/test/2.jpg", "b/train/1.jpg", "b/test/2.jpg"],
                "every class folder in DATA has its own splits, such as DATA/a/test and DATA/a/train; expected the splits \
                 above the classes\nhint: move the folders: train/CLASS instead of CLASS/train",
            ),
            (
                &["val/a/1.jpg", "test/a/1.jpg", "val/b/1.jpg"],
                "DATA contains test/, but no folder of training images\n\
                 hint: put the training images beside it, into train/ with one folder for each class",
            ),
            (
                &["train/1.jpg", "train/2.jpg", "test/1.jpg", "test/2.jpg"],
                "DATA/test has 2 images in no class folders, and DATA/train has 2 images in no class folders, so the classes of the \
                 images are not known\n\
                 hint: put the images of each class into a folder that has the name of the class",
            ),
            (
                &["photos/a/1.jpg", "photos/b/1.jpg"],
                "DATA has only one class folder, photos; a classifier needs at least two\n\
                 hint: if a, b are the classes, give DATA/photos as the data set",
            ),
            (
                &["images/1.jpg", "images/2.jpg", "labels.csv"],
                "DATA has only one class folder, images; a classifier needs at least two\n\
                 hint: labels in a CSV file with the columns path and label are read by train and eval, like this: DATA/images --labels \
                 DATA/labels.csv",
            ),
        ];
        for (files, expected) in cases {
            let root = folder_of(files);
            for fraction in [None, Some(0.25)] {
                assert_eq!(message(root.path(), open_dataset(root.path(), fraction, 0)), expected);
            }
        }
        // Masks are images too, but not those of a class.
        for files in [
            &["images/1.jpg", "images/2.jpg", "annotations/trimaps/1.png", "annotations/trimaps/2.png"][..],
            &["train/Images/1.jpg", "train/Masks/1.png", "train/gt/1.png", "test/Images/1.jpg", "test/Masks/1.png"],
        ] {
            let root = folder_of(files);
            let fraction = if files.len() == 4 { Some(0.5) } else { None };
            let error = message(root.path(), open_dataset(root.path(), fraction, 0));
            assert!(error.contains("contains images and their annotations, not folders of classes: "), "{error}");
        }
        for [one, other] in [["mask", "no_mask"], ["image", "video"], ["bottles", "labels"]] {
            let files = [one, other].map(|class| [format!("{class}/1.jpg"), format!("{class}/2.jpg")]).concat();
            let root = folder_of(&files.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(open_dataset(root.path(), Some(0.5), 0).unwrap().train.classes, [one, other].map(String::from));
        }
        // Names of splits that hold images among other classes are classes.
        let root = folder_of(&["train/1.jpg", "train/2.jpg", "bus/1.jpg", "bus/2.jpg"]);
        assert_eq!(open_dataset(root.path(), Some(0.5), 0).unwrap().train.classes, ["bus", "train"]);
        let root = folder_of(&["valid/1.jpg", "valid/2.jpg", "invalid/1.jpg", "invalid/2.jpg"]);
        assert_eq!(open_dataset(root.path(), Some(0.5), 0).unwrap().train.classes, ["invalid", "valid"]);
    }

    #[test]
    fn images_outside_of_class_folders_are_told() {
        let with_splits =
            ["0.jpg", "train/1.heic", "train/a/1.jpg", "train/b/1.jpg", "test/x.jpg", "test/a/1.jpg", "test/b/1.jpg"];
        let without = ["1.jpg", "notes.txt", "._2.jpg", "a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"];
        for (files, fraction, count) in [(&with_splits[..], None, "3 images"), (&without[..], Some(0.5), "1 image")] {
            let root = folder_of(files);
            if fraction.is_some() {
                fs::write(root.path().join("notes.txt"), "no image").unwrap();
            }
            let splits = open_dataset(root.path(), fraction, 0).unwrap();
            let are = if count == "1 image" { "is" } else { "are" };
            let first = root.path().join(files[0]).display().to_string();
            let told = format!("{count} outside of the class folders {are} not used, such as {first}");
            assert_eq!(splits.notices, [told]);
            let error = splits.not_read().require_all_used().unwrap_err();
            assert_eq!(error.message(), splits.notices[0]);
            assert!(
                open_training_images(root.path()).unwrap().1.iter().any(|line| line.contains("outside of the class"))
            );
        }
        let root = folder_of(&["a/1.jpg", "b/1.jpg"]);
        assert!(ImageFolder::open(root.path()).unwrap().not_read.require_all_used().is_ok());
    }

    #[test]
    fn unlabelled_test_images_are_set_aside() {
        let root = folder_of(&["train/a/1.jpg", "train/a/2.jpg", "train/b/1.jpg", "train/b/2.jpg", "test/1.jpg"]);
        assert_eq!(
            message(root.path(), open_dataset(root.path(), None, 0)),
            "there is nothing to test on: DATA/test has 1 image in no class folders, and no test fraction is given\n\
             hint: put test images into one folder for each class there, or hold out part of every training class with \
             --test-fraction 0.2"
        );
        let splits = open_dataset(root.path(), Some(0.5), 0).unwrap();
        assert_eq!((splits.train.len(), splits.test.len()), (2, 2));
        let test = root.path().join("test").display().to_string();
        assert_eq!(splits.notices, [format!("{test} is set aside: it has no class folders (1 image)")]);
        // With validation images, they are what is tested on.
        fs::create_dir_all(root.path().join("val/a")).unwrap();
        fs::copy(root.path().join("test/1.jpg"), root.path().join("val/a/1.jpg")).unwrap();
        let splits = open_dataset(root.path(), None, 0).unwrap();
        assert_eq!((splits.test.root, splits.validation), (root.path().join("val"), None));
        let val = root.path().join("val").display().to_string();
        assert_eq!(splits.notices[1..], [format!("{val} has no image of the class b")]);
    }

    #[test]
    fn empty_folders_of_splits_are_called_empty() {
        let root = folder_of(&["test/a/1.jpg", "test/b/1.jpg"]);
        fs::create_dir(root.path().join("train")).unwrap();
        const SORT: &str = "\nhint: put the images of each class into a folder that has the name of the class";
        let nothing = "contains neither class folders nor images";
        assert_eq!(
            message(root.path(), open_dataset(root.path(), None, 0)),
            format!("DATA contains test/, but no training images with classes: DATA/train {nothing}{SORT}")
        );
        fs::rename(root.path().join("test"), root.path().join("training")).unwrap();
        fs::remove_dir(root.path().join("train")).unwrap();
        fs::create_dir(root.path().join("val")).unwrap();
        let error = message(root.path(), open_dataset(root.path(), None, 0));
        assert!(error.starts_with(&format!("there is nothing to test on: DATA/val {nothing}, and no test")), "{error}");
        let error = message(root.path(), open_labelled(root.path(), &["a".to_string()]));
        assert!(
            error.starts_with(&format!("DATA contains training images, but no test images: DATA/val {nothing}\n")),
            "{error}"
        );
        let root = folder_of(&["notes"]);
        ["train", "test"].iter().for_each(|name| fs::create_dir(root.path().join(name)).unwrap());
        assert_eq!(
            message(root.path(), open_dataset(root.path(), Some(0.5), 0)),
            format!("DATA/test {nothing}, and DATA/train {nothing}{SORT}")
        );
    }

    #[test]
    fn what_is_no_image_of_a_class_is_counted() {
        let root = folder_of(&[
            "__MACOSX/a/._1.jpg",
            ".ipynb_checkpoints/1.jpg",
            "a/1.jpg",
            "a/._1.jpg",
            "a/._2.jpg",
            "a/.hidden/2.jpg",
            "a/@eaDir/3.jpg",
            "a/Thumbs.db",
            "a/bare",
            "a/3.ppm.part",
            "a/4.heic",
            "a/6.HEIC",
            "a/5.avif",
            "a/words",
            "b/1.jfif",
            "b/notes.txt",
        ]);
        fs::write(root.path().join("a/words"), "no image").unwrap();
        fs::write(root.path().join("b/notes.txt"), "no image").unwrap();
        fs::write(root.path().join("b/heic"), b"\0\0\0\x18ftypheic\0\0\0\0").unwrap();
        let folder = ImageFolder::open(root.path()).unwrap();
        assert_eq!(names(&folder), ["a/1.jpg", "a/bare", "b/1.jfif"]);
        let foreign: Vec<_> = folder.not_read.foreign.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        let expected =
            [("._*", 2), (".hidden", 1), (".ipynb_checkpoints", 1), ("@eaDir", 1), ("Thumbs.db", 1), ("__MACOSX", 1)];
        assert_eq!(foreign, expected);
        assert_eq!(
            folder.not_read.unsupported_line().unwrap(),
            "5 files skipped: 3 HEIC, 1 AVIF, 1 PNM with the ending .part"
        );
        let error = folder.not_read.require_all_used().unwrap_err();
        assert!(error.message().contains("3.ppm.part: PNM with the ending .part is not"), "{error}");
        let first = folder_of(&["a/1.jpg", "b/1.heic"]);
        let error = message(first.path(), ImageFolder::open(first.path()));
        assert!(error.starts_with("the class folder DATA/b contains no images (1 file skipped: 1 HEIC); "), "{error}");

        let root = folder_of(&["a/1.jpg", "a/2.jpg", "a/._1.jpg", "b/1.jpg", "b/2.jpg", "b/3.heic", ".git/1.jpg"]);
        let splits = open_dataset(root.path(), Some(0.5), 0).unwrap();
        assert_eq!(splits.train.classes, ["a", "b"]);
        assert_eq!(
            splits.notices,
            [
                "set aside, as it belongs to no class: ._*, .git",
                "1 file skipped: 1 HEIC (these types are not supported)"
            ]
        );
    }

    #[test]
    fn names_in_any_unicode_form_or_case_are_the_same_class() {
        let (composed, decomposed) = ("caf\u{e9}", "cafe\u{301}");
        let files = [format!("train/{decomposed}/1.jpg"), "train/tea/1.jpg".into(), format!("val/{composed}/1.jpg")];
        let more = ["val/Tea/1.jpg".to_string(), format!("train/{composed}/2.jpg")];
        let all: Vec<&str> = files.iter().chain(&more).map(String::as_str).collect();
        let root = folder_of(&all);
        let splits = open_dataset(root.path(), None, 0).unwrap();
        assert_eq!(splits.train.classes, [composed, "tea"]);
        assert_eq!(splits.train.class_counts(), [2, 1]);
        assert_eq!(splits.test.class_counts(), [1, 1]);
        let val = root.path().join("val").display().to_string();
        let train = root.path().join("train").display().to_string();
        let expected = [
            format!("{val}/Tea is used as the class tea, although upper and lower case differ"),
            format!("{train}: {composed} is one class, although the name is written in several Unicode forms"),
        ];
        assert_eq!(splits.notices, expected);
        // One form in training and the other in validation, and in a model.
        let root = folder_of(&[&format!("train/{decomposed}/1.jpg"), "train/tea/1.jpg", &files[2], "val/tea/1.jpg"]);
        let val = root.path().join("val").display().to_string();
        let matched = |place: &str| {
            format!("{place}: matched the class {composed}, although the Unicode form of its name differs")
        };
        assert_eq!(open_dataset(root.path(), None, 0).unwrap().notices, [matched(&val)]);
        let known = [composed, "tea"].map(String::from);
        assert_eq!(open_labelled(root.path(), &known).unwrap().notices, [""; 0]);
        let train = root.path().join("train");
        assert_eq!(open_labelled(&train, &known).unwrap().notices, [matched(train.to_str().unwrap())]);

        let root = folder_of(&["train/Cat/1.jpg", "train/cat/1.jpg", "test/cat/1.jpg"]);
        let splits = open_dataset(root.path(), None, 0).unwrap();
        assert_eq!((splits.train.class_counts(), splits.test.class_counts()), (vec![1, 1], vec![0, 1]));
        assert_eq!(
            splits.notices[1],
            "Cat and cat are two classes, although their names differ in upper and lower case only"
        );
    }

    #[test]
    fn a_model_is_evaluated_on_the_classes_that_it_knows() {
        let known = ["c", "a", "b"].map(String::from);
        let root = folder_of(&["test/d/1.jpg", "test/d/2.jpg", "test/b/1.jpg", "test/A/1.jpg", "train/a/1.jpg"]);
        let labelled = open_labelled(root.path(), &known).unwrap();
        assert_eq!(labelled.images.classes, known);
        assert_eq!(labelled.images.class_counts(), [0, 1, 1]);
        assert_eq!(labelled.unknown, [("d".to_string(), 2)]);
        let test = root.path().join("test").display().to_string();
        let expected = [
            "/A is used as the class a, although upper and lower case differ",
            " has no image of the class c",
            ": 2 images of 1 class that the model does not know are left out: d (2)",
        ];
        assert_eq!(labelled.notices, expected.map(|text| format!("{test}{text}")));
        // One class folder alone is a subset.
        assert_eq!(open_labelled(root.path().join("train"), &known).unwrap().images.len(), 1);
        let other = ["x".to_string(), "y".to_string()];
        assert_eq!(
            message(root.path(), open_labelled(root.path(), &other)),
            "DATA/test contains no images of the classes of the model: x, y; it has the classes A, b, d\n\
             hint: give the classes the names that they have in the model"
        );
        let root = folder_of(&["train/a/1.jpg", "train/b/1.jpg"]);
        let error = message(root.path(), open_labelled(root.path(), &known));
        assert!(error.starts_with("DATA contains training images, but no test images: DATA/train is all"), "{error}");
    }

    #[test]
    fn labels_in_a_table_are_classes() {
        let files = ["images/a/1.jpg", "images/2.jpg", "images/3.JPG", "images/4.jpg", "images/5.jpg", "images/6.heic"];
        let root = folder_of(&files);
        let (images, table) = (root.path().join("images"), root.path().join("labels.csv"));
        // Relative to the images or to the table; with or without extension; quoted; in any Unicode form; twice the same.
        let lines = [
            "Image ID, Category",
            "a/1.jpg,caf\u{e9}",
            "2, cafe\u{301}",
            "images/3,\"dog, brown\"",
            "./4.jpg,\"dog, brown\"",
            "4.jpg,\"dog, brown\"",
            "6.heic,\"dog, brown\"",
        ];
        for separator in [",", ";", "\t"] {
            let text = lines.join("\r\n").replace("\"dog, brown\"", "DOG").replace(',', separator);
            fs::write(&table, format!("\u{feff}{text}").replace("DOG", "\"dog, brown\"")).unwrap();
            let splits = open_table(&images, &table, Some(0.5), 0).unwrap();
            assert_eq!(splits.train.classes, ["caf\u{e9}", "dog, brown"]);
            let all: BTreeSet<_> = names(&splits.train).into_iter().chain(names(&splits.test)).collect();
            assert_eq!(all, ["2.jpg", "3.JPG", "4.jpg", "a/1.jpg"].map(String::from).into());
            assert_eq!((splits.train.class_counts(), splits.test.class_counts()), (vec![1, 1], vec![1, 1]));
            let (images, table) = (images.display(), table.display());
            assert_eq!(
                splits.notices,
                [
                    format!("1 image in {images} has no label in {table} and is not used, such as {images}/5.jpg"),
                    format!("{table}: caf\u{e9} is one class, although the name is written in several Unicode forms"),
                    "1 file skipped: 1 HEIC (these types are not supported)".into(),
                ]
            );
        }
        let known = ["dog, brown", "cat"].map(String::from);
        let labelled = open_labelled_by(&images, &table, &known).unwrap();
        assert_eq!(labelled.images.class_counts(), [2, 0]);
        assert_eq!(labelled.unknown, [("caf\u{e9}".to_string(), 2)]);
    }

    #[test]
    fn a_table_may_have_splits() {
        let root = folder_of(&["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg", "6.jpg"]);
        let table = root.path().join("labels.csv");
        let shown = table.display().to_string();
        let open = |fraction: Option<f64>, text: &str| {
            fs::write(&table, text).unwrap();
            open_table(root.path(), &table, fraction, 0)
        };
        let head = "path,age,label,Split,\n1.jpg,9,a,train,\n2.jpg,9,b,Training,\n";
        let splits =
            open(None, &format!("{head}3.jpg,8,b,val,\n4.jpg,8,a,dev,\n5.jpg,7,a,TEST,\n6.jpg,7,a,holdout,\n"))
                .unwrap();
        assert_eq!(names(&splits.train), ["1.jpg", "2.jpg"]);
        assert_eq!(names(splits.validation.as_ref().unwrap()), ["4.jpg", "3.jpg"]);
        assert_eq!(names(&splits.test), ["5.jpg", "6.jpg"]);
        assert_eq!(
            splits.notices,
            [
                format!("columns of {shown} that are not read: age, column 5"),
                format!("{shown} has no test image of the class b")
            ]
        );
        let known = ["a", "b"].map(String::from);
        assert_eq!(names(&open_labelled_by(root.path(), &table, &known).unwrap().images), ["5.jpg", "6.jpg"]);
        // As with folders, two splits are enough, and training images alone need a fraction.
        let splits = open(None, &format!("{head}3.jpg,8,b,val,\n4.jpg,8,a,val,\n")).unwrap();
        assert_eq!((names(&splits.test), splits.validation), (vec!["4.jpg".to_string(), "3.jpg".into()], None));
        assert_eq!(names(&open_labelled_by(root.path(), &table, &known).unwrap().images), ["4.jpg", "3.jpg"]);
        let alone = format!("{head}3.jpg,8,b,train,\n4.jpg,8,a,train,\n");
        let splits = open(Some(0.5), &alone).unwrap();
        assert_eq!((splits.train.class_counts(), splits.test.class_counts()), (vec![1, 1], vec![1, 1]));
        assert!(message(root.path(), open(None, &alone)).starts_with("no test fraction is given"));
        let error = message(root.path(), open_labelled_by(root.path(), &table, &known));
        assert!(error.starts_with("DATA/labels.csv has training images, but no test images"), "{error}");

        let refusals = [
            (
                None,
                "3.jpg,8,b,holdin,\n",
                "DATA/labels.csv, line 4: expected train, val or test as the split, found holdin\n\
                 hint: correct the line; or rename the column if it is not about splits",
            ),
            (
                None,
                "3.jpg,8,b,,\n",
                "DATA/labels.csv, line 4: expected train, val or test as the split, found nothing\n",
            ),
            (
                None,
                "1.jpg,8,a,test,\n",
                "DATA/labels.csv: DATA/1.jpg has the split train in line 2, and test in line 4\n\
                 hint: keep one of the lines: an image is in one split",
            ),
            (
                None,
                "3.jpg,8,zebra,val,\n4.jpg,8,zebra,val,\n5.jpg,8,zebra,test,\n",
                "DATA/labels.csv has 2 validation images and 1 test image of the class zebra, but no training image of it\n\
                 hint: write train into some of its lines, or remove them",
            ),
            (Some(0.5), "3.jpg,8,a,test,\n", "a test fraction is given, but DATA/labels.csv has its own test images\n"),
        ];
        for (fraction, lines, expected) in refusals {
            let error = message(root.path(), open(fraction, &format!("{head}{lines}")));
            assert!(error.starts_with(expected), "{error}");
        }
        let error = message(root.path(), open(None, "path,label,split\n1.jpg,a,test\n2.jpg,b,val\n"));
        assert!(
            error.starts_with("DATA/labels.csv has no training images: no line has train in its column"),
            "{error}"
        );
    }

    #[test]
    fn tables_are_found_near_the_images() {
        let read_like = |images: &str, table: &str| {
            format!(
                "hint: labels in a CSV file with the columns path and label are read by train and eval, like this: DATA/{images} --labels \
                 DATA/{table}"
            )
        };
        let files = ["photos/1.jpg", "photos/2.jpg", "lists/labels.csv", "labels.csv", "a.csv"];
        let root = folder_of(&files);
        let photos = root.path().join("photos");
        fs::write(root.path().join("lists/labels.csv"), "file,class\nphotos/1.jpg,cat\n").unwrap();
        let table = "path,label\n2,cat\n1.jpg,dog\n";
        fs::write(root.path().join("labels.csv"), table).unwrap();
        let hint = |place: &Path| message(root.path(), open_dataset(place, Some(0.5), 0));
        assert!(hint(&photos).ends_with(&read_like("photos", "labels.csv")), "{}", hint(&photos));
        // Not one about other files.
        fs::write(root.path().join("labels.csv"), "path,label\n3.jpg,cat\n").unwrap();
        assert!(!hint(&photos).contains("--labels"), "{}", hint(&photos));
        fs::write(root.path().join("lists/labels.csv"), table).unwrap();
        assert!(hint(&photos).ends_with(&read_like("photos", "lists/labels.csv")), "{}", hint(&photos));
        ["labels.csv", "a.csv"].iter().for_each(|name| fs::remove_file(root.path().join(name)).unwrap());
        assert!(hint(root.path()).ends_with(&read_like("photos", "lists/labels.csv")), "{}", hint(root.path()));

        // The images are one level further down, or up.
        let table = root.path().join("lists/labels.csv");
        let missing = |place: &Path| message(root.path(), open_table(place, &table, Some(0.5), 0));
        assert_eq!(
            missing(root.path()),
            "DATA/lists/labels.csv names 2 files that do not exist in DATA, such as 2 in line 2\n\
             hint: such a file is in DATA/photos: give DATA/photos as the folder of images"
        );
        fs::write(&table, "path,label\nphotos/1.jpg,cat\nphotos/2.jpg,dog\n").unwrap();
        assert!(
            missing(&photos).ends_with("file is in DATA: give DATA as the folder of images"),
            "{}",
            missing(&photos)
        );
    }

    #[test]
    fn tables_that_are_wrong_are_clear_errors() {
        let root = folder_of(&["1.jpg", "2.jpg", "3.jpg"]);
        let table = root.path().join("labels.csv");
        let cases = [
            (
                "1.jpg,cat\n2.jpg,dog\n",
                "DATA/labels.csv: expected the columns path and label in the first line, found 1.jpg, cat\n\
                 hint: name the column of files one of path file filename file_name filepath file_path fname image image_path \
                 image_name img img_path img_name image_id id id_code, and that of classes one of label labels class category label_name class_name category_name",
            ),
            (
                "image_id,cat,dog\n1,1,0\n2,0.0,1.0\n",
                "DATA/labels.csv: expected a column of labels, found a column for each class: cat, dog\n\
                 hint: write the name of each image's class in a column label",
            ),
            (
                "path,label\n1.jpg,cat\n9.jpg,dog\n8.jpg,dog\n",
                "DATA/labels.csv names 2 files that do not exist in DATA, such as 9.jpg in line 3\n\
                 hint: name files relative to the folder of images or to that of the table, and remove lines without a file",
            ),
            (
                "path,label\n1.jpg,cat\n2.jpg,\n",
                "DATA/labels.csv, line 3: expected a label, found nothing\nhint: complete the line, or remove it",
            ),
            (
                "path,label\n1.jpg,cat\n2.jpg,dog\n./1.jpg,dog\n",
                "DATA/labels.csv: DATA/./1.jpg has the label cat in line 2, and dog in line 4\n\
                 hint: keep one of the lines: an image has one class",
            ),
            (
                "path,label\n1.jpg,cat\n2.jpg,cat\n",
                "DATA/labels.csv has only one label, cat; a classifier needs at least two\nhint: add images of another class",
            ),
            ("path,label\n", "DATA/labels.csv has no line with a label\nhint: add a line for each image"),
            (
                "path,label\n1.jpg,cat\n2.jpg,cat\n3.jpg,dog\n",
                "DATA: the class dog has one image; two are needed to train on one and test on the other\n\
                 hint: add images to the class, or remove it",
            ),
        ];
        for (text, expected) in cases {
            fs::write(&table, text).unwrap();
            assert_eq!(message(root.path(), open_table(root.path(), &table, Some(0.5), 0)), expected);
        }
        const VALUES: &str =
            "\nhint: give each line a value for each column, and put values that contain `,` into quotation marks";
        for (text, expected) in [
            ("path,label\n1.jpg,cat,4\n", format!("DATA/labels.csv, line 2: expected 2 values, found 3{VALUES}")),
            (
                "path,label\r\n1.jpg,cat\r\n2.jpg\r\n",
                format!("DATA/labels.csv, line 3: expected 2 values, found 1{VALUES}"),
            ),
            (
                "path,label\n\n1.jpg,\"a\nb\"\n2.jpg\n",
                format!("DATA/labels.csv, line 5: expected 2 values, found 1{VALUES}"),
            ),
            (
                "path,label\n1.jpg,cat\n\"2.jpg,dog\n3.jpg,cat\n",
                "DATA/labels.csv, line 3: a quotation mark is not closed\n\
                 hint: close it, or write it twice within quotation marks if it is part of a value"
                    .into(),
            ),
            (
                "path,label\n1.jpg,cat\n2.jpg,\"dog\n",
                "DATA/labels.csv, line 3: a quotation mark is not closed\n\
                 hint: close it, or write it twice within quotation marks if it is part of a value"
                    .into(),
            ),
            (
                "path,label\n1.jpg,cat\n2.jpg,\"do\"\"g\"\nmissing.jpg,5\" pipe",
                "DATA/labels.csv names 1 file that does not exist in DATA, such as missing.jpg in line 4\n\
                 hint: name files relative to the folder of images or to that of the table, and remove lines without a file"
                    .into(),
            ),
        ] {
            fs::write(&table, text).unwrap();
            assert_eq!(message(root.path(), open_table(root.path(), &table, Some(0.5), 0)), expected);
        }
        fs::write(&table, b"path,label\n1.jpg,cat\n2.jpg,c\xe9\n").unwrap();
        assert_eq!(
            message(root.path(), open_table(root.path(), &table, Some(0.5), 0)),
            "DATA/labels.csv, line 3: expected text in UTF-8\nhint: save the table as CSV in UTF-8"
        );
        let long = "x".repeat(5_000_000);
        for text in [format!("path,label\n1.jpg,cat\n{long}.jpg,dog\n"), format!("path,{long}\n1.jpg,cat\n")] {
            fs::write(&table, text).unwrap();
            let error = message(root.path(), open_table(root.path(), &table, Some(0.5), 0));
            assert!(error.len() < 500 && error.contains(&format!("{}...", &long[..60])), "{} bytes", error.len());
        }
        fs::write(&table, "path,label\n1.jpg,cat\n2.jpg,dog\n").unwrap();
        let error = open_table(root.path(), &table, None, 0).unwrap_err();
        assert_eq!(error.kind(), retune::error::ErrorKind::Usage);
    }

    #[test]
    fn tables_of_other_programs_are_read() {
        let root = folder_of(&["x/1.jpg", "x/2.jpg", "x/3.jpg", "x/4.jpg"]);
        let table = root.path().join("labels.csv");
        let text = "fname,label\nx\\1.jpg,cat\nx\\2.jpg,cat\nx\\3.jpg,NaN\nx\\4.jpg,NaN\n";
        let little: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_be_bytes).collect();
        let mut found = Vec::new();
        for bytes in [text.as_bytes(), &little, &big] {
            fs::write(&table, bytes).unwrap();
            found.push(open_table(root.path(), &table, Some(0.5), 0).unwrap());
        }
        assert!(found.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(found[0].train.classes, ["NaN", "cat"]);
        assert_eq!(found[0].len(), 4);
        let notice = found[0].notices.iter().find(|notice| notice.contains("NaN")).unwrap();
        assert!(notice.contains("2 lines have a label such as NaN in line 4: they are used as a class"), "{notice}");
        fs::write(&table, &little[..little.len() - 1]).unwrap();
        let error = message(root.path(), open_table(root.path(), &table, Some(0.5), 0));
        assert!(error.starts_with("DATA/labels.csv begins as text in UTF-16, but is damaged\nhint:"), "{error}");
    }

    #[test]
    fn a_table_of_fastai_has_its_splits() {
        let root = folder_of(&["1.jpg", "2.jpg", "3.jpg", "4.jpg"]);
        let table = root.path().join("labels.csv");
        fs::write(&table, "fname,label,is_valid\n1.jpg,a,False\n2.jpg,b,False\n3.jpg,a,True\n4.jpg,b,True\n").unwrap();
        let splits = open_table(root.path(), &table, None, 0).unwrap();
        assert_eq!([names(&splits.train), names(&splits.test)], [["1.jpg", "2.jpg"], ["3.jpg", "4.jpg"]]);
        assert!(splits.validation.is_none() && splits.notices.is_empty(), "{:?}", splits.notices);
        fs::write(&table, "fname,labels,is_valid\n1.jpg,a,no\n").unwrap();
        assert_eq!(
            message(root.path(), open_table(root.path(), &table, None, 0)),
            "DATA/labels.csv, line 2: expected True or False in the column is_valid, found no\n\
             hint: correct the line; or rename the column if it is not about splits"
        );
        fs::write(&table, "fname,label,is_valid\n1.jpg,a,True\n2.jpg,b,True\n").unwrap();
        assert_eq!(
            message(root.path(), open_table(root.path(), &table, None, 0)),
            "DATA/labels.csv has no training images: no line has False in its column of splits\n\
             hint: write False into the lines of the images to train on"
        );
    }

    #[test]
    fn a_table_that_is_no_csv_is_named() {
        let root = folder_of(&["1.jpg"]);
        let table = root.path().join("labels.csv");
        let without_mark: Vec<u8> = "path,label\n1.jpg,a\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (bytes, fault) in [
            (&b"PK\x03\x04\x14\0\x06\0"[..], ": expected a CSV file, found a ZIP archive"),
            (b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1", ": expected a CSV file, found an Office document or thumbnail store"),
            (&without_mark, ", line 1: expected text in UTF-8"),
        ] {
            fs::write(&table, bytes).unwrap();
            let expected = format!("DATA/labels.csv{fault}\nhint: save the table as CSV in UTF-8");
            assert_eq!(message(root.path(), open_table(root.path(), &table, Some(0.5), 0)), expected);
        }
    }

    #[test]
    fn annotations_are_no_class() {
        for files in [
            ["train/images/1.jpg", "val/images/2.jpg", "train/labels/1.txt"],
            ["images/1.jpg", "images/2.jpg", "labels/1.txt"],
        ] {
            let root = folder_of(&files);
            let error = open_dataset(root.path(), Some(0.5).filter(|_| files[0].starts_with("images")), 0).unwrap_err();
            assert!(error.message().contains("labels contains no images"), "{error}");
            assert!(
                error.hint_text().unwrap().starts_with("it seems to contain annotations: put the images"),
                "{error}"
            );
        }
    }

    #[test]
    fn splits_with_names_of_their_own_are_no_classes() {
        for (one, other) in [("trn", "tst"), ("1_train", "2_test"), ("fold1", "fold2")] {
            let files =
                [one, other].map(|part| ["a", "b"].map(|class| [1, 2].map(|n| format!("{part}/{class}/{n}.jpg"))));
            let files: Vec<String> = files.into_iter().flatten().flatten().collect();
            let root = folder_of(&files.iter().map(String::as_str).collect::<Vec<_>>());
            let expected = format!(
                "the folders {one}, {other} in DATA seem to be splits of the data set, not classes: each contains the folders a, b\n\
                 hint: name the folder of training images train, and that of test images test; if they are classes, move their \
                 images out of these folders"
            );
            assert_eq!(message(root.path(), open_dataset(root.path(), Some(0.5), 0)), expected);
            assert_eq!(message(root.path(), open_labelled(root.path(), &["a".into(), "b".into()])), expected);
            // Most of the folders are enough, in any case.
            fs::create_dir(root.path().join(one).join("c")).unwrap();
            fs::rename(root.path().join(other).join("a"), root.path().join(other).join("A")).unwrap();
            fs::create_dir_all(root.path().join("extras")).unwrap();
            fs::write(root.path().join("extras/1.jpg"), [0]).unwrap();
            if one != "fold1" {
                assert_eq!(message(root.path(), open_dataset(root.path(), Some(0.5), 0)), expected);
            }
            fs::remove_dir_all(root.path().join("extras")).unwrap();
            assert_eq!(message(root.path(), open_dataset(root.path(), Some(0.5), 0)), expected);
            // One image beside the folders, and they are classes.
            fs::write(root.path().join(one).join("5.jpg"), [0]).unwrap();
            assert_eq!(open_dataset(root.path(), Some(0.5), 0).unwrap().train.classes, [one, other]);
        }
        let root = folder_of(&["cat/2019/1.jpg", "cat/2020/2.jpg", "dog/2019/1.jpg", "dog/2020/2.jpg"]);
        let splits = open_dataset(root.path(), Some(0.5), 0).unwrap();
        assert_eq!(splits.train.classes, ["cat", "dog"]);
        assert_eq!(
            splits.notices,
            [
                "the folders cat, dog are the classes, although each contains the folders 2019, 2020: if those are the classes, give one \
              of the folders as the data set, or name them train and test"
            ]
        );
        for (train, test) in [("train ", "test "), ("traindir", "valdir")] {
            let files = [train, test].map(|part| ["a", "b"].map(|class| format!("{part}/{class}/1.jpg")));
            let files: Vec<String> = files.into_iter().flatten().collect();
            let root = folder_of(&files.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(open_dataset(root.path(), None, 0).unwrap().train.classes, ["a", "b"], "{train}");
        }
    }

    #[test]
    fn a_test_fraction_takes_the_same_share_of_every_class() {
        let files = (0..20).map(|n| format!("a/{n}.jpg")).chain((0..5).map(|n| format!("train/{n}.jpg")));
        let files: Vec<String> = files.chain((0..2).map(|n| format!("z/{n}.jpg"))).collect();
        let root = folder_of(&files.iter().map(String::as_str).collect::<Vec<_>>());
        let splits = open_dataset(root.path(), Some(0.2), 7).unwrap();
        assert_eq!(splits.train.class_counts(), [16, 4, 1]);
        assert_eq!(splits.test.class_counts(), [4, 1, 1]);
        let all: BTreeSet<_> = names(&splits.train).into_iter().chain(names(&splits.test)).collect();
        assert_eq!(all, files.into_iter().collect());
        assert_eq!(open_dataset(root.path(), Some(0.2), 7).unwrap(), splits);
        assert_ne!(open_dataset(root.path(), Some(0.2), 8).unwrap(), splits);
        assert!(splits.train.samples.is_sorted_by_key(|sample| sample.class));
    }
}

mod loading {
    use super::*;

    const SIZE: u32 = 16;

    fn pictures() -> (tempfile::TempDir, Arc<ImageFolder>) {
        let files: Vec<String> = (0..23).map(|n| format!("{}/{n:02}.ppm", ["a", "b", "c"][n % 3])).collect();
        let root = folder_of(&files.iter().map(String::as_str).collect::<Vec<_>>());
        let folder = Arc::new(ImageFolder::open(root.path()).unwrap());
        (root, folder)
    }

    fn options(mode: Mode, workers: usize) -> LoaderOptions {
        LoaderOptions { batch_size: 5, image_size: SIZE, resize: ResizeMode::Crop, mode, workers, strict: false }
    }

    fn bits(batches: impl Iterator<Item = retune::Result<Batch>>) -> Vec<(Vec<u32>, Vec<u32>, Vec<usize>)> {
        let bits_of = |batch: Batch| {
            (batch.images.iter().map(|v| v.to_bits()).collect(), batch.targets.clone(), batch.indices.clone())
        };
        batches.map(|batch| bits_of(batch.unwrap())).collect()
    }

    #[test]
    fn any_number_of_workers_gives_the_same_bits() {
        let (_root, folder) = pictures();
        for mode in [Mode::Train { seed: 3 }, Mode::Evaluate] {
            let one = Loader::new(folder.clone(), options(mode, 1)).unwrap();
            let expected = bits(one.epoch(2));
            assert_eq!(expected.iter().map(|batch| batch.1.len()).collect::<Vec<_>>(), [5, 5, 5, 5, 3]);
            assert_eq!(one.batch_count(), 5);
            for workers in [0, 2, 4, 64] {
                let many = Loader::new(folder.clone(), options(mode, workers)).unwrap();
                assert_eq!(bits(many.epoch(2)), expected, "{workers} workers");
                assert_eq!(bits(many.epoch_from(2, 3)), expected[3..], "resumed with {workers} workers");
            }
            assert_eq!(one.epoch_from(2, 5).count(), 0);
            assert_eq!(one.epoch_from(2, usize::MAX).count(), 0);
        }
    }

    #[test]
    fn a_batch_holds_what_the_transforms_give() {
        let (root, _) = pictures();
        for name in ["picture.jpg", "full-colour.jpeg", "grey.jpg", "progressive.jpg", "restart-markers.jpg"] {
            fs::copy(fixture(name), root.path().join("b").join(name)).unwrap();
        }
        let folder = Arc::new(ImageFolder::open(root.path()).unwrap());
        for mode in [Mode::Train { seed: 3 }, Mode::Evaluate] {
            let loader = Loader::new(folder.clone(), options(mode, 2)).unwrap();
            let values = (SIZE * SIZE * 3) as usize;
            for batch in loader.epoch(4) {
                let batch = batch.unwrap();
                assert_eq!(batch.images.len(), batch.indices.len() * values);
                for ((pixels, &target), &index) in
                    batch.images.chunks_exact(values).zip(&batch.targets).zip(&batch.indices)
                {
                    let sample = &folder.samples[index];
                    assert_eq!(target as usize, sample.class);
                    let image = decode_file(&sample.path).unwrap();
                    let (transform, seed) = match mode {
                        Mode::Train { seed } => (Transform::training(SIZE, ResizeMode::Crop, &[]), seed),
                        Mode::Evaluate => (Transform::test(SIZE, ResizeMode::Crop), 0),
                    };
                    let draw = Draw { seed, epoch: 4, index };
                    let bytes = Transformer::default().transform(&image, &transform, draw).unwrap();
                    let mut expected = vec![0.0; values];
                    normalize(&bytes, &mut expected).unwrap();
                    assert_eq!(pixels, expected);
                }
            }
        }
    }

    #[test]
    fn an_epoch_covers_every_picture_once_in_an_order_of_its_own() {
        let (_root, folder) = pictures();
        let order = |seed, epoch| {
            let loader = Loader::new(folder.clone(), options(Mode::Train { seed }, 2)).unwrap();
            loader.epoch(epoch).flat_map(|batch| batch.unwrap().indices.clone()).collect::<Vec<_>>()
        };
        let first = order(1, 0);
        assert_eq!(first, epoch_order(23, Mode::Train { seed: 1 }, 0));
        assert_eq!(first.iter().copied().collect::<BTreeSet<_>>().len(), 23);
        assert_eq!(order(1, 0), first);
        assert_ne!(order(1, 1), first);
        assert_ne!(order(2, 0), first);
        assert_eq!(epoch_order(4, Mode::Evaluate, 9), [0, 1, 2, 3]);
        assert!(epoch_order(0, Mode::Train { seed: 1 }, 0).is_empty());
    }

    #[test]
    fn balanced_epochs_draw_every_class_equally_often() {
        // One class has 2 images, another 21.
        let files: Vec<String> = (0..23).map(|n| format!("{}/{n:02}.ppm", ["a", "b"][(n > 1) as usize])).collect();
        let root = folder_of(&files.iter().map(String::as_str).collect::<Vec<_>>());
        let folder = Arc::new(ImageFolder::open(root.path()).unwrap());
        let loader = |workers| {
            let options = options(Mode::Train { seed: 1 }, workers);
            Loader::new(folder.clone(), options).unwrap().with_balanced_classes()
        };
        let epochs: Vec<_> = (0..40).map(|epoch| bits(loader(2).epoch(epoch))).collect();
        let of_small = epochs.iter().flatten().flat_map(|batch| &batch.1).filter(|&&class| class == 0).count();
        // A half of 920 draws, within four standard deviations.
        assert!((460 - 61..=460 + 61).contains(&of_small), "{of_small} of 920");
        assert!(epochs.iter().all(|epoch| epoch.iter().map(|batch| batch.1.len()).eq([5, 5, 5, 5, 3])));
        assert_eq!(bits(loader(1).epoch(0)), epochs[0]);
        assert_eq!(bits(loader(3).epoch_from(0, 2)), epochs[0][2..]);
        assert_ne!(epochs[0], epochs[1]);
        // The same image is cropped in another way.
        let size = (SIZE * SIZE * 3) as usize;
        let draws = epochs[0].iter().flat_map(|(pixels, _, indices)| pixels.chunks(size).zip(indices));
        let of_first: Vec<&[u32]> = draws.filter(|(_, index)| **index == 0).map(|(pixels, _)| pixels).collect();
        let different: BTreeSet<&[u32]> = of_first.iter().copied().collect();
        assert!(of_first.len() > 2 && different.len() == of_first.len(), "{} of {}", different.len(), of_first.len());
    }

    #[test]
    fn an_unreadable_picture_is_skipped_and_reported() {
        let (root, folder) = pictures();
        fs::write(root.path().join("a/03.ppm"), b"P6 24 20 255\n truncated").unwrap();
        fs::write(root.path().join("a/06.ppm"), b"").unwrap();
        for workers in [1, 4] {
            let loader = Loader::new(folder.clone(), options(Mode::Evaluate, workers)).unwrap();
            let batches: Vec<Batch> = loader.epoch(0).map(Result::unwrap).collect();
            assert_eq!(batches[0].indices, [0, 3, 4]);
            assert_eq!(batches[0].images.len(), 3 * (SIZE * SIZE * 3) as usize);
            assert_eq!(batches[0].skipped.iter().map(|skipped| skipped.index).collect::<Vec<_>>(), [1, 2]);
            assert_eq!(batches[0].skipped[1].path, folder.samples[2].path);
            let reason = format!("cannot decode {}: the file is empty", folder.samples[2].path.display());
            assert_eq!(batches[0].skipped[1].reason, reason);
            assert!(batches[1..].iter().all(|batch| batch.skipped.is_empty()));

            let strict = LoaderOptions { strict: true, ..options(Mode::Evaluate, workers) };
            let mut epoch = Loader::new(folder.clone(), strict).unwrap().epoch(0);
            let error = epoch.next().unwrap().unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot decode {}: ", folder.samples[1].path.display())), "{error}");
            assert!(epoch.next().is_none());
        }
    }

    #[test]
    fn a_batch_of_which_nothing_is_left_is_empty() {
        let (root, folder) = pictures();
        for sample in &folder.samples {
            fs::write(&sample.path, b"?").unwrap();
        }
        let loader = Loader::new(folder, options(Mode::Evaluate, 2)).unwrap();
        let sizes: Vec<_> = loader.epoch(0).map(|b| b.unwrap()).map(|b| (b.images.len(), b.skipped.len())).collect();
        assert_eq!(sizes, [(0, 5), (0, 5), (0, 5), (0, 5), (0, 3)]);
        drop(root);
    }

    #[test]
    fn an_epoch_can_be_left_at_any_time() {
        let (_root, folder) = pictures();
        let loader = Loader::new(folder, options(Mode::Train { seed: 0 }, 4)).unwrap();
        for batches in 0..5 {
            for _ in 0..20 {
                let mut epoch = loader.epoch(0);
                let kept: Vec<_> = epoch.by_ref().take(batches).collect();
                drop(epoch);
                assert_eq!(kept.len(), batches);
            }
        }
        drop(loader);
    }

    #[test]
    fn buffers_are_used_again() {
        let (_root, folder) = pictures();
        let loader = Loader::new(folder, options(Mode::Train { seed: 0 }, 2)).unwrap();
        let mut buffers = BTreeSet::new();
        for epoch in 0..50 {
            for batch in loader.epoch(epoch) {
                buffers.insert(batch.unwrap().images.as_ptr() as usize);
            }
        }
        assert!(buffers.len() <= 12, "{} buffers in 250 batches", buffers.len());
    }

    #[test]
    fn sizes_of_zero_are_usage_errors() {
        let (_root, folder) = pictures();
        for zero in [
            LoaderOptions { batch_size: 0, ..options(Mode::Evaluate, 1) },
            LoaderOptions { image_size: 0, ..options(Mode::Evaluate, 1) },
        ] {
            let error = Loader::new(folder.clone(), zero).unwrap_err();
            assert_eq!(error.kind(), retune::error::ErrorKind::Usage);
        }
    }
}

mod duplicates {
    use image::ImageEncoder;
    use image::codecs::jpeg::JpegEncoder;
    use image::imageops::FilterType;
    use retune::drawing::{Counts, Subject, draw_set};
    use retune::train::{DataCheck, DuplicateImages, EarlierImages, Recipe, RunFolder, few_steps, open_data_of_run};

    use super::*;

    /// Drawings of two classes, no two the same.
    fn drawings(train: u64, test: u64) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        draw_set(Subject::Target, root.path(), Counts { train, test }, 1, || true).unwrap();
        root
    }

    fn smaller_jpeg(path: &Path, quality: u8) -> Vec<u8> {
        let image = image::open(path).unwrap();
        let image = image.resize_exact(image.width() / 2, image.height() / 2, FilterType::Triangle).to_rgb8();
        let mut bytes = Vec::new();
        let encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
        encoder.write_image(&image, image.width(), image.height(), image::ExtendedColorType::Rgb8).unwrap();
        bytes
    }

    fn groups(check: &DataCheck) -> Vec<(bool, Vec<(String, bool)>)> {
        let groups = check.duplicates.iter().map(|group| {
            let images = group.images.iter();
            (group.identical, images.map(|image| (format!("{}/{}", image.split, image.path), image.left_out)).collect())
        });
        groups.collect()
    }

    #[test]
    fn copies_are_found_whatever_their_size_and_format() {
        let root = drawings(30, 10);
        let path = |name: &str| root.path().join(name);
        let none = open_dataset(root.path(), None, 0).unwrap().examine(2, |_, _| Ok(())).unwrap();
        assert_eq!((none.duplicates, none.read, none.turned), (vec![], 80, 0));

        image::open(path("train/hotdog/0003.jpg")).unwrap().save(path("test/hotdog/saved.png")).unwrap();
        fs::copy(path("train/hotdog/0001.jpg"), path("train/hotdog/again.jpg")).unwrap();
        fs::write(path("train/not-hotdog/wrong.jpg"), smaller_jpeg(&path("train/hotdog/0002.jpg"), 50)).unwrap();
        fs::copy(path("test/hotdog/0004.jpg"), path("test/hotdog/twice.jpg")).unwrap();
        fs::write(path("test/hotdog/thrice.jpg"), smaller_jpeg(&path("test/hotdog/0004.jpg"), 80)).unwrap();
        fs::write(path("test/hotdog/broken.jpg"), "no image").unwrap();
        let mut splits = open_dataset(root.path(), None, 0).unwrap();
        let mut told = Vec::new();
        let found = splits.examine(1, |images, of| {
            told.push((images, of));
            Ok(())
        });
        let found = found.unwrap();
        told.dedup();
        assert_eq!(told, [(16, 86), (32, 86), (48, 86), (64, 86), (80, 86), (86, 86)]);
        assert_eq!(found, splits.examine(7, |_, _| Ok(())).unwrap(), "the workers make no difference");
        assert_eq!(found.read, 85);

        let check = DataCheck::new(&splits, &found, &Recipe::fine_tuning(), &EarlierImages::default());
        let expected = |left_out: [bool; 9]| {
            let group = |identical: bool, names: &[(&str, bool)]| {
                (identical, names.iter().map(|(name, left_out)| (name.to_string(), *left_out)).collect::<Vec<_>>())
            };
            let [a, b, c, d, e, f, g, h, i] = left_out;
            [
                group(true, &[("train/hotdog/0001.jpg", a), ("train/hotdog/again.jpg", b)]),
                group(false, &[("train/hotdog/0002.jpg", c), ("train/not-hotdog/wrong.jpg", d)]),
                group(false, &[("train/hotdog/0003.jpg", e), ("test/hotdog/saved.png", f)]),
                group(
                    false,
                    &[("test/hotdog/0004.jpg", g), ("test/hotdog/thrice.jpg", h), ("test/hotdog/twice.jpg", i)],
                ),
            ]
        };
        assert_eq!(groups(&check), expected([false; 9]));
        assert_eq!(
            check.warnings(),
            [
                "1 test image is also a training image (nearly identical), such as train/hotdog/0003.jpg and \
                 test/hotdog/saved.png: the accuracy is too optimistic; --drop-duplicates leaves such images out",
                "1 image is in several classes (nearly identical), such as train/hotdog/0002.jpg and \
                 train/not-hotdog/wrong.jpg: remove the wrong copies, or leave all out with --drop-duplicates",
                "1 training image is a copy of other training images (identical files), which thus count more than once, such \
                 as train/hotdog/again.jpg of train/hotdog/0001.jpg; --drop-duplicates keeps one of each",
                "2 test images are copies of other test images (nearly identical), so the interval of the accuracy is too narrow, \
                 such as test/hotdog/thrice.jpg of test/hotdog/0004.jpg; --drop-duplicates keeps one of each",
            ]
        );

        let dropping = Recipe { drop_duplicates: true, ..Recipe::fine_tuning() };
        let mut check = DataCheck::new(&splits, &found, &dropping, &EarlierImages::default());
        assert_eq!(groups(&check), expected([false, true, true, true, true, false, false, true, true]));
        assert_eq!(
            check.warnings(),
            [
                "left out 6 images that the data set contains more than once (4 training, 2 test); 1 of the images is in several \
              classes, so no copy is used"
            ]
        );
        let file = path("data_check.json");
        check.save(&file).unwrap();
        assert_eq!(DataCheck::open(&file).unwrap(), check);
        check.apply(&mut splits, &EarlierImages::default()).unwrap();
        assert_eq!([splits.train.len(), splits.test.len()], [58, 22]);
        let again = splits.examine(2, |_, _| Ok(())).unwrap();
        assert_eq!(again.duplicates, []);
    }

    #[test]
    fn a_search_can_be_stopped() {
        let root = drawings(20, 1);
        let splits = open_dataset(root.path(), None, 0).unwrap();
        let error = splits.examine(2, |images, _| match images {
            16 => Ok(()),
            _ => Err(retune::Error::interrupted("stopped")),
        });
        assert_eq!(error.unwrap_err().message(), "stopped");
    }

    #[test]
    fn a_class_is_never_emptied() {
        let root = drawings(3, 2);
        for number in 0..3 {
            let name = |class: &str| root.path().join(format!("train/{class}/000{number}.jpg"));
            fs::copy(name("hotdog"), name("not-hotdog")).unwrap();
        }
        let mut splits = open_dataset(root.path(), None, 0).unwrap();
        let found = splits.examine(2, |_, _| Ok(())).unwrap();
        let dropping = Recipe { drop_duplicates: true, ..Recipe::fine_tuning() };
        let mut check = DataCheck::new(&splits, &found, &dropping, &EarlierImages::default());
        let error = check.apply(&mut splits, &EarlierImages::default()).unwrap_err();
        assert_eq!(
            error.message(),
            "--drop-duplicates leaves no training image of the class hotdog: all have copies elsewhere"
        );
    }

    /// Copies are on one side of a test that is drawn, or left out before it is.
    #[test]
    fn a_drawn_test_has_no_copies_of_training_images() {
        let root = drawings(20, 1);
        let (all, clean) = (root.path().join("train"), tempfile::tempdir().unwrap());
        let class = |name: &str| all.join(name);
        let new = EarlierImages::default();
        let draw = |place: &Path, drop_duplicates: bool| {
            let recipe = Recipe { drop_duplicates, test_fraction: Some(0.25), seed: 3, ..Recipe::fine_tuning() };
            let before = recipe.open_data(place).unwrap();
            let mut splits = before.clone();
            let found = splits.examine(2, |_, _| Ok(())).unwrap();
            let mut check = DataCheck::new(&splits, &found, &recipe, &new);
            check.apply(&mut splits, &EarlierImages::default()).unwrap();
            // A run that goes on draws the same.
            let folder = RunFolder { path: clean.path().to_path_buf() };
            check.save(&folder.data_check()).unwrap();
            assert_eq!(open_data_of_run(&recipe, place, &folder).unwrap(), splits);
            (before, splits, check)
        };
        // Without copies nothing changes.
        let (before, after, check) = draw(&all, false);
        assert_eq!((&before, check.duplicates.len()), (&after, 0));
        assert_eq!((after.train.class_counts(), after.test.class_counts()), (vec![15, 15], vec![5, 5]));

        for number in 0..8 {
            let name = class("hotdog").join(format!("{number:04}.jpg"));
            fs::write(class("hotdog").join(format!("copy{number}.jpg")), smaller_jpeg(&name, 60)).unwrap();
        }
        fs::copy(class("hotdog").join("0011.jpg"), class("not-hotdog").join("wrong.jpg")).unwrap();
        let (before, after, mut check) = draw(&all, false);
        let sides = |splits: &retune::data::Splits, group: &DuplicateImages| {
            let tested = names(&splits.test);
            group.images.iter().map(|image| tested.contains(&image.path)).collect::<BTreeSet<bool>>().len()
        };
        assert_eq!(check.duplicates.len(), 9);
        assert!(check.duplicates.iter().any(|group| sides(&before, group) == 2), "the test can fail");
        assert!(check.duplicates.iter().all(|group| sides(&after, group) == 1));
        assert_eq!((after.train.class_counts(), after.test.class_counts()), (vec![21, 16], vec![7, 5]));
        assert!(!check.warnings().iter().any(|line| line.contains("also a training image")), "{:?}", check.warnings());
        for image in check.duplicates.iter().flat_map(|group| &group.images) {
            let part = if image.split == "test" { &after.test } else { &after.train };
            assert!(names(part).contains(&image.path), "{}", image.path);
        }

        // Dropping them gives the split of a data set without them.
        let (_, dropped, drops) = draw(&all, true);
        for sample in ImageFolder::open(&all).unwrap().samples {
            let name = sample.path.strip_prefix(&all).unwrap();
            let is_copy =
                name == Path::new("hotdog/0011.jpg") || !name.file_name().unwrap().to_str().unwrap().starts_with('0');
            let target = clean.path().join("data").join(name);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            if !is_copy {
                fs::copy(&sample.path, target).unwrap();
            }
        }
        let cleaned = open_dataset(clean.path().join("data"), Some(0.25), 3).unwrap();
        assert_eq!((names(&dropped.train), names(&dropped.test)), (names(&cleaned.train), names(&cleaned.test)));
        assert_eq!(
            drops.warnings()[0],
            "left out 10 images that the data set contains more than once (before the test images were drawn); 1 of the images is in \
             several classes, so no copy is used"
        );

        // Runs of earlier versions drew first.
        check.before_split = false;
        let mut earlier = before.clone();
        check.apply(&mut earlier, &new).unwrap();
        assert_eq!(earlier, before);

        // A class whose images all look the same cannot be kept together.
        let same = tempfile::tempdir().unwrap();
        for number in 0..4 {
            for (folder, source) in [("a", 0), ("b", number)] {
                let target = same.path().join(folder).join(format!("{number}.jpg"));
                fs::create_dir_all(target.parent().unwrap()).unwrap();
                fs::copy(class("not-hotdog").join(format!("{source:04}.jpg")), target).unwrap();
            }
        }
        fs::remove_file(same.path().join("b/0.jpg")).unwrap();
        let (_, splits, check) = draw(same.path(), false);
        assert_eq!((splits.train.class_counts(), splits.test.class_counts()), (vec![3, 2], vec![1, 1]));
        assert!(check.warnings()[0].starts_with("1 test image is also a training image (identical files)"));
        let recipe = Recipe { drop_duplicates: true, test_fraction: Some(0.25), ..Recipe::fine_tuning() };
        let mut splits = recipe.open_data(same.path()).unwrap();
        let found = splits.examine(2, |_, _| Ok(())).unwrap();
        let error = DataCheck::new(&splits, &found, &recipe, &new).apply(&mut splits, &new).unwrap_err();
        assert!(error.message().starts_with("--drop-duplicates leaves too few images: "), "{error}");
        assert!(error.message().contains("the class a has one image"), "{error}");
    }

    #[test]
    fn orientations_that_are_ignored_are_mentioned() {
        let root = drawings(100, 1);
        let turn = |number: usize, to: u8| {
            let path = root.path().join(format!("train/hotdog/{number:04}.jpg"));
            let bytes = fs::read(&path).unwrap();
            let segment = [
                &b"\xFF\xE1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..],
                &[to, 0, 0, 0, 0, 0, 0],
            ];
            fs::write(path, [&bytes[..2], &segment.concat(), &bytes[2..]].concat()).unwrap();
        };
        let cautions = |exif: bool| {
            let recipe = Recipe { exif, ..Recipe::fine_tuning() };
            let splits = recipe.open_data(root.path()).unwrap();
            let found = splits.examine(2, |_, _| Ok(())).unwrap();
            DataCheck::new(&splits, &found, &recipe, &EarlierImages::default()).cautions
        };
        (0..5).for_each(|number| turn(number, 1));
        (5..7).for_each(|number| turn(number, 6));
        assert_eq!(cautions(false), [""; 0], "1 is upright, and 2 of 202 are not more than 1 %");
        turn(7, 3);
        assert_eq!(
            cautions(false),
            [
                "3 of 202 images state an EXIF orientation, which is ignored, so they lie on their side or upside down: --exif \
              turns them"
            ]
        );
        assert_eq!(cautions(true), [""; 0]);
    }

    #[test]
    fn small_and_unequal_classes_and_short_runs_are_named() {
        let cautions = |counts: &[(&str, usize)], epochs: usize, batch_size: usize| {
            let files =
                counts.iter().flat_map(|(class, count)| (0..*count).map(move |n| format!("train/{class}/{n}.jpg")));
            let files: Vec<String> =
                files.chain(counts.iter().map(|(class, _)| format!("test/{class}/1.jpg"))).collect();
            let root = folder_of(&files.iter().map(String::as_str).collect::<Vec<_>>());
            let mut check = DataCheck::default();
            let recipe = Recipe { epochs, batch_size, ..Recipe::fine_tuning() };
            let splits = recipe.open_data(root.path()).unwrap();
            check.add_cautions(&splits);
            check.cautions.into_iter().chain(few_steps(&recipe, splits.train.len())).collect::<Vec<_>>()
        };
        assert_eq!(cautions(&[("a", 10), ("b", 40)], 5, 5), [""; 0]);
        assert_eq!(
            cautions(&[("a", 10), ("b", 41)], 5, 5),
            [
                "the largest class, b (41), has more than 4 times as many training images as the smallest, a (10): compare the \
              balanced accuracy, and add images of small classes"
            ]
        );
        assert_eq!(
            cautions(&[("a", 9), ("b", 8), ("c", 30)], 1, 1)[..1],
            ["2 classes have fewer than 10 training images, so results are uncertain: b (8), a (9); add images"]
        );
        let short = "the run has only 49 steps (7 epochs of 7 batches): raise --epochs or lower --batch-size if the training loss \
                     is still falling at the end";
        assert_eq!(cautions(&[("a", 13), ("b", 14)], 7, 4), [short]);
        assert_eq!(cautions(&[("a", 13), ("b", 12)], 50, 128), [""; 0]);

        let root = folder_of(&["train/a/1.jpg", "train/b/1.jpg", "test/b/1.jpg"]);
        let mut check = DataCheck::default();
        check.add_cautions(&Recipe::fine_tuning().open_data(root.path()).unwrap());
        let untested = "1 class has no test images, so no test result says anything about it: a; add images";
        assert_eq!(check.cautions.last().unwrap(), untested);
    }
}
