"""Who reads what is in a picture of a digit."""

from pathlib import Path

import pytest
import torch

from dng_lightning.errors import SettingError
from dng_lightning.modules import ClassifierModule
from dng_lightning.networks import ImageClassifier
from scripts.captioned_digits import AttributeClassifier
from scripts.captioned_digits.attributes import VALUES

pytest.importorskip("diffusers", reason="diffusers is not installed (extra text-to-image)")


def classifiers(**others: tuple[str, ...]) -> dict[str, ClassifierModule]:
    """Untrained ones of all attributes."""
    torch.manual_seed(0)
    made = {}
    for name, values in (VALUES | others).items():
        made[name] = ClassifierModule(ImageClassifier(3, len(values), [8], 4 if name == "digit" else 2))
        made[name].class_names = values
        made[name].eval()
    return made


def test_each_attribute_is_read_by_its_classifier():
    each, x = classifiers(), torch.rand(6, 3, 32, 32) * 2 - 1
    reader = AttributeClassifier(each)
    read = reader.read(x)
    assert (read.shape, read.dtype) == ((6, 4), torch.int64)
    for column, probabilities, (name, classifier) in zip(read.T, reader.probabilities(x), each.items(), strict=True):
        assert torch.equal(column, classifier.label(x).labels), name
        assert torch.equal(probabilities, classifier.probabilities(x))
    assert reader.num_features == 4 + 3 * 2
    with torch.no_grad():
        assert torch.equal(reader.features(x)[:, 4:6], each["colour"].net.features(x))


def test_they_are_found_by_the_beginning_of_their_names(fitted, place: Path, in_place: Path):
    fitted("captioned_digits_autoencoder")
    reader = AttributeClassifier.load("captioned-digits")
    for name, classifier in zip(reader.names, reader.classifiers, strict=True):
        found = ClassifierModule.load(f"captioned-digits-{name}")
        assert classifier.state_dict().keys() == found.state_dict().keys()
        assert torch.equal(classifier.net.head[1].weight, found.net.head[1].weight)


def test_a_classifier_of_something_else_is_refused():
    with pytest.raises(SettingError, match=r"^the classifier of the colour knows cyan, pink: name another$"):
        AttributeClassifier(classifiers(colour=("cyan", "pink")))
    some = classifiers()
    del some["thickness"]
    with pytest.raises(SettingError, match=r"^the classifier of the thickness knows nothing: name another$"):
        AttributeClassifier(some)
