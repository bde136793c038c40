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

FeatureLogPosterior = Callable[[Tensor, NoiseLevel], Tensor]
"""``log_posterior(features (B, C, ...), level) -> log p(c | x_t) (B, classes)``; a ``ProbeModule`` has one."""

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
        provides: names among classifier, probe, observer and attention: what ``Needs`` of these it can serve.
    """

    conditions: int
    class_labels: Tensor | None = None
    nfe: int = 0
    provides: frozenset[str] = frozenset()

    @abstractmethod
    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """The denoised predictions of ``x_t`` (B, ...) at ``level``; without negatives needed, K is 0.

        Where ``needs.active`` is a function of the other predictions, these are made first.
        """

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
            "needs p(c | x_t) of a probe: wrap the predictor in WithProbe": needs.probe and "probe",
            "needs an observer: wrap the predictor in WithObserver": needs.observer is not None and "observer",
            "acts in the attention to a text: it needs a TextPredictor": needs.attention and "attention",
        }
        for words, part in missing.items():
            if part and part not in self.provides:
                raise SettingError(f"{name} {words}")
        if needs.class_labels and self.class_labels is None:
            raise SettingError(f"{name} guides toward a class: give the predictor its class_labels")


class ClassConditionalPredictor(Predictor):
    """One class-conditional network, whose null class is the unconditional prediction.

    One forward for all of them, and two where the active conditions follow from the base prediction.

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
        if callable(needs.active):
            base = self.predict(x_t, level, replace(needs, negatives=False, active=None))
            return self._with_negatives(base, x_t, level, needs.active(base))
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
        shown = x_t if len(images) == len(x_t) else x_t[images]
        denoised, features = denoise(self.denoiser, shown, level, labels, needs.features)
        self.nfe += len(denoised)
        parts = torch.split(denoised, [len(part) for part, _ in batches])
        negatives = stack_negatives(parts[0], active, parts[first:])
        unconditional = parts[first - 1] if needs.null else None
        of_base = None if features is None else features[: len(x_t)]
        return Predictions(parts[0], negatives, null=unconditional, active=needs.active, features=of_base)

    def _with_negatives(self, base: Predictions, x_t: Tensor, level: NoiseLevel, active: Tensor) -> Predictions:
        """The base prediction and those of the ``active`` conditions (B, K), in another forward."""
        where = active_images(x_t, self.conditions, Needs(negatives=True, active=active))
        every = torch.arange(len(x_t), device=x_t.device)
        labels = [label_each(label, every)[i] for label, i in zip(self.forbidden, where, strict=True)]
        parts: Sequence[Tensor] = []
        if active.any():
            denoised = self.denoiser(x_t[torch.cat(where)], level, torch.cat(labels))
            self.nfe += len(denoised)
            parts = [part for part in torch.split(denoised, [len(i) for i in where]) if len(part)]
        return replace(base, negatives=stack_negatives(base.denoised, where, parts), active=active)


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
        # The base
        null = None if self.null_class is None else torch.full((len(x_t),), self.null_class, device=x_t.device)
        labels = null if self.class_labels is None else self.class_labels
        base, features = denoise(self.base, x_t, level, labels, needs.features)
        unconditional = None
        if needs.null:
            unconditional = base if self.class_labels is None else self.base(x_t, level, null)
        self.nfe += len(x_t) * (1 + (needs.null and self.class_labels is not None))
        predictions = Predictions(base, stack_negatives(base, [], []), null=unconditional, features=features)

        # The negatives, for the images that they are active for
        active = needs.active(predictions) if callable(needs.active) else needs.active
        where = active_images(x_t, self.conditions, replace(needs, active=active))
        parts = [network(x_t[i], level, None) for network, i in zip(self.networks, where, strict=False) if len(i)]
        self.nfe += sum(map(len, parts))
        return replace(predictions, negatives=stack_negatives(base, where, parts), active=active)


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
        active = needs.active
        if callable(active) and (needs.probe or needs.features):  # it reads the features of the base prediction as well
            needs = replace(needs, active=lambda base: active(replace(base, **found)))
        elif callable(active):
            needs = replace(needs, active=active(replace(NO_PREDICTIONS, **found)))
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


class WithProbe(PredictorWrapper):
    """Adds a probe's log p(c_k | x_t), where a guidance needs it, at no evaluation of a network.

    The probe reads the features of the base prediction. Which conditions are worth an evaluation is known before any
    of them is evaluated.

    Args:
        predictor: gives the denoised predictions, the unconditional one as the base.
        log_posterior: of all classes the probe knows, from features.
        module: name of the module inside the base network whose output they are.
        forbidden: numbers of the predictor's K forbidden conditions among these classes, in its order.

    Raises:
        SettingError: there are not K of them, or the base is the prediction of a class.
    """

    def __init__(
        self, predictor: Predictor, log_posterior: FeatureLogPosterior, module: str, forbidden: Sequence[int]
    ) -> None:
        super().__init__(predictor)
        if len(forbidden) != predictor.conditions:
            raise SettingError(f"the predictor has {predictor.conditions} forbidden conditions, not {len(forbidden)}")
        if predictor.class_labels is not None:
            raise SettingError("a probe reads the unconditional prediction: give the predictor no class_labels")
        self.log_posterior, self.module, self.forbidden = log_posterior, module, list(forbidden)
        self.provides = predictor.provides | {"probe"}

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``."""
        if not needs.probe:
            return self.predictor.predict(x_t, level, needs)
        active = needs.active

        def probed(predictions: Predictions) -> Predictions:
            assert predictions.features is not None  # as they were needed
            return replace(predictions, probed=self.log_posterior(predictions.features, level)[:, self.forbidden])

        needs = replace(needs, probe=False, features=self.module)
        if callable(active):
            needs = replace(needs, active=lambda base: active(probed(base)))
        return probed(self.predictor.predict(x_t, level, needs))


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


def denoise(
    denoiser: Denoiser, x_t: Tensor, level: NoiseLevel, class_labels: Tensor | None, module: str | None
) -> tuple[Tensor, Tensor | None]:
    """The denoised prediction, and the output of a module on the way if one is named.

    Raises:
        SettingError: the denoiser does not give it.
    """
    if module is None:
        return denoiser(x_t, level, class_labels), None
    if not hasattr(denoiser, "with_features"):
        raise SettingError("a probe needs a denoiser with the method with_features, such as a DiffusionModule")
    found: tuple[Tensor, Tensor] = denoiser.with_features(x_t, level, class_labels, module)
    return found


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
        raise SettingError("which conditions are active must be known before the attention to them is edited")
    return needs.active


def stack_negatives(base: Tensor, active: Sequence[Tensor], evaluated: Sequence[Tensor]) -> Tensor:
    """The negatives (B, K, ...) from those ``evaluated`` for the ``active`` images of each; elsewhere the base."""
    if not active:
        return base.new_empty(len(base), 0, *base.shape[1:])
    parts = iter(evaluated)
    return torch.stack([base.index_copy(0, i, next(parts)) if len(i) else base for i in active], 1)
