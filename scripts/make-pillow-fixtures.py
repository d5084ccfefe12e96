#!/usr/bin/env python3
"""Draws the images of tests/fixtures/pillow, and records the results of Pillow and torchvision.

Needs pillow, numpy, torch and torchvision. Run it from anywhere; it rewrites the folder.
"""

import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.transforms import autoaugment, functional

HERE = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "pillow"


def draw(width, height):
    """Returns waves, edges and a little texture: smooth and sharp parts, different in every channel."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = []
    for index in range(3):
        wave = 90 * np.sin(x / (5 + 3 * index) + y / 17) + 40 * np.cos(y / (3 + index))
        box = 110 * (((x // (7 + index)) + (y // 11)) % 2)
        channels.append(np.clip(70 + wave + box, 0, 255))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


# First row, first column, and the distance of rows and of columns in each pass of interlacing.
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def write_png(path, array, interlaced=False):
    """Returns an RGB PNG of a kind that Pillow reads but does not write. `array` is [height, width, 3], uint8 or uint16."""
    height, width, _ = array.shape
    passes = [array[top::down, left::right] for top, left, down, right in ADAM7] if interlaced else [array]
    big_endian = array.dtype.newbyteorder(">")
    rows = b"".join(b"\0" + row.astype(big_endian).tobytes() for part in passes for row in part if row.size)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8 * array.itemsize, 2, 0, 0, interlaced)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    )


def save(image, name):
    image.save(HERE / name, optimize=True)
    return name


def source_images():
    sizes = [(97, 61), (13, 9), (240, 160), (1, 1), (50, 301), (2, 3)]
    for width, height in sizes:
        save(draw(width, height), f"drawn-{width}x{height}.png")
    tile = np.asarray(draw(400, 10))
    save(Image.fromarray(np.tile(tile, (1, 50, 1))), "drawn-20000x10.png")
    save(Image.fromarray(np.tile(tile, (1, 50, 1)).transpose(1, 0, 2)), "drawn-10x20000.png")
    return [f"drawn-{width}x{height}.png" for width, height in [*sizes, (20000, 10), (10, 20000)]]


def resized_crops():
    """(input, top, left, height, width, new width, new height)"""
    cases = [
        ("drawn-97x61.png", 0, 0, 61, 97, 33, 31),
        ("drawn-97x61.png", 0, 0, 61, 97, 97, 61),
        ("drawn-97x61.png", 0, 0, 61, 97, 97, 20),
        ("drawn-97x61.png", 0, 0, 61, 97, 40, 61),
        ("drawn-97x61.png", 7, 11, 43, 51, 64, 64),
        ("drawn-97x61.png", 60, 96, 1, 1, 8, 8),
        ("drawn-97x61.png", 0, 90, 61, 7, 21, 19),
        ("drawn-13x9.png", 0, 0, 9, 13, 64, 48),
        ("drawn-13x9.png", 2, 3, 5, 7, 47, 53),
        ("drawn-240x160.png", 0, 0, 160, 240, 64, 64),
        ("drawn-240x160.png", 23, 57, 130, 171, 56, 56),
        ("drawn-240x160.png", 3, 5, 150, 230, 1, 1),
        ("drawn-1x1.png", 0, 0, 1, 1, 16, 16),
        ("drawn-2x3.png", 0, 0, 3, 2, 17, 5),
        ("drawn-50x301.png", 10, 0, 290, 50, 48, 48),
        ("drawn-20000x10.png", 0, 0, 10, 20000, 32, 32),
        ("drawn-20000x10.png", 0, 12345, 10, 13, 32, 32),
        ("drawn-10x20000.png", 0, 0, 20000, 10, 32, 32),
    ]
    for number, (name, top, left, height, width, new_width, new_height) in enumerate(cases):
        image = Image.open(HERE / name).convert("RGB")
        resized = functional.resized_crop(image, top, left, height, width, [new_height, new_width])
        yield {
            "input": name,
            "crop": [top, left, height, width],
            "size": [new_width, new_height],
            "expected": save(resized, f"resized-{number:02}.png"),
        }


def test_transforms(names):
    cases = [(name, round(32 * 256 / 224), 32) for name in names]
    cases += [("drawn-97x61.png", 80, 70), ("drawn-97x61.png", 61, 55), ("drawn-240x160.png", 230, 201)]
    cases += [("drawn-97x61.png", 20, 32), ("drawn-13x9.png", 11, 16), ("drawn-50x301.png", 21, 32)]
    for number, (name, shorter_side, image_size) in enumerate(cases):
        image = Image.open(HERE / name).convert("RGB")
        pipeline = transforms.Compose([transforms.Resize(shorter_side), transforms.CenterCrop(image_size)])
        yield {
            "input": name,
            "shorter_side": shorter_side,
            "image_size": image_size,
            "expected": save(pipeline(image), f"tested-{number:02}.png"),
        }


def noise(width, height, number):
    """Returns a hash of each value's index, from which a test makes the same image. Every other image is of black and white only."""
    values = (np.arange(1, width * height * 3 + 1, dtype=np.uint64) + np.uint64(number << 32)) * np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(56)
    levels = values.astype(np.uint8).reshape(height, width, 3)
    return Image.fromarray(np.where(levels < 128, 0, 255).astype(np.uint8) if number % 2 else levels)


