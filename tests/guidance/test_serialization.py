"""Names and settings of guidances, also where one holds another or a posterior."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from mixture import near

from dng_lightning.guidance import (
    AdaptiveNegative,
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    FeedbackGuidance,
    Guidance,
    LimitedInterval,
    NegativePrompting,
    NormalizedAttention,
    PositiveAndNegative,
    ShieldedDiffusion,
    Unguided,
)
from dng_lightning.guidance.references import References
from dng_lightning.guidance.serialization import (
    display_name,
    display_name_with_scale,
    map_settings,
    non_default_settings,
    scale_of,
    settings_json,
    wrapped,
)
from dng_lightning.posterior import (
    CalibratedPosterior,
    ClassifierPosterior,
    ConstantPosterior,
    ObserverPosterior,
    Posterior,
    ReleasedPosterior,
    TimedPosterior,
    TrackedPosterior,
)
from dng_lightning.sampling import SelfFilter
from dng_lightning.sampling.sampler import with_schedule
from dng_lightning.schedule import LinearSchedule

DNG = DynamicNegativeGuidance


def non_default(guidance: Guidance) -> dict[str, object]:
    return json.loads(non_default_settings(settings_json(guidance)))


def concrete(kind: type) -> list[type]:
    """The package's subclasses of which there are objects."""
    found = [kind, *(inner for subclass in kind.__subclasses__() for inner in concrete(subclass))]
    return [each for each in found if each.__module__.startswith("dng_lightning") and not each.__abstractmethods__]


# --- names ---


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (Unguided(), "Unguided"),
        (DNG(), "DynamicNegativeGuidance"),
        (DNG(posterior=CalibratedPosterior()), "DynamicNegativeGuidance"),
        (DNG(posterior=ReleasedPosterior()), "DynamicNegativeGuidance, released"),
        (DNG(posterior=ClassifierPosterior()), "DynamicNegativeGuidance, classifier"),
        (DNG(posterior=ObserverPosterior(TrackedPosterior())), "DynamicNegativeGuidance, observer"),
        (DNG(posterior=ConstantPosterior()), "DynamicNegativeGuidance, constant"),
        (AdaptiveNegative(NegativePrompting()), "AdaptiveNegative(NegativePrompting)"),  # an observer is usual there
        (
            AdaptiveNegative(NegativePrompting(), ClassifierPosterior()),
            "AdaptiveNegative(NegativePrompting), classifier",
        ),
        (AdaptiveNegative(NegativePrompting(), TrackedPosterior()), "AdaptiveNegative(NegativePrompting)"),
        (
            LimitedInterval(PositiveAndNegative(DNG(2.0, ReleasedPosterior()))),
            "LimitedInterval(PositiveAndNegative(DynamicNegativeGuidance, released))",
        ),
        (SelfFilter(DNG(), None), "SelfFilter(DynamicNegativeGuidance)"),  # by the posterior of DNG
        (NormalizedAttention(ClassifierFreeGuidance()), "NormalizedAttention(ClassifierFreeGuidance)"),
    ],
)
def test_a_name_tells_what_is_inside_and_an_unusual_posterior(guidance, expected):
    assert display_name(guidance) == expected


def test_a_name_with_the_scale_tells_several_of_one_method_apart():
    assert display_name_with_scale(Unguided()) == "Unguided"
    assert display_name_with_scale(DNG(3.0, ReleasedPosterior())) == "DynamicNegativeGuidance, released, scale 3"
    both = PositiveAndNegative(NegativePrompting(1.7), 7.5)
    assert display_name_with_scale(both) == "PositiveAndNegative(NegativePrompting), scale 1.7"


def test_the_scale_is_the_own_one_or_that_of_what_is_inside():
    assert scale_of(DNG(3.0)) == 3.0
    assert scale_of(AdaptiveNegative(LimitedInterval(DNG(2.0)))) == 2.0
    assert scale_of(NormalizedAttention(NegativePrompting(3.0), 4.0)) == 4.0
    assert scale_of(Unguided()) is None
    assert [type(inner) for inner in wrapped(AdaptiveNegative(DNG()))] == [DNG]


# --- settings as JSON ---


def test_settings_hold_those_of_each_guidance_and_posterior_inside():
    inner = DNG(2.0, ObserverPosterior(TrackedPosterior([0.1, 0.2]), [0.1, 0.5]))
    found = json.loads(settings_json(LimitedInterval(inner, 0.5)))
    assert (found["class"], found["low"], found["high"]) == ("LimitedInterval", 0.5, float("inf"))
    assert found["guidance"] == json.loads(settings_json(inner))
    observer = found["guidance"]["posterior"]
    assert (observer["class"], observer["observe_steps"]) == ("ObserverPosterior", [0.1, 0.5])
    tracked = observer["posterior"]
    assert (tracked["class"], tracked["prior"], tracked["temperature"]) == ("TrackedPosterior", [0.1, 0.2], 1.0)
    assert "corrections" not in tracked  # what is computed is no setting


def test_references_are_told_by_where_they_come_from():
    named = ShieldedDiffusion(references="mnist/zeros.pt")
    read = replace(named, references=References(torch.zeros(2, 1, 4, 4), "mnist/zeros.pt"))
    assert settings_json(read) == settings_json(named)


# --- what differs from the defaults ---


def test_only_what_is_unusual_is_left():
    guidance = LimitedInterval(DNG(2.0, TrackedPosterior([0.1, 0.2])), high=3.0)
    assert non_default(guidance) == {
        "class": "LimitedInterval",
        "high": 3.0,
        "guidance": {
            "class": "DynamicNegativeGuidance",
            "scale": 2.0,
            "posterior": {"class": "TrackedPosterior", "prior": [0.1, 0.2]},
        },
    }


