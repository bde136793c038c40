"""What `dng test` shows on TensorBoard: a run a row, read from the event files and looked at with a browser."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, assert_drawn, tensorboard
from running import Dng
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from dng_lightning.data.pixels import from_png
from dng_lightning.evaluation.runs import Samples
from dng_lightning.evaluation.tensorboard import MEASURES
from dng_lightning.guidance import DynamicNegativeGuidance
from dng_lightning.modules import GuidedSampler
from dng_lightning.posterior import TrackedPosterior

pytestmark = pytest.mark.usefixtures("rendered")

N, STEPS, FORBIDDEN = 24, 5, 3
POSTERIOR = "{class_path: TrackedPosterior, init_args: {prior: 0.2}}"
GUIDANCES = f"""[{{class_path: NegativePrompting, init_args: {{scale: 1.0}}}},
  {{class_path: DynamicNegativeGuidance, init_args: {{scale: 2.5, posterior: {POSTERIOR}}}}}]"""
LOGGERS = ("CSVLogger", "TensorBoardLogger")
TABS = {  # what stands there once it has been drawn
    "scalars": ["metrics", "speed"],
    "hparams": ["NegativePrompting", "method", "scale", "forbidden", "metrics/forbidden_rate"],
    "images&tagFilter=class_shares": ["samples/class_shares", "NegativePrompting"],  # folded up otherwise
    "images&tagFilter=samples": ["samples/first_seeds"],
    "images&tagFilter=traj": ["trajectories/scale_and_posterior"],
}


@pytest.fixture(scope="module")
def command(digits: Path) -> list[str]:
    model = [f"--model.checkpoint={digits}", "--model.classifier=digits-classifier", f"--model.steps={STEPS}"]
    seeds = [f"--data.num_samples={N}", "--data.batch_size=10", "--data.reference_data=Digits"]
    return ["test", *model, f"--model.forbidden={FORBIDDEN}", f"--model.guidances={GUIDANCES}", *seeds]


@pytest.fixture(scope="module")
def folder(dng: Dng, command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    dng(*command, f"--trainer.default_root_dir={folder}")
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, dict[str, str]]:
    return {row["method"]: row for row in csv.DictReader((folder / "results.csv").open(newline=""))}


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, EventAccumulator]:
    """By method."""
    found = {}
    for path in (folder / "tensorboard").iterdir():
        assert len(list(path.iterdir())) == 1  # one file, nothing beside it
        found[path.name.split("-")[0]] = EventAccumulator(str(path), size_guidance={"tensors": 0, "scalars": 0})
        found[path.name.split("-")[0]].Reload()
    return found


@pytest.fixture(scope="module")
def samples(digits: Path) -> Samples:
    sampler = GuidedSampler(str(digits), FORBIDDEN, steps=STEPS, classifier="digits-classifier")
    return sampler.draw(range(N), DynamicNegativeGuidance(2.5, TrackedPosterior(0.2)))


def test_each_row_is_a_run_with_its_measures(rows: dict[str, dict[str, str]], runs: dict[str, EventAccumulator]):
    assert set(runs) == set(rows) == {"Unguided", "Rejection", "NegativePrompting", "DynamicNegativeGuidance"}
    for method, row in rows.items():
        for tag, column in MEASURES.items():
            if method == "Rejection" and column == "kl_unguided":  # it is what the others are measured by
                assert tag not in runs[method].Tags()["scalars"]
                continue
            (event,) = runs[method].Scalars(tag)
            assert event.value == pytest.approx(float(row[column]), rel=1e-4, abs=1e-6)
            assert event.step == {"NegativePrompting": 1000, "DynamicNegativeGuidance": 2500}.get(method, 0)
        counts = [int(count) for count in row["class_counts"].split()]
        assert runs[method].Histograms("samples/class_counts")[0].histogram_value.bucket == counts
        assert runs[method].Images("samples/class_shares")


def test_scale_and_posterior_against_t_where_there_is_a_guidance(runs: dict[str, EventAccumulator]):
    for method in ("NegativePrompting", "DynamicNegativeGuidance"):
        (figure,) = runs[method].Images("trajectories/scale_and_posterior")
        assert from_png(figure.encoded_image_string).float().std() > 10
    assert "trajectories/scale_and_posterior" not in runs["Unguided"].Tags()["images"]


def test_the_samples_are_those_of_the_first_seeds(runs: dict[str, EventAccumulator], samples: Samples):
    (event,) = runs["DynamicNegativeGuidance"].Images("samples/first_seeds")
    first = from_png(event.encoded_image_string)[:1, 1:9, 1:9].float()
    assert (first / 127.5 - 1 - samples.images[0].clamp(-1, 1)).abs().max() < 0.02
    assert "samples/first_seeds" not in runs["Rejection"].Tags()["images"]  # those of the unguided


def test_settings_stand_beside_results(runs: dict[str, EventAccumulator]):
    def told(method: str) -> dict[str, object]:
        content = runs[method].SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        found = HParamsPluginData.FromString(content).session_start_info.hparams
        return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}

    expected = {
        "method": "DynamicNegativeGuidance",
        "scale": 2.5,
        "n": N,
        "steps": STEPS,
        "forbidden": "3",
    }
    assert expected.items() <= told("DynamicNegativeGuidance").items()
    assert told("Unguided").items() >= {"method": "Unguided", "steps": STEPS, "model": "digits"}.items()
    with pytest.raises(KeyError):  # it would hide the settings that other runs have
        runs["Unguided"].SummaryMetadata("_hparams_/experiment")


def test_going_on_logs_nothing_twice(dng: Dng, command: list[str], folder: Path, tmp_path: Path, monkeypatch):
    """Neither a finished row, nor one whose run was written before the power went."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    lines = (copy / "results.csv").read_text().splitlines(keepends=True)
    (copy / "results.csv").write_text("".join(lines[:-1]))
    before = {path: path.stat().st_mtime_ns for path in (copy / "tensorboard").rglob("events*")}
    dng(*command, f"--trainer.default_root_dir={copy}")
    after = {path: path.stat().st_mtime_ns for path in (copy / "tensorboard").rglob("events*")}
    assert len(after) == len(before) == 4
    assert {path.parent.name.split("-")[0] for path in set(after) - set(before)} == {"DynamicNegativeGuidance"}


