"""The posteriors of the compared guidances, tracked passively while the unguided images are sampled."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from dng_lightning.guidance import ClassifierFreeGuidance, Guidance, PositiveAndNegative, Unguided
from dng_lightning.guidance.classifier_free import PositiveGuidance
from dng_lightning.guidance.serialization import non_default_settings, settings_json
from dng_lightning.posterior import CalibratedPosterior, Posterior, ProbePosterior
from dng_lightning.posterior.tracked import PosteriorFromPrior

TRACKED = (PosteriorFromPrior, CalibratedPosterior, ProbePosterior)


def tracked_posteriors(guidances: Sequence[Guidance], unguided: Guidance) -> list[Posterior]:
    """The distinct posteriors of plain guidances whose base is that of the ``unguided`` images.

    ``guidance_shift_weight`` is ignored, as it has no effect on unguided images.
    """
    found = {tracker(posterior): posterior for posterior in _plain(guidances, unguided)}
    return list(found.values())


def tracker(posterior: Posterior) -> str:
    """Settings of a posterior as JSON, without ``guidance_shift_weight``, which has no effect on unguided images."""
    if (usual := getattr(type(posterior), "guidance_shift_weight", None)) is not None:
        posterior = replace(posterior, guidance_shift_weight=usual)  # type: ignore[type-var]  # a dataclass
    return non_default_settings(settings_json(posterior))


def label(posterior: Posterior) -> str:
    """Short form of the settings, for a legend."""
    if isinstance(posterior, CalibratedPosterior):
        return "calibrated"
    if isinstance(posterior, ProbePosterior) and posterior.calibration:
        return "probe, calibrated"
    settings = json.loads(tracker(posterior))
    name = settings.pop("class").removesuffix("Posterior").lower()
    return ", ".join([name, *(f"{key} {value}" for key, value in settings.items())])


def _plain(guidances: Sequence[Guidance], unguided: Guidance) -> Iterator[Posterior]:
    for guidance in guidances:
        base: Guidance = Unguided()
        if isinstance(guidance, PositiveAndNegative) and not guidance.independent:
            scale, guidance = guidance.cfg_scale, guidance.guidance
            base = base if scale == 1 else ClassifierFreeGuidance(scale)
        posterior = getattr(guidance, "posterior", None)
        of_forbidden = not isinstance(guidance, PositiveGuidance)  # Feedback Guidance has that of its class
        if base == unguided and of_forbidden and isinstance(posterior, TRACKED):
            yield posterior
