"""`dng test --config calibrate.yaml` on the model `digits`: what it writes is a posterior that foretells better."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from dng_lightning.guidance.watching import Evidence
from running import Dng

from dng_lightning.data.pixels import from_png
from dng_lightning.evaluation.metrics import posterior_quality
from dng_lightning.guidance import DynamicNegativeGuidance, Unguided
from dng_lightning.modules import GuidedSampler

N, STEPS = 40, 10
SETTINGS = [
    "--config=calibrate.yaml",
    "--model.classifier=digits-classifier",
    f"--model.steps={STEPS}",
    "--model.compile=false",
    f"--data.n={N}",
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
    callbacks = "[{class_path: CalibrationWriter, init_args: {own_push: 0.25, scale: 1.5}}]"
    dng(
        "test",
        *SETTINGS,
        f"--model.checkpoint={model}",
        f"--trainer.callbacks={callbacks}",
        f"--trainer.default_root_dir={folder}",
    )
    return folder


def overlay(folder: Path) -> dict[str, object]:
    guidance = yaml.safe_load((folder / "calibration.yaml").read_text())["model"]["init_args"]["guidance"]
    assert guidance["class_path"] == "DynamicNegativeGuidance"
    return guidance["init_args"]


def test_the_overlay_says_what_was_asked_and_fitted(written: Path):
    settings = overlay(written)
    assert (settings["scale"], settings["own_push"]) == (1.5, 0.25)
    guidance = DynamicNegativeGuidance(**settings)  # accepts it
    assert guidance.calibration is not None
    assert [level for level, _, _ in guidance.calibration] == list(range(0, 1001, 100))


def test_the_overlay_is_accepted_by_predict(written: Path, model: str, dng: Dng, tmp_path: Path):
    few = ["--model.classifier=digits-classifier", "--model.steps=3", "--data.n=2", f"--model.checkpoint={model}"]
    config = f"--config={written / 'calibration.yaml'}"
    dng("predict", config, *few, f"--trainer.default_root_dir={tmp_path}")
    used = yaml.safe_load((tmp_path / "config.yaml").read_text())["model"]["init_args"]["guidance"]
    assert used["class_path"].endswith("DynamicNegativeGuidance")
    assert overlay(written).items() <= used["init_args"].items()
    assert len(list(tmp_path.glob("0*.png"))) == 2


def test_it_lies_beside_the_checkpoint_where_a_guidance_finds_it(written: Path, model: str):
    beside = Path(model).with_name("calibration.yaml")
    assert beside.read_text() == (written / "calibration.yaml").read_text()
    found = GuidedSampler(model, guidance=DynamicNegativeGuidance(calibration="checkpoint"), classifier=None).guidance
    assert found == DynamicNegativeGuidance(calibration=overlay(written)["calibration"])  # type: ignore[arg-type]


def test_it_is_judged_on_the_half_that_it_was_not_fitted_to(written: Path, model: str):
    """Made anew from the images, which must be those of the seeds, drawn without guidance."""
    sampler = GuidedSampler(model, list(range(10)), Unguided(), steps=STEPS, classifier="digits-classifier")
    drawn = sampler.draw(range(100_000, 100_000 + N), Evidence())
    assert torch.equal(drawn.images, sampler.draw(range(100_000, 100_000 + N), Unguided()).images)
    assert drawn.posterior is not None
    assert drawn.labels is not None
    guidance = DynamicNegativeGuidance(calibration=overlay(written)["calibration"])  # type: ignore[arg-type]
    became = drawn.labels[N // 2 :, None] == torch.arange(10)
    judged = json.loads((written / "calibration.json").read_text())
    assert judged["n"] == N // 2
    assert list(judged["calibrated"]) == list(judged["as tracked"]) == [str(level) for level in range(1000, 0, -100)]
    for place, level in enumerate(drawn.levels):
        posterior = guidance.tracker.log_posterior(drawn.posterior[N // 2 :, place].double(), level).exp()
        quality = posterior_quality(posterior.flatten(), became.flatten())
        assert judged["calibrated"][str(level)]["brier"] == pytest.approx(quality.brier, abs=2e-3)
        assert judged["calibrated"][str(level)]["auc"] == pytest.approx(quality.auc, abs=2e-3)


def test_a_fitted_posterior_foretells_better(written: Path):
    judged = json.loads((written / "calibration.json").read_text())
    brier = {name: sum(at["brier"] for at in judged[name].values()) for name in ("as tracked", "calibrated")}
    assert brier["calibrated"] < brier["as tracked"]
    figure = from_png(written / "calibration.png")
    assert figure.float().std() > 10


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
    assert (settings["scale"], settings["own_push"]) == (1.0, 0.0)  # the configuration's
    one, other = (torch.tensor(overlay(folder)["calibration"]) for folder in (written, tmp_path))
    assert (one - other).abs().max() < 0.02
