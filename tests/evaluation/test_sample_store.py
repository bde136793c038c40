import itertools
from pathlib import Path

import pytest
import torch

from dng_lightning.errors import SettingError
from dng_lightning.evaluation import sample_store
from dng_lightning.evaluation.sample_store import SampleStore

SEEDS = range(100, 111)
VALUES = {
    "pixels": torch.arange(11 * 3 * 2 * 2).remainder(256).to(torch.uint8).view(11, 3, 2, 2),
    "labels": torch.arange(11) % 4,
    "features": torch.arange(11 * 5.0).view(11, 5) / 7,
    "posteriors": torch.arange(11 * 2.0).view(11, 2) / 3,
    "trajectories": torch.arange(11 * 6.0).view(11, 3, 2) / 9,
    "attributes": torch.arange(11 * 4).view(11, 4) % 7,
}


def written(folder: Path, batches: list[list[int]]) -> SampleStore:
    images = SampleStore(folder, SEEDS)
    for seeds in batches:
        rows = torch.tensor(seeds) - SEEDS.start
        images.write(seeds, **{name: values[rows] for name, values in VALUES.items()})
    return images


@pytest.mark.parametrize(
    "batches",
    [
        [list(SEEDS)],
        [[seed] for seed in reversed(SEEDS)],
        [[110, 101], [100, 109, 104], [108, 102, 103, 105], [107, 106]],
        [list(SEEDS[::2]), list(SEEDS[1::2])],  # as two processes share them
    ],
)
@pytest.mark.parametrize("block", [1, 4, 1000])
def test_the_seeds_are_in_order_whatever_the_batches(
    batches: list[list[int]], block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sample_store, "BLOCK", block)
    images = written(tmp_path / "images", batches)
    assert not images.is_complete
    images.merge()
    assert images.is_complete
    for name, values in VALUES.items():
        assert torch.equal(images.all(name), values)
        assert images.all(name).dtype == values.dtype
        assert torch.equal(images.first(name, 3), values[:3])
        assert torch.equal(images.first(name, 99), values)
        blocks = list(images.blocks(name))
        assert max(map(len, blocks)) <= block
        assert torch.equal(torch.cat(blocks), values)
    assert not (tmp_path / "images" / "parts").exists()


@pytest.mark.parametrize(
    ("batches", "missing"), [([[100, 101, 102]], 8), ([list(SEEDS[::2])], 5), ([list(SEEDS[:-1])], 1)]
)
def test_images_that_did_not_arrive_are_missed(batches: list[list[int]], missing: int, tmp_path: Path):
    """As of a process that writes to the disk of another machine; they would be black images of the first class."""
    images = written(tmp_path, batches)
    first = min(set(SEEDS) - {seed for batch in batches for seed in batch})
    with pytest.raises(SettingError, match=f"lacks the images of {missing} of 11 seeds, first {first}: all processes"):
        images.merge()
    assert not images.is_complete


def test_only_what_is_shown_is_kept(tmp_path: Path):
    images = written(tmp_path, [list(SEEDS)])
    images.merge()
    images.keep_only(4, "pixels", "labels")
    assert images.is_complete
    assert torch.equal(images.all("pixels"), VALUES["pixels"][:4])
    assert torch.equal(images.all("labels"), VALUES["labels"][:4])
    assert {path.name for path in tmp_path.iterdir()} == {"complete", "pixels.npy", "labels.npy"}
    images.clear()
    assert not images.is_complete
    assert not tmp_path.exists()
    images.clear()


def test_an_interrupted_set_is_not_complete(tmp_path: Path):
    assert not SampleStore(tmp_path / "nothing", SEEDS).is_complete
    assert not written(tmp_path / "parts", [[100, 101]]).is_complete


def test_sets_do_not_share_what_was_read(tmp_path: Path):
    """What is read can be changed; the file cannot."""
    images = written(tmp_path, [list(SEEDS)])
    images.merge()
    for read in (images.all("features"), images.first("features", 11), *itertools.islice(images.blocks("features"), 1)):
        read.zero_()
        assert torch.equal(images.all("features"), VALUES["features"])
