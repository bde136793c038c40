"""Predictors: the denoised predictions of networks that a guidance needs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.chain_guidance import take
from dng_lightning.interfaces import Needs, Predictions
from dng_lightning.kernel import NoiseLevel

Denoiser = Callable[[Tensor, NoiseLevel, Tensor | None], Tensor]
"""``denoiser(x_t (B, ...), level, class_labels (B,) or None) -> D (B, ...)``; a ``DiffusionModule`` is one."""

Label = int | Tensor
"""A class for all images, or for each image, (B,)."""

ALL = Needs(negatives=True)

MISSING = {  # what a predictor may lack, by its name in ``Needs``, and its settings of a ``GuidedSampler``
    "classifier": "needs p(c | x_t): wrap the predictor in WithClassifier (setting noise_conditional_classifier)",
    "probe": "needs p(c | x_t) of a probe: wrap the predictor in WithProbe (setting probe)",
    "observer": "needs an observer: wrap the predictor in WithObserver (setting observer)",
    "attention": "acts in the attention to a text: it needs a TextPredictor, that of a TextToImageSampler",
}


class Predictor(ABC):
    """Makes the base prediction and those of the forbidden conditions.

    Attributes:
        conditions: number K of forbidden conditions.
        class_labels: class or prompt of each image, (B,); None for unconditional images.
        nfe: network evaluations so far, summed over the images.
        provides: which of classifier, probe, observer and attention in ``Needs`` it can provide.
    """

    conditions: int
    class_labels: Tensor | None = None
    nfe: int = 0
    provides: frozenset[str] = frozenset()

    @abstractmethod
    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """The denoised predictions of ``x_t`` (B, ...) at ``level``; K is 0 if no negatives are needed.

        If ``needs.active`` is a function of the other predictions, these are made first.
        """

    def only(self, images: Tensor) -> Self:
        """The predictor of the images with these indices, (N,); its NFE starts from 0."""
        part = copy(self)
        part.class_labels, part.nfe = None if self.class_labels is None else self.class_labels[images], 0
        return part

    def check(self, needs: Needs, name: str) -> None:
        """Check that it can provide what a guidance needs.

        Args:
            needs: needs of the guidance.
            name: name of the guidance, for the message.

        Raises:
            SettingError: something is missing.
        """
        for part, missing in MISSING.items():
            if getattr(needs, part) not in (None, False) and part not in self.provides:
                raise SettingError(f"{name} {missing}")
        if needs.class_labels and self.class_labels is None:
            raise SettingError(f'{name} guides toward a class: set class_labels to one, or to "all"')


class ClassConditionalPredictor(Predictor):
    """One class-conditional network, whose null class is the unconditional prediction.

    One forward pass makes all predictions; two, if the active conditions follow from the base prediction.

    Args:
        denoiser: the network.
        null_class: label of the null class, for all images or for each, (B,).
        forbidden: forbidden labels, each for all images or for each, (B,).
        class_labels: class of each image, (B,); None for the null class.
    """

    def __init__(
        self, denoiser: Denoiser, null_class: Label, forbidden: Sequence[Label], class_labels: Tensor | None = None
    ) -> None:
        self.denoiser, self.null_class, self.forbidden = denoiser, null_class, list(forbidden)
        self.conditions, self.class_labels = len(self.forbidden), class_labels

    def only(self, images: Tensor) -> Self:
        """See ``Predictor.only``."""
        part = super().only(images)
        part.null_class, part.forbidden = take((self.null_class, self.forbidden), images)
        return part

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``."""
        if callable(needs.active):
            base = self.predict(x_t, level, replace(needs, negatives=False, active=None))
            return self._with_negatives(base, x_t, level, needs.active(base))
        every = torch.arange(len(x_t), device=x_t.device)
        null, *forbidden = (label_each(label, every) for label in (self.null_class, *self.forbidden))
        # images and labels of each prediction
        batches = [(every, null if self.class_labels is None else self.class_labels)]
        if needs.null and (self.class_labels is not None or needs.attention):  # else the base is the null prediction
            batches.append((every, null))
        active, first = active_images(x_t, self.conditions, needs), len(batches)
        batches += [(i, labels[i]) for i, labels in zip(active, forbidden, strict=False) if len(i)]
        # one forward pass
        images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        x = x_t if len(images) == len(x_t) else x_t[images]
        denoised, features = denoise(self.denoiser, x, level, labels, needs.features)
        self.nfe += len(denoised)
        parts = torch.split(denoised, [len(part) for part, _ in batches])
        negatives = stack_negatives(parts[0], active, parts[first:])
        unconditional = parts[first - 1] if needs.null else None
        of_base = None if features is None else features[: len(x_t)]
        return Predictions(parts[0], negatives, null=unconditional, active=needs.active, features=of_base)

    def _with_negatives(self, base: Predictions, x_t: Tensor, level: NoiseLevel, active: Tensor) -> Predictions:
        """The base prediction and those of the ``active`` conditions (B, K), in another forward pass."""
        where = active_images(x_t, self.conditions, Needs(negatives=True, active=active))
        every = torch.arange(len(x_t), device=x_t.device)
        labels = [label_each(label, every)[i] for label, i in zip(self.forbidden, where, strict=True)]
        parts: Sequence[Tensor] = []
        if any(map(len, where)):
            denoised = self.denoiser(x_t[torch.cat(where)], level, torch.cat(labels))
            self.nfe += len(denoised)
            parts = [part for part in torch.split(denoised, [len(i) for i in where]) if len(part)]
        return replace(base, negatives=stack_negatives(base.denoised, where, parts), active=active)


