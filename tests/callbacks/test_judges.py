"""Where the networks are that label images and compare them, and who may decide what is drawn."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from dng_lightning.callbacks import CalibrationWriter, ImageWriter, ResultsWriter
from dng_lightning.data import Digits, Seeds
from dng_lightning.errors import SettingError
from dng_lightning.evaluation import features as evaluated
from dng_lightning.evaluation import torch_fidelity
from dng_lightning.evaluation.features import FeatureExtractor
from dng_lightning.modules import ClassifierModule, GuidedSampler

ELSEWHERE = torch.device("meta")  # a device that every machine has


class Inception(FeatureExtractor):
    def __init__(self, name: str, weights: str | None) -> None:
        super().__init__("inception-2048", nn.Linear(1, 1), 1)

    def _extract(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        raise NotImplementedError


@pytest.fixture
def sampler(digits: Path) -> GuidedSampler:
    return GuidedSampler(str(digits), classifier="digits-classifier", steps=2)


def trainer(folder: Path, device: torch.device | None = None, data: object = None, *callbacks: Callback) -> Any:
    """All of a trainer that a callback looks at."""
    strategy = SimpleNamespace(root_device=device or torch.device("cpu"), barrier=lambda name: None)
    data = Seeds() if data is None else data
    where = {"default_root_dir": str(folder), "is_global_zero": True, "fast_dev_run": False, "world_size": 1}
    return SimpleNamespace(strategy=strategy, datamodule=data, loggers=[], callbacks=callbacks, **where)


@pytest.mark.parametrize("features", ["classifier", "inception"])
def test_real_images_are_looked_at_on_the_trainer_s_device(
    features: str, sampler: GuidedSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Lightning moves the module there only after the callbacks are set up."""
    seen: list[torch.device] = []

    def look(self: ResultsWriter, trainer: Trainer, module: GuidedSampler, data: Seeds, by: FeatureExtractor) -> None:
        seen.extend([by.device, next(module.parameters()).device])

    monkeypatch.setattr(torch_fidelity, "TorchFidelityFeatures", Inception)
    monkeypatch.setattr(ResultsWriter, "_reference", look)
    monkeypatch.setattr(evaluated, "fingerprint", lambda net: "")  # of weights that this device does not hold
    ResultsWriter(features).setup(trainer(tmp_path, ELSEWHERE), sampler, "test")
    assert seen == [ELSEWHERE] * 2


def test_a_classifier_follows_the_images_and_keeps_its_precision(sampler: GuidedSampler):
    sampler.to(torch.bfloat16)
    assert {weight.dtype for weight in sampler.model.parameters()} == {torch.bfloat16}
    assert sampler.classifier is not None
    assert {weight.dtype for weight in sampler.classifier.parameters()} == {torch.float32}
    with pytest.raises(RuntimeError):  # this device has no autocast
        sampler.classifier.label(torch.zeros(2, 1, 8, 8, device=ELSEWHERE))
    assert {weight.device for weight in sampler.classifier.parameters()} == {ELSEWHERE}


WRITERS = [ResultsWriter(None), CalibrationWriter(), ImageWriter()]


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: type(writer).__name__)
def test_another_model_or_other_data_are_one_line(writer: Callback, sampler: GuidedSampler, tmp_path: Path):
    name = type(writer).__name__
    with pytest.raises(SettingError, match=f"^{name} goes with a GuidedSampler; the model is ClassifierModule$"):
        writer.setup(trainer(tmp_path), ClassifierModule.load("digits-classifier"), "fit")
    with pytest.raises(SettingError, match=f"^{name} goes with data Seeds; they are Digits$"):
        writer.setup(trainer(tmp_path, data=Digits()), sampler, "fit")


@pytest.mark.parametrize("order", [WRITERS[:2], WRITERS[1::-1], WRITERS[::2]], ids=["results", "calibration", "images"])
def test_one_callback_alone_decides_what_is_drawn(order: list[Callback], sampler: GuidedSampler, tmp_path: Path):
    with pytest.raises(SettingError, match=r"(Results|Calibration)Writer and \w+ both decide what is sampled"):
        order[0].setup(trainer(tmp_path, None, None, *order), sampler, "test")


def test_classifiers_in_folders_have_names_of_their_own(digits: Path, tmp_path: Path):
    """Each is called by its folder, with all of its dots, and not `model`."""
    names = []
    for name in ("classifier-v1.5", "classifier-v1.6"):
        (tmp_path / name).mkdir()
        source = Path(str(digits)).parent / "digits-classifier" / "model.ckpt"
        (tmp_path / name / "model.ckpt").write_bytes(source.read_bytes())
        named = GuidedSampler(str(digits), classifier=str(tmp_path / name / "model.ckpt"), steps=2)
        names.append(named.judge.name)
    assert names == ["classifier-v1.5", "classifier-v1.6"]
