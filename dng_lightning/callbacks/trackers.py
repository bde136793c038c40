"""The trackers of a comparison's guidances, which look on while its unguided images are drawn."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from dng_lightning.guidance import DynamicNegativeGuidance, Guidance
from dng_lightning.guidance.naming import settings, unusual


def watched(guidances: Sequence[Guidance]) -> list[DynamicNegativeGuidance]:
    """One guidance for each tracker in use; scale and push say nothing where no image is pushed."""
    trackers = [replace(g, scale=0.0, own_push=1.0) for g in guidances if isinstance(g, DynamicNegativeGuidance)]
    return list({tracker(guidance): guidance for guidance in trackers}.values())


def tracker(guidance: DynamicNegativeGuidance) -> str:
    """What tells trackers apart, as JSON."""
    return unusual(settings(replace(guidance, scale=1.0, own_push=1.0)))


def label(guidance: DynamicNegativeGuidance) -> str:
    """What makes a tracker another than the default one, short enough for a legend."""
    if guidance.calibration:
        return "fitted"
    usual = asdict(DynamicNegativeGuidance(scale=0.0))
    changed = (f"{name} {value}" for name, value in asdict(guidance).items() if value != usual[name])
    return ", ".join(changed) or "defaults"
