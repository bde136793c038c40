import sys
from pathlib import Path
from random import Random

import pytest

from dng_lightning.errors import SettingError
from scripts.captioned_digits.attributes import EVERY
from scripts.captioned_digits.captions import MOST_WORDS, VOCABULARY, caption, mentioned, prompt
from scripts.captioned_images.tokenizer import captions_tokenizer

LENGTH = MOST_WORDS + 4


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="TRANSFORMERS MISSING: no tokenizer was tried")


def test_every_caption_is_told_whole(transformers):
    tokenizer = captions_tokenizer(VOCABULARY, MOST_WORDS)
    for number, picture in enumerate(EVERY):
        draw = Random(number)
        for text in (caption(picture, draw), caption(mentioned(picture, draw), draw), prompt(picture)):
            numbers = tokenizer(text).input_ids
            assert len(numbers) <= LENGTH
            assert (numbers[0], numbers[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
            assert tokenizer.unk_token_id not in numbers
            assert tokenizer.decode(numbers[1:-1]).replace(" ,", ",") == text


def test_padding_case_and_unknown_words(transformers):
    tokenizer = captions_tokenizer(VOCABULARY, MOST_WORDS)
    numbers = tokenizer("A Red unicorn", padding="max_length").input_ids
    words = [4 + VOCABULARY.index(word) for word in ("a", "red")]
    assert numbers == [1, *words, 3, 2] + [0] * (LENGTH - 5)
    assert tokenizer("", padding="max_length").input_ids == [1, 2] + [0] * (LENGTH - 2)
    cut = tokenizer("a " * 50, truncation=True).input_ids
    assert (len(cut), cut[0], cut[-1]) == (LENGTH, 1, 2)
    assert len(tokenizer) == len(VOCABULARY) + 4


def test_a_saved_tokenizer_is_read_back(transformers, tmp_path: Path):
    tokenizer = captions_tokenizer(VOCABULARY, MOST_WORDS)
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "a 7 in red, with bold strokes on a black background"
    assert again(text, padding="max_length").input_ids == tokenizer(text, padding="max_length").input_ids
    assert again.model_max_length == LENGTH


def test_without_the_extra_it_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingError, match=r"^a tokenizer needs transformers: pip install 'dng-lightning\[text-to"):
        captions_tokenizer(VOCABULARY, MOST_WORDS)
