//! From decoded images to batches: the reference against Pillow, the kernel against the reference, and the path of a
//! data set's images through a device's memory.

mod reference;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use reference::Random;
use reference::recorder::Recorder;
use reference::resampling::resample;
#[cfg(feature = "emulator")]
use retune::data::Augmentation;
use retune::data::transform::{hue_shift, lookup_table};
use retune::data::{
    Batches, CropBox, Draw, ImageFolder, ImageStore, Loader, LoaderOptions, Mode, ResizeMode, RgbImage, Sample, Splits,
    Stored, Transform, Transformer, decode_file,
};
use retune::device::cpu::Cpu;
use retune::device::{AffineMap, Colour, Device, Edits, Erased, ImageView, Resampling, read_f32};
use retune::model::ResNet;
use retune::tensor::{ElementType, Shape, Tensor};
use retune::train::{Checkpointing, Event, Position, Recipe, Run, RunFolder, RunOptions, Trainer, initialise};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Smooth parts, edges and noise: every channel different.
fn picture(random: &mut Random, width: u32, height: u32) -> RgbImage {
    let (a, b, c) = (random.uniform(2.0, 20.0), random.uniform(2.0, 20.0), random.uniform(1.0, 9.0));
    let mut pixels = Vec::with_capacity((width * height * 3) as usize);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let wave = (f64::from(x) / a + f64::from(channel)).sin() * (f64::from(y) / b).cos();
                let edge = ((f64::from(x) / c) as u32 + y / 5 + channel).is_multiple_of(2);
                let level = 110.0 + 90.0 * wave + if edge { 55.0 } else { -20.0 } + random.uniform(-30.0, 30.0);
                pixels.push(level.clamp(0.0, 255.0) as u8);
            }
        }
    }
    RgbImage { width, height, pixels }
}

/// The training transform of a crop.
fn crop_resampling(crop: CropBox, flip_columns: bool, size: u32) -> Resampling {
    let CropBox { top, left, height, width } = crop;
    Resampling { top, left, height, width, flip_columns, ..Resampling::whole(size, size) }
}

/// The test transform of an image of this size.
fn center_crop_resampling(width: u32, height: u32, shorter_side: u32, size: u32) -> Resampling {
    Transform::resize_and_center_crop(shorter_side, size).draw(Draw::default(), width, height)
}

struct Case {
    image: RgbImage,
    resampling: Resampling,
}

/// Images and views of every kind for outputs of this size: tiny, huge, one pixel, enlarged, shrunk, padded.
fn cases(random: &mut Random, size: u32) -> Vec<Case> {
    let mut cases = Vec::new();
    let sizes = [
        (1, 1),
        (1, 40),
        (37, 1),
        (2, 3),
        (size, size),
        (size + 1, size.max(2) - 1),
        (97, 61),
        (61, 130),
        (20 * size.min(20), 21 * size.min(20)),
        (1500, 4),
        (3, 1400),
    ];
    for (width, height) in sizes {
        let image = picture(random, width, height);
        let seed = random.below(1000) as u64;
        let drawn =
            Transform::training(size, ResizeMode::Crop, &[]).draw(Draw { seed, epoch: 0, index: 1 }, width, height);
        let corner = CropBox { top: height - 1, left: width - 1, height: 1, width: 1 };
        let whole = CropBox { top: 0, left: 0, height, width };
        let views = [
            drawn,
            crop_resampling(corner, false, size),
            crop_resampling(whole, true, size),
            center_crop_resampling(width, height, size + size.div_ceil(7), size),
            // Smaller than the output: black around it.
            center_crop_resampling(width, height, size.div_ceil(2), size),
            Resampling { flip_columns: true, ..center_crop_resampling(width, height, size.div_ceil(3), size) },
            Resampling { flip_rows: true, ..drawn },
            Resampling {
                flip_columns: true,
                flip_rows: true,
                ..center_crop_resampling(width, height, size.div_ceil(3), size)
            },
        ];
        cases.extend(views.map(|resampling| Case { image: image.clone(), resampling }));
    }
    cases
}

/// The CPU's result for a view.
fn transformed(image: &RgbImage, resampling: &Resampling, size: u32) -> Vec<u8> {
    Transformer::default().apply(image, resampling, size).unwrap()
}

fn folder_of_fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pillow")
}

fn manifest() -> Value {
    serde_json::from_str(&fs::read_to_string(folder_of_fixtures().join("manifest.json")).unwrap()).unwrap()
}

fn number_of(value: &Value) -> u32 {
    value.as_u64().unwrap() as u32
}

