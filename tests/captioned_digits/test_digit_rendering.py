from pathlib import Path

import pytest
import torch
from torch import Tensor

from dng_lightning.data import MNIST
from dng_lightning.modules import ClassifierModule
from scripts.captioned_digits import digit_rendering
from scripts.captioned_digits.attributes import BACKGROUNDS, COLOURS


def bars() -> Tensor:
    """A ring, and upright bars 2 to 6 pixels wide and 16 high, as grey digits."""
    pixels = torch.zeros(6, 1, 28, 28, dtype=torch.uint8)
    pixels[0, 0, 6:22, 6:22], pixels[0, 0, 9:19, 9:19] = 255, 0
    for number in range(1, 6):
        pixels[number, 0, 6:22, 10 : 11 + number] = 255
    return pixels


def labels(count: int, value: int) -> Tensor:
    return torch.full((count,), value)


def test_all_strokes_get_the_same_width_however_wide_they_were():
    for thickness, width in ((0, 1.5), (1, 3.5)):
        across = digit_rendering.coverage(bars(), labels(6, thickness))[1:, 0, 16].sum(1)  # the middle row of each bar
        assert (across - width).abs().max() <= 0.5  # a middle line between two pixels is two pixels wide
    thin, thick = (digit_rendering.coverage(bars(), labels(6, thickness)).sum((1, 2, 3)) for thickness in (0, 1))
    assert (thick > 1.8 * thin).all()


def test_the_stroke_stays_where_it_was():
    share = digit_rendering.coverage(bars(), labels(6, 1))
    columns = torch.arange(32) + 0.5
    for number in range(1, 6):
        middle = (share[number, 0].sum(0) * columns).sum() / share[number].sum()
        assert middle == pytest.approx(2 + 10 + (number + 1) / 2, abs=0.5)
    assert share[0, 0, 16, 16] == 0  # a ring stays one


def test_skeletons():
    shapes = torch.zeros(2, 64, 64, dtype=torch.bool)
    shapes[0, 10:50, 20:25] = True  # a bar five wide
    lines = digit_rendering.skeleton(shapes)
    assert lines[0, 12:48].sum(1).eq(1).all()
    assert lines[0, 12:48, 22].all()
    assert not (lines & ~shapes).any()
    assert not lines[1].any()


def test_colours_are_exact():
    for ink, ink_rgb in enumerate(COLOURS.values()):
        for ground, ground_rgb in enumerate(BACKGROUNDS.values()):
            for thickness in (0, 1):
                share = digit_rendering.coverage(bars(), labels(6, thickness))[:, 0]
                drawn = digit_rendering.draw(bars(), labels(6, ink), labels(6, thickness), labels(6, ground))
                assert (drawn.dtype, drawn.shape) == (torch.uint8, (6, 3, 32, 32))
                pixels = drawn.permute(0, 2, 3, 1)
                assert (share == 1).flatten(1).any(1).all()  # thin digit_rendering have pixels of nothing else too
                assert (pixels[share == 1] == torch.tensor(ink_rgb)).all()
                assert (pixels[share == 0] == torch.tensor(ground_rgb)).all()
                edge = (share > 0) & (share < 1)
                mixed = torch.tensor(ink_rgb) * share[edge][:, None] + torch.tensor(ground_rgb) * (
                    1 - share[edge][:, None]
                )
                assert (pixels[edge] - mixed).abs().max() <= 0.5


def test_a_picture_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch):
    arguments = [bars(), torch.arange(6), torch.tensor([0, 1] * 3), torch.arange(6) % 4]
    together = digit_rendering.draw(*arguments)
    monkeypatch.setattr(digit_rendering, "CHUNK", 4)
    assert digit_rendering.draw(*arguments).equal(together)
    for i in range(6):
        assert digit_rendering.draw(*(argument[i : i + 1] for argument in arguments)).equal(together[i : i + 1])


def test_digits_stay_legible(real_data: Path):
    """What was trained on MNIST as it is reads thin and thick digits, in white on black."""
    data = MNIST(str(real_data))
    data.setup()
    pixels, digits = data.part("test")[:1000]
    classifier = ClassifierModule.load("mnist-classifier")
    for thickness in (0, 1):
        share = digit_rendering.coverage(pixels, labels(1000, thickness))[:, :, 2:-2, 2:-2]
        read = classifier.label(share * 2 - 1).labels
        assert (read == digits).float().mean() >= 0.97