def digest(image):
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()[:16]


def noise_crops():
    """[width, height, top, left, crop height, crop width, new width, new height, digest of the pixels]: one image each."""
    whole = [(300, 300, 224, 224), (500, 375, 224, 224), (150, 170, 224, 224), (250, 320, 224, 224), (1, 1, 224, 224)]
    whole += [(w, h, 17, 19) for w, h in [(1, 40), (40, 1), (2, 3), (17, 19), (18, 20), (16, 18), (400, 3), (3, 400)]]
    # Which axis is scaled first depends on how much is removed from each.
    whole += [(100, 131 + more, 70, 70) for more in range(-1, 2)] + [(60, 90 + more, 70, 90) for more in range(-1, 3)]
    whole += [(w, h, 1, 1) for w, h in [(1, 7), (90, 1), (90, 70)]] + [(70, 60, 300, 1), (70, 60, 1, 300), (3, 2, 64, 65)]
    # Lengths around those of vectors and strips.
    whole += [(size, size + 9, size - 1, 33) for size in (15, 16, 17, 20, 21, 31, 32, 33, 63, 64, 65)]
    # Factors beyond 100, and an axis so long that sums of rounded weights matter.
    whole += [(3000, 4, 8, 8), (4, 3000, 8, 8), (1200, 1300, 9, 7), (30000, 2, 1, 2), (2, 30000, 2, 1)]
    cases = [(w, h, 0, 0, h, w, new_width, new_height) for w, h, new_width, new_height in whole]
    generator = np.random.default_rng(5)
    for _ in range(80):
        width, height, new_width, new_height = (int(value) for value in generator.integers(1, 130, 4))
        crop_height, crop_width = int(generator.integers(1, height + 1)), int(generator.integers(1, width + 1))
        top, left = int(generator.integers(height - crop_height + 1)), int(generator.integers(width - crop_width + 1))
        cases.append((width, height, top, left, crop_height, crop_width, new_width, new_height))
    for number, case in enumerate(cases):
        width, height, top, left, crop_height, crop_width, new_width, new_height = case
        image = noise(width, height, number)
        yield [*case, digest(functional.resized_crop(image, top, left, crop_height, crop_width, [new_height, new_width]))]


def noise_tests():
    """[width, height, shorter side, size, digest of the pixels]"""
    cases = [(500, 375, 256, 224), (375, 500, 256, 224), (213, 500, 256, 224), (640, 300, 256, 224), (256, 256, 256, 224)]
    cases += [(90, 60, 256, 224), (40, 90, 37, 32), (90, 40, 37, 32), (33, 200, 37, 32), (9, 5, 20, 32), (50, 50, 21, 32)]
    cases += [(257, 256, 256, 224), (300, 301, 73, 64), (31, 700, 29, 45), (700, 31, 29, 45), (1, 3, 8, 7), (5, 1, 1, 4)]
    for number, (width, height, shorter_side, size) in enumerate(cases):
        pipeline = transforms.Compose([transforms.Resize(shorter_side), transforms.CenterCrop(size)])
        yield [width, height, shorter_side, size, digest(pipeline(noise(width, height, number)))]


def resize_modes():
    """[width, height, size, mode, digest of the pixels]"""
    sizes = [(500, 375, 224), (375, 500, 224), (64, 64, 32), (90, 60, 64), (9, 5, 20), (33, 200, 32), (700, 31, 29), (31, 61, 45)]
    for number, (width, height, size) in enumerate(sizes):
        image = noise(width, height, number)
        yield [width, height, size, "squash", digest(transforms.Resize((size, size))(image))]
        yield [width, height, size, "pad", digest(ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR))]


