"""The documentation: the site builds, commands and examples run, links lead somewhere, model cards are complete."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import PIPELINES, Dng, Fitted, ends_well, fit_settings, is_shipped, printed
from tiny_diffusion import run_example, tiny_dit

from dng_lightning.__main__ import main
from dng_lightning.guidance import Guidance
from dng_lightning.posterior import Posterior
from dng_lightning.storage import resources

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
CHECKPOINTS = sorted(path for path in (ROOT / "checkpoints").iterdir() if path.is_dir())
CARDS = [folder / "README.md" for folder in CHECKPOINTS]
DRAWING = ["--data.num_samples=4", "--model.steps=2", "--trainer.devices=1"]

OTHERS = [
    r"pip install (\.|'?\.\[[\w,-]+\]'?)",
    r"pytest( -\S+| auto| 'not slow')*",
    r"tensorboard --logdir \S+",
    r"python scripts/(benchmarks/)?\w+\.py( \S+)*",
    r"python -m dng_lightning\.hub \S+ \S+",
]


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(pages: list[Path]) -> list[list[str]]:
    """Those of the shell blocks, each once, without comments, and taken apart where ``&&`` joins them."""
    lines = [line for page in pages for text in blocks(page, "bash") for line in text.replace("\\\n", " ").splitlines()]
    parts = dict.fromkeys(part.strip() for line in lines for part in line.split("#")[0].split("&&"))
    return [shlex.split(part) for part in parts if part]


OURS = [words[1:] for words in commands(PAGES) if words[0] == "dng"]
OF_CARDS = [words[1:] for words in commands(CARDS) if words[0] == "dng" and words[1:] not in OURS]


def is_run_elsewhere(words: list[str]) -> bool:
    """Whether another file runs it; an overlay's base may be all that another test makes of it."""
    return (is_shipped(words) and len(words) == 3) or any(f"{name}.yaml" in words for name in PIPELINES)


