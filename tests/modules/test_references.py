"""Reference images that lie in files: what is read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dng_lightning.data.pixels import to_float, to_png
from dng_lightning.errors import SettingError
from dng_lightning.guidance import (
    AdaptiveNegative,
    DynamicSafeDenoiser,
    LimitedInterval,
    NegativePrompting,
    SafeDenoiser,
    SafetyGuidedFlow,
    ShieldedDiffusion,
)
from dng_lightning.guidance.references import References
from dng_lightning.modules.checkpoint_settings import load_settings, read_references
from dng_lightning.storage import resources

METHODS = [DynamicSafeDenoiser, SafeDenoiser, SafetyGuidedFlow, ShieldedDiffusion]
PIXELS = torch.randint(256, (7, 1, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def stored(tmp_path: Path):
    """Stores a tensor or something else, and gives the file's path."""

    def store(content: object, name: str = "images.pt") -> str:
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return store


def images(references: str) -> Tensor:
    return read_references(references).images


def test_pixels_are_read_as_the_values_that_networks_know(stored):
    assert torch.equal(images(stored(PIXELS)), to_float(PIXELS))
    assert torch.equal(images(stored(to_float(PIXELS).double(), "floats.pt")), to_float(PIXELS).double())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_png_files_is_read_in_the_order_of_their_names(channels, tmp_path):
    pixels = PIXELS if channels == 1 else torch.cat([PIXELS, 255 - PIXELS, PIXELS], 1)
    for number, image in enumerate(pixels):
        (tmp_path / f"{number:08}.png").write_bytes(to_png(image))
    for overview in ("grid.png", "trajectories.png"):
        (tmp_path / overview).write_bytes(to_png(pixels.repeat(1, 1, 3, 3)[0]))
    (tmp_path / "config.yaml").write_text("seed_everything: 0")
    assert torch.equal(images(str(tmp_path)), to_float(pixels))


GREY = PIXELS[0, 0].numpy()
COLOUR = np.stack([GREY, GREY, 255 - GREY], 2)


@pytest.mark.parametrize(
    ("name", "image", "channels"),
    [
        ("0.PNG", Image.fromarray(GREY), 1),
        ("16 bits.png", Image.fromarray(GREY.astype(np.uint16) * 257), 1),
        ("grey as colour.png", Image.fromarray(np.stack([GREY] * 3, 2)), 1),
        ("grey with alpha.png", Image.fromarray(np.stack([GREY, np.full_like(GREY, 255)], 2)), 1),
        ("colour.png", Image.fromarray(COLOUR), 3),
        ("palette.png", Image.fromarray(COLOUR).quantize(256), 3),
        ("0.jpg", Image.fromarray(np.full((4, 5), 200, np.uint8)), 1),
        ("0.JPEG", Image.fromarray(np.full((4, 5, 3), 200, np.uint8)), 1),
        ("one bit.png", Image.fromarray(GREY > 127), 1),
    ],
)
def test_images_of_any_kind_are_converted_by_their_own_depth(name: str, image: Image.Image, channels: int, tmp_path):
    image.save(tmp_path / name)
    (tmp_path / "._0.png").write_bytes(b"\x00\x05\x16\x07 what macOS leaves on foreign disks")
    found = images(str(tmp_path))
    expected = GREY if "png" in name.lower() else np.full_like(GREY, 200)
    expected = (expected > 127) * 255 if "bit.png" in name else expected
    assert found.shape == (1, channels, 4, 5)
    assert torch.equal(found[0, 0], to_float(torch.from_numpy(expected)))


def test_grey_images_serve_models_of_colour(stored):
    for pixels in (PIXELS, PIXELS.expand(-1, 3, -1, -1)):
        found = read_references(stored(pixels, f"{pixels.shape[1]}.pt")).like(torch.empty(2, 3, 4, 5))
        assert torch.equal(found.images, to_float(PIXELS).expand(-1, 3, -1, -1))


def test_a_grid_of_one_s_own_is_an_image(tmp_path):
    (tmp_path / "grid.png").write_bytes(to_png(PIXELS[0]))
    assert len(images(str(tmp_path))) == 1


