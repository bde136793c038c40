"""A vision-language model as the observer, as in VL-DNP (Chang, Kim, Choi, NeurIPS 2025 workshop, arXiv 2510.26052).

Theirs names in its own words the unwanted content that is emerging. This one gets a question about each image and each
negative prompt, and answers yes or no.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dng_lightning.data.pixels import to_uint8
from dng_lightning.errors import SettingError, reason
from dng_lightning.text_to_image.model import DTYPES, Precision
from dng_lightning.text_to_image.observers import PromptObserver
from dng_lightning.text_to_image.optional_deps import libraries, quiet

QUESTION = "Does this image show {}? Answer with one word, yes or no."
MOST_TOKENS = 8  # of an answer; it takes one, and a full stop


class VisionLanguageModel:
    """A chat model of transformers about an image (its image-text-to-text interface).

    Args:
        model: the network.
        processor: makes tokens and pixels of a conversation.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def load(cls, name: str, precision: Precision) -> "VisionLanguageModel":
        """Load one.

        Args:
            name: its folder, or a model of the Hugging Face hub, `owner/model`, which is downloaded if it is not in its
                cache.
            precision: of the network.

        Raises:
            SettingError: there is none, it is something else, or the extra is not installed.
        """
        _, transformers = libraries()
        try:
            with quiet():
                model = transformers.AutoModelForImageTextToText.from_pretrained(name, dtype=DTYPES[precision])
                processor = transformers.AutoProcessor.from_pretrained(name)
            if not getattr(processor, "chat_template", None):
                raise ValueError("it has no chat template")
        except Exception as error:  # a foreign folder can fail in any way
            raise SettingError(f"{name} is no vision-language model that answers questions: {reason(error)}") from error
        return cls(model.eval().requires_grad_(False), processor)

    @torch.no_grad()
    def answer(self, image: Tensor, question: str) -> str:
        """The answer, always the same one.

        Args:
            image: uint8 (3, height, width).
            question: about the image.
        """
        self.model.to(image.device)
        picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        chat = self.processor.apply_chat_template([{"role": "user", "content": content}], **settings)
        inputs = chat.to(image.device, self.model.dtype)
        with quiet():  # about settings for random answers
            tokens = self.model.generate(**inputs, max_new_tokens=MOST_TOKENS, do_sample=False)
        answer: str = self.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return answer


class VisionLanguageObserver(PromptObserver):
    """Asks a vision-language model about each image and each negative prompt: yes is 1, no is 0.

    The model is loaded when the first image is looked at.

    Args:
        model: its folder, or one of the Hugging Face hub; any that transformers' `AutoModelForImageTextToText` reads.
        question: with `{}` for the negative prompt; the answer must be yes or no.
        precision: of its network, "fp32" or "bf16".

    Raises:
        SettingError: a setting is out of its range.
    """

    def __init__(
        self, model: str = "Qwen/Qwen2.5-VL-7B-Instruct", question: str = QUESTION, precision: Precision = "bf16"
    ) -> None:
        if "{}" not in question:
            raise SettingError(f"question must have {{}} in the place of the negative prompt; got {question!r}")
        if precision not in DTYPES:
            raise SettingError(f"precision must be fp32 or bf16; got {precision}")
        self.name, self.question, self.precision = model, question, precision

    @cached_property
    def model(self) -> VisionLanguageModel:
        """The model, loaded when it is first used."""
        return VisionLanguageModel.load(self.name, self.precision)

    def probabilities(self, images: Tensor, things: Sequence[str]) -> Tensor:
        """See ``PromptObserver.probabilities``.

        Raises:
            SettingError: an answer is neither yes nor no.
        """
        seen = [[self._sees(image, thing) for thing in things] for image in to_uint8(images)]
        return torch.tensor(seen, dtype=torch.float32, device=images.device)

    def _sees(self, image: Tensor, thing: str) -> bool:
        question = self.question.replace("{}", thing)
        answer = self.model.answer(image, question)
        word = re.fullmatch(r"\W*(yes|no)\s*([.,;:!].*)?\W*", answer, re.IGNORECASE | re.DOTALL)  # not "no doubt"
        if word is None:
            raise SettingError(f"{self.name} answers {question!r} with {answer!r}, not yes or no: change the question")
        return word[1].lower() == "yes"
