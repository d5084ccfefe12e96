//! Bulk copies: where each element of a tensor goes in shared memory.

use serde_json::json;

use super::answer::{Answer, Description, launch, upload};
use super::swizzle::{apply, span};
use crate::device::cuda::arguments::kernel_arguments;
use crate::device::cuda::driver::Driver;
use crate::device::cuda::nvidia::tensor_map::{Extent, Swizzle, encode};
use crate::error::Result;

/// Channels, columns, rows and images of the tensor.
const SIZES: [usize; 4] = [128, 7, 5, 2];
/// The byte that no copy has written.
const UNTOUCHED: u8 = 0xee;
/// Bytes behind the copied ones, which stay untouched.
const GUARD: usize = 1024;

kernel_arguments! {
    struct ProbeLoadArguments {
        map: u64,
        dump: u64,
        status: u64,
        bytes: u32,
        copied: u32,
        destination: u32,
        dimensions: u32,
        channel: i32,
        column: i32,
        row: i32,
        image: i32,
        column_offset: u32,
        row_offset: u32,
    }
}

/// A copy.
#[derive(Debug, Clone)]
pub(super) struct Load {
    what: &'static str,
    swizzle: Swizzle,
    extent: Extent,
    /// Channel, column, row and image at which it begins. In two dimensions, the column counts all pixels.
    at: [i32; 4],
    /// Column and row that im2col mode adds to every pixel.
    offsets: [u32; 2],
    /// Byte of shared memory at which it begins.
    destination: usize,
}

/// The bits of an element, which no other has; 0 outside the tensor.
fn element([channel, column, row, image]: [i32; 4]) -> u16 {
    let at = [channel, column, row, image].map(|index| usize::try_from(index).unwrap_or(usize::MAX));
    if at.iter().zip(SIZES).any(|(&index, size)| index >= size) {
        return 0;
    }
    let [channel, column, row, image] = at;
    (1 + channel + SIZES[0] * (column + SIZES[1] * (row + SIZES[2] * image))) as u16
}

impl Load {
    pub(super) fn name(&self) -> String {
        let mode = match &self.extent {
            Extent::Tile(extents) => format!("tiled copy in {} dimensions", extents.len()),
            Extent::Im2col { .. } => "im2col copy".into(),
        };
        format!(
            "{mode}, swizzle of {} bytes, {}",
            if self.swizzle == Swizzle::None { 0 } else { span(self.swizzle) },
            self.what
        )
    }

    /// The coordinates of its elements, in the order in which they would lie without a swizzle.
    fn coordinates(&self) -> Vec<[i32; 4]> {
        let [channel, column, row, image] = self.at;
        match &self.extent {
            Extent::Tile(extents) => {
                let extent = |dimension: usize| extents.get(dimension).map_or(1, |&extent| extent as i32);
                let mut all = Vec::new();
                for index in 0..extent(3) * extent(2) * extent(1) {
                    let (x, y) = (column + index % extent(1), row + index / extent(1) % extent(2));
                    let z = image + index / (extent(1) * extent(2));
                    all.extend((0..extent(0)).map(|inner| [channel + inner, x, y, z]));
                }
                all
            }
            Extent::Im2col { lower, upper, channels, pixels, stride } => {
                let last = [0, 1].map(|dimension| SIZES[1 + dimension] as i32 - 1 + upper[dimension]);
                let [right, down] = self.offsets.map(|offset| offset as i32);
                let (mut x, mut y, mut z) = (column, row, image);
                let mut all = Vec::new();
                for _ in 0..*pixels {
                    all.extend((0..*channels as i32).map(|inner| [channel + inner, x + right, y + down, z]));
                    x += *stride as i32;
                    if x > last[0] {
                        (x, y) = (lower[0], y + *stride as i32);
                    }
                    if y > last[1] {
                        (y, z) = (lower[1], z + 1);
                    }
                }
                all
            }
        }
    }

    /// The sizes of the tensor that its map describes.
    fn sizes(&self) -> Vec<u64> {
        let sizes = SIZES.map(|size| size as u64);
        match &self.extent {
            Extent::Tile(extents) if extents.len() == 2 => vec![sizes[0], sizes[1] * sizes[2] * sizes[3]],
            _ => sizes.to_vec(),
        }
    }

    /// The bits of an element at its coordinates.
    fn bits(&self, at: [i32; 4]) -> u16 {
        if self.sizes().len() == 4 {
            return element(at);
        }
        let [columns, rows] = [SIZES[1] as i32, SIZES[2] as i32];
        let [channel, pixel, ..] = at;
        match (0..columns * rows * SIZES[3] as i32).contains(&pixel) {
            true => element([channel, pixel % columns, pixel / columns % rows, pixel / (columns * rows)]),
            false => 0,
        }
    }

    fn copied_bytes(&self) -> usize {
        2 * self.coordinates().len()
    }

