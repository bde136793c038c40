"""A vision-language model as the observer, as in VL-DNP (Chang, Kim, Choi, NeurIPS 2025 workshop, arXiv 2510.26052).

The model of VL-DNP describes the emerging unwanted content in its own words. Here it answers a yes-or-no question about
each image and each negative prompt.
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
from dng_lightning.text_to_image.observers import PromptObserver
from dng_lightning.text_to_image.optional_deps import Precision, dtype_of, libraries, quiet

QUESTION = "Does this image show {}? Answer with one word, yes or no."
MOST_TOKENS = 8  # of an answer, which is one word


class VisionLanguageObserver(PromptObserver):
    """Probabilities 1 for yes and 0 for no, from a vision-language model's answers about each negative prompt.

    The model is loaded for the first image.

    Args:
        model: a folder or a Hugging Face model for transformers' `AutoModelForImageTextToText`.
        question: question with `{}` for the negative prompt; the answer must be yes or no.
        precision: precision of the network, "fp32" or "bf16".

    Raises:
        SettingError: a setting is out of its range.
    """

    def __init__(
        self, model: str = "Qwen/Qwen2.5-VL-7B-Instruct", question: str = QUESTION, precision: Precision = "bf16"
    ) -> None:
        if "{}" not in question:
            raise SettingError(f"question must have {{}} in the place of the negative prompt; got {question!r}")
        self.name, self.question, self.dtype = model, question, dtype_of(precision)

    @cached_property
    def model(self) -> Any:
        """The model as a pipeline of transformers, loaded when it is first used.

        Raises:
            SettingError: the model is missing or of another kind, or the extra is not installed.
        """
        _, transformers = libraries()
        try:
            with quiet():
                model = transformers.pipeline("image-text-to-text", self.name, dtype=self.dtype, device="cpu")
            if not getattr(model.processor, "chat_template", None):
                raise ValueError("it has no chat template")
        except Exception as error:  # a foreign folder can fail in any way
            line = f"{self.name} is no vision-language model that answers questions: {reason(error)}"
            raise SettingError(line) from error
        return model

    def answer(self, image: Tensor, question: str) -> str:
        """The deterministic answer to a question about an image, uint8 (3, height, width)."""
        self.model.model.to(image.device)
        self.model.device = image.device
        picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        settings = {"max_new_tokens": MOST_TOKENS, "do_sample": False}
        with quiet():  # a warning about unused sampling settings
            (found,) = self.model(
                text=[{"role": "user", "content": content}], return_full_text=False, generate_kwargs=settings
            )
        answer: str = found["generated_text"]
        return answer

    def probabilities(self, images: Tensor, things: Sequence[str]) -> Tensor:
        """See ``PromptObserver.probabilities``.

        Raises:
            SettingError: an answer is neither yes nor no.
        """
        seen = [[self._sees(image, thing) for thing in things] for image in to_uint8(images)]
        return torch.tensor(seen, dtype=torch.float32, device=images.device)

    def _sees(self, image: Tensor, thing: str) -> bool:
        question = self.question.replace("{}", thing)
        answer = self.answer(image, question)
        word = re.fullmatch(r"\W*(yes|no)\s*([.,;:!].*)?\W*", answer, re.IGNORECASE | re.DOTALL)  # not "no doubt"
        if word is None:
            raise SettingError(f"{self.name} answers {question!r} with {answer!r}, not yes or no: change the question")
        return word[1].lower() == "yes"
