"""An image depends on its seed alone, and the precision is that of the network alone."""

from pathlib import Path

import pytest
import torch
from predicted import DIFFERENCE, GREY_LEVELS, METHODS, grey_levels, pixels
from running import Dng
from torch import Tensor

from dng_lightning.data.pixels import to_uint8
from dng_lightning.guidance import (
    Guidance,
)
from dng_lightning.modules import ClassifierModule, DiffusionModule, GuidedSampler, image_sampler
from dng_lightning.sampling import ImageNoise

# --- an image depends on its seed alone ---


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_the_draws_of_an_image_are_the_same_in_any_batch(method: Guidance, sampler: GuidedSampler, monkeypatch):
    drawn: dict[int, list[Tensor]] = {}

    class Recorded(ImageNoise):
        def __init__(self, seeds: list[int], *args: object) -> None:
            super().__init__(seeds, *args)  # type: ignore[arg-type]
            self.seeds = seeds

        def __call__(self) -> Tensor:
            draws = super().__call__()
            for seed, draw in zip(self.seeds, draws, strict=True):
                drawn.setdefault(seed, []).append(draw)
            return draws

    monkeypatch.setattr(image_sampler, "ImageNoise", Recorded)
    seeds, found = [0, 1, 2, 3, 4, 1000], []
    for batches in ([seeds], [[seed] for seed in seeds], [seeds[::-1]], [seeds[3:], [2, 77, 1], [0]]):
        drawn.clear()
        for batch in batches:
            sampler.draw(batch, method)
        found.append({seed: torch.stack(drawn[seed]) for seed in seeds})
    assert {len(draws) for draws in found[0].values()} == {10}  # the start, and one for each step but the last
    for seed in seeds:
        assert all(torch.equal(other[seed], found[0][seed]) for other in found)
    assert not torch.equal(found[0][0], found[0][1])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_images_are_the_same_in_the_same_batch_and_nearly_so_in_others(method: Guidance, sampler: GuidedSampler):
    seeds = list(range(8))
    together = sampler.draw(seeds, method).images
    assert torch.equal(sampler.draw(seeds, method).images, together)
    singly = torch.cat([sampler.draw([seed], method).images for seed in seeds])
    backwards = sampler.draw(seeds[::-1], method).images.flip(0)
    in_threes = torch.cat([sampler.draw(seeds[i : i + 3], method).images for i in (0, 3, 6)])
    for other in (singly, backwards, in_threes):
        assert (other - together).clamp(-2, 2).abs().max() < DIFFERENCE
        assert grey_levels(to_uint8(other), to_uint8(together)) <= GREY_LEVELS


def test_the_batch_size_changes_no_file_by_more_than_a_grey_level(dng: Dng, from_tiny: list[str], tmp_path: Path):
    for size in (1, 3, 5):
        folder = f"--trainer.default_root_dir={tmp_path / str(size)}"
        dng("predict", *from_tiny, "--data.num_samples=5", f"--data.batch_size={size}", folder)
    images = [pixels(tmp_path / str(size), list(range(5))) for size in (1, 3, 5)]
    assert grey_levels(images[0], images[2]) <= GREY_LEVELS
    assert grey_levels(images[1], images[2]) <= GREY_LEVELS


# --- precision ---


def test_half_precision_is_the_network_s_alone(dng: Dng, from_tiny: list[str], tmp_path: Path, monkeypatch):
    """Noise, states, posteriors and labels stay in full precision, so that the images stay close.

    The images that others are compared with are drawn in the same precision: of a scale of 0 they are the same.
    """
    dtypes, autocast, judged = set(), set(), set()
    forward, judge = DiffusionModule.forward, ClassifierModule.forward

    def watched(self: DiffusionModule, x_t: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        eps = forward(self, x_t, t, class_labels)
        dtypes.add((next(self.net.parameters()).dtype, x_t.dtype, eps.dtype))
        autocast.add(torch.is_autocast_enabled("cpu"))
        return eps

    def watched_judge(self: ClassifierModule, x: Tensor, t: Tensor | None = None) -> Tensor:
        logits = judge(self, x, t)
        judged.add((next(self.net.parameters()).dtype, x.dtype, logits.dtype))
        return logits

    monkeypatch.setattr(DiffusionModule, "forward", watched)
    monkeypatch.setattr(ClassifierModule, "forward", watched_judge)
    images = {}
    for precision in ("32-true", "bf16-mixed", "bf16-true"):
        autocast.clear()
        folder = f"--trainer.default_root_dir={tmp_path / precision}"
        dng("predict", *from_tiny, "--data.num_samples=4", f"--trainer.precision={precision}", folder)
        images[precision] = pixels(tmp_path / precision, list(range(4)))
        assert autocast == {precision == "bf16-mixed"}  # also of the unguided images
    full = torch.float32
    assert dtypes == {(full, full, full), (torch.bfloat16, full, full)}
    assert judged == {(full, full, full)}
    for precision in ("bf16-mixed", "bf16-true"):
        assert 0 < grey_levels(images[precision], images["32-true"]) < 32
