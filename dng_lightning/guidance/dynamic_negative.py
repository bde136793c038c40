"""Dynamic Negative Guidance (Koulischer et al., ICLR 2025, arXiv 2410.14398).

The score of p(x | not c) is the unconditional one, pushed away from c by the odds that the image is becoming c:

    eps_hat = eps - scale * sum_k p_k / (1 - sum_j p_j) * (eps_k - eps)

with p_k = p(c_k | x_t) tracked along the chain (``posterior.py``), and 0 where c_k is not active. scale = 1 is exact
for exact predictions; negative prompting is the limit of a constant p.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from dng_lightning.calibration import LARGEST, CalibratedTracker, read_beside
from dng_lightning.errors import SettingError, check_0_to_1, check_at_least_0
from dng_lightning.guidance.base import Guidance, Guided, Needs, Predictions, Step, per_image
from dng_lightning.posterior import Against, PosteriorTracker, odds
from dng_lightning.schedule import NoiseSchedule
from dng_lightning.timing import Timing


@dataclass(frozen=True)
class DynamicNegativeGuidance(Guidance):
    """Pushes an image away from the forbidden conditions as far as it is becoming one of them.

    The defaults are right for exact predictions. Better ones for a trained model belong to that model: ``predict.yaml``
    holds what a search found for the shipped `mnist`.

    Attributes:
        scale: strength of the push, >= 0; 0 is unguided, 1 is the theory's.
        prior: chance of a forbidden class before anything is known, in (0, 1); one number, or one a class.
        temperature: factor of the evidence, >= 0.
        offset: added to the log posterior for each level of the schedule, in nats.
        offset_inside: divide the offset by twice the kernel's variance: it then acts late, as a margin for the mean
            squared disagreement of two imperfect predictions.
        floor: least posterior, in [0, prior].
        cap: greatest sum of the posteriors, in [prior, 1); bounds the push by scale * cap / (1 - cap).
        own_push: share of its own push that the tracker takes for evidence, in [0, 1]. 1 is exact for exact
            predictions. With a trained model's, an image that was pushed away from a class looks less like it to the
            tracker than to anybody else, and the push ends too soon; at 0 the evidence is in the step without it alone.
        calibration: rows [level, slope, shift] that the posterior is read off the evidence by, in place of prior,
            temperature, offset and floor; none for these (``calibration.py``). The cap is then in (0, 1). "checkpoint"
            for the rows of the ``calibration.yaml`` beside the model's checkpoint, or none if there is no such file.
        timing: two times that temperature and offset follow from (``timing.py``), in place of these: with no evidence
            a class has its ``reference`` odds at t0 (for several classes, the likeliest has), and at t1 evidence
            against it balances the offset. None for none.
        parity: follow the authors' released update: the offset inside, and beta_tilde as the evidence's variance
            whatever the sampler draws with. Set the sampler's ``variance`` to beta beside it.
        against: what the kernel of a class is compared with, "all" or "rest". "rest" tracks closer in few steps where
            what is allowed has few modes, and keeps the mean of p right in any case; of many modes it errs as much an
            image as "all". Measured for exact predictions (``posterior.py``); not for parity or a calibration.
        divergence: probes for the part of the evidence that is missed where the sampler draws less noise than the
            kernel has, >= 0. At 0 < eta < 1 the sampler's own noise makes up for it and 0 will do; a deterministic
            sampler (eta 0) needs 1 or more: without, p is biased against the class at any number of steps. The first
            doubles the network's work, each further one costs as much again (``divergence.py``).

    Raises:
        SettingError: a setting is out of its range, or two of them say the same thing in different ways.
    """

    scale: float = 1.0
    prior: float | Sequence[float] = 0.1
    temperature: float = 1.0
    offset: float = 0.0
    offset_inside: bool = False
    floor: float = 0.0
    cap: float = 0.99
    own_push: float = 1.0
    calibration: Sequence[Sequence[float]] | Literal["checkpoint"] = ()
    timing: Timing | None = None
    parity: bool = False
    against: Against = "all"
    divergence: int = 0

    def __post_init__(self) -> None:
        check_at_least_0(scale=self.scale)
        check_0_to_1(own_push=self.own_push)
        if self.parity and (self.own_push < 1 or self.calibration or self.against != "all"):
            raise SettingError(
                "parity knows neither own_push nor calibration nor against: leave them as they are, or parity out"
            )
        if self.divergence < 0:
            raise SettingError(f"divergence must be at least 0; got {self.divergence}")
        if self.calibration != "checkpoint":
            self.tracker  # noqa: B018  # checks its settings
        if self.timing:
            self.timing.check_alone(self.temperature, self.offset, self.offset_inside)
            if self.parity or self.calibration:
                raise SettingError("timing goes with neither parity nor calibration: leave it out")
            if self._gain(self.timing) <= 0:
                raise SettingError(f"timing's reference must be above the prior's odds; got {self.timing.reference}")

    @property
    def needs(self) -> Needs:
        """The divergence too, where the sampler draws less noise than the kernel has."""
        return Needs(divergence=self.divergence)

    @property
    def tracks_posterior(self) -> bool:
        """Yes."""
        return True

    @cached_property
    def tracker(self) -> PosteriorTracker | CalibratedTracker:
        """What tracks the posterior."""
        if self.calibration:
            replaced = (self.prior, self.temperature, self.offset, self.offset_inside, self.floor, self.against)
            if replaced != (0.1, 1.0, 0.0, False, 0.0, "all"):
                raise SettingError(
                    "calibration takes the place of prior, temperature, offset, floor and against: "
                    "set it to [] to use them"
                )
            if self.calibration == "checkpoint":
                raise SettingError("calibration: checkpoint goes with dng predict and test only: give rows, or []")
            return CalibratedTracker(self.calibration, self.cap)
        inside = self.offset_inside or self.parity
        return PosteriorTracker(
            self.prior, self.temperature, self.offset, inside, self.floor, self.cap, self.parity, self.against
        )

    def beside(self, checkpoint: Path) -> "DynamicNegativeGuidance":
        """Itself, with the calibration that lies beside the checkpoint, if it is to be that one."""
        if self.calibration != "checkpoint":
            return self
        rows = read_beside(checkpoint)
        if not rows:
            rank_zero_info(
                f"No calibration.yaml beside {checkpoint}: the posterior is tracked from prior {self.prior}, as it "
                "stands. To fit one: dng test --config calibrate.yaml --model.checkpoint ..."
            )
        return replace(self, calibration=rows or ())

    def on(self, schedule: NoiseSchedule) -> "DynamicNegativeGuidance":
        """The temperature and the offset filled in that the timing asks for."""
        if self.timing is None:
            return self
        temperature, offset = self.timing.corrections(self._gain(self.timing), schedule)
        return replace(self, timing=None, temperature=temperature, offset=offset)

    def start(self, x_T: Tensor, classes: int) -> Tensor:
        """What the tracker starts from, (B, K)."""
        return self.tracker.start(len(x_T), classes, x_T.device)

    def guide(self, predictions: Predictions, state: Tensor, step: Step) -> Guided:
        """The base prediction, less the differences scaled by the odds."""
        known = of_the_active(state, predictions.active)
        return guided_by(self.tracker.log_posterior(known, step.t), predictions, self.scale)

    def observe(self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Tensor:
        """What the tracker knows after the step."""
        if self.own_push < 1:
            pushed, plain = self.guide(predictions, state, step).eps, predictions.base
            kernel = step.drawn or step.transition  # which below eta 1 moves less than the evidence's kernel would
            push = kernel.mean(x_t, pushed) - kernel.mean(x_t, plain)
            x_s = x_s - (1 - self.own_push) * push
        return self.look_on(state, step, x_t, x_s, predictions)

    def look_on(self, state: Tensor, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions) -> Tensor:
        """What the tracker knows after a step without a push."""
        if self.timing:
            raise SettingError("timing needs the noise levels: use guidance.on(schedule)")
        active, told, known = predictions.active, predictions.emerging, of_the_active(state, predictions.active)
        seen = predictions.base, predictions.negatives, predictions.divergence
        new = self.tracker.update(known, step.transition, x_t, x_s, *seen, step.eta)
        if active is not None:
            new = torch.where(active, new, state)
        return new if told is None else self.tracker.told(new, told.to(new.dtype), step.s, active)

    def _gain(self, timing: Timing) -> float:
        """What the likeliest class's log posterior must gain to have the reference odds."""
        prior = self.prior if isinstance(self.prior, int | float) else max(self.prior)
        return math.log(timing.reference / (1 + timing.reference) / prior)


def of_the_active(state: Tensor, active: Tensor | None) -> Tensor:
    """The tracker's state (B, K), with next to no posterior where a condition is not active."""
    return state if active is None else state.masked_fill(~active, -LARGEST)


def guided_by(log_p: Tensor, predictions: Predictions, scale: float) -> Guided:
    """The equation above, given log p(c_k | x_t) (B, K)."""
    base = predictions.base
    scales = scale * odds(log_p)
    away = (per_image(scales, predictions.negatives) * (predictions.negatives - base.unsqueeze(1))).sum(1)
    return Guided(base - away, scales.sum(1), log_p.exp())
