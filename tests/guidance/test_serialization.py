"""Settings as JSON, and by what of them results are found again."""

import json

from dng_lightning.guidance.naming import settings, titled, unusual

from dng_lightning.guidance import (
    DynamicNegativeGuidance,
    LimitedInterval,
    NegativePrompting,
    PositiveAndNegative,
    Unguided,
)


def test_what_is_as_it_comes_says_nothing():
    guidance = LimitedInterval(DynamicNegativeGuidance(2.0, calibration=[[0, 1, 0]]), high=3.0)
    assert json.loads(unusual(settings(guidance))) == {
        "class": "LimitedInterval",
        "high": 3.0,
        "guidance": {"class": "DynamicNegativeGuidance", "scale": 2.0, "calibration": [[0, 1, 0]]},
    }


def test_a_row_of_a_time_with_fewer_settings_is_the_same():
    now = settings(DynamicNegativeGuidance(2.0, prior=0.2))
    then = json.loads(now)
    del then["timing"], then["divergence"], then["calibration"]
    assert unusual(json.dumps(then)) == unusual(now)
    assert unusual(now) != unusual(settings(DynamicNegativeGuidance(2.0)))
    assert unusual(settings(NegativePrompting())) == '{"class": "NegativePrompting"}'


def test_references_have_no_settings():
    assert unusual('{"class": "Retrained", "checkpoint": "a"}') == '{"checkpoint": "a", "class": "Retrained"}'


def test_a_title_is_the_name_and_the_scale():
    assert titled(Unguided()) == "Unguided"
    assert (
        titled(PositiveAndNegative(NegativePrompting(1.7), 7.5)) == "PositiveAndNegative(NegativePrompting), scale 1.7"
    )
