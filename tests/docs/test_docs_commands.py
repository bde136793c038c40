"""The commands of README and of the documentation run."""

import importlib.util
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from pages import CARDS, OF_CARDS, OURS, PAGES, ROOT, commands, save_files
from running import PIPELINES, Dng, Fitted, ends_well, fit_settings, is_shipped, printed
from tiny_diffusion import tiny_dit

from dng_lightning.__main__ import main
from dng_lightning.storage import resources

DRAWING = ["--data.num_samples=4", "--model.steps=2", "--trainer.devices=1"]

OTHERS = [
    r"pip install (\.|'?\.\[[\w,-]+\]'?)",
    r"pytest( -\S+| auto| 'not slow')*",
    r"tensorboard --logdir \S+",
    r"python scripts/(benchmarks/)?\w+\.py( \S+)*",
    r"python -m dng_lightning\.hub \S+ \S+",
]


def is_run_elsewhere(words: list[str]) -> bool:
    """Whether another file runs it; an overlay's base may be all that another test makes of it."""
    return (is_shipped(words) and len(words) == 3) or any(f"{name}.yaml" in words for name in PIPELINES)


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
