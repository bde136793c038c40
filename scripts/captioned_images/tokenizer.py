"""A tokenizer of the few words that captions are made of, in Hugging Face's format."""

from collections.abc import Sequence
from typing import Any

from dng_lightning.errors import SettingError

BEGIN, END, PADDING, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|padding|>", "<|unknown|>"


def captions_tokenizer(vocabulary: Sequence[str], most_words: int) -> Any:
    """Make the tokenizer: a number for each word and comma, whatever their case; begin, words, end, padding.

    The four special tokens come first: padding 0, begin 1, end 2, unknown 3.

    Args:
        vocabulary: the words, in lower case, and the comma.
        most_words: in a caption.

    Returns:
        a transformers `PreTrainedTokenizerFast` of ``most_words`` + 4 tokens at most, for begin, end and two
        to spare; `save_pretrained` writes its folder.

    Raises:
        SettingError: transformers is not installed.
    """
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise SettingError("a tokenizer needs transformers: pip install 'dng-lightning[text-to-image]'") from error
    numbers = {word: number for number, word in enumerate((PADDING, BEGIN, END, UNKNOWN, *vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # at punctuation too
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, numbers[BEGIN]), (END, numbers[END])]
    )
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": PADDING, "unk_token": UNKNOWN}
    settings = {"tokenizer_object": tokenizer, "model_max_length": most_words + 4, **special}
    return PreTrainedTokenizerFast(**settings)  # type: ignore[no-untyped-call]
