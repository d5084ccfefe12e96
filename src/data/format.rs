//! What kind of file it is: by its first bytes, whatever its name says, and by its extension only where those tell nothing.
//!
//! One table, [`KINDS`], holds the formats that are decoded and those that people have in their folders beside them, so that
//! a refusal or a count of skipped files can name them and say what to do.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How many bytes of a file's beginning are enough to recognise it.
pub const HEAD_BYTES: usize = 4096;

/// The formats that are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JPEG: JFIF, EXIF, Adobe, plain.
    Jpeg,
    /// PNG; of an animation the first frame.
    Png,
    /// GIF; of an animation the first frame.
    Gif,
    /// Windows and OS/2 bitmaps.
    Bmp,
    /// TIFF and BigTIFF; the first page.
    Tiff,
    /// WebP; of an animation the first frame.
    WebP,
    /// Portable bitmaps, greymaps, pixmaps and anymaps.
    Pnm,
}

/// A kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileKind {
    /// Its name, as in `9 HEIC, 3 PDF`.
    pub name: &'static str,
    /// Its name with an article, as in `found a PDF document`.
    pub noun: &'static str,
    /// The usual extensions, in lower case, without a dot.
    pub extensions: &'static [&'static str],
    /// How it is decoded. Nothing decodes the others.
    pub format: Option<Format>,
    /// What to do with one that is not decoded.
    pub advice: &'static str,
    signature: Signature,
}

/// What the first bytes of a kind of file look like.
#[derive(Debug, Clone, Copy)]
enum Signature {
    /// The file begins with one of these.
    Begins(&'static [&'static [u8]]),
    /// These bytes are at this place.
    At(usize, &'static [u8]),
    /// Something that takes more than a comparison.
    Test(fn(&[u8]) -> bool),
}

impl PartialEq for Signature {
    /// Kinds are told apart by their names.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Signature {}

impl Signature {
    fn fits(&self, start: &[u8]) -> bool {
        match *self {
            Self::Begins(beginnings) => beginnings.iter().any(|beginning| start.starts_with(beginning)),
            Self::At(place, bytes) => start.get(place..).is_some_and(|rest| rest.starts_with(bytes)),
            Self::Test(test) => test(start),
        }
    }
}

const CONVERT: &str = "convert it to JPEG or PNG, for example with ImageMagick: magick IN OUT.png";
const CONVERT_PHOTO: &str = "convert it to JPEG, for example with ImageMagick: magick IN OUT.jpg";
const DEVELOP: &str = "export it as JPEG or TIFF with the program that develops your raw photos";
const EXTRACT: &str = "save frames of it as JPEG, for example: ffmpeg -i IN -vf fps=1 OUT-%04d.jpg";
const UNPACK: &str = "unpack it; images are read from folders";
const REMOVE: &str = "remove it; it holds no image";
const DOWNLOAD: &str = "download the image again; what was saved is not the image";
const RESTORE: &str = "copy or download the file again; its content is lost";

const fn decoded(
    format: Format,
    name: &'static str,
    noun: &'static str,
    extensions: &'static [&'static str],
    signature: Signature,
) -> FileKind {
    FileKind { name, noun, extensions, format: Some(format), advice: "", signature }
}

const fn other(
    name: &'static str,
    noun: &'static str,
    extensions: &'static [&'static str],
    signature: Signature,
    advice: &'static str,
) -> FileKind {
    FileKind { name, noun, extensions, format: None, advice, signature }
}

use Signature::{At, Begins, Test};

