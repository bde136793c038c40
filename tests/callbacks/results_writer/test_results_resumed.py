"""`dng test` writes the same rows after an interruption, with further methods, and in any batches and processes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_comparison import FIRST, GUIDANCES, METHODS, ORDER, POSTERIOR, WITH_PRIOR, compared, rows
from running import QUIET, Dng, DngProcess

from dng_lightning.evaluation import class_balance, distribution_metrics
from dng_lightning.evaluation.evaluator import Evaluator
from dng_lightning.evaluation.runs import Samples
from dng_lightning.modules import GuidedSampler


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
from dng_lightning.evaluation import class_balance, distribution_metrics
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
    intervals = class_balance.kl_interval, class_balance.kl_to_interval, distribution_metrics.frechet_interval
    alike = "".join(  # as many resamples as in this process
        f"{interval.__module__.rpartition('.')[2]}.{interval.__name__}.__defaults__ = {interval.__defaults__}\n"
        for interval in intervals
    )
    (folder / "given.py").write_text(GIVEN + alike + RUN)
    two = ["--data.batch_size=5", "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = ["test", *settings, *QUIET, *two, "--trainer.default_root_dir=out"]
    done = dng_process(*command, cwd=folder, script=folder / "given.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1
    assert compared(folder / "out", 4) == compared(whole, 4)