/// Views of the images that Pillow and torchvision have scaled, with the results, in a black square.
fn pillow_cases() -> Vec<(Case, usize, Vec<u8>)> {
    let (folder, manifest) = (folder_of_fixtures(), manifest());
    let file = |value: &Value| decode_file(folder.join(value.as_str().unwrap())).unwrap();
    let number = number_of;
    let mut cases = Vec::new();
    for case in manifest["resized_crops"].as_array().unwrap() {
        let (image, expected) = (file(&case["input"]), file(&case["expected"]));
        let [top, left, height, width] = [0, 1, 2, 3].map(|i| number(&case["crop"][i]));
        let [scaled_width, scaled_height] = [0, 1].map(|i| number(&case["size"][i]));
        let size = scaled_width.max(scaled_height) as usize;
        let crop = crop_resampling(CropBox { top, left, height, width }, false, size as u32);
        let resampling = Resampling { scaled_height, scaled_width, ..crop };
        cases.push((Case { image, resampling }, size, in_a_square(&expected, size)));
    }
    for case in manifest["test_transforms"].as_array().unwrap() {
        let (image, expected) = (file(&case["input"]), file(&case["expected"]));
        let (shorter_side, size) = (number(&case["shorter_side"]), number(&case["image_size"]));
        let resampling = center_crop_resampling(image.width, image.height, shorter_side, size);
        cases.push((Case { image, resampling }, size as usize, expected.pixels));
    }
    assert!(cases.len() > 20, "the manifest has cases");
    cases
}

fn in_a_square(image: &RgbImage, size: usize) -> Vec<u8> {
    let mut square = vec![0; size * size * 3];
    let bytes = image.width as usize * 3;
    for (row, line) in square.chunks_exact_mut(size * 3).zip(image.pixels.chunks_exact(bytes)) {
        row[..bytes].copy_from_slice(line);
    }
    square
}

