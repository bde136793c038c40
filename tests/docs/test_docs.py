"""The documentation: the site builds, examples run, links lead somewhere, model cards are complete."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import CARDS, PAGES, README, ROOT, SAVED, blocks, save_files
from tiny_diffusion import run_example

from dng_lightning.guidance import Guidance
from dng_lightning.posterior import Posterior

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
        if name not in ("Guidance", "Posterior", "Unguided")
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
