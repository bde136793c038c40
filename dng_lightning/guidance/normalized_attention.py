"""Normalized Attention Guidance, NAG (Chen et al., NeurIPS 2025, arXiv 2505.21179): negatives inside the attention.

With Z_+ and Z_k what the same queries of the image make of the base's text and of the forbidden ones, token by token,
at every attention to a text and before its output projection:

    Z~    = Z_+ - (scale - 1) sum_k (Z_k - Z_+)            of one: scale Z_+ - (scale - 1) Z_-
    ratio = |Z~| / |Z_+|
    Z^    = Z~ min(ratio, tau) / ratio
    Z_NAG = alpha Z^ + (1 - alpha) Z_+

The paper has one forbidden text; the sum over several is ours, as in ``negative_prompting.py``. The norm is l1 in the
paper and in the authors' processors for SDXL and ComfyUI, l2 in theirs for Flux. The forbidden texts cost no pass
through the network, only their share of the attentions; so it also serves models of few steps, which have no use for
classifier-free guidance. Where there is use for it, it goes on top of the base prediction that was made like this:

    D_hat = D_null + w (D_NAG - D_null)            NormalizedAttention(ClassifierFreeGuidance(w))

Forbidden predictions, where a guidance asks for them, are plain ones. A posterior that is tracked by comparing the two
means little: the base prediction is no longer of the same model.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from dng_lightning.errors import SettingError, check_0_to_1
from dng_lightning.guidance.wrapper import GuidanceWrapper
from dng_lightning.interfaces import Guided, Needs, Predictions, Step

Norm = Literal["l1", "l2"]
ORDERS: dict[str, int] = {"l1": 1, "l2": 2}


@dataclass(frozen=True)
class NormalizedAttention(GuidanceWrapper):
    """Has another guidance's base prediction attend away from the forbidden texts; for text-to-image models alone.

    At scale 1 or alpha 0 it is the other guidance, bit for bit. ``Guided.scale`` is its own, 1 where it does not act.

    Attributes:
        guidance: what is made of the predictions: ``Unguided`` for the base itself, ``ClassifierFreeGuidance`` or some
            other.
        scale: strength of the push, >= 1.
        tau: greatest factor, >= 1, by which it may lengthen what an attention gives.
        alpha: share of the pushed one in what goes on, in [0, 1].
        norm: that lengths are taken in: "l1", the paper's, or "l2".
        end: fraction of the steps that it acts on, from the first, in [0, 1]. To end at a noise level, as the authors
            do on SDXL (sigma / alpha = 4), put ``LimitedInterval`` around it, with ``Unguided`` inside, and
            ``PositiveAndNegative`` around both for classifier-free guidance at all levels.

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 5.0
    tau: float = 2.5
    alpha: float = 0.25
    norm: Norm = "l1"
    end: float = 1.0

    def __post_init__(self) -> None:
        for name in ("scale", "tau"):
            if not 1 <= getattr(self, name) < float("inf"):
                raise SettingError(f"{name} must be at least 1 and finite; got {getattr(self, name)}")
        check_0_to_1(alpha=self.alpha, end=self.end)
        if self.norm not in ORDERS:
            raise SettingError(f"norm must be l1 or l2; got {self.norm}")

    @property
    def identity_scale(self) -> float:  # type: ignore[override]  # a class attribute of the others
        """1: no push."""
        return 1.0

    def needs(self, state: Any = None, step: Step | None = None) -> Needs:
        """What the wrapped guidance needs, of a base prediction whose attention is edited."""
        needs = super().needs(state, step)
        return replace(needs, attention=self.edit) if step is None or self._acts(step) else needs

    def guide(self, predictions: Predictions, state: Any, step: Step) -> Guided:
        """What the wrapped guidance makes of these predictions."""
        guided = self.guidance.guide(predictions, state, step)
        scale = self.scale if self._acts(step) else self.identity_scale
        return replace(guided, scale=torch.full_like(guided.scale, scale))

    def edit(self, z: Tensor, away: Tensor) -> Tensor:
        """Z_NAG of Z_+ and of the sum of the Z_k - Z_+; both (B, tokens, width)."""
        pushed = z - (self.scale - 1) * away
        length, longer = (vector_norm(x, ORDERS[self.norm], dim=-1, keepdim=True) for x in (z, pushed))
        shrunk = (self.tau * length / longer.clamp(min=torch.finfo(z.dtype).tiny)).clamp(max=1)
        return torch.lerp(z, shrunk * pushed, self.alpha)

    def _acts(self, step: Step) -> bool:
        return step.index < self.end * step.count
