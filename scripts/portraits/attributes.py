"""What a portrait is: skin, what is on the head and of which colour, eyes, beard, mouth, clothes.

No word means two things: hair and clothes have different colours, so that every word of a caption says which attribute
it is about. The colour is that of the hair or, where it is covered, of the headwear.
"""

from dataclasses import dataclass
from typing import ClassVar

from scripts.captioned_images.attributes import Attributes, Values

HEADWEAR = ("turban", "headscarf")


@dataclass(frozen=True)
class PortraitAttributes(Attributes):
    """Some attributes of a portrait; the others, which are None, may be anything.

    Args:
        skin: light, tan, brown or dark.
        head: short or long hair, a bun, a mohawk, a turban or a headscarf.
        colour: of the hair, or of the turban or headscarf: black, blonde, red or grey.
        eyes: bare, or behind glasses or sunglasses.
        beard: shaven or bearded.
        mouth: smiling, frowning, or covered by a mask (masked).
        clothes: blue, green or pink.

    Raises:
        SettingError: there is no such value.
    """

    values: ClassVar[Values] = {
        "skin": ("light", "tan", "brown", "dark"),
        "head": ("short", "long", "bun", "mohawk", *HEADWEAR),
        "colour": ("black", "blonde", "red", "grey"),
        "eyes": ("bare", "glasses", "sunglasses"),
        "beard": ("shaven", "bearded"),
        "mouth": ("smiling", "frowning", "masked"),
        "clothes": ("blue", "green", "pink"),
    }

    skin: str | None = None
    head: str | None = None
    colour: str | None = None
    eyes: str | None = None
    beard: str | None = None
    mouth: str | None = None
    clothes: str | None = None


# Every kind of portrait, 5,184 of them.
EVERY = PortraitAttributes.every()
