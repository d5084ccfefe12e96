//! Images of every format but JPEG, decoded to Pillow's pixels.

mod images;

use images::{cases, check_all};
use retune::data::{Decoder, RgbImage};

#[test]
fn every_pixel_is_that_of_pillow() {
    let (equal, refused) = check_all("images.zip");
    assert!(equal > 600 && refused > 30, "{equal} equal, {refused} refused");
}

/// Cut anywhere, a file is an error or, where it lacks nothing that counts, the same image.
#[test]
fn every_cut_is_an_error_or_the_same_image() {
    let (mut decoder, mut image) = (Decoder::default(), RgbImage::default());
    let (mut refused, mut wrong) = (0, Vec::new());
    for case in cases("images.zip").into_iter().filter(|case| case.expected.is_some()) {
        // Orientations may stand behind the image, and a number in a text that lacks its last digit is a number.
        let is_text = ["pnm/p2", "pnm/p3", "pnm/plain"].iter().any(|start| case.name.starts_with(start));
        if is_text || case.name.starts_with("turned") {
            continue;
        }
        let all = case.file.len();
        for length in (0..all).filter(|length| length % 5 == 0 || all - length < 50) {
            match decoder.decode_bytes(&case.file[..length], &mut image) {
                Ok(()) if case.has(&image) => {}
                Ok(()) => wrong.push(format!("{} cut to {length} bytes", case.name)),
                Err(error) => {
                    refused += 1;
                    let message = error.message();
                    if message.contains('\n') || message.contains("its decoder gave up") {
                        wrong.push(format!("{} cut to {length} bytes: {message}", case.name));
                    }
                }
            }
        }
    }
    wrong.truncate(50);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(refused > 100_000, "{refused}");
}

fn reason(name: &str) -> String {
    let case = cases("images.zip").into_iter().find(|case| case.name == name).unwrap();
    let error = Decoder::default().decode_bytes(&case.file, &mut RgbImage::default()).unwrap_err();
    error.message().strip_prefix("cannot decode the image: ").unwrap().to_string()
}

#[test]
fn kinds_that_are_not_read_are_named() {
    assert_eq!(reason("tiff/compression-34925.tif"), "a TIFF with LZMA compression is not supported");
    assert_eq!(reason("tiff/compression-34712.tif"), "a TIFF with JPEG 2000 compression is not supported");
    assert_eq!(reason("tiff/icclab.tif"), "a TIFF with ICC Lab colours is not supported");
    assert_eq!(reason("bmp/embedded-jpeg.bmp"), "a BMP that contains a JPEG is not supported");
    assert_eq!(reason("png/cut-in-palette.png"), "truncated PNG: the data end before the image");
}

/// Tiles that are far larger than the image, which would take hours.
#[test]
fn a_small_file_cannot_ask_for_days_of_work() {
    let tag = |tag: u16, value: u32| [&tag.to_le_bytes()[..], &[4, 0, 1, 0, 0, 0], &value.to_le_bytes()].concat();
    let values = [(256, 1), (257, 100_000_000), (258, 8), (259, 32773), (262, 1), (277, 1), (322, 900_000)];
    let more = [(323, 100_000_000), (324, 8), (325, 1 << 30)];
    let mut file = b"II*\0\x08\0\0\0\x0A\0".to_vec();
    file.extend(values.into_iter().chain(more).flat_map(|(number, value)| tag(number, value)));
    file.extend([0x81; 5000]);
    let error = Decoder::default().decode_bytes(&file, &mut RgbImage::default()).unwrap_err();
    assert_eq!(error.message(), "cannot decode the image: broken TIFF data: its tiles are far larger than the image");
}

/// A header of some bytes that claims a window of a gigabyte.
#[test]
fn a_zstandard_window_may_not_be_larger_than_the_data() {
    let case = cases("images.zip").into_iter().find(|case| case.name == "tiff/zstd-rgb.tif").unwrap();
    let start = case.file.windows(4).position(|bytes| bytes == [0x28, 0xB5, 0x2F, 0xFD]).unwrap();
    let decode = |header: [u8; 2]| {
        let mut file = case.file.clone();
        file[start + 4..start + 6].copy_from_slice(&header);
        Decoder::default().decode_bytes(&file, &mut RgbImage::default()).map_err(|error| error.message().to_string())
    };
    // No content size, and a window of 2 to the power of 10 plus the upper five bits.
    let refusal = "cannot decode the image: broken TIFF data: its Zstandard window is far larger than its rows";
    assert_eq!(decode([0, 20 << 3]).unwrap_err(), refusal);
    let message = decode([0, 13 << 3]).map_or_else(|message| message, |()| String::new());
    assert_ne!(message, refusal);
}

/// Nothing of one image remains in the next.
#[test]
fn one_decoder_reads_all_kinds_in_turn() {
    let (mut decoder, mut image) = (Decoder::default(), RgbImage::default());
    for case in cases("images.zip").iter().filter(|case| !case.name.starts_with("turned")) {
        let decoded = decoder.decode_bytes(&case.file, &mut image);
        if case.expected.is_some() {
            decoded.unwrap();
            assert!(case.has(&image), "{}", case.name);
        }
    }
}