@pytest.mark.parametrize("damaged", [b"", b"hello", to_png(PIXELS[0])[:60]])
def test_a_damaged_image_is_named(damaged: bytes, tmp_path):
    (tmp_path / "0.png").write_bytes(to_png(PIXELS[0]))
    (tmp_path / "1.png").write_bytes(damaged)
    with pytest.raises(SettingError, match=r"^references .*/1\.png cannot be read: .") as error:
        images(str(tmp_path))
    assert "\n" not in str(error.value)


def test_they_are_read_once(stored):
    path = stored(PIXELS)
    assert read_references(path) is read_references(path)


@pytest.mark.parametrize("method", METHODS)
def test_a_guidance_gets_its_references_wherever_it_stands(method, stored, tmp_path):
    guidance = method(references=stored(PIXELS))
    for outer in (guidance, LimitedInterval(guidance, 0.5), AdaptiveNegative(LimitedInterval(guidance))):
        read = load_settings(outer, tmp_path)
        while not isinstance(read, method):
            read = read.guidance
        assert isinstance(read.references, References)
        assert torch.equal(read.references.images, to_float(PIXELS))
    plain = LimitedInterval(NegativePrompting())
    assert load_settings(plain, tmp_path) is plain


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (PIXELS[:0], r"must be images \(N, C, H, W\); the tensor is \(0, 1, 4, 5\)"),
        (PIXELS.transpose(2, 3), r"must be images of \(1, 4, 5\); they are \(7, 1, 5, 4\)"),
        (PIXELS[0, 0, 0, 0], r"must be images \(N, C, H, W\); the tensor is \(\)"),
        (PIXELS.long(), "must hold one tensor of uint8 pixels, or of floats"),
        (PIXELS.float(), r"must be floats in \[-1, 1\], or uint8 pixels; they are in \[0, 254\]"),
        (PIXELS / 255, r"must be floats in \[-1, 1\], or uint8 pixels; they are in \[0, 0\.99"),
        (to_float(PIXELS).where(PIXELS > 9, torch.nan), "must be floats in .*; they are in .*nan"),
        ({"images": PIXELS}, "must hold one tensor of uint8 pixels, or of floats"),
        ("no tensor", "is no .pt file of one tensor"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_file_of_something_else_is_refused_before_sampling_starts(method, content, reason, stored, tmp_path):
    path = stored(content)
    if isinstance(content, str):
        Path(path).write_text(content)
    with pytest.raises(SettingError, match=reason) as error:
        load_settings(method(references=path), tmp_path).start(torch.empty(2, 1, 4, 5), 1)
    assert "\n" not in str(error.value)


def test_so_is_a_folder_without_images_or_with_images_of_several_shapes(tmp_path):
    with pytest.raises(SettingError, match="a folder must hold image files, all of one size; found none"):
        images(str(tmp_path))
    (tmp_path / "0.png").write_bytes(to_png(PIXELS[0]))
    (tmp_path / "1.png").write_bytes(to_png(PIXELS[0].transpose(1, 2)))
    with pytest.raises(SettingError, match="a folder must hold image files, all of one size; found 4x5, 5x4"):
        images(str(tmp_path))


@pytest.mark.parametrize("name", ["", "nowhere", "mnist/ones.pt"])
def test_so_is_a_name_that_leads_nowhere(name):
    with pytest.raises(SettingError, match=f"references '{name}': no such .pt file and no such folder"):
        images(name)


def test_a_local_file_wins_over_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resources.references("mnist/zeros.pt").is_absolute()
    for place in ("checkpoints/mnist/zeros.pt", "mnist/zeros.pt"):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        torch.save(PIXELS, path)
        assert resources.references("mnist/zeros.pt").absolute() == path


def test_what_ships_are_the_first_256_zeros_of_the_training_set(real_data):
    from torchvision.datasets import MNIST

    training = MNIST(str(real_data), train=True)
    zeros = training.data[training.targets == 0][:256].unsqueeze(1)
    assert torch.equal(images("mnist/zeros.pt"), to_float(zeros))
