//! JPEGs of every kind, decoded to the pixels of libjpeg-turbo.

mod images;

use std::fs;

use images::{cases, check_all};
use retune::data::{Decoder, PaddedImage, RgbImage};

#[test]
fn every_pixel_is_that_of_libjpeg_turbo() {
    let (equal, refused) = check_all("jpeg.zip");
    assert!(equal > 1100 && refused > 100, "{equal} equal, {refused} refused");
}

/// For any number of rows, and whether the decoder can stop early or not.
#[test]
fn upper_rows_are_those_of_the_whole_image() {
    let mut stopped = 0;
    for case in cases("jpeg.zip").into_iter().filter(|case| case.expected.is_some()) {
        let mut whole = PaddedImage::default();
        case.decoder().decode_bytes(&case.file, &mut whole).unwrap();
        for rows in [0, 1, whole.height / 3, whole.height / 2, whole.height.saturating_sub(1), whole.height, 70_000] {
            let mut upper = PaddedImage::default();
            let told = |width, height| {
                assert_eq!((width, height), (whole.width, whole.height), "{}", case.name);
                rows
            };
            case.decoder().decode_bytes_rows(&case.file, &mut upper, told).unwrap();
            assert!(upper.width == whole.width && upper.height >= rows.min(whole.height), "{}: {rows}", case.name);
            assert_eq!(upper.pixels.len(), (upper.height * upper.width * 4) as usize, "{}", case.name);
            let wanted = (rows.min(whole.height) * whole.width * 4) as usize;
            assert!(upper.pixels[..wanted] == whole.pixels[..wanted], "{}: {rows} rows", case.name);
            stopped += usize::from(upper.height < whole.height);
        }
    }
    assert!(stopped > 4000, "{stopped}");
}

/// Cut anywhere, a file is an error or, if only its end is missing, gives the same image.
#[test]
fn every_cut_is_an_error_or_the_same_image() {
    let mut read = 0;
    for case in cases("jpeg.zip") {
        let is_small = ["444/baseline/restart-0/16x16", "420/progressive/restart-0/45x37", "damaged/base/no-end-zeros"];
        let is_rare =
            ["420/arithmetic/restart-0/45x37", "damaged/restarts/no-end-zeros", "damaged/planes/no-end-zeros"];
        if !is_small.contains(&&*case.name) && !is_rare.contains(&&*case.name) {
            continue;
        }
        for length in 0..case.file.len() {
            let (mut image, mut upper) = (RgbImage::default(), RgbImage::default());
            let whole = Decoder::default().decode_bytes(&case.file[..length], &mut image);
            // Whether a file can be read does not depend on the crop.
            let part = Decoder::default().decode_bytes_rows(&case.file[..length], &mut upper, |_, _| 1);
            assert_eq!(whole.is_ok(), part.is_ok(), "{} cut to {length} bytes", case.name);
            if whole.is_ok() {
                assert!(case.has(&image), "{} cut to {length} bytes", case.name);
                read += 1;
            }
        }
    }
    assert!(read > 10, "{read}");
}

#[test]
fn kinds_that_are_not_read_are_named() {
    let cases = cases("jpeg.zip");
    let reason = |name: &str| {
        let case = cases.iter().find(|case| case.name == name).unwrap();
        let error = Decoder::default().decode_bytes(&case.file, &mut RgbImage::default()).unwrap_err();
        error.message().strip_prefix("cannot decode the image: ").unwrap().to_string()
    };
    assert_eq!(reason("damaged/base/frame-c3"), "lossless JPEG is not supported");
    assert_eq!(reason("damaged/base/frame-c5"), "hierarchical JPEG is not supported");
    assert_eq!(reason("damaged/base/frame-f7"), "JPEG-LS is not supported");
    assert_eq!(reason("damaged/base/bits-12"), "a JPEG with more than 8 bits per sample is not supported");
    assert_eq!(reason("damaged/base/half"), "truncated JPEG: the data end before the end marker");
    assert_eq!(reason("damaged/base/sampling-51"), "broken or unsupported JPEG data: Bogus sampling factors");
}

/// A file of some kilobytes that asks for the same millions of pixels again and again.
#[test]
fn many_scans_of_a_huge_image_are_refused() {
    let base = cases("jpeg.zip").into_iter().find(|case| case.name == "420/planes/restart-0/45x37").unwrap().file;
    let find = |marker: u8| base.windows(2).position(|pair| pair == [0xFF, marker]).unwrap();
    let (frame, scan) = (find(0xC0), find(0xDA));
    let many = |size: u16, scans: usize| {
        let mut file = base[..scan].to_vec();
        file[frame + 5..frame + 7].copy_from_slice(&size.to_be_bytes());
        file[frame + 7..frame + 9].copy_from_slice(&size.to_be_bytes());
        for _ in 0..scans {
            file.extend_from_slice(&base[scan..scan + 10]);
        }
        file.extend_from_slice(&[0xFF, 0xD9]);
        Decoder::default().decode_bytes(&file, &mut RgbImage::default()).map_err(|error| error.message().to_string())
    };
    many(45, 2000).unwrap();
    let reason = many(13_000, 102).unwrap_err();
    assert_eq!(reason, "cannot decode the image: it has 102 scans of 13000 x 13000 pixels, too many to decode");
}

/// No pixels of one image remain in the next.
#[test]
fn one_decoder_reads_all_kinds_in_turn() {
    let (mut decoder, mut image) = (Decoder::default(), RgbImage::default());
    for case in cases("jpeg.zip").iter().filter(|case| !case.name.starts_with("turned")) {
        let decoded = decoder.decode_bytes(&case.file, &mut image);
        if case.expected.is_some() {
            decoded.unwrap();
            assert!(case.has(&image), "{}", case.name);
        }
    }
}

#[test]
fn a_file_is_read_like_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let case = cases("jpeg.zip").into_iter().find(|case| case.name == "440/planes/restart-0/45x37").unwrap();
    let path = folder.path().join("a.jpg");
    fs::write(&path, &case.file).unwrap();
    let mut image = RgbImage::default();
    Decoder::default().decode_file(&path, &mut image).unwrap();
    assert!(case.has(&image));
}
