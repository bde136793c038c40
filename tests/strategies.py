"""Hypothesis strategies for settings, sensible and extreme, and the bounds that hold for all of them."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from dng_lightning.posterior import Posterior, ReleasedPosterior, TrackedPosterior
from dng_lightning.schedule import CosineSchedule, LinearSchedule, NoiseSchedule

T = 1000
PATHS = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "variance exploding": NoiseSchedule(torch.ones(T), torch.logspace(-2.5, 2, T, dtype=torch.double)),
    "rectified flow": NoiseSchedule(1 - torch.linspace(0.001, 0.999, T), torch.linspace(0.001, 0.999, T)),
}


def powers_of_ten(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


def or_0(strategy: st.SearchStrategy[float]) -> st.SearchStrategy[float]:
    return st.just(0.0) | strategy


scales = or_0(powers_of_ten(-3, 6))


@dataclass(frozen=True)
class Setting:
    """Settings of a tracked or a released posterior; ``posterior()`` refuses those that do not fit together."""

    prior: float | list[float]
    temperature: float
    offset: float
    p_min: float
    p_max: float
    released: bool = False
    guidance_shift_weight: float = 1.0

    def posterior(self) -> Posterior:
        first = self.prior, self.temperature, self.offset
        if self.released:
            return ReleasedPosterior(*first, self.p_min, self.p_max)
        weight = self.guidance_shift_weight
        return TrackedPosterior(*first, p_min=self.p_min, p_max=self.p_max, guidance_shift_weight=weight)


@st.composite
def posteriors(draw: st.DrawFn, classes: int) -> Setting:
    """Settings that fit together for ``classes`` forbidden classes, but for one in six."""
    one = powers_of_ten(-12, -0.01).map(lambda p: p / classes)
    released = draw(st.booleans())
    prior = draw(one | st.lists(one, min_size=classes, max_size=classes))
    each = prior if isinstance(prior, list) else [prior] * classes
    p_max = draw(powers_of_ten(-9, 0).map(lambda gap: min(1 - gap * (1 - sum(each)), 1 - 1e-9)))
    p_min = draw(or_0(powers_of_ten(-12, 0).map(lambda part: part * min(each))))
    fault = draw(st.sampled_from([None] * 15 + ["priors", "p_max", "p_min"]))
    return Setting(
        prior=each * 2 if fault == "priors" else prior,
        temperature=draw(or_0(powers_of_ten(-3, 12))),
        offset=draw(st.sampled_from([0.0, 1e-3, -1e-3, 1.0, -1e3, 1e9])),
        p_min=min(2 * max(each), 1.0) if fault == "p_min" else p_min,
        p_max=0.9 * sum(each) if fault == "p_max" else p_max,
        released=released,
        guidance_shift_weight=1.0 if released else draw(st.just(1.0) | st.floats(0, 1)),
    )


def assert_bounds(p: Tensor, p_min: float, p_max: float) -> None:
    """What the docstrings promise of posteriors (..., K)."""
    assert p.isfinite().all()
    assert p.sum(-1).max() <= p_max * (1 + 1e-12)  # fp64
    assert p.min() >= p_min * (1 - 1e-12)


def assert_scale(found: Tensor, scale: float, p_max: float) -> None:
    """What follows for the guidance scale."""
    assert found.isfinite().all()
    assert found.min() >= 0
    # fp32; and 1 - p_max of a p_max of 1 - 1e-9 is good to 1e-16 / 1e-9
    assert found.max() <= scale * p_max / (1 - p_max) * (1 + 2e-6)
