"""What is drawn on TensorBoard has known values; see also `tests/test_dashboards.py`."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from devices import WithoutDouble
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from dng_lightning.evaluation import plots, tensorboard
from dng_lightning.evaluation.plots import TrajectorySet


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SummaryWriter]:
    with SummaryWriter(str(tmp_path)) as writer:
        yield writer


def written(writer: SummaryWriter) -> EventAccumulator:
    writer.flush()
    events = EventAccumulator(writer.log_dir)
    events.Reload()
    return events


def scalar(events: EventAccumulator, tag: str) -> float:
    (event,) = events.Scalars(tag)
    assert event.step == 7
    return event.value


def test_lines_take_the_whole_name_or_its_beginning():
    kind, (exact, beginning) = tensorboard.lines("val/loss", "classes/a.b/*")
    assert kind == "Multiline"
    assert re.match(exact, "val/loss")
    assert not re.match(exact, "val/loss_t/q1")
    assert re.match(beginning, "classes/a.b/3")
    assert not re.match(beginning, "classes/a_b/3")


def test_spread_is_the_interval_of_the_mean(writer: SummaryWriter):
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])  # mean 3, variance 14 / 3, of the mean 7 / 6
    tensorboard.spread(writer, "scale", values, 7)
    events = written(writer)
    error = 1.96 * (7 / 6) ** 0.5
    assert [scalar(events, tag) for tag in tensorboard.band("scale")[1]] == pytest.approx([3, 3 - error, 3 + error])


@pytest.mark.parametrize(("values", "low"), [([0.0, 0.0, 1.0], 0.0), ([0.5], 0.5)])
def test_spread_stays_above_zero_and_of_one_image_has_no_width(values: list[float], low: float, writer: SummaryWriter):
    tensorboard.spread(writer, "posterior", torch.tensor(values), 7)
    assert scalar(written(writer), "posterior_low") == low


def test_shares_of_classes_whatever_their_names(writer: SummaryWriter):
    tensorboard.class_shares(writer, "classes/guided", [1, 0, 3], ["T-shirt/top", "Ankle boot", "0.5"], 7)
    events = written(writer)
    tags = ["classes/guided/T-shirt_top", "classes/guided/Ankle_boot", "classes/guided/0.5"]
    assert events.Tags()["scalars"] == tags
    assert [scalar(events, tag) for tag in tags] == [0.25, 0, 0.75]


def test_a_histogram_keeps_empty_classes(writer: SummaryWriter):
    tensorboard.class_histogram(writer, "classes/guided", [0, 2, 0, 1, 0], 7)
    (event,) = written(writer).Histograms("classes/guided")
    histogram = event.histogram_value
    assert event.step == 7
    assert histogram.bucket == [0, 2, 0, 1, 0]
    assert histogram.bucket_limit == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert (histogram.min, histogram.max) == (0.5, 3.5)
    assert (histogram.num, histogram.sum, histogram.sum_squares) == (3, 5, 11)


def test_trajectories_average_the_scale_and_take_the_last_posterior(writer: SummaryWriter):
    posterior, scale = torch.tensor([[0.1, 0.2], [0.1, 0.6]]), torch.tensor([[1.0, 3.0], [2.0, 6.0]])
    shown = TrajectorySet([1.0, 0.5], scale, posterior, [False, True])
    tensorboard.trajectories(writer, "guidance", shown, 7)
    events = written(writer)
    assert scalar(events, "guidance/posterior_mean") == pytest.approx(0.4)
    assert scalar(events, "guidance/scale_mean") == pytest.approx(3)
    assert events.Tags()["images"] == ["guidance/trajectories"]


# --- the figure ---


def test_bands_and_a_few_single_images():
    scale = torch.arange(11.0)[:, None] * torch.tensor([1.0, 2.0]) + 5  # eleven images, two steps
    scale[10] *= 10
    forbidden = [False] * 9 + [True] * 2
    figure = plots.trajectory_bands(TrajectorySet([1.0, 0.5], scale, None, forbidden))
    (axes,) = figure.axes
    drawn = {str(line.get_label()): line for line in axes.lines if len(line.get_xdata())}
    assert drawn["median"].get_ydata() == pytest.approx([10, 15])
    assert drawn["mean"].get_ydata() == pytest.approx(scale.double().mean(0).tolist())
    assert drawn["mean"].get_xdata() == pytest.approx([1, 0.5])
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((6, 23))  # the second lowest and the second highest
    single = [line for line in axes.lines if len(line.get_xdata()) and str(line.get_label()).startswith("_")]
    assert [line.get_color() for line in single] == ["tab:blue"] * 6 + ["tab:red"] * 2
    assert single[-1].get_ydata() == pytest.approx(scale[10].tolist())


def test_a_wide_range_is_drawn_whole_on_a_logarithmic_axis():
    posterior = torch.full((20, 3), 1e-3)
    posterior[19] = 0.9  # not among the eight that are drawn
    figure = plots.trajectory_bands(TrajectorySet([1.0, 0.67, 0.33], posterior, posterior, [False] * 20))
    for axes in figure.axes:
        assert axes.get_yscale() == "log"
        assert axes.get_ylim()[0] < 1e-3
        assert axes.get_ylim()[1] > 0.9


def test_figures_ask_no_device_for_double_precision(writer: SummaryWriter):
    scale = torch.rand(9, 2).as_subclass(WithoutDouble)
    shown = TrajectorySet([1.0, 0.5], scale, scale, [True] + [False] * 8)
    tensorboard.trajectories(writer, "guidance", shown, 7)
    assert len(plots.trajectories(shown).axes) == 2
