"""Feedback Guidance (Koulischer, Handke, Deleu, Demeester & Ambrogioni, NeurIPS 2025, arXiv 2506.06085).

The positive twin of Dynamic Negative Guidance. If the learned conditional model is a mixture of the true one and the
unconditional one, p_learned(x | c) = (1 - pi) p(x) + pi p(x | c), then the true one's score is

    eps_hat = eps_null + lambda (eps_+ - eps_null),    lambda = R / (R - (1 - pi)),    R = p_learned(x_t | c) / p(x_t)

with log R tracked along the chain as Dynamic Negative Guidance tracks its posterior (``posterior.py``): an image that
shows its class needs no guidance (lambda is 1), one that does not is drawn the harder. The hybrids of the paper add a
constant: lambda + scale - 1 at all noise levels (with classifier-free guidance) or at some (with a limited interval).
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least_0
from dng_lightning.guidance.base import Guided, Predictions, Step, per_image
from dng_lightning.guidance.classifier_free import TowardWanted, null_of
from dng_lightning.guidance.limited_interval import check_interval, inside
from dng_lightning.posterior import Corrections
from dng_lightning.schedule import NoiseSchedule
from dng_lightning.timing import Timing

BIASED = "below eta 1 Feedback Guidance's ratio is biased against the wanted class, and guides too much: set eta to 1"


@dataclass(frozen=True)
class FeedbackGuidance(TowardWanted):
    """Draws an image toward its wanted class as far as it does not show it yet.

    Meant for ancestral sampling: it asks for no divergence (``divergence.py``), without which its ratio is biased at
    eta < 1. The authors accept that, and choose other times.

    Attributes:
        pi: share of the true conditional model in the learned one, in (0, 1]; 1 is the learned model itself.
        temperature: factor of the evidence, >= 0.
        offset: added to log R for each level of the schedule, in nats; the authors' are negative, and a step's.
        offset_inside: divide the offset by twice the kernel's variance.
        timing: two times that temperature and offset follow from (``timing.py``), in place of these: with no evidence
            lambda is its ``reference`` at t0, and at t1 evidence for the class balances the offset. None for none.
        max_scale: greatest scale in all, > 1: log R is kept above where it would be greater.
        cap: greatest log R, >= 0; the authors' is 3. lambda is then at least 1 / (1 - (1 - pi) e^-cap).
        scale: of the classifier-free guidance that is added, >= 1; 1 adds none.
        low: noise level sigma / alpha down to which it is added, >= 0.
        high: and up to which.

    Raises:
        SettingError: a setting is out of its range, or two of them say the same thing in different ways.
    """

    pi: float = 0.999
    temperature: float = 1.0
    offset: float = 0.0
    offset_inside: bool = False
    timing: Timing | None = None
    max_scale: float = 10.0
    cap: float = 3.0
    scale: float = 1.0
    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        self.corrections  # noqa: B018  # checks its settings
        check_at_least_0(cap=self.cap)
        check_interval(self.low, self.high)
        if not 1 <= self.scale < math.inf:
            raise SettingError(f"scale of FeedbackGuidance must be at least 1 and finite; got {self.scale}")
        if not self.scale < self.max_scale < math.inf:
            raise SettingError(f"max_scale must be above scale {self.scale:g} and finite; got {self.max_scale}")
        if not 1 / self._most <= self.pi <= 1:  # with no evidence lambda is 1 / pi
            raise SettingError(f"pi must be between {1 / self._most:.3g} and 1 with these scales; got {self.pi}")
        if self.timing:
            self.timing.check_alone(self.temperature, self.offset, self.offset_inside)
            if not self.timing.reference > 1 / self.pi:
                raise SettingError(f"timing's reference must be above 1 / pi; got {self.timing.reference}")

    @cached_property
    def corrections(self) -> Corrections:
        """What it makes of the evidence."""
        return Corrections(self.temperature, self.offset, self.offset_inside)

    def bias(self, eta: float) -> str | None:
        """Wherever less noise is drawn than the kernel has."""
        return BIASED if eta < 1 else None

    def on(self, schedule: NoiseSchedule) -> "FeedbackGuidance":
        """The temperature and the offset filled in that the timing asks for."""
        if self.timing is None:
            return self
        temperature, offset = self.timing.corrections(self._log_ratio(self.timing.reference), schedule)
        return replace(self, timing=None, temperature=temperature, offset=offset)

    def start(self, x_T: Tensor, classes: int) -> Tensor:
        """Log R, (B, 1): 0, as noise shows no class."""
        dtype = torch.float32 if x_T.device.type == "mps" else torch.float64
        return x_T.new_zeros(len(x_T), 1, dtype=dtype)

    def guide(self, predictions: Predictions, state: Tensor, step: Step) -> Guided:
        """Between the two predictions, or beyond."""
        base, null = predictions.base, null_of(predictions)
        constant = self.scale - 1 if inside(step, self.low, self.high) else 0.0
        scale = (1 / (1 - (1 - self.pi) * torch.exp(-state[:, 0])) + constant).to(base.dtype)
        return Guided(torch.lerp(null, base, per_image(scale, base)), scale)

    def observe(self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Tensor:
        """Log R after the step."""
        if self.timing:
            raise SettingError("timing needs the noise levels: use guidance.on(schedule)")
        wanted = predictions.base.unsqueeze(1)
        gained = self.corrections.gain(step.transition, x_t, x_s, null_of(predictions), wanted, state.dtype)
        return (state + gained).clamp(self._log_ratio(self._most), self.cap)

    @property
    def _most(self) -> float:
        """Greatest lambda."""
        return self.max_scale - (self.scale - 1)

    def _log_ratio(self, scale: float) -> float:
        """The log R at which lambda is ``scale``; far below anything if pi is 1 and lambda is always 1."""
        return math.log(max(1 - self.pi, 1e-30) * scale / (scale - 1))
