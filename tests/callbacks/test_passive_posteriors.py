"""Which posteriors are tracked on the unguided images of a comparison."""

from dng_lightning.callbacks.passive_posteriors import label, tracked_posteriors, tracker
from dng_lightning.guidance import (
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    FeedbackGuidance,
    NegativePrompting,
    PositiveAndNegative,
    Unguided,
)
from dng_lightning.posterior import CalibratedPosterior, ConstantPosterior, Posterior, TimedPosterior, TrackedPosterior


def by(posterior: Posterior) -> DynamicNegativeGuidance:
    return DynamicNegativeGuidance(posterior=posterior)


def test_each_posterior_of_forbidden_conditions_once_whatever_its_share_of_the_push():
    timed, calibrated = TimedPosterior(0.3, 0.2), CalibratedPosterior([[0.0, 1.0, 0.0]])
    shifted = TrackedPosterior(0.2, guidance_shift_weight=0.3)
    methods = [by(TrackedPosterior(0.2)), by(shifted), by(timed), by(calibrated), NegativePrompting()]
    methods += [by(ConstantPosterior()), FeedbackGuidance(), PositiveAndNegative(by(TrackedPosterior(0.5)), 2.0)]
    found = tracked_posteriors(methods, Unguided())
    assert [label(posterior) for posterior in found] == ["tracked, prior 0.2", "timed, t0 0.3, t1 0.2", "calibrated"]
    assert tracker(shifted) == tracker(TrackedPosterior(0.2)) == '{"class": "TrackedPosterior", "prior": 0.2}'


def test_only_those_whose_base_made_the_unguided_images():
    inner = TrackedPosterior(0.5)
    methods = [PositiveAndNegative(by(inner), 2.0), by(TrackedPosterior())]
    assert tracked_posteriors(methods, ClassifierFreeGuidance(2.0)) == [inner]
