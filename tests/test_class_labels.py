"""Classes by exact name, by name in any case, by number."""

import pytest

from dng_lightning.class_labels import label_of, labels_of
from dng_lightning.errors import SettingError


@pytest.mark.parametrize(
    ("name", "names", "label"),
    [
        ("cat", ("Cat", "cat"), 1),  # the exact name before others that differ in case
        ("CAT", ("dog", "cat"), 1),
        (1, ("dog", "cat"), 1),
        ("1", ("dog", "cat"), 1),
        (3, ("3", "5", "7", "9"), 0),  # a name before a number
    ],
)
def test_names_before_numbers(name: str | int, names: tuple[str, ...], label: int):
    assert label_of(name, names, "it") == label


@pytest.mark.parametrize("name", ["CAT", "bird", 3, -1, "", "1.0"])
def test_unknown_or_ambiguous_classes(name: str | int):
    with pytest.raises(SettingError, match=f"no class {name!r}; the data knows Cat, cat, dog"):
        label_of(name, ("Cat", "cat", "dog"), "the data")


def test_of_many_classes_the_nearest_are_listed():
    names = [f"{animal} {number}" for animal in ("golden retriever", "tabby", "zebra") for number in range(100)]
    with pytest.raises(SettingError, match="knows 300 classes, the nearest being golden retriever") as caught:
        label_of("golden retreiver", names, "it")
    assert str(caught.value).count("golden retriever") == 5


def test_classes_of_a_checkpoint():
    names = ("a", "b", "c")
    assert labels_of(["c", 0], names, (0, 2)) == [2, 0]
    assert labels_of("c", names, (0, 2)) == [2]
    with pytest.raises(SettingError, match="never saw class 'b'"):
        labels_of("b", names, (0, 2))
    with pytest.raises(SettingError, match="class 'a' is named twice"):
        labels_of(["a", "A"], names, (0, 2))
