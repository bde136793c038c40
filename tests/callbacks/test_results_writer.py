"""`dng test` end to end on the model `digits`: what it writes is what its images are worth, however they were drawn."""

import csv
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import QUIET, Dng, DngProcess, rendered_figures
from torch import Tensor

from dng_lightning.data import Digits
from dng_lightning.data.pixels import from_png, to_float, to_uint8
from dng_lightning.evaluation import measures
from dng_lightning.evaluation.class_balance import kl_divergence, posterior_quality, wilson_interval
from dng_lightning.evaluation.distribution_metrics import kernel_distance, precision_recall
from dng_lightning.evaluation.evaluator import Evaluator
from dng_lightning.evaluation.features import ClassifierFeatures
from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.evaluation.runs import Labels, Samples
from dng_lightning.evaluation.torch_fidelity import TorchFidelityFeatures
from dng_lightning.guidance import DynamicNegativeGuidance, Guidance, NegativePrompting, Unguided
from dng_lightning.modules import ClassifierModule, DiffusionModule, GuidedSampler
from dng_lightning.modules.judges import load_features
from dng_lightning.posterior import TrackedPosterior
from dng_lightning.sampling import NetworkPairPredictor, PassiveTracking

N, FIRST, STEPS, FORBIDDEN = 24, 50, 10, [3, 8]
WITH_PRIOR = "{class_path: DynamicNegativeGuidance, init_args: {scale: %s, posterior: %s}}"
POSTERIOR = "{class_path: TrackedPosterior, init_args: {prior: %s}}"
FIRST_PRIOR = [WITH_PRIOR % (scale, POSTERIOR % 0.2) for scale in ("1.0", "3.0")]
GUIDANCES = f"[{{class_path: NegativePrompting, init_args: {{scale: 1.0}}}}, {', '.join(FIRST_PRIOR)}]"
PRIOR = TrackedPosterior(prior=0.2)
METHODS = [NegativePrompting(1.0), DynamicNegativeGuidance(1.0, PRIOR), DynamicNegativeGuidance(3.0, PRIOR)]
ORDER = ["Unguided", "Rejection", "NegativePrompting", *["DynamicNegativeGuidance"] * 2]
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
MEASURED_ANEW = ("images_per_second", "memory_mb")


