"""What prompts and negative prompts are about, and how far images are that."""

from random import Random

import pytest
import torch
from torch import Tensor

from dng_lightning.data import MNIST
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.class_balance import kl_divergence, wilson_interval
from scripts.captioned_digits import CaptionedDigits
from scripts.captioned_digits.attributes import EVERY, VALUES, Attributes
from scripts.captioned_digits.captions import caption
from scripts.captioned_images.prompt_adherence import PromptAccuracy, PromptLabelSpace

COLOURS = VALUES["colour"]
RED, BLUE = COLOURS.index("red"), COLOURS.index("blue")
EVERYTHING = torch.tensor([list(picture.labels().values()) for picture in EVERY])


def read(*pictures: Attributes) -> Tensor:
    """What is read in these; what is not given is the first value."""
    return torch.tensor([[p.labels().get(name, 0) for name in VALUES] for p in pictures])


# --- kinds ---


def test_a_related_negative():
    label_space = PromptLabelSpace.in_words(CaptionedDigits, "a red digit", ["a seven"])
    assert label_space.names == VALUES["digit"]
    assert (label_space.forbidden, label_space.retained) == ((7,), (0, 1, 2, 3, 4, 5, 6, 8, 9))
    assert (label_space.obeys, label_space.open) == (Attributes(colour="red"), ("thickness", "background"))


def test_an_unrelated_negative():
    """All that is left of the colours is the one that was asked for."""
    label_space = PromptLabelSpace.in_words(CaptionedDigits, "a red seven", ["a blue digit"])
    assert label_space.names == COLOURS
    assert (label_space.forbidden, label_space.retained) == ((BLUE,), (RED,))
    assert (label_space.obeys, label_space.open) == (Attributes(7, "red"), ("thickness", "background"))


def test_a_contradiction():
    """The negative prompt has the last word; what it does not touch is left of the prompt."""
    label_space = PromptLabelSpace.in_words(CaptionedDigits, "a red seven", ["a red digit"])
    assert (label_space.forbidden, label_space.retained) == ((RED,), tuple(range(1, 7)))
    assert (label_space.obeys, label_space.open) == (Attributes(7), ("thickness", "background"))


def test_several_negatives_of_two_attributes():
    label_space = PromptLabelSpace.in_words(CaptionedDigits, "a thin digit", ["a seven", "a red digit"])
    assert len(label_space.names) == 70
    assert len(label_space.forbidden) == 7 + 10 - 1
    assert set(label_space.forbidden) | set(label_space.retained) == set(range(70))
    assert all("7" in label_space.names[label] or "red" in label_space.names[label] for label in label_space.forbidden)
    assert label_space.open == ("background",)


def test_a_negative_of_two_attributes_forbids_both_together_alone():
    label_space = PromptLabelSpace.in_words(CaptionedDigits, "a digit", ["a red seven"])
    assert [label_space.names[label] for label in label_space.forbidden] == ["7 red"]
    assert len(label_space.retained) == 69


@pytest.mark.parametrize("negative", [["a seven"], ["a red seven", "white background"], ["a thin blue 3 on grey"]])
def test_an_image_is_forbidden_if_it_is_what_a_negative_prompt_says(negative: list[str]):
    label_space = PromptLabelSpace.in_words(CaptionedDigits, "a digit", negative)
    labels = label_space.labels(EVERYTHING).tolist()
    for picture, label in zip(EVERY, labels, strict=True):
        assert (label in label_space.forbidden) == any(named.covers(picture) for named in label_space.negatives)
    assert set(labels) == set(range(len(label_space.names)))


def test_however_it_is_said():
    plain = PromptLabelSpace.in_words(CaptionedDigits, "a red seven", ["a blue digit"])
    for number in range(20):
        said = caption(Attributes(7, "red"), Random(number))
        assert PromptLabelSpace.in_words(CaptionedDigits, said, ["blue"]) == plain


# --- measures ---