def test_the_study_reaches_the_loggers_of_the_trainer(
    dng: Dng, command: list[str], rows: dict[str, dict[str, str]], tmp_path: Path
):
    loggers = [f"{{class_path: {name}, init_args: {{save_dir: {tmp_path}, name: {name}}}}}" for name in LOGGERS]
    few = ["--model.guidances=[NegativePrompting]", f"--trainer.default_root_dir={tmp_path / 'few'}"]
    dng(*command, *few, f"--trainer.logger=[{', '.join(loggers)}]")
    logged, events = (next((tmp_path / name).iterdir()) for name in LOGGERS)
    figures = {"test_tradeoff", "test_histograms", "test_samples"}
    assert {path.name.split("-")[0] for path in (logged / "media").iterdir()} == figures | {"test_results.csv"}
    tags = EventAccumulator(str(events)).Reload().Tags()
    assert {name.replace("_", "/") for name in figures} == set(tags["images"])
    assert "test/results/text_summary" in tags["tensors"]
    table = list(csv.DictReader((logged / "media" / "test_results.csv").open(newline="")))
    assert [row["method"] for row in table] == ["Unguided", "Rejection", "NegativePrompting"]
    metrics: dict[str, str] = {}
    for line in csv.DictReader((logged / "metrics.csv").open(newline="")):
        metrics |= {name: value for name, value in line.items() if value}
    (name,) = [name for name in metrics if name.startswith("test/Negative") and name.endswith("/metrics/kl_unguided")]
    assert float(metrics[name]) == pytest.approx(float(rows["NegativePrompting"]["kl_unguided"]), rel=1e-4)


# --- in a browser ---


@pytest.fixture(scope="module")
def url(browser: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with tensorboard(folder / "tensorboard", tmp_path_factory.mktemp("tensorboard") / "stderr") as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("tab", TABS)
def test_a_browser_shows(tab: str, url: str, page: Page, tmp_path: Path):
    assert_drawn(page, f"{url}#{tab}", TABS[tab], tmp_path / "tab.png")
