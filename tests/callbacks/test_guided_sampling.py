"""What is logged while a model trains: grids of images, a bucket a class, the share of the forbidden ones."""

from pathlib import Path

import pytest
import torch
from running import QUIET, rendered_figures
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.data_compat import migrate_value
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor

from dng_lightning.__main__ import run
from dng_lightning.callbacks import GuidedSampling
from dng_lightning.data.pixels import from_png
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.runs import Labels
from dng_lightning.modules import ClassifierModule, DiffusionModule
from dng_lightning.storage import resources

IMAGES = 10


def fit(folder: Path, *settings: str, sampling: str) -> EventAccumulator:
    """Two epochs of one step on the digits; returns what was logged."""
    net = ["--model.net.channels=[8]", "--model.net.attention=[]", "--model.prediction=v"]
    length = ["--trainer.max_epochs=2", "--data.batch_size=1297", "--trainer.limit_val_batches=2"]
    length += ["--trainer.check_val_every_n_epoch=1", f"--trainer.default_root_dir={folder}"]
    callback = f"{{class_path: GuidedSampling, init_args: {{num_samples: {IMAGES}, steps: 2, {sampling}}}}}"
    args = [*net, *length, *settings, f"--trainer.callbacks=[{callback}, {{class_path: EMA}}]"]
    run(["fit", f"--config={resources.config('digits')}", *QUIET, *args])
    board = EventAccumulator(str(folder))
    board.Reload()
    return board


@pytest.fixture(scope="module")
def seen() -> list[Tensor]:
    """The labels that the classifier gave, in turn: unguided and guided, after each of two epochs."""
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, seen: list[Tensor]) -> Path:
    """Of a training with a classifier that sees 3, 4 and 5 alone, and 4 and 5 forbidden."""
    folder = tmp_path_factory.mktemp("sampling")

    def label(self: ClassifierModule, images: Tensor) -> Labels:
        assert images.abs().max() <= 1
        seen.append(3 + (torch.arange(len(images)) + len(seen)) % 3)
        return Labels(seen[-1], torch.ones(len(images)))

    with pytest.MonkeyPatch.context() as patch, rendered_figures():
        patch.setattr(ClassifierModule, "label", label)
        fit(folder, sampling="forbidden: [4, 5], classifier: digits-classifier")
    return folder


@pytest.fixture
def board(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0})
    board.Reload()
    return board


def test_grids_of_the_samples(board: EventAccumulator):
    for name in ("samples/unguided", "samples/guided"):
        events = board.Images(name)
        assert [event.step for event in events] == [1, 2]
        for event in events:
            assert (event.height, event.width) == (2 * 10, 8 * 10)  # ten framed 8x8 images, eight a row
            grid = from_png(event.encoded_image_string)
            red = (grid[0].int() - grid[1].int() > 100).sum()
            frame = 10 * 10 - 8 * 8  # one pixel wide
            assert red % frame == 0
            assert 6 <= red // frame <= 7  # of ten, two in three are forbidden


def test_the_figure_of_the_classes(board: EventAccumulator):
    (first, _) = board.Images("samples/class_shares")
    figure = from_png(first.encoded_image_string)
    assert figure.float().std() > 10


def test_a_bucket_for_each_class_present_or_not(board: EventAccumulator, seen: list[Tensor]):
    for name, turns in (("samples/class_counts_unguided", (0, 2)), ("samples/class_counts_guided", (1, 3))):
        events = board.Histograms(name)
        assert [event.step for event in events] == [1, 2]
        for event, turn in zip(events, turns, strict=True):
            histogram = event.histogram_value
            assert histogram.bucket_limit == [label + 0.5 for label in range(10)]
            assert histogram.bucket == seen[turn].bincount(minlength=10).tolist()
            assert histogram.num == IMAGES
            assert histogram.sum == seen[turn].sum()


def test_tensorboard_draws_a_bar_of_width_one_for_each_class(folder: Path):
    (path,) = folder.glob("events*")
    found = 0
    for event in LegacyEventFileLoader(str(path)).Load():
        for value in event.summary.value:
            if value.tag.startswith("samples/class_counts") and value.WhichOneof("value") == "histo":
                edges = make_ndarray(migrate_value(value).tensor)[:, :2].tolist()
                assert edges == [[label - 0.5, label + 0.5] for label in (3, 4, 5)]  # it leaves out empty ends itself
                found += 1
    assert found == 4


