"""What a picture of `CaptionedDigits` is: a digit, its colour, its stroke's thickness, the background.

No name means two things: the colours of digits and of backgrounds are different ones, so that every word of a caption
says which attribute it is about, and the four attributes are independent of each other.
"""

from dataclasses import astuple, dataclass
from itertools import product

from dng_lightning.errors import SettingError

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
VALUES: dict[str, tuple[str, ...]] = {
    "digit": tuple("0123456789"),
    "colour": tuple(COLOURS),
    "thickness": ("thin", "thick"),
    "background": tuple(BACKGROUNDS),
}


@dataclass(frozen=True)
class Attributes:
    """Some attributes of a picture; the others, which are None, may be anything.

    Args:
        digit: 0..9.
        colour: of the digit: red, orange, yellow, green, cyan, blue or purple.
        thickness: of the stroke: thin or thick.
        background: black, white, grey or brown.

    Raises:
        SettingError: there is no such value.
    """

    digit: int | None = None
    colour: str | None = None
    thickness: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        for name, value in self.named().items():
            if value not in VALUES[name]:
                raise SettingError(f"there is no {name} {value!r}: give one of {', '.join(VALUES[name])}")

    def named(self) -> dict[str, str]:
        """The attributes that are given, as words: ``{"digit": "7", "colour": "red"}``."""
        given = zip(VALUES, astuple(self), strict=True)
        return {name: str(value) for name, value in given if value is not None}

    def labels(self) -> dict[str, int]:
        """The attributes that are given, as labels: ``{"digit": 7, "colour": 0}``."""
        return {name: VALUES[name].index(value) for name, value in self.named().items()}

    def covers(self, other: "Attributes") -> bool:
        """Whether ``other`` has all that is given here."""
        return self.named().items() <= other.named().items()


# Every picture that there can be, 560 of them.
EVERY = tuple(Attributes(int(digit), *others) for digit, *others in product(*VALUES.values()))
