"""Parts of a tiny text-to-image model of coloured digits in training, with random weights."""

from pathlib import Path

import pytest
import torch
from mnist_files import mnist_root  # noqa: F401  # a fixture of these tests
from running import TINY

from dng_lightning.callbacks import Export
from scripts.captioned_digits import AutoencoderModule, TextToImageModule

EXTRA = "is not installed (extra text-to-image)"


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained autoencoder of 3x32x32 pixels."""
    for library in ("diffusers", "transformers"):
        pytest.importorskip(library, reason=f"{library} {EXTRA}")
    torch.manual_seed(0)
    module = AutoencoderModule(TINY["captioned_digits_autoencoder"]["net"])
    module.image_shape, module.class_names, module.seen_classes = (3, 32, 32), (), ()
    folder = tmp_path_factory.mktemp("autoencoder")
    Export().write(module, folder)
    return folder


@pytest.fixture
def text_to_image(autoencoder: Path) -> TextToImageModule:
    """A model that has drawn nothing yet but knows the scale of its latents."""
    torch.manual_seed(1)
    module = TextToImageModule(str(autoencoder), **TINY["captioned_digits"])
    module.scale = 2.0
    return module
