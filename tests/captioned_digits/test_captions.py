import re
from random import Random

import pytest

from dng_lightning.errors import SettingError
from scripts.captioned_digits.attributes import BACKGROUNDS, COLOURS, EVERY, VALUES, Attributes
from scripts.captioned_digits.captions import (
    GRAMMAR,
    MOST_WORDS,
    VOCABULARY,
    WORDS,
    caption,
    mentioned,
    parse_caption,
    prompt,
)

MEANING = {word: (name, value) for name, values in WORDS.items() for value, words in values.items() for word in words}


def words_of(sentence: str) -> list[str]:
    return re.findall(r"\w+|,", sentence)


def claims(sentence: str) -> dict[str, str]:
    """What the words of a sentence say, grammar aside."""
    said = [MEANING[word] for word in words_of(sentence) if word not in GRAMMAR]
    assert len(said) == len(dict(said))  # nothing is said twice
    return dict(said)


def test_every_word_has_one_meaning():
    assert len(set(VOCABULARY)) == len(VOCABULARY) == len(MEANING) + len(GRAMMAR)
    assert set(WORDS) == set(VALUES)
    assert all(tuple(words) == VALUES[name] for name, words in WORDS.items())


def test_captions_claim_exactly_what_they_are_given():
    used, longest = set(), 0
    for number, picture in enumerate(EVERY):
        for repeat in range(4):
            draw = Random(4 * number + repeat)
            said = picture if repeat == 0 else mentioned(picture, draw)
            sentence = caption(said, draw)
            assert claims(sentence) == said.named()
            used |= set(words_of(sentence))
            longest = max(longest, len(words_of(sentence)))
    assert used == set(VOCABULARY)
    assert longest == MOST_WORDS


def test_captions_mention_each_attribute_independently():
    picture, draw = Attributes(7, "red", "thick", "black"), Random(0)
    said = [mentioned(picture, draw).named() for _ in range(4000)]
    for name in VALUES:
        assert sum(name in one for one in said) / 4000 == pytest.approx(0.75, abs=0.03)
    assert sum(len(one) == 4 for one in said) / 4000 == pytest.approx(0.75**4, abs=0.03)
    assert sum(not one for one in said) / 4000 == pytest.approx(0.25**4, abs=0.005)
    assert all(Attributes(**one | {"digit": 7}).covers(picture) for one in said)


def test_captions_are_varied_and_repeatable():
    picture = Attributes(7, "red", "thick", "black")
    sentences = [caption(picture, Random(seed)) for seed in range(500)]
    assert sentences == [caption(picture, Random(seed)) for seed in range(500)]
    assert len(set(sentences)) > 50
    assert {"a thick red seven on black", "a red 7, bold, black background"} <= set(sentences)


def test_articles():
    for picture in EVERY[::7]:
        for seed in range(20):
            sentence = caption(mentioned(picture, Random(seed)), Random(seed))
            for article, word in re.findall(r"\b(an?) (\w+)", sentence):
                assert (article == "an") == (word in ("8", "eight", "orange"))
            assert re.match(r"an? ", sentence)


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        (Attributes(7, "red", "thick", "black"), "a thick red seven on black"),
        (Attributes(colour="red"), "a red digit"),
        (Attributes(digit=8), "an eight"),
        (Attributes(colour="orange", background="white"), "an orange digit on white"),
        (Attributes(), "a digit"),
    ],
)
def test_prompts(attributes: Attributes, sentence: str):
    assert prompt(attributes) == sentence


def test_a_caption_is_understood_as_what_it_was_made_of():
    for number, picture in enumerate(EVERY):
        draw = Random(number)
        said = mentioned(picture, draw)
        assert parse_caption(caption(said, draw)) == said
        assert parse_caption(prompt(picture).upper()) == picture
    assert parse_caption("") == parse_caption("a digit") == Attributes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red unicorn", "'a red unicorn' is not understood: pictures of digits know no 'unicorn'"),
        ("a red 7, blue", "'a red 7, blue' is not understood: it names the colours red and blue"),
    ],
)
def test_what_is_not_understood_is_one_line(text: str, message: str):
    with pytest.raises(SettingError, match=f"^{message}$"):
        parse_caption(text)


def test_labels_and_covers():
    seven = Attributes(digit=7, colour="orange")
    assert seven.labels() == {"digit": 7, "colour": 1}
    assert seven.covers(Attributes(7, "orange", "thin", "white"))
    assert not seven.covers(Attributes(7, "red", "thin", "white"))
    assert not seven.covers(Attributes(digit=7))
    assert Attributes().covers(seven)
    assert len(EVERY) == len(set(EVERY)) == 10 * 7 * 2 * 4
    assert sum(seven.covers(picture) for picture in EVERY) == 2 * 4


@pytest.mark.parametrize("wrong", [{"digit": 10}, {"digit": -1}, {"colour": "black"}, {"background": "red"}])
def test_values_that_there_are_not_are_one_line(wrong: dict[str, int | str]):
    name, value = next(iter(wrong.items()))
    with pytest.raises(SettingError, match=f"^there is no {name} {str(value)!r}: give one of [^\n]+$"):
        Attributes(**wrong)  # type: ignore[arg-type]


def test_colours_are_far_apart():
    everything = list({**COLOURS, **BACKGROUNDS}.values())
    gaps = [max(abs(a - b) for a, b in zip(x, y, strict=True)) for x in everything for y in everything if x != y]
    assert len(gaps) == 11 * 10
    assert min(gaps) >= 80
