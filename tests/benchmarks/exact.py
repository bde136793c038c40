"""Exact mixtures and every guidance to run on them: the one place that mixture_table.py and mixture_figure.py draw on.

A new method is a line in ``avoiding``, or in ``toward_wanted``, and a line in ``FIGURE`` if it is to have a panel.
"""

import math
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mixture import BatchNoise, GaussianMixture, across, near, ring

from dng_lightning.guidance import (
    AdaptiveNegative,
    AdaptiveProjectedGuidance,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    ComposableNot,
    ContrastiveCFG,
    DynamicGeoGuide,
    DynamicNegativeGuidance,
    FeedbackGuidance,
    GeoGuide,
    Guidance,
    Guided,
    LimitedInterval,
    NegativePrompting,
    OracleNegativeGuidance,
    OracleSafeDenoiser,
    PerpNeg,
    PositiveAndNegative,
    SafeDenoiser,
    SafeLatentDiffusion,
    SafetyGuidedFlow,
    ShieldedDiffusion,
    SignedNegative,
    Step,
    SwappedNegative,
    Unguided,
)
from dng_lightning.sampling import Sampler, sample
from dng_lightning.schedule import LinearSchedule

STD = 0.3


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Attributes:
        guidance: what steers.
        eta: of the sampler: 1 is ancestral, 0 deterministic.
    """

    guidance: Guidance
    eta: float = 1.0


@dataclass(frozen=True)
class Problem:
    """A mixture to draw from without some of its classes.

    Attributes:
        title: what the table calls it.
        mixture: the exact model.
        forbidden: the classes to avoid.
        steps: the numbers of sampling steps that the table goes through.
        count: samples a method.
        rows: what is compared, each part by the name of its row.
        wanted: the class that all samples shall show, or None.
    """

    title: str
    mixture: GaussianMixture
    forbidden: Sequence[int]
    steps: Sequence[int]
    count: int
    rows: Sequence[Callable[["Problem"], dict[str, Method]]]
    wanted: int | None = None

    @property
    def retained(self) -> list[int]:
        """The components of the true conditional."""
        members = self.mixture.members
        given = members[-1 if self.wanted is None else self.wanted]
        return (given & ~members[list(self.forbidden)].any(0)).nonzero().squeeze(1).tolist()

    @property
    def prior(self) -> float:
        """The share of what is forbidden in what would be drawn without guidance."""
        weights, members = self.mixture.weights, self.mixture.members
        given = members[-1 if self.wanted is None else self.wanted]
        return 1 - float(weights[self.retained].sum() / weights[given].sum())

    def references(self, count: int = 256) -> Tensor:
        """Draws of what is forbidden, (count, D)."""
        draws, component = self.mixture.draw(20 * count, torch.Generator().manual_seed(1))
        return draws[self.mixture.members[list(self.forbidden)].any(0)[component]][:count]

    def measure(self, x_0: Tensor) -> tuple[list[int], float, float]:
        """What samples are like.

        Returns:
            How many are nearest to each component; how far the means of the retained components' samples are from the
            components', less what sampling explains; and those samples' standard deviation. Both are averages over the
            components that have samples, nan if none has.
        """
        nearest, moved, widths = self.mixture.nearest(x_0), [], []
        for component in self.retained:
            found = x_0[nearest == component].double()
            if len(found) > 1:
                variance = found.var(0)
                away = (found.mean(0) - self.mixture.means[component]).square() - variance / len(found)
                moved.append(math.sqrt(max(0.0, float(away.sum()))))
                widths.append(math.sqrt(float(variance.mean())))
        counts = nearest.bincount(minlength=len(self.mixture.means)).tolist()
        return counts, *(sum(sizes) / len(sizes) if sizes else math.nan for sizes in (moved, widths))

    def draw(self, method: Method, steps: int, count: int | None = None) -> tuple[Tensor, float, float]:
        """Samples of one seed.

        Returns:
            The samples (N, D); how many network evaluations each took a step; and how far the posterior that the
            guidance went by was from the exact one before the last step, as a mean over the samples. That is nan if it
            goes by none, or by that within a wanted class, which is another.
        """
        count, guidance = count or self.count, method.guidance
        predictor, noise = (
            self.mixture.predictor(guidance, self.forbidden),
            BatchNoise((count, self.mixture.dimensions)),
        )
        wanted = None if self.wanted is None else torch.full((count,), self.wanted)
        seen: deque[tuple[Step, Guided, Tensor]] = deque(maxlen=2)
        sampler = Sampler(steps, method.eta)
        x_0 = sample(
            predictor, guidance, self.mixture.schedule, noise, sampler, wanted, lambda *step: seen.append(step)
        )
        (_, _, x_t), (step, guided, _) = seen
        off = math.nan
        if guided.posterior is not None and wanted is None:
            exact = self.mixture.posterior(x_t, step.t, self.forbidden)
            off = float((guided.posterior - exact).sum(1).abs().mean())
        return x_0, predictor.evaluations / (count * steps), off


def avoiding(problem: Problem) -> dict[str, Method]:
    """Every method that avoids something."""
    prior, references = problem.prior, problem.references()
    guidances = {
        "Unguided": Unguided(),
        "Negative prompting, scale 0.5": NegativePrompting(0.5),
        "Negative prompting, scale 2": NegativePrompting(2.0),
        "Negative prompting, scale 2, noise 0.5–5": LimitedInterval(NegativePrompting(2.0), low=0.5, high=5.0),
        "Swapped negative, scale 3": SwappedNegative(3.0),
        "Composable NOT, scale 2": ComposableNot(2.0),
        "Signed negative, scale 2": SignedNegative(2.0),
        "Perp-Neg, scale 2": PerpNeg(2.0),
        "Safe Latent Diffusion, scale 2": SafeLatentDiffusion(2.0),
        "Contrastive CFG, scale 2, tau 0.3": ContrastiveCFG(2.0, tau=0.3),
        "Contrastive CFG, scale 8, tau 3": ContrastiveCFG(8.0, tau=3.0),
        "DNG, scale 1": DynamicNegativeGuidance(prior=prior),
        "DNG, scale 3": DynamicNegativeGuidance(3.0, prior=prior),
        "DNG, scale 1, own push 0.5": DynamicNegativeGuidance(prior=prior, own_push=0.5),
        "DNG, scale 1, against the rest": DynamicNegativeGuidance(prior=prior, against="rest"),
        "DNG, scale 1, only of what emerges": AdaptiveNegative(DynamicNegativeGuidance(prior=prior)),
        "DNG, scale 1, exact posterior": OracleNegativeGuidance(),
        "Classifier guidance, exact": ClassifierGuidance(),
        "Classifier guidance, exact, on the mean": ClassifierGuidance(rule="mean"),
        "Classifier guidance, exact, without odds": ClassifierGuidance(goal="away"),
        "GeoGuide, exact classifier": GeoGuide(),
        "GeoGuide by differences": GeoGuide(source="differences"),
        "GeoGuide with tracked odds": DynamicGeoGuide(prior=prior),
        "Safe Denoiser, 256 references, exact odds": near(OracleSafeDenoiser, references),
        "Safe Denoiser, 256 references, as released": near(SafeDenoiser, references),
        "SPELL, 256 references": near(ShieldedDiffusion, references),
        "Safety-Guided Flow, 256 references": near(SafetyGuidedFlow, references),
    }
    return {name: Method(guidance) for name, guidance in guidances.items()}


def deterministic(problem: Problem) -> dict[str, Method]:
    """The bias of a posterior that is tracked along a deterministic sampler, and its correction."""
    return {
        "DNG, scale 1, eta 0": Method(DynamicNegativeGuidance(prior=problem.prior), eta=0.0),
        "DNG, scale 1, eta 0, divergence 1": Method(
            DynamicNegativeGuidance(prior=problem.prior, divergence=1), eta=0.0
        ),
    }


def toward_wanted(problem: Problem) -> dict[str, Method]:
    """What a wanted class adds: a sharper one to avoid something in, and the methods that avoid nothing."""
    sharpened = PositiveAndNegative(DynamicNegativeGuidance(prior=problem.prior), wanted_scale=2.0)
    return {
        "DNG, scale 1, after classifier-free guidance 2": Method(sharpened),
        "Avoiding nothing: classifier-free guidance, scale 3": Method(ClassifierFreeGuidance(3.0)),
        "Avoiding nothing: CFG++, scale 0.6, eta 0": Method(CFGPlusPlus(0.6), eta=0.0),
        "Avoiding nothing: adaptive projected guidance, scale 3": Method(AdaptiveProjectedGuidance(3.0)),
        "Avoiding nothing: Feedback Guidance, pi 0.9": Method(FeedbackGuidance(0.9)),
    }


def kernels(problem: Problem) -> dict[str, Method]:
    """What the kernel of a class may be compared with, on images that are left alone and on guided ones."""
    prior = problem.prior
    guidances = {
        "Unguided, tracked": DynamicNegativeGuidance(0.0, prior=prior),
        "Unguided, tracked against the rest": DynamicNegativeGuidance(0.0, prior=prior, against="rest"),
        "DNG, scale 1": DynamicNegativeGuidance(prior=prior),
        "DNG, scale 1, against the rest": DynamicNegativeGuidance(prior=prior, against="rest"),
        "DNG, scale 1, exact posterior": OracleNegativeGuidance(),
    }
    return {name: Method(guidance) for name, guidance in guidances.items()}


def methods(problem: Problem) -> dict[str, Method]:
    """What the table compares, by the name of its row."""
    return {name: method for part in problem.rows for name, method in part(problem).items()}


def modes(means: list[list[float]], classes: Sequence[Sequence[int]] | None = None) -> GaussianMixture:
    """Equally likely modes of one width."""
    return GaussianMixture(LinearSchedule(), means, STD, classes=classes)


PAIR = [[-1.5, 0.0], [1.5, 0.0]]
TWO = Problem("Two modes in 2-D, one forbidden", modes(PAIR), [0], (1000, 50), 4096, [avoiding, deterministic])
PROBLEMS = [
    TWO,
    Problem("Two modes in 64-D, one forbidden", modes(across(PAIR, 64)), [0], (250,), 2048, [avoiding]),
    Problem("Eight modes on a ring in 64-D, one forbidden", modes(ring(3.0, 8, 64)), [0], (250,), 2048, [avoiding]),
    Problem(  # where something is wanted the forms of negative prompting part
        "Eight modes on a ring in 2-D, two wanted, one of them forbidden with its other neighbour",
        modes(ring(3.0, 8, 2), classes=[[0, 1], [1, 2]]),
        [1],
        (250,),
        4096,
        [avoiding, toward_wanted],
        wanted=0,
    ),
    Problem(
        "Few steps: what the kernel is compared with; two modes in 2-D", modes(PAIR), [0], (20, 50), 4096, [kernels]
    ),
    Problem(
        "Few steps: what the kernel is compared with; twenty modes on a ring in 64-D",
        modes(ring(6.0, 20, 64)),
        [0],
        (20, 50),
        2048,
        [kernels],
    ),
]

FIGURE = [
    "Unguided",
    "Negative prompting, scale 0.5",
    "Negative prompting, scale 2",
    "Negative prompting, scale 2, noise 0.5–5",
    "Safe Latent Diffusion, scale 2",
    "Contrastive CFG, scale 2, tau 0.3",
    "Contrastive CFG, scale 8, tau 3",
    "GeoGuide, exact classifier",
    "GeoGuide with tracked odds",
    "Safe Denoiser, 256 references, as released",
    "Safe Denoiser, 256 references, exact odds",
    "SPELL, 256 references",
    "Safety-Guided Flow, 256 references",
    "DNG, scale 1, exact posterior",
    "DNG, scale 1",
    "DNG, scale 3",
    "DNG, scale 1, only of what emerges",
    "DNG, scale 1, eta 0",
    "DNG, scale 1, eta 0, divergence 1",
]
