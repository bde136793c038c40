"""The trackers of a comparison's guidances, which look on while its unguided images are drawn."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from dng_lightning.guidance import (
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    Guidance,
    PositiveAndNegative,
    Unguided,
)
from dng_lightning.guidance.naming import settings, unusual

Tracking = DynamicNegativeGuidance | PositiveAndNegative


def watched(guidances: Sequence[Guidance], unguided: Guidance) -> list[Tracking]:
    """One guidance for each tracker in use whose base are the ``unguided`` images.

    Scale and push say nothing where no image is pushed.
    """
    trackers = [_with(guidance, 0.0) for guidance in guidances if _looks_on(guidance, unguided)]
    return list({tracker(guidance): guidance for guidance in trackers}.values())


def tracker(guidance: Tracking) -> str:
    """What tells trackers apart, as JSON."""
    return unusual(settings(_with(guidance, 1.0)))


def label(guidance: Tracking) -> str:
    """What makes a tracker another than the default one, short enough for a legend."""
    inner = _tracking(guidance)
    assert inner is not None
    if inner.calibration:
        return "fitted"
    usual = asdict(DynamicNegativeGuidance(scale=0.0))
    changed = (f"{name} {value}" for name, value in asdict(inner).items() if value != usual[name])
    return ", ".join(changed) or "defaults"


def _looks_on(guidance: Guidance, unguided: Guidance) -> bool:
    """Whether it has a tracker, and would leave the images as they are if it did not push."""
    if _tracking(guidance) is None:
        return False
    if isinstance(guidance, PositiveAndNegative):
        return unguided == ClassifierFreeGuidance(guidance.wanted_scale)
    return unguided == Unguided()


def _tracking(guidance: Guidance) -> DynamicNegativeGuidance | None:
    inner = guidance.guidance if isinstance(guidance, PositiveAndNegative) else guidance
    return inner if isinstance(inner, DynamicNegativeGuidance) else None


def _with(guidance: Guidance, scale: float) -> Tracking:
    inner = _tracking(guidance)
    assert inner is not None
    inner = replace(inner, scale=scale, own_push=1.0)
    return replace(guidance, guidance=inner) if isinstance(guidance, PositiveAndNegative) else inner
