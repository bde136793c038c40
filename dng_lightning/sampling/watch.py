"""Posteriors and weights of the chains of a batch, for ``SelfFilter`` and ``Particles``."""

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.chain_guidance import take
from dng_lightning.interfaces import Guided, Needs, Predictions, Step
from dng_lightning.posterior import Posterior
from dng_lightning.sampling.noise import ImageNoise
from dng_lightning.sampling.predictors import Predictor
from dng_lightning.sampling.recorders import Recorder


class PosteriorWatch(Recorder):
    """Tracks a posterior along guided chains, and their importance weight relative to unguided chains.

    Args:
        posterior: posterior of the forbidden conditions; None for the posterior of the guidance.
        x_T: start of the chains, (B, ...).
        conditions: number K of forbidden conditions.

    Attributes:
        p: sum of the forbidden posteriors before the last recorded step, (B,).
        log_unguided: sum of log q(x_s | x_t) - log q_guided(x_s | x_t) over the recorded steps, (B,).
    """

    def __init__(self, posterior: Posterior | None, x_T: Tensor, conditions: int) -> None:
        self.posterior, self.needs = posterior, posterior.needs() if posterior else Needs()
        self.state: Any = posterior.start(x_T, conditions) if posterior else None
        self.p = self.log_unguided = torch.zeros(len(x_T), dtype=torch.float64, device=x_T.device)

    def record(self, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> None:
        """Store the posterior before the step, then update it.

        Raises:
            SettingError: neither the recorder nor the guidance has a posterior.
        """
        if self.posterior is not None:
            p = self.posterior.log_prob(predictions, self.state, step).exp()
            self.state = self.posterior.update(self.state, step, x_t, x_s, predictions, guided)
        elif guided.posterior is not None:
            p = guided.posterior
        else:
            raise SettingError("posterior null is the guidance's, which has none: take a DynamicNegativeGuidance")
        self.p = p.sum(1).to(self.log_unguided)
        kernel = step.sampling_kernel
        if kernel.std > 0:
            base, pushed = kernel.mean(x_t, predictions.denoised), kernel.mean(x_t, guided.denoised, guided.renoise)
            away = ((x_s - (base + pushed) / 2) * (base - pushed)).flatten(1)
            self.log_unguided = self.log_unguided + away.to(self.log_unguided).sum(1) / kernel.std**2

    def take(self, images: Tensor) -> None:
        """Keep the chains with these indices, (N,), which may repeat."""
        self.state, self.p, self.log_unguided = take((self.state, self.p, self.log_unguided), images)


class OneChainEach(Recorder):
    """Base class: passes the steps of one chain of each image to recorders.

    Args:
        recorders: recorders of one chain for each image.
        x_T: start of these chains, (B, ...).
        conditions: number K of forbidden conditions.
    """

    def __init__(self, recorders: Sequence[Recorder], x_T: Tensor, conditions: int) -> None:
        self.recorders, self.images = recorders, torch.arange(len(x_T), device=x_T.device)
        self.needs = reduce(or_, (recorder.needs for recorder in recorders), Needs())
        for recorder in recorders:
            recorder.start(x_T, conditions)


class Remaining(OneChainEach):
    """Passes on the steps of the chains that remain of a batch."""

    last: Guided | None = None

    def record(self, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> None:
        """Record the step, with the last scale and posterior of the rejected chains."""
        if self.last is not None:
            posterior, before = guided.posterior, self.last.posterior
            if posterior is not None and before is not None:
                posterior = before.index_copy(0, self.images, posterior)
            guided = replace(
                guided, scale=self.last.scale.index_copy(0, self.images, guided.scale), posterior=posterior
            )
        self.last = guided
        for recorder in self.recorders:
            recorder.record(step, x_t, x_s, predictions, guided)

    def take(self, images: Tensor) -> None:
        """Keep the chains with these indices, (N,)."""
        self.images = self.images[images]


def check_chains(predictor: Predictor, needs: Needs, noise: Any, name: str) -> ImageNoise:
    """Check the noise and the predictor of a guidance that chooses among chains, and return the noise.

    Raises:
        SettingError: the noise is not an ``ImageNoise``, there is no forbidden condition, or the predictor does not
            provide what the guidance needs.
    """
    if not isinstance(noise, ImageNoise):
        raise SettingError(f"{name} needs noise with one seed per image: give it an ImageNoise")
    if predictor.conditions == 0:
        raise SettingError(f"{name} needs a forbidden class: name one")
    predictor.check(needs, name)
    return noise


class FirstOfEach(OneChainEach):
    """Passes on the steps of the first chain of each image, where these chains come first in the batch."""

    def record(self, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> None:
        """Record the step of the first chains."""
        of_first = take((x_t, x_s, predictions, guided), self.images)
        for recorder in self.recorders:
            recorder.record(step, *of_first)
