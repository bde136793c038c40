"""Sentences about pictures of digits, in few words: "a thick red seven on black", "a red 7, bold, black background".

Every word that is not of grammar says one value of one attribute, so a caption claims exactly what it mentions.
"""

from random import Random

from scripts.captioned_digits.attributes import VALUES, Attributes
from scripts.captioned_images.attributes import parse

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# What each value is called; first what a plain prompt calls it.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "digit": {value: (number, value) for value, number in zip(VALUES["digit"], NUMBERS, strict=True)},
    "colour": {value: (value,) for value in VALUES["colour"]},
    "thickness": {"thin": ("thin", "fine"), "thick": ("thick", "bold")},
    "background": {value: (value,) for value in VALUES["background"]},
}
GRAMMAR = ("a", "an", "digit", "number", "in", "with", "strokes", "on", "background", ",")
VOCABULARY = (*GRAMMAR, *(word for values in WORDS.values() for words in values.values() for word in words))
MEANINGS = {word: (name, value) for name, values in WORDS.items() for value, words in values.items() for word in words}
MOST_WORDS = 12  # commas counted: "a seven in red , with thick strokes on a black background"

MENTIONED = 0.75  # how often a caption mentions an attribute


def prompt(attributes: Attributes) -> str:
    """The plain sentence that asks for some attributes: "a thick red seven on black", "a digit" if there are none."""
    words = {name: WORDS[name][value][0] for name, value in attributes.named().items()}
    tail = f" on {words['background']}" if "background" in words else ""
    return _noun_phrase(words.get("thickness"), words.get("colour"), words.get("digit", "digit")) + tail


def caption(attributes: Attributes, draw: Random) -> str:
    """One of the many sentences that say of a picture what is given, and nothing else.

    Args:
        attributes: what to say.
        draw: chooses the sentence.

    Returns:
        at most ``MOST_WORDS`` words of ``VOCABULARY``.
    """
    words = {name: draw.choice(WORDS[name][value]) for name, value in attributes.named().items()}
    noun = words.get("digit") or draw.choice(("digit", "number"))
    colour, thickness, background = (words.get(name) for name in ("colour", "thickness", "background"))
    before, after = [], []
    if thickness and draw.random() < 0.6:
        before.append(thickness)
    elif thickness:
        after.append(draw.choice((f", {thickness}", f", with {thickness} strokes")))
    if colour and draw.random() < 0.7:
        before.append(colour)
    elif colour:
        after.insert(0, f" in {colour}")
    if background:
        places = (f" on {background}", f", {background} background", f" on {_noun_phrase(background, 'background')}")
        after.append(draw.choice(places))
    return _noun_phrase(*before, noun) + "".join(after)


def mentioned(attributes: Attributes, draw: Random) -> Attributes:
    """What of a picture's attributes a caption is to mention, each one independently of the others."""
    kept = {name: value for name, value in vars(attributes).items() if draw.random() < MENTIONED}
    return Attributes(**kept)


def parse_caption(text: str) -> Attributes:
    """What a sentence says of a picture; see ``scripts.captioned_images.attributes.parse``."""
    attributes: Attributes = parse(text, Attributes, GRAMMAR, MEANINGS, "pictures of digits")
    return attributes


def _noun_phrase(*words: str | None) -> str:
    said = [word for word in words if word]
    return " ".join(["an" if said[0] in ("8", "eight", "orange") else "a", *said])
