"""A comparison that cannot be made is refused in one line; what a shell sees of a refusal."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from complaints import complaint
from running import Dng, DngProcess, closed_pipe

from dng_lightning.evaluation.reference_statistics import ReferenceStatistics
from dng_lightning.modules import DiffusionModule


def test_a_comparison_needs_a_classifier_and_a_class_that_is_left(dng: Dng, digits_here: list[str], capsys):
    def refused(*settings: object) -> str:
        return complaint(dng, capsys, "test", *digits_here, *settings)

    assert "needs a classifier to label the images: set model.classifier" in refused("--model.classifier=null")
    every = [f"--model.forbidden={list(range(10))}", "--model.guidances=[Unguided]", "--model.guidance=Unguided"]
    assert "model.forbidden names every class: leave one" in refused(*every, "--data.reference_data=Digits")
    assert "guidances is empty: name at least one" in refused("--model.guidances=[]")
    assert "(setting noise_conditional_classifier)" in refused("--model.guidances=[ClassifierGuidance]")


def test_a_comparison_needs_real_images_that_fit(
    dng: Dng, digits_here: list[str], statistics: ReferenceStatistics, capsys
):
    def refused(*settings: object) -> str:
        return complaint(dng, capsys, "test", *digits_here, *settings)

    line = refused()
    assert "no statistics of real images at digits/real-digits-classifier.pt: name their data set" in line
    assert "--data.reference_data MNIST" in line
    assert "--trainer.callbacks.features null" in line
    # the data set itself; the statistics are not computed, let alone written
    assert "data.reference_data: MNIST has other images than the model" in refused("--data.reference_data=MNIST")
    assert "data.reference_data: CIFAR10 has other images than the model" in refused("--data.reference_data=CIFAR10")
    # what lies beside the checkpoint
    samples = statistics.samples[::200], statistics.sample_labels[::200]
    others = {
        "the statistics are of Letters, which has other classes": {
            "data": "Letters",
            "class_names": tuple("abcdefghij"),
        },
        "of images (1, 16, 16) instead of (1, 8, 8)": {"image_shape": (1, 16, 16)},
        "hold features of vgg, not of digits-classifier": {"extractor": "vgg"},
        "were made with other weights of digits-classifier": {"fingerprint": "0" * 12},
        "hold 1 features instead of": {
            "means": statistics.means[:, :1],
            "covariances": statistics.covariances[:, :1, :1],
        }
        | {"samples": statistics.samples[:, :1]},
        "hold less than 4 real images of Digits that are not forbidden": {
            "samples": samples[0][:3],
            "sample_labels": samples[1][:3],
        },
    }
    for message, changed in others.items():
        replace(statistics, **changed).save("digits/real-digits-classifier.pt")
        assert message in refused()
    Path("digits/real-digits-classifier.pt").write_bytes(b"anything")
    assert "digits/real-digits-classifier.pt holds no statistics of real images" in refused()


def test_features_that_there_are_not(dng: Dng, digits_here: list[str], monkeypatch, capsys):
    def refused(*settings: object) -> str:
        return complaint(dng, capsys, "test", *digits_here, "--data.reference_data=Digits", *settings)

    line = refused("--trainer.callbacks.features=nonsense")
    assert "features nonsense are not classifier, inception, dinov2-vit-s-14, " in line
    assert "or null: No checkpoint 'nonsense'" in line
    inception = "--trainer.callbacks.features=inception"
    line = refused(inception, "--trainer.callbacks.feature_weights=nowhere.pth")
    assert "no weights of inception from nowhere.pth: " in line
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert "the features inception needs torch_fidelity: pip install" in refused(inception)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_images_are_refused_before_any_is_drawn(n: int, dng: Dng, digits_here: list[str], capsys):
    line = complaint(dng, capsys, "test", *digits_here, "--data.reference_data=Digits", f"--data.num_samples={n}")
    assert f"precision and recall need 4 images; got {n}: raise data.num_samples" in line


def test_a_retrained_model_that_is_none(dng: Dng, digits_here: list[str], capsys):
    def refused(*settings: object) -> str:
        return complaint(dng, capsys, "test", *digits_here, "--data.reference_data=Digits", *settings)

    assert "retrained_checkpoint digits was trained with a forbidden class" in refused(
        "--model.retrained_checkpoint=digits"
    )
    assert "No checkpoint 'nowhere'" in refused("--model.retrained_checkpoint=nowhere")
    stored = torch.load("digits/model.ckpt", weights_only=True)
    data = stored["trained_on"] | {"seen_classes": list(range(1, 10))}
    others = {
        "other classes than digits": data | {"class_names": [*data["class_names"][1:], "ten"]},
        "images of another shape than digits ((1, 16, 16), not (1, 8, 8))": data | {"image_shape": [1, 16, 16]},
    }
    for message, other in others.items():
        torch.save(stored | {"trained_on": other}, "other.ckpt")
        assert f"retrained other has {message}: name another" in refused("--model.retrained_checkpoint=other.ckpt")


# --- the process ---


def test_all_that_a_shell_sees(dng_process: DngProcess, tmp_path: Path):
    settings = ["--model.checkpoint=nowhere", "--trainer.accelerator=cpu"]
    done = dng_process("predict", *settings, cwd=tmp_path / "here")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("dng: error: No checkpoint 'nowhere'")
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_terminal_without_the_characters_of_the_tables(encoding: str, dng: Dng, from_tiny: list[str], monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    dng("predict", *from_tiny, "--data.num_samples=2")
    assert b"0 ?" in terminal.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_reader_that_leaves_before_the_table(dng: Dng, from_tiny: list[str], monkeypatch):
    """As `head -0` does."""
    with closed_pipe() as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        dng("predict", *from_tiny, "--data.num_samples=1", "--trainer.default_root_dir=drawn")
    assert {"00000000.png", "labels.csv", "grid.png"} <= {path.name for path in Path("drawn").iterdir()}


@pytest.mark.parametrize("word", ["1", "true"])
def test_a_traceback_can_be_had(word: str, dng: Dng, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", word)
    with pytest.raises(Exception, match="No checkpoint 'nowhere'"):
        dng("predict", "--model.checkpoint=nowhere")


def test_our_own_mistakes_are_not_hidden(dng: Dng, from_tiny: list[str], monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(DiffusionModule, "forward", broken)
    with pytest.raises(ZeroDivisionError):
        dng("predict", *from_tiny, "--data.num_samples=1")