def test_what_is_measured_of_the_prompt():
    label_space = PromptLabelSpace.in_words(CaptionedDigits, "a red seven", ["a blue digit"])
    images = read(
        Attributes(7, "red"), Attributes(7, "blue"), Attributes(1, "red"), Attributes(7, "red", "thick", "white")
    )
    assert label_space.obeyed(images).tolist() == [True, False, False, True]
    found = label_space.measures(images)
    assert tuple(found) == label_space.columns
    assert found["prompt_accuracy"] == 0.5
    assert (found["prompt_accuracy_low"], found["prompt_accuracy_high"]) == wilson_interval(2, 4)
    expected = (kl_divergence([3, 1]) + kl_divergence([3, 1, 0, 0])) / 2  # thickness and background
    assert found["kl_unspecified"] == pytest.approx(expected)
    assert label_space.measures(EVERYTHING)["kl_unspecified"] == pytest.approx(0, abs=1e-9)


def test_where_nothing_is_avoided_each_image_is_held_against_its_own_prompt():
    told = PromptAccuracy.in_words(CaptionedDigits, ["a red seven", "a one", "a digit"])
    images = read(Attributes(7, "red"), Attributes(7, "red"), Attributes(7, "red"), Attributes(1, "blue"))
    assert told.summary(images, torch.tensor([0, 1, 2, 1])).startswith("3 of 4 images are all that their prompt asks")
    assert told.summary(images, torch.tensor([1, 1, 1, 0])).startswith("0 of 4 images")
    assert (told.names, told.forbidden, told.columns) == ((), (), ())
    with pytest.raises(SettingError, match="'meat' is not understood"):
        PromptAccuracy.in_words(CaptionedDigits, ["a red seven", "meat"])


def test_nothing_is_left_open():
    label_space = PromptLabelSpace.in_words(CaptionedDigits, "a thick red digit on white", ["a seven"])
    assert label_space.measures(EVERYTHING)["kl_unspecified"] is None
    assert label_space.measures(EVERYTHING[:0]) == {
        "prompt_accuracy": None,
        "prompt_accuracy_low": 0.0,
        "prompt_accuracy_high": 1.0,
        "kl_unspecified": None,
    }


# --- real images ---


@pytest.mark.parametrize(
    ("prompt", "negative", "settings"),
    [
        ("a red digit", ["a seven"], {"label": "digit", "include_classes": Attributes(colour="red")}),
        ("a red seven", ["a blue digit"], {"label": "colour", "include_classes": Attributes(7)}),
        ("a red seven", ["a red digit"], {"label": "colour", "include_classes": Attributes(7)}),
        ("a digit", ["a seven", "a red digit"], {"label": ["digit", "colour"]}),
    ],
)
def test_real_images_are_those_that_the_prompt_allows(prompt: str, negative: list[str], settings: dict):
    label_space, data = PromptLabelSpace.in_words(CaptionedDigits, prompt, negative), CaptionedDigits(**settings)
    label_space.check_real(data)
    assert data.class_names == label_space.names
    assert set(label_space.retained) <= set(data.seen_classes)
    for wrong in (
        CaptionedDigits(**settings | {"include_classes": Attributes(4)}),
        CaptionedDigits(**settings | {"label": "all"}),
    ):
        with pytest.raises(SettingError, match="these prompts ask for other real images: set data"):
            label_space.check_real(wrong)


def test_the_message_says_which_real_images():
    with pytest.raises(SettingError, match=r"its label to digit and its include_classes to \{colour: red\}$"):
        PromptLabelSpace.in_words(CaptionedDigits, "a red digit", ["a seven"]).check_real(MNIST())
    with pytest.raises(SettingError, match=r"its label to \[digit, colour\] and its include_classes to null$"):
        PromptLabelSpace.in_words(CaptionedDigits, "a digit", ["a seven", "red"]).check_real(MNIST())


# --- what is not understood ---


@pytest.mark.parametrize(
    ("prompt", "negative", "message"),
    [
        ("a red unicorn", ["a seven"], "'a red unicorn' is not understood: pictures of digits know no 'unicorn'"),
        ("a digit", ["roasted meat"], "'roasted meat' is not understood"),
        ("a digit", ["a number"], "the negative prompt 'a number' names nothing that an image can be without"),
    ],
)
def test_words_that_say_nothing(prompt: str, negative: list[str], message: str):
    with pytest.raises(SettingError, match=message):
        PromptLabelSpace.in_words(CaptionedDigits, prompt, negative)
