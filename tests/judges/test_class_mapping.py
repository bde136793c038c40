"""Which of a judge's classes stand for which of the diffusion model's."""

import pytest

from dng_lightning.errors import SettingError
from dng_lightning.judges.class_mapping import ClassMapping, groups

IMAGENET = ["tench, Tinca tinca", "airliner", "warplane, military plane", "tabby", "crane", "crane", "sports_car"]


@pytest.mark.parametrize(
    ("wanted", "mapping", "expected"),
    [
        (["warplane", "tabby"], None, ((2,), (3,))),
        (["Tinca Tinca", "SPORTS-CAR"], None, ((0,), (6,))),
        (["airplane", "tabby"], {"airplane": ["airliner", "warplane"]}, ((1, 2), (3,))),
        (["airplane", "bird"], {"Airplane": "airliner", "bird": [4, 5]}, ((1,), (4, 5))),
        (["airplane", "fish"], {0: 1, 1: "tench"}, ((1,), (0,))),
    ],
    ids=["names and synonyms", "case and hyphens", "several to one", "numbers of the judge", "numbers of the model"],
)
def test_classes_go_by_name_or_by_the_mapping(
    wanted: list[str], mapping: ClassMapping | None, expected: tuple[tuple[int, ...], ...]
):
    assert groups(wanted, IMAGENET, mapping, "mine") == expected


def test_a_name_comes_before_a_number():
    assert groups(["0", "1"], ["1", "0"], None, "mine") == ((1,), (0,))
    assert groups(["0", "1"], ["zero", "one"], None, "mine") == ((0,), (1,))  # the same classes by number


@pytest.mark.parametrize(
    ("wanted", "mapping", "line"),
    [
        (
            ["airplane"],
            None,
            r"there is no class 'airplane'; mine, whose classes can be mapped to 'airplane', knows tench",
        ),
        (["crane"], None, r"class 'crane' is ambiguous; .* knows crane \(4\), crane \(5\)"),
        (["plane"], {"airplane": "airliner"}, r"no class 'airplane'; the model \(classes of mine\) knows plane"),
        (["a", "b"], {"a": "tabby", "b": ["crane", "tabby"]}, r"class 'crane' is ambiguous"),
        (["a", "b"], {"a": "tabby", "b": ["airliner", 3]}, r"classes of mine: 'tabby' is mapped to both 'a' and 'b'"),
        (["a"], {"a": []}, r"classes of mine: 'a' is mapped to no class"),
    ],
)
def test_what_cannot_be_mapped_is_named(wanted: list[str], mapping: ClassMapping | None, line: str):
    with pytest.raises(SettingError, match=line):
        groups(wanted, IMAGENET, mapping, "mine")
