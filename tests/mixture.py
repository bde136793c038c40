"""A Gaussian mixture under a noise schedule, where every quantity of the theory is known exactly.

Component m is N(mean_m, std_m^2 I) with weight w_m, so x_t given component m is N(alpha mean_m, (alpha^2 std_m^2 +
sigma^2) I), and from this follow the noise prediction of any set of components and the posterior of any set. A class is
a set of components. Everything is computed in fp64 and given back in the dtype of ``x_t``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dng_lightning.guidance import Guidance, Guided, Step
from dng_lightning.guidance.reference_guidance import ReferenceGuidance
from dng_lightning.guidance.references import References
from dng_lightning.observation import WithObserver
from dng_lightning.predictors import (
    ClassConditionalPredictor,
    EpsModel,
    NetworkPairPredictor,
    Predictor,
    WithPosterior,
)
from dng_lightning.sampling import Sampler, sample
from dng_lightning.schedule import NoiseSchedule


class GaussianMixture:
    """A mixture of M isotropic Gaussians in D dimensions; a state is (B, D), or any (B, ...) of D numbers an image.

    Args:
        schedule: the noise levels.
        means: (M, D).
        std: of all components, or (M,).
        weights: (M,), summing to 1; None for equal ones.
        classes: the components that make up each class; None for one class a component.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        means: Sequence[Sequence[float]],
        std: float | Sequence[float],
        weights: Sequence[float] | None = None,
        classes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.schedule = schedule
        self.means = torch.tensor(means, dtype=torch.double)
        count, self.dimensions = self.means.shape
        self.stds = torch.tensor(std, dtype=torch.double).expand(count)
        self.weights = torch.tensor(weights or [1 / count] * count, dtype=torch.double)
        self.classes = [list(c) for c in classes] if classes else [[m] for m in range(count)]
        # row k: the components of class k; the last row, of the null class: all of them
        self.members = torch.zeros(len(self.classes) + 1, count, dtype=torch.bool)
        for label, components in enumerate(self.classes):
            self.members[label, components] = True
        self.members[-1] = True

    @property
    def null_class(self) -> int:
        """The label that stands for the whole mixture."""
        return len(self.classes)

    def prior(self, label: int) -> float:
        """The share of a class, p(c)."""
        return float(self.weights[self.members[label]].sum())

    def log_joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(x_t, component), (B, M) fp64; ``t`` (B,)."""
        variance, away = self._about_means(x_t, t)
        return self.weights.log() - (away.square().sum(2) / variance + away.shape[2] * variance.log()) / 2

    def eps(self, x_t: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The exact noise prediction -sigma grad log p(x_t | class), (B, ...); an ``EpsModel``.

        Args:
            x_t: (B, ...).
            t: levels (B,) in 1..T.
            class_labels: (B,), or None for the whole mixture.
        """
        labels = torch.full_like(t, self.null_class) if class_labels is None else class_labels
        variance, away = self._about_means(x_t, t)
        log_joint = self.log_joint(x_t, t).masked_fill(~self.members[labels], -torch.inf)
        share = (log_joint.softmax(1) / variance).unsqueeze(2)
        return (self.schedule.sigma[t].view(-1, 1) * (share * away).sum(1)).to(x_t.dtype).view(x_t.shape)

    def network(self, label: int) -> EpsModel:
        """The exact prediction of one class alone, as a network that is told no class; ``null_class`` for all."""

        def eps(x_t: Tensor, t: Tensor, class_labels: Tensor | None) -> Tensor:
            assert class_labels is None
            return self.eps(x_t, t, torch.full_like(t, label))

        return eps

    def shared(self, forbidden: Sequence[int]) -> ClassConditionalPredictor:
        """One network for everything, avoiding ``forbidden``."""
        return ClassConditionalPredictor(self.eps, self.null_class, forbidden)

    def pair(self, forbidden: Sequence[int]) -> NetworkPairPredictor:
        """A network for the whole mixture and one for each class of ``forbidden``."""
        return NetworkPairPredictor(self.network(self.null_class), [self.network(label) for label in forbidden])

    def predictor(self, guidance: Guidance, forbidden: Sequence[int]) -> Predictor:
        """The shared network, with what ``guidance`` asks for: the exact posterior, an exact observer of x0_hat."""
        predictor: Predictor = self.shared(forbidden)
        if guidance.needs.classifier:
            predictor = WithPosterior(predictor, self.log_posterior, forbidden)
        if guidance.needs.observed:
            predictor = WithObserver(predictor, lambda x0_hat: self.posterior(x0_hat, 0, forbidden), self.schedule)
        return predictor

    def log_posterior(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The exact log p(class | x_t) of every class, (B, classes) fp64; ``t`` (B,)."""
        log_share = self.log_joint(x_t, t).log_softmax(1).unsqueeze(1)
        return log_share.masked_fill(~self.members[:-1], -torch.inf).logsumexp(2)

    def posterior(self, x_t: Tensor, level: int, classes: Sequence[int]) -> Tensor:
        """The exact p(class | x_t), (B, K) fp64."""
        return self.log_posterior(x_t, torch.full((len(x_t),), level))[:, list(classes)].exp()

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` draws of x_0 (B, D) fp64 and their components (B,)."""
        component = self.weights.multinomial(count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], dtype=torch.double, generator=generator)
        return self.means[component] + self.stds[component].unsqueeze(1) * noise, component

    def nearest(self, x: Tensor) -> Tensor:
        """The component whose mean is nearest to each image, (B,)."""
        return torch.cdist(x.flatten(1).double(), self.means).argmin(1)

    def _about_means(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The variance (B, M) of each component at level ``t`` and x_t less its mean (B, M, D)."""
        alpha, sigma = self.schedule.alpha[t].unsqueeze(1), self.schedule.sigma[t].unsqueeze(1)
        variance = alpha**2 * self.stds**2 + sigma**2
        return variance, x_t.flatten(1).double().unsqueeze(1) - alpha.unsqueeze(2) * self.means


def across(points: Sequence[Sequence[float]], dimensions: int) -> list[list[float]]:
    """Points of the plane laid across an even number of dimensions, as far from each other; in two, as they are."""
    pairs = dimensions // 2
    return [[x / math.sqrt(pairs) for x in point] * pairs for point in points]


def ring(radius: float, count: int, dimensions: int) -> list[list[float]]:
    """Points on a circle, in a plane that lies across all of an even number of dimensions."""
    angles = [2 * math.pi * k / count for k in range(count)]
    return across([[radius * math.cos(a), radius * math.sin(a)] for a in angles], dimensions)


class BatchNoise:
    """Standard normal draws for a whole batch from one generator; quicker than one generator an image.

    Args:
        shape: of a batch, (B, ...).
        seed: of the generator.
        dtype: of the draws.
    """

    def __init__(self, shape: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        """The next draw, (B, ...)."""
        return torch.randn(self.shape, generator=self.generator, dtype=self.dtype)


def near(method: type[ReferenceGuidance], images: Tensor | None = None, **settings: object) -> ReferenceGuidance:
    """``method`` with ``images`` (N, ...) for references, or with six draws of whatever shape is asked for."""

    class Near(method):  # type: ignore[valid-type, misc]
        def images(self, like: Tensor) -> References:
            given = BatchNoise((6, *like.shape[1:]), seed=9)() if images is None else images
            return References(given.to(like.dtype))

    return Near(references=method.__name__, **settings)


@dataclass(frozen=True)
class Trajectory:
    """What a run of the sampler went through.

    Attributes:
        x: the states, from x_T to x_0, (S + 1, B, ...).
        levels: their levels, S + 1 of them.
        scale: the guidance scale at each step, (S, B).
        posterior: the posteriors before each step, (S, B, K); empty if not tracked.
    """

    x: Tensor
    levels: list[int]
    scale: Tensor
    posterior: Tensor

    @property
    def x_0(self) -> Tensor:
        """The samples, (B, ...)."""
        return self.x[-1]


def trajectory(
    mixture: GaussianMixture,
    guidance: Guidance,
    forbidden: Sequence[int],
    sampler: Sampler,
    noise: Callable[[], Tensor],
    wanted: int | None = None,
) -> Trajectory:
    """Run the package's sampler on ``mixture``, every image of class ``wanted`` if given, and keep everything."""
    states: list[Tensor] = []
    steps: list[tuple[Step, Guided]] = []

    def first_draw_kept() -> Tensor:
        draw = first if not states else noise()
        if not states:
            states.append(float(mixture.schedule.sigma[-1]) * draw)
        return draw

    def on_step(step: Step, guided: Guided, x_s: Tensor) -> None:
        steps.append((step, guided))
        states.append(x_s)

    first = noise()
    label = None if wanted is None else torch.full((len(first),), wanted)
    predictor = mixture.predictor(guidance, forbidden)
    sample(predictor, guidance, mixture.schedule, first_draw_kept, sampler, label, on_step)
    tracked = [guided.posterior for _, guided in steps if guided.posterior is not None]
    return Trajectory(
        torch.stack(states),
        [steps[0][0].t, *(step.s for step, _ in steps)],
        torch.stack([guided.scale for _, guided in steps]),
        torch.stack(tracked) if tracked else torch.empty(0),
    )
