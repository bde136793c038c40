"""The divergence of D_k - D with respect to x_t, which corrects a tracked posterior at eta < 1.

Along dx = F dt + eta g dw, for any F, the exact rate of log p(c | x_t) is the rate of the kernels' log ratio minus

    (1 - eta^2) / 2 g^2 div(grad log p(x | c) - grad log p(x))

This term is largest for DDIM (eta = 0) and zero for the ancestral sampler (eta = 1). Hutchinson's estimate of it is
v' J v with the Jacobian J and a random vector v (a probe) of mean 0 and variance 1. With extra probes, J v is one
forward-mode pass through the networks. For 0 < eta < 1 the sampler's noise can be the probe: J v is then the difference
of the predictions before and after the step, at no cost and one step late. Both are exact in the limit of many steps.

Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1989); Albergo et al. and Song et al. use it
for the likelihood of deterministic flows ("Score-based generative modeling through SDEs", ICLR 2021, appendix D.2).
"""

from dataclasses import fields, replace

import torch
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn.attention import SDPBackend, sdpa_kernel

from dng_lightning.errors import SettingError
from dng_lightning.interfaces import Needs, Predictions
from dng_lightning.kernel import NoiseLevel
from dng_lightning.sampling.noise import Probes
from dng_lightning.sampling.predictor_wrappers import PredictorWrapper
from dng_lightning.sampling.predictors import ALL, Predictor


class WithDivergence(PredictorWrapper):
    """Adds the divergence where a guidance needs it; each chain needs a new instance.

    Args:
        predictor: gives the denoised predictions.
        probes: returns the next independent probe of each image, (B, ...), of mean 0 and variance 1.
        eta: eta of the sampler, in [0, 1].
    """

    def __init__(self, predictor: Predictor, probes: Probes, eta: float) -> None:
        super().__init__(predictor)
        self.probes, self.eta = probes, eta
        self.last: tuple[Tensor, float, Tensor] | None = None

    def predict(self, x_t: Tensor, level: NoiseLevel, needs: Needs = ALL) -> Predictions:
        """See ``Predictor.predict``.

        Raises:
            SettingError: the network cannot be differentiated in forward mode.
        """
        if self.eta == 1 or needs.divergence is None:
            return self.predictor.predict(x_t, level, needs)
        if needs.divergence:
            probed = [self._probed(x_t, level, needs, self.probes()) for _ in range(needs.divergence)]
            return replace(probed[0][0], divergence=torch.stack([divergence for _, divergence in probed]).mean(0))
        predictions = self.predictor.predict(x_t, level, needs)
        if self.last is None:
            return predictions
        before, width, draw = self.last
        return replace(predictions, divergence=_dot(predictions.differences - before, draw) / width)

    def record_noise(self, predictions: Predictions, width: float, draw: Tensor) -> None:
        """Record the noise that the sampler adds: ``width`` times the standard normal ``draw`` (B, ...)."""
        if 0 < self.eta < 1:
            self.last = predictions.differences, width, draw

    def _probed(self, x_t: Tensor, level: NoiseLevel, needs: Needs, probe: Tensor) -> tuple[Predictions, Tensor]:
        """The predictions and v' J v, (B, K), with v = ``probe``."""
        before = self.nfe
        # The trainer disables derivatives in predict and test, and fused attention has none in forward mode.
        with torch.inference_mode(False), dual_level(), sdpa_kernel(SDPBackend.MATH):
            dual = make_dual(x_t.clone(), probe)  # type: ignore[no-untyped-call]  # torch's
            predictions = self.predictor.predict(dual, level, needs)
            tangent = unpack_dual(predictions.differences).tangent  # type: ignore[no-untyped-call]
            if tangent is None:
                raise SettingError("the network has no derivative in forward mode: set divergence to 0")
            values = {field.name: getattr(predictions, field.name) for field in fields(predictions)}
            plain = {
                name: unpack_dual(value).primal  # type: ignore[no-untyped-call]
                for name, value in values.items()
                if value is not None
            }
        self.nfe += self.nfe - before  # the derivative costs as much as the evaluation
        return replace(predictions, **plain), _dot(tangent, probe)


def _dot(images: Tensor, with_each: Tensor) -> Tensor:
    """Inner products of (B, K, ...) with (B, ...), (B, K)."""
    return (images * with_each.unsqueeze(1)).flatten(2).sum(2)