/// Every kind of file that is known, the more special ones first.
#[rustfmt::skip]
pub const KINDS: &[FileKind] = &[
    other("empty", "an empty file", &[], Test(<[u8]>::is_empty), RESTORE),
    other("zero-filled", "nothing but zero bytes", &[], Test(is_zeros), RESTORE),

    decoded(Format::Jpeg, "JPEG", "a JPEG image", &["jpg", "jpeg", "jfif", "jpe"], Begins(&[b"\xFF\xD8\xFF"])),
    other("Apple's PNG", "a PNG image in Apple's own variant", &[], Test(is_apple_png), CONVERT),
    decoded(Format::Png, "PNG", "a PNG image", &["png", "apng"], Begins(&[b"\x89PNG\r\n\x1A\n"])),
    other("damaged PNG", "a PNG image whose line ends were changed in transfer", &[],
        Begins(&[b"\x89PNG\n", b"\x89PNG\r\x1A", b"\x89PNG\r\r", b"\x89PNG\x0D\x0D"]), RESTORE),
    decoded(Format::Gif, "GIF", "a GIF image", &["gif"], Begins(&[b"GIF87a", b"GIF89a"])),
    decoded(Format::WebP, "WebP", "a WebP image", &["webp"], Test(|start| is_riff(start, b"WEBP"))),

    // Photos of cameras: most begin as a TIFF, which would show the small preview only.
    other("Canon raw", "a raw photo of a Canon camera", &["cr2", "cr3", "crw"], Test(is_canon), DEVELOP),
    other("DNG", "a raw photo (DNG)", &["dng"], Test(is_dng), DEVELOP),
    other("Nikon raw", "a raw photo of a Nikon camera", &["nef", "nrw"], Test(|start| is_raw_of(start, b"NIKON")), DEVELOP),
    other("Sony raw", "a raw photo of a Sony camera", &["arw", "srf", "sr2"], Test(|start| is_raw_of(start, b"SONY")), DEVELOP),
    other("Pentax raw", "a raw photo of a Pentax camera", &["pef"], Test(|start| is_raw_of(start, b"PENTAX")), DEVELOP),
    other("Samsung raw", "a raw photo of a Samsung camera", &["srw"], Test(|start| is_raw_of(start, b"SAMSUNG")), DEVELOP),
    other("Olympus raw", "a raw photo of an Olympus camera", &["orf"], Begins(&[b"IIRO", b"IIRS", b"MMOR"]), DEVELOP),
    other("Panasonic raw", "a raw photo of a Panasonic camera", &["rw2", "raw"], Begins(&[b"IIU\0"]), DEVELOP),
    other("Fujifilm raw", "a raw photo of a Fujifilm camera", &["raf"], Begins(&[b"FUJIFILMCCD-RAW"]), DEVELOP),
    other("Sigma raw", "a raw photo of a Sigma camera", &["x3f"], Begins(&[b"FOVb"]), DEVELOP),
    other("Minolta raw", "a raw photo of a Minolta camera", &["mrw"], Begins(&[b"\0MRM"]), DEVELOP),
    other("JPEG XR", "a JPEG XR image", &["jxr", "wdp", "hdp"], Begins(&[b"II\xBC"]), CONVERT_PHOTO),
    decoded(Format::Tiff, "TIFF", "a TIFF image", &["tif", "tiff"], Begins(&[b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"])),

    other("AVIF", "an AVIF image", &["avif", "avifs"], Test(|start| has_brand(start, &[b"avif", b"avis"])), CONVERT_PHOTO),
    other("HEIC", "a HEIC image", &["heic", "heif", "hif", "heics", "heifs"], Test(is_heic), CONVERT_PHOTO),
    other("JPEG XL", "a JPEG XL image", &["jxl"], Begins(&[b"\xFF\x0A", b"\0\0\0\x0CJXL \r\n\x87\n"]), CONVERT_PHOTO),
    other("JPEG 2000", "a JPEG 2000 image", &["jp2", "j2k", "jpf", "jpx", "j2c", "jpc", "jpm"],
        Begins(&[b"\0\0\0\x0CjP  \r\n\x87\n", b"\xFF\x4F\xFF\x51"]), CONVERT_PHOTO),
    other("JPEG-LS", "a JPEG-LS image", &["jls"], Begins(&[b"\xFF\xD8\xF7"]), CONVERT),
    other("BPG", "a BPG image", &["bpg"], Begins(&[b"BPG\xFB"]), CONVERT_PHOTO),
    other("PSD", "a Photoshop document", &["psd", "psb"], Begins(&[b"8BPS"]), CONVERT),
    other("XCF", "a GIMP document", &["xcf"], Begins(&[b"gimp xcf"]), CONVERT),
    other("ICO", "an icon (ICO)", &["ico", "cur"], Test(is_icon), CONVERT),
    other("ICNS", "an icon (ICNS)", &["icns"], Begins(&[b"icns"]), CONVERT),
    other("MNG", "an MNG or JNG image", &["mng", "jng"], Begins(&[b"\x8AMNG\r\n", b"\x8BJNG\r\n"]), CONVERT),
    other("EXR", "an OpenEXR image", &["exr"], Begins(&[b"\x76\x2F\x31\x01"]), CONVERT),
    other("HDR", "a Radiance HDR image", &["hdr", "rgbe"], Begins(&[b"#?RADIANCE", b"#?RGBE"]), CONVERT),
    other("QOI", "a QOI image", &["qoi"], Begins(&[b"qoif"]), CONVERT),
    other("DDS", "a DDS texture", &["dds"], Begins(&[b"DDS "]), CONVERT),
    other("KTX", "a KTX texture", &["ktx", "ktx2"], Begins(&[b"\xABKTX "]), CONVERT),
    other("PCX", "a PCX image", &["pcx"], Begins(&[b"\x0A\x05\x01", b"\x0A\x03\x01", b"\x0A\x02\x01"]), CONVERT),
    other("SGI", "an SGI image", &["sgi", "rgb", "rgba", "bw"], Begins(&[b"\x01\xDA\0\x01", b"\x01\xDA\x01\x01", b"\x01\xDA\0\x02", b"\x01\xDA\x01\x02"]), CONVERT),
    other("Sun raster", "a Sun raster image", &["ras"], Begins(&[b"\x59\xA6\x6A\x95"]), CONVERT),
    other("farbfeld", "a farbfeld image", &["ff"], Begins(&[b"farbfeld"]), CONVERT),
    other("FLIF", "a FLIF image", &["flif"], Begins(&[b"FLIF"]), CONVERT),
    other("DjVu", "a DjVu document", &["djvu", "djv"], Begins(&[b"AT&TFORM"]), CONVERT),
    other("DICOM", "a DICOM image", &["dcm", "dicom"], At(128, b"DICM"), CONVERT),
    other("NIfTI", "a NIfTI volume", &["nii"], At(344, b"n+1\0"), CONVERT),
    other("FITS", "a FITS image", &["fits", "fit", "fts"], Begins(&[b"SIMPLE  ="]), CONVERT),
    other("EMF", "a Windows metafile", &["emf", "wmf"], Test(is_metafile), CONVERT),
    other("XPM", "an XPM image", &["xpm"], Begins(&[b"/* XPM */"]), CONVERT),
    other("TGA", "a Targa image", &["tga", "icb", "vda", "vst"], Test(|_| false), CONVERT),
    other("PFM", "a PFM image", &["pfm"], Begins(&[b"PF\n", b"Pf\n", b"PF ", b"Pf ", b"PF4\n"]), CONVERT),
    decoded(Format::Pnm, "PNM", "a PNM image", &["ppm", "pgm", "pbm", "pnm", "pam"], Test(is_pnm)),
    decoded(Format::Bmp, "BMP", "a BMP image", &["bmp", "dib"], Test(is_bmp)),

    other("SVG", "an SVG drawing", &["svg", "svgz"], Test(|start| is_markup(start, &["<svg", "<!doctype svg"])), CONVERT),
    other("HTML", "an HTML page", &["html", "htm", "xhtml"],
        Test(|start| is_markup(start, &["<!doctype html", "<html", "<head", "<body", "<script", "<title", "<meta", "<div", "<p>"])), DOWNLOAD),
    other("XML", "an XML document", &["xml"], Test(is_xml), DOWNLOAD),
    other("PDF", "a PDF document", &["pdf"], Begins(&[b"%PDF-"]), CONVERT),
    other("PostScript", "a PostScript document", &["ps", "eps", "ai"], Begins(&[b"%!PS", b"\xC5\xD0\xD3\xC6"]), CONVERT),
    other("Git LFS pointer", "a Git LFS pointer instead of the image", &[], Begins(&[b"version https://git-lfs", b"version https://hawser"]),
        "fetch the images with: git lfs pull"),
    other("DVC pointer", "a DVC pointer instead of the image", &["dvc"], Begins(&[b"outs:\n- "]), "fetch the images with: dvc pull"),
    other("AppleDouble", "an AppleDouble file, which macOS keeps beside the image", &[], Begins(&[b"\0\x05\x16\x07", b"\0\x05\x16\x00"]), REMOVE),
    other(".DS_Store", "a .DS_Store file of macOS", &[], Begins(&[b"\0\0\0\x01Bud1"]), REMOVE),
    other("Windows shortcut", "a Windows shortcut", &["lnk", "url"], Begins(&[b"L\0\0\0\x01\x14\x02\0", b"[InternetShortcut]"]), "copy the file it points to into its place"),
    other("data URL", "an image written as text (a data: URL)", &[], Begins(&[b"data:image/", b"data:application/"]), "decode its base64 part to a file"),

    other("sound", "a sound file", &["wav", "mp3", "flac", "m4a"], Test(is_sound), REMOVE),
    other("QuickTime video", "a QuickTime video", &["mov", "qt"], Test(is_quicktime), EXTRACT),
    other("MP4 video", "an MP4 video", &["mp4", "m4v", "3gp", "3g2"], At(4, b"ftyp"), EXTRACT),
    other("WebM video", "a WebM or Matroska video", &["webm", "mkv"], Begins(&[b"\x1A\x45\xDF\xA3"]), EXTRACT),
    other("AVI video", "an AVI video", &["avi"], Test(|start| is_riff(start, b"AVI ")), EXTRACT),
    other("MPEG video", "an MPEG video", &["mpg", "mpeg", "m2v", "ts", "mts", "m2ts"], Begins(&[b"\0\0\x01\xBA", b"\0\0\x01\xB3"]), EXTRACT),
    other("FLV video", "a Flash video", &["flv"], Begins(&[b"FLV\x01"]), EXTRACT),
    other("WMV video", "a Windows Media video", &["wmv", "asf"], Begins(&[b"\x30\x26\xB2\x75\x8E\x66\xCF\x11"]), EXTRACT),
    other("Ogg", "an Ogg video or sound", &["ogv", "ogg", "oga", "opus"], Begins(&[b"OggS"]), EXTRACT),

    other("ZIP", "a ZIP archive", &["zip"], Begins(&[b"PK\x03\x04", b"PK\x05\x06"]), UNPACK),
    other("RAR", "a RAR archive", &["rar"], Begins(&[b"Rar!\x1A\x07"]), UNPACK),
    other("7z", "a 7z archive", &["7z"], Begins(&[b"7z\xBC\xAF\x27\x1C"]), UNPACK),
    other("gzip", "a gzip-compressed file", &["gz", "tgz"], Begins(&[b"\x1F\x8B\x08"]), UNPACK),
    other("bzip2", "a bzip2-compressed file", &["bz2"], Begins(&[b"BZh"]), UNPACK),
    other("xz", "an xz-compressed file", &["xz"], Begins(&[b"\xFD7zXZ\0"]), UNPACK),
    other("zstd", "a zstd-compressed file", &["zst"], Begins(&[b"\x28\xB5\x2F\xFD"]), UNPACK),
    other("tar", "a tar archive", &["tar"], At(257, b"ustar"), UNPACK),
    other("NumPy array", "a NumPy array", &["npy", "npz"], Begins(&[b"\x93NUMPY"]), "save the array as PNG, for example with Pillow: Image.fromarray(array).save(OUT)"),
    other("HDF5", "an HDF5 file", &["h5", "hdf5", "hdf"], Begins(&[b"\x89HDF\r\n\x1A\n"]), UNPACK),
    other("SQLite database", "an SQLite database", &["sqlite", "db"], Begins(&[b"SQLite format 3\0"]), REMOVE),
    other("Office document", "an Office document or thumbnail store", &["doc", "xls", "ppt"], Begins(&[b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1"]), REMOVE),
    other("program", "a program", &["exe", "dll", "so"], Begins(&[b"\x7FELF", b"MZ\x90\0"]), REMOVE),
    other("JSON", "a JSON document", &["json"], Test(is_json), DOWNLOAD),
    other("CSV", "a CSV table", &["csv", "tsv"], Test(|_| false), REMOVE),
    other("text", "a text file", &["txt", "md"], Test(is_text), DOWNLOAD),
];

/// The names of the formats that are decoded.
pub const DECODED: &str = "JPEG, PNG, GIF, BMP, TIFF, WebP or PNM";

impl FileKind {
    /// The kind of a file by its first bytes, of which [`HEAD_BYTES`] are enough.
    pub fn of(start: &[u8]) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.signature.fits(start))
    }

    /// Whether it shows one image, decoded or not: no video, text or archive.
    pub fn is_image(&self) -> bool {
        self.format.is_some() || [CONVERT, CONVERT_PHOTO, DEVELOP].contains(&self.advice)
    }

    /// Whether the name of a file ends as that of an image that is decoded.
    pub fn is_named_as_image(path: &Path) -> bool {
        Self::by_extension(path).is_some_and(|kind| kind.format.is_some())
    }

    /// The extensions of the images that are decoded, with dots and spaces between them.
    pub fn image_extensions() -> String {
        let decoded = KINDS.iter().filter(|kind| kind.format.is_some());
        decoded.flat_map(|kind| kind.extensions).map(|extension| format!(".{extension}")).collect::<Vec<_>>().join(" ")
    }

    /// The kind of a file by the extension of its name.
    pub fn by_extension(path: &Path) -> Option<&'static Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        KINDS.iter().find(|kind| kind.extensions.contains(&extension.as_str()))
    }

    /// The kind of a file: by its first bytes if it can be read and they tell, else by its extension.
    pub fn of_file(path: &Path) -> Option<&'static Self> {
        let mut start = Vec::with_capacity(HEAD_BYTES);
        let is_file = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        let is_read =
            is_file && File::open(path).is_ok_and(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut start).is_ok());
        match is_read.then(|| Self::of(&start)).flatten() {
            // A text says less than the name of a CSV.
            Some(kind) if kind.name != "text" => Some(kind),
            kind => Self::by_extension(path).filter(|named| named.format.is_none() || kind.is_none()).or(kind),
        }
    }

    /// The name for a count of files: of the kind, else the extension in capitals.
    pub fn name_of_file(path: &Path) -> String {
        match (Self::of_file(path), path.extension()) {
            (Some(kind), _) => kind.name.into(),
            (None, Some(extension)) => extension.to_string_lossy().to_uppercase(),
            (None, None) => "unknown".into(),
        }
    }
}

fn is_zeros(start: &[u8]) -> bool {
    start.len() >= 16 && start.iter().all(|&byte| byte == 0)
}

fn is_riff(start: &[u8], form: &[u8; 4]) -> bool {
    start.starts_with(b"RIFF") && start.get(8..12) == Some(form)
}

/// A chunk before the header tells of samples in another order, without checksums.
fn is_apple_png(start: &[u8]) -> bool {
    start.starts_with(b"\x89PNG\r\n\x1A\n") && start.get(12..16) == Some(b"CgBI")
}

/// The brands of an ISO media file: the major one and the compatible ones.
fn brands(start: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_media = start.get(4..8) == Some(b"ftyp");
    let length = start.get(..4).map_or(0, |length| u32::from_be_bytes([length[0], length[1], length[2], length[3]]));
    let list = start.get(8..start.len().min(length as usize)).filter(|_| is_media).unwrap_or_default();
    // The second is the version of the first.
    list.chunks_exact(4).enumerate().filter(|(place, _)| *place != 1).map(|(_, brand)| brand)
}

fn has_brand(start: &[u8], wanted: &[&[u8; 4]]) -> bool {
    brands(start).any(|brand| wanted.iter().any(|wanted| brand == *wanted))
}

fn is_heic(start: &[u8]) -> bool {
    const HEIC: &[&[u8; 4]] =
        &[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1", b"miaf"];
    // A video may be compatible with one of these brands.
    brands(start).next().is_some_and(|major| HEIC.iter().any(|brand| major == *brand))
}

fn is_quicktime(start: &[u8]) -> bool {
    const ATOMS: [&[u8]; 5] = [b"moov", b"mdat", b"wide", b"pnot", b"skip"];
    brands(start).next() == Some(b"qt  ") || start.get(4..8).is_some_and(|atom| ATOMS.contains(&atom))
}

fn is_canon(start: &[u8]) -> bool {
    (start.starts_with(b"II*\0") && start.get(8..10) == Some(b"CR"))
        || start.get(6..14) == Some(b"HEAPCCDR")
        || brands(start).next() == Some(b"crx ")
}

fn is_dng(start: &[u8]) -> bool {
    const DNG_VERSION: u16 = 50706;
    tiff_entries(start).any(|(tag, _)| tag == DNG_VERSION)
}

/// A TIFF by this maker of cameras whose first image is a preview, beside others in sub-directories.
fn is_raw_of(start: &[u8], maker: &[u8]) -> bool {
    const MAKE: u16 = 271;
    const SUB_DIRECTORIES: u16 = 330;
    const EXIF: u16 = 34665;
    let has = |wanted| tiff_entries(start).any(|(tag, _)| tag == wanted);
    let is_made = tiff_entries(start)
        .any(|(tag, place)| tag == MAKE && start.get(place as usize..).is_some_and(|name| name.starts_with(maker)));
    is_made && has(SUB_DIRECTORIES) && has(EXIF)
}

/// The tags of a TIFF's first directory, and what stands in the field of the value. Empty where the directory lies further on.
fn tiff_entries(start: &[u8]) -> impl Iterator<Item = (u16, u32)> {
    let is_little = start.starts_with(b"II*\0");
    let is_tiff = is_little || start.starts_with(b"MM\0*");
    let u16_of = move |bytes: &[u8]| {
        let bytes = [bytes[0], bytes[1]];
        if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) }
    };
    let u32_of = move |bytes: &[u8]| {
        let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
        if is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) }
    };
    let directory = start.get(4..8).filter(|_| is_tiff).and_then(|place| start.get(u32_of(place) as usize..));
    let (count, entries) = directory.and_then(|directory| directory.split_at_checked(2)).unwrap_or((&[0, 0], &[]));
    let count = u16_of(count);
    entries.chunks_exact(12).take(count.into()).map(move |entry| (u16_of(entry), u32_of(&entry[8..])))
}