class NetworkPairPredictor(Predictor):
    """One network for the base prediction and one for each forbidden class, as in the DNG paper.

    Args:
        base: network of the base prediction.
        negatives: networks of the K forbidden classes.
        null_class: label of the null class of ``base``; None if ``base`` is unconditional.
        class_labels: requested class of each image, (B,); None for the null class.
    """

    def __init__(
        self,
        base: Denoiser,
        negatives: Sequence[Denoiser],
        null_class: int | None = None,
        class_labels: Tensor | None = None,
    ) -> None:
        self.base, self.networks, self.null_class = base, list(negatives), null_class
        self.conditions, self.class_labels = len(self.networks), class_labels

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``."""
        # The base
        null = None if self.null_class is None else torch.full((len(x_t),), self.null_class, device=x_t.device)
        labels = null if self.class_labels is None else self.class_labels
        base, features = denoise(self.base, x_t, level, labels, needs.features)
        unconditional = None
        if needs.null:
            unconditional = base if self.class_labels is None else self.base(x_t, level, null)
        self.nfe += len(x_t) * (1 + (needs.null and self.class_labels is not None))
        predictions = Predictions(base, stack_negatives(base, [], []), null=unconditional, features=features)

        # The active negatives of each image
        active = needs.active(predictions) if callable(needs.active) else needs.active
        where = active_images(x_t, self.conditions, replace(needs, active=active))
        parts = [network(x_t[i], level, None) for network, i in zip(self.networks, where, strict=False) if len(i)]
        self.nfe += sum(map(len, parts))
        return replace(predictions, negatives=stack_negatives(base, where, parts), active=active)


def denoise(
    denoiser: Denoiser, x_t: Tensor, level: NoiseLevel, class_labels: Tensor | None, module: str | None
) -> tuple[Tensor, Tensor | None]:
    """The denoised prediction, and the output of ``module`` inside the network unless that is None.

    Raises:
        SettingError: the denoiser cannot return the module's output.
    """
    if module is None:
        return denoiser(x_t, level, class_labels), None
    if not hasattr(denoiser, "with_features"):
        raise SettingError("a probe needs a denoiser with the method with_features, such as a DiffusionModule")
    found: tuple[Tensor, Tensor] = denoiser.with_features(x_t, level, class_labels, module)
    return found


def label_each(label: Label, images: Tensor) -> Tensor:
    """The label of each of the ``images`` (B,), (B,)."""
    return label.expand_as(images) if isinstance(label, Tensor) else torch.full_like(images, label)


def active_images(x_t: Tensor, conditions: int, needs: Needs) -> list[Tensor]:
    """Indices of the images for which each forbidden condition is evaluated."""
    if not needs.negatives:
        return []
    active = active_tensor(needs)
    if active is None:
        return [torch.arange(len(x_t), device=x_t.device)] * conditions
    columns = active.cpu().unbind(1)  # the host waits for the device here alone
    return [column.nonzero().squeeze(1).to(x_t.device, non_blocking=True) for column in columns]


def active_tensor(needs: Needs) -> Tensor | None:
    """Whether each forbidden condition is evaluated for each image, (B, K); None for all."""
    if callable(needs.active):
        raise SettingError("which conditions are active must be known before the attention to them is edited")
    return needs.active


def stack_negatives(base: Tensor, active: Sequence[Tensor], evaluated: Sequence[Tensor]) -> Tensor:
    """The negatives (B, K, ...): those ``evaluated`` for the ``active`` images of each condition, else the base."""
    if not active:
        return base.new_empty(len(base), 0, *base.shape[1:])
    parts = iter(evaluated)
    return torch.stack([base.index_copy(0, i, next(parts)) if len(i) else base for i in active], 1)
