"""An `Evaluator` turns tensors of images into tables and figures, without a trainer."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dng_lightning.data.pixels import from_png
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.evaluator import UNGUIDED, Evaluator
from dng_lightning.evaluation.label_space import LabelSpace
from dng_lightning.evaluation.runs import Cost, EvaluationRun, Labels, Samples

SEEDS = range(10, 22)
KINDS = LabelSpace.of_classes(["dark", "grey", "bright"], [2])
METHOD = EvaluationRun("Darker", json.dumps({"class": "Darker", "scale": 2.0}), 2.0)
COST = Cost(nfe=10, images_per_second=4)
LEVELS = torch.tensor([-0.9, 0.0, 0.9] * 4)  # of the unguided images
TIMES = [1.0, 0.5]


def by_brightness(images: Tensor) -> Labels:
    mean = images.flatten(1).mean(1)
    return Labels((mean > -0.5).long() + (mean > 0.5).long(), torch.ones(len(images)))


def samples(levels: Tensor, seeds: range = SEEDS, with_posterior: bool = False) -> Samples:
    images = levels.view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    posterior = torch.full((len(levels), 2, 1), 0.25) if with_posterior else None
    return Samples(list(seeds), images, TIMES, torch.full((len(levels), 2), 2.0), posterior, 10)


def rows(folder: Path, name: str = "results") -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"{name}.csv").open(newline="")))


@pytest.fixture
def evaluator(tmp_path: Path) -> Evaluator:
    return Evaluator(tmp_path, SEEDS, 2, KINDS, by_brightness, trackers={'{"class": "Any"}': "any"})


@pytest.mark.usefixtures("rendered")
def test_images_in_and_rows_and_figures_out(evaluator: Evaluator, tmp_path: Path):
    runs = [UNGUIDED, METHOD]
    assert evaluator.unfinished(runs) == runs
    assert evaluator.summary() == ""
    log_prob = torch.where(LEVELS > 0.5, 0.9, 0.1).log().view(12, 1, 1, 1).expand(12, 2, 1, 1)
    evaluator.add(UNGUIDED, samples(LEVELS), log_prob)
    evaluator.finish(UNGUIDED, COST)
    guided = LEVELS.clamp(max=0.2)
    for part in (slice(6, 12), slice(0, 6)):  # in any order
        evaluator.add(METHOD, samples(guided[part], SEEDS[part], with_posterior=True))
    evaluator.finish(METHOD, Cost(20, 2.5, memory_mb=7.5))
    evaluator.write_figures(runs)

    unguided, rejection, method = rows(tmp_path)
    assert [row["method"] for row in (unguided, rejection, method)] == ["Unguided", "Rejection", "Darker"]
    assert [row["class_counts"] for row in (unguided, rejection, method)] == ["4 4 4", "4 4 0", "4 8 0"]
    assert [float(row["forbidden_rate"]) for row in (unguided, rejection, method)] == pytest.approx(
        [1 / 3, 0, 0], rel=1e-5
    )
    assert (method["scale"], method["seeds"], method["steps"]) == ("2", "10-21", "2")
    assert (method["nfe"], method["images_per_second"], method["memory_mb"]) == ("20", "2.5", "7.5")
    assert float(rejection["nfe"]) == pytest.approx(15)
    assert float(method["rmse_to_unguided"]) == 0  # what was never forbidden stayed as it was
    assert [row["share"] for row in rows(tmp_path, "classes")[-3:]] == ["0.333333", "0.666667", "0"]
    assert [(row["t/T"], row["auc"]) for row in rows(tmp_path, "posterior")] == [("0.5", "1"), ("0", "1")]
    for name in ("tradeoff", "histograms", "samples", "calibration"):
        assert from_png(tmp_path / f"{name}.png").float().std() > 10, name
    assert evaluator.summary().startswith("Without bright; seeds 10–21, 2 steps.\nmethod")
    assert "Darker" in (tmp_path / "results.md").read_text()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3


def test_what_is_done_is_found_again(evaluator: Evaluator, tmp_path: Path):
    other = EvaluationRun("Darker", json.dumps({"class": "Darker", "scale": 3.0}), 3.0)
    evaluator.add(METHOD, samples(LEVELS))
    evaluator.store(UNGUIDED).clear()
    evaluator.add(UNGUIDED, samples(LEVELS), torch.zeros(12, 2, 1, 1))
    evaluator.finish(UNGUIDED, COST)
    evaluator.finish(METHOD, COST)
    assert evaluator.unfinished([UNGUIDED, METHOD]) == []
    assert evaluator.unfinished([UNGUIDED, METHOD, other]) == [other]
    evaluator.store(UNGUIDED).clear()  # the other is to be compared with these images
    assert evaluator.unfinished([UNGUIDED, METHOD]) == []
    assert evaluator.unfinished([UNGUIDED, METHOD, other]) == [UNGUIDED, other]
    for settings in ({"steps": 3}, {"seeds": range(10, 21)}):
        again = Evaluator(
            **{"folder": tmp_path, "seeds": SEEDS, "steps": 2} | settings, label_space=KINDS, label=by_brightness
        )
        assert again.unfinished([UNGUIDED, METHOD]) == [UNGUIDED, METHOD]
    more = Evaluator(tmp_path, SEEDS, 2, KINDS, by_brightness, trackers={'{"class": "New"}': "new"})
    assert more.unfinished([UNGUIDED, METHOD]) == [UNGUIDED]  # once more, for the posterior that was not tracked
    alone = Evaluator(tmp_path, SEEDS, 2, KINDS, by_brightness, unguided=None)
    assert alone.unfinished([METHOD, other]) == [other]


def test_labels_are_of_the_pixels_that_are_kept(tmp_path: Path):
    """0.5015 is bright by itself, and grey as a pixel: what is measured is what is shown."""
    seen: list[float] = []

    def label(images: Tensor) -> Labels:
        seen.extend(images.flatten().unique().tolist())
        return by_brightness(images)

    evaluator = Evaluator(tmp_path, range(2), 2, KINDS, label, unguided=None)
    evaluator.add(METHOD, samples(torch.tensor([0.5015, 3.0]), range(2)))
    assert seen == pytest.approx([191 / 127.5 - 1, 1.0])
    evaluator.finish(METHOD, COST)
    assert rows(tmp_path)[0]["class_counts"] == "0 1 1"
    assert evaluator.store(METHOD).all("pixels").flatten(1)[:, 0].tolist() == [191, 255]


def test_missing_images_are_one_line(evaluator: Evaluator):
    evaluator.add(METHOD, samples(LEVELS[:6], SEEDS[:6]))
    with pytest.raises(SettingError, match="lacks the images of 6 of 12 seeds, first 16"):
        evaluator.finish(METHOD, COST)


def test_nothing_left_to_be_drawn(tmp_path: Path):
    with pytest.raises(SettingError, match="forbidden names every class"):
        Evaluator(tmp_path, SEEDS, 2, LabelSpace.of_classes(["a", "b"], [0, 1]), by_brightness)
