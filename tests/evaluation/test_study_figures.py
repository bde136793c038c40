import io
import json

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from result_rows import CURVE, points, row

from dng_lightning.evaluation import study_figures
from dng_lightning.evaluation.class_balance import PosteriorQuality, wilson_interval
from dng_lightning.evaluation.figures import class_bars

pytestmark = pytest.mark.usefixtures("rendered")

REFERENCES = [row("Unguided", 0.1, 0.05, 1), row("Rejection", 0, 0.01, 1, n=900), row("Retrained", 0.001, 0.01, 0.5)]


def drawn(figure: Figure) -> torch.Tensor:
    """The pixels (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8).view(
        *canvas.get_width_height()[::-1], 4
    )


def containers(axes: Axes) -> dict[str, ErrorbarContainer]:
    return {str(found.get_label()): found for found in axes.containers if isinstance(found, ErrorbarContainer)}


# --- trade-off ---


def test_a_line_for_each_method_and_a_mark_for_each_reference():
    figure = study_figures.tradeoff([*REFERENCES, *CURVE, row("NP", 0.02, 0.5, 9)])
    assert len(figure.axes) == 2
    names = ["Unguided", "Rejection", "Retrained", "DNG", "NP"]
    for axes, index in zip(figure.axes, (0, 1), strict=True):
        found = containers(axes)
        assert list(found) == names
        assert (
            points(found["DNG"])
            == [[(0.0025, 0.3), (0.01, 0.2), (0.04, 0.1)], [(0.0025, 4), (0.01, 8), (0.04, 2)]][index]
        )
        for name in names:
            line = found[name].lines[0]
            assert line.get_linestyle() == ("None" if name in names[:3] else "-")
        marks = [(found[name].lines[0].get_marker(), found[name].lines[0].get_color()) for name in names]
        assert len({mark for mark, _ in marks[:3]}) == 3
        assert len({colour for _, colour in marks[2:]}) == 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names


def test_each_setting_of_a_method_has_its_own_line_and_look():
    """Points that differ in more than the scale are not joined; one more line than there are colours."""
    rows = [
        row("DNG", 0.01 + 0.001 * number, 0.1, scale=scale, guidance=json.dumps({"scale": scale, "prior": number}))
        for number in range(11)
        for scale in (1.0, 2.0)
    ]
    found = containers(study_figures.tradeoff(rows).axes[0])
    assert list(found) == [f"DNG, prior {number}" for number in range(11)]
    assert len({(line.lines[0].get_color(), line.lines[0].get_linestyle()) for line in found.values()}) == 11
    assert all(len(points(line)) == 2 for line in found.values())


def test_the_legend_fits_however_long_its_names_are():
    for length in (3, 60, 120):
        figure = study_figures.tradeoff([row(f"{number}" * length, 0.02, 0.5, 9) for number in range(1, 8)])
        width = drawn(figure).shape[1]
        frame = figure.legends[0].get_window_extent()
        assert frame.x0 >= 0
        assert frame.x1 <= width


def test_divergences_are_plain_numbers():
    axes = study_figures.tradeoff([row("NP", 0.02, 0.004), row("NP", 0.01, 0.3)]).axes[0]
    ticks = [text.get_text() for text in axes.get_yticklabels()]
    assert {"0.005", "0.01", "0.02", "0.05", "0.1", "0.2"} <= set(ticks)


def test_error_bars_are_the_intervals():
    (point,) = [row("NP", 0.02, 0.5, 9)]
    for axes, (low, high) in zip(study_figures.tradeoff([point]).axes, ((0.45, 0.55), (7.2, 10.8)), strict=True):
        across, upright = (bars for bars in containers(axes)["NP"].lines[2] if isinstance(bars, LineCollection))
        (x_ends,), (y_ends,) = (bars.get_segments() for bars in (across, upright))
        assert x_ends[:, 0].tolist() == pytest.approx(
            [float(point["forbidden_rate_low"]), float(point["forbidden_rate_high"])]
        )
        assert y_ends[:, 1].tolist() == pytest.approx([low, high])


def test_no_leak_at_all_is_drawn_whole():
    """On a scale that begins at nothing; its mark does not stick to the frame."""
    for rate, kl in ((0, 0.1), (0.3, 0.2)):
        figure = study_figures.tradeoff([row("Rejection", rate, kl)])
        axes = figure.axes[0]
        drawn(figure)
        x = axes.transData.transform((rate, kl))[0]
        frame = axes.get_window_extent()
        assert frame.x0 + 3 < x < frame.x1 - 3
        assert axes.get_xlim()[0] < 0
    assert axes.get_xscale() == "symlog"


def test_the_ticks_are_percentages_as_far_as_the_points_go():
    for rate, last in ((0.004, 1), (0.96, 1.5)):
        axes = study_figures.tradeoff([row("NP", rate, 0.1, n=100_000)]).axes[0]
        ticks = [float(label.get_text()) / 100 for label in axes.get_xticklabels()]
        assert ticks == pytest.approx(list(axes.get_xticks()))
        assert rate / 4 < max(ticks) < axes.get_xlim()[1] < last


def test_without_distances_there_is_one_panel():
    figure = study_figures.tradeoff([row("Unguided", 0.1, 0.05), row("NP", 0.02, 0.5)])
    assert len(figure.axes) == 1
    assert list(containers(figure.axes[0])) == ["Unguided", "NP"]
    assert len(figure.legends) == 1


def test_rows_without_a_distance_or_an_interval():
    """A filter that let few images pass, and features too wide for an interval."""
    wide = row("NP", 0.02, 0.5, 9) | {"fd_retained_low": "", "fd_retained_high": ""}
    left, right = study_figures.tradeoff([row("Rejection", 0, 0.1), wide]).axes
    assert list(containers(left)) == ["Rejection", "NP"]
    assert points(containers(right)["NP"]) == [(0.02, 9.0)]
    assert list(containers(right)) == ["NP"]


# --- the others ---


def test_histograms():
    rows = [row("Unguided", 0.5, 0.1, class_counts="5 3 2"), *[row("NP", 0, 0.1, scale=2, class_counts="0 1 1")] * 3]
    figure = study_figures.class_histograms(rows, ["a", "b", "c"], [0])
    charts = [axes for axes in figure.axes if axes.axison]
    assert len(charts) == 4
    assert [round(bar.get_height(), 6) for bar in charts[0].patches] == [50, 30, 20]
    assert [round(bar.get_height(), 6) for bar in charts[1].patches] == [0, 50, 50]
    colours = [bar.get_facecolor() for bar in charts[0].patches]
    assert colours[0] != colours[1] == colours[2]
    assert charts[0].get_title() == "Unguided: 50.0% forbidden"
    assert charts[1].get_title() == "NP 2: 0.0% forbidden"
    assert [label.get_text() for label in charts[0].get_xticklabels()] == ["a", "b", "c"]
    (even,) = charts[0].get_lines()
    assert list(even.get_ydata()) == [50, 50]  # over the two retained


@pytest.mark.parametrize("forbidden", [[], [42]])
def test_of_many_classes_the_forbidden_ones_are_named(forbidden: list[int]):
    names, counts = [f"class {label}" for label in range(100)], [1] * 100
    (axes, *_) = study_figures.class_histograms(
        [row("NP", 0, 0.1, class_counts=" ".join(map(str, counts)))], names, forbidden
    ).axes
    for chart in (axes, class_bars({"NP": counts}, names, forbidden).axes[0]):
        assert [label.get_text() for label in chart.get_xticklabels()] == [names[label] for label in forbidden]


def test_calibration():
    good = PosteriorQuality(0.9, 0.1, [(0.05, 0.0, 30), (0.5, 0.2, 10)])
    bad = PosteriorQuality(0.6, 0.2, [(0.5, 1.0, 4)])
    figure = study_figures.calibration({"good": good, "bad": bad})
    (axes,), (legend,) = figure.axes, figure.legends
    diagonal = axes.get_lines()[0]
    found = containers(axes)
    first, second = (line.lines[0] for line in found.values())
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([0.05, 0.5], [0.0, 0.2])
    assert (list(second.get_xdata()), list(second.get_ydata())) == ([0.5], [1.0])
    names = ["good, 40 images", "bad, 4 images"]
    assert list(found) == names
    assert [text.get_text() for text in legend.get_texts()] == ["calibrated", *names]
    (upright,) = found[names[0]].lines[2]
    for ends, bounds in zip(upright.get_segments(), (wilson_interval(0, 30), wilson_interval(2, 10)), strict=True):
        assert ends[:, 1].tolist() == pytest.approx(bounds)


def test_the_names_of_many_settings_leave_the_calibration_its_place():
    quality = PosteriorQuality(0.9, 0.1, [(0.05, 0.0, 30), (0.5, 0.2, 10)])
    name = "DynamicNegativeGuidance" + "".join(f", setting_{i} 0.0001" for i in range(8))
    figure = study_figures.calibration({name: quality})
    figure.savefig(io.BytesIO())  # lays it out
    assert figure.bbox.containsx(figure.legends[0].get_window_extent().x0)
    assert figure.axes[0].get_window_extent().height > figure.bbox.height / 2


@pytest.mark.parametrize("channels", [1, 3])
def test_samples(channels: int):
    """Two methods of the same name and scale are two rows; the forbidden images are framed in red."""
    images = torch.full((3, channels, 28, 28), 128, dtype=torch.uint8)
    rows = [("DNG 1.0", images, [False, True, False]), ("DNG 1.0", images, [False] * 3)]
    figure = study_figures.sample_rows(rows)
    assert [axes.get_ylabel() for axes in figure.axes] == ["DNG 1.0"] * 2
    red = [
        torch.from_numpy(axes.get_images()[0].get_array().data) == torch.tensor([214, 39, 40]) for axes in figure.axes
    ]
    framed = [found.all(2).any(0).nonzero()[:, 0] for found in red]
    assert len(framed[1]) == 0
    width = figure.axes[0].get_images()[0].get_array().shape[1] // 3
    assert framed[0].min() // width == framed[0].max() // width == 1
    columns = (drawn(figure)[..., :3] < 255).any(2).any(0).nonzero()
    assert columns.max() > 0.94 * drawn(figure).shape[1]  # the last image and its frame of white, no margin
    assert drawn(figure).float().std() > 10