def apply_colour(image, name, value):
    functions = {
        "brightness": functional.adjust_brightness,
        "contrast": functional.adjust_contrast,
        "saturation": functional.adjust_saturation,
        "hue": functional.adjust_hue,
        "sharpness": functional.adjust_sharpness,
        "posterize": lambda image, bits: functional.posterize(image, int(bits)),
        "solarize": functional.solarize,
        "autocontrast": lambda image, _: functional.autocontrast(image),
        "equalize": lambda image, _: functional.equalize(image),
    }
    return functions[name](image, value)


def colours():
    """[size, [[operation, value], ...], digest of the pixels]; the image is `noise(size, size, number)` after two enlargements."""
    factors = [0, 0.3, 1, 1.37, 1.99]
    cases = [[(name, value)] for name in ("brightness", "contrast", "saturation", "sharpness") for value in factors]
    cases += [[("hue", value)] for value in (-0.5, -0.31, 0, 0.12, 0.5)]
    cases += [[("posterize", bits)] for bits in range(2, 9)] + [[("solarize", value)] for value in (0, 76.5, 140.25, 255)]
    cases += [[("autocontrast", 0)], [("equalize", 0)]]
    cases += [
        [("brightness", 1.21), ("contrast", 0.72), ("saturation", 1.4), ("hue", 0.1)],
        [("hue", -0.2), ("contrast", 1.6), ("brightness", 0.55), ("saturation", 0.2), ("equalize", 0)],
        [("saturation", 1.8), ("hue", 0.4), ("contrast", 1.3), ("brightness", 0.9), ("sharpness", 1.9)],
        [("contrast", 0.2), ("autocontrast", 0)],
        [("sharpness", 1.7), ("contrast", 1.5)],
        [("brightness", 0.3), ("sharpness", 0.1), ("equalize", 0), ("contrast", 0.4), ("solarize", 100)],
    ]
    for number, operations in enumerate(cases):
        size = [40, 33, 3, 2, 1, 24][number % 6] if len(operations) == 1 else 37
        image = smooth(size, number)
        for name, value in operations:
            image = apply_colour(image, name, value)
        yield [size, operations, digest(image)]
    # Every colour, as an image of 4096 x 4096 pixels.
    index = np.arange(1 << 24, dtype=np.uint32).reshape(4096, 4096)
    every = Image.fromarray(np.stack([index >> 16, index >> 8 & 255, index & 255], axis=-1).astype(np.uint8))
    for operation in [("hue", 0.29), ("saturation", 1.43)]:
        yield [4096, [operation], digest(apply_colour(every, *operation))]


def smooth(size, number):
    """Noise of a fifth of the size, enlarged: it has flat and steep parts."""
    small = (size + 4) // 5
    return noise(small, small, 2 * number).resize((size, size), Image.Resampling.BILINEAR)


def affine():
    """Writes images that are mapped, with the coefficients. Bilinear, in float64."""
    cases = [(17.3, [0, 0], 1, [0, 0]), (0, [5, -3], 1, [0, 0]), (0, [0, 0], 0.8, [0, 0]), (-40, [3, 7], 1.3, [12, 5])]
    cases += [(180, [0, 0], 1, [0, 0]), (90, [1, 0], 2, [-70, 0])]
    for number, (angle, translate, scale, shear) in enumerate(cases):
        size = [40, 33][number % 2]
        image = smooth(size, number)
        mapped = functional.affine(image, angle, translate, scale, shear, transforms.InterpolationMode.BILINEAR)
        yield {
            "size": size,
            "matrix": functional._get_inverse_affine_matrix([size * 0.5] * 2, angle, translate, scale, shear),
            "expected": save(mapped, f"affine-{number}.png"),
        }


def trivial_augment():
    """Name, magnitudes and whether there are negative ones; where it is an affine map, that of the largest magnitude at size 40."""
    found = []
    transform = functional.affine

    def note(image, angle, translate, scale, shear, interpolation=None, fill=None, center=None):
        found.append(functional._get_inverse_affine_matrix(center or [20, 20], angle, translate, scale, shear))

    space = transforms.TrivialAugmentWide()._augmentation_space(31)
    for name, (magnitudes, is_signed) in space.items():
        matrix = None
        if name.startswith(("Shear", "Translate")):
            functional.affine = note
            autoaugment._apply_op(Image.new("RGB", (40, 40)), name, float(magnitudes[-1]), None, None)
            matrix = found.pop()
        elif name == "Rotate":
            # Image.rotate goes the other way round.
            matrix = functional._get_inverse_affine_matrix([20, 20], -float(magnitudes[-1]), [0, 0], 1, [0, 0])
        functional.affine = transform
        yield {"name": name, "magnitudes": magnitudes.reshape(-1).tolist(), "signed": is_signed, "matrix": matrix}


