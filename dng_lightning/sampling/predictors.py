"""From networks to the denoised predictions that a guidance needs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.interfaces import NO_PREDICTIONS, Needs, Predictions
from dng_lightning.kernel import NoiseLevel

Denoiser = Callable[[Tensor, NoiseLevel, Tensor | None], Tensor]
"""``denoiser(x_t (B, ...), level, class_labels (B,) or None) -> D (B, ...)``; a ``DiffusionModule`` is one."""

LogPosterior = Callable[[Tensor, NoiseLevel], Tensor]
"""``log_posterior(x_t (B, ...), level) -> log p(c | x_t) (B, classes)``; a ``ClassifierModule`` has one."""

Observer = Callable[[Tensor], Tensor]
"""``observer(denoised (B, ...)) -> (B, K)``: the probability that each image shows each forbidden condition."""

Label = int | Tensor
"""A class of all images, or one an image, (B,)."""

ALL = Needs(negatives=True)


class Predictor(ABC):
    """Gives the base prediction and those of the forbidden conditions.

    Attributes:
        conditions: number K of forbidden conditions.
        class_labels: the class or prompt that each image shall show, (B,); None for unconditional images.
        nfe: evaluations of denoising networks so far, counted image by image.
        provides: names among classifier, observer and attention: what ``Needs`` of these it can serve.
    """

    conditions: int
    class_labels: Tensor | None = None
    nfe: int = 0
    provides: frozenset[str] = frozenset()

    @abstractmethod
    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """The denoised predictions of ``x_t`` (B, ...) at ``level``; without negatives needed, K is 0."""

    def check(self, needs: Needs, name: str) -> None:
        """Refuse needs that it cannot serve.

        Args:
            needs: of a guidance.
            name: of that guidance, for the message.

        Raises:
            SettingError: naming what is missing.
        """
        missing = {
            "needs p(c | x_t): wrap the predictor in WithClassifier": needs.classifier and "classifier",
            "needs an observer: wrap the predictor in WithObserver": needs.observer is not None and "observer",
            "acts in the attention to a text: it needs a TextPredictor": needs.attention and "attention",
        }
        for words, part in missing.items():
            if part and part not in self.provides:
                raise SettingError(f"{name} {words}")
        if needs.class_labels and self.class_labels is None:
            raise SettingError(f"{name} guides toward a class: give the predictor its class_labels")


class ClassConditionalPredictor(Predictor):
    """One class-conditional network, whose null class is the unconditional prediction. One forward for all of them.

    Args:
        denoiser: the network.
        null_class: the label that stands for "any class"; for images that differ in it, one each, (B,).
        forbidden: labels to avoid, likewise.
        class_labels: the class that each image shall show, (B,); None for the null class.
    """

    def __init__(
        self, denoiser: Denoiser, null_class: Label, forbidden: Sequence[Label], class_labels: Tensor | None = None
    ) -> None:
        self.denoiser, self.null_class, self.forbidden = denoiser, null_class, list(forbidden)
        self.conditions, self.class_labels = len(self.forbidden), class_labels

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``."""
        every = torch.arange(len(x_t), device=x_t.device)
        null, *forbidden = (label_each(label, every) for label in (self.null_class, *self.forbidden))
        # which images are evaluated with which label
        batches = [(every, null if self.class_labels is None else self.class_labels)]
        if needs.null and (self.class_labels is not None or needs.attention):  # else the base is the null prediction
            batches.append((every, null))
        active, first = active_images(x_t, self.conditions, needs), len(batches)
        batches += [(i, labels[i]) for i, labels in zip(active, forbidden, strict=False) if len(i)]
        # one forward for all of them
        images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        denoised = self.denoiser(x_t if len(images) == len(x_t) else x_t[images], level, labels)
        self.nfe += len(denoised)
        parts = torch.split(denoised, [len(part) for part, _ in batches])
        negatives = stack_negatives(parts[0], active, parts[first:])
        unconditional = parts[first - 1] if needs.null else None
        return Predictions(parts[0], negatives, null=unconditional, active=active_tensor(needs))


class NetworkPairPredictor(Predictor):
    """The paper's set-up: an unconditional network, and one network for each forbidden class.

    Args:
        base: the network that is guided.
        negatives: the networks of the forbidden classes.
        null_class: the label that stands for "any class" in ``base``; None if it is unconditional.
        class_labels: the class that each image shall show, (B,); None for the null class.
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
        null = None if self.null_class is None else torch.full((len(x_t),), self.null_class, device=x_t.device)
        base = self.base(x_t, level, null if self.class_labels is None else self.class_labels)
        unconditional = None
        if needs.null:
            unconditional = base if self.class_labels is None else self.base(x_t, level, null)
        active = active_images(x_t, self.conditions, needs)
        parts = [network(x_t[i], level, None) for network, i in zip(self.networks, active, strict=False) if len(i)]
        self.nfe += len(x_t) * (1 + (needs.null and self.class_labels is not None)) + sum(map(len, parts))
        negatives = stack_negatives(base, active, parts)
        return Predictions(base, negatives, null=unconditional, active=active_tensor(needs))


class PredictorWrapper(Predictor):
    """Adds something to another predictor's predictions.

    Args:
        predictor: gives the denoised predictions.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.conditions, self.class_labels = predictor.conditions, predictor.class_labels
        self.provides = predictor.provides

    @property
    def nfe(self) -> int:  # an attribute of the others
        """Evaluations of the wrapped predictor's networks."""
        return self.predictor.nfe

    @nfe.setter
    def nfe(self, value: int) -> None:
        self.predictor.nfe = value


