"""Normalized Attention Guidance, NAG (Chen et al., NeurIPS 2025, arXiv 2505.21179): negatives inside the attention.

With Z_+ and Z_k what the same queries of the image make of the base's text and of the forbidden ones, token by token,
at every attention to a text and before its output projection:

    Z~    = Z_+ - (scale - 1) sum_k (Z_k - Z_+)            of one: scale Z_+ - (scale - 1) Z_-
    ratio = |Z~| / |Z_+|
    Z^    = Z~ min(ratio, tau) / ratio
    Z_NAG = alpha Z^ + (1 - alpha) Z_+

The paper has one forbidden text; the sum over several is ours, as in ``negative_prompting.py``. The norm is l1 in the
paper and in the authors' processors for SDXL, SD3 and ComfyUI, l2 in theirs for Flux.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from dng_lightning.errors import SettingError, check_0_to_1
from dng_lightning.guidance.attention_guidance import AttentionGuidance
from dng_lightning.interfaces import Step
from dng_lightning.text_attention import TextAttention

Norm = Literal["l1", "l2"]
ORDERS: dict[str, int] = {"l1": 1, "l2": 2}


@dataclass(frozen=True)
class NormalizedAttention(AttentionGuidance):
    """NAG: extrapolates the attention away from the forbidden texts, and bounds its length.

    At scale 1 or alpha 0 it is the other guidance, bit for bit; ``Guided.scale`` is 1 where it does not act.

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

    def acts(self, step: Step) -> bool:
        """See ``AttentionGuidance.acts``."""
        return super().acts(step) and self.alpha > 0 and step.index < self.end * step.count

    def edit(self, attention: TextAttention) -> Tensor:
        """Z_NAG, (B, tokens, width)."""
        z = attention.z
        pushed = z - (self.scale - 1) * attention.away
        length, longer = (vector_norm(x, ORDERS[self.norm], dim=-1, keepdim=True) for x in (z, pushed))
        shrunk = (self.tau * length / longer.clamp(min=torch.finfo(z.dtype).tiny)).clamp(max=1)
        return torch.lerp(z, shrunk * pushed, self.alpha)
