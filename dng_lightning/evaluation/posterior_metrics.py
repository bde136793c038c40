"""How well passively tracked posteriors predict what unguided images become: ROC-AUC and Brier score."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dng_lightning.evaluation.metrics import PosteriorQuality, posterior_quality
from dng_lightning.kernel import NoiseLevel

COLUMNS = ["tracker", "t/T", "n", "seeds", "steps", "auc", "brier", "curve"]
KEY = ["tracker", "t/T", "seeds", "steps"]


def halfway_and_end(log_prob: Tensor, levels: Sequence[NoiseLevel]) -> Tensor:
    """The posteriors of all forbidden conditions together, half-way and at the end, (B, 2, W).

    Args:
        log_prob: of W posteriors before each step, (B, S, W, K).
        levels: the level that each step starts from, (S,). The last step has no evidence to give, so that the last
            posterior is that of the end.
    """
    return log_prob[:, [halfway(levels), -1]].exp().sum(3).float()


def halfway(levels: Sequence[NoiseLevel]) -> int:
    """The place of the level whose timestep is nearest to half of the first."""
    first = levels[0].timestep + 1
    return min(range(len(levels)), key=lambda place: abs(levels[place].timestep + 1 - first / 2))


def posterior_rows(
    posteriors: Tensor, became: Tensor, trackers: Sequence[str], times: Sequence[float]
) -> tuple[list[dict[str, Any]], list[PosteriorQuality]]:
    """The quality of each posterior at each time.

    Args:
        posteriors: (N, 2, W), see ``halfway_and_end``.
        became: which images turned out forbidden, bool (N,).
        trackers: W settings.
        times: t / T of the two.

    Returns:
        Rows of ``posterior.csv``, and the qualities at the last time.
    """
    rows: list[dict[str, Any]] = []
    ends = []
    for name, each in zip(trackers, posteriors.unbind(2), strict=True):
        for time, posterior in zip(times, each.unbind(1), strict=True):
            quality = posterior_quality(posterior, became)
            row: Mapping[str, Any] = {"tracker": name, "t/T": time, "auc": quality.auc, "brier": quality.brier}
            rows.append({**row, "n": len(became), "curve": json.dumps(quality.curve)})
        ends.append(quality)
    return rows, ends
