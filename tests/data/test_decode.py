"""One reader for every kind of image file."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dng_lightning.data.decode import decode, image_files, is_grey, upright_size

GREY = np.arange(256, dtype=np.uint8).reshape(8, 32)
COLOUR = np.stack([GREY, GREY[::-1], GREY.T.reshape(8, 32)], axis=-1)


def saved(image: Image.Image, kind: str, **settings: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **settings)  # type: ignore[arg-type]
    file.seek(0)
    return file


def with_alpha(colours: np.ndarray, alpha: int) -> Image.Image:
    return Image.fromarray(np.dstack([colours, np.full(colours.shape[:2], alpha, np.uint8)]))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_grey_and_colour_are_kept(kind: str):
    for pixels in (GREY, COLOUR):
        assert np.array_equal(decode(saved(Image.fromarray(pixels), kind)), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files_are_close(kind: str):
    smooth = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (32, 1))
    for pixels in (smooth, np.stack([smooth] * 3, axis=-1)):
        decoded = np.asarray(decode(saved(Image.fromarray(pixels), kind, quality=95), channels=3))
        assert decoded.shape == (32, 32, 3)
        assert np.abs(decoded.astype(int) - smooth[:, :, None]).mean() < 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_converted_by_their_depth(kind: str):
    """Pillow's own conversion clips: every level above 255 of 65,535 would become white."""
    decoded = decode(saved(Image.fromarray(GREY.astype(np.uint16) * 257), kind))
    assert decoded.mode == "L"
    assert np.array_equal(decoded, GREY)
    assert np.array_equal(
        np.asarray(decode(saved(Image.fromarray(GREY.astype(np.uint16) * 257), kind), 3))[..., 2], GREY
    )


def test_what_is_transparent_lies_on_white():
    for pixels in (np.dstack([GREY]), COLOUR):
        assert (np.asarray(decode(saved(with_alpha(pixels, 0), "PNG"))) == 255).all()
        assert np.array_equal(np.asarray(decode(saved(with_alpha(pixels, 255), "PNG"))), pixels.squeeze())
    half = np.asarray(decode(saved(with_alpha(np.zeros((4, 4, 3), np.uint8), 128), "PNG")))
    assert (np.abs(half.astype(int) - 127) <= 1).all()


def test_grey_with_alpha_stays_grey():
    assert decode(saved(with_alpha(np.dstack([GREY]), 255), "PNG")).mode == "L"


def test_palettes():
    of_greys, of_colours = Image.fromarray(GREY).convert("P"), Image.fromarray(COLOUR).quantize(16)
    assert np.array_equal(decode(saved(of_greys, "PNG")), GREY)
    assert np.array_equal(decode(saved(of_colours, "PNG")), of_colours.convert("RGB"))
    see_through = saved(of_colours, "PNG", transparency=bytes(16))  # every colour of the palette
    assert (np.asarray(decode(see_through)) == 255).all()


def test_cmyk():
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[:, :, 0] = 255
    decoded = np.asarray(decode(saved(Image.fromarray(colours).convert("CMYK"), "JPEG", quality=95)))
    assert np.abs(decoded.astype(int) - colours).max() < 20


def test_black_and_white():
    assert set(np.unique(decode(saved(Image.fromarray(GREY > 128), "PNG")))) == {0, 255}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_rotation_of_the_camera(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(Image.fromarray(GREY), "PNG", exif=exif)
    with Image.open(file) as image:
        assert upright_size(image) == ((32, 8) if orientation > 4 else (8, 32))
    turned = np.asarray(decode(file))
    assert turned.shape == ((32, 8) if orientation > 4 else (8, 32))
    corner = {1: GREY[0, 0], 2: GREY[0, -1], 3: GREY[-1, -1], 4: GREY[-1, 0]}
    corner |= {5: GREY[0, 0], 6: GREY[-1, 0], 7: GREY[-1, -1], 8: GREY[0, -1]}
    assert turned[0, 0] == corner[orientation]


def test_32_bits_are_refused():
    with pytest.raises(ValueError, match="32-bit"):
        decode(saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"))


def test_greys_by_their_header():
    assert is_grey(Image.fromarray(GREY).convert("P"))
    assert not is_grey(Image.fromarray(COLOUR).quantize(16))
    assert not is_grey(Image.fromarray(COLOUR))


def test_image_files_are_found_by_suffix_without_hidden_ones(tmp_path: Path):
    for name in ("b.PNG", "a b/ü.jpeg", ".DS_Store", "._b.png", ".hidden/c.png", "Thumbs.db", "notes.txt", "d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert found == ["b.PNG", "d.webp", "a b/ü.jpeg"]
