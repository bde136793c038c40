"""What a picture of `CaptionedDigits` is: a digit, its colour, its stroke's thickness, the background.

No name means two things: the colours of digits and of backgrounds are different ones, so that every word of a caption
says which attribute it is about, and the four attributes are independent of each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from scripts.captioned_images import attributes
from scripts.captioned_images.attributes import Values

COLOURS = {
    "red": (230, 25, 35),
    "orange": (255, 140, 0),
    "yellow": (255, 230, 20),
    "green": (25, 165, 55),
    "cyan": (0, 205, 225),
    "blue": (25, 65, 235),
    "purple": (150, 40, 190),
}
BACKGROUNDS = {"black": (0, 0, 0), "white": (255, 255, 255), "grey": (128, 128, 128), "brown": (105, 60, 25)}

# The values of each attribute, in the order of their labels.
VALUES: Values = {
    "digit": tuple("0123456789"),
    "colour": tuple(COLOURS),
    "thickness": ("thin", "thick"),
    "background": tuple(BACKGROUNDS),
}


@dataclass(frozen=True)
class Attributes(attributes.Attributes):
    """Some attributes of a picture; the others, which are None, may be anything.

    Args:
        digit: 0..9.
        colour: of the digit: red, orange, yellow, green, cyan, blue or purple.
        thickness: of the stroke: thin or thick.
        background: black, white, grey or brown.

    Raises:
        SettingError: there is no such value.
    """

    values: ClassVar[Values] = VALUES

    digit: int | None = None
    colour: str | None = None
    thickness: str | None = None
    background: str | None = None

    @classmethod
    def of(cls, named: Mapping[str, str]) -> Self:
        """See ``attributes.Attributes.of``."""
        words = dict(named)
        digit = words.pop("digit", None)
        return cls(None if digit is None else int(digit), **words)


# Every picture that there can be, 560 of them.
EVERY = Attributes.every()
