"""What `dng fit` shows on TensorBoard: read from the event files, and looked at with a browser."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Page, assert_drawn, tensorboard
from running import Dng, Fitted
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor

from dng_lightning.data import Digits
from dng_lightning.data.pixels import from_png, to_float
from dng_lightning.evaluation.class_balance import kl_divergence
from dng_lightning.modules import ClassifierModule

IMAGES, BORDER = 12, 1
pytestmark = pytest.mark.usefixtures("rendered")

METHODS = ("guided", "unguided")
TABS = {  # what stands there once it has been drawn
    "timeseries": ["metrics", "samples"],
    "scalars": ["metrics", "train", "val"],
    "hparams": ["learning_rate", "guidance", "scale", "val/loss", "metrics/forbidden_rate_guided"],
    "histograms": ["samples/class_counts_guided"],
    "images": ["samples/class_shares"],
    "images&tagFilter=samples": ["samples/guided", "samples/unguided"],  # folded up otherwise
    "images&tagFilter=traj": ["trajectories/scale_and_posterior"],
}


@pytest.fixture(scope="module")
def folder(dng: Dng, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a training of two steps, with a validation after each."""
    folder = tmp_path_factory.mktemp("dashboards")
    net = ["--model.net.channels=[8]", "--model.net.attention=[]", "--model.prediction=v"]
    length = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", "--trainer.log_every_n_steps=1"]
    sampling = f"{{num_samples: {IMAGES}, steps: 4, forbidden: 8, classifier: digits-classifier}}"
    callbacks = f"{{class_path: EMA}}, {{class_path: GuidedSampling, init_args: {sampling}}}"
    callbacks = f"--trainer.callbacks=[{callbacks}, {{class_path: LearningRateMonitor}}]"
    data = ["--data.batch_size=1297", f"--trainer.default_root_dir={folder}"]
    dng("fit", "--config=digits.yaml", *net, *length, *data, callbacks)
    return folder


@pytest.fixture(scope="module")
def board(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0, "scalars": 0, "tensors": 0})
    board.Reload()
    return board


def values(board: EventAccumulator, tag: str) -> list[float]:
    return [event.value for event in board.Scalars(tag)]


def hyperparameters(board: EventAccumulator, tag: str) -> HParamsPluginData:
    return HParamsPluginData.FromString(board.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content)


def drawn(board: EventAccumulator, name: str) -> Tensor:
    """The images of the last grid, uint8 (N, 1, 8, 8)."""
    grid = from_png(board.Images(f"samples/{name}")[-1].encoded_image_string)[:1]
    cells = grid.unfold(1, 8 + 2 * BORDER, 8 + 2 * BORDER).unfold(2, 8 + 2 * BORDER, 8 + 2 * BORDER)
    return cells.flatten(1, 2).transpose(0, 1)[:IMAGES, :, BORDER:-BORDER, BORDER:-BORDER]


# --- the event files ---


def test_scalars_are_losses_and_metrics(board: EventAccumulator):
    """No chart for each class: those would come before everything else."""
    groups: dict[str, set[str]] = {}
    for tag in board.Tags()["scalars"]:
        groups.setdefault(tag.split("/")[0], set()).add(tag)
    assert set(groups) == {"metrics", "train", "val"}
    assert groups["train"] == {"train/loss", "train/learning_rate"}
    assert groups["val"] == {"val/loss", *(f"val/loss_t/q{i}" for i in (1, 2, 3, 4))}
    both = {f"metrics/{name}_{how}" for name in ("forbidden_rate", "kl", "fd", "fd_all") for how in METHODS}
    assert groups["metrics"] == both | {"metrics/scale_guided", "metrics/posterior_guided"}


def test_scale_and_posterior_are_those_of_the_guided_images(board: EventAccumulator):
    scale, posterior = (values(board, f"metrics/{name}_guided") for name in ("scale", "posterior"))
    assert all(0 <= value < 1 for value in posterior)
    assert all(0 < value < 99 for value in scale)  # of the default posterior, p_max .99 at most