SAVED = re.compile(r"`(\w+\.(?:py|yaml))`:\n\n```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)


def save_files(folder: Path) -> None:
    """Save the blocks that a page introduces by the name of a file."""
    for page in PAGES:
        for name, text in SAVED.findall(page.read_text()):
            (folder / name).write_text(text)


# --- the site ---


def test_the_site_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("mkdocs", reason="MKDOCS MISSING: the site was not built (extra docs)")
    pytest.importorskip("mkdocstrings", reason="MKDOCSTRINGS MISSING: the site was not built (extra docs)")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    run = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    method = (tmp_path / "reference" / "methods" / "dynamic" / "index.html").read_text()
    assert "strength of the push" in method  # the docstring of a setting
    assert (tmp_path / "checkpoints" / "mnist" / "tradeoff.png").exists()


def test_every_method_and_posterior_has_its_reference():
    text = "".join(page.read_text() for page in (ROOT / "docs" / "reference").rglob("*.md"))
    classes = [
        name
        for module in ("guidance", "posterior")
        for name in importlib.import_module(f"dng_lightning.{module}").__all__
        if name not in ("Guidance", "Posterior", "Unguided", "Timing")
    ]
    assert [name for name in classes if not re.search(rf"^::: dng_lightning\.\S+\.{name}$", text, re.MULTILINE)] == []


@pytest.mark.parametrize(
    "page", [*PAGES, *CARDS, ROOT / "checkpoints" / "README.md"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_lead_to_files(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


# --- README and model cards ---


def test_the_readme_is_short():
    text = README.read_text()
    assert len(text.splitlines()) <= 160
    first, *_ = blocks(README, "bash")
    assert len(first.splitlines()) == 3
    assert first.startswith("pip install . && dng predict")
    screen = text.partition("\n## ")[0]
    rows = [line for line in screen.splitlines() if line.startswith("|")]
    assert len(rows) - 2 <= 8
    assert not re.search(r"[¹²³†]|\*\)|\\\*", screen)
    assert any(
        line.startswith("pip install '.[test]' && pytest") for line in "".join(blocks(README, "bash")).splitlines()
    )


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_model_cards_are_complete(card: Path):
    _, front, text = card.read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert {"license", "library_name", "pipeline_tag", "tags"} <= set(facts)
    assert text.startswith(f"\n# {card.parent.name}\n")
    sections = ["Intended use", "Data", "Training", "Evaluation", "Limits", "Licence"]
    assert [name for name in re.findall(r"^## (.*)", text, re.MULTILINE) if name in sections] == sections
    assert "dng fit --config" in "".join(blocks(card, "bash"))
    for table in card.parent.glob("*.csv"):
        assert f"]({table.name})" in text
    for figure in card.parent.glob("*.png"):
        assert figure.name in text


# --- commands ---


@pytest.fixture(scope="module")
def folder(place: Path, fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run one after the other: fake data, tiny models, and the logs of their trainings."""
    fitted("digits")
    copied = copy_of(place, tmp_path_factory)
    if importlib.util.find_spec("diffusers"):
        tiny_dit(copied / "facebook" / "DiT-XL-2-256")
    return copied


@pytest.fixture(scope="module")
def folder_of_texts(text_to_image_place: Path, captioned_place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with tiny text-to-image models."""
    return copy_of(captioned_place, tmp_path_factory)


def copy_of(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied = tmp_path_factory.mktemp("docs") / "place"
    shutil.copytree(place, copied, ignore=shutil.ignore_patterns("samples", "results", "drawn", "compared"))
    save_files(copied)
    return copied


@pytest.mark.parametrize("words", [words for words in OURS if not is_run_elsewhere(words)], ids=" ".join)
def test_commands_run(
    words: list[str], dng: Dng, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys
):
    on_texts = re.search(r"stable_diffusion|dinner_table|medieval|captioned", " ".join(words))
    monkeypatch.chdir(request.getfixturevalue("folder_of_texts" if on_texts else "folder"))
    command, *settings = words
    if "facebook/" in " ".join(words):
        pytest.importorskip("diffusers", reason="diffusers is not installed (extra diffusers)")
    if command.startswith("--") or any(re.search(r"help$|^--print_config$", word) for word in settings):
        ends_well(main, [command, *settings])  # without what the fixture adds: the rest of a line is the help's
    elif command in ("predict", "test"):
        real = ["--data.reference_data.val_size=20"] if "--data.reference_data" in settings else []
        real += ["--model.compile=false"] if "calibrate.yaml" in settings else []
        dng(command, *settings, *DRAWING, *real)
    else:
        assert command in ("fit", "validate")
        config = settings[settings.index("--config") + 1] if "--config" in settings else "digits.yaml"
        limits = ["--trainer.max_steps=4"] if command == "fit" else []  # as many as have been trained already
        if command == "fit" and not {"--ckpt_path", "--trainer.default_root_dir"} & set(settings):
            *_, last = [word for before, word in pairwise(settings) if before == "--config"] or [config]
            trainer = yaml.safe_load(resources.config(last).read_text())["trainer"]
            shutil.rmtree(trainer["default_root_dir"], ignore_errors=True)  # a second training there is refused
        tiny = fit_settings(Path(config).stem)
        if settings.count("--config") > 1:  # the later ones may have callbacks of their own
            tiny = [setting for setting in tiny if not setting.startswith("--trainer.callbacks")]
        dng(command, *settings, *tiny, *limits, "--trainer.devices=1")


@pytest.mark.parametrize("words", [words for words in OF_CARDS if not is_shipped(words)], ids=" ".join)
def test_commands_of_model_cards_are_understood(words: list[str], capsys, monkeypatch: pytest.MonkeyPatch):
    if re.search("captioned|portraits", " ".join(words)):
        pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")
    monkeypatch.chdir(ROOT)
    assert printed(capsys, *words, "--print_config")


def test_there_are_commands_for_all_that_one_can_do():
    assert {words[0] for words in OURS} >= {"fit", "predict", "test"}


def test_other_commands_are_of_a_known_shape():
    for words in commands([*PAGES, *CARDS]):
        if words[0] == "dng":
            continue
        assert any(re.fullmatch(shape, " ".join(words)) for shape in OTHERS), words
        if words[0] == "python" and words[1] != "-m":
            assert (ROOT / words[1]).exists()


def test_configurations_that_are_named_exist():
    names = {path.name for path in (ROOT / "configs").rglob("*.yaml")} | {"config.yaml", "calibration.yaml"}
    for page in [*PAGES, *CARDS]:
        text = page.read_text()
        own = {name for name, _ in SAVED.findall(text)}
        named = set(re.findall(r"[\w/]*?(\w+\.yaml)", text))
        assert named <= names | own | {"NAME.yaml"}, page


# --- examples ---


@pytest.mark.parametrize(
    "page", [p for p in [*PAGES, *CARDS] if blocks(p, "python")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_python_examples_run(page: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(place / "mnist", tmp_path / "mnist")
    save_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for text in blocks(page, "python"):
        if "from diffusers" in text:
            for library in ("diffusers", "transformers"):
                pytest.importorskip(library, reason=f"{library} is not installed (extra text-to-image)")
            (image,) = run_example(text, tmp_path)["images"]
            assert image.size == (16, 16)
            continue
        known: dict[str, Any] = {}
        exec(compile(text, str(page), "exec"), known)
        if "images" in known:
            assert known["images"].ndim == 4
            assert known["images"].isfinite().all()


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "yaml")], ids=lambda p: str(p.relative_to(ROOT)))
def test_yaml_examples_name_classes_and_settings_that_exist(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save_files(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for text in blocks(page, "yaml"):
        for part in parts_of(yaml.safe_load(text)):
            made(part)


def parts_of(node: Any) -> Iterator[dict[str, Any]]:
    """Every class with its settings."""
    if isinstance(node, dict):
        if "class_path" in node and not node["class_path"].startswith("training."):  # in EDM's repository
            yield node
        for value in node.values():
            yield from parts_of(value)
    elif isinstance(node, list):
        for value in node:
            yield from parts_of(value)


def made(node: Any) -> Any:
    """The guidance or posterior that a part of a configuration describes; of others the class is looked up."""
    if not (isinstance(node, dict) and "class_path" in node):
        return node
    module, _, name = node["class_path"].rpartition(".")
    kind = getattr(importlib.import_module(module), name) if module else shipped_class(name)
    if issubclass(kind, Guidance | Posterior):
        return kind(**{name: made(value) for name, value in node.get("init_args", {}).items()})
    return kind


def shipped_class(name: str) -> Any:
    modules = ["guidance", "posterior", "modules", "networks", "callbacks", "data", "schedule", "text_to_image"]
    modules += ["judges", "pretrained"]
    found = [importlib.import_module(f"dng_lightning.{module}") for module in modules]
    found.append(importlib.import_module("lightning.pytorch.callbacks"))
    return next(getattr(module, name) for module in found if hasattr(module, name))


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    few = [source.replace("range(32), 50", "range(12), 10") for source in sources]
    few = [source.replace('"8"]', '"2", "--model.steps=2"]') for source in few]
    assert sum(a != b for a, b in zip(few, sources, strict=True)) == 2
    names: dict[str, Any] = {}
    for source in few:
        exec(compile(source, "quickstart.ipynb", "exec"), names)
    assert set(names["images"]) == {"unguided", "negative prompting", "DNG"}
    assert all(images.shape == (12, 1, 28, 28) for images in names["images"].values())
    assert "DNG: 20 network evaluations an image" in capsys.readouterr().out
    assert len(names["ax"].lines) == 12  # a posterior an image
    people = tmp_path / "samples" / "portraits-without-sunglasses" / "grid.png"
    assert people.exists() or not (find_spec("dicebear") and find_spec("diffusers"))
