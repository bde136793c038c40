"""Range checks, and the import of what an extra installs."""

import math

import pytest

from dng_lightning.errors import SettingError, check_at_least, check_in, reason, require


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", [0, 0.5], [-0.1, 1, math.nan, math.inf]),
        ("(0, 1)", [1e-9], [0, 1, 2]),
        ("(0, inf)", [1e-9, 1e9], [0, -1, math.inf, math.nan]),
        ("[0, 1]", [0, 1], [1.1, -math.inf]),
    ],
)
def test_intervals(interval: str, inside: list[float], outside: list[float]):
    check_in(interval, none=None)
    for value in inside:
        check_in(interval, good=value)
    for value in outside:
        with pytest.raises(SettingError) as caught:
            check_in(interval, good=inside[0], bad=value)
        assert str(caught.value) == f"bad must be in {interval}; got {value}"


def test_lower_bounds():
    check_at_least(1, n=1, m=2.5, none=None)
    for value, text in ((0, "1"), (math.nan, "1 and finite"), (math.inf, "1 and finite")):
        with pytest.raises(SettingError, match=f"^n must be at least {text}; got {value}$"):
            check_at_least(1, n=value)


def test_a_library_of_an_extra():
    assert require("math", "it", "extra") is math
    with pytest.raises(SettingError, match=r"^it needs not_there: pip install 'dng-lightning\[some-extra\]'$"):
        require("not_there", "it", "some-extra")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "Error(s) in loading state_dict for Module:\n\tsize mismatch for a: 1 and 2.\n\tmore",
            "size mismatch for a: 1 and 2.",
        ),
        ('Parser key "module.net":\n  No module named net\n', "No module named net"),
        ("The operation failed.\nTraceback of TorchScript:\n  x = f(y)\nRuntimeError: why", "RuntimeError: why"),
        ("only this:", "only this:"),
        ("", "ValueError"),
    ],
)
def test_the_line_that_says_why(text: str, line: str):
    assert reason(ValueError(text)) == line


def test_a_long_reason_is_cut():
    assert len(reason(ValueError("many keys " * 100))) <= 200