fn is_icon(start: &[u8]) -> bool {
    // No more than a few images, and a byte that has to be zero.
    matches!(start, [0, 0, 1 | 2, 0, 1..=64, 0, _, _, _, 0, ..])
}

fn is_metafile(start: &[u8]) -> bool {
    start.starts_with(b"\xD7\xCD\xC6\x9A") || (start.starts_with(b"\x01\0\0\0") && start.get(40..44) == Some(b" EMF"))
}

fn is_pnm(start: &[u8]) -> bool {
    matches!(start, [b'P', b'1'..=b'7', b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C | b'#', ..])
}

/// Two letters are few: the length of the header has to be one that exists.
fn is_bmp(start: &[u8]) -> bool {
    start.starts_with(b"BM") && matches!(start.get(14..18), Some([12 | 16 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0]))
}

fn is_sound(start: &[u8]) -> bool {
    is_riff(start, b"WAVE")
        || start.starts_with(b"ID3")
        || start.starts_with(b"fLaC")
        || matches!(brands(start).next(), Some(b"M4A " | b"M4B "))
}

/// The text without a mark of its encoding and without the space before it.
fn text(start: &[u8]) -> &[u8] {
    start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(start).trim_ascii_start()
}

fn begins(text: &[u8], tag: &str) -> bool {
    text.get(..tag.len()).is_some_and(|it| it.eq_ignore_ascii_case(tag.as_bytes()))
}

