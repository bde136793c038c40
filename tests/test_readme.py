"""Every command of the README runs, made tiny; what is not ours is checked by its shape."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from running import Dng, Fitted, fit_settings
from tiny_diffusion import run_example

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(), re.DOTALL)
SAMPLING = ["--data.n=4", "--model.steps=2"]


def commands() -> list[list[str]]:
    """Those of the shell blocks, without comments, and taken apart where they are joined by `&&`."""
    lines = [line for kind, text in BLOCKS if kind == "bash" for line in text.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in line.split("#")[0].split("&&")]
    return [shlex.split(part) for part in parts if part.strip()]


OURS = [words[1:] for words in commands() if words[0] == "dng"]
OTHERS = [words for words in commands() if words[0] != "dng"]


@pytest.fixture(scope="module")
def folder(place: Path, fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run one after the other: fake data, tiny models, and the logs of their trainings."""
    fitted("digits")
    copied = tmp_path_factory.mktemp("readme") / "place"
    return shutil.copytree(place, copied, ignore=shutil.ignore_patterns("samples", "results", "drawn", "compared"))


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_our_commands(words: list[str], folder: Path, dng: Dng, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    command, *settings = words
    if command in ("predict", "test"):
        dng(command, *settings, *SAMPLING)
        return
    assert command in ("fit", "validate")
    config = settings[settings.index("--config") + 1] if "--config" in settings else "digits.yaml"
    limits = ["--trainer.max_steps=4"] if command == "fit" else []  # as many as have been trained already
    dng(command, *settings, *fit_settings(config), *limits, "--trainer.devices=1")


def test_there_are_commands_for_all_that_one_can_do():
    assert {words[0] for words in OURS} >= {"fit", "predict", "test"}


def test_other_commands_are_of_a_known_shape():
    known = [
        r"pip install (\.|'?\.\[\w+\]'?)",
        r"pytest( -\S+)*",
        r"tensorboard --logdir logs",
        r"git clone https://\S+",
        r"cd \S+",
        r"python -m venv \S+",
    ]
    for words in OTHERS:
        assert any(re.fullmatch(shape, " ".join(words)) for shape in known), words


def test_one_line_installs_and_runs_and_one_installs_and_tests():
    lines = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]
    assert any(line.startswith("pip install . && dng predict") for line in lines)
    assert any(line.startswith("pip install '.[test]' && pytest") for line in lines)


def test_the_python_examples_run(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    examples = [text for kind, text in BLOCKS if kind == "python" and "from diffusers" not in text]
    assert examples
    for text in examples:
        known: dict[str, object] = {}
        exec(compile(text, str(README), "exec"), known)
        images = known["images"]
        assert images.shape == (16, 1, 28, 28)  # type: ignore[attr-defined]
        assert images.isfinite().all()  # type: ignore[attr-defined]


def test_the_python_examples_with_diffusers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    examples = [text for kind, text in BLOCKS if kind == "python" and "from diffusers" in text]
    for library in ("diffusers", "transformers") if examples else ():
        pytest.importorskip(library, reason=f"{library} is not installed (extra text-to-image)")
    monkeypatch.chdir(tmp_path)
    for text in examples:
        (image,) = run_example(text, tmp_path)["images"]
        assert image.size == (16, 16)


def test_what_it_links_to_is_there():
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README.read_text())
    assert targets
    for target in targets:
        if not target.startswith("http"):
            assert (README.parent / target).exists(), target
