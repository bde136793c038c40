"""Normalized Attention Guidance, NAG (Chen et al., NeurIPS 2025, arXiv 2505.21179): negatives inside the attention.

Z_+ and Z_k are the outputs of each attention to the base's text and to the forbidden text k, with the same queries of
the image, before the output projection, for each token:

    Z~    = Z_+ - (scale - 1) sum_k (Z_k - Z_+)            of one: scale Z_+ - (scale - 1) Z_-
    ratio = |Z~| / |Z_+|
    Z^    = Z~ min(ratio, tau) / ratio
    Z_NAG = alpha Z^ + (1 - alpha) Z_+

The paper has one forbidden text; the sum over several is ours, as in ``negative_prompting.py``. The norm is l1 in the
paper and in the authors' code for SDXL, SD3 and ComfyUI, l2 in their code for Flux.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from dng_lightning.errors import check_at_least, check_in, check_one_of
from dng_lightning.guidance.attention_guidance import AttentionGuidance
from dng_lightning.interfaces import Step
from dng_lightning.text_attention import TextAttention

Norm = Literal["l1", "l2"]
ORDERS: dict[str, int] = {"l1": 1, "l2": 2}


@dataclass(frozen=True)
class NormalizedAttention(AttentionGuidance):
    """NAG: extrapolates the attention output away from the forbidden texts, and bounds its norm.

    At scale 1 or alpha 0 it equals the wrapped guidance, bit for bit; ``Guided.scale`` is 1 in steps without an edit.

    Attributes:
        guidance: guidance that uses the edited base prediction: ``Unguided``, ``ClassifierFreeGuidance`` or another.
        scale: strength of the push, >= 1.
        tau: bound on the factor by which the norm of an output grows, >= 1.
        alpha: share of the extrapolated output, in [0, 1].
        norm: norm of the outputs: "l1" (the paper) or "l2".
        end: fraction of the steps, from the first one, in which it acts, in [0, 1]. To stop at a noise level, as the
            authors do on SDXL (sigma / alpha = 4), wrap it with ``Unguided`` inside in a ``LimitedInterval``, and that
            in ``PositiveAndNegative`` for classifier-free guidance at all levels.

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 5.0
    tau: float = 2.5
    alpha: float = 0.25
    norm: Norm = "l1"
    end: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(1, scale=self.scale, tau=self.tau)
        check_in("[0, 1]", alpha=self.alpha, end=self.end)
        check_one_of(ORDERS, norm=self.norm)

    @property
    def identity_scale(self) -> float:  # type: ignore[override]  # a class attribute in the base class
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
