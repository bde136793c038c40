"""Predictors that add a classifier, a probe or an observer to the denoised predictions of another predictor."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.interfaces import NO_PREDICTIONS, Needs, Predictions
from dng_lightning.kernel import NoiseLevel
from dng_lightning.sampling.predictors import ALL, Predictor

LogPosterior = Callable[[Tensor, NoiseLevel], Tensor]
"""``log_posterior(x_t (B, ...), level) -> log p(c | x_t) (B, classes)``; a ``ClassifierModule`` has one."""

FeatureLogPosterior = Callable[[Tensor, NoiseLevel], Tensor]
"""``log_posterior(features (B, C, ...), level) -> log p(c | x_t) (B, classes)``; a ``ProbeModule`` has one."""

Observer = Callable[[Tensor], Tensor]
"""``observer(denoised (B, ...)) -> (B, K)``: probability of each forbidden condition in each image."""


class PredictorWrapper(Predictor):
    """Adds something to another predictor's predictions.

    Args:
        predictor: gives the denoised predictions.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.conditions, self.class_labels = predictor.conditions, predictor.class_labels
        self.provides = predictor.provides

    def only(self, images: Tensor) -> Self:
        """See ``Predictor.only``."""
        part = copy(self)
        part.predictor = self.predictor.only(images)
        part.class_labels = part.predictor.class_labels
        return part

    @property
    def nfe(self) -> int:  # an attribute of the others
        """Evaluations of the wrapped predictor's networks."""
        return self.predictor.nfe

    @nfe.setter
    def nfe(self, value: int) -> None:
        self.predictor.nfe = value


class WithClassifier(PredictorWrapper):
    """Adds the log p(c | x_t) of a noise-conditional classifier, and its gradient, if a guidance needs it.

    The cost of the classifier is not part of the NFE.

    Args:
        predictor: gives the denoised predictions.
        log_posterior: log posterior of all classes at any noise level.
        forbidden: labels of the predictor's K forbidden conditions, in its order.

    Raises:
        SettingError: there are not K labels.
    """

    def __init__(self, predictor: Predictor, log_posterior: LogPosterior, forbidden: Sequence[int]) -> None:
        super().__init__(predictor)
        self.log_posterior, self.forbidden = log_posterior, checked_labels(forbidden, predictor)
        self.provides = predictor.provides | {"classifier"}

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``."""
        if needs.classifier is None:
            return self.predictor.predict(x_t, level, needs)
        found = self._gradients(x_t, level) if needs.classifier == "gradient" else self._posterior(x_t, level)
        active = needs.active
        if callable(active) and (needs.probe or needs.features):  # a function of the base prediction too
            needs = replace(needs, active=lambda base: active(replace(base, **found)))
        elif callable(active):
            needs = replace(needs, active=active(replace(NO_PREDICTIONS, **found)))
        return replace(self.predictor.predict(x_t, level, needs), **found)

    def _posterior(self, x_t: Tensor, level: NoiseLevel) -> dict[str, Tensor]:
        log_p = self.log_posterior(x_t, level)
        found = {"log_posterior": columns(log_p, self.forbidden)}
        if self.class_labels is not None:
            found["class_log_posterior"] = log_p.gather(1, self.class_labels.unsqueeze(1))
        return found

    def _gradients(self, x_t: Tensor, level: NoiseLevel) -> dict[str, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():  # the trainer disables gradients in predict and test
            x = x_t.clone().requires_grad_()
            found = self._posterior(x, level)
            gradients = {
                name: [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in log_p.unbind(1)]
                for name, log_p in found.items()
            }
        found = {name: log_p.detach() for name, log_p in found.items()}
        found["gradient"] = torch.stack(gradients["log_posterior"], 1)
        if self.class_labels is not None:
            (found["class_gradient"],) = gradients["class_log_posterior"]
        return found


class WithProbe(PredictorWrapper):
    """Adds a probe's log p(c_k | x_t), if a guidance needs it, without a network evaluation.

    The probe reads the features of the base prediction, so that its posterior can select the conditions to evaluate.

    Args:
        predictor: gives the denoised predictions, with the unconditional one as base.
        log_posterior: log posterior of the probe's classes, from features.
        module: name of the module of the base network whose output are the features.
        forbidden: the probe's labels of the predictor's K forbidden conditions, in its order.

    Raises:
        SettingError: there are not K labels, or the base is the prediction of a class.
    """

    def __init__(
        self, predictor: Predictor, log_posterior: FeatureLogPosterior, module: str, forbidden: Sequence[int]
    ) -> None:
        super().__init__(predictor)
        if predictor.class_labels is not None:
            raise SettingError("a probe reads the unconditional prediction: give the predictor no class_labels")
        self.log_posterior, self.module = log_posterior, module
        self.forbidden = checked_labels(forbidden, predictor)
        self.provides = predictor.provides | {"probe"}

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``."""
        if not needs.probe:
            return self.predictor.predict(x_t, level, needs)
        active = needs.active

        def probed(predictions: Predictions) -> Predictions:
            assert predictions.features is not None  # as they were needed
            log_p = self.log_posterior(predictions.features, level)
            return replace(predictions, probed=columns(log_p, self.forbidden))

        needs = replace(needs, probe=False, features=self.module)
        if callable(active):
            needs = replace(needs, active=lambda base: active(probed(base)))
        return probed(self.predictor.predict(x_t, level, needs))


class WithObserver(PredictorWrapper):
    """Adds an observer's probabilities of the forbidden conditions, if a guidance needs them.

    The observer classifies the denoised base prediction, with classifier-free guidance if set. Its cost is not part of
    the NFE.

    Args:
        predictor: gives the denoised predictions.
        observer: probabilities of a classifier, or yes (1) and no (0) of a vision-language model. It does not get the
            noise level; at high levels the denoised images are blurred.
        clip: bound on the denoised images; None for none.
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


def checked_labels(forbidden: Sequence[int], predictor: Predictor) -> list[int]:
    """The labels of the predictor's forbidden conditions; refuses another number of them."""
    if len(forbidden) != predictor.conditions:
        raise SettingError(f"the predictor has {predictor.conditions} forbidden conditions, not {len(forbidden)}")
    return list(forbidden)


def columns(log_p: Tensor, labels: Sequence[int]) -> Tensor:
    """Some columns of ``log_p`` (B, classes), (B, K); an index by a list would be copied to the device at each step."""
    return torch.stack([log_p[:, label] for label in labels], 1) if labels else log_p[:, :0]