def test_hyperparameters_stand_beside_the_final_metrics(board: EventAccumulator):
    session = hyperparameters(board, "session_start_info").session_start_info.hparams
    settings = {name: getattr(value, value.WhichOneof("kind")) for name, value in session.items()}
    expected = {"prediction": "v", "optimizer": "AdamW", "learning_rate": 0.003, "precision": "32-true"}
    expected |= {"batch_size": 1297, "steps": 2, "data": "Digits"}
    expected |= {"guidance": "DynamicNegativeGuidance", "scale": 1, "forbidden": "8"}
    assert settings.pop("parameters") > 1000
    assert settings == expected
    metrics = {info.name.tag for info in hyperparameters(board, "experiment").experiment.metric_infos}
    names = ("metrics/forbidden_rate", "metrics/kl", "metrics/fd")
    assert metrics >= {"val/loss", *(f"{name}_{how}" for name in names for how in ("guided", "unguided"))}
    assert metrics <= set(board.Tags()["scalars"])
    assert "hp_metric" not in board.Tags()["scalars"]
    assert hyperparameters(board, "session_end_info").session_end_info.status == 1  # success
    assert len(board.Scalars("val/loss")) == 2  # not once more at the end


def test_a_classifier_has_results_too(fitted: Fitted):
    board = EventAccumulator(str(fitted("digits_classifier")))
    board.Reload()
    metrics = {info.name.tag for info in hyperparameters(board, "experiment").experiment.metric_infos}
    assert metrics == {"val/loss", "val/accuracy"} <= set(board.Tags()["scalars"])


def test_resuming_a_finished_training_adds_no_results(dng: Dng, tiny_checkpoint: Path, tmp_path: Path):
    net = ["--model.net.channels=[16]", "--model.net.attention=[]", "--model.prediction=v", "--trainer.max_steps=60"]
    last = tiny_checkpoint / "checkpoints" / "last.ckpt"
    dng("fit", "--config=digits.yaml", *net, f"--trainer.default_root_dir={tmp_path}", f"--ckpt_path={last}")
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    with pytest.raises(KeyError):
        hyperparameters(board, "experiment")


@pytest.mark.parametrize("name", ["guided", "unguided"])
def test_class_balance(name: str, board: EventAccumulator):
    labels = ClassifierModule.load("digits-classifier").label(to_float(drawn(board, name))).labels
    counts = labels.bincount(minlength=10).tolist()
    assert board.Histograms(f"samples/class_counts_{name}")[-1].histogram_value.bucket == counts
    assert values(board, f"metrics/forbidden_rate_{name}")[-1] == pytest.approx(counts[8] / IMAGES)
    assert values(board, f"metrics/kl_{name}")[-1] == pytest.approx(kl_divergence(counts, [8]), rel=1e-5)


@pytest.mark.parametrize("name", ["guided", "unguided"])
@pytest.mark.parametrize("metric", ["fd", "fd_all"])
def test_frechet_distance_to_the_validation_images(metric: str, name: str, board: EventAccumulator):
    net = ClassifierModule.load("digits-classifier").net
    data = Digits()
    data.setup()
    part = data.part("val")
    real = part.images[part.labels != 8] if metric == "fd" else part.images
    x, y = (net.features(to_float(pixels)).double().numpy() for pixels in (real, drawn(board, name)))
    a, b = np.cov(x.T), np.cov(y.T)
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    distance = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert values(board, f"metrics/{metric}_{name}")[-1] == pytest.approx(distance, rel=1e-3)


def test_figures_and_grids_after_each_validation(board: EventAccumulator):
    for tag in ("samples/guided", "samples/unguided", "samples/class_shares", "trajectories/scale_and_posterior"):
        events = board.Images(tag)
        assert [event.step for event in events] == [1, 2]
        for event in events:
            assert from_png(event.encoded_image_string).float().std() > 10


# --- in a browser ---


@pytest.fixture(scope="module")
def url(browser: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a TensorBoard that has read the run."""
    with tensorboard(folder, tmp_path_factory.mktemp("tensorboard") / "stderr") as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("tab", TABS)
def test_a_browser_shows(tab: str, url: str, page: Page, tmp_path: Path):
    text = assert_drawn(page, f"{url}#{tab}", TABS[tab], tmp_path / "tab.png")
    assert "hp_metric" not in text
