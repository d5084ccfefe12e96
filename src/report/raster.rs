//! SVG to pixels, with a font of its own, so that no machine has to have one.

use std::sync::{Arc, LazyLock};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

use crate::error::{Context, Error, Result};

/// The family by which drawings name the font.
pub const FONT_FAMILY: &str = "Ubuntu";

static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
    let mut fonts = fontdb::Database::new();
    fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
    fonts.set_sans_serif_family(FONT_FAMILY);
    Arc::new(fonts)
});

/// Draws an SVG, `scale` pixels a unit.
fn draw(svg: &str, scale: f32) -> Result<Pixmap> {
    let options = Options { fontdb: FONTS.clone(), font_family: FONT_FAMILY.into(), ..Options::default() };
    let tree = Tree::from_str(svg, &options).context(|| "cannot read a drawing of its own")?;
    let size = tree.size();
    let pixels = |length: f32| (length * scale).round().max(1.0) as u32;
    let mut pixmap = Pixmap::new(pixels(size.width()), pixels(size.height()))
        .ok_or_else(|| Error::new(format!("a drawing of {} x {} is too large", size.width(), size.height())))?;
    resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixmap.as_mut());
    Ok(pixmap)
}

/// An SVG as PNG.
pub fn png(svg: &str, scale: f32) -> Result<Vec<u8>> {
    draw(svg, scale)?.encode_png().context(|| "cannot write a drawing as PNG")
}

/// An SVG as RGBA, premultiplied, with its width.
pub fn rgba(svg: &str) -> Result<(Vec<u8>, u32)> {
    let pixmap = draw(svg, 1.0)?;
    let width = pixmap.width();
    Ok((pixmap.take(), width))
}

/// Text as it stands in XML.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Characters that XML cannot hold at all.
            c if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}
