"""What `dng predict` writes is what was drawn, also with other networks, classes and classifiers."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from predicted import pixels
from running import Dng
from torch import Tensor

from dng_lightning.data import Digits
from dng_lightning.data.pixels import from_png, to_float, to_uint8
from dng_lightning.guidance import (
    DynamicNegativeGuidance,
    NegativePrompting,
    Unguided,
)
from dng_lightning.kernel import NoiseLevel
from dng_lightning.modules import ClassifierModule, DiffusionModule, GuidedSampler
from dng_lightning.posterior import CalibratedPosterior, ClassifierPosterior

# --- what is written ---


def test_what_is_written_is_what_was_drawn(dng: Dng, from_tiny: list[str], tmp_path: Path, capsys):
    seeds = ["--data.num_samples=5", "--data.first_seed=7", "--data.batch_size=2"]
    dng("predict", *from_tiny, *seeds, "--model.forbidden=[3,5]", f"--trainer.default_root_dir={tmp_path}")
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert settings["model"]["init_args"]["forbidden"] == [3, 5]
    assert settings["data"]["init_args"] == {
        "num_samples": 5,
        "first_seed": 7,
        "batch_size": 2,
        "reference_data": None,
    }

    given = settings["model"]["init_args"]["guidance"]["init_args"]
    guidance = DynamicNegativeGuidance(**given | {"posterior": CalibratedPosterior(**given["posterior"]["init_args"])})
    twin = GuidedSampler(**settings["model"]["init_args"] | {"guidance": guidance})
    rows = list(csv.DictReader((tmp_path / "labels.csv").open(newline="")))
    assert list(rows[0]) == ["seed", "file", "label", "confidence", "posterior", "class_label"]
    assert [row["seed"] for row in rows] == ["7", "8", "9", "10", "11"]
    assert all((tmp_path / row["file"]).is_file() for row in rows)
    for batch in ([7, 8], [9, 10], [11]):
        drawn, unguided = twin.draw(batch), twin.draw(batch, Unguided())
        assert torch.equal(pixels(tmp_path, batch), to_uint8(drawn.images))
        assert torch.equal(pixels(tmp_path / "unguided", batch), to_uint8(unguided.images))
        assert drawn.posterior is not None
        assert twin.judge is not None
        found = twin.judge.label(to_float(to_uint8(drawn.images)))
        for i, row in enumerate(rows[batch[0] - 7 :][: len(batch)]):
            assert row["label"] == Digits.class_names[found.labels[i]]
            assert float(row["confidence"]) == pytest.approx(float(found.confidence[i]), abs=1e-6)
            assert float(row["posterior"]) == pytest.approx(float(drawn.posterior[i, -1].sum()))
            assert row["class_label"] == ""
            record = json.loads((tmp_path / "records" / f"{batch[i]:08d}.json").read_text())
            assert record["times"] == [1.0, 0.667, 0.333]
            assert record["posteriors"][0] == pytest.approx(0.2, abs=1e-3)
            assert record["posteriors"] == pytest.approx(drawn.posterior[i].sum(1).tolist())
            assert record["scales"] == pytest.approx(drawn.scale[i].tolist())

    table = capsys.readouterr().out
    for label, name in enumerate(Digits.class_names):
        mark = " ✗" if label in (3, 5) else ""
        count = sum(row["label"] == name for row in rows)
        line = next(line for line in table.splitlines() if line.strip().startswith(f"{name}{mark} "))
        assert f"{count} {count / 5:6.1%}" in line
    assert "forbidden" in table
    costs = [line.split() for line in table.splitlines() if re.match(r" *(unguided|Dynamic\w+) +\d+ +[\d.e+]+$", line)]
    assert [cost[:2] for cost in costs] == [["unguided", "3"], ["DynamicNegativeGuidance", "9"]]  # of two classes
    assert f"written to {tmp_path}" in table
    assert not list(tmp_path.rglob("*.part"))


def test_the_images_use_the_whole_range(sampler: GuidedSampler):
    """Otherwise the comparisons of this file would compare black with black."""
    grey = to_uint8(sampler.draw(range(16)).images)
    assert ((grey > 0) & (grey < 255)).float().mean() > 0.5
    assert len(grey.unique()) > 200


@pytest.mark.usefixtures("rendered")
def test_the_figures(dng: Dng, from_tiny: list[str], tmp_path: Path):
    dng("predict", *from_tiny, "--data.num_samples=9", f"--trainer.default_root_dir={tmp_path}")
    for name in ("grid.png", "trajectories.png"):
        figure = from_png(tmp_path / name)
        _, height, width = figure.shape
        assert 150 < height < 2000
        assert 600 < width < 2000
        assert figure.float().std() > 10  # something is drawn


def test_only_the_images_shown_are_drawn_twice(dng: Dng, from_tiny: list[str], tmp_path: Path):
    shown = "--trainer.callbacks=[{class_path: ImageWriter, init_args: {num_shown: 2}}]"
    dng("predict", *from_tiny, "--data.num_samples=4", shown, f"--trainer.default_root_dir={tmp_path}")
    assert sorted(path.name for path in (tmp_path / "unguided").glob("*.png")) == ["00000000.png", "00000001.png"]
    assert len(list(tmp_path.glob("0*.png"))) == 4


def test_unguided_images_have_no_twins(dng: Dng, from_tiny: list[str], tmp_path: Path):
    settings = ["--model.guidance=Unguided", "--data.num_samples=2", f"--trainer.default_root_dir={tmp_path}"]
    dng("predict", *from_tiny, *settings)
    assert not (tmp_path / "unguided").exists()
    assert {"grid.png", "trajectories.png", "labels.csv"} <= {path.name for path in tmp_path.iterdir()}
    assert [row["posterior"] for row in csv.DictReader((tmp_path / "labels.csv").open())] == ["", ""]


def test_without_a_classifier(dng: Dng, from_tiny: list[str], tmp_path: Path):
    dng(
        "predict",
        *from_tiny,
        "--model.classifier=null",
        "--data.num_samples=2",
        f"--trainer.default_root_dir={tmp_path}",
    )
    assert [row["label"] for row in csv.DictReader((tmp_path / "labels.csv").open())] == ["", ""]


def test_a_single_class_network_as_the_negative(
    dng: Dng, from_tiny: list[str], tiny_single_class: Path, tmp_path: Path, evaluated: list[int]
):
    pair = [f"--model.negative_checkpoints=[{tiny_single_class}]", "--model.guidance.scale=5"]
    dng("predict", *from_tiny, *pair, "--data.num_samples=2", f"--trainer.default_root_dir={tmp_path}")
    assert len(list(tmp_path.glob("0*.png"))) == 2
    assert sum(evaluated) == 2 * 3 * (1 + 1) + 2 * 3  # base and negative, and the unguided twins


# --- going on after an interruption ---


def test_the_posterior_of_a_noise_conditional_classifier(
    tiny_checkpoint: Path, tiny_noisy_classifier: Path, monkeypatch: pytest.MonkeyPatch
):
    by_classifier = DynamicNegativeGuidance(posterior=ClassifierPosterior())
    settings = {
        "forbidden": [3, 5],
        "steps": 4,
        "classifier": None,
        "noise_conditional_classifier": str(tiny_noisy_classifier),
    }
    sampler = GuidedSampler(str(tiny_checkpoint), guidance=by_classifier, **settings)
    asked: list[tuple[NoiseLevel, Tensor]] = []
    log_posterior = ClassifierModule.log_posterior

    def watched(self: ClassifierModule, x_t: Tensor, level: NoiseLevel) -> Tensor:
        asked.append((level, log_posterior(self, x_t, level)))
        return asked[-1][1]

    monkeypatch.setattr(ClassifierModule, "log_posterior", watched)
    drawn = sampler.draw([0, 1, 2])
    assert [sampler.schedule.fraction(level) for level, _ in asked] == drawn.times == [1.0, 0.75, 0.5, 0.25]
    expected = torch.stack([log_p[:, [3, 5]].exp() for _, log_p in asked], 1)
    expected *= 0.99 / expected.sum(2, keepdim=True).clamp(min=0.99)
    assert drawn.posterior is not None
    torch.testing.assert_close(drawn.posterior, expected)
    both = drawn.posterior.sum(2)
    torch.testing.assert_close(drawn.scale, both / (1 - both), rtol=1e-4, atol=1e-6)
    assert drawn.nfe == 4 * 3  # the classifier's are not counted
    seen = len(asked)
    unpushed = sampler.draw([0, 1, 2], NegativePrompting(0.0))
    assert len(asked) == seen  # asked by those only who need it
    idle = DynamicNegativeGuidance(0.0, ClassifierPosterior())
    assert torch.equal(sampler.draw([0, 1, 2], idle).images, unpushed.images)
    assert not torch.equal(drawn.images, unpushed.images)


# --- asking for classes ---


@pytest.mark.parametrize(("class_labels", "classes"), [("all", "0123456789"), ("[3,7]", "37"), ("4", "4")])
def test_wanted_classes_are_asked_for_in_turn(
    class_labels: str, classes: str, dng: Dng, from_tiny: list[str], tmp_path: Path, monkeypatch, capsys
):
    told: set[tuple[int, ...]] = set()
    forward = DiffusionModule.forward

    def watched(self: DiffusionModule, x_t: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        assert class_labels is not None
        told.add(tuple(class_labels.tolist()))
        return forward(self, x_t, t, class_labels)

    monkeypatch.setattr(DiffusionModule, "forward", watched)
    settings = [
        f"--model.class_labels={class_labels}",
        "--model.guidance=Unguided",
        "--data.num_samples=12",
        "--data.first_seed=5",
    ]
    dng("predict", *from_tiny, *settings, f"--trainer.default_root_dir={tmp_path}")
    expected = [classes[seed % len(classes)] for seed in range(5, 17)]
    rows = list(csv.DictReader((tmp_path / "labels.csv").open(newline="")))
    assert [row["class_label"] for row in rows] == expected
    assert told == {tuple(map(int, expected))}
    agreed = sum(row["label"] == row["class_label"] for row in rows)
    assert f"sees the requested class in {agreed} of 12" in capsys.readouterr().out


def test_a_wanted_class_may_be_the_number_0(tiny_checkpoint: Path):
    sampler = GuidedSampler(str(tiny_checkpoint), guidance=Unguided(), class_labels=0, classifier=None)
    assert sampler.class_labels == [0]


def test_every_class_is_wanted_by_its_label_where_names_are_numbers(tiny_checkpoint: Path, tmp_path: Path):
    stored = torch.load(tiny_checkpoint / "model.ckpt", weights_only=True)
    stored["trained_on"]["class_names"] = [str(number) for number in range(1, 11)]
    torch.save(stored, tmp_path / "from-1.ckpt")
    sampler = GuidedSampler(str(tmp_path / "from-1.ckpt"), "10", classifier=None, steps=3, class_labels="all")
    assert sampler.class_labels == list(range(10))