def test_the_rows_of_a_calibration_are_told_apart_by_a_hash():
    one, same, other = (
        non_default(DNG(posterior=CalibratedPosterior(rows))) for rows in ([[0, 1, 0]], [[0, 1.0, 0]], [[0, 1, 2]])
    )
    assert one == same != other
    assert one["posterior"]["calibration"].startswith("sha256 ")
    assert non_default(DNG(posterior=CalibratedPosterior()))["posterior"] == {"class": "CalibratedPosterior"}


@pytest.mark.parametrize("kind", concrete(Guidance), ids=lambda kind: kind.__name__)
def test_a_guidance_with_all_defaults_is_its_class(kind):
    try:
        guidance, rest = kind(), {}
    except TypeError:  # it cannot be without another guidance, or references
        if "guidance" in kind.__dataclass_fields__:
            guidance, rest = kind(guidance=NegativePrompting()), {"guidance": {"class": "NegativePrompting"}}
        else:
            guidance, rest = kind(references="zeros.pt"), {"references": "zeros.pt"}
    assert non_default(guidance) == {"class": kind.__name__, **rest}


@pytest.mark.parametrize("kind", concrete(Posterior), ids=lambda kind: kind.__name__)
def test_a_posterior_with_all_defaults_is_its_class(kind):
    needed = {"t0": 0.5, "t1": 0.5} if kind is TimedPosterior else {}
    expected = {"class": "DynamicNegativeGuidance", "posterior": {"class": kind.__name__, **needed}}
    if kind is TrackedPosterior:  # the default
        del expected["posterior"]
    assert non_default(DNG(posterior=kind(**needed))) == expected


def test_of_a_nested_posterior_the_unusual_settings_are_left_wherever_it_stands():
    assert non_default(DNG(posterior=TrackedPosterior(0.2))) == {
        "class": "DynamicNegativeGuidance",
        "posterior": {"class": "TrackedPosterior", "prior": 0.2},
    }
    assert non_default(DNG(posterior=ObserverPosterior(TrackedPosterior(0.2)))) == {
        "class": "DynamicNegativeGuidance",
        "posterior": {"class": "ObserverPosterior", "posterior": {"class": "TrackedPosterior", "prior": 0.2}},
    }
    # the default of Feedback Guidance is a posterior with settings of its own
    assert non_default(FeedbackGuidance(posterior=TrackedPosterior(0.01, p_min=1.11e-5, p_max=0.2))) == {
        "class": "FeedbackGuidance"
    }
    assert non_default(FeedbackGuidance(posterior=TrackedPosterior(0.01))) == {
        "class": "FeedbackGuidance",
        "posterior": {"class": "TrackedPosterior", "prior": 0.01},
    }


def test_a_row_of_a_time_with_fewer_settings_is_the_same():
    now = settings_json(DNG(2.0, TrackedPosterior(0.2)))
    then = json.loads(now)
    del then["skip_below"], then["posterior"]["divergence"]
    assert non_default_settings(json.dumps(then)) == non_default_settings(now)
    assert non_default_settings(now) != non_default_settings(settings_json(DNG(2.0)))
    assert non_default_settings(settings_json(NegativePrompting())) == '{"class": "NegativePrompting"}'


def test_what_is_no_guidance_is_left_as_it_is():
    row = '{"class": "Retrained", "checkpoint": "a"}'
    assert non_default_settings(row) == '{"checkpoint": "a", "class": "Retrained"}'


# --- map_settings ---


def test_a_function_is_applied_from_the_inside_out_and_to_itself():
    seen: list[str] = []

    def note(part: object) -> object:
        seen.append(type(part).__name__)
        return part

    guidance = LimitedInterval(DNG(posterior=ObserverPosterior(TrackedPosterior())))
    assert map_settings(guidance, note) is guidance  # nothing changed
    assert seen == ["TrackedPosterior", "ObserverPosterior", "DynamicNegativeGuidance", "LimitedInterval"]


def test_what_is_changed_is_changed_wherever_it_stands():
    def higher(part: object, prior: float) -> object:
        return replace(part, prior=prior) if isinstance(part, TrackedPosterior) else part

    guidance = AdaptiveNegative(LimitedInterval(DNG(2.0), 0.5), ObserverPosterior(TrackedPosterior()))
    found = map_settings(guidance, partial(higher, prior=0.3))
    expected = AdaptiveNegative(
        LimitedInterval(DNG(2.0, TrackedPosterior(0.3)), 0.5), ObserverPosterior(TrackedPosterior(0.3))
    )
    assert found == expected
    assert guidance == AdaptiveNegative(LimitedInterval(DNG(2.0), 0.5), ObserverPosterior(TrackedPosterior()))


def test_timings_are_resolved_wherever_they_stand():
    timed = TimedPosterior(0.5, 0.4)
    resolved = timed.with_schedule(LinearSchedule())
    for guidance in (LimitedInterval(DNG(posterior=timed)), DNG(posterior=ObserverPosterior(timed))):
        found = with_schedule(guidance, LinearSchedule())
        assert f'"temperature": {resolved.temperature}' in settings_json(found)
        assert "TimedPosterior" not in settings_json(found)


def test_references_are_kept_by_a_change_of_something_else():
    guidance = near(ShieldedDiffusion)
    found = map_settings(LimitedInterval(guidance, 0.5), lambda part: part)
    assert found.guidance.references is guidance.references