def erased_means():
    """Returns the means of top, left, height and width over many draws, and their standard errors."""
    torch.manual_seed(10)
    for size in (224, 40):
        draws = np.array(
            [
                transforms.RandomErasing.get_params(torch.empty(3, size, size), (0.02, 0.33), (0.3, 3.3), [0.0])[:4]
                for _ in range(5000)
            ]
        )
        yield {"size": size, "mean": draws.mean(axis=0).tolist(), "deviation": draws.std(axis=0).tolist(), "draws": len(draws)}


def decoded():
    """Writes files of every kind. `tolerance` is in levels of 255: decoders of lossy WebP differ by a few."""
    image = draw(41, 27)
    alpha = image.convert("L").resize(image.size)
    rgba = image.copy()
    rgba.putalpha(alpha)
    grey_alpha = image.convert("L")
    grey_alpha.putalpha(alpha)
    palette = image.quantize(13)
    transparent = palette.copy()
    transparent.info["transparency"] = 3
    ramp = (np.arange(41 * 27, dtype=np.uint32).reshape(27, 41) * 59 % 65536).astype(np.uint16)
    files = [
        ("grey.png", image.convert("L"), {}, 0),
        ("one-bit.png", image.convert("1"), {}, 0),
        ("palette.png", palette, {}, 0),
        ("palette-2-bit.png", image.quantize(4), {"bits": 2}, 0),
        ("palette-transparent.png", transparent, {"transparency": 3}, 0),
        ("rgba.png", rgba, {}, 0),
        ("grey-alpha.png", grey_alpha, {}, 0),
        ("picture.bmp", image, {}, 0),
        ("palette.bmp", palette, {}, 0),
        ("picture.ppm", image, {}, 0),
        ("grey.pgm", image.convert("L"), {}, 0),
        ("picture.tif", image, {"compression": "tiff_lzw"}, 0),
        ("grey.tiff", image.convert("L"), {}, 0),
        ("turned.tif", image, {"exif": oriented(6)}, 0),
        ("turned.png", image, {"exif": oriented(8)}, 0),
        ("turned.webp", image, {"lossless": True, "exif": oriented(7)}, 0),
        ("lossless.webp", image, {"lossless": True}, 0),
        ("lossless-alpha.webp", rgba, {"lossless": True, "exact": True}, 0),
        ("lossy.webp", image, {"quality": 80}, 2),
        ("picture.jpg", image, {"quality": 85}, 0),
        ("full-colour.jpeg", image, {"quality": 90, "subsampling": 0}, 0),
        ("progressive.jpg", image, {"quality": 85, "progressive": True}, 0),
        ("grey.jpg", image.convert("L"), {"quality": 85}, 0),
        ("cmyk.jpg", image.convert("CMYK"), {"quality": 85}, 0),
        ("turned.jpg", image, {"quality": 85, "exif": oriented(6)}, 0),
        ("restart-markers.jpg", image, {"quality": 85, "restart_marker_blocks": 2}, 0),
    ]
    for name, encoded, options, tolerance in files:
        encoded.save(HERE / name, **options)
        expected = save(Image.open(HERE / name).convert("RGB"), f"decoded-{name.replace('.', '-')}.png")
        yield {"input": name, "expected": expected, "tolerance": tolerance}

    ramps = np.stack([ramp, ramp[::-1], 65535 - ramp], axis=-1)
    write_png(HERE / "rgb-16-bit.png", ramps)
    write_png(HERE / "interlaced.png", np.asarray(image), interlaced=True)
    write_png(HERE / "interlaced-16-bit.png", ramps, interlaced=True)
    for name in ("rgb-16-bit", "interlaced", "interlaced-16-bit"):
        expected = save(Image.open(HERE / f"{name}.png").convert("RGB"), f"decoded-{name}.png")
        yield {"input": f"{name}.png", "expected": expected, "tolerance": 0}

    # Pillow clips 16-bit grey to white at 256; retune keeps the high byte, as Pillow does for 16-bit RGB.
    high_bytes = save(Image.fromarray((ramp >> 8).astype(np.uint8)).convert("RGB"), "decoded-grey-16-bit.png")
    for name in ("grey-16-bit.png", "grey-16-bit.tif"):
        Image.fromarray(ramp).save(HERE / name)
        yield {"input": name, "expected": high_bytes, "tolerance": 0}


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def turned():
    """Writes files with an EXIF orientation, and the results of ImageOps.exif_transpose."""
    image = draw(41, 27)
    files = [(f"turned-{value}.jpg", {"quality": 85, "exif": oriented(value)}, 0) for value in range(10)]
    # An orientation of type text, and a truncated one.
    said = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"
    files.append(("turned-text.jpg", {"quality": 85, "exif": said + b"\0\x02\0\0\0\x026\0\0\0\0\0\0\0"}, 0))
    files.append(("turned-cut.jpg", {"quality": 85, "exif": said}, 0))
    files.append(("turned-progressive.jpg", {"quality": 85, "progressive": True, "exif": oriented(5)}, 0))
    for name, options, _ in files:
        image.save(HERE / name, **options)
    files += [("turned.png", {}, 0), ("turned.webp", {}, 0), ("turned.tif", {}, 0)]
    for name, _, tolerance in files:
        opened = Image.open(HERE / name)
        expected = save(ImageOps.exif_transpose(opened).convert("RGB"), f"upright-{name.replace('.', '-')}.png")
        yield {"input": name, "expected": expected, "tolerance": tolerance}