@pytest.fixture(scope="module")
def without_3_and_8(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says that it never saw the forbidden classes; its weights are those of `digits`, scaled."""
    stored = torch.load(digits / "model.ckpt", weights_only=True)
    stored["trained_on"]["seen_classes"] = [c for c in range(10) if c not in FORBIDDEN]
    stored["state_dict"] = {name: 0.9 * value for name, value in stored["state_dict"].items()}
    path = tmp_path_factory.mktemp("retrained") / "model.ckpt"
    torch.save(stored, path)
    return path


@pytest.fixture(scope="module")
def settings(digits: Path) -> list[str]:
    model = [f"--model.checkpoint={digits}", "--model.classifier=digits-classifier", f"--model.steps={STEPS}"]
    seeds = [
        f"--data.num_samples={N}",
        f"--data.first_seed={FIRST}",
        "--data.reference_data=Digits",
        "--data.batch_size=10",
    ]
    return [*model, f"--model.forbidden={FORBIDDEN}", f"--model.guidances={GUIDANCES}", *seeds]


@pytest.fixture(scope="module")
def written(dng: Dng, settings: list[str], without_3_and_8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    command = ["test", *settings, f"--model.retrained_checkpoint={without_3_and_8}"]
    with rendered_figures():
        dng(*command, f"--trainer.default_root_dir={folder}")
    return folder


@pytest.fixture(scope="module")
def sampler(digits: Path, without_3_and_8: Path) -> GuidedSampler:
    return GuidedSampler(
        str(digits),
        FORBIDDEN,
        steps=STEPS,
        classifier="digits-classifier",
        retrained_checkpoint=str(without_3_and_8),
        guidances=METHODS,
    )


@pytest.fixture(scope="module")
def samples(sampler: GuidedSampler) -> list[Samples]:
    """Unguided, of each method, and retrained, in one batch."""
    seeds = range(FIRST, FIRST + N)
    guided = [sampler.draw(seeds, method) for method in METHODS]
    retrained = NetworkPairPredictor(sampler.retrained, [], sampler.retrained.null_class)
    return [sampler.draw(seeds, Unguided()), *guided, sampler.draw(seeds, Unguided(), predictor=retrained)]


def labels_of(samples: Samples) -> Tensor:
    """What the classifier calls the images as they are kept."""
    return ClassifierModule.load("digits-classifier").label(to_float(to_uint8(samples.images))).labels


@pytest.fixture(scope="module")
def extractor() -> ClassifierFeatures:
    return ClassifierFeatures(ClassifierModule.load("digits-classifier"), "digits-classifier")


@pytest.fixture(scope="module")
def real_images() -> tuple[Tensor, Tensor]:
    data = Digits()
    data.setup()
    part = data.part("train")
    return part.images, part.labels


def rows(folder: Path, name: str = "results") -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"{name}.csv").open(newline="")))


def compared(folder: Path, digits: int = 6) -> list[dict[str, Any]]:
    """The rows but for what is measured anew each time, numbers to so many digits."""

    def value(text: str) -> Any:
        try:
            return f"{float(text):.{digits}g}"
        except ValueError:
            return text

    return [{k: value(v) for k, v in row.items() if k not in MEASURED_ANEW} for row in rows(folder)]


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


# --- however they are drawn ---


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The method of each batch that is drawn."""
    methods: list[str] = []
    test_step = GuidedSampler.test_step

    def watched(self: GuidedSampler, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Any:
        methods.append(self.draws[dataloader_idx].run.method)
        return test_step(self, batch, batch_idx, dataloader_idx)

    monkeypatch.setattr(GuidedSampler, "test_step", watched)
    return methods


@pytest.fixture(scope="module")
def whole(dng: Dng, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    dng("test", *settings, f"--trainer.default_root_dir={folder}")
    return folder


def drawn_after(finished: list[str]) -> list[str]:
    """The methods of the batches that are left; the rejected images are those of the unguided."""
    return [method for method in ORDER[len(finished) :] if method != "Rejection" for _ in range(3)]


def test_an_interrupted_evaluation_goes_on(
    dng: Dng,
    settings: list[str],
    whole: Path,
    passes: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """After an interruption in the middle of the second guidance, and another in that of the third."""
    folder = f"--trainer.default_root_dir={tmp_path}"
    add = Evaluator.add
    for error, left in ((KeyboardInterrupt, 5), (RuntimeError, 5)):
        finished = [row["method"] for row in rows(tmp_path)] if (tmp_path / "results.csv").exists() else []
        passes.clear()

        def stop(*args: Any, error: type[BaseException] = error, left: int = left) -> None:
            add(*args)
            if len(passes) == left:
                raise error("power cut")

        monkeypatch.setattr(Evaluator, "add", stop)
        with pytest.raises((error, SystemExit)):
            dng("test", *settings, folder)
        assert passes == drawn_after(finished)[:left]
        before, finished = finished, [row["method"] for row in rows(tmp_path)]
        assert len(finished) > len(before)
        assert finished == ORDER[: len(finished)] != ORDER
    monkeypatch.setattr(Evaluator, "add", add)
    passes.clear()
    dng("test", *settings, folder)
    assert passes == drawn_after(finished)
    assert compared(tmp_path) == compared(whole)
    assert rows(tmp_path, "classes") == rows(whole, "classes")
    assert rows(tmp_path, "posterior") == rows(whole, "posterior")


def test_an_interruption_between_files_leaves_no_row_twice(
    dng: Dng, settings: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def power_cut(*_: Any, **__: Any) -> None:
        raise RuntimeError

    folder = f"--trainer.default_root_dir={tmp_path}"
    for step in ("sample_store.SampleStore.keep_only", "evaluator.Evaluator.write_figures"):
        with monkeypatch.context() as patch:
            patch.setattr(f"dng_lightning.evaluation.{step}", power_cut)
            with pytest.raises(RuntimeError):
                dng("test", *settings, folder)
    dng("test", *settings, folder)
    assert compared(tmp_path) == compared(whole)
    assert rows(tmp_path, "classes") == rows(whole, "classes")


def test_another_tracker_is_judged_too(dng: Dng, settings: list[str], whole: Path, passes: list[str], tmp_path: Path):
    folder = shutil.copytree(whole, tmp_path / "copy")
    more = f"{GUIDANCES[:-1]}, {WITH_PRIOR % (3.0, POSTERIOR % 0.3)}]"
    dng("test", *settings, f"--model.guidances={more}", f"--trainer.default_root_dir={folder}")
    assert passes == ["Unguided"] * 3 + ["DynamicNegativeGuidance"] * 3
    assert compared(folder)[:5] == compared(whole)
    posteriors = [json.loads(row["guidance"]).get("posterior", {}) for row in rows(folder)]
    assert [posterior.get("prior") for posterior in posteriors] == [None, None, None, 0.2, 0.2, 0.3]
    assert [json.loads(row["tracker"])["prior"] for row in rows(folder, "posterior")] == [0.2, 0.2, 0.3, 0.3]


def test_references_that_are_named_later_add_their_rows(
    dng: Dng,
    settings: list[str],
    whole: Path,
    without_3_and_8: Path,
    tiny_noisy_classifier: Path,
    passes: list[str],
    tmp_path: Path,
):
    """Nothing else is done again; another checkpoint of the same role is another row."""
    folder = shutil.copytree(whole, tmp_path / "copy")
    others = [without_3_and_8.parent, shutil.copytree(without_3_and_8.parent, tmp_path / "another")]
    for retrained in (*others, without_3_and_8):
        dng("test", *settings, f"--model.retrained_checkpoint={retrained}", f"--trainer.default_root_dir={folder}")
    assert passes == ["Retrained"] * 3 * 2
    guidances = "[{class_path: DynamicNegativeGuidance, init_args: {posterior: ClassifierPosterior}}]"
    oracle = [f"--model.noise_conditional_classifier={tiny_noisy_classifier}", f"--model.guidances={guidances}"]
    dng("test", *settings, *oracle, f"--trainer.default_root_dir={folder}")
    assert passes[6:] == ["DynamicNegativeGuidance, classifier"] * 3
    assert compared(folder)[:5] == compared(whole)
    added = [json.loads(row["guidance"]) for row in rows(folder)[5:]]
    assert added[:2] == [{"class": "Retrained", "checkpoint": other.name} for other in others]
    assert added[2].items() >= {"class": "DynamicNegativeGuidance", "checkpoint": tiny_noisy_classifier.name}.items()


def continue_with_another(dng: Dng, settings: list[str], folder: Path, passes: list[str]) -> None:
    """No row is drawn twice; for one more guidance, the unguided images are drawn again first."""
    dng("test", *settings, f"--trainer.default_root_dir={folder}")
    assert passes == []
    more = "[{class_path: SafeLatentDiffusion, init_args: {scale: 3.0}}]"
    dng("test", *settings, f"--model.guidances={more}", f"--trainer.default_root_dir={folder}")
    assert passes == ["Unguided"] * 3 + ["SafeLatentDiffusion"] * 3


def test_unguided_images_that_were_lost_are_drawn_again_where_others_need_them(
    dng: Dng, settings: list[str], whole: Path, passes: list[str], tmp_path: Path
):
    folder = shutil.copytree(whole, tmp_path / "copy")
    shutil.rmtree(folder / "sample_cache")
    continue_with_another(dng, settings, folder, passes)
    assert compared(folder)[:5] == compared(whole)


def test_other_features_are_other_rows(dng: Dng, settings: list[str], passes: list[str], tmp_path: Path):
    """First without any; then what is drawn anew is compared with what was drawn in the same features."""
    few = [
        *settings,
        "--data.num_samples=6",
        f"--trainer.default_root_dir={tmp_path}",
        "--model.guidances=[NegativePrompting]",
    ]
    dng("test", *few, "--trainer.callbacks.features=null")
    passes.clear()
    dng("test", *few[:-1], "--model.guidances=[NegativePrompting, SafeLatentDiffusion]")
    assert passes == ["Unguided", "NegativePrompting", "SafeLatentDiffusion"]
    named = [(row["method"], row["features"]) for row in rows(tmp_path) if row["method"] != "Rejection"]
    assert named[:2] == [("Unguided", "none"), ("NegativePrompting", "none")]
    assert named[2:] == [(method, "digits-classifier") for method in passes]
    for row in rows(tmp_path):
        if row["method"] != "Rejection":
            assert bool(row["fd_retained"]) == bool(row["feature_distance_to_unguided"]) == (row["features"] != "none")
    assert {row["features"] for row in rows(tmp_path, "classes") if row["kid"]} <= {"digits-classifier"}
    assert "NegativePrompting, digits-classifier" in (tmp_path / "results.md").read_text()


@pytest.fixture
def given_images(samples: list[Samples], tmp_path: Path) -> Path:
    """The images of each method, for all batch sizes and processes alike."""
    names = ["Unguided None", *(f"{type(method).__name__} {method.scale}" for method in METHODS)]
    torch.save(dict(zip(names, (s.images for s in samples), strict=False)), tmp_path / "images.pt")
    return tmp_path / "images.pt"


# Gives the images, whatever the sizes of the batches in which they are asked for.
GIVEN = f"""
from dataclasses import replace
import torch
from dng_lightning.modules import GuidedSampler

images, draw = torch.load("images.pt"), GuidedSampler.draw

def given(self, seeds, guidance):
    drawn = draw(self, seeds, guidance)
    x = images[f"{{type(guidance).__name__}} {{getattr(guidance, 'scale', None)}}"][[seed - {FIRST} for seed in seeds]]
    assert (x - drawn.images).abs().max() < 1e-3
    return replace(drawn, images=x)
"""
RUN = "import sys; from dng_lightning.__main__ import main; GuidedSampler.draw = given; main(sys.argv[1:])"


def test_any_batch_size_gives_the_same(
    whole: Path, settings: list[str], given_images: Path, dng: Dng, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(given_images.parent)
    names: dict[str, Any] = {}
    exec(GIVEN, names)
    monkeypatch.setattr(GuidedSampler, "draw", names["given"])
    dng("test", *settings, "--data.batch_size=7", "--trainer.default_root_dir=out")
    assert compared(Path("out"), 4) == compared(whole, 4)


def test_any_number_of_processes_gives_the_same(
    whole: Path, settings: list[str], given_images: Path, dng_process: DngProcess
):
    folder = given_images.parent
    (folder / "given.py").write_text(GIVEN + RUN)
    two = ["--data.batch_size=5", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = ["test", *settings, *QUIET, *two, "--trainer.default_root_dir=out"]
    done = dng_process(*command, cwd=folder, script=folder / "given.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1
    assert compared(folder / "out", 4) == compared(whole, 4)


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


def test_the_retrained_model_is_the_one_that_draws(samples: list[Samples], written: Path, without_3_and_8: Path):
    """Its weights are not those of the other, and so are its images."""
    assert not torch.equal(samples[0].images, samples[-1].images)
    assert list(DiffusionModule.load(str(without_3_and_8)).seen_classes) == [0, 1, 2, 4, 5, 6, 7, 9]
    (folder,) = (written / "sample_cache").glob("Retrained*")
    shown = torch.from_numpy(np.load(folder / "pixels.npy"))
    difference = (shown.int() - to_uint8(samples[-1].images).int()).abs().max()
    assert difference <= 1


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
        "--data.reference_data.val_size=1473",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    model = [f"--model.checkpoint={digits}", "--model.classifier=digits-classifier", "--model.steps=2"]
    features = ["--trainer.callbacks.features=inception", f"--trainer.callbacks.feature_weights={inception_weights}"]
    features += ["--trainer.callbacks.unguided=false"]
    guidances = "--model.guidances=[{class_path: NegativePrompting}]"
    dng("test", *model, *few, *features, guidances)
    rows = list(csv.DictReader((tmp_path / "results.csv").open(newline="")))
    assert [row["method"] for row in rows if row["fd_all"]] == ["NegativePrompting"]
    extractor, data = load_features("inception", str(inception_weights)), Digits(val_size=1473)
    data.setup()
    real = ReferenceStatistics.load(tmp_path / "real-inception-2048.pt")
    found = extractor(data.part("train").images).double()
    n, mean, covariance = real.moments(range(10))
    assert (n, tuple(covariance.shape)) == (24, (2048, 2048))
    torch.testing.assert_close(mean, found.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(covariance, found.T.cov(), rtol=1e-3, atol=1e-5)
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchFidelityFeatures, "_extract", lambda self, pixels, dtype: seen.append(len(pixels)))
        dng("test", *model, *few, *features, guidances)
    assert not seen
