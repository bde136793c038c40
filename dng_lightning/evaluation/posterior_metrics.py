"""Passively tracked posteriors of unguided images: Brier score and ROC-AUC against the final labels, class entropy."""

import json
from collections.abc import Sequence
from typing import Any

import torch
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


def class_entropy(posteriors: Tensor) -> Tensor:
    """Mean entropy of the classes, and of none of them, in nats, (S,), from posteriors (N, S, K) before S steps."""
    rest = (1 - posteriors.sum(2, keepdim=True)).clamp(min=0)
    shares = torch.cat([posteriors, rest], 2)
    entropy: Tensor = torch.special.entr(shares / shares.sum(2, keepdim=True)).sum(2).mean(0)
    return entropy


def decisive_steps(entropy: Tensor, share: float = 0.9) -> tuple[int, int]:
    """The first and the last step of those that decide the class (the idea of arXiv 2506.10433).

    Args:
        entropy: class entropy before each step, (S,).
        share: share of the fall of the entropy over these steps, in (0, 1); the rest is cut off at both ends alike.
    """
    fallen = (entropy[0] - entropy).cummax(0).values
    fallen = fallen / fallen[-1]
    before, until = (int((fallen < bound).sum()) for bound in ((1 - share) / 2, (1 + share) / 2))
    return max(before - 1, 0), min(until, len(entropy) - 1)