    /// Bytes of the buffer, whose pattern of swizzles is whole.
    fn buffer_bytes(&self) -> usize {
        (self.destination + self.copied_bytes()).next_multiple_of(1024) + GUARD
    }

    /// Shared memory after the copy.
    fn predict(&self) -> Vec<u8> {
        let mut buffer = vec![UNTOUCHED; self.buffer_bytes()];
        for (index, at) in self.coordinates().into_iter().enumerate() {
            let place = apply(self.swizzle, self.destination + 2 * index);
            buffer[place..place + 2].copy_from_slice(&self.bits(at).to_le_bytes());
        }
        buffer
    }

    fn describe(&self) -> Description {
        let swizzle = if self.swizzle == Swizzle::None { 0 } else { span(self.swizzle) };
        let extent = match &self.extent {
            Extent::Tile(extents) => json!({ "box": extents }),
            Extent::Im2col { lower, upper, channels, pixels, stride } => json!({
                "lower": lower, "upper": upper, "channels": channels, "pixels": pixels, "stride": stride,
                "offsets": self.offsets,
            }),
        };
        let parameters = json!({
            "tensor": self.sizes(), "swizzle": swizzle, "at": self.at, "destination": self.destination, "extent": extent,
        });
        Description { name: self.name(), kind: "load", parameters, is_predicted: true }
    }
}

pub(super) fn cases() -> Vec<Load> {
    let tile = |what, swizzle, extents: &[u32], at| Load {
        what,
        swizzle,
        extent: Extent::Tile(extents.to_vec()),
        at,
        offsets: [0, 0],
        destination: 0,
    };
    // The pixels of a 3 x 3 convolution with padding 1.
    let convolution = |what, at, offsets, stride| Load {
        what,
        swizzle: Swizzle::Bytes128,
        extent: Extent::Im2col { lower: [-1, -1], upper: [-1, -1], channels: 64, pixels: 48, stride },
        at,
        offsets,
        destination: 0,
    };
    let all = Swizzle::Bytes128;
    vec![
        tile("inside", all, &[64, 20], [64, 9, 0, 0]),
        tile("past the last pixel", all, &[64, 20], [0, 60, 0, 0]),
        tile("inside", all, &[64, 4, 3, 1], [64, 1, 1, 1]),
        tile("zeros left and above", all, &[64, 8, 4, 1], [0, -1, -1, 0]),
        tile("zeros right and below", all, &[64, 8, 4, 1], [64, 3, 3, 1]),
        tile("zeros on all sides", all, &[64, 9, 7, 1], [0, -1, -1, 1]),
        tile("past the last channel", all, &[64, 4, 3, 1], [96, 1, 1, 0]),
        tile("past the last image", all, &[64, 3, 2, 2], [0, 0, 0, 1]),
        tile("of two images", all, &[64, 7, 5, 2], [0, 0, 0, 0]),
        tile("zeros left and above", Swizzle::Bytes64, &[32, 8, 4, 1], [32, -1, -1, 0]),
        tile("zeros left and above", Swizzle::Bytes32, &[16, 8, 4, 1], [16, -1, -1, 0]),
        tile("zeros left and above", Swizzle::None, &[64, 8, 4, 1], [32, -1, -1, 0]),
        Load { destination: 3 * 128, ..tile("at row 3 of the pattern", all, &[64, 4, 3, 1], [0, 1, 1, 0]) },
        Load { destination: 2048, ..tile("at byte 2048", all, &[64, 4, 3, 1], [0, 1, 1, 0]) },
        convolution("first tap", [0, -1, -1, 0], [0, 0], 1),
        convolution("middle tap", [0, -1, -1, 0], [1, 1], 1),
        convolution("last tap", [64, -1, -1, 0], [2, 2], 1),
        convolution("from the middle of a row", [0, 3, 1, 0], [2, 0], 1),
        convolution("past the last image", [0, 2, 2, 1], [1, 2], 1),
        convolution("stride 2", [0, -1, -1, 0], [1, 0], 2),
        convolution("stride 2, from the middle of a row", [64, 3, 1, 0], [2, 1], 2),
    ]
}

