#!/usr/bin/env python3
"""Writes the images of tests/fixtures/images.zip: GIF, PNG, BMP, PNM, TIFF and WebP of every kind, damaged ones and turned ones, with
what Pillow decodes from each. The names of those that Pillow turns begin with `turned`.

In the archive, `files` has the files, one after the other, and `names` has a line for each: its length, the width, the height and the
first 16 digits of the SHA-256 of its RGB pixels (`-` if the file is to be refused), and its name. Where retune deliberately differs from
Pillow, this script gives the pixels and the reason.

Needs pillow and numpy. `--unpack FOLDER` writes the files and their pixels instead, and `--names` prints the lines.
"""

import hashlib
import io
import itertools
import json
import struct
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

warnings.simplefilter("ignore")
ARCHIVE = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "images.zip"
# Width and height: odd, so that rows end within bytes, blocks and tiles.
SIZE = (29, 19)

files = {}  # name: (bytes, why not as Pillow, expected pixels, or None if the file is to be refused)


def add(name, data, reason="", expected=None):
    """With a reason, the expected pixels are not Pillow's."""
    assert name not in files, name
    files[name] = (bytes(data), reason, expected)


def draw(width=SIZE[0], height=SIZE[1]):
    """Waves, an edge and a little texture, different in every channel: [height, width, 3] uint8."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = [90 + 80 * np.sin(x / (3 + i) + y / 7) + 60 * (((x // (5 + i)) + y // 4) % 2) for i in range(3)]
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


RGB = draw()
GREY = RGB[..., 1].copy()
ALPHA = np.clip(RGB[..., 2].astype(int) * 2 - 100, 0, 255).astype(np.uint8)
INDEX = (GREY // 20).astype(np.uint8)
PALETTE = [((i * 67) % 256, (i * 151 + 40) % 256, (255 - i * 31) % 256) for i in range(256)]
WIDE = (RGB.astype(np.uint32) * 257 + np.arange(RGB.size).reshape(RGB.shape) * 37 % 256).clip(0, 65535).astype(np.uint16)


def rgb3(grey):
    return np.repeat(np.asarray(grey, np.uint8)[..., None], 3, -1)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pack(values, bits):
    """Rows of small numbers as bytes, the first number in the high bits: [height, width] to [height, bytes]."""
    digits = ((values[..., None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8)
    return np.packbits(digits.reshape(values.shape[0], -1), axis=1)


# PNG ------------------------------------------------------------------------------------------------------------------

ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def png_chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png_rows(array, bits, interlaced, filters=True):
    """The rows of an image, each filtered by one of the filters None, Sub and Up in turn."""
    parts = [array[t::d, l::r] for t, l, d, r in ADAM7] if interlaced else [array]
    out = b""
    for part in parts:
        if not part.size:
            continue
        rows = part.reshape(part.shape[0], -1)
        rows = pack(rows, bits) if bits < 8 else rows.astype(">u2" if bits == 16 else np.uint8).view(np.uint8)
        step = max(1, (array.shape[2] if array.ndim == 3 else 1) * bits // 8)
        above = np.zeros(rows.shape[1], np.uint8)
        for y, row in enumerate(rows):
            kind = y % 3 if filters else 0
            left = np.concatenate([np.zeros(step, np.uint8), row[:-step]])[: len(row)]
            out += bytes([kind]) + (row - [0 * row, left, above][kind]).astype(np.uint8).tobytes()
            above = row
    return out


def png(array, bits, kind, interlaced=False, before=b"", idat_crc=None, end=True, split=0, damage=lambda z: z):
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], bits, kind, 0, 0, interlaced)
    data = damage(zlib.compress(png_rows(array, bits, interlaced), 9))
    pieces = [data[i : i + split] for i in range(0, len(data), split)] if split else [data]
    body = b"".join(png_chunk(b"IDAT", piece, idat_crc) for piece in pieces)
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + before + body
    return start + (png_chunk(b"IEND", b"") if end else b"")


def make_png():
    plte = lambda count: png_chunk(b"PLTE", bytes(itertools.chain(*PALETTE[:count])))
    scaled = "16-bit grey is scaled"
    for interlaced in (False, True):
        i = "-interlaced" if interlaced else ""
        for bits in (1, 2, 4, 8):
            add(f"png/grey-{bits}{i}.png", png(GREY >> (8 - bits), bits, 0, interlaced))
            index = np.minimum(INDEX, (1 << bits) - 1)
            add(f"png/palette-{bits}{i}.png", png(index, bits, 3, interlaced, plte(1 << bits)))
        wide = WIDE[..., 1]
        high = np.repeat((wide >> 8).astype(np.uint8)[..., None], 3, -1)
        add(f"png/grey-16{i}.png", png(wide, 16, 0, interlaced), scaled, high)
        add(f"png/grey-alpha-8{i}.png", png(np.dstack([GREY, ALPHA]), 8, 4, interlaced))
        add(f"png/grey-alpha-16{i}.png", png(WIDE[..., :2], 16, 4, interlaced))
        add(f"png/rgb-8{i}.png", png(RGB, 8, 2, interlaced))
        add(f"png/rgb-16{i}.png", png(WIDE, 16, 2, interlaced))
        add(f"png/rgba-8{i}.png", png(np.dstack([RGB, ALPHA]), 8, 6, interlaced))
        add(f"png/rgba-16{i}.png", png(np.dstack([WIDE, WIDE[..., :1]]), 16, 6, interlaced))
    for width, height in [(1, 1), (1, 9), (9, 1), (2, 2), (5, 3), (8, 8), (17, 4)]:
        for interlaced in (False, True):
            part = draw(width, height)
            add(f"png/{width}x{height}-{int(interlaced)}.png", png(part, 8, 2, interlaced))
            add(f"png/{width}x{height}-bit-{int(interlaced)}.png", png(part[..., 0] >> 7, 1, 0, interlaced))
    trns = lambda data: png_chunk(b"tRNS", data)
    add("png/grey-transparent.png", png(GREY, 8, 0, before=trns(b"\0\x5a")))
    add("png/rgb-transparent.png", png(RGB, 8, 2, before=trns(b"\0\x5a\0\x5a\0\x5a")))
    add("png/palette-transparent.png", png(INDEX, 8, 3, before=plte(16) + trns(b"\0\x80\xff\0")))
    add("png/palette-short.png", png(INDEX, 8, 3, before=plte(5)))
    add("png/gamma.png", png(RGB, 8, 2, before=png_chunk(b"gAMA", struct.pack(">I", 100000)) + png_chunk(b"sRGB", b"\0")))
    add("png/text.png", png(RGB, 8, 2, before=png_chunk(b"tEXt", b"Comment\0" + b"x" * 999)))
    add("png/profile.png", png(RGB, 8, 2, before=png_chunk(b"iCCP", b"a\0\0" + zlib.compress(b"no profile" * 30))))
    add("png/split.png", png(RGB, 8, 2, split=50))
    add("png/idat-crc.png", png(RGB, 8, 2, idat_crc=1))
    add("png/idat-crc-split.png", png(RGB, 8, 2, idat_crc=1, split=99))
    add("png/idat-crc-interlaced.png", png(RGB, 8, 2, True, idat_crc=1))
    add("png/no-end.png", png(RGB, 8, 2, end=False))
    add("png/no-end-interlaced.png", png(RGB, 8, 2, True, end=False))
    whole = png(RGB, 8, 2, end=False)
    add("png/no-idat-crc.png", whole[:-4])
    add("png/cut-in-idat-crc.png", whole[:-2])
    add("png/cut-in-adler.png", whole[:-6])
    add("png/cut-before-adler.png", whole[:-8])
    add("png/cut-in-rows.png", whole[: len(whole) * 2 // 3])
    add("png/cut-in-palette.png", png(INDEX, 8, 3, before=plte(16))[:50])
    add("png/adler.png", png(RGB, 8, 2, damage=lambda z: z[:-1] + bytes([z[-1] ^ 1])))
    add("png/no-adler.png", png(RGB, 8, 2, damage=lambda z: z[:-4]))
    add("png/trailing.png", png(RGB, 8, 2) + b"trailing bytes" * 9)
    add("png/trailing-in-idat.png", png(RGB, 8, 2, damage=lambda z: z + b"more"))
    add("png/end-crc.png", png(RGB, 8, 2)[:-4] + b"\0\0\0\0")
    add("png/header-crc.png", whole[:29] + b"\0\0\0\0" + whole[33:])
    add("png/text-crc.png", png(RGB, 8, 2, before=png_chunk(b"tEXt", b"a\0b", 7)))
    add("png/after-crc.png", png(RGB, 8, 2, end=False) + png_chunk(b"tEXt", b"a\0b", 7) + png_chunk(b"IEND", b""))
    add("png/no-palette.png", png(INDEX, 8, 3), "without a palette it is refused")
    image = Image.fromarray(RGB)
    add("png/animated.png", saved(image, "PNG", save_all=True, append_images=[image.rotate(180)]))
    small = Image.fromarray(RGB[::-1].copy())
    add("png/animated-default.png", saved(image, "PNG", save_all=True, default_image=True, append_images=[small, image]))
    for level in (0, 1, 9):
        add(f"png/level-{level}.png", saved(image, "PNG", compress_level=level))


# GIF ------------------------------------------------------------------------------------------------------------------


def lzw(indices, bits, order="little", tiff=False):
    """The codes of GIF, with every table filled to its end before it is cleared."""
    clear, end = 1 << bits, (1 << bits) + 1
    codes, table, width, word = [(clear, bits + 1)], {}, bits + 1, ()
    next_code = end + 1
    for index in indices:
        longer = word + (index,)
        if len(longer) == 1 or longer in table:
            word = longer
            continue
        codes.append((table.get(word, word[0]), width))
        if next_code < 4096:
            table[longer] = next_code
            next_code += 1
            if next_code - 1 == 1 << width and width < 12:
                width += 1
        else:
            codes.append((clear, width))
            table, width, next_code = {}, bits + 1, end + 1
        word = (index,)
    if word:
        codes.append((table.get(word, word[0]), width))
        if next_code == 1 << width and width < 12:
            width += 1
    codes.append((end, width))
    value, length = 0, 0
    for code, size in codes:
        value |= code << length
        length += size
    return value.to_bytes((length + 7) // 8, "little")


def gif_frame(indices, bits, at=(0, 0), interlaced=False, palette=None, cut=None, end=b"\0"):
    height, width = indices.shape
    rows = list(indices)
    if interlaced:
        rows = [rows[y] for first, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(first, height, step)]
    data = lzw([int(value) for row in rows for value in row], bits)
    data = data[:cut] if cut else data
    blocks = b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255))
    flags = (0x40 if interlaced else 0) | (0x80 | (bits - 1) if palette else 0)
    own = bytes(itertools.chain(*palette)) if palette else b""
    return b"," + struct.pack("<HHHHB", *at, width, height, flags) + own + bytes([max(2, bits)]) + blocks + end


def gif(body, bits, screen=SIZE, palette=True, background=0, version=b"89a", end=b";"):
    flags = (0x80 if palette else 0) | (bits - 1)
    colors = bytes(itertools.chain(*PALETTE[: 1 << bits])) if palette else b""
    return b"GIF" + version + struct.pack("<HHBBB", *screen, flags, background, 0) + colors + body + end


def control(transparent=None, disposal=0):
    flags = disposal << 2 | (transparent is not None)
    return b"!\xf9\x04" + bytes([flags, 0, 0, transparent or 0]) + b"\0"


def make_gif():
    for bits in (2, 3, 4, 8):
        index = (GREY.astype(int) * ((1 << bits) - 1) // 255).astype(np.uint8)
        for interlaced in (False, True):
            add(f"gif/{bits}-bit-{int(interlaced)}.gif", gif(gif_frame(index, bits, interlaced=interlaced), bits))
    noise = np.random.default_rng(1).integers(0, 256, (60, 70)).astype(np.uint8)
    add("gif/noise.gif", gif(gif_frame(noise, 8), 8, (70, 60)))
    index = np.minimum(INDEX, 15)
    frame = gif_frame(index, 4)
    small = index[3:14, 5:22]
    add("gif/87a.gif", gif(frame, 4, version=b"87a"))
    add("gif/transparent.gif", gif(control(3) + frame, 4))
    add("gif/own-palette.gif", gif(gif_frame(index, 4, palette=PALETTE[40:56]), 4))
    add("gif/only-own-palette.gif", gif(gif_frame(index, 4, palette=PALETTE[40:56]), 4, palette=False))
    add("gif/no-palette.gif", gif(frame, 4, palette=False))
    greys = gif_frame(index, 4, palette=[(i, i, i) for i in range(16)])
    add("gif/grey-palette.gif", gif(greys, 4), "a palette of a frame that is a grey ramp counts", rgb3(index))
    add("gif/only-grey-palette.gif", gif(greys, 4, palette=False))
    for name, background, extra in [("", 0, b""), ("-background", 5, b""), ("-transparent", 5, control(7)), ("-clear", 5, control(None, 2))]:
        add(f"gif/part{name}.gif", gif(extra + gif_frame(small, 4, (5, 3)), 4, background=background))
        own = gif_frame(small, 4, (5, 3), palette=PALETTE[60:76])
        add(f"gif/part{name}-own.gif", gif(extra + own, 4, background=background))
    add("gif/part-interlaced.gif", gif(gif_frame(small, 4, (5, 3), True), 4))
    add("gif/larger-than-screen.gif", gif(frame, 4, (20, 10)))
    add("gif/beyond-screen.gif", gif(gif_frame(small, 4, (30, 15)), 4))
    add("gif/no-screen.gif", gif(frame, 4, (0, 0)))
    other = gif_frame(index[::-1].copy(), 4)
    loop = b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
    add("gif/animated.gif", gif(loop + control(None, 1) + frame + control(2, 2) + other, 4))
    add("gif/comment.gif", gif(b"!\xfe\x05hello\0" + frame + b"!\xfe\x03end\0", 4))
    add("gif/empty-comment.gif", gif(b"!\xfe\0" + frame, 4))
    add("gif/plain-text.gif", gif(b"!\x01\x0c" + b"\0" * 12 + b"\x02hi\0" + frame, 4))
    add("gif/no-trailer.gif", gif(frame, 4, end=b""))
    add("gif/no-end-block.gif", gif(gif_frame(index, 4, end=b""), 4, end=b""))
    add("gif/trailing.gif", gif(frame, 4) + b"trailing")
    add("gif/junk-between.gif", gif(b"\0\0" + frame, 4))
    data = gif(frame, 4)
    add("gif/cut.gif", data[: len(data) // 2])
    add("gif/cut-codes.gif", gif(gif_frame(index, 4, cut=60), 4))
    add("gif/no-frame.gif", gif(b"", 4))
    add("gif/1x1.gif", gif(gif_frame(index[:1, :1], 4), 4, (1, 1)))
    add("gif/short-palette.gif", gif(gif_frame(np.minimum(INDEX, 13), 4, palette=PALETTE[:4] and None), 2))
    image = Image.fromarray(RGB)
    add("gif/quantized.gif", saved(image, "GIF"))
    add("gif/quantized-animated.gif", saved(image, "GIF", save_all=True, append_images=[image.rotate(180)], disposal=2))
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    add("gif/rgba.gif", saved(rgba, "GIF"))
    add("gif/grey.gif", saved(Image.fromarray(GREY), "GIF", interlace=0))
    add("gif/bit.gif", saved(Image.fromarray(GREY).convert("1"), "GIF"))


# BMP ------------------------------------------------------------------------------------------------------------------


def bmp(rows, bits, palette=b"", header=40, height=SIZE[1], width=SIZE[0], compression=0, masks=(), colors=0, offset=None, end=b""):
    """`rows` from the top as bytes; they are padded, and stored from below if the height is positive."""
    if isinstance(rows, bytes):
        pixels = rows
    else:
        padded = [row.tobytes() + b"\0" * (-len(row.tobytes()) % 4) for row in rows]
        pixels = b"".join(padded if height < 0 else padded[::-1])
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(pixels), 2835, 2835, colors, 0)
        inside = b"".join(struct.pack("<I", mask) for mask in masks)
        info += inside if header == 40 else inside.ljust(header - 40, b"\0")
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start if offset is None else offset) + info + palette + pixels + end


def rle8(indices):
    """Runs, pixels as they are, ends of rows."""
    out = b""
    for row in indices[::-1]:
        x = 0
        while x < len(row):
            run = 1
            while x + run < len(row) and row[x + run] == row[x] and run < 255:
                run += 1
            if run > 1 or x + 3 > len(row):
                out += bytes([run, row[x]])
                x += run
            else:
                part = bytes(row[x : x + min(7, len(row) - x)])
                out += bytes([0, len(part)]) + part + b"\0" * (len(part) % 2)
                x += len(part)
        out += b"\0\0"
    return out + b"\0\1"


def rle4(indices):
    out = b""
    for row in indices[::-1]:
        for x in range(0, len(row), 6):
            part = [int(value) for value in row[x : x + 6]]
            if x % 12 == 0 and len(part) >= 3:
                packed_part = pack(np.array([part]), 4).tobytes()
                out += bytes([0, len(part)]) + packed_part + b"\0" * (len(packed_part) % 2)
            else:
                for value in part:
                    out += bytes([1, value << 4 | value])
        out += b"\0\0"
    return out + b"\0\1"


def make_bmp():
    bgrx = lambda colors: b"".join(bytes([b, g, r, 0]) for r, g, b in colors)
    bgr = lambda colors: b"".join(bytes([b, g, r]) for r, g, b in colors)
    flipped = RGB[..., ::-1].copy()
    x = np.zeros(GREY.shape, np.uint8)
    words = lambda values, kind: values.astype(kind).view(np.uint8).reshape(values.shape[0], -1)
    five = (RGB >> 3).astype(np.uint32)
    # All 32 and all 64 levels.
    ramp = np.arange(SIZE[0] * SIZE[1], dtype=np.uint32).reshape(SIZE[1], SIZE[0])
    w555 = (five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]) ^ (ramp % 32)
    w565 = five[..., 0] << 11 | (RGB[..., 1].astype(np.uint32) >> 2) << 5 | five[..., 2]
    w565 ^= (ramp % 64) << 5
    for header in (12, 40, 52, 56, 64, 108, 124):
        if header not in (12, 64):
            add(f"bmp/rgb565-{header}.bmp", bmp(words(w565, "<u2"), 16, header=header, compression=3, masks=(0xF800, 0x7E0, 0x1F)))
        add(f"bmp/rgb-{header}.bmp", bmp(flipped, 24, header=header))
        add(f"bmp/rgb555-{header}.bmp", bmp(words(w555, "<u2"), 16, header=header))
        for bits in (1, 4, 8):
            index = np.minimum(INDEX, (1 << bits) - 1)
            rows = pack(index, bits) if bits < 8 else index
            colors = PALETTE[: 1 << bits]
            add(f"bmp/palette-{bits}-{header}.bmp", bmp(rows, bits, (bgr if header == 12 else bgrx)(colors), header))
    add("bmp/rgb555-masks.bmp", bmp(words(w555, "<u2"), 16, compression=3, masks=(0x7C00, 0x3E0, 0x1F)))
    for name, masks in {
        "bgrx": (0xFF0000, 0xFF00, 0xFF), "xbgr": (0xFF000000, 0xFF0000, 0xFF00), "bgxr": (0xFF000000, 0xFF00, 0xFF),
        "zero": (0, 0, 0),
    }.items():
        full = np.dstack([flipped, ALPHA]) if name in ("bgrx", "zero") else np.dstack([ALPHA, RGB])
        add(f"bmp/{name}.bmp", bmp(full, 32, compression=3, masks=masks))
    for name, masks in {
        "abgr": (0xFF000000, 0xFF0000, 0xFF00, 0xFF), "rgba": (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        "bgra": (0xFF0000, 0xFF00, 0xFF, 0xFF000000), "bgar": (0xFF000000, 0xFF00, 0xFF, 0xFF0000),
    }.items():
        add(f"bmp/{name}.bmp", bmp(np.dstack([RGB, ALPHA]), 32, header=108, compression=3, masks=masks))
    add("bmp/24-masks.bmp", bmp(flipped, 24, compression=3, masks=(0xFF0000, 0xFF00, 0xFF)))
    add("bmp/32.bmp", bmp(np.dstack([flipped, x]), 32))
    add("bmp/32-alpha.bmp", bmp(np.dstack([flipped, ALPHA]), 32, header=124))
    add("bmp/top-down.bmp", bmp(flipped, 24, height=-SIZE[1]))
    add("bmp/top-down-palette.bmp", bmp(INDEX, 8, bgrx(PALETTE), height=-SIZE[1]))
    add("bmp/few-colors.bmp", bmp(np.minimum(INDEX, 8), 8, bgrx(PALETTE[:9]), colors=9))
    add("bmp/beyond-palette.bmp", bmp(INDEX, 8, bgrx(PALETTE[:4]), colors=4))
    add("bmp/grey-palette.bmp", bmp(GREY, 8, bgrx([(i, i, i) for i in range(256)])))
    add("bmp/black-white.bmp", bmp(pack(GREY >> 7, 1), 1, bgrx([(0, 0, 0), (255, 255, 255)])))
    add("bmp/white-black.bmp", bmp(pack(GREY >> 7, 1), 1, bgrx([(255, 255, 255), (0, 0, 0)])))
    add("bmp/offset-zero.bmp", bmp(INDEX, 8, bgrx(PALETTE), offset=0))
    add("bmp/offset-before-palette.bmp", bmp(INDEX, 8, bgrx(PALETTE), offset=54))
    add("bmp/gap.bmp", bmp(INDEX, 8, bgrx(PALETTE) + b"\0" * 20))
    add("bmp/trailing.bmp", bmp(flipped, 24, end=b"trailing"))
    add("bmp/rle8.bmp", bmp(rle8(INDEX), 8, bgrx(PALETTE), compression=1))
    add("bmp/rle4.bmp", bmp(rle4(np.minimum(INDEX, 15)), 4, bgrx(PALETTE[:16]), compression=2))
    delta = b"\5\3\0\2\4\2" + b"\6\7\0\0" + b"\3\2\0\1"
    add("bmp/rle8-delta.bmp", bmp(delta, 8, bgrx(PALETTE), compression=1), "what an RLE leaves out is the first colour",
        rle_expected(delta))
    long_row = np.array(PALETTE, np.uint8)[np.where(np.arange(SIZE[1])[:, None] == SIZE[1] - 1, 1, 0) * np.ones(SIZE, int).T]
    add("bmp/rle8-long-row.bmp", bmp(b"\xff\1" + b"\xff\2\0\1", 8, bgrx(PALETTE), compression=1),
        "what an RLE leaves out is the first colour", long_row)
    add("bmp/rle8-cut.bmp", bmp(rle8(INDEX)[:90], 8, bgrx(PALETTE), compression=1))
    whole = bmp(flipped, 24)
    add("bmp/cut.bmp", whole[: len(whole) // 2])
    add("bmp/cut-header.bmp", whole[:40])
    add("bmp/cut-padding.bmp", whole[:-1])
    for width, height in [(1, 1), (2, 3), (33, 2)]:
        part = draw(width, height)
        add(f"bmp/{width}x{height}.bmp", bmp(part[..., ::-1].copy(), 24, width=width, height=height))
        add(f"bmp/{width}x{height}-bit.bmp", bmp(pack(part[..., 0] >> 7, 1), 1, bgrx(PALETTE[:2]), width=width, height=height))
    add("bmp/embedded-jpeg.bmp", bmp(b"\xff\xd8\xff" * 40, 24, compression=4))


def rle_expected(data):
    rows = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    rows[0, :5] = 3
    rows[2, 9:15] = 7
    rows[3, :3] = 2
    return np.array(PALETTE, np.uint8)[rows[::-1]]


# PNM ------------------------------------------------------------------------------------------------------------------


def make_pnm():
    head = lambda kind, *rest: f"{kind}\n{SIZE[0]} {SIZE[1]}\n".encode() + b"".join(b"%d\n" % n for n in rest)
    plain = lambda values: "\n".join(" ".join(map(str, row)) for row in values.reshape(values.shape[0], -1)).encode()
    bits = (GREY >> 7).astype(int)
    add("pnm/p1.pbm", head("P1") + plain(bits))
    add("pnm/p1-dense.pbm", head("P1") + plain(bits).replace(b" ", b""))
    add("pnm/p4.pbm", head("P4") + pack(bits, 1).tobytes())
    for most in (1, 3, 7, 15, 31, 100, 254, 255, 256, 1000, 4095, 65534, 65535):
        color = (WIDE.astype(np.uint64) * most // 65535).astype(int)
        grey = color[..., 1]
        rule = "16-bit grey is scaled" if most > 255 else ""
        scaled = np.round(grey / most * 255).astype(np.uint8)[..., None].repeat(3, -1) if rule else None
        raw = lambda values: values.astype(">u2" if most > 255 else np.uint8).tobytes()
        add(f"pnm/p6-{most}.ppm", head("P6", most) + raw(color))
        add(f"pnm/p5-{most}.pgm", head("P5", most) + raw(grey), rule, scaled)
        if most in (1, 100, 255, 1000, 65535):
            add(f"pnm/p3-{most}.ppm", head("P3", most) + plain(color))
            add(f"pnm/p2-{most}.pgm", head("P2", most) + plain(grey), rule, scaled)
    add("pnm/comments.ppm", b"P6 # first\n# second\n%d # width\n %d\n#\n255\n" % SIZE + RGB.tobytes())
    add("pnm/spaces.ppm", b"P6\t%d\r%d\x0b255 " % SIZE + RGB.tobytes())
    add("pnm/plain-comments.pgm", head("P2", 255) + plain(GREY).replace(b"\n", b" # row\n"))
    add("pnm/above-most.ppm", head("P6", 100) + RGB.tobytes())
    add("pnm/trailing.ppm", head("P6", 255) + RGB.tobytes() + b"trailing")
    add("pnm/cut.ppm", head("P6", 255) + RGB.tobytes()[:-1])
    add("pnm/cut-plain.pgm", head("P2", 255) + plain(GREY)[:-40])
    add("pnm/cut-header.ppm", b"P6\n37")
    add("pnm/zero-most.ppm", head("P6", 0) + RGB.tobytes())
    add("pnm/large-most.ppm", head("P6", 65536) + RGB.tobytes() * 2)
    add("pnm/plain-above-most.pgm", head("P2", 9) + plain(GREY))
    anymap = lambda channels, kind: (
        b"P7\nWIDTH %d\nHEIGHT %d\n" % SIZE + b"DEPTH %d\nMAXVAL 255\nTUPLTYPE %s\nENDHDR\n" % (channels, kind)
    )
    rule = "P7 is read, Pillow does not"
    grey3 = GREY[..., None].repeat(3, -1)
    add("pnm/p7-rgb.pam", anymap(3, b"RGB") + RGB.tobytes(), rule, RGB)
    add("pnm/p7-rgba.pam", anymap(4, b"RGB_ALPHA") + np.dstack([RGB, ALPHA]).tobytes(), rule, RGB)
    add("pnm/p7-grey.pam", anymap(1, b"GRAYSCALE") + GREY.tobytes(), rule, grey3)
    add("pnm/p7-grey-alpha.pam", anymap(2, b"GRAYSCALE_ALPHA") + np.dstack([GREY, ALPHA]).tobytes(), rule, grey3)


# TIFF -----------------------------------------------------------------------------------------------------------------


def packbits(data):
    out = b""
    for i in range(0, len(data), 100):
        part = data[i : i + 100]
        if len(set(part)) == 1 and len(part) > 1:
            out += bytes([257 - len(part)]) + part[:1]
        else:
            out += bytes([len(part) - 1]) + part
    return out + b"\x80"


def predicted(row, samples, predictor):
    """`row` is an array of samples, all channels beside each other."""
    if predictor == 2:
        before = np.concatenate([np.zeros(samples, row.dtype), row[:-samples]])
        return row - before
    if predictor == 3:
        planes = np.frombuffer(row.astype(row.dtype.newbyteorder(">")).tobytes(), np.uint8)
        planes = planes.reshape(-1, 4).T.reshape(-1).copy()
        planes[samples:] -= planes[:-samples].copy()
        return planes
    return row


def tiff(array, meaning, bits=8, order="<", big=False, compression=1, predictor=1, rows=None, tile=None, planar=False,
         fill=1, extra=None, numbers=None, palette=None, more=(), drop=(), damage=None, order_of=None):
    """`array` is [height, width] or [height, width, samples]."""
    height, width = array.shape[:2]
    samples = array.shape[2] if array.ndim == 3 else 1
    array = array.reshape(height, width, samples)
    dtype = {8: np.uint8, 16: order + "u2", 32: order + "u4"}.get(bits, np.uint8) if array.dtype.kind != "f" else order + "f4"
    chunks = []
    for plane in ([array[..., i : i + 1] for i in range(samples)] if planar else [array]):
        if tile:
            tw, th = tile
            boxes = [(y, x, th, tw) for y in range(0, height, th) for x in range(0, width, tw)]
        else:
            boxes = [(y, 0, min(rows or height, height - y), width) for y in range(0, height, rows or height)]
        for y, x, h, w in boxes:
            part = plane[y : y + h, x : x + w]
            part = np.pad(part, ((0, h - part.shape[0]), (0, w - part.shape[1]), (0, 0)), mode="edge")
            data = b""
            for row in part.reshape(h, -1):
                if bits in (1, 2, 4, 12):
                    row = pack(row[None].astype(np.uint16), bits)[0]
                elif array.dtype.kind == "f":
                    row = predicted(row.astype("f4"), part.shape[2], predictor)
                    row = row if predictor == 3 else row.astype(dtype)
                else:
                    row = predicted(row.astype({8: np.uint8, 16: np.uint16, 32: np.uint32}[bits]), part.shape[2], predictor).astype(dtype)
                data += row.tobytes()
            data = {1: lambda d: d, 8: lambda d: zlib.compress(d, 9), 32946: zlib.compress, 32773: packbits}[compression](data)
            if fill == 2:
                data = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
            chunks.append(damage(data) if damage else data)
    tags = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * samples), 259: (3, [compression]), 262: (3, [meaning]),
        277: (3, [samples]), 284: (3, [2 if planar else 1]),
    }
    if fill != 1:
        tags[266] = (3, [fill])
    if predictor != 1:
        tags[317] = (3, [predictor])
    if extra is not None:
        tags[338] = (3, extra)
    if numbers is not None:
        tags[339] = (3, [numbers] * samples)
    if palette is not None:
        tags[320] = (3, [channel * 257 for i in range(3) for channel in [color[i] for color in palette]])
    if tile:
        tags[322], tags[323] = (3, [tile[0]]), (3, [tile[1]])
    else:
        tags[278] = (4, [rows or height])
    tags.update(dict(more))
    return assemble(tags, chunks, order, big, bool(tile), drop)


def assemble(tags, chunks, order="<", big=False, tiled=False, drop=()):
    tags = dict(tags)
    word = "Q" if big else "I"
    offsets, lengths = (324, 325) if tiled else (273, 279)
    tags[offsets] = (16 if big else 4, [0] * len(chunks))
    tags[lengths] = (16 if big else 4, [len(chunk) for chunk in chunks])
    for tag in drop:
        tags.pop(tag, None)
    mark = b"II" if order == "<" else b"MM"
    head = mark + (struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8))
    entry = 20 if big else 12
    start = len(head) + (8 if big else 2) + entry * len(tags) + (8 if big else 4)

    def pack_values(kind, values):
        if kind == 5:
            return b"".join(struct.pack(order + "II", *value) for value in values)
        if kind in (2, 7):
            return bytes(values)
        return struct.pack(order + "%d%s" % (len(values), {1: "B", 3: "H", 4: "I", 11: "f", 16: "Q"}[kind]), *values)

    # The places of the chunks depend on the length of the tags' values only.
    place = start
    for tag, (kind, values) in sorted(tags.items()):
        size = len(pack_values(kind, values))
        place += size + size % 2 if size > (8 if big else 4) else 0
    if offsets in tags:
        at = []
        for chunk in chunks:
            at.append(place)
            place += len(chunk)
        tags[offsets] = (tags[offsets][0], at)
    body, outside = struct.pack(order + ("Q" if big else "H"), len(tags)), b""
    for tag, (kind, values) in sorted(tags.items()):
        data = pack_values(kind, values)
        body += struct.pack(order + "HH" + word, tag, kind, len(values))
        if len(data) <= (8 if big else 4):
            body += data.ljust(8 if big else 4, b"\0")
        else:
            body += struct.pack(order + word, start + len(outside))
            outside += data + b"\0" * (len(data) % 2)
    return head + body + struct.pack(order + word, 0) + outside + b"".join(chunks)


def make_tiff():
    scaled = "16-bit grey is scaled"
    wide = WIDE[..., 1]
    orders = (("<", "le"), (">", "be"))
    # Layouts, for colours and grey.
    for (order, o), (name, compression), planar in itertools.product(
        orders, (("raw", 1), ("deflate", 8), ("packbits", 32773), ("old-deflate", 32946)), (False, True)
    ):
        p = "-planar" if planar else ""
        add(f"tiff/rgb-{name}-{o}{p}.tif", tiff(RGB, 2, order=order, compression=compression, planar=planar, rows=8))
        add(f"tiff/rgb-{name}-{o}{p}-tiled.tif", tiff(RGB, 2, order=order, compression=compression, planar=planar, tile=(16, 16)))
        if not (planar and compression == 1):
            add(f"tiff/rgb16-{name}-{o}{p}.tif", tiff(WIDE, 2, 16, order=order, compression=compression, planar=planar, rows=5))
        add(f"tiff/grey16-{name}-{o}{p}.tif", tiff(wide, 1, 16, order=order, compression=compression, planar=planar, rows=5),
            scaled, rgb3(wide >> 8))
    # The bits and meanings of samples.
    for (order, o), fill in itertools.product(orders, (1, 2)):
        f = "-reversed" if fill == 2 else ""
        for bits in (1, 2, 4, 8):
            value = GREY >> (8 - bits)
            index = np.minimum(INDEX, (1 << bits) - 1)
            for compression in (1, 8):
                c = "" if compression == 1 else "-deflate"
                rule = "bits in reverse order are read" if fill == 2 and compression == 1 else ""
                inverted = rgb3(255 - value) if rule and bits == 8 else None
                colors = np.array(PALETTE, np.uint8)[index] if rule and bits < 8 else None
                add(f"tiff/white-{bits}-{o}{f}{c}.tif",
                    tiff(value, 0, bits, order, fill=fill, compression=compression), rule if bits == 8 else "", inverted)
                add(f"tiff/black-{bits}-{o}{f}{c}.tif", tiff(value, 1, bits, order, fill=fill, compression=compression))
                add(f"tiff/palette-{bits}-{o}{f}{c}.tif",
                    tiff(index, 3, bits, order, fill=fill, palette=PALETTE[: 1 << bits], compression=compression), rule if bits < 8 else "", colors)
    add("tiff/white-16.tif", tiff(wide, 0, 16), "16-bit grey is scaled, and inverted if white is zero", rgb3(255 - (wide >> 8)))
    add("tiff/white-16-be.tif", tiff(wide, 0, 16, ">"), "16-bit grey is scaled, and inverted if white is zero", rgb3(255 - (wide >> 8)))
    add("tiff/grey-12.tif", tiff(wide >> 4, 1, 12), scaled, rgb3(wide >> 8))
    add("tiff/tiled-palette.tif", tiff(INDEX, 3, palette=PALETTE, tile=(16, 32)))
    add("tiff/tiled-bits.tif", tiff(GREY >> 7, 1, 1, tile=(16, 16), compression=8))
    signed = (wide.astype(int) - 32768)
    for order, o in orders:
        add(f"tiff/signed-8-{o}.tif", tiff(GREY, 1, order=order, numbers=2))
        add(f"tiff/signed-16-{o}.tif", tiff((signed // 90).astype(np.int16).view(np.uint16), 1, 16, order, numbers=2))
        add(f"tiff/signed-32-{o}.tif", tiff((signed // 90).astype(np.int32).view(np.uint32), 1, 32, order, numbers=2))
        rule = "" if order == "<" else "big-endian 32-bit grey is read"
        add(f"tiff/unsigned-32-{o}.tif", tiff((wide // 90).astype(np.uint32), 1, 32, order), rule,
            rgb3(np.minimum(wide // 90, 255)) if rule else None)
        add(f"tiff/float-{o}.tif", tiff((signed / 100).astype(np.float32), 1, 32, order, numbers=3))
        add(f"tiff/float-white-{o}.tif", tiff((GREY / 1.3).astype(np.float32), 0, 32, order, numbers=3))
        # Pillow takes what libtiff has put into the machine's order for the file's.
        swapped = "compressed big-endian 32-bit grey is read in its own order" if order == ">" else ""
        floats = (GREY / 1.3).astype(np.float32)
        cut = rgb3(floats.astype(np.uint8)) if swapped else None
        add(f"tiff/float-predicted-{o}.tif",
            tiff(floats, 1, 32, order, numbers=3, compression=8, predictor=3), swapped, cut)
        add(f"tiff/float-predicted-tiled-{o}.tif",
            tiff(floats, 1, 32, order, numbers=3, compression=8, predictor=3, tile=(16, 16)), swapped, cut)
        for bits, color in ((8, RGB), (16, WIDE)):
            add(f"tiff/predicted-{bits}-{o}.tif", tiff(color, 2, bits, order, compression=8, predictor=2, rows=7))
            add(f"tiff/predicted-{bits}-{o}-tiled.tif", tiff(color, 2, bits, order, compression=8, predictor=2, tile=(16, 16)))
            add(f"tiff/predicted-{bits}-{o}-planar.tif", tiff(color, 2, bits, order, compression=8, predictor=2, planar=True))
        add(f"tiff/predicted-grey16-{o}.tif", tiff(wide, 1, 16, order, compression=8, predictor=2), scaled, rgb3(wide >> 8))
        add(f"tiff/predicted-grey32-{o}.tif", tiff((wide // 90).astype(np.uint32), 1, 32, order, compression=8, predictor=2, numbers=2),
            swapped, rgb3(np.minimum(wide // 90, 255)) if swapped else None)
    add("tiff/float-special.tif", tiff(np.array([[np.nan, np.inf, -np.inf, -1, 0.99, 255.5, 1e9, 254.99]], np.float32), 1, 32, numbers=3))
    add("tiff/predictor-without-compression.tif", tiff(RGB, 2, more={317: (3, [2])}.items()))
    # Extra samples.
    rgba = np.dstack([RGB, ALPHA])
    for kind in (0, 1, 2):
        for compression in (1, 8):
            c = "" if compression == 1 else "-deflate"
            add(f"tiff/rgb-extra-{kind}{c}.tif", tiff(rgba, 2, extra=[kind], compression=compression))
            add(f"tiff/rgb16-extra-{kind}{c}.tif", tiff(np.dstack([WIDE, WIDE[..., 2]]), 2, 16, extra=[kind], compression=compression))
            if kind != 1:
                add(f"tiff/grey-extra-{kind}{c}.tif", tiff(np.dstack([GREY, ALPHA]), 1, extra=[kind], compression=compression))
                add(f"tiff/palette-extra-{kind}{c}.tif",
                    tiff(np.dstack([INDEX, ALPHA]), 3, extra=[kind], palette=PALETTE, compression=compression))
            add(f"tiff/rgb-extras-{kind}{c}.tif", tiff(np.dstack([rgba, ALPHA]), 2, extra=[kind, 0], compression=compression))
    premultiplied = np.where(ALPHA > 0, np.minimum(GREY.astype(int) * 255 // np.maximum(ALPHA, 1), 255), 0)
    add("tiff/grey-extra-1.tif", tiff(np.dstack([GREY, ALPHA]), 1, extra=[1]), "grey is divided by its alpha, as colours are", rgb3(premultiplied))
    add("tiff/rgba-untold.tif", tiff(rgba, 2))
    add("tiff/rgb-extra-0-planar.tif", tiff(rgba, 2, extra=[0], planar=True, compression=8))
    add("tiff/rgba-planar.tif", tiff(rgba, 2, extra=[2], planar=True, compression=8))
    # Other colours.
    cmyk = np.asarray(Image.fromarray(RGB).convert("CMYK")) ^ np.array([0, 0, 0, 60], np.uint8)
    for compression in (1, 8):
        c = "" if compression == 1 else "-deflate"
        add(f"tiff/cmyk{c}.tif", tiff(cmyk, 5, compression=compression))
        add(f"tiff/cmyk16{c}.tif", tiff(cmyk.astype(np.uint16) * 257, 5, 16, compression=compression))
        add(f"tiff/cmyk-extra{c}.tif", tiff(np.dstack([cmyk, ALPHA]), 5, extra=[0], compression=compression))
        add(f"tiff/ycbcr{c}.tif", tiff(RGB, 6, compression=compression, more={530: (3, [1, 1])}.items()))
    random = np.random.default_rng(3)
    add("tiff/lab.tif", tiff(random.integers(0, 256, (60, 70, 3)).astype(np.uint8), 8))
    edges = np.stack(np.meshgrid(*3 * [[0, 1, 127, 128, 129, 254, 255]]), -1).reshape(7, 49, 3).astype(np.uint8)
    add("tiff/lab-edges.tif", tiff(edges, 8, compression=8))
    greys = np.stack([np.arange(256), np.zeros(256), np.zeros(256)], -1)[None].astype(np.uint8)
    add("tiff/lab-greys.tif", tiff(greys, 8, compression=8, tile=(16, 16)))
    add("tiff/cmyk-planar.tif", tiff(cmyk, 5, planar=True, compression=8))
    full = {530: (3, [1, 1])}
    add("tiff/ycbcr-planar.tif", tiff(RGB, 6, planar=True, compression=8, more=full.items()))
    add("tiff/ycbcr-coefficients.tif", tiff(RGB, 6, compression=8, more={**full, 529: (5, [(2126, 10000), (7152, 10000), (722, 10000)])}.items()))
    studio = {**full, 532: (5, [(16, 1), (235, 1), (128, 1), (240, 1), (128, 1), (240, 1)])}
    add("tiff/ycbcr-studio.tif", tiff(RGB, 6, compression=8, more=studio.items()))
    for across, down in ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)):
        for order, o in orders:
            add(f"tiff/ycbcr-{across}x{down}-{o}.tif", subsampled(across, down, order))
    add("tiff/ycbcr-2x2-strips.tif", subsampled(2, 2, "<", rows=8))
    # Structure.
    for order, o in orders:
        rule, pixels = ("big-endian BigTIFF is read", RGB) if order == ">" else ("", None)
        add(f"tiff/big-{o}.tif", tiff(RGB, 2, order=order, big=True, rows=6), rule, pixels)
        add(f"tiff/big-{o}-deflate.tif", tiff(RGB, 2, order=order, big=True, compression=8, tile=(32, 16)), rule, pixels)
    add("tiff/no-lengths.tif", tiff(RGB, 2, drop=[279]))
    add("tiff/no-rows-per-strip.tif", tiff(RGB, 2, drop=[278]))
    add("tiff/huge-rows-per-strip.tif", tiff(RGB, 2, more={278: (4, [0xFFFFFFFF])}.items()))
    add("tiff/one-bits.tif", tiff(RGB, 2, more={258: (3, [8])}.items()))
    add("tiff/no-meaning.tif", tiff(GREY, 0, drop=[262]))
    add("tiff/no-bits.tif", tiff(GREY >> 7, 1, 1, drop=[258, 277]))
    add("tiff/short-size.tif", tiff(RGB, 2, more={256: (3, [SIZE[0]]), 257: (3, [SIZE[1]])}.items()))
    add("tiff/wrong-lengths.tif", tiff(RGB, 2, rows=7, more=()).replace(struct.pack("<I", 7 * SIZE[0] * 3), struct.pack("<I", 5)))
    add("tiff/big-tile.tif", tiff(RGB, 2, tile=(64, 48), compression=8))
    for width, height in [(1, 1), (1, 9), (9, 1)]:
        add(f"tiff/{width}x{height}.tif", tiff(draw(width, height), 2))
        add(f"tiff/{width}x{height}-bit.tif", tiff(draw(width, height)[..., 0] >> 7, 1, 1, compression=8))
    for turn in range(1, 10):
        add(f"tiff/turned-{turn}.tif", tiff(RGB, 2, more={274: (3, [turn])}.items()))
    add("tiff/turned-long.tif", tiff(RGB, 2, more={274: (4, [6])}.items()))
    image, grey = Image.fromarray(RGB), Image.fromarray(GREY)
    add("tiff/pages.tif", saved(image, "TIFF", save_all=True, append_images=[image.rotate(180)]))
    # What libtiff compresses.
    for kind in ("tiff_lzw", "zstd", "tiff_adobe_deflate"):
        for mode, picture in (("rgb", image), ("grey", grey), ("palette", image.quantize(20)), ("bit", grey.convert("1")), ("cmyk", image.convert("CMYK"))):
            add(f"tiff/{kind}-{mode}.tif", saved(picture, "TIFF", compression=kind))
        add(f"tiff/{kind}-predicted.tif", saved(image, "TIFF", compression=kind, tiffinfo={317: 2}))
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (90, 80, 3)).astype(np.uint8))
    add("tiff/lzw-noise.tif", saved(noise, "TIFF", compression="tiff_lzw"))
    webp = tiff(RGB, 2, compression=1, damage=lambda data: saved(image, "WEBP", lossless=True), more={259: (3, [50001])}.items())
    add("tiff/webp.tif", webp)
    pages = {"": grey.convert("1"), "-thin": Image.fromarray(np.eye(40, 70) > 0), "-wide": Image.new("1", (3000, 5), 1), "-black": Image.new("1", (2700, 3), 0)}
    pages["-stripes"] = Image.fromarray(np.arange(64 * 33).reshape(33, 64) % 7 > 2)
    for name, page in pages.items():
        for kind, options in (("tiff_ccitt", {}), ("group3", {}), ("group3", {292: 1}), ("group3", {292: 4}), ("group3", {292: 5}), ("group4", {})):
            suffix = f"-{options[292]}" if options else ""
            add(f"tiff/{kind}{suffix}{name}.tif", saved(page, "TIFF", compression=kind, tiffinfo=options))
        add(f"tiff/group4-reversed{name}.tif", reversed_fax(page))
    # JPEG within TIFF; two and four samples have no meaning in a JPEG.
    alpha = Image.fromarray(ALPHA)
    inks = np.asarray(image.convert("CMYK")) ^ np.array([0, 0, 0, 60], np.uint8)
    with_alpha = {kind: picture.copy() for kind, picture in (("grey-alpha", grey), ("rgb-alpha", image))}
    for picture in with_alpha.values():
        picture.putalpha(alpha)
    modes = {"rgb": image, "grey": grey, "ycbcr": image.convert("YCbCr"), "cmyk": Image.fromarray(inks, "CMYK"), **with_alpha}
    for mode, picture in modes.items():
        add(f"tiff/jpeg-{mode}.tif", saved(picture, "TIFF", compression="jpeg", quality=95))
    for mode in ("cmyk", "grey-alpha"):
        add(f"tiff/jpeg-{mode}-strips.tif", saved(modes[mode], "TIFF", compression="jpeg", quality=60, tiffinfo={278: 8}))
    plane = lambda data: saved(Image.frombytes("L", SIZE, data), "JPEG", quality=95)
    add("tiff/jpeg-cmyk-planar.tif", tiff(inks, 5, planar=True, damage=plane, more={259: (3, [7])}.items()))
    # What neither reads, or only one.
    for number in (6, 34925, 34712, 34661, 50002, 12345):
        add(f"tiff/compression-{number}.tif", tiff(RGB, 2, more={259: (3, [number])}.items()))
    add("tiff/icclab.tif", tiff(RGB, 9))
    add("tiff/mixed-bits.tif", tiff(RGB, 2, more={258: (3, [8, 8, 4])}.items()))
    add("tiff/double.tif", tiff(np.zeros((3, 3), np.uint32), 1, 32, more={258: (3, [64]), 339: (3, [3])}.items()))
    whole = tiff(RGB, 2)
    add("tiff/cut.tif", whole[: len(whole) * 2 // 3])
    add("tiff/cut-tags.tif", whole[:60])
    add("tiff/cut-deflate.tif", tiff(RGB, 2, compression=8, damage=lambda data: data[: len(data) // 2]))
    add("tiff/cut-packbits.tif", tiff(RGB, 2, compression=32773, damage=lambda data: data[: len(data) // 2]))
    lzw_file = saved(image, "TIFF", compression="tiff_lzw")
    add("tiff/no-size.tif", tiff(RGB, 2, drop=[256]))
    add("tiff/no-offsets.tif", tiff(RGB, 2, drop=[273]))


def subsampled(across, down, order, rows=None):
    width, height = SIZE
    w, h = -(-width // across), -(-height // down)
    full = np.pad(RGB, ((0, h * down - height), (0, w * across - width), (0, 0)), mode="edge")
    chunks = []
    for top in range(0, height, rows or height):
        data = b""
        for y in range(top, min(top + (rows or height), height), down):
            for x in range(0, width, across):
                block = full[y : y + down, x : x + across]
                data += block[..., 0].tobytes() + block[0, 0, 1:].tobytes()
        chunks.append(zlib.compress(data))
    tags = {256: (4, [width]), 257: (4, [height]), 258: (3, [8, 8, 8]), 259: (3, [8]), 262: (3, [6]), 277: (3, [3]),
            278: (4, [rows or height]), 284: (3, [1]), 530: (3, [across, down])}
    return assemble(tags, chunks, order)


def reversed_fax(page):
    """The same page with the bits of each byte reversed."""
    data = saved(page, "TIFF", compression="group4", strip_size=1 << 20)
    opened = Image.open(io.BytesIO(data))
    offset, length = opened.tag_v2[273][0], opened.tag_v2[279][0]
    strip = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data[offset : offset + length])
    tags = {256: (4, [page.width]), 257: (4, [page.height]), 258: (3, [1]), 259: (3, [4]), 262: (3, [int(opened.tag_v2[262])]),
            266: (3, [2]), 277: (3, [1]), 278: (4, [page.height])}
    return assemble(tags, [strip])


# WebP -----------------------------------------------------------------------------------------------------------------


def make_webp():
    image = Image.fromarray(RGB)
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    for name, picture in (("rgb", image), ("rgba", rgba), ("grey", Image.fromarray(GREY))):
        add(f"webp/lossless-{name}.webp", saved(picture, "WEBP", lossless=True, exact=True))
        for quality in (5, 80, 100):
            add(f"webp/lossy-{name}-{quality}.webp", saved(picture, "WEBP", quality=quality))
    add("webp/lossless-palette.webp", saved(image.quantize(9).convert("RGB"), "WEBP", lossless=True))
    frames = [image.rotate(180), image.rotate(90)]
    add("webp/animated.webp", saved(image, "WEBP", save_all=True, append_images=frames, lossless=True))
    add("webp/animated-alpha.webp", saved(rgba, "WEBP", save_all=True, append_images=frames, lossless=True, exact=True, background=(9, 200, 30, 255)))
    add("webp/1x1.webp", saved(Image.fromarray(draw(1, 1)), "WEBP", lossless=True))
    data = saved(image, "WEBP", lossless=True)
    add("webp/cut.webp", data[: len(data) // 2])


# EXIF and XMP ---------------------------------------------------------------------------------------------------------


def exif(kind, number, order="<"):
    mark = b"II" if order == "<" else b"MM"
    value = struct.pack(order + {3: "HH", 4: "I"}[kind], *([number, 0] if kind == 3 else [number]))
    return mark + struct.pack(order + "HIHHHI", 42, 8, 1, 274, kind, 1) + value + b"\0\0\0\0"


def make_turned():
    image = Image.fromarray(RGB)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
    for number in range(1, 10):
        add(f"turned/exif-{number}.png", png(RGB, 8, 2, before=png_chunk(b"eXIf", exif(3, number))))
        add(f"turned/long-{number}.png", png(RGB, 8, 2, before=png_chunk(b"eXIf", exif(4, number, ">"))))
    text = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp % 6)
    add("turned/xmp.png", png(RGB, 8, 2, before=text))
    add("turned/xmp-after.png", png(RGB, 8, 2, end=False) + text + png_chunk(b"IEND", b""))
    add("turned/both.png", png(RGB, 8, 2, before=text + png_chunk(b"eXIf", exif(3, 8))))
    add("turned/exif-after.png", png(RGB, 8, 2, end=False) + png_chunk(b"eXIf", exif(3, 6)) + png_chunk(b"IEND", b""))
    add("turned/named.png", png(RGB, 8, 2, before=png_chunk(b"eXIf", b"Exif\0\0" + exif(3, 6))))
    add("turned/grey.png", png(GREY, 8, 0, before=png_chunk(b"eXIf", exif(3, 6))))
    for name, options in (
        ("exif", {"exif": exif(3, 6)}), ("named", {"exif": b"Exif\0\0" + exif(3, 6)}), ("long", {"exif": exif(4, 8)}),
        ("xmp", {"xmp": xmp % 3}), ("both", {"exif": exif(3, 5, ">"), "xmp": xmp % 3}),
    ):
        add(f"turned/{name}.webp", saved(image, "WEBP", lossless=True, **options))
    add("turned/none.gif", saved(image, "GIF"))
    add("turned/none.tif", tiff(RGB, 2, more={274: (3, [6])}.items()))


# ----------------------------------------------------------------------------------------------------------------------


def pillow(name, data):
    """Pillow's pixels, or None if it refuses the file."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image = ImageOps.exif_transpose(image) if name.startswith("turned") else image
            return np.asarray(image.convert("RGB"))
    except Exception:  # any: Pillow has no one class of errors
        return None


