"""From networks to the noise predictions that a guidance needs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Needs, Predictions

EpsModel = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``eps_model(x_t (B, ...), t (B,), class_labels (B,) or None) -> eps (B, ...)``; a ``DiffusionModule`` is one."""

ALL = Needs()

LogPosterior = Callable[[Tensor, Tensor], Tensor]
"""``log_posterior(x_t (B, ...), t (B,)) -> log p(c | x_t) (B, classes)``; that of a ``ClassifierModule`` is one."""


class Predictor(ABC):
    """Gives the base prediction and those of the forbidden conditions.

    Attributes:
        classes: number K of forbidden conditions.
        evaluations: evaluations of denoising networks so far, counted image by image.
        gives_posterior: whether the predictions come with the posterior, if asked for.
        gives_observation: whether they come with what an observer sees, if asked for.
        gives_attention: whether the base prediction attends to its text as asked for.
    """

    classes: int
    evaluations: int = 0
    gives_posterior: bool = False
    gives_observation: bool = False
    gives_attention: bool = False

    @abstractmethod
    def predict(self, x_t: Tensor, t: int, needs: Needs = ALL, wanted: Tensor | None = None) -> Predictions:
        """The noise predictions at level ``t``.

        Args:
            x_t: noisy images (B, ...).
            t: their level, in 1..T.
            needs: what to give besides the base; without the forbidden conditions K is 0.
            wanted: the class that each image shall show, (B,); None for unconditional images.
        """


class ClassConditionalPredictor(Predictor):
    """One class-conditional network: its null class (or the wanted class) is the base. One forward for all of them.

    Args:
        model: the network.
        null_class: the label that stands for "no class told".
        forbidden: the labels to avoid.
    """

    def __init__(self, model: EpsModel, null_class: int, forbidden: Sequence[int]) -> None:
        self.model, self.null_class, self.forbidden = model, null_class, list(forbidden)
        self.classes = len(self.forbidden)

    def predict(self, x_t: Tensor, t: int, needs: Needs = ALL, wanted: Tensor | None = None) -> Predictions:
        """See ``Predictor.predict``."""
        every = torch.arange(len(x_t), device=x_t.device)
        null = torch.full_like(every, self.null_class)
        base = null if wanted is None else wanted
        active = active_images(x_t, self.classes, needs)
        # what is evaluated: which images, told which class
        asked = [(every, base)]
        if needs.null and wanted is not None:
            asked.append((every, null))
        asked += [(i, torch.full_like(i, label)) for i, label in zip(active, self.forbidden, strict=False) if len(i)]
        images, told = (torch.cat(column) for column in zip(*asked, strict=True))
        eps = self.model(x_t[images], levels(images, t), told)
        self.evaluations += len(eps)
        parts = list(torch.split(eps, [len(part) for part, _ in asked]))
        given = parts.pop(0)
        unconditional = None if not needs.null else given if wanted is None else parts.pop(0)
        return Predictions(given, stacked(given, active, parts), null=unconditional, active=needs.active)


class NetworkPairPredictor(Predictor):
    """The paper's set-up: an unconditional network, and one network for each forbidden class.

    Args:
        base: the network that is guided.
        negatives: the networks of the forbidden classes.
        null_class: the label that ``base`` is told; None if it is unconditional.
    """

    def __init__(self, base: EpsModel, negatives: Sequence[EpsModel], null_class: int | None = None) -> None:
        self.base, self.negatives, self.null_class = base, list(negatives), null_class
        self.classes = len(self.negatives)

    def predict(self, x_t: Tensor, t: int, needs: Needs = ALL, wanted: Tensor | None = None) -> Predictions:
        """See ``Predictor.predict``."""
        null = None if self.null_class is None else torch.full((len(x_t),), self.null_class, device=x_t.device)
        base = self.base(x_t, levels(x_t, t), null if wanted is None else wanted)
        unconditional = None
        if needs.null:
            unconditional = base if wanted is None else self.base(x_t, levels(x_t, t), null)
        active = active_images(x_t, self.classes, needs)
        told = [model(x_t[i], levels(i, t), None) for model, i in zip(self.negatives, active, strict=False) if len(i)]
        self.evaluations += len(x_t) * (1 + (needs.null and wanted is not None)) + sum(map(len, told))
        return Predictions(base, stacked(base, active, told), null=unconditional, active=needs.active)


