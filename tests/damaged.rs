//! Thousands of damaged files for every parser. Each must give an error or other content, but no panic, no message of
//! several lines, and no allocation of a size that only a header claims. `RETUNE_FUZZ_ROUNDS` sets the number of
//! rounds; the targets in `fuzz/` search further.

mod images;
mod parsers;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;

/// Measures the allocations of the thread.
struct Meter;

thread_local! {
    static ALIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn note(bytes: isize) {
    // While a thread ends, its counter no longer exists.
    let _ = ALIVE.try_with(|alive| {
        alive.set(alive.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(alive.get())));
    });
}

// SAFETY: all calls are passed on to the system allocator.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: guaranteed by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: guaranteed by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size as isize - layout.size() as isize);
        // SAFETY: guaranteed by the caller.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        // SAFETY: guaranteed by the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static METER: Meter = Meter;

/// The most memory allocated at once, in addition to what was allocated before.
fn peak_of<T>(action: impl FnOnce() -> T) -> (T, usize) {
    let before = ALIVE.get();
    PEAK.set(before);
    let result = action();
    (result, (PEAK.get() - before) as usize)
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % end
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Headers are at the beginning and, in zip archives, at the end.
    fn place(&mut self, length: usize) -> usize {
        let near_an_end = self.below(length.min(3000));
        match self.below(4) {
            0 => self.below(length),
            1 => length - 1 - near_an_end,
            _ => near_an_end,
        }
    }

    /// Overwrites a place that may hold a number, such as a size, offset or count in a header.
    fn write_number(&mut self, bytes: &mut [u8]) {
        let number: u64 =
            self.one_of(&[0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX]);
        let width = self.one_of(&[2, 4, 8]);
        let mut number = number.to_le_bytes();
        if self.below(2) == 0 {
            number[..width].reverse();
        }
        let place = self.place(bytes.len());
        let end = bytes.len().min(place + width);
        bytes[place..end].copy_from_slice(&number[..end - place]);
    }

    /// Lengthens numbers in text, such as sizes, offsets and counts in JSON.
    fn lengthen_digits(&mut self, bytes: &mut Vec<u8>) {
        let start = self.below(bytes.len().min(20_000));
        if let Some(found) = bytes[start..].iter().position(u8::is_ascii_digit) {
            let digits = self.one_of(&[&b"9"[..], b"0", b"99999", b"18446744073709551615", b"-1", b"e308", b"."]);
            bytes.splice(start + found..start + found, digits.iter().copied());
        }
    }

    fn damage(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..1 + self.below(4) {
            if bytes.is_empty() {
                return;
            }
            match self.below(12) {
                0 => bytes.truncate(self.below(bytes.len())),
                1 => {
                    let (from, to) = (self.place(bytes.len()), self.place(bytes.len()));
                    let piece = bytes[from..(from + 1 + self.below(64)).min(bytes.len())].to_vec();
                    bytes.splice(to..to, piece);
                }
                2 => {
                    let (from, to) = (self.place(other.len()), self.place(bytes.len()));
                    let piece = other[from..(from + 1 + self.below(64)).min(other.len())].to_vec();
                    let end = (to + piece.len()).min(bytes.len());
                    bytes.splice(to..end, piece);
                }
                3 => {
                    let from = self.place(bytes.len());
                    bytes.drain(from..(from + 1 + self.below(16)).min(bytes.len()));
                }
                4..6 => self.write_number(bytes),
                6..8 => self.lengthen_digits(bytes),
                _ => {
                    let place = self.place(bytes.len());
                    bytes[place] = match self.below(4) {
                        0 => 0xff,
                        1 => bytes[place] ^ (1 << self.below(8)),
                        _ => self.below(256) as u8,
                    };
                }
            }
        }
    }
}

fn files_in(folder: &str, is_wanted: impl Fn(&str) -> bool) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.retain(|path| is_wanted(path.file_name().unwrap().to_str().unwrap()));
    assert!(!paths.is_empty(), "{}", folder.display());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Tries damaged versions of `sources`, which the parser accepts undamaged. No attempt may allocate more than