def test_the_share_of_the_forbidden(board: EventAccumulator, seen: list[Tensor]):
    for name, turns in (("unguided", (0, 2)), ("guided", (1, 3))):
        shares = [event.value for event in board.Scalars(f"metrics/forbidden_rate_{name}")]
        assert shares == pytest.approx([float((seen[turn] > 3).float().mean()) for turn in turns])


def test_the_seeds_are_fixed(tmp_path: Path):
    """An untrained model draws the same images after each epoch."""
    sampling = "forbidden: 4, every_n_epochs: 1"
    board = fit(
        tmp_path,
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=0",
        "--model.scheduler=null",
        sampling=sampling,
    )
    first, second = (event.encoded_image_string for event in board.Images("samples/guided"))
    assert first == second
    metrics = {tag for tag in board.Tags()["scalars"] if tag.startswith("metrics/")}
    assert metrics == {"metrics/scale_guided", "metrics/posterior_guided"}  # no classifier, no classes
    assert not board.Tags()["histograms"]


def test_every_n_epochs_and_an_unconditional_model(tmp_path: Path):
    board = fit(tmp_path, "--model.net.num_classes=0", sampling="forbidden: null, every_n_epochs: 2")
    assert [event.step for event in board.Images("samples/unguided")] == [2]
    assert "samples/guided" not in board.Tags()["images"]


@pytest.mark.parametrize(
    ("settings", "sampling", "message"),
    [
        ("--model.net.num_classes=0", "forbidden: 4", "unconditional; set forbidden to null"),
        ("--data.exclude_classes=4", "forbidden: 4", "never saw class '4'"),
        ("--data.include_classes=4", "forbidden: eleven", "no class 'eleven'"),
        ("--data.include_classes=4", "forbidden: 4, num_samples: 0", "GuidedSampling's num_samples must be at least 1"),
        ("--model.schedule=LinearSchedule", "forbidden: 4, every_n_epochs: 0", "every_n_epochs must be at least 1"),
    ],
)
def test_what_cannot_be_guided_is_refused_before_training(settings: str, sampling: str, message: str, tmp_path: Path):
    with pytest.raises((SettingError, ValueError), match=message):
        fit(tmp_path, settings, sampling=sampling)


def test_more_steps_than_levels_are_refused(tmp_path: Path):
    schedule = ["--model.schedule=LinearSchedule", "--model.schedule.steps=1"]
    with pytest.raises(SettingError, match="steps must be between 1 and 1"):
        fit(tmp_path, *schedule, sampling="forbidden: 4")


def test_it_draws_nothing_outside_of_fit(tmp_path: Path, tiny_checkpoint: Path):
    sampling = "--trainer.callbacks=[{class_path: GuidedSampling, init_args: {num_samples: 2, steps: 2}}]"
    net = ["--model.net.channels=[16]", "--model.net.attention=[]"]
    args = [*net, sampling, f"--trainer.default_root_dir={tmp_path}", f"--ckpt_path={tiny_checkpoint / 'model.ckpt'}"]
    run(["validate", f"--config={resources.config('digits')}", *QUIET, *args])
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert not board.Tags()["images"]


def test_images_are_drawn_in_the_precision_of_the_training(tmp_path: Path, monkeypatch):
    """Guided and unguided alike: their difference is to be that of the guidance."""
    seen: list[bool] = []
    forward = DiffusionModule.forward

    def noting(self: DiffusionModule, *args: object) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return forward(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(DiffusionModule, "forward", noting)
    fit(tmp_path, "--trainer.precision=bf16-mixed", sampling="forbidden: 4")
    assert len(seen) == 2 * 2 * 2  # epochs, guided or not, steps
    assert all(seen)


def test_it_goes_with_a_diffusion_model_alone(tmp_path: Path):
    callback = "--trainer.callbacks=[{class_path: GuidedSampling, init_args: {num_samples: 2, steps: 2}}]"
    args = [callback, f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(SettingError, match=r"^GuidedSampling goes with a DiffusionModule; the model is a Classifier"):
        run(["fit", f"--config={resources.config('digits_classifier')}", *QUIET, *args])


def test_an_image_writer_is_not_for_training(tmp_path: Path):
    args = ["--trainer.callbacks=[{class_path: ImageWriter}]", f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(SettingError, match=r"^ImageWriter goes with a GuidedSampler; the model is DiffusionModule"):
        run(["fit", f"--config={resources.config('digits')}", *QUIET, *args])


def test_few_images_can_be_drawn():
    assert GuidedSampling(num_samples=1).num_samples == 1