pub(super) fn run(driver: &dyn Driver, load: Load) -> Result<Answer> {
    let content: Vec<u8> =
        (0..SIZES.iter().product::<usize>()).flat_map(|index| (index as u16 + 1).to_le_bytes()).collect();
    let tensor = upload(driver, &content)?;
    let map = upload(driver, &encode(tensor.address(), &load.sizes(), &load.extent, load.swizzle)?)?;
    let mut dump = vec![0; load.buffer_bytes()];
    let (target, status) = (driver.allocate(dump.len())?, driver.allocate(4)?);
    let [channel, column, row, image] = load.at;
    let arguments = ProbeLoadArguments {
        map: map.address(),
        dump: target.address(),
        status: status.address(),
        bytes: dump.len() as u32,
        copied: load.copied_bytes() as u32,
        destination: load.destination as u32,
        dimensions: match &load.extent {
            Extent::Tile(extents) => extents.len() as u32,
            Extent::Im2col { .. } => 0,
        },
        channel,
        column,
        row,
        image,
        column_offset: load.offsets[0],
        row_offset: load.offsets[1],
    };
    launch(driver, "probe_load", dump.len(), &arguments)?;
    driver.download(target.address(), &mut dump)?;
    let mut said = [0; 4];
    driver.download(status.address(), &mut said)?;
    let show = |word: [u8; 4]| {
        let [a, b, c, d] = word;
        format!("{} and {}", u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
    };
    Ok(Answer::compare(load.describe(), dump, &load.predict(), u32::from_ne_bytes(said) == 1, show))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(what: &str, tiled_in: usize) -> Load {
        let found = cases().into_iter().find(|case| {
            let dimensions = case.extent_dimensions();
            case.what == what && dimensions == tiled_in && case.swizzle == Swizzle::Bytes128
        });
        found.unwrap_or_else(|| panic!("there is no case {what}"))
    }

    impl Load {
        fn extent_dimensions(&self) -> usize {
            match &self.extent {
                Extent::Tile(extents) => extents.len(),
                Extent::Im2col { .. } => 0,
            }
        }
    }

    /// The element at this byte of shared memory.
    fn at(buffer: &[u8], byte: usize) -> u16 {
        u16::from_le_bytes([buffer[byte], buffer[byte + 1]])
    }

    #[test]
    fn a_tile_is_swizzled_and_zero_outside_the_tensor() {
        let load = case("zeros left and above", 4);
        assert_eq!(load.copied_bytes(), 2 * 64 * 8 * 4);
        let buffer = load.predict();
        // Row of 128 bytes for pixel (x, y): 8 y + x, from (-1, -1).
        assert!((0..8 * 128).all(|byte| buffer[byte] == 0), "row -1");
        assert!((8 * 128..9 * 128).all(|byte| buffer[byte] == 0), "column -1");
        // Pixel (0, 0) is in row 9 of the pattern, 1 of 8: pieces are exchanged in pairs.
        assert_eq!(at(&buffer, 9 * 128 + 16), 1);
        assert_eq!(at(&buffer, 9 * 128), 1 + 8);
        // Pixel (1, 0), channel 0, is in row 10: its piece 0 is at 2.
        assert_eq!(at(&buffer, 10 * 128 + 32), 1 + 128);
        // Pixel (6, 2), channel 63, is in row 31.
        assert_eq!(at(&buffer, 31 * 128 + 14), 1 + 63 + 128 * (6 + 7 * 2));
        assert!(buffer[load.copied_bytes()..].iter().all(|&byte| byte == UNTOUCHED));
    }

    #[test]
    fn two_dimensions_count_pixels() {
        let buffer = case("past the last pixel", 2).predict();
        assert_eq!(at(&buffer, 0), 1 + 128 * 60);
        assert_eq!(at(&buffer, 9 * 128 + 16), 1 + 128 * 69);
        assert_eq!(at(&buffer, 10 * 128), 0);
    }

    #[test]
    fn im2col_reads_what_a_convolution_reads() {
        // Output pixel p of image n of a 3 x 3 convolution with padding 1 and stride 1 has as many outputs as inputs.
        for (what, (r, s), stride) in [("first tap", (0, 0), 1), ("middle tap", (1, 1), 1), ("stride 2", (0, 1), 2)] {
            let load = case(what, 0);
            let coordinates = load.coordinates();
            let (wide, high) = (7usize.div_ceil(stride), 5usize.div_ceil(stride));
            for (pixel, of_pixel) in coordinates.chunks(64).enumerate() {
                let (q, p) = (pixel % wide, pixel / wide % high);
                let x = (q * stride) as i32 - 1 + s;
                let y = (p * stride) as i32 - 1 + r;
                assert_eq!(of_pixel[5], [5, x, y, (pixel / (wide * high)) as i32], "{what}, pixel {pixel}");
            }
        }
        let last = case("past the last image", 0);
        assert_eq!(last.predict()[last.copied_bytes() - 128..last.copied_bytes()], [0; 128]);
    }

    /// The driver refuses other maps.
    #[test]
    fn cases_keep_the_limits_of_tensor_maps() {
        for case in cases() {
            let (inner, others) = match &case.extent {
                Extent::Tile(extents) => (extents[0], extents[1..].to_vec()),
                Extent::Im2col { channels, pixels, .. } => (*channels, vec![(*pixels).min(256)]),
            };
            let bytes = 2 * inner as usize;
            assert!(bytes.is_multiple_of(16) && others.iter().all(|&extent| extent <= 256), "{case:?}");
            assert!(case.swizzle == Swizzle::None || bytes <= span(case.swizzle), "{case:?}");
            assert!(case.destination.is_multiple_of(128) && case.buffer_bytes() < 48 << 10, "{case:?}");
        }
        assert!(SIZES.iter().product::<usize>() < usize::from(u16::MAX), "elements have different bits");
    }
}