/// What `smooth` of `scripts/make-pillow-fixtures.py` makes, too.
fn smooth(size: u32, number: u64) -> RgbImage {
    let small = size.div_ceil(5);
    // Its `noise`, for even numbers.
    let level = |index: u64| {
        let value = (index + ((2 * number) << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((value ^ (value >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 56) as u8
    };
    let noise =
        RgbImage { width: small, height: small, pixels: (1..=u64::from(small * small) * 3).map(level).collect() };
    let enlarged = Resampling { height: small, width: small, ..Resampling::whole(size, size) };
    RgbImage { width: size, height: size, pixels: transformed(&noise, &enlarged, size) }
}

fn colour(name: &str, value: f64) -> Colour {
    let factor = value as f32;
    match name {
        "brightness" => Colour::Brightness(factor),
        "contrast" => Colour::Contrast(factor),
        "saturation" => Colour::Saturation(factor),
        "hue" => Colour::Hue(hue_shift(value)),
        "sharpness" => Colour::Sharpness(factor),
        "posterize" => Colour::Posterize(value as u32),
        "solarize" => Colour::Solarize(value.ceil() as u32),
        "autocontrast" => Colour::AutoContrast,
        "equalize" => Colour::Equalize,
        other => panic!("{other}"),
    }
}

/// Images with edits of colours, and the digests of Pillow's results.
fn colour_cases() -> Vec<(Case, u32, String)> {
    let manifest = manifest();
    let case = |(number, case): (usize, &Value)| {
        let size = number_of(&case[0]);
        let image = match size {
            4096 => {
                let colours = (0..1_u32 << 24).flat_map(|index| [(index >> 16) as u8, (index >> 8) as u8, index as u8]);
                RgbImage { width: size, height: size, pixels: colours.collect() }
            }
            _ => smooth(size, number as u64),
        };
        let mut resampling = Resampling::whole(size, size);
        for operation in case[1].as_array().unwrap() {
            resampling.edits.push(colour(operation[0].as_str().unwrap(), operation[1].as_f64().unwrap()));
        }
        (Case { image, resampling }, size, case[2].as_str().unwrap().to_string())
    };
    manifest["colours"].as_array().unwrap().iter().enumerate().map(case).collect()
}

/// Images with affine maps, and Pillow's results.
fn affine_cases() -> Vec<(Case, u32, Vec<u8>)> {
    let case = |(number, case): (usize, &Value)| {
        let size = number_of(&case["size"]);
        let matrix = std::array::from_fn(|i| case["matrix"][i].as_f64().unwrap());
        let edits = Edits { affine: Some(AffineMap::new(matrix)), ..Edits::default() };
        let resampling = Resampling { edits, ..Resampling::whole(size, size) };
        let expected = decode_file(folder_of_fixtures().join(case["expected"].as_str().unwrap())).unwrap();
        (Case { image: smooth(size, number as u64), resampling }, size, expected.pixels)
    };
    manifest()["affine"].as_array().unwrap().iter().enumerate().map(case).collect()
}

fn digest(pixels: &[u8]) -> String {
    Sha256::digest(pixels)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn colours_are_those_of_pillow_to_the_bit() {
    let cases = colour_cases();
    assert!(cases.len() > 40);
    for (Case { image, resampling }, size, expected) in cases {
        let colours = resampling.edits.colours;
        assert_eq!(digest(&transformed(&image, &resampling, size)), expected, "{colours:?} of {size} x {size}");
    }
}

/// One level at most, in few bytes: Pillow's weights are float64, and a sum that is an integer in one may be just below it in the other.
/// Where every pixel is at the centre of a pixel, as after half a turn, these sums are frequent.
fn assert_close(ours: &[u8], expected: &[u8], case: &Case, what: &str) {
    let AffineMap { across, down } = case.resampling.edits.affine.unwrap();
    if across.into_iter().chain(down).all(|number| number % (1 << 31) == 0) {
        assert!(ours.iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= 1), "{what}");
        return;
    }
    let differences = || ours.iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
    assert!(differences().all(|difference| difference <= 1), "{what}");
    let share = differences().filter(|&difference| difference > 0).count() as f64 / ours.len() as f64;
    assert!(share < 0.005, "{what}: {share}");
}

#[test]
fn affine_maps_are_those_of_pillow() {
    for (number, (case, size, expected)) in affine_cases().into_iter().enumerate() {
        let ours = transformed(&case.image, &case.resampling, size);
        assert_close(&ours, &expected, &case, &format!("case {number}"));
    }
}

#[test]
fn edits_follow_flips_and_precede_the_erased_rectangle() {
    let image = picture(&mut Random(3), 20, 20);
    // A pixel to the right.
    let affine = Some(AffineMap::new([1.0, 0.0, -1.0, 0.0, 1.0, 0.0]));
    let erased = Some(Erased { top: 2, left: 5, height: 3, width: 30 });
    let mut edits = Edits { affine, erased, ..Edits::default() };
    edits.push(Colour::Solarize(0));
    let plain = Resampling { flip_columns: true, flip_rows: true, ..Resampling::whole(20, 20) };
    let flipped = transformed(&image, &plain, 20);
    let edited = transformed(&image, &Resampling { edits, ..plain }, 20);
    for (index, pixel) in edited.as_chunks::<3>().0.iter().enumerate() {
        let (y, x) = (index / 20, index % 20);
        let expected = match () {
            () if (2..5).contains(&y) && x >= 5 => [124, 116, 104],
            // What is black outside is inverted, too.
            () if x == 0 => [255; 3],
            () => flipped.as_chunks::<3>().0[index - 1].map(|byte| 255 - byte),
        };
        assert_eq!(*pixel, expected, "{y} {x}");
    }
}

#[test]
fn the_reference_is_pillow_to_the_bit() {
    for (number, (Case { image, resampling }, size, expected)) in pillow_cases().into_iter().enumerate() {
        assert!(resample(&image, &resampling, size) == expected, "case {number}: {resampling:?}");
    }
}

#[test]
fn resamplings_are_the_transforms_of_the_cpu() {
    let mut orders = [0, 0];
    for size in [1, 5, 32, 45] {
        for Case { image, resampling } in cases(&mut Random(u64::from(size)), size) {
            let cpu = transformed(&image, &resampling, size);
            let ours = resample(&image, &resampling, size as usize);
            assert!(ours == cpu, "{resampling:?} of {} x {}", image.width, image.height);
            orders[usize::from(resampling.columns_first())] += 1;
        }
    }
    assert!(orders[0] > 300 && orders[1] > 30, "both orders occur: {orders:?}");
}

#[test]
fn views_outside_of_a_picture_are_errors() {
    let memory = Cpu.allocate(4 * 6 * 3).unwrap();
    let picture = Tensor::new(memory, 0, [4, 6, 3].into(), ElementType::U8);
    let inside = crop_resampling(CropBox { top: 1, left: 2, height: 3, width: 4 }, false, 8);
    let bytes = |resampling| ImageView { image: picture.clone(), resampling }.bytes();
    let table = bytes(inside).unwrap();
    assert_eq!(table[..8], (picture.address() + (6 + 2) * 3).to_ne_bytes());
    assert_eq!(table[8..12], 6_u32.to_ne_bytes());
    for outside in [
        Resampling { top: 2, ..inside },
        Resampling { left: 3, ..inside },
        Resampling { height: 0, ..inside },
        Resampling { width: u32::MAX, ..inside },
        Resampling { scaled_height: 0, ..inside },
        Resampling { scaled_width: 0, ..inside },
    ] {
        assert!(bytes(outside).is_err(), "{outside:?}");
    }
}

#[cfg(feature = "emulator")]
mod kernel {
    use half::bf16;
    use reference::devices::{Workbench, emulated};
    use retune::device::{Augment, Precision, write_f32};

    use super::*;

    fn tensor(device: &dyn Device, shape: impl Into<Shape>, element_type: ElementType) -> Tensor {
        let shape = shape.into();
        Tensor::new(device.allocate(shape.len() * element_type.size()).unwrap(), 0, shape, element_type)
    }

    fn upload(device: &dyn Device, bytes: &[u8]) -> Tensor {
        let tensor = tensor(device, [bytes.len()], ElementType::U8);
        device.upload(bytes, &tensor).unwrap();
        tensor
    }

    fn views(device: &dyn Device, cases: &[Case]) -> (Tensor, u64) {
        let mut pixels = 0;
        let entry = |Case { image, resampling }: &Case| {
            let bytes = upload(device, &image.pixels);
            let picture = bytes.part(0, [image.height as usize, image.width as usize, 3].into());
            pixels += u64::from(resampling.height) * u64::from(resampling.width);
            let entry = ImageView { image: picture.clone(), resampling: *resampling }.bytes().unwrap();
            (picture, entry)
        };
        // The device's images live as long as the process, which is short.
        let (pictures, entries): (Vec<Tensor>, Vec<_>) = cases.iter().map(entry).unzip();
        std::mem::forget(pictures);
        (upload(device, entries.as_flattened()), pixels)
    }

    /// The output of a launch without a lookup table, and of one with it in the device's type of activations.
    fn run(device: &dyn Device, cases: &[Case], size: usize) -> (Vec<u8>, Vec<f32>) {
        let (table, source_pixels) = views(device, cases);
        let bench = Workbench::new(device);
        let shape = [cases.len(), size, size, 3];
        let bytes = bench.byte_output(shape);
        let edited = cases.iter().any(|case| !case.resampling.edits.is_empty());
        let workspace = edited.then(|| {
            // More than the batch needs. Counters are zero.
            let row = Augment::workspace_bytes(size);
            let workspace = tensor(device, [cases.len() + 1, row], ElementType::U8);
            device.upload(&vec![0; workspace.bytes()], &workspace).unwrap();
            workspace
        });
        let workspace = workspace.as_ref();
        device
            .augment(&Augment { views: &table, lookup_table: None, output: &bytes, source_pixels, workspace })
            .unwrap();
        let lookup = tensor(device, [3, 256], ElementType::F32);
        write_f32(device, lookup_table().as_flattened(), &lookup).unwrap();
        let output = tensor(device, shape, device.precision().activation_type());
        device
            .augment(&Augment { views: &table, lookup_table: Some(&lookup), output: &output, source_pixels, workspace })
            .unwrap();
        let result = (bench.read_bytes(&bytes), read_f32(device, &output).unwrap());
        bench.finish();
        result
    }

    fn normalized(bytes: &[u8]) -> Vec<f32> {
        bytes.iter().enumerate().map(|(i, &byte)| lookup_table()[i % 3][usize::from(byte)]).collect()
    }

    #[test]
    fn it_scales_as_pillow_does_to_the_bit() {
        let device = emulated(1, Precision::Fp32);
        for (number, (case, size, expected)) in pillow_cases().into_iter().enumerate() {
            let (bytes, floats) = run(&device, std::slice::from_ref(&case), size);
            assert!(bytes == expected, "case {number}: {:?}", case.resampling);
            assert!(floats == normalized(&bytes), "case {number}");
        }
    }

    #[test]
    fn it_is_the_reference_and_the_cpu_to_the_bit() {
        for (size, seed) in [(1, 0), (5, 1), (32, 2), (33, 3), (70, 4)] {
            let cases = cases(&mut Random(seed), size);
            let expected: Vec<u8> =
                cases.iter().flat_map(|case| resample(&case.image, &case.resampling, size as usize)).collect();
            for precision in [Precision::Fp32, Precision::Bf16] {
                let (bytes, pixels) = run(&emulated(seed, precision), &cases, size as usize);
                assert!(bytes == expected, "size {size}");
                let mut normalized = normalized(&expected);
                if precision == Precision::Bf16 {
                    normalized.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
                }
                assert!(pixels == normalized, "size {size}, {precision}");
            }
            for (case, ours) in cases.iter().zip(expected.chunks_exact((size * size * 3) as usize)) {
                let cpu = transformed(&case.image, &case.resampling, size);
                assert!(ours == cpu, "{:?}", case.resampling);
            }
        }
    }

    #[test]
    fn any_schedule_gives_the_same_bits() {
        let random_views = |seed| {
            let mut random = Random(seed);
            let case = |_| {
                let (width, height) = (1 + random.below(300) as u32, 1 + random.below(200) as u32);
                let image = picture(&mut random, width, height);
                let resampling = Transform::training(48, ResizeMode::Crop, &[]).draw(
                    Draw { seed, epoch: 3, index: 0 },
                    width,
                    height,
                );
                Case { image, resampling }
            };
            (0..4).map(case).collect::<Vec<_>>()
        };
        for seed in 0..6 {
            let cases = random_views(seed);
            let expected: Vec<u8> = cases.iter().flat_map(|case| resample(&case.image, &case.resampling, 48)).collect();
            assert!(run(&emulated(seed, Precision::Fp32), &cases, 48).0 == expected, "seed {seed}");
        }
    }

    #[test]
    fn arguments_that_do_not_belong_together_are_errors() {
        let device = emulated(0, Precision::Fp32);
        let table = tensor(&device, [3, 256], ElementType::F32);
        let views = tensor(&device, [2 * ImageView::BYTES], ElementType::U8);
        let refuse = |shape: [usize; 4], element_type, lookup_table| {
            let output = tensor(&device, shape, element_type);
            let workspace = None;
            device
                .augment(&Augment { views: &views, lookup_table, output: &output, source_pixels: 0, workspace })
                .unwrap_err();
        };
        refuse([3, 8, 8, 3], ElementType::F32, Some(&table));
        refuse([2, 8, 9, 3], ElementType::F32, Some(&table));
        refuse([2, 8, 8, 4], ElementType::F32, Some(&table));
        refuse([2, 8, 8, 3], ElementType::F32, None);
        refuse([2, 8, 8, 3], ElementType::U8, Some(&table));
        refuse([2, 8, 8, 3], ElementType::F32, Some(&views));
        let output = tensor(&device, [2, 8, 8, 3], ElementType::F32);
        let row = Augment::workspace_bytes(8);
        for shape in [[1, row], [2, row - 16], [2, row + 16]] {
            let workspace = Some(&tensor(&device, shape, ElementType::U8));
            let (lookup_table, output) = (Some(&table), &output);
            device.augment(&Augment { views: &views, lookup_table, output, source_pixels: 0, workspace }).unwrap_err();
        }
    }

    #[test]
    fn it_edits_as_pillow_does() {
        let device = emulated(3, Precision::Fp32);
        // The larger ones would take long.
        for (case, size, expected) in colour_cases().into_iter().filter(|(_, size, _)| *size < 100) {
            let (bytes, floats) = run(&device, std::slice::from_ref(&case), size as usize);
            assert_eq!(digest(&bytes), expected, "{:?}", case.resampling);
            assert!(floats == normalized(&bytes), "{:?}", case.resampling);
        }
        for (number, (case, size, expected)) in affine_cases().into_iter().enumerate() {
            let (bytes, _) = run(&device, std::slice::from_ref(&case), size as usize);
            assert_close(&bytes, &expected, &case, &format!("case {number}"));
        }
    }

    /// Every augmentation alone, all of them, and none.
    fn edited_cases(size: u32, seed: u64) -> Vec<Case> {
        let mut random = Random(seed);
        let mut cases = Vec::new();
        let mut add = |augmentations: &[Augmentation], resize, draws| {
            let transform = Transform::training(size, resize, augmentations);
            for index in 0..draws {
                let (width, height) = (1 + random.below(90) as u32, 1 + random.below(60) as u32);
                let image = picture(&mut random, width, height);
                let resampling = transform.draw(Draw { seed, epoch: 3, index }, width, height);
                cases.push(Case { image, resampling });
            }
        };
        let all = augmentations();
        for augmentation in &all {
            let draws = if *augmentation == Augmentation::TrivialAugment { 30 } else { 2 };
            add(&[*augmentation, "vertical-flip=0.5".parse().unwrap()], ResizeMode::Crop, draws);
        }
        for resize in ResizeMode::ALL {
            add(&all, resize, 6);
            add(&[], resize, 2);
        }
        cases
    }

    #[test]
    fn edits_are_those_of_the_cpu_to_the_bit() {
        for (size, seed) in [(1, 0), (2, 1), (24, 2), (45, 3)] {
            let cases = edited_cases(size, seed);
            let expected: Vec<u8> =
                cases.iter().flat_map(|case| transformed(&case.image, &case.resampling, size)).collect();
            for precision in [Precision::Fp32, Precision::Bf16] {
                let (bytes, floats) = run(&emulated(seed, precision), &cases, size as usize);
                let values = (size * size * 3) as usize;
                for (number, case) in cases.iter().enumerate() {
                    let part = number * values..(number + 1) * values;
                    let what = format!("size {size}, {:?}", case.resampling);
                    assert!(bytes[part.clone()] == expected[part.clone()], "{what}");
                    let mut normalized = normalized(&expected[part.clone()]);
                    for (index, value) in normalized.iter_mut().enumerate() {
                        let (y, x) = ((index / 3) as u32 / size, (index / 3) as u32 % size);
                        let is_erased =
                            case.resampling.edits.erased.is_some_and(|Erased { top, left, height, width }| {
                                (top..top + height).contains(&y) && (left..left + width).contains(&x)
                            });
                        if is_erased {
                            *value = 0.0;
                        } else if precision == Precision::Bf16 {
                            *value = bf16::from_f32(*value).to_f32();
                        }
                    }
                    assert!(floats[part] == normalized, "{what}");
                }
            }
        }
    }

    #[test]
    fn edits_are_free_of_races_and_of_reads_of_what_was_not_written() {
        use retune::device::cuda::Cuda;
        use retune::device::cuda::emulator::Emulator;
        let cases = edited_cases(40, 9).split_off(44);
        let expected: Vec<u8> = cases.iter().flat_map(|case| transformed(&case.image, &case.resampling, 40)).collect();
        let device = Cuda::new(Box::new(Emulator::strict(5).unwrap()), Precision::Fp32).unwrap();
        assert!(run(&device, &cases, 40).0 == expected);
    }

    #[test]
    fn augmented_batches_are_those_of_the_cpu_whatever_the_room() {
        let (_root, folder) = folder();
        let batches = |device: Rc<dyn Device>, limit| {
            let store = Rc::new(ImageStore::new(device.clone(), limit));
            let loader = Loader::new(folder.clone(), options(Mode::Train { seed: 4 }, 2)).unwrap();
            let loader = loader.with_augmentations(&augmentations());
            batches_of(&device, &mut Batches::new(loader, &store).unwrap(), 1, 0)
        };
        let expected = batches(Rc::new(Cpu), None);
        for limit in [None, Some(6000), Some(0)] {
            assert!(batches(Rc::new(emulated(2, Precision::Fp32)), limit) == expected, "{limit:?}");
        }
    }

    #[test]
    fn a_data_set_gives_the_same_batches_as_with_the_reference() {
        let (_root, folder) = folder();
        for mode in [Mode::Train { seed: 3 }, Mode::Evaluate] {
            for limit in [None, Some(6000)] {
                let emulated = epochs(Rc::new(emulated(2, Precision::Fp32)), &folder, options(mode, 2), limit, 2);
                assert_eq!(emulated, epochs(augmenting(), &folder, options(mode, 2), limit, 2));
            }
        }
    }

    #[test]
    fn a_run_does_not_depend_on_workers_room_or_schedule() {
        let (_root, folder) = folder();
        let bytes = decoded_bytes(&folder);
        let train = |seed, workers, image_memory| {
            Training { folder: &folder, workers, image_memory }.train(Rc::new(emulated(seed, Precision::Fp32)))
        };
        let (expected, told) = train(0, 1, None);
        assert_eq!(told, [Stored { images: PICTURES, bytes }]);
        let (again, told) = train(1, 3, Some(bytes / 2));
        assert!(again == expected, "half the memory");
        assert!(told.len() == 1 && told[0].bytes <= bytes / 2, "{told:?}");
        assert!(train(2, 2, Some(0)).0 == expected, "no memory");
    }
}

/// Every augmentation besides flips, strong.
#[cfg(feature = "emulator")]
fn augmentations() -> Vec<Augmentation> {
    let words = "rotation=60,translate=0.3,zoom=0.5,shear=30,brightness=0.9,contrast=0.9,saturation=0.9,hue=0.5,random-erasing=0.7,\
                 trivial-augment,crop-scale=0.3-0.9";
    words.split(',').map(|word| word.parse().unwrap()).collect()
}

const SIZE: u32 = 40;
const PICTURES: usize = 23;

/// Images of many sizes in three classes.
fn folder() -> (tempfile::TempDir, Arc<ImageFolder>) {
    let root = tempfile::tempdir().unwrap();
    let mut random = Random(5);
    for number in 0..PICTURES {
        let (width, height) = (10 + random.below(60) as u32, 10 + random.below(60) as u32);
        let image = picture(&mut random, width, height);
        let class = root.path().join(["a", "b", "c"][number % 3]);
        fs::create_dir_all(&class).unwrap();
        let head = format!("P6 {width} {height} 255\n").into_bytes();
        fs::write(class.join(format!("{number:02}.ppm")), [head, image.pixels].concat()).unwrap();
    }
    let folder = Arc::new(ImageFolder::open(root.path()).unwrap());
    (root, folder)
}

fn options(mode: Mode, workers: usize) -> LoaderOptions {
    LoaderOptions { batch_size: 5, image_size: SIZE, resize: ResizeMode::Crop, mode, workers, strict: false }
}

/// A device with the reference's `augment`.
fn augmenting() -> Rc<Recorder> {
    Rc::new(Recorder::augmenting(Rc::new(Cpu)))
}

/// The contents of a batch.
#[derive(Debug, Clone, PartialEq)]
struct Content {
    pixels: Vec<f32>,
    targets: Vec<u32>,
    indices: Vec<usize>,
    skipped: Vec<usize>,
}

fn batches_of(device: &Rc<dyn Device>, batches: &mut Batches, epoch: u64, first_batch: usize) -> Vec<Content> {
    let mut contents = Vec::new();
    let size = SIZE as usize;
    let mut epoch = batches.epoch_from(epoch, first_batch);
    while let Some(batch) = epoch.next_batch() {
        let batch = batch.unwrap();
        let shape = [batch.targets.len(), size, size, 3].into();
        let input = Tensor::new(device.allocate(4 * Shape::len(&shape)).unwrap(), 0, shape, ElementType::F32);
        batch.write(device.as_ref(), &input).unwrap();
        contents.push(Content {
            pixels: read_f32(device.as_ref(), &input).unwrap(),
            targets: batch.targets.clone(),
            indices: batch.indices.clone(),
            skipped: batch.skipped.iter().map(|skipped| skipped.index).collect(),
        });
    }
    contents
}

/// The batches of the first epochs.
fn epochs(
    device: Rc<dyn Device>,
    folder: &Arc<ImageFolder>,
    options: LoaderOptions,
    limit: Option<usize>,
    count: u64,
) -> Vec<Vec<Content>> {
    let store = Rc::new(ImageStore::new(device.clone(), limit));
    let mut batches = Batches::new(Loader::new(folder.clone(), options).unwrap(), &store).unwrap();
    (0..count).map(|epoch| batches_of(&device, &mut batches, epoch, 0)).collect()
}

fn decoded_bytes(folder: &ImageFolder) -> usize {
    folder.samples.iter().map(|sample| decode_file(&sample.path).unwrap().pixels.len()).sum()
}

/// The byte before normalisation.
fn level(channel: usize, value: f32) -> u8 {
    let levels = &lookup_table()[channel];
    levels.iter().position(|&level| level == value).expect("a normalised byte") as u8
}

#[test]
fn a_device_sees_the_crops_of_the_cpu() {
    let (_root, folder) = folder();
    for mode in [Mode::Train { seed: 7 }, Mode::Evaluate] {
        let cpu = epochs(Rc::new(Cpu), &folder, options(mode, 2), None, 3);
        let device = epochs(augmenting(), &folder, options(mode, 2), None, 3);
        let (mut values, mut different) = (0, 0);
        for (cpu, device) in cpu.iter().flatten().zip(device.iter().flatten()) {
            assert_eq!((&cpu.targets, &cpu.indices), (&device.targets, &device.indices));
            assert_eq!(cpu.pixels.len(), device.pixels.len());
            for (i, (&ours, &theirs)) in device.pixels.iter().zip(&cpu.pixels).enumerate() {
                let difference = level(i % 3, ours).abs_diff(level(i % 3, theirs));
                assert!(difference <= 1, "{difference} levels in {mode:?}");
                (values, different) = (values + 1, different + usize::from(difference > 0));
            }
        }
        assert_eq!(values, 3 * PICTURES * (SIZE * SIZE * 3) as usize);
        println!("{mode:?}: {different} of {values} values differ by one level");
    }
}

#[test]
fn neither_room_nor_workers_change_a_batch() {
    let (_root, folder) = folder();
    let bytes = decoded_bytes(&folder);
    for mode in [Mode::Train { seed: 7 }, Mode::Evaluate] {
        let expected = epochs(augmenting(), &folder, options(mode, 1), None, 3);
        for limit in [None, Some(0), Some(5000), Some(bytes / 2), Some(2 * bytes)] {
            for workers in [1, 4] {
                assert!(epochs(augmenting(), &folder, options(mode, workers), limit, 3) == expected, "{limit:?}");
            }
        }
        let full = augmenting();
        full.pretend_free_bytes((1 << 30) + bytes / 2);
        assert!(epochs(full, &folder, options(mode, 2), None, 3) == expected, "half of them fit");
    }
}

#[test]
fn an_epoch_can_begin_in_the_middle() {
    let (_root, folder) = folder();
    let device: Rc<dyn Device> = augmenting();
    for limit in [None, Some(20_000)] {
        let expected = epochs(device.clone(), &folder, options(Mode::Train { seed: 1 }, 2), limit, 3);
        let store = Rc::new(ImageStore::new(device.clone(), limit));
        let loader = Loader::new(folder.clone(), options(Mode::Train { seed: 1 }, 2)).unwrap();
        let mut batches = Batches::new(loader, &store).unwrap();
        assert!(batches_of(&device, &mut batches, 1, 3) == expected[1][3..]);
        assert!(batches_of(&device, &mut batches, 2, 0) == expected[2]);
        assert!(batches_of(&device, &mut batches, 2, 5).is_empty());
        assert!(batches_of(&device, &mut batches, 2, usize::MAX).is_empty());
    }
}

#[test]
fn pictures_are_decoded_once_while_there_is_room() {
    let (_root, folder) = folder();
    let bytes = decoded_bytes(&folder);
    for (limit, all) in [(None, true), (Some(2 * bytes), true), (Some(bytes / 2), false), (Some(0), false)] {
        let device: Rc<dyn Device> = augmenting();
        let store = Rc::new(ImageStore::new(device.clone(), limit));
        let loader = Loader::new(folder.clone(), options(Mode::Train { seed: 1 }, 2)).unwrap();
        let mut batches = Batches::new(loader, &store).unwrap();
        assert_eq!(store.stored(), Stored::default());
        let first = batches_of(&device, &mut batches, 0, 0);
        let stored = store.stored();
        match all {
            true => assert_eq!(stored, Stored { images: PICTURES, bytes }),
            false => assert!(stored.images < PICTURES && stored.bytes <= limit.unwrap(), "{stored:?}"),
        }
        assert_eq!(stored.images > 0, limit != Some(0));

        // Stored images no longer need their files.
        let files: Vec<_> = folder.samples.iter().map(|sample| fs::read(&sample.path).unwrap()).collect();
        folder.samples.iter().for_each(|sample| fs::remove_file(&sample.path).unwrap());
        let second = batches_of(&device, &mut batches, 0, 0);
        folder.samples.iter().zip(files).for_each(|(sample, file)| fs::write(&sample.path, file).unwrap());
        let left: usize = second.iter().map(|batch| batch.indices.len()).sum();
        assert_eq!(left, stored.images);
        assert_eq!(all, first == second);
        assert!(batches_of(&device, &mut batches, 0, 0) == first);
    }
}

#[test]
fn data_sets_share_the_room() {
    let (_root, folder) = folder();
    let bytes = decoded_bytes(&folder);
    let device: Rc<dyn Device> = augmenting();
    let store = Rc::new(ImageStore::new(device.clone(), Some(bytes + bytes / 2)));
    for (mode, whole) in [(Mode::Train { seed: 1 }, true), (Mode::Evaluate, false)] {
        let before = store.stored().images;
        let mut batches = Batches::new(Loader::new(folder.clone(), options(mode, 2)).unwrap(), &store).unwrap();
        batches_of(&device, &mut batches, 0, 0);
        let more = store.stored().images - before;
        assert!(more > 0 && (more == PICTURES) == whole, "{more} in {mode:?}");
    }
    assert!(store.stored().bytes <= bytes + bytes / 2);
}

#[test]
fn an_unreadable_picture_is_skipped_in_every_epoch() {
    let (_root, folder) = folder();
    for index in [1, 2, 8] {
        fs::write(&folder.samples[index].path, b"P6 24 20 255\n truncated").unwrap();
    }
    for limit in [None, Some(0)] {
        let device: Rc<dyn Device> = augmenting();
        let store = Rc::new(ImageStore::new(device.clone(), limit));
        let mut batches =
            Batches::new(Loader::new(folder.clone(), options(Mode::Evaluate, 3)).unwrap(), &store).unwrap();
        for epoch in 0..2 {
            let contents = batches_of(&device, &mut batches, epoch, 0);
            assert_eq!(contents[0].indices, [0, 3, 4]);
            assert_eq!(contents[0].skipped, [1, 2]);
            assert_eq!(contents[1].skipped, [8]);
            let left: BTreeSet<usize> = contents.iter().flat_map(|batch| batch.indices.clone()).collect();
            assert_eq!(left.len(), PICTURES - 3);
        }
    }
    let strict = LoaderOptions { strict: true, ..options(Mode::Evaluate, 2) };
    let store = Rc::new(ImageStore::new(augmenting(), None));
    let mut batches = Batches::new(Loader::new(folder.clone(), strict).unwrap(), &store).unwrap();
    let mut epoch = batches.epoch_from(0, 0);
    let error = epoch.next_batch().unwrap().err().unwrap().to_string();
    assert!(error.starts_with(&format!("cannot decode {}: ", folder.samples[1].path.display())), "{error}");
    assert!(epoch.next_batch().is_none());
}

#[test]
fn a_batch_of_which_nothing_is_left_is_empty() {
    let (_root, folder) = folder();
    folder.samples.iter().for_each(|sample| fs::write(&sample.path, b"?").unwrap());
    let store = Rc::new(ImageStore::new(augmenting(), None));
    let mut batches = Batches::new(Loader::new(folder, options(Mode::Evaluate, 2)).unwrap(), &store).unwrap();
    let mut epoch = batches.epoch_from(0, 0);
    let mut sizes = Vec::new();
    while let Some(batch) = epoch.next_batch() {
        let batch = batch.unwrap();
        sizes.push((batch.targets.len(), batch.skipped.len()));
    }
    assert_eq!(sizes, [(0, 5), (0, 5), (0, 5), (0, 5), (0, 3)]);
}

/// Trains on a folder and returns the bytes of the checkpoint, and the reported numbers of stored images.
struct Training<'a> {
    folder: &'a ImageFolder,
    workers: usize,
    image_memory: Option<usize>,
}

impl Training<'_> {
    fn recipe(epochs: usize) -> Recipe {
        let (batch_size, image_size, seed, width) = (8, 32, 4, 4);
        Recipe { epochs, batch_size, image_size, seed, width, ..Recipe::from_scratch() }
    }

    fn train(&self, device: Rc<dyn Device>) -> (Vec<u8>, Vec<Stored>) {
        let recipe = Self::recipe(2);
        let out = tempfile::tempdir().unwrap();
        let classes = self.folder.classes.len();
        let resnet = ResNet { architecture: recipe.architecture.parse().unwrap(), width: recipe.width, classes };
        let mut trainer = Trainer::new(device, resnet, recipe.trainable(None).unwrap()).unwrap();
        initialise(trainer.network_mut(), recipe.seed).unwrap();
        let (test, train): (Vec<Sample>, Vec<Sample>) =
            self.folder.samples.iter().cloned().partition(|sample| sample.path.to_string_lossy().ends_with("2.ppm"));
        let split = |samples| ImageFolder { samples, ..self.folder.clone() };
        let interrupted = AtomicBool::new(false);
        let run = Run {
            trainer,
            recipe,
            splits: Splits::new(split(train), split(test)),
            images: retune::train::ImageList::default(),
            position: Position::default(),
            data_check: None,
            changed: None,
            options: RunOptions {
                folder: RunFolder { path: out.path().to_path_buf() },
                workers: self.workers,
                image_memory: self.image_memory,
                strict: true,
                check_data: false,
                checkpointing: Checkpointing::default(),
                interrupted: &interrupted,
            },
            started: std::time::Instant::now(),
        };
        let checkpoint = run.options.folder.checkpoint();
        let mut told = Vec::new();
        run.train(|event| {
            if let Event::Stored(stored, of) = event {
                assert_eq!(of, PICTURES);
                told.push(stored);
            }
        })
        .unwrap();
        (fs::read(checkpoint).unwrap(), told)
    }
}

#[test]
fn a_run_does_not_depend_on_workers_or_room() {
    let (_root, folder) = folder();
    let bytes = decoded_bytes(&folder);
    let one = Training { folder: &folder, workers: 1, image_memory: None };
    let (expected, told) = one.train(augmenting());
    assert_eq!(told, [Stored { images: PICTURES, bytes }]);
    let (again, _) = Training { workers: 3, ..one }.train(augmenting());
    assert!(again == expected, "three workers");
    let (again, told) = Training { image_memory: Some(bytes / 2), ..one }.train(augmenting());
    assert!(again == expected, "half the memory");
    assert!(told.len() == 1 && told[0].bytes <= bytes / 2, "{told:?}");
    let (again, told) = Training { image_memory: Some(0), ..one }.train(augmenting());
    assert!(again == expected, "no memory");
    assert_eq!(told, []);
    let (_, told) = one.train(Rc::new(Cpu));
    assert_eq!(told, []);
}
