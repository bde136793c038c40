"""What `dng test` writes is what its images are worth."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from digits_comparison import FIRST, FORBIDDEN, METHODS, ORDER, PRIOR, STEPS, N, compared, labels_of, rows
from running import Dng
from torch import Tensor

from dng_lightning.data import Digits
from dng_lightning.data.pixels import from_png, to_uint8
from dng_lightning.evaluation.class_balance import kl_divergence, posterior_quality, wilson_interval
from dng_lightning.evaluation.distribution_metrics import kernel_distance, precision_recall
from dng_lightning.evaluation.features import ClassifierFeatures
from dng_lightning.evaluation.runs import Samples
from dng_lightning.guidance import DynamicNegativeGuidance
from dng_lightning.modules import ClassifierModule, DiffusionModule, GuidedSampler

COLUMNS = [
    "method",
    "scale",
    "guidance",
    "n",
    "seeds",
    "steps",
    "forbidden_rate",
    "forbidden_rate_low",
    "forbidden_rate_high",
    "kl_retained",
    "kl_all",
    "tv",
    "kl_unguided",
    "fd_retained",
    "fd_all",
    "kid",
    "precision",
    "recall",
    "rmse_to_unguided",
    "nfe",
    "images_per_second",
]


@pytest.fixture(scope="module")
def extractor() -> ClassifierFeatures:
    return ClassifierFeatures(ClassifierModule.load("digits-classifier"), "digits-classifier")


@pytest.fixture(scope="module")
def real_images() -> tuple[Tensor, Tensor]:
    data = Digits()
    data.setup()
    part = data.part("train")
    return part.images, part.labels


# --- what is written ---


def test_a_row_each_with_all_columns(written: Path):
    found = rows(written)
    assert {name.strip() for name in COLUMNS} <= set(found[0])
    assert [row["method"] for row in found] == [*ORDER, "Retrained"]
    assert [row["scale"] for row in found] == ["", "", "1", "1", "3", ""]
    empty = {(row["method"], name) for row in found for name, value in row.items() if not value}
    assert {cell for cell in empty if cell[1] not in ("scale", "memory_mb")} == {
        ("Rejection", "forbidden_rate_low"),
        ("Rejection", "forbidden_rate_high"),
        ("Rejection", "kl_unguided"),
        ("Rejection", "kl_unguided_low"),
        ("Rejection", "kl_unguided_high"),
    }
    told = [json.loads(row["guidance"]) for row in found]
    assert told[0] == {"class": "Unguided"}
    assert told[3]["class"] == "DynamicNegativeGuidance"
    assert told[4] == {**told[3], "scale": 3.0}
    assert told[3]["posterior"] == {"class": "TrackedPosterior", "prior": 0.2}
    for row in found:
        assert (row["seeds"], row["steps"]) == (f"{FIRST}-{FIRST + N - 1}", str(STEPS))
        assert float(row["images_per_second"]) > 0
        assert row["memory_mb"] == ""  # of CUDA alone
    assert not list(written.rglob("*.part"))
    assert not list(written.rglob("parts"))


def test_the_values_are_those_of_the_images(
    written: Path,
    samples: list[Samples],
    extractor: ClassifierFeatures,
    real_images: tuple[Tensor, Tensor],
):
    found = rows(written)
    unguided, retained = samples[0], ~torch.isin(real_images[1], torch.tensor(FORBIDDEN))
    fine = ~torch.isin(labels_of(unguided), torch.tensor(FORBIDDEN))
    assert 0 < fine.sum() < N
    rejected = next(row for row in found if row["method"] == "Rejection")
    others = [row for row in found if row["method"] != "Rejection"]
    for row, drawn in [*zip(others, samples, strict=True), (rejected, unguided)]:
        kept = fine if row is rejected else torch.ones_like(fine)
        pixels, counts = to_uint8(drawn.images), torch.bincount(labels_of(drawn)[kept], minlength=10).tolist()
        hits = counts[3] + counts[8]
        assert row["class_counts"] == " ".join(map(str, counts))
        assert int(row["n"]) == sum(counts)

        def close(name: str, value: float, row: dict[str, str] = row) -> None:
            assert float(row[name]) == pytest.approx(value, rel=1e-3, abs=1e-5), name

        close("forbidden_rate", hits / sum(counts))
        if row is not rejected:
            close("forbidden_rate_low", wilson_interval(hits, sum(counts))[0])
            close("forbidden_rate_high", wilson_interval(hits, sum(counts))[1])
        close("kl_retained", kl_divergence(counts, FORBIDDEN))
        close("kl_all", kl_divergence(counts))
        if row is not rejected:
            own = torch.bincount(labels_of(unguided)[fine], minlength=10).double()
            generated = (torch.tensor(counts) + 0.5) / (sum(counts) + 5)
            close("kl_unguided", float(torch.special.xlogy(own / own.sum(), own / own.sum() / generated).sum()))
        close("tv", sum(abs(c / sum(counts) - (i not in FORBIDDEN) / 8) for i, c in enumerate(counts)) / 2)

        difference = (pixels[fine].double() - to_uint8(unguided.images)[fine].double()) / 255
        close("rmse_to_unguided", float(difference.square().flatten(1).mean(1).sqrt().mean()))
        features, twins = extractor(pixels), extractor(to_uint8(unguided.images))
        close("feature_distance_to_unguided", float((features - twins)[fine].norm(dim=1).mean()))

        theirs = extractor(real_images[0][retained])
        close("fd_retained", frechet(features[kept], theirs))
        close("fd_all", frechet(features[kept], extractor(real_images[0])))
        close("kid", kernel_distance(theirs, features[kept]))
        precision, recall = precision_recall(theirs, features[kept])
        assert float(row["precision"]) == pytest.approx(precision, abs=1.5 / N)  # kept in half precision
        assert float(row["recall"]) == pytest.approx(recall, abs=0.01)
        close("nfe", STEPS * (N / sum(counts)) if row is rejected else drawn.nfe)
    assert float(rejected["forbidden_rate"]) == 0
    assert [float(row["nfe"]) for row in others] == [STEPS, *[3 * STEPS] * 3, STEPS]
    assert [float(row["rmse_to_unguided"]) > 0.01 for row in others] == [False, True, True, True, True]


def frechet(one: Tensor, other: Tensor) -> float:
    """By the eigenvalues of the covariances' product, unlike ours."""
    one, other = one.double(), other.double()
    spectrum = torch.linalg.eigvals(one.T.cov() @ other.T.cov()).real.clamp(min=0)
    traces = one.T.cov().trace() + other.T.cov().trace() - 2 * spectrum.sqrt().sum()
    return float((one.mean(0) - other.mean(0)).square().sum() + traces)


