"""Judges of other libraries in `dng predict`, `dng test`, a training and an observer of prompts."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from running import Dng

from dng_lightning.callbacks import GuidedSampling
from dng_lightning.data import Digits
from dng_lightning.data.pixels import to_float, to_uint8
from dng_lightning.errors import SettingError
from dng_lightning.guidance import Unguided
from dng_lightning.judges import ModuleClassifier, Preprocessing, PretrainedClassifier
from dng_lightning.modules import ClassifierModule, DiffusionModule, GuidedSampler
from dng_lightning.networks import ImageClassifier
from dng_lightning.storage import resources
from dng_lightning.text_to_image.observers import ClassifierObserver

NET = yaml.safe_load(resources.checkpoint("digits-classifier").with_name("config.yaml").read_text())["model"][
    "init_args"
]["net"]
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Those of `digits-classifier`, as a foreign file has them."""
    torch.save(ClassifierModule.load("digits-classifier").net.state_dict(), tmp_path / "net.pth")
    return str(tmp_path / "net.pth")


def judge_of(weights: str, classes: dict[str | int, str | int | list[str | int]] | None = None) -> ModuleClassifier:
    net = ImageClassifier(**NET["init_args"])
    return ModuleClassifier(net, weights, NAMES, Preprocessing([0.5], [0.5], channels=1), classes)


def test_it_judges_as_the_same_network_in_a_checkpoint_does(digits: Path, weights: str):
    ours = GuidedSampler(str(digits), classifier="digits-classifier", steps=2)
    theirs = GuidedSampler(str(digits), classifier=judge_of(weights, dict(enumerate(NAMES))), steps=2)
    images = to_float(to_uint8(ours.draw(range(20)).images))
    assert ours.judge is not None
    assert theirs.judge is not None
    assert torch.equal(ours.judge.label(images).labels, theirs.judge.label(images).labels)
    assert theirs.judge.name == "ImageClassifier"
    with pytest.raises(SettingError, match=r"there is no class 'zer0'; ImageClassifier, whose classes"):
        GuidedSampler(str(digits), classifier=judge_of(weights, {"0": "zer0"}), steps=2)


def test_predict_and_test_with_a_judge_from_a_file(digits: Path, weights: str, tmp_path: Path, dng: Dng):
    judge = {
        "class_path": "ModuleClassifier",
        "init_args": {
            "net": NET,
            "weights": weights,
            "class_names": NAMES,
            "classes": dict(zip("0123456789", NAMES, strict=True)),
            "preprocessing": {"mean": [0.5], "std": [0.5], "channels": 1},
        },
    }
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"classifier": judge}}}))
    overlay, shared = f"--config={tmp_path / 'judge.yaml'}", [f"--model.checkpoint={digits}", "--model.steps=3"]
    dng("predict", overlay, *shared, "--data.num_samples=4", f"--trainer.default_root_dir={tmp_path / 'drawn'}")
    saved = yaml.safe_load((tmp_path / "drawn" / "config.yaml").read_text())["model"]["init_args"]["classifier"]
    assert saved["init_args"]["classes"] == judge["init_args"]["classes"]  # type: ignore[index]
    assert "classifier" in json.loads((tmp_path / "drawn" / "inputs.json").read_text())
    compared = ["--model.guidances=[Unguided]", "--data.num_samples=20", "--data.reference_data=Digits"]
    rows = []
    for name, classifier in (("theirs", overlay), ("ours", "--model.classifier=digits-classifier")):
        dng(
            "test",
            "--config=test.yaml",
            classifier,
            *shared,
            *compared,
            f"--trainer.default_root_dir={tmp_path / name}",
        )
        with (tmp_path / name / "results.csv").open() as file:
            rows.append(next(csv.DictReader(file)))
    theirs, ours = rows
    assert (theirs["features"], ours["features"]) == ("ImageClassifier", "digits-classifier")
    assert theirs["class_counts"] == ours["class_counts"]
    assert float(theirs["fd_retained"]) == pytest.approx(float(ours["fd_retained"]), rel=1e-3)


def test_by_class_name_on_the_command_line(digits: Path, weights: str, tmp_path: Path, dng: Dng):
    given = {
        "net": json.dumps(NET),
        "weights": weights,
    }
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    given |= {"classes": json.dumps(dict(enumerate(NAMES)))}
    given |= {"class_names": str(tmp_path / "names.txt"), "preprocessing": "{mean: [0.5], std: [0.5], channels: 1}"}
    settings = [f"--model.classifier.{name}={value}" for name, value in given.items()]
    where = ["--model.steps=2", "--data.num_samples=2", f"--trainer.default_root_dir={tmp_path / 'drawn'}"]
    dng("predict", f"--model.checkpoint={digits}", "--model.classifier=ModuleClassifier", *settings, *where)
    assert (tmp_path / "drawn" / "grid.png").exists()


def test_in_a_training(weights: str):
    callback = GuidedSampling(guidance=Unguided(), classifier=judge_of(weights, dict(enumerate(NAMES))))
    data = Digits()
    data.prepare_data()
    data.setup("fit")
    callback.check(DiffusionModule.load("digits"), data)
    assert isinstance(callback.classifier, PretrainedClassifier)
    assert callback.classifier.class_names == tuple("0123456789")
    assert callback.features is not None
    assert callback.features.name == "ImageClassifier"


def test_as_an_observer_of_prompts(weights: str):
    observer, images = ClassifierObserver([judge_of(weights)], {"a seven": "seven"}), torch.rand(3, 1, 8, 8) * 2 - 1
    observer.check(["a seven"], (1, 8, 8))
    expected = ClassifierModule.load("digits-classifier").probabilities(images)[:, 7:8]
    assert torch.allclose(observer.probabilities(images, ["a seven"]), expected, atol=1e-6)