class WithPosterior(Predictor):
    """Another predictor's predictions, with a classifier's log p(c_k | x_t) of the forbidden conditions.

    And with its gradient, if a guidance asks for that.

    The posterior is the classifier's, whatever classes are wanted. Its cost is not among the ``evaluations``.

    Args:
        predictor: gives the noise predictions.
        log_posterior: of all classes, at any noise level.
        forbidden: the labels of the predictor's K forbidden conditions, in its order.

    Raises:
        SettingError: there are not K of them.
    """

    def __init__(self, predictor: Predictor, log_posterior: LogPosterior, forbidden: Sequence[int]) -> None:
        if len(forbidden) != predictor.classes:
            raise SettingError(f"the predictor has {predictor.classes} forbidden conditions, not {len(forbidden)}")
        self.predictor, self.log_posterior, self.forbidden = predictor, log_posterior, list(forbidden)
        self.classes = predictor.classes
        self.gives_posterior, self.gives_observation = True, predictor.gives_observation
        self.gives_attention = predictor.gives_attention

    def predict(self, x_t: Tensor, t: int, needs: Needs = ALL, wanted: Tensor | None = None) -> Predictions:
        """See ``Predictor.predict``."""
        predictions = self.predictor.predict(x_t, t, needs, wanted)
        self.evaluations = self.predictor.evaluations
        if needs.gradient:
            return self._with_gradient(predictions, x_t, t, wanted)
        if needs.posterior:
            return replace(predictions, log_posterior=self.log_posterior(x_t, levels(x_t, t))[:, self.forbidden])
        return predictions

    def _with_gradient(self, predictions: Predictions, x_t: Tensor, t: int, wanted: Tensor | None) -> Predictions:
        with torch.inference_mode(False), torch.enable_grad():  # the trainer forbids gradients in predict and test
            x = x_t.clone().requires_grad_()
            log_p = self.log_posterior(x, levels(x, t))
            columns = [log_p[:, label] for label in self.forbidden]
            columns += [] if wanted is None else [log_p.gather(1, wanted.clone().unsqueeze(1))]
            gradients = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in columns]
        toward = None if wanted is None else gradients.pop()
        told = log_p.detach()[:, self.forbidden]
        return replace(predictions, log_posterior=told, gradient=torch.stack(gradients, 1), wanted_gradient=toward)


def levels(x_t: Tensor, t: int) -> Tensor:
    """The level ``t`` for each image of the batch ``x_t``, (B,)."""
    return torch.full((len(x_t),), t, dtype=torch.long, device=x_t.device)


def active_images(x_t: Tensor, classes: int, needs: Needs) -> list[Tensor]:
    """For each forbidden condition that is asked for, the numbers of the images that it counts for."""
    if not needs.negatives:
        return []
    if needs.active is None:
        return [torch.arange(len(x_t), device=x_t.device)] * classes
    return [active.nonzero().squeeze(1) for active in needs.active.unbind(1)]


def stacked(base: Tensor, active: Sequence[Tensor], evaluated: Sequence[Tensor]) -> Tensor:
    """The negatives (B, K, ...) from those ``evaluated`` for the ``active`` images of each; elsewhere the base."""
    if not active:
        return base.new_empty(len(base), 0, *base.shape[1:])
    given = iter(evaluated)
    return torch.stack([base.index_copy(0, i, next(given)) if len(i) else base for i in active], 1)


def labels_of(names: Sequence[str | int] | str | int, class_names: Sequence[str], seen: Sequence[int]) -> list[int]:
    """The labels of classes given by name or number.

    Raises:
        SettingError: one of them is unknown, named twice, or the checkpoint never saw it.
    """
    labels = []
    for name in [names] if isinstance(names, str | int) else names:
        known = {text.lower(): label for label, text in enumerate(class_names)}
        label = known.get(str(name).lower(), int(name) if str(name).isdecimal() else -1)
        if not 0 <= label < len(class_names):
            raise SettingError(f"there is no class {name!r}; the checkpoint knows {', '.join(class_names)}")
        if label not in seen:
            raise SettingError(f"the checkpoint never saw class {class_names[label]!r}: it cannot be guided by it")
        if label in labels:
            raise SettingError(f"class {class_names[label]!r} is named twice")
        labels.append(label)
    return labels