def test_every_class_has_its_row(written: Path, samples: list[Samples]):
    found = rows(written, "classes")
    assert len(found) == 5 * 10
    shares = [float(row["share"]) for row in found if row["method"] == "NegativePrompting"]
    assert shares == pytest.approx((torch.bincount(labels_of(samples[1]), minlength=10) / N).tolist(), rel=1e-5)
    for row in found:
        assert bool(row["kid"]) == bool(row["precision"]) == (round(N * float(row["share"])) >= 4)


def test_the_trackers_are_judged_by_what_unguided_images_became(
    written: Path, samples: list[Samples], sampler: GuidedSampler
):
    """The two scales share a posterior, which is tracked without a push."""
    found = rows(written, "posterior")
    assert [row["t/T"] for row in found] == ["0.5", "0"]
    assert json.loads(found[0]["tracker"])["prior"] == 0.2
    looked_on = sampler.draw(range(FIRST, FIRST + N), DynamicNegativeGuidance(0.0, PRIOR))
    assert torch.equal(looked_on.images, samples[0].images)
    assert (looked_on.times[5], looked_on.times[9]) == (0.5, 0.1)
    became = torch.isin(labels_of(samples[0]), torch.tensor(FORBIDDEN))
    for row, place in zip(found, (5, 9), strict=True):
        quality = posterior_quality(looked_on.posterior[:, place].sum(1), became)
        assert float(row["auc"]) == pytest.approx(quality.auc, rel=1e-3)
        assert float(row["brier"]) == pytest.approx(quality.brier, rel=1e-3)
        assert sum(n for _, _, n in json.loads(row["curve"])) == int(row["n"]) == N


def test_the_figures_and_the_text(written: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("tradeoff", "histograms", "samples", "calibration"):
        figure = from_png(written / f"{name}.png")
        assert figure.shape[1] > 150
        assert figure.shape[2] > 400
        assert figure.float().std() > 10, name
    width = from_png(written / "calibration.png").shape[2]
    columns = (from_png(written / "calibration.png") < 255).any(0).sum(0) > 200  # the axes, and no legend beside them
    assert columns.nonzero().max() > 0.9 * width
    text = (written / "results.md").read_text()
    assert "Without 3, 8; seeds 50–73, 10 steps." in text
    assert "held-out real images of the retained classes forbidden: its floor." in text
    assert text.count("\n| ") >= 1 + 6


def test_the_terminal_shows_the_table_and_the_floor(
    dng: Dng, settings: list[str], written: Path, without_3_and_8, capsys
):
    before = (written / "results.csv").read_bytes()
    dng("test", *settings, f"--model.retrained_checkpoint={without_3_and_8}", f"--trainer.default_root_dir={written}")
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line.split()[0] in ORDER][:5] == ORDER
    assert "its floor" in out
    assert f"\nwritten to {written}\n" in out
    assert (written / "results.csv").read_bytes() == before  # nothing was done again


def test_without_the_unguided_images_the_other_rows_are_the_same(
    dng: Dng, settings: list[str], written: Path, tmp_path: Path
):
    alone = [*settings, "--trainer.callbacks.unguided=false", f"--trainer.default_root_dir={tmp_path}"]
    dng("test", *alone)
    compared_with_unguided = dict.fromkeys(
        ("kl_unguided", "kl_unguided_low", "kl_unguided_high", "rmse_to_unguided", "feature_distance_to_unguided"), ""
    )
    assert compared(tmp_path) == [row | compared_with_unguided for row in compared(written)[2:-1]]
    assert not (tmp_path / "posterior.csv").exists()
    assert len(list((tmp_path / "tensorboard").iterdir())) == len(METHODS)
    dng("test", *alone[:-2], alone[-1])  # and with them afterwards
    assert [row["method"] for row in rows(tmp_path)] == [*ORDER[2:], *ORDER[:2]]


def test_the_retrained_model_is_the_one_that_draws(samples: list[Samples], written: Path, without_3_and_8: Path):
    """Its weights are not those of the other, and so are its images."""
    assert not torch.equal(samples[0].images, samples[-1].images)
    assert list(DiffusionModule.load(str(without_3_and_8)).seen_classes) == [0, 1, 2, 4, 5, 6, 7, 9]
    (folder,) = (written / "sample_cache").glob("Retrained*")
    shown = torch.from_numpy(np.load(folder / "pixels.npy"))
    difference = (shown.int() - to_uint8(samples[-1].images).int()).abs().max()
    assert difference <= 1