def resized_sizes():
    generator = np.random.default_rng(7)
    sizes = [(int(w), int(h), int(s)) for w, h, s in generator.integers(1, 2000, (400, 3))]
    sizes += [(500, 375, 256), (375, 500, 256), (256, 256, 256), (1, 7, 256), (3, 3, 1), (20000, 10, 37)]
    for width, height, shorter_side in sizes:
        new_height, new_width = functional._compute_resized_output_size((height, width), [shorter_side])
        yield [width, height, shorter_side, new_width, new_height]



def of_size(width, height):
    return torch.empty(1).expand(3, height, width)


def crop_fallbacks():
    generator = np.random.default_rng(8)
    sizes = [(int(w), int(h)) for w, h in generator.integers(1, 1000, (300, 2))]
    sizes += [(1, 1), (1, 100), (100, 1), (3, 4), (4, 3), (5, 4), (2, 3), (20000, 10), (300, 400), (401, 300)]
    for width, height in sizes:
        # A hundred times the area never fits, so all ten attempts fail.
        top, left, crop_height, crop_width = transforms.RandomResizedCrop.get_params(
            of_size(width, height), scale=[100, 100], ratio=[3 / 4, 4 / 3]
        )
        yield [width, height, top, left, crop_height, crop_width]


def crop_means():
    """Returns the means of top, left, height and width over many draws, and their standard errors."""
    torch.manual_seed(9)
    for width, height in [(500, 375), (100, 400), (900, 90), (8, 6)]:
        draws = np.array(
            [
                transforms.RandomResizedCrop.get_params(
                    of_size(width, height), scale=[0.08, 1.0], ratio=[3 / 4, 4 / 3]
                )
                for _ in range(20000)
            ]
        )
        yield {
            "size": [width, height],
            "mean": draws.mean(axis=0).tolist(),
            "deviation": draws.std(axis=0).tolist(),
            "draws": len(draws),
        }


def normalized_levels():
    """Returns the results of ToTensor and Normalize for every level in every channel: [256, 3] float32."""
    levels = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    tensor = normalize(transforms.ToTensor()(levels))
    (HERE / "normalized-levels.f32").write_bytes(tensor[:, 0, :].T.contiguous().numpy().astype("<f4").tobytes())


def main():
    HERE.mkdir(parents=True, exist_ok=True)
    for old in HERE.iterdir():
        old.unlink()
    names = source_images()
    normalized_levels()
    manifest = {
        "source": f"Pillow {PIL.__version__}, torchvision {torchvision.__version__.split('+')[0]}",
        "resized_crops": list(resized_crops()),
        "test_transforms": list(test_transforms(names)),
        "noise_crops": list(noise_crops()),
        "noise_tests": list(noise_tests()),
        "resize_modes": list(resize_modes()),
        "colours": list(colours()),
        "affine": list(affine()),
        "trivial_augment": list(trivial_augment()),
        "erased_means": list(erased_means()),
        "decoded": list(decoded()),
        "turned": list(turned()),
        "resized_sizes": list(resized_sizes()),
        "crop_fallbacks": list(crop_fallbacks()),
        "crop_means": list(crop_means()),
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in manifest.items())
    (HERE / "manifest.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
