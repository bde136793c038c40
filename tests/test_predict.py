"""What `dng predict` writes is what was drawn, once, and an image depends on its seed alone."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from running import Dng
from torch import Tensor

from dng_lightning.data import Digits
from dng_lightning.data.pixels import from_png, to_float, to_uint8
from dng_lightning.evaluation.runs import Samples
from dng_lightning.guidance import (
    DynamicNegativeGuidance,
    Guidance,
    NegativePrompting,
    Unguided,
)
from dng_lightning.kernel import NoiseLevel
from dng_lightning.modules import ClassifierModule, DiffusionModule, GuidedSampler, image_sampler
from dng_lightning.posterior import CalibratedPosterior, ClassifierPosterior
from dng_lightning.sampling import ImageNoise

METHODS = [Unguided(), NegativePrompting(scale=20.0), DynamicNegativeGuidance(scale=20.0)]

# The greatest difference between the pixels of one image drawn in two batches. The draws are the same bit for bit, but
# a network's sums are grouped differently in batches of different sizes, and guidance multiplies the difference.
# Measured on the CPU in 100 steps, one batch against batches of 7 and of 1, four methods, in units of [-1, 1]:
# 6e-5 for 64 images of `digits` and 2e-4 for 14 of `mnist`; at most one pixel of each 4,096 and 10,976 changed, by one
# grey level: it lay on the border. The tiny model and the few steps here give 1e-6.
GREY_LEVELS = 1
DIFFERENCE = 1e-4


@pytest.fixture
def sampler(tiny_checkpoint: Path) -> GuidedSampler:
    return GuidedSampler(str(tiny_checkpoint), classifier="digits-classifier", steps=10)


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Images in each call of the network that is sampled from."""
    calls: list[int] = []
    forward = DiffusionModule.forward

    def counted(self: DiffusionModule, x_t: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        calls.append(len(x_t))
        return forward(self, x_t, t, class_labels)

    monkeypatch.setattr(DiffusionModule, "forward", counted)
    return calls


def pixels(folder: Path, seeds: list[int]) -> Tensor:
    return torch.stack([from_png(folder / f"{seed:08d}.png") for seed in seeds])


def grey_levels(one: Tensor, other: Tensor) -> int:
    """The greatest difference."""
    return int((one.int() - other.int()).abs().max())


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file is behind each image and record, and when it was written."""
    found = [*folder.rglob("0*.png"), *folder.rglob("*.json")]
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


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


def test_it_goes_on_where_it_was_interrupted(
    dng: Dng, from_tiny: list[str], tmp_path: Path, monkeypatch, evaluated: list[int]
):
    settings = ["predict", *from_tiny, "--data.num_samples=6", "--data.batch_size=2"]
    dng(*settings, f"--trainer.default_root_dir={tmp_path / 'whole'}")
    whole = sum(evaluated)
    assert whole == 6 * 3 * (2 + 1)  # null and forbidden class together, and the unguided twin

    draw, calls = GuidedSampler.draw, []

    def interrupted(self: GuidedSampler, seeds: list[int], guidance: Guidance | None = None) -> Samples:
        calls.append(seeds)
        if len(calls) == 4:  # the twins of the second batch: the guided images are drawn and not yet written
            raise RuntimeError("power cut")
        return draw(self, seeds, guidance)

    monkeypatch.setattr(GuidedSampler, "draw", interrupted)
    evaluated.clear()
    folder = tmp_path / "interrupted"
    with pytest.raises(RuntimeError, match="power cut"):
        dng(*settings, f"--trainer.default_root_dir={folder}")
    assert sorted(path.name for path in folder.glob("0*.png")) == ["00000000.png", "00000001.png"]
    assert not (folder / "labels.csv").exists()
    monkeypatch.setattr(GuidedSampler, "draw", draw)

    before = state(folder)
    evaluated.clear()
    dng(*settings, f"--trainer.default_root_dir={folder}")
    assert sum(evaluated) == whole * 4 // 6
    assert before.items() <= state(folder).items()  # what was finished is untouched
    assert state(folder).keys() == state(tmp_path / "whole").keys()
    for path in (tmp_path / "whole").rglob("*.*"):
        if path.name != "config.yaml":
            assert path.read_bytes() == (folder / path.relative_to(tmp_path / "whole")).read_bytes(), path


def test_missing_records_are_drawn_again_and_nothing_else(
    dng: Dng, from_tiny: list[str], tmp_path: Path, evaluated: list[int]
):
    settings = [
        "predict",
        *from_tiny,
        "--data.num_samples=4",
        "--data.batch_size=1",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    dng(*settings)
    (tmp_path / "records" / "00000002.json").unlink()
    before, table = state(tmp_path), (tmp_path / "labels.csv").read_text()
    evaluated.clear()
    dng(*settings)
    assert sum(evaluated) == 3 * (2 + 1)
    changed = {name for name, value in state(tmp_path).items() if before.get(name) != value}
    assert changed == {
        f"{folder}00000002.{kind}"
        for folder, kind in (("", "png"), ("records/", "json"), ("unguided/", "png"), ("unguided/records/", "json"))
    }
    assert (tmp_path / "labels.csv").read_text() == table


def test_a_finished_prediction_is_only_summarised(
    dng: Dng, from_tiny: list[str], tmp_path: Path, evaluated: list[int], capsys
):
    settings = ["predict", *from_tiny, f"--trainer.default_root_dir={tmp_path}"]
    dng(*settings, "--data.num_samples=3")
    first, before = capsys.readouterr().out, state(tmp_path)
    evaluated.clear()
    dng(*settings, "--data.num_samples=3")
    assert not evaluated
    assert state(tmp_path) == before
    costs, end = first.rindex("\n", 0, first.index("network evaluations")), first.rindex("\nwritten to")
    assert capsys.readouterr().out == first[:costs] + first[end:]  # nothing was drawn, so it cost nothing
    dng(*settings, "--data.num_samples=5", "--data.batch_size=1")  # more of them, drawn in other batches
    assert before.items() <= state(tmp_path).items()
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 1 + 5


def test_images_that_were_not_shown_before_can_be_shown_now(dng: Dng, from_tiny: list[str], tmp_path: Path):
    settings = ["predict", *from_tiny, f"--trainer.default_root_dir={tmp_path}"]
    shown = "--trainer.callbacks=[{class_path: ImageWriter, init_args: {num_shown: 2}}]"
    dng(*settings, shown, "--data.num_samples=4")
    before = state(tmp_path)
    dng(*settings, shown, "--data.num_samples=3", "--data.first_seed=2")
    assert sorted(path.name for path in (tmp_path / "unguided").glob("*.png")) == [f"0000000{i}.png" for i in range(4)]
    assert all(state(tmp_path)[name] == before[name] for name in ("00000000.png", "00000001.png"))


@pytest.mark.parametrize(
    "other",
    ["--model.steps=4", "--model.forbidden=1", "--model.guidance=NegativePrompting", "--trainer.precision=bf16-mixed"],
)
def test_other_settings_in_the_same_folder_are_refused(
    other: str, dng: Dng, from_tiny: list[str], tmp_path: Path, capsys
):
    settings = ["predict", *from_tiny, "--data.num_samples=2", f"--trainer.default_root_dir={tmp_path}"]
    dng(*settings)
    config, before = (tmp_path / "config.yaml").read_bytes(), state(tmp_path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        dng(*settings, other)
    assert ended.value.code == 2
    assert "made with other settings" in capsys.readouterr().err
    assert state(tmp_path) == before
    assert (tmp_path / "config.yaml").read_bytes() == config


@pytest.mark.parametrize("damaged", [b"", b"model: [", b"\xff\xfe", b"- 1", b"model:", b"seed_everything: 0"])
@pytest.mark.parametrize(("command", "result"), [("predict", "records"), ("test", "results.csv")])
def test_a_folder_whose_configuration_is_damaged_is_refused_in_one_line(
    command: str, result: str, damaged: bytes, dng: Dng, from_tiny: list[str], tmp_path: Path, capsys
):
    (tmp_path / result).touch()
    (tmp_path / "config.yaml").write_bytes(damaged)
    real = ["--data.reference_data=Digits"] if command == "test" else []
    with pytest.raises(SystemExit) as ended:
        dng(command, *from_tiny, *real, "--data.num_samples=2", f"--trainer.default_root_dir={tmp_path}")
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dng: error:")]
    assert f"{tmp_path} holds {result} made with other" in line
    assert "config.yaml or inputs.json is missing or damaged" in line
    assert (tmp_path / "config.yaml").read_bytes() == damaged


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
