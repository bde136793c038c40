"""Exact mixtures and every guidance to run on them: the one place that mixture_table.py and mixture_figure.py draw on.

A new method is a line in ``avoiding``, or in ``toward_class``, and a line in ``FIGURE`` if it is to have a panel.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from mixture import BatchNoise, GaussianMixture, across, near, ring

from dng_lightning.guidance import (
    AdaptiveNegative,
    AdaptiveProjectedGuidance,
    CFGNegativePrompt,
    CFGPlusPlus,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    ComposableNot,
    ConceptRemovalGuidance,
    ContrastiveCFG,
    DynamicGeoGuide,
    DynamicNegativeGuidance,
    DynamicSafeDenoiser,
    FeedbackGuidance,
    GeoGuide,
    Guidance,
    LimitedInterval,
    NegativePrompting,
    PerpNeg,
    PositiveAndNegative,
    SafeDenoiser,
    SafeLatentDiffusion,
    SafetyGuidedFlow,
    ShieldedDiffusion,
    SignedNegative,
    Unguided,
)
from dng_lightning.interfaces import Guided, Predictions, Step
from dng_lightning.posterior import ClassifierPosterior, ObserverPosterior, Posterior, TrackedPosterior
from dng_lightning.sampling import Recorder, Sampler, sample
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


class LastStep(Recorder):
    """Keeps the last step of a chain."""

    def record(self, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> None:
        self.step, self.x_t, self.guided = step, x_t, guided


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
        class_label: the class that all samples shall show, or None.
    """

    title: str
    mixture: GaussianMixture
    forbidden: Sequence[int]
    steps: Sequence[int]
    count: int
    rows: Sequence[Callable[["Problem"], dict[str, Method]]]
    class_label: int | None = None

    @property
    def retained(self) -> list[int]:
        """The components of the true conditional."""
        members = self.mixture.members
        given = members[-1 if self.class_label is None else self.class_label]
        return (given & ~members[list(self.forbidden)].any(0)).nonzero().squeeze(1).tolist()

    @property
    def prior(self) -> float:
        """The share of what is forbidden in what would be drawn without guidance."""
        weights, members = self.mixture.weights, self.mixture.members
        given = members[-1 if self.class_label is None else self.class_label]
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
            goes by none, or by that within a class that is asked for, which is another.
        """
        count, guidance, last = count or self.count, method.guidance, LastStep()
        labels = None if self.class_label is None else torch.full((count,), self.class_label)
        predictor = self.mixture.predictor(guidance, self.forbidden, labels)
        noise, sampler = BatchNoise((count, self.mixture.dimensions)), Sampler(steps, method.eta)
        x_0 = sample(predictor, guidance, self.mixture.schedule, noise, sampler, [last])
        posterior, off = last.guided.posterior, math.nan
        if posterior is not None and labels is None:
            exact = self.mixture.posterior(last.x_t, last.step.level, self.forbidden)
            off = float((posterior - exact).sum(1).abs().mean())
        return x_0, predictor.nfe / (count * steps), off


def dynamic(posterior: Posterior) -> DynamicNegativeGuidance:
    """At scale 1."""
    return DynamicNegativeGuidance(posterior=posterior)


def avoiding(problem: Problem) -> dict[str, Method]:
    """Every method that avoids something."""
    tracked, references = TrackedPosterior(problem.prior), problem.references()
    guidances = {
        "Unguided": Unguided(),
        "Negative prompting, scale 0.5": NegativePrompting(0.5),
        "Negative prompting, scale 2": NegativePrompting(2.0),
        "Negative prompting, scale 2, noise 0.5–5": LimitedInterval(NegativePrompting(2.0), low=0.5, high=5.0),
        "CFG with the negative prompt, scale 3": CFGNegativePrompt(3.0),
        "Composable NOT, scale 2": ComposableNot(2.0),
        "Signed negative, scale 2": SignedNegative(2.0),
        "Perp-Neg, scale 2": PerpNeg(2.0),
        "Safe Latent Diffusion, scale 2": SafeLatentDiffusion(2.0),
        "Contrastive CFG, scale 2, tau 0.3": ContrastiveCFG(2.0, tau=0.3),
        "Contrastive CFG, scale 8, tau 3": ContrastiveCFG(8.0, tau=3.0),
        "DNG, scale 1": dynamic(tracked),
        "DNG, scale 3": DynamicNegativeGuidance(3.0, tracked),
        "DNG, scale 1, guidance shift weight 0.5": dynamic(replace(tracked, guidance_shift_weight=0.5)),
        "DNG, scale 1, against the complement": dynamic(replace(tracked, reference="complement")),
        "DNG, scale 1, only of what emerges": dynamic(ObserverPosterior(tracked)),
        "Negative prompting, scale 2, only of what emerges": AdaptiveNegative(NegativePrompting(2.0)),
        "DNG, scale 1, exact posterior": dynamic(ClassifierPosterior()),
        "Classifier guidance, exact": ClassifierGuidance(),
        "Classifier guidance, exact, on the mean": ClassifierGuidance(rule="mean"),
        "Classifier guidance, exact, without odds": ClassifierGuidance(goal="away"),
        "GeoGuide, exact classifier": GeoGuide(),
        "GeoGuide by differences": GeoGuide(source="differences"),
        "GeoGuide with tracked odds": DynamicGeoGuide(posterior=tracked),
        "Safe Denoiser, 256 references, exact odds": near(DynamicSafeDenoiser, references),
        "Safe Denoiser, 256 references, as released": near(SafeDenoiser, references),
        "SPELL, 256 references": near(ShieldedDiffusion, references),
        "Safety-Guided Flow, 256 references": LimitedInterval(near(SafetyGuidedFlow, references), low=25.0),
        "Safety-Guided Flow, 256 references, all noise levels": near(SafetyGuidedFlow, references),
    }
    return {name: Method(guidance) for name, guidance in guidances.items()}


def deterministic(problem: Problem) -> dict[str, Method]:
    """The bias of a posterior that is tracked along a deterministic sampler, and its correction."""
    tracked = TrackedPosterior(problem.prior)
    return {
        "DNG, scale 1, eta 0": Method(dynamic(tracked), eta=0.0),
        "DNG, scale 1, eta 0, divergence 1": Method(dynamic(replace(tracked, divergence=1)), eta=0.0),
    }


def toward_class(problem: Problem) -> dict[str, Method]:
    """What a class that is asked for adds: a sharper one to avoid something in, and the methods that avoid nothing."""
    sharpened = PositiveAndNegative(dynamic(TrackedPosterior(problem.prior)), cfg_scale=2.0)
    return {
        "DNG, scale 1, after classifier-free guidance 2": Method(sharpened),
        "Concept Removal Guidance, threshold 0": Method(ConceptRemovalGuidance()),
        "Concept Removal Guidance, threshold −1": Method(ConceptRemovalGuidance(threshold=-1.0)),
        "Concept Removal Guidance, threshold −3": Method(ConceptRemovalGuidance(threshold=-3.0)),
        "Avoiding nothing: classifier-free guidance, scale 3": Method(ClassifierFreeGuidance(3.0)),
        "Avoiding nothing: CFG++, scale 0.6, eta 0": Method(CFGPlusPlus(0.6), eta=0.0),
        "Avoiding nothing: adaptive projected guidance, scale 3": Method(AdaptiveProjectedGuidance(3.0)),
        "Avoiding nothing: Feedback Guidance, pi 0.9": Method(FeedbackGuidance(0.9)),
    }


def kernels(problem: Problem) -> dict[str, Method]:
    """What the kernel of a class may be compared with, on images that are left alone and on guided ones."""
    tracked = TrackedPosterior(problem.prior)
    complement = replace(tracked, reference="complement")
    guidances = {
        "Unguided, tracked": DynamicNegativeGuidance(0.0, tracked),
        "Unguided, tracked against the complement": DynamicNegativeGuidance(0.0, complement),
        "DNG, scale 1": dynamic(tracked),
        "DNG, scale 1, against the complement": dynamic(replace(tracked, reference="complement")),
        "DNG, scale 1, exact posterior": dynamic(ClassifierPosterior()),
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
    Problem(  # where a class is asked for the forms of negative prompting part
        "Eight modes on a ring in 2-D, a class of two, one of them forbidden with its other neighbour",
        modes(ring(3.0, 8, 2), classes=[[0, 1], [1, 2]]),
        [1],
        (250,),
        4096,
        [avoiding, toward_class],
        class_label=0,
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
