"""Reference images that lie in files: what is read, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dng_lightning import shipped
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
    pixels = PIXELS.expand(7, channels, 4, 5)
    for number, image in enumerate(pixels):
        (tmp_path / f"{number:08}.png").write_bytes(to_png(image))
    for overview in ("grid.png", "trajectories.png"):
        (tmp_path / overview).write_bytes(to_png(pixels.repeat(1, 1, 3, 3)[0]))
    (tmp_path / "config.yaml").write_text("seed_everything: 0")
    assert torch.equal(images(str(tmp_path)), to_float(pixels))


def test_a_folder_may_hold_images_of_every_kind(tmp_path):
    grey = PIXELS[0, 0].numpy()
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "0.png")
    Image.fromarray(grey).save(tmp_path / "1.TIF")
    (tmp_path / "._0.png").write_bytes(b"AppleDouble")
    assert torch.equal(images(str(tmp_path)), to_float(PIXELS[[0, 0]]))
    Image.fromarray(grey).convert("RGB").save(tmp_path / "2.bmp")
    read_references.cache_clear()
    assert torch.equal(images(str(tmp_path)), to_float(PIXELS[[0, 0, 0]].expand(3, 3, 4, 5)))
    (tmp_path / "3.jpg").write_text("hello")
    read_references.cache_clear()
    with pytest.raises(SettingError, match=r"3\.jpg cannot be read"):
        images(str(tmp_path))


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
        ({"images": PIXELS}, "must hold one tensor of uint8 pixels, or of floats"),
        ((to_float(PIXELS) + 1) / 2, r"must be floats in \[-1, 1\]; they are in 0 to 0.99"),
        (PIXELS.float(), r"must be floats in \[-1, 1\]; they are in 0 to 25\d"),
        (to_float(PIXELS).log(), r"must be floats in \[-1, 1\]; they are in nan to nan"),
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
    with pytest.raises(SettingError, match="a folder must hold image files, all of one shape"):
        images(str(tmp_path))
    (tmp_path / "0.png").write_bytes(to_png(PIXELS[0]))
    (tmp_path / "1.png").write_bytes(to_png(PIXELS[0].transpose(1, 2)))
    with pytest.raises(SettingError, match="a folder must hold image files, all of one shape"):
        images(str(tmp_path))


@pytest.mark.parametrize("name", ["", "nowhere", "mnist/ones.pt"])
def test_so_is_a_name_that_leads_nowhere(name):
    with pytest.raises(SettingError, match=f"references '{name}': no such .pt file and no such folder"):
        images(name)


def test_a_local_file_wins_over_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.references("mnist/zeros.pt").is_absolute()
    for place in ("checkpoints/mnist/zeros.pt", "mnist/zeros.pt"):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        torch.save(PIXELS, path)
        assert shipped.references("mnist/zeros.pt").absolute() == path


def test_what_ships_are_the_first_256_zeros_of_the_training_set(real_data):
    from torchvision.datasets import MNIST

    training = MNIST(str(real_data), train=True)
    zeros = training.data[training.targets == 0][:256].unsqueeze(1)
    assert torch.equal(images("mnist/zeros.pt"), to_float(zeros))
