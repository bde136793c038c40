"""Classes by exact name, by name in any case, by number."""

import string

import pytest

from dng_lightning.class_labels import label_of, labels_of
from dng_lightning.errors import SettingError

EMNIST = (*string.digits, *string.ascii_uppercase, *string.ascii_lowercase)


@pytest.mark.parametrize(
    ("name", "names", "label"),
    [
        ("cat", ("Cat", "cat"), 1),  # the exact name before others that differ in case
        ("CAT", ("dog", "cat"), 1),
        (1, ("dog", "cat"), 1),
        ("1", ("dog", "cat"), 1),
        (3, ("3", "5", "7", "9"), 0),  # a name before a number
        ("Golden_Retriever", ("tabby", "golden retriever"), 1),
        ("Tinca tinca", ("tabby", "tench, Tinca tinca"), 1),
    ],
)
def test_names_before_numbers(name: str | int, names: tuple[str, ...], label: int):
    assert label_of(name, names, "it") == label


@pytest.mark.parametrize(("label", "name"), enumerate(EMNIST))
def test_names_that_differ_in_case_alone(label: int, name: str):
    assert label_of(name, EMNIST, "it") == label


def test_ambiguous_classes():
    mend = "give the exact name, or the number"
    with pytest.raises(SettingError, match=rf"class 'CAT' is ambiguous; it knows Cat \(0\), cat \(1\): {mend}"):
        label_of("CAT", ("Cat", "cat", "dog"), "it")
    names = ("crane", "dog", "crane")  # a bird and a machine, as ImageNet has them
    with pytest.raises(SettingError, match=r"class 'crane' is ambiguous; it knows crane \(0\), crane \(2\)"):
        label_of("crane", names, "it")
    assert label_of(2, names, "it") == 2


@pytest.mark.parametrize("name", ["bird", 3, -1, "", "1.0", "-cat"])
def test_unknown_classes(name: str | int):
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
    assert labels_of(None, names, (0, 2)) == []
    with pytest.raises(SettingError, match="never saw class 'b'"):
        labels_of("b", names, (0, 2))
    with pytest.raises(SettingError, match="class 'a' is named twice"):
        labels_of(["a", "A"], names, (0, 2))
