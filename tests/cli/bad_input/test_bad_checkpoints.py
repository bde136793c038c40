"""A checkpoint that is damaged, foreign, missing or carries code is refused in one line."""

import contextlib
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from complaints import GUIDANCE, complaint
from running import Dng


class Touch:
    """What a pickle must not do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


# --- checkpoints ---


def damaged(kind: str, good: Path) -> bytes:
    whole = good.read_bytes()
    contents = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "short": whole[:-1],
        "text": b"These are not the weights that you are looking for.\n",
        "image": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "archive": b"",
    }
    if kind == "archive":
        with zipfile.ZipFile("any.zip", "w") as archive:
            archive.writestr("weights.txt", "0.5")
        return Path("any.zip").read_bytes()
    return contents[kind]


@pytest.mark.parametrize("kind", ["empty", "half", "short", "text", "image", "archive"])
def test_damaged_checkpoints(kind: str, dng: Dng, from_tiny: list[str], tiny_checkpoint: Path, capsys):
    Path("damaged.ckpt").write_bytes(damaged(kind, tiny_checkpoint / "model.ckpt"))
    for setting in ("checkpoint", "classifier"):
        line = complaint(dng, capsys, "predict", *from_tiny, f"--model.{setting}=damaged.ckpt")
        assert "damaged.ckpt is " in line
    assert "damaged.ckpt is " in complaint(dng, capsys, "fit", "--ckpt_path=damaged.ckpt")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n",
            "a pointer of Git LFS: run git lfs",
        ),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page, not the file itself"),
        (b"", "empty"),
    ],
)
def test_what_a_download_leaves_in_the_place_of_weights(
    content: bytes, kind: str, dng: Dng, from_tiny: list[str], capsys
):
    for name in ("file.ckpt", "file.safetensors", "file.pt"):
        Path(name).write_bytes(content)
        for setting in ("checkpoint", "classifier"):
            assert f"{name} is {kind}" in complaint(dng, capsys, "predict", *from_tiny, f"--model.{setting}={name}")
    assert f"file.ckpt is {kind}" in complaint(dng, capsys, "fit", "--ckpt_path=file.ckpt")


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, [1, 2], torch.zeros(3), {"hyper_parameters": {"net": 1}}])
def test_foreign_checkpoints(content: object, dng: Dng, from_tiny: list[str], capsys):
    torch.save(content, "foreign.ckpt")
    line = complaint(dng, capsys, "predict", *from_tiny, "--model.checkpoint=foreign.ckpt")
    assert "foreign.ckpt is no checkpoint of a DiffusionModule" in line


def test_one_kind_of_model_in_the_place_of_the_other(dng: Dng, from_tiny: list[str], tiny_checkpoint: Path, capsys):
    for setting, other in (("checkpoint", "digits-classifier"), ("classifier", tiny_checkpoint)):
        line = complaint(dng, capsys, "predict", *from_tiny, f"--model.{setting}={other}")
        assert "is no checkpoint of a" in line


ORACLE = [GUIDANCE, "--model.guidance.posterior=ClassifierPosterior"]


def test_an_oracle_needs_a_classifier_of_the_model_s_noisy_images(
    dng: Dng, from_tiny: list[str], tiny_noisy_classifier: Path, capsys
):
    def refused(*settings: object) -> str:
        return complaint(dng, capsys, "predict", *from_tiny, *settings)

    assert "DynamicNegativeGuidance, classifier needs p(c | x_t): " in refused(*ORACLE)
    assert "p_max must be in (0, 1); got 1" in refused(*ORACLE, "--model.guidance.posterior.p_max=1")
    assert "digits-classifier classifies clean images" in refused(
        *ORACLE, "--model.noise_conditional_classifier=digits-classifier"
    )
    assert "classifies noisy images" in refused(f"--model.classifier={tiny_noisy_classifier}")

    stored = torch.load(tiny_noisy_classifier / "model.ckpt", weights_only=True)
    data, schedule = stored["trained_on"], stored["hyper_parameters"]["schedule"]
    others = {
        "has other classes than": {"trained_on": data | {"class_names": [*data["class_names"][1:], "ten"]}},
        "has other classes in its training than": {"trained_on": data | {"seen_classes": [1, 2, 3]}},
        "has images of another shape than": {"trained_on": data | {"image_shape": [1, 16, 16]}},
        "has another noise schedule than": {
            "hyper_parameters": stored["hyper_parameters"] | {"schedule": schedule | {"init_args": {"steps": 999}}}
        },
    }
    for message, change in others.items():
        torch.save(stored | change, "other.ckpt")
        line = refused(*ORACLE, "--model.noise_conditional_classifier=other.ckpt")
        assert f"noise_conditional_classifier other {message}" in line


def test_missing_checkpoints(dng: Dng, from_tiny: list[str], capsys):
    line = complaint(dng, capsys, "predict", *from_tiny, "--model.checkpoint=mnits")
    assert f"No checkpoint 'mnits': not at {Path.cwd() / 'mnits'}, nor among the " in line
    for command in ("fit", "validate"):
        assert "No checkpoint 'gone.ckpt'" in complaint(dng, capsys, command, "--ckpt_path=gone.ckpt")


def evil(kind: str, path: Path, good: Path, marker: Path) -> None:
    """A file that touches `marker` when it is read by whoever trusts it."""
    stored = torch.load(good, weights_only=True)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(stored | {"state_dict": Touch(marker)}))
    elif kind == "zip":
        torch.save(stored | {"extra": Touch(marker)}, path)
    else:
        touch = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(marker)]}}
        places = {"network": {"net": touch}, "schedule": {"schedule": touch}, "optimizer": {"optimizer": touch}}
        places["instantiator"] = {"_instantiator": "subprocess.run", "args": ["touch", str(marker)]}
        torch.save(stored | {"hyper_parameters": stored["hyper_parameters"] | places[kind]}, path)


@pytest.mark.parametrize("kind", ["pickle", "zip", "network", "schedule", "optimizer", "instantiator"])
def test_code_in_a_checkpoint_is_not_run(kind: str, dng: Dng, from_tiny: list[str], tiny_checkpoint: Path, capsys):
    marker = Path.cwd() / "i-ran"
    evil(kind, Path("evil.ckpt"), tiny_checkpoint / "model.ckpt", marker)
    line = complaint(dng, capsys, "predict", *from_tiny, "--model.checkpoint=evil.ckpt")
    assert "evil.ckpt is " in line
    if kind in ("pickle", "zip"):
        assert "carries code" in line
        assert "carries code" in complaint(dng, capsys, "fit", "--ckpt_path=evil.ckpt")
    assert not marker.exists()


def test_the_code_would_have_run(tiny_checkpoint: Path):
    """Else the test above would prove nothing."""
    for kind in ("pickle", "zip"):
        marker = Path.cwd() / f"ran-{kind}"
        evil(kind, Path("evil.ckpt"), tiny_checkpoint / "model.ckpt", marker)
        with contextlib.suppress(RuntimeError):  # too late
            torch.load("evil.ckpt", weights_only=False)
        assert marker.exists()