class WithClassifier(PredictorWrapper):
    """Adds a noise-conditional classifier's log p(c | x_t), and its gradient, where a guidance needs it.

    The posterior is the classifier's, whatever the class label. Its cost is not part of the NFE.

    Args:
        predictor: gives the denoised predictions.
        log_posterior: of all classes, at any noise level.
        forbidden: labels of the predictor's K forbidden conditions, in its order.

    Raises:
        SettingError: there are not K of them.
    """

    def __init__(self, predictor: Predictor, log_posterior: LogPosterior, forbidden: Sequence[int]) -> None:
        super().__init__(predictor)
        if len(forbidden) != predictor.conditions:
            raise SettingError(f"the predictor has {predictor.conditions} forbidden conditions, not {len(forbidden)}")
        self.log_posterior, self.forbidden = log_posterior, list(forbidden)
        self.provides = predictor.provides | {"classifier"}

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``."""
        if needs.classifier is None:
            return self.predictor.predict(x_t, level, needs)
        found = self._gradients(x_t, level) if needs.classifier == "gradient" else self._posterior(x_t, level)
        if callable(needs.active):
            needs = replace(needs, active=needs.active(replace(NO_PREDICTIONS, **found)))
        return replace(self.predictor.predict(x_t, level, needs), **found)

    def _posterior(self, x_t: Tensor, level: NoiseLevel) -> dict[str, Tensor]:
        log_p = self.log_posterior(x_t, level)
        found = {"log_posterior": log_p[:, self.forbidden]}
        if self.class_labels is not None:
            found["class_log_posterior"] = log_p.gather(1, self.class_labels.unsqueeze(1))
        return found

    def _gradients(self, x_t: Tensor, level: NoiseLevel) -> dict[str, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():  # the trainer forbids gradients in predict and test
            x = x_t.clone().requires_grad_()
            found = self._posterior(x, level)
            columns = {name: log_p.unbind(1) for name, log_p in found.items()}
            gradients = {
                name: [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in columns[name]]
                for name in columns
            }
        found = {name: log_p.detach() for name, log_p in found.items()}
        found["gradient"] = torch.stack(gradients["log_posterior"], 1)
        if self.class_labels is not None:
            (found["class_gradient"],) = gradients["class_log_posterior"]
        return found


class WithObserver(PredictorWrapper):
    """Adds what an observer sees in the denoised images, where a guidance needs it.

    The observer is shown the base prediction, or that with classifier-free guidance: what the image would become on
    average if it were left alone from here on. Its cost is not part of the NFE.

    Args:
        predictor: gives the denoised predictions.
        observer: a classifier's probabilities, or a vision-language model's yes (1) and no (0). It does not get the
            noise level; the denoised image of a high one is blurred.
        clip: bound on the denoised images, None for none.
    """

    def __init__(self, predictor: Predictor, observer: Observer, clip: float | None = None) -> None:
        super().__init__(predictor)
        self.observer, self.clip = observer, clip
        self.provides = predictor.provides | {"observer"}

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``."""
        predictions = self.predictor.predict(x_t, level, needs)
        if needs.observer is None:
            return predictions
        denoised = predictions.denoised
        if needs.observer != 1 and predictions.null is not None:
            denoised = torch.lerp(predictions.null, denoised, needs.observer)
        denoised = denoised if self.clip is None else denoised.clamp(-self.clip, self.clip)
        return replace(predictions, observed=self.observer(denoised))


def label_each(label: Label, images: Tensor) -> Tensor:
    """The label of each of the ``images``, (B,) both."""
    return torch.as_tensor(label, device=images.device).expand_as(images)


def active_images(x_t: Tensor, conditions: int, needs: Needs) -> list[Tensor]:
    """For each forbidden condition that is needed, the numbers of the images that it counts for."""
    if not needs.negatives:
        return []
    active = active_tensor(needs)
    if active is None:
        return [torch.arange(len(x_t), device=x_t.device)] * conditions
    return [column.nonzero().squeeze(1) for column in active.unbind(1)]


def active_tensor(needs: Needs) -> Tensor | None:
    """Which forbidden conditions are evaluated for which image, (B, K); None for all."""
    if callable(needs.active):
        raise SettingError("a posterior that reads the predictions needs its predictor: wrap it in WithClassifier")
    return needs.active


def stack_negatives(base: Tensor, active: Sequence[Tensor], evaluated: Sequence[Tensor]) -> Tensor:
    """The negatives (B, K, ...) from those ``evaluated`` for the ``active`` images of each; elsewhere the base."""
    if not active:
        return base.new_empty(len(base), 0, *base.shape[1:])
    parts = iter(evaluated)
    return torch.stack([base.index_copy(0, i, next(parts)) if len(i) else base for i in active], 1)
