"""What is drawn on TensorBoard has known values; see also `tests/test_dashboards.py`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from devices import WithoutDouble
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from dng_lightning.evaluation import figures, tensorboard
from dng_lightning.evaluation.figures import TrajectorySet


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SummaryWriter]:
    with SummaryWriter(str(tmp_path)) as writer:
        yield writer


def written(writer: SummaryWriter) -> EventAccumulator:
    writer.flush()
    events = EventAccumulator(writer.log_dir)
    events.Reload()
    return events


def test_a_histogram_keeps_empty_classes(writer: SummaryWriter):
    tensorboard.class_histogram(writer, "samples/class_counts_guided", [0, 2, 0, 1, 0], 7)
    (event,) = written(writer).Histograms("samples/class_counts_guided")
    histogram = event.histogram_value
    assert event.step == 7
    assert histogram.bucket == [0, 2, 0, 1, 0]
    assert histogram.bucket_limit == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert (histogram.min, histogram.max) == (0.5, 3.5)
    assert (histogram.num, histogram.sum, histogram.sum_squares) == (3, 5, 11)


# --- the figure ---


def test_bands_and_a_few_single_images():
    scale = torch.arange(11.0)[:, None] * torch.tensor([1.0, 2.0]) + 5  # eleven images, two steps
    scale[10] *= 10
    forbidden = [False] * 9 + [True] * 2
    figure = figures.trajectory_bands(TrajectorySet([1.0, 0.5], scale, None, forbidden))
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
    figure = figures.trajectory_bands(TrajectorySet([1.0, 0.67, 0.33], posterior, posterior, [False] * 20))
    for axes in figure.axes:
        assert axes.get_yscale() == "log"
        assert axes.get_ylim()[0] < 1e-3
        assert axes.get_ylim()[1] > 0.9


def test_figures_ask_no_device_for_double_precision():
    scale = torch.rand(9, 2).as_subclass(WithoutDouble)
    shown = TrajectorySet([1.0, 0.5], scale, scale, [True] + [False] * 8)
    assert len(figures.trajectory_bands(shown).axes) == 2
    assert len(figures.trajectories(shown).axes) == 2
