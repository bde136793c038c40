"""Prompt adherence: which kinds of images a prompt and its negative prompts mean, and which images match.

Where something is avoided, the kinds of images are the values of the attributes that the negative prompts name, or
their combinations. Where prompt and negative prompts contradict each other the negative ones count: of "a red seven"
without "red" a seven is left, of any other colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.evaluation.class_balance import kl_divergence, wilson_interval
from dng_lightning.evaluation.label_space import LabelSpace
from scripts.captioned_images.attributes import Attributes, joint, joint_names
from scripts.captioned_images.data import CaptionedImages

if TYPE_CHECKING:
    from dng_lightning.data.base import ImageDataModule


@dataclass(frozen=True)
class PromptLabelSpace(LabelSpace):
    """The kinds of images that a prompt and some negative prompts are about.

    Attributes:
        of: the data whose attributes these are.
        avoided: the attributes that the negative prompts name, in the order of the data's.
        negatives: what each of them names.
        obeys: what an image must be to obey the prompt.
        open: the attributes that nothing was said of.
    """

    of: type[CaptionedImages]
    avoided: tuple[str, ...]
    negatives: tuple[Attributes, ...]
    obeys: Attributes
    open: tuple[str, ...]

    @classmethod
    def in_words(cls, of: type[CaptionedImages], prompt: str, negative: Sequence[str]) -> "PromptLabelSpace":
        """What is meant.

        Args:
            of: the data whose attributes the words name.
            prompt: what to show.
            negative: what to avoid.

        Raises:
            SettingError: words are not understood, or a negative prompt names no value of an attribute.
        """
        values, picture = of.kind.values, of.kind.of
        positive, negatives = of.parse(prompt), tuple(map(of.parse, negative))
        for text, named in zip(negative, negatives, strict=True):
            if not named.named():
                raise SettingError(f"the negative prompt {text!r} names nothing that an image can be without")
        avoided = tuple(name for name in values if any(name in named.named() for named in negatives))
        label_space = [
            picture(dict(zip(avoided, each, strict=True))) for each in product(*(values[name] for name in avoided))
        ]
        forbidden = [label for label, kind in enumerate(label_space) if any(named.covers(kind) for named in negatives)]
        said = positive.named()
        there = picture({name: value for name, value in said.items() if name in avoided})
        left = [label for label, kind in enumerate(label_space) if label not in forbidden]
        agreeing = [label for label in left if there.covers(label_space[label])]
        elsewhere = picture({name: value for name, value in said.items() if name not in avoided})
        return cls(
            names=joint_names(values, avoided),
            forbidden=tuple(forbidden),
            retained=tuple(agreeing or left),
            of=of,
            avoided=avoided,
            negatives=negatives,
            obeys=positive if agreeing else elsewhere,
            open=tuple(name for name in values if name not in avoided and name not in said),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Share that obeys the prompt with its Wilson interval, the balance of what is open, and shares of values."""
        shares = (f"{name}_{value}" for name in self.of.tracked for value in self.of.kind.values[name])
        return ("prompt_accuracy", "prompt_accuracy_low", "prompt_accuracy_high", "kl_unspecified", *shares)

    def labels(self, read: Tensor) -> Tensor:
        """The kind of each image, (N,).

        Args:
            read: labels of all attributes, (N, A).
        """
        return joint(read, self.of.kind.values, self.avoided)

    def obeyed(self, read: Tensor) -> Tensor:
        """Whether each image is what its prompt asks for, bool (N,); ``read`` as for ``labels``."""
        return shows(read, self.obeys)

    def measures(self, read: Tensor) -> dict[str, float | None]:
        """The ``columns``; the balance is the mean KL(even ‖ generated) of what is open, None if nothing is."""
        hits, n = int(self.obeyed(read).sum()), len(read)
        low, high = wilson_interval(hits, n)
        counts = {
            name: torch.bincount(read[:, place], minlength=len(values)).tolist()
            for place, (name, values) in enumerate(self.of.kind.values.items())
        }
        balance = sum(kl_divergence(counts[name]) for name in self.open) / len(self.open) if self.open and n else None
        shares = {
            f"{name}_{value}": count / n if n else None
            for name in self.of.tracked
            for value, count in zip(self.of.kind.values[name], counts[name], strict=True)
        }
        return {
            "prompt_accuracy": hits / n if n else None,
            "prompt_accuracy_low": low,
            "prompt_accuracy_high": high,
            "kl_unspecified": balance,
            **shares,
        }

    def summary(self, read: Tensor, requested: Tensor) -> str:
        """How many obey the prompt, with the Wilson interval of their share."""
        return _share(int(self.obeyed(read).sum()), len(read))

    def check_real(self, data: "ImageDataModule") -> None:
        """Refuse other pictures than those that the prompt allows, but for what the negative prompts name.

        Raises:
            SettingError: they are others, or are labelled by something else.
        """
        fixed = {name: value for name, value in self.obeys.named().items() if name not in self.avoided}
        allowed = [picture for picture in self.of.every if self.of.kind.of(fixed).covers(picture)]
        if isinstance(data, self.of) and tuple(data.labelled) == self.avoided and data.pictures == allowed:
            return
        label = self.avoided[0] if len(self.avoided) == 1 else f"[{', '.join(self.avoided)}]"
        only = ", ".join(f"{name}: {value}" for name, value in fixed.items())
        raise SettingError(
            f"these prompts ask for other real images: set data.reference_data to {self.of.__name__}, its label to "
            f"{label} and its include_classes to {f'{{{only}}}' if only else 'null'}"
        )


@dataclass(frozen=True)
class PromptAccuracy(LabelSpace):
    """What some prompts ask for, where nothing is avoided: images are of no kinds, but held against their prompt.

    Attributes:
        prompts: what each of them says.
    """

    prompts: tuple[Attributes, ...]

    @classmethod
    def in_words(cls, of: type[CaptionedImages], prompts: Sequence[str]) -> "PromptAccuracy":
        """What is meant; see ``PromptLabelSpace.in_words``.

        Raises:
            SettingError: words are not understood.
        """
        return cls((), (), (), tuple(map(of.parse, prompts)))

    def summary(self, read: Tensor, requested: Tensor) -> str:
        """How many images obey their prompt, with the Wilson interval of their share."""
        hits = sum(int(shows(read[requested == number], said).sum()) for number, said in enumerate(self.prompts))
        return _share(hits, len(read))


def shows(read: Tensor, said: Attributes) -> Tensor:
    """Whether each image is all that is said, bool (N,); ``read`` are the labels of all attributes, (N, A)."""
    right = torch.ones_like(read[:, 0], dtype=torch.bool)
    for name, label in said.labels().items():
        right &= read[:, list(said.values).index(name)] == label
    return right


def _share(hits: int, n: int) -> str:
    low, high = wilson_interval(hits, n)
    return f"{hits} of {n} images are all that their prompt asks for, {hits / n:.1%} [{low:.1%}, {high:.1%}]"
