"""Sentences about portraits, in few words: "a smiling person with long red hair and sunglasses, in a blue shirt".

Every word that is not of grammar says one value of one attribute, so a caption claims exactly what it mentions.
"""

from random import Random

from scripts.captioned_images.attributes import parse
from scripts.portraits.attributes import HEADWEAR, PortraitAttributes

# What each value is called.
WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "skin": {value: (value,) for value in PortraitAttributes.values["skin"]},
    "head": {
        "short": ("short",),
        "long": ("long",),
        "bun": ("bun",),
        "mohawk": ("mohawk",),
        "turban": ("turban",),
        "headscarf": ("headscarf", "hijab"),
    },
    "colour": {"black": ("black",), "blonde": ("blonde", "yellow"), "red": ("red",), "grey": ("grey",)},
    "eyes": {"bare": ("bare",), "glasses": ("glasses", "spectacles"), "sunglasses": ("sunglasses", "shades")},
    "beard": {"shaven": ("shaven",), "bearded": ("bearded", "beard")},
    "mouth": {"smiling": ("smiling", "happy"), "frowning": ("frowning", "grumpy"), "masked": ("masked", "mask")},
    "clothes": {value: (value,) for value in PortraitAttributes.values["clothes"]},
}
GRAMMAR = ("a", "and", "clothes", "eyes", "hair", "in", "of", "person", "portrait", "shirt", "skin", "with", ",")
VOCABULARY = (*GRAMMAR, *(word for values in WORDS.values() for words in values.values() for word in words))
MEANINGS = {word: (name, value) for name, values in WORDS.items() for value, words in values.items() for word in words}
MOST_WORDS = 28  # commas counted

MENTIONED = 0.5  # how often a caption mentions an attribute


def caption(attributes: PortraitAttributes, draw: Random) -> str:
    """One of the many sentences that say of a portrait what is given, and nothing else.

    Args:
        attributes: what to say.
        draw: chooses the sentence.

    Returns:
        at most ``MOST_WORDS`` words of ``VOCABULARY``.
    """
    words = {name: draw.choice(WORDS[name][value]) for name, value in attributes.named().items()}
    before, after = [], []

    # What stands before the person, or after it
    for name, noun in (("mouth", "mask"), ("beard", "beard")):
        if (word := words.get(name)) == noun:
            after.append(f"a {word}")
        elif word:
            before.append(word)
    draw.shuffle(before)

    # What the person has
    colour = words.get("colour")
    if head := words.get("head"):
        tint = [colour] if colour else []
        after.append(" ".join([head, *tint, "hair"] if head in ("short", "long") else ["a", *tint, head]))
    elif colour:
        after.append(f"{colour} hair")
    if eyes := words.get("eyes"):
        after.append("bare eyes" if eyes == "bare" else eyes)
    if skin := words.get("skin"):
        after.append(f"{skin} skin")
    draw.shuffle(after)
    listed = " and ".join(part for part in (" , ".join(after[:-1]), *after[-1:]) if part)

    # The sentence
    noun = " ".join(["a", *before, "person"])
    start = f"a portrait of {noun}" if draw.random() < 0.2 else noun
    clothes = words.get("clothes")
    worn = draw.choice((f" in a {clothes} shirt", f" in {clothes} clothes", f" , {clothes} shirt")) if clothes else ""
    return (start + (f" with {listed}" if listed else "") + worn).replace(" ,", ",")


def mentioned(attributes: PortraitAttributes, draw: Random) -> PortraitAttributes:
    """What of a portrait's attributes a caption is to mention, each one independently of the others.

    The colour of headwear is mentioned only with the headwear: without it a caption would call it hair.
    """
    said = {name: value for name, value in attributes.named().items() if draw.random() < MENTIONED}
    if attributes.head in HEADWEAR and "head" not in said:
        said.pop("colour", None)
    return PortraitAttributes.of(said)


def parse_caption(text: str) -> PortraitAttributes:
    """What a sentence says of a portrait; see ``scripts.captioned_images.attributes.parse``."""
    attributes: PortraitAttributes = parse(text, PortraitAttributes, GRAMMAR, MEANINGS, "portraits")
    return attributes
