"""Measures of generated images, from the labels that a classifier gives them."""

import math
from collections.abc import Collection, Sequence


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson, 1927); 95 % at the default ``z``.

    Returns:
        Its lower and upper bound, in [0, 1]; (0, 1) for no trials.
    """
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z**2 / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def forbidden_rate(counts: Sequence[int], forbidden: Collection[int]) -> tuple[float, float, float]:
    """Share of the forbidden classes and its 95 % Wilson interval.

    Args:
        counts: generated images of each class, at least one in all.
        forbidden: labels.
    """
    hits, total = sum(counts[label] for label in forbidden), sum(counts)
    return (hits / total, *wilson_interval(hits, total))


def kl_divergence(counts: Sequence[int], forbidden: Collection[int] = ()) -> float:
    """KL(target || generated) in nats; the target is uniform over the classes that are not forbidden.

    The direction of the authors' release, whose sum runs over the retained classes while leaked images keep their share
    of the generated distribution, so that a leak costs as well. Half an image is added to each class (Krichevsky and
    Trofimov, 1981), so that an empty class costs much but not infinitely much.
    """
    retained = [label for label in range(len(counts)) if label not in forbidden]
    total = sum(counts) + len(counts) / 2
    return sum(math.log(total / (len(retained) * (counts[label] + 0.5))) for label in retained) / len(retained)


def total_variation(counts: Sequence[int], forbidden: Collection[int] = ()) -> float:
    """Half the L1 distance between the generated classes and the uniform ones over the retained, in [0, 1]."""
    retained = len(counts) - len(set(forbidden))
    total = sum(counts)
    target = [0.0 if label in forbidden else 1 / retained for label in range(len(counts))]
    return sum(abs(count / total - share) for count, share in zip(counts, target, strict=True)) / 2
