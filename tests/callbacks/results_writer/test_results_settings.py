"""`dng test` with few images, other features or none, stored statistics; what its rows say of the cost."""

import csv
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from digits_comparison import STEPS, compared, rows
from running import Dng
from torch import Tensor

from dng_lightning.data import Digits
from dng_lightning.evaluation import measures
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.evaluation.runs import Labels, Samples
from dng_lightning.evaluation.torch_fidelity import TorchFidelityFeatures
from dng_lightning.guidance import Guidance, Unguided
from dng_lightning.modules import ClassifierModule, GuidedSampler
from dng_lightning.modules.judges import load_features
from dng_lightning.sampling import PassiveTracking

# --- few images ---


def test_a_filter_that_lets_few_or_no_images_pass(dng: Dng, settings: list[str], tmp_path: Path, monkeypatch):
    """Its row goes without what cannot be measured, or is missing; the others are not held up."""
    label: Callable[..., Labels] = ClassifierModule.label
    for passed, expected in (
        (2, ["Unguided", "Rejection", "NegativePrompting"]),
        (0, ["Unguided", "NegativePrompting"]),
    ):

        def biased(self: ClassifierModule, images: Tensor, passed: int = passed) -> Labels:
            found = label(self, images)
            if len(images) == 6:
                return replace(found, labels=torch.tensor([0] * passed + [3] * (6 - passed)))
            return found

        monkeypatch.setattr(ClassifierModule, "label", biased)
        few = ["--data.num_samples=6", "--model.guidances=[NegativePrompting]"]
        folder = tmp_path / str(passed)
        dng("test", *settings, *few, f"--trainer.default_root_dir={folder}")
        found = rows(folder)
        assert [row["method"] for row in found] == expected
        assert all(row["precision"] and row["fd_retained"] for row in found if row["method"] != "Rejection")
        if passed:
            assert (found[1]["n"], found[1]["forbidden_rate"], found[1]["nfe"]) == ("2", "0", "30")
            assert found[1]["precision"] == found[1]["fd_retained"] == found[1]["kid"] == ""
        assert (folder / "tradeoff.png").exists()


def test_cost_is_the_mean_of_all_images_and_leaves_out_what_is_not_theirs(
    dng: Dng, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Evaluations differ between batches, a first batch compiles, and posteriors are tracked with unguided images."""
    draw, drawn = GuidedSampler.draw, list[str]()

    def slow_or_fast(self: GuidedSampler, seeds: list[int], guidance: Guidance) -> Samples:
        drawn.append(type(guidance).__name__)
        samples = draw(self, seeds, guidance)
        if drawn.count(drawn[-1]) == 1 or any(isinstance(recorder, PassiveTracking) for recorder in self.recorders):
            time.sleep(1)
        return replace(samples, nfe=100.0 if guidance != Unguided() and drawn.count(drawn[-1]) == 1 else samples.nfe)

    monkeypatch.setattr(GuidedSampler, "draw", slow_or_fast)
    one = "--model.guidances=[DynamicNegativeGuidance]"
    dng("test", *settings, one, "--data.num_samples=11", f"--trainer.default_root_dir={tmp_path}")
    assert drawn == ["Unguided"] * 3 + ["DynamicNegativeGuidance"] * 2  # one of them to see what it costs
    unguided, rejection, guided = rows(tmp_path)
    assert float(unguided["nfe"]) == STEPS  # without those of the negatives
    assert float(guided["nfe"]) == pytest.approx((10 * 100 + 3 * STEPS) / 11, rel=1e-4)
    assert float(unguided["images_per_second"]) > 1
    assert float(guided["images_per_second"]) > 10 / 3
    assert float(rejection["images_per_second"]) < float(unguided["images_per_second"])


def test_without_features(dng: Dng, settings: list[str], tmp_path: Path):
    """No data set is needed, one image will do, and what needs real images is left empty."""
    settings = [setting for setting in settings if setting != "--data.reference_data=Digits"]
    settings += ["--data.num_samples=1", "--trainer.callbacks.features=null", f"--trainer.default_root_dir={tmp_path}"]
    dng("test", *settings)
    for row in rows(tmp_path):
        empty = {name for name, value in row.items() if not value} - {"scale", "rmse_to_unguided", "memory_mb"}
        assert empty - {
            "forbidden_rate_low",
            "forbidden_rate_high",
            "kl_unguided",
            "kl_unguided_low",
            "kl_unguided_high",
        } == {
            "fd_retained",
            "fd_retained_low",
            "fd_retained_high",
            "fd_all",
            "kid",
            "precision",
            "recall",
            "feature_distance_to_unguided",
        }
        assert row["features"] == "none"
    assert not list(tmp_path.glob("real*"))


def test_statistics_beside_the_checkpoint_need_no_data_set(
    dng: Dng, digits: Path, settings: list[str], whole: Path, tmp_path: Path
):
    (tmp_path / "digits").mkdir()
    shutil.copy(digits / "model.ckpt", tmp_path / "digits")
    shutil.copy(whole / "real-digits-classifier.pt", tmp_path / "digits")
    settings = [setting for setting in settings if setting != "--data.reference_data=Digits"]
    settings += [f"--model.checkpoint={tmp_path / 'digits'}", f"--trainer.default_root_dir={tmp_path / 'out'}"]
    dng("test", *settings)
    assert compared(tmp_path / "out") == compared(whole)
    assert not list((tmp_path / "out").glob("real*"))


@pytest.mark.slow
def test_fid_with_inception_s_weights_from_a_file(
    dng: Dng, digits: Path, inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The weights are random, the path is the real one; the real images go through Inception once.

    The spectra of 2,048 features, which take most of a minute, are left to test_distribution_metrics.py.
    """
    monkeypatch.setattr(measures, "frechet_distance", lambda mean, _, other, __: float((mean - other).square().sum()))
    few = [
        "--data.num_samples=6",
        "--data.reference_data=Digits",
        "--data.reference_data.val_size=1485",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    model = [f"--model.checkpoint={digits}", "--model.classifier=digits-classifier", "--model.steps=2"]
    features = ["--trainer.callbacks.features=inception", f"--trainer.callbacks.feature_weights={inception_weights}"]
    features += ["--trainer.callbacks.unguided=false"]
    guidances = "--model.guidances=[{class_path: NegativePrompting}]"
    dng("test", *model, *few, *features, guidances)
    rows = list(csv.DictReader((tmp_path / "results.csv").open(newline="")))
    assert [row["method"] for row in rows if row["fd_all"]] == ["NegativePrompting"]
    extractor, data = load_features("inception", str(inception_weights)), Digits(val_size=1485)
    data.setup()
    real = ReferenceStatistics.load(tmp_path / "real-inception-2048.pt")
    found = extractor(data.part("train").images).double()
    n, mean, covariance = real.moments(range(10))
    assert (n, tuple(covariance.shape)) == (12, (2048, 2048))
    torch.testing.assert_close(mean, found.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(covariance, found.T.cov(), rtol=1e-3, atol=1e-5)
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchFidelityFeatures, "_extract", lambda self, pixels, dtype: seen.append(len(pixels)))
        dng("test", *model, *few, *features, guidances)
    assert not seen
