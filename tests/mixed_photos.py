"""A folder of small photographs as people have them: every format, colour space and kind of name."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("plain", "two words", "äpfel", "日本", "d.o.t", "UPPER", "e-mail", "7", "with 'quote'", "émile zola")


def mixed_photos(root: Path, count: int, side: int = 64) -> None:
    """Make ``count`` images, a tenth in each of ten classes: bars of the class's own direction and hue, with noise."""
    draws = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    for number in range(count):
        label = number % 10
        angle, hue = np.pi * label / 10, np.array([label, (3 * label) % 10, (7 * label) % 10]) / 10
        bars = np.sin(16 * (x * np.cos(angle) + y * np.sin(angle)) + draws.uniform(0, 6))
        values = 128 + 90 * bars[..., None] * (0.3 + hue) + draws.normal(0, 8, (side, side, 3))
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        _save(Image.fromarray(values.clip(0, 255).astype(np.uint8)), folder, number)
    (root / ".DS_Store").write_bytes(b"\0")
    (root / CLASSES[0] / "._photo 0.png").write_bytes(b"\0\5\x16\7")


def _save(image: Image.Image, folder: Path, number: int) -> None:
    """In the next of ten formats, whatever the class."""
    stem = f"photo {number} – ü"
    match (number // 10) % 10:
        case 0:
            image.save(folder / f"{stem}.png")
        case 1:
            image.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / f"{stem}.png")
        case 2:
            image.putalpha(Image.new("L", image.size, 200))
            image.save(folder / f"{stem}.png")
        case 3:
            grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
            Image.fromarray(grey).save(folder / f"{stem}.png")
        case 4:
            image.convert("CMYK").save(folder / f"{stem}.jpg")
        case 5:
            image.convert("L").save(folder / f"{stem}.JPEG")
        case 6:
            turned = image.getexif()
            turned[0x0112] = 6
            image.save(folder / f"{stem}.jpg", exif=turned)
        case 7:
            image.save(folder / f"{stem}.webp", method=0)
        case 8:
            image.save(folder / f"{stem}.tiff", compression="tiff_lzw")
        case _:
            image.convert("LA").save(folder / f"{stem}.png")