def main():
    for make in (make_png, make_gif, make_bmp, make_pnm, make_tiff, make_webp, make_turned):
        make()
    lines = []
    for name, (data, reason, expected) in files.items():
        pixels = expected if reason else pillow(name, data)
        told = "- - -"
        if pixels is not None:
            raw = np.ascontiguousarray(pixels).tobytes()
            told = f"{pixels.shape[1]} {pixels.shape[0]} {hashlib.sha256(raw).hexdigest()[:16]}"
        lines.append(f"{len(data)} {told} {name}\n")
        if sys.argv[1:2] == ["--unpack"]:
            path = Path(sys.argv[2]) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            if pixels is not None:
                path.with_name(path.name + ".rgb").write_bytes(raw)
    if sys.argv[1:] == ["--names"]:
        print("".join(lines), end="")
    if sys.argv[1:]:
        return
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for part, content in [("names", "".join(lines).encode()), ("files", b"".join(data for data, *_ in files.values()))]:
            archive.writestr(zipfile.ZipInfo(part), content, zipfile.ZIP_DEFLATED, 9)
    print(f"{len(files)} files, {sum(len(data) for data, *_ in files.values())} bytes; in the archive {ARCHIVE.stat().st_size} (Pillow {PIL.__version__})")


if __name__ == "__main__":
    main()
