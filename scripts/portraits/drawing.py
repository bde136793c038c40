"""Portraits in the style Open Peeps by Pablo Stanley (CC0 1.0), drawn by DiceBear and resvg.

What an attribute leaves open varies: shades, and the shapes of smiles, frowns, glasses and beards. Turban and headscarf
have the colour of the hair, other than in the original, so that every portrait has that colour.
"""

import io
import json
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any

from PIL import Image

from dng_lightning.errors import require
from scripts.portraits.attributes import PortraitAttributes

SIZE = 64
SHADE = 8  # largest change of a colour, of 255

COLOURS = {
    "skin": {"light": (255, 223, 192), "tan": (224, 163, 106), "brown": (169, 101, 58), "dark": (92, 61, 46)},
    "colour": {"black": (38, 32, 30), "blonde": (242, 207, 91), "red": (201, 51, 5), "grey": (142, 142, 150)},
    "clothes": {"blue": (127, 156, 240), "green": (120, 217, 133), "pink": (242, 143, 200)},
}
HEADS = {
    "short": "grayShort",
    "long": "bangs",
    "bun": "grayBun",
    "mohawk": "mohawk",
    "turban": "turban",
    "headscarf": "hijab",
}
EYES = {"glasses": ("glasses3", "glasses4"), "sunglasses": ("sunglasses", "sunglasses2")}
MOUTHS = {"smiling": ("smile", "smileBig", "cute"), "frowning": ("solemn", "veryAngry"), "masked": ("smile", "solemn")}
BEARDS = ("full2", "full3")


def draw(attributes: PortraitAttributes, choice: Random, size: int = SIZE) -> Image.Image:
    """Draw a portrait.

    Args:
        attributes: all of them.
        choice: chooses what they leave open.
        size: side of the image in pixels.

    Raises:
        SettingError: the extra ``portraits`` is not installed.
    """
    dicebear, _, resvg = libraries()
    named = attributes.named()
    shades = {name: _shade(values[named[name]], choice) for name, values in COLOURS.items()}
    has = {"accessories": named["eyes"] != "bare", "facialHair": named["beard"] == "bearded"}
    has["mask"] = named["mouth"] == "masked"
    options = {
        "seed": "portrait",  # every choice is made here
        "skinColor": [shades["skin"]],
        "headContrastColor": [shades["colour"]],
        "clothingColor": [shades["clothes"]],
        "headVariant": [HEADS[named["head"]]],
        "expressionVariant": [choice.choice(MOUTHS[named["mouth"]])],
        "accessoriesVariant": [choice.choice(EYES.get(named["eyes"], EYES["glasses"]))],
        "facialHairVariant": [choice.choice(BEARDS)],
        "maskVariant": ["medicalMask"],
        **{f"{part}Probability": 100 * there for part, there in has.items()},
    }
    svg = dicebear.Avatar(_style(), options).to_string()
    png = resvg.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def libraries() -> list[Any]:
    """The modules dicebear, dicebear_styles and resvg_py.

    Raises:
        SettingError: the extra ``portraits`` is not installed.
    """
    return [require(name, "drawing portraits", "portraits") for name in ("dicebear", "dicebear_styles", "resvg_py")]


@cache
def _style() -> Any:
    """The style, with headwear in the colour of the hair."""
    dicebear, styles, _ = libraries()
    text = files(styles).joinpath("open-peeps.json").read_text("utf-8")
    definition = json.loads(text)
    heads = definition["components"]["head"]["variants"]
    heads["turban"]["elements"][1]["attributes"]["fill"]["name"] = "headContrast"
    band, scarf = heads["hijab"]["elements"][1:3]
    band["attributes"]["fill"]["name"], scarf["attributes"]["fill"]["name"] = "ink", "headContrast"
    return dicebear.Style(definition)


def _shade(colour: tuple[int, int, int], choice: Random) -> str:
    """A colour close to this one, as ``#rrggbb``."""
    near = (min(255, max(0, part + choice.randint(-SHADE, SHADE))) for part in colour)
    return "#" + "".join(f"{part:02x}" for part in near)