/// `most(file)`.
fn damage(parser: &str, sources: &[Vec<u8>], most: impl Fn(&[u8]) -> usize) {
    let rounds = std::env::var("RETUNE_FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(10_000);
    let (mut random, mut accepted, mut largest) = (Random(1), 0, (0, 0));
    for round in 0..rounds {
        let mut bytes = sources[round % sources.len()].clone();
        let other = &sources[random.below(sources.len())];
        random.damage(&mut bytes, other);
        let (outcome, peak) = peak_of(|| std::panic::catch_unwind(|| parsers::parse(parser, &bytes)));
        let Ok(found) = outcome else {
            let file = std::env::temp_dir().join(format!("retune-damaged-{parser}-{round}"));
            fs::write(&file, &bytes).unwrap();
            panic!("{parser}: see {}", file.display());
        };
        assert!(peak <= most(&bytes), "{parser}, round {round}: {peak} bytes for a file of {}", bytes.len());
        accepted += usize::from(found);
        largest = largest.max((peak, bytes.len()));
    }
    println!("{parser}: {rounds} damaged files, {accepted} still readable; at most {largest:?} (memory, file) bytes");
    assert!(accepted > rounds / 200 && accepted < rounds, "{parser}: {accepted} of {rounds} were readable");
}

/// The memory that a program may need for a file of this length: the bytes themselves, names, and for every few bytes a
/// number, a table entry or a pickle object.
fn in_proportion(file: &[u8]) -> usize {
    (96 << 10) + 8 * file.len()
}

#[test]
fn safetensors() {
    let mut sources = files_in("fuzz/seeds/safetensors", |_| true);
    sources.extend(files_in("tests/fixtures/pth", |name| name.ends_with(".safetensors")));
    damage("safetensors", &sources, in_proportion);
}

#[test]
fn pth() {
    let sources = files_in("tests/fixtures/pth", |name| name.ends_with(".pth"));
    damage("pth", &sources, in_proportion);
}

#[test]
fn references() {
    let mut sources = files_in("fuzz/seeds/reference", |_| true);
    sources.extend(files_in("tests/fixtures", |name| name == "head-only.safetensors"));
    damage("reference", &sources, in_proportion);
}

#[test]
fn checkpoints() {
    damage("checkpoint", &files_in("fuzz/seeds/checkpoint", |_| true), in_proportion);
}

#[test]
fn images() {
    let is_wanted = |name: &str| {
        let made = ["decoded-", "resized-", "tested-", "upright-", "drawn-"].iter().any(|part| name.starts_with(part));
        !made && !name.ends_with(".json") && !name.ends_with(".f32")
    };
    let sources = files_in("tests/fixtures/pillow", is_wanted);
    assert!(sources.len() > 40, "{}", sources.len());
    damage("image", &sources, of_image);
}

/// A decoder keeps a few copies of the largest allowed image, at up to eight bytes per pixel. WebP trusts more of a header: it allows eight
/// parts of up to 16 MiB and a frame of up to 16384 x 16384 pixels.
fn of_image(file: &[u8]) -> usize {
    match file {
        [b'R', b'I', b'F', b'F', ..] => ((8 * 16) << 20) + 2 * 16384 * 16384,
        _ => in_proportion(file) + 4 * 8 * (1 << 18),
    }
}

/// Every second image of the other formats.
#[test]
fn images_of_all_formats() {
    let cases = images::cases("images.zip").into_iter().filter(|case| case.expected.is_some());
    let sources: Vec<Vec<u8>> = cases.step_by(2).map(|case| case.file).collect();
    assert!(sources.len() > 300, "{}", sources.len());
    damage("image", &sources, of_image);
}

/// One of eleven of the JPEGs, which are of all samplings, scans and colours. The coefficients of a progressive one take up to eight bytes per
/// pixel.
#[test]
fn jpegs_of_all_kinds() {
    let is_read = |case: &images::Case| case.expected.is_some() && !case.name.starts_with("damaged");
    let sources: Vec<Vec<u8>> =
        images::cases("jpeg.zip").into_iter().filter(is_read).step_by(11).map(|case| case.file).collect();
    assert!(sources.len() > 100, "{}", sources.len());
    damage("image", &sources, of_image);
}

#[test]
fn archives() {
    // Decompression has windows and buffers of its own.
    damage("archive", &files_in("fuzz/seeds/archive", |_| true), |file| in_proportion(file) + (256 << 10));
}

#[test]
fn runs() {
    // The page contains its style and its curves, even for a short run.
    damage("run", &files_in("fuzz/seeds/run", |_| true), |file| in_proportion(file) + (64 << 10));
}
