//! Renders SVG to pixels with an embedded font, so that no installed font is needed.

use std::sync::{Arc, LazyLock};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

use crate::error::{Context, Error, Result};
use crate::printable::printable;

/// The embedded font's family name.
pub const FONT_FAMILY: &str = "Ubuntu";

static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
    fonts.set_sans_serif_family(FONT_FAMILY);
    Arc::new(fonts)
});

/// Renders an SVG at `scale` pixels per unit.
fn render(svg: &str, scale: f32) -> Result<Pixmap> {
    let options = Options { fontdb: FONTS.clone(), font_family: FONT_FAMILY.into(), ..Options::default() };
    let tree = Tree::from_str(svg, &options).context(|| "cannot parse the generated SVG")?;
    let size = tree.size();
    let pixels = |length: f32| (length * scale).round().max(1.0) as u32;
    let mut pixmap = Pixmap::new(pixels(size.width()), pixels(size.height()))
        .ok_or_else(|| Error::new(format!("the generated SVG is too large: {} x {}", size.width(), size.height())))?;
    resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixmap.as_mut());
    Ok(pixmap)
}

/// Renders an SVG to PNG.
pub fn png(svg: &str, scale: f32) -> Result<Vec<u8>> {
    render(svg, scale)?.encode_png().context(|| "cannot encode a PNG")
}

/// Renders an SVG to premultiplied RGBA; returns the pixels and the width.
pub fn rgba(svg: &str) -> Result<(Vec<u8>, u32)> {
    let pixmap = render(svg, 1.0)?;
    let width = pixmap.width();
    Ok((pixmap.take(), width))
}

/// Escapes text for XML.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML cannot represent these characters.
            '\u{FFFE}' | '\u{FFFF}' => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}
