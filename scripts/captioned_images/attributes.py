"""What is said of an image: values of some attributes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import product
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from dng_lightning.errors import SettingError

Values = Mapping[str, tuple[str, ...]]
"""The values of each attribute, in the order of their labels."""


@dataclass(frozen=True)
class Attributes:
    """Some attributes of an image; the others, which are None, may be anything.

    A subclass has a field for each of its ``values``, in their order, and None as the default of each.

    Raises:
        SettingError: there is no such value.
    """

    values: ClassVar[Values]

    def __post_init__(self) -> None:
        for name, value in self.named().items():
            if value not in self.values[name]:
                raise SettingError(f"there is no {name} {value!r}: give one of {', '.join(self.values[name])}")

    @classmethod
    def of(cls, named: Mapping[str, str]) -> Self:
        """The attributes that are ``named``, the inverse of ``named()``."""
        return cls(**named)

    @classmethod
    def every(cls) -> tuple[Self, ...]:
        """Every combination of values, in the order of the joint labels."""
        return tuple(cls.of(dict(zip(cls.values, each, strict=True))) for each in product(*cls.values.values()))

    def named(self) -> dict[str, str]:
        """The attributes that are given, as words: ``{"digit": "7", "colour": "red"}``."""
        given = zip(self.values, astuple(self), strict=True)
        return {name: str(value) for name, value in given if value is not None}

    def labels(self) -> dict[str, int]:
        """The attributes that are given, as labels: ``{"digit": 7, "colour": 0}``."""
        return {name: self.values[name].index(value) for name, value in self.named().items()}

    def covers(self, other: "Attributes") -> bool:
        """Whether ``other`` has all that is given here."""
        return self.named().items() <= other.named().items()


def joint(labels: Tensor, values: Values, names: Iterable[str] | None = None) -> Tensor:
    """One label for the combination of some attributes; of all of them it is the index in ``Attributes.every()``.

    Args:
        labels: of all attributes, (N, A).
        values: of all attributes.
        names: which attributes, in the order of ``joint_names``; None for all.

    Returns:
        (N,), in the range of ``joint_names(values, names)``.
    """
    combined, places = torch.zeros_like(labels[:, 0]), list(values)
    for name in values if names is None else names:
        combined = combined * len(values[name]) + labels[:, places.index(name)]
    return combined


def apart(kinds: Tensor, values: Values) -> Tensor:
    """The labels of all attributes, (N, A), of joint labels (N,): the inverse of ``joint``."""
    columns = []
    for count in reversed([len(each) for each in values.values()]):
        columns.append(kinds % count)
        kinds = kinds // count
    return torch.stack(columns[::-1], dim=1)


def joint_names(values: Values, names: Sequence[str]) -> tuple[str, ...]:
    """What the labels of ``joint`` are called: "7", or "7 red" of digit and colour."""
    return tuple(" ".join(each) for each in product(*(values[name] for name in names)))


def parse(text: str, kind: type[Any], grammar: Iterable[str], meanings: Mapping[str, tuple[str, str]], of: str) -> Any:
    """What a sentence says of an image: each word that is not of grammar names the value of one attribute.

    Args:
        text: of known words, in any case and order.
        kind: the class of attributes.
        grammar: the words that say nothing of the image.
        meanings: the attribute and the value that each other word names.
        of: what the images are called in an error.

    Raises:
        SettingError: it has another word, or names two values of one attribute.
    """
    said: dict[str, str] = {}
    for word in text.lower().replace(",", " , ").split():
        if word in grammar:
            continue
        if word not in meanings:
            raise SettingError(f"{text!r} is not understood: {of} know no {word!r}")
        name, value = meanings[word]
        if said.setdefault(name, value) != value:
            raise SettingError(f"{text!r} is not understood: it names the {name}s {said[name]} and {value}")
    return kind.of(said)