/// Whether a document's first element, after declarations and comments, is one of these.
fn is_markup(start: &[u8], tags: &[&str]) -> bool {
    let mut text = text(start);
    while let Some(end) = [("<?", "?>"), ("<!--", "-->")].iter().find_map(|&(open, close)| {
        begins(text, open).then(|| memchr::memmem::find(text, close.as_bytes()).map(|place| place + close.len()))?
    }) {
        text = text[end..].trim_ascii_start();
    }
    tags.iter().any(|tag| begins(text, tag))
}

fn is_xml(start: &[u8]) -> bool {
    begins(text(start), "<?xml") || is_markup(start, &["<error", "<annotation"])
}

fn is_json(start: &[u8]) -> bool {
    let text = text(start);
    let mut rest = text.get(1..).unwrap_or_default().trim_ascii_start().iter();
    is_text(start)
        && matches!(
            (text.first(), rest.next()),
            (Some(b'{'), Some(b'"' | b'}')) | (Some(b'['), Some(b'{' | b'"' | b']'))
        )
}

/// Letters, signs and the spaces between them, in any encoding that agrees with ASCII.
fn is_text(start: &[u8]) -> bool {
    let is_control = |byte: &u8| byte.is_ascii_control() && !matches!(byte, b'\t' | b'\n' | b'\r' | 0x0C);
    let valid = match std::str::from_utf8(start) {
        Ok(_) => true,
        // The last character may be cut.
        Err(cause) => cause.error_len().is_none(),
    };
    valid && !start.iter().any(is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(start: &[u8]) -> Option<&'static str> {
        FileKind::of(start).map(|kind| kind.name)
    }

    /// A TIFF's first directory: tag and value of each entry.
    fn tiff(entries: &[(u16, u32)], rest: &[u8]) -> Vec<u8> {
        let mut file = b"II*\0\x08\0\0\0".to_vec();
        file.extend((entries.len() as u16).to_le_bytes());
        for (tag, value) in entries {
            file.extend([&tag.to_le_bytes()[..], &[4, 0, 1, 0, 0, 0], &value.to_le_bytes()].concat());
        }
        [file, vec![0; 4], rest.to_vec()].concat()
    }

    #[test]
    fn kinds_are_told_by_content() {
        let maker = 8 + 2 + 3 * 12 + 4;
        let nikon = tiff(&[(271, maker), (330, 0), (34665, 0)], b"NIKON CORPORATION\0");
        let scanner = tiff(&[(256, 1), (271, maker), (305, 0)], b"NIKON CORPORATION\0");
        let dng = tiff(&[(50706, 0x401)], b"");
        let files: &[(&[u8], &str)] = &[
            (b"", "empty"),
            (&[0; 64], "zero-filled"),
            (b"\xFF\xD8\xFF\xE0\0\x10JFIF", "JPEG"),
            (b"\x89PNG\r\n\x1A\n\0\0\0\x0DIHDR", "PNG"),
            (b"\x89PNG\r\n\x1A\n\0\0\0\x04CgBI", "Apple's PNG"),
            (b"\x89PNG\n\x1A\n", "damaged PNG"),
            (b"GIF89a", "GIF"),
            (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
            (b"RIFF\0\0\0\0AVI LIST", "AVI video"),
            (b"RIFF\0\0\0\0WAVEfmt ", "sound"),
            (b"II+\0\x08\0\0\0", "TIFF"),
            (b"MM\0*\0\0\0\x08", "TIFF"),
            (b"II*\0\x10\0\0\0CR\x02\0", "Canon raw"),
            (&dng, "DNG"),
            (&nikon, "Nikon raw"),
            (&scanner, "TIFF"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
            (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
            (b"\0\0\0\x1Cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
            (b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf", "AVIF"),
            (b"\0\0\0\x18ftypcrx \0\0\0\0crx isom", "Canon raw"),
            (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "QuickTime video"),
            (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "MP4 video"),
            (b"\0\0\0\x18ftypM4A \0\0\0\0isommp42", "sound"),
            (b"\x1A\x45\xDF\xA3\x01", "WebM video"),
            (b"\xFF\x0A\xFA", "JPEG XL"),
            (b"\0\0\0\x0CJXL \r\n\x87\n", "JPEG XL"),
            (b"\0\0\0\x0CjP  \r\n\x87\n", "JPEG 2000"),
            (b"\xFF\x4F\xFF\x51\0", "JPEG 2000"),
            (b"8BPS\0\x01", "PSD"),
            (b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0", "ICO"),
            (b"\xEF\xBB\xBF<?xml version='1.0'?>\n<!-- drawn -->\n<svg xmlns=", "SVG"),
            (b"<svg width='1'>", "SVG"),
            (b"<?xml version='1.0'?><!DOCTYPE html PUBLIC", "HTML"),
            (b"\n<!DOCTYPE HTML>", "HTML"),
            (b"<?xml version='1.0'?><Error><Code>AccessDenied", "XML"),
            (b"%PDF-1.7", "PDF"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "Git LFS pointer"),
            (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "AppleDouble"),
            (b"{\"error\": 1}", "JSON"),
            (b"[1, 2] is a reference", "text"),
            (b"P6\n3 2\n255\n", "PNM"),
            (b"P6 is a bus line", "PNM"),
            (b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", "BMP"),
            (b"BMW and other makers of cars", "text"),
            ("gr\u{fc}n".as_bytes(), "text"),
        ];
        for (start, expected) in files {
            assert_eq!(name(start), Some(*expected), "{}", start.escape_ascii());
        }
        assert_eq!(name(b"\x80\x81\x82\x83\x84"), None);
        // Neither places beyond the end nor lengths that lie do harm.
        for (start, _) in files {
            for end in 0..start.len() {
                name(&start[..end]);
            }
        }
        let far = tiff(&[(271, u32::MAX)], b"");
        assert_eq!(name(&far), Some("TIFF"));
    }

    #[test]
    fn every_kind_can_be_named_and_says_what_to_do() {
        for (place, kind) in KINDS.iter().enumerate() {
            assert_eq!(kind.format.is_none(), !kind.advice.is_empty(), "{}", kind.name);
            for extension in kind.extensions {
                assert_eq!(*extension, extension.to_lowercase());
                let first = KINDS.iter().position(|kind| kind.extensions.contains(extension));
                assert_eq!(first, Some(place), "{extension} is in the table twice");
            }
        }
    }

    #[test]
    fn the_content_of_a_file_counts_before_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let named = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            FileKind::name_of_file(&path)
        };
        assert_eq!(named("a.jpg", b"GIF89a\x01\0"), "GIF");
        assert_eq!(named("a.HEIC", b"\x80\x81\x82"), "HEIC");
        assert_eq!(named("a.csv", b"path,label\n"), "CSV");
        assert_eq!(named("a.jpg", b"not found"), "text");
        assert_eq!(named("a.jpg", b"\x80\x81\x82"), "JPEG");
        assert_eq!(named("a.xyz", b"\x80\x81\x82"), "XYZ");
        assert_eq!(named("a", b"\x80\x81\x82"), "unknown");
        assert_eq!(named("a", b"\xFF\xD8\xFF\xE0"), "JPEG");
        assert_eq!(FileKind::name_of_file(&folder.path().join("none.heic")), "HEIC");
    }
}
