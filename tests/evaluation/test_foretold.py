import json

import pytest
import torch
from dng_lightning.evaluation.foretold import halfway, judged, kept


@pytest.mark.parametrize(
    ("levels", "place"),
    [([1000, 750, 500, 250], 2), ([1000, 667, 333], 1), ([1000], 0), ([1000, 500], 1), ([50, 30, 24, 10], 2)],
)
def test_halfway_is_the_level_next_to_half_the_noise(levels: list[int], place: int):
    assert halfway(levels) == place


def test_the_sums_over_the_classes_are_kept_of_each_tracker():
    """Two trackers of three classes: the posterior of tracker w's class k before step s is s + w / 10 + k / 100."""
    steps, trackers, classes = torch.arange(4.0), torch.arange(2) / 10, torch.arange(3) / 100
    posterior = (steps[:, None, None] + trackers[:, None] + classes).flatten(1).expand(5, 4, 6)
    seen = kept(posterior, [1000, 750, 500, 250], 2)
    expected = [3 * place + 3 * tracker + 0.03 for place in (2, 3) for tracker in (0, 0.1)]
    torch.testing.assert_close(seen, torch.tensor(expected).expand(5, 4))


def test_each_tracker_is_judged_halfway_and_at_the_end():
    """The first is wrong halfway and right at the end, the second the other way round."""
    became = torch.tensor([True, False, True, False])
    right = became.float() * 0.8 + 0.1
    seen = torch.stack([1 - right, right, right, 1 - right], 1)  # halfway of both, the end of both
    rows, ends = judged(seen, became, ["one", "other"], [1000, 667, 333])
    assert [row["tracker"] for row in rows] == ["one", "one", "other", "other"]
    assert [row["t/T"] for row in rows] == [0.667, 0.0, 0.667, 0.0]
    assert [row["auc"] for row in rows] == [0, 1, 1, 0]
    assert [row["brier"] for row in rows] == pytest.approx([0.81, 0.01, 0.01, 0.81])
    assert [end.auc for end in ends] == [1, 0]
    curve = json.loads(rows[1]["curve"])
    assert [bin for point in curve for bin in point] == pytest.approx([0.1, 0, 2, 0.9, 1, 2])
    assert {row["n"] for row in rows} == {4}
