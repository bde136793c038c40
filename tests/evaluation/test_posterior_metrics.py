import json
import math

import pytest
import torch

from dng_lightning.evaluation.posterior_metrics import (
    class_entropy,
    decisive_steps,
    halfway,
    halfway_and_end,
    posterior_rows,
)


@pytest.mark.parametrize(
    ("times", "place"),
    [([1, 0.75, 0.5, 0.25], 2), ([1, 0.667, 0.333], 1), ([1], 0), ([1, 0.5], 1), ([0.5, 0.3, 0.24, 0.1], 2)],
)
def test_halfway_is_the_time_next_to_half_of_the_first(times: list[float], place: int):
    assert halfway(times) == place


def test_the_sums_over_the_classes_are_kept_of_each_tracker():
    """Two trackers of three classes: the posterior of tracker w's class k before step s is s + w / 10 + k / 100."""
    steps, trackers, classes = torch.arange(4.0), torch.arange(2) / 10, torch.arange(3) / 100
    posterior = (steps[:, None, None] + trackers[:, None] + classes).expand(5, 4, 2, 3)
    kept = halfway_and_end(posterior.log(), [1, 0.75, 0.5, 0.25])
    expected = [[3 * place + 3 * tracker + 0.03 for tracker in (0, 0.1)] for place in (2, 3)]
    torch.testing.assert_close(kept, torch.tensor(expected).expand(5, 2, 2))


def test_each_tracker_is_judged_halfway_and_at_the_end():
    """The first is wrong halfway and right at the end, the second the other way round."""
    became = torch.tensor([True, False, True, False])
    right = became.float() * 0.8 + 0.1
    posteriors = torch.stack([torch.stack([1 - right, right], 1), torch.stack([right, 1 - right], 1)], 2)
    rows, ends = posterior_rows(posteriors, became, ["one", "other"], [1.0, 0.667, 0.333])
    assert [row["tracker"] for row in rows] == ["one", "one", "other", "other"]
    assert [row["t/T"] for row in rows] == [0.667, 0.0, 0.667, 0.0]
    assert [row["auc"] for row in rows] == [0, 1, 1, 0]
    assert [row["brier"] for row in rows] == pytest.approx([0.81, 0.01, 0.01, 0.81])
    assert [end.auc for end in ends] == [1, 0]
    curve = json.loads(rows[1]["curve"])
    assert [bin for point in curve for bin in point] == pytest.approx([0.1, 0, 2, 0.9, 1, 2])
    assert {row["n"] for row in rows} == {4}


def test_the_class_entropy_counts_what_is_none_of_the_classes():
    """Undecided between two classes and neither, between two, decided; the mean over images of each."""
    first, second, third = [1 / 3, 1 / 3], [0.5, 0.5], [1.0, 0.0]
    entropy = class_entropy(torch.tensor([[first, second, third], [first, first, second]]))
    three, two = math.log(3), math.log(2)
    torch.testing.assert_close(entropy, torch.tensor([three, (two + three) / 2, two / 2]))


def test_the_decisive_steps_leave_out_as_much_of_the_fall_at_either_end():
    entropy = torch.tensor([2.0, 2.0, 1.99, 1.5, 1.6, 0.5, 0.02, 0.0, 0.0])
    assert decisive_steps(entropy) == (2, 6)
    assert decisive_steps(entropy, share=0.5) == (2, 5)
    assert decisive_steps(torch.tensor([1.0, 0.0])) == (0, 1)
