"""Data modules of one's own: what `_read` gives is checked and converted."""

from typing import Any

import pytest
import torch
from datamodules import ready

from dng_lightning.data.base import ImageDataModule
from dng_lightning.errors import SettingError


class Own(ImageDataModule):
    """What `_read` gives is set from outside."""

    class_names = tuple("0123456789")
    image_shape = (1, 8, 8)
    default_val_size = 20
    x: Any = torch.randint(0, 256, (200, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y: Any = torch.arange(200) % 10

    def _read(self) -> Any:
        return (self.x, self.y), (self.x[:50], self.y[:50])


def own(**given: Any) -> ImageDataModule:
    data = Own()
    for name, value in given.items():
        setattr(data, name, value)
    return ready(data)


@pytest.mark.parametrize(
    "given",
    [
        {"x": Own.x.numpy(), "y": Own.y.numpy()},
        {"x": Own.x[:, 0]},
        {"x": Own.x.permute(0, 2, 3, 1)},
        {"x": Own.x / 127.5 - 1},
        {"x": Own.x / 255},
        {"x": Own.x.int() * 257},
        {"y": Own.y.int()},
        {"y": Own.y.to(torch.uint8)},
        {"y": Own.y.float()},
        {"y": torch.nn.functional.one_hot(Own.y)},
        {"y": Own.y.tolist()},
    ],
)
def test_an_own_data_module_may_give_images_and_labels_of_any_kind(given: dict[str, Any]):
    data, usual = own(**given), own()
    for part in ("train", "val", "test"):
        assert torch.equal(data.part(part).images, usual.part(part).images)
        assert torch.equal(data.part(part).labels, usual.part(part).labels)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"y": Own.y + 1}, "labels 1 to 10: 10 classes have labels 0 to 9"),
        ({"y": Own.y - 1}, "labels -1 to 8"),
        ({"x": torch.zeros(200, 1, 16, 16, dtype=torch.uint8)}, "images of 1x16x16 instead of 1x8x8"),
        ({"x": torch.zeros(200, 3, 8, 8, dtype=torch.uint8)}, "images of 3x8x8 instead of 1x8x8"),
        ({"y": Own.y[:100]}, "labels 100 for 200 images"),
        ({"x": torch.zeros(200, 1, 8, 8)}, "is unclear"),
    ],
)
def test_what_an_own_data_module_gives_wrong_is_one_line(given: dict[str, Any], said: str):
    with pytest.raises(SettingError, match=said) as caught:
        own(**given)
    assert "\n" not in str(caught.value)


def test_an_own_data_module_without_a_test_part_has_one_held_out():
    class NoTest(Own):
        def _read(self) -> Any:
            return (self.x, self.y), (self.x[:0], self.y[:0])

    assert [len(ready(NoTest(test_size=30)).part(part)) for part in ("train", "val", "test")] == [150, 20, 30]


def test_an_own_data_module_in_another_size():
    data = ready(Own(image_size=16, fit="pad", crop=2))
    assert data.image_shape == (1, 16, 16)
    assert data.part("train").images.shape == (180, 1, 16, 16)
    assert next(iter(data.train_dataloader()))[0].shape[1:] == (1, 18, 18)
