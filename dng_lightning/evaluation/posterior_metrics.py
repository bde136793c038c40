"""Brier score and ROC-AUC of passively tracked posteriors against the final labels of unguided images."""

import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dng_lightning.evaluation.class_balance import PosteriorQuality, posterior_quality

COLUMNS = ["tracker", "t/T", "n", "seeds", "steps", "auc", "brier", "curve"]
KEY = ["tracker", "t/T", "seeds", "steps"]


def halfway(times: Sequence[float]) -> int:
    """Index of the time nearest to half of the first time."""
    return min(range(len(times)), key=lambda place: round(abs(times[place] - times[0] / 2), 6))


def halfway_and_end(log_prob: Tensor, times: Sequence[float]) -> Tensor:
    """Sums of the posteriors over the forbidden conditions, half-way and at the end, (B, 2, W).

    Args:
        log_prob: log probabilities of W posteriors before each step, (B, S, W, K).
        times: t / T of each step, (S,). The last step has no log ratio, so that the posterior before it is the final
            one.
    """
    return log_prob[:, [halfway(times), -1]].exp().sum(3).float()


def posterior_rows(
    posteriors: Tensor, became: Tensor, trackers: Sequence[str], times: Sequence[float]
) -> tuple[list[dict[str, Any]], list[PosteriorQuality]]:
    """The quality of each posterior half-way and at the end.

    Args:
        posteriors: (N, 2, W), see ``halfway_and_end``.
        became: which final images are forbidden, bool (N,).
        trackers: settings of the W posteriors.
        times: t / T of each step.

    Returns:
        Rows of ``posterior.csv``, and the qualities at the end.
    """
    rows: list[dict[str, Any]] = []
    ends = []
    for name, each in zip(trackers, posteriors.unbind(2), strict=True):
        for time, posterior in zip((times[halfway(times)], 0.0), each.unbind(1), strict=True):
            quality = posterior_quality(posterior, became)
            scores = {"auc": quality.auc, "brier": quality.brier, "curve": json.dumps(quality.curve)}
            rows.append({"tracker": name, "t/T": time, "n": len(became), **scores})
        ends.append(quality)
    return rows, ends
