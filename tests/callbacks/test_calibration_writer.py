"""`dng test --config calibrate.yaml` on the model `digits`: what it writes is a posterior that predicts better."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import Dng, rendered_figures

from dng_lightning.data.pixels import from_png, to_float, to_uint8
from dng_lightning.evaluation.class_balance import posterior_quality
from dng_lightning.guidance import DynamicNegativeGuidance, Unguided
from dng_lightning.modules import DiffusionModule, GuidedSampler
from dng_lightning.posterior import CalibratedPosterior
from dng_lightning.sampling import PassiveTracking

N, STEPS = 40, 10
SETTINGS = [
    "--config=calibrate.yaml",
    "--model.classifier=digits-classifier",
    f"--model.steps={STEPS}",
    "--model.compile=false",
    f"--data.num_samples={N}",
    "--data.batch_size=16",
    "--trainer.precision=32-true",
]


@pytest.fixture(scope="module")
def model(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of one's own: a copy of `digits` in its own folder."""
    return str(shutil.copy(digits / "model.ckpt", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def written(dng: Dng, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    callbacks = "[{class_path: CalibrationWriter, init_args: {guidance_shift_weight: 0.25, scale: 1.5}}]"
    settings = [f"--model.checkpoint={model}", f"--trainer.callbacks={callbacks}"]
    with rendered_figures():
        dng("test", *SETTINGS, *settings, f"--trainer.default_root_dir={folder}")
    return folder


def overlay(folder: Path) -> dict[str, Any]:
    """The settings of the guidance, and those of its posterior in their place."""
    guidance = yaml.safe_load((folder / "calibration.yaml").read_text())["model"]["init_args"]["guidance"]
    assert guidance["class_path"] == "DynamicNegativeGuidance"
    posterior = guidance["init_args"]["posterior"]
    assert posterior["class_path"] == "CalibratedPosterior"
    return guidance["init_args"] | {"posterior": posterior["init_args"]}


def test_the_overlay_says_what_was_asked_and_fitted(written: Path, model: str):
    settings = overlay(written)
    assert (settings["scale"], settings["posterior"]["guidance_shift_weight"]) == (1.5, 0.25)
    posterior = CalibratedPosterior(**settings["posterior"])  # accepts it
    schedule = DiffusionModule.load(model).schedule
    knots = [schedule.level(max(1, 100 * i)).log_snr for i in range(10, -1, -1)]
    assert [log_snr for log_snr, _, _ in posterior.calibration] == pytest.approx(knots, abs=1e-3)


def test_the_overlay_is_accepted_by_predict(written: Path, model: str, dng: Dng, tmp_path: Path):
    few = [
        "--model.classifier=digits-classifier",
        "--model.steps=3",
        "--data.num_samples=2",
        f"--model.checkpoint={model}",
    ]
    config = f"--config={written / 'calibration.yaml'}"
    dng("predict", config, *few, f"--trainer.default_root_dir={tmp_path}")
    used = yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["init_args"]["guidance"]
    assert used["class_path"].endswith("DynamicNegativeGuidance")
    assert used["init_args"]["scale"] == 1.5
    assert overlay(written)["posterior"].items() <= used["init_args"]["posterior"]["init_args"].items()
    assert len(list(tmp_path.glob("0*.png"))) == 2


def test_it_lies_beside_the_checkpoint_where_a_guidance_finds_it(written: Path, model: str):
    beside = Path(model).with_name("calibration.yaml")
    assert beside.read_text() == (written / "calibration.yaml").read_text()
    given = DynamicNegativeGuidance(posterior=CalibratedPosterior())
    found = GuidedSampler(model, guidance=given, classifier=None).guidance
    rows = overlay(written)["posterior"]["calibration"]
    assert found == DynamicNegativeGuidance(posterior=CalibratedPosterior(rows))


def test_it_is_judged_on_the_half_that_it_was_not_fitted_to(written: Path, model: str):
    """Made anew from the images, which must be those of the seeds, drawn without guidance."""
    sampler = GuidedSampler(model, list(range(10)), Unguided(), steps=STEPS, classifier="digits-classifier")
    posterior = CalibratedPosterior(overlay(written)["posterior"]["calibration"])
    tracking = PassiveTracking([posterior])
    drawn = sampler.draw(range(100_000, 100_000 + N), Unguided(), [tracking])
    assert torch.equal(drawn.images, sampler.draw(range(100_000, 100_000 + N), Unguided()).images)
    assert sampler.judge is not None
    labels = sampler.judge.label(to_float(to_uint8(drawn.images))).labels
    became = labels[N // 2 :, None] == torch.arange(10)
    judged = json.loads((written / "calibration.json").read_text())
    assert judged["n"] == N // 2
    times = [f"{time:.3g}" for time in drawn.times]
    assert list(judged["calibrated"]) == list(judged["uncalibrated"]) == times
    for place, time in enumerate(times):
        quality = posterior_quality(tracking.log_prob[N // 2 :, place, 0].exp().flatten(), became.flatten())
        assert judged["calibrated"][time]["brier"] == pytest.approx(quality.brier, abs=2e-3)
        assert judged["calibrated"][time]["auc"] == pytest.approx(quality.auc, abs=2e-3)


def test_a_fitted_posterior_predicts_better(written: Path):
    judged = json.loads((written / "calibration.json").read_text())
    brier = {name: sum(at["brier"] for at in judged[name].values()) for name in ("uncalibrated", "calibrated")}
    assert brier["calibrated"] < brier["uncalibrated"]
    for figure in ("calibration", "entropy"):
        assert from_png(written / f"{figure}.png").float().std() > 10


def test_the_batches_do_not_matter(written: Path, model: str, dng: Dng, tmp_path: Path):
    """An interrupted calibration starts anew: what it left is forgotten."""
    (tmp_path / "drawn" / "parts").mkdir(parents=True)
    (tmp_path / "drawn" / "parts" / "0.pt").write_bytes(b"half of a file")
    dng(
        "test",
        *SETTINGS,
        "--data.batch_size=7",
        f"--model.checkpoint={model}",
        f"--trainer.default_root_dir={tmp_path}",
    )
    settings = overlay(tmp_path)
    assert (settings["scale"], settings["posterior"]["guidance_shift_weight"]) == (1.0, 0.0)  # the configuration's
    one, other = (torch.tensor(overlay(folder)["posterior"]["calibration"]) for folder in (written, tmp_path))
    assert (one - other).abs().max() < 0.02
