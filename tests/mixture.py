"""A Gaussian mixture under a noise schedule, where every quantity of the theory is known exactly.

Component m is N(mean_m, std_m^2 I) with weight w_m, so x_t given component m is N(alpha mean_m, (alpha^2 std_m^2 +
sigma^2) I), and from this follow the denoised prediction of any set of components and the posterior of any set. A class
is a set of components. Everything is computed in fp64 and given back in the dtype of ``x_t``.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dng_lightning.guidance import Guidance
from dng_lightning.guidance.reference_guidance import ReferenceGuidance
from dng_lightning.guidance.references import References
from dng_lightning.interfaces import Guided, Predictions, Step
from dng_lightning.kernel import NoiseLevel
from dng_lightning.sampling import (
    ClassConditionalPredictor,
    Denoiser,
    NetworkPairPredictor,
    Predictor,
    Recorder,
    Sampler,
    WithClassifier,
    WithObserver,
    WithProbe,
    sample,
)
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

    def level(self, level: NoiseLevel | int) -> NoiseLevel:
        """A level of the schedule, by its number."""
        return self.schedule.level(level) if isinstance(level, int) else level

    def log_joint(self, x_t: Tensor, level: NoiseLevel | int) -> Tensor:
        """log p(x_t, component), (B, M) fp64."""
        variance, away = self._about_means(x_t, self.level(level))
        return self.weights.log() - (away.square().sum(2) / variance + away.shape[2] * variance.log()) / 2

    def denoised(self, x_t: Tensor, level: NoiseLevel | int, class_labels: Tensor | None = None) -> Tensor:
        """The exact denoised prediction E[x_0 | x_t, class], (B, ...); a ``Denoiser``.

        Args:
            x_t: (B, ...).
            level: its noise level.
            class_labels: (B,), or None for the whole mixture.
        """
        level = self.level(level)
        labels = torch.full((len(x_t),), self.null_class) if class_labels is None else class_labels
        variance, away = self._about_means(x_t, level)
        log_joint = self.log_joint(x_t, level).masked_fill(~self.members[labels], -torch.inf)
        means = self.means + (level.alpha * self.stds**2 / variance).unsqueeze(1) * away
        return (log_joint.softmax(1).unsqueeze(2) * means).sum(1).to(x_t.dtype).view(x_t.shape)

    def network(self, label: int) -> Denoiser:
        """The exact prediction of one class alone, as a network without class labels; ``null_class`` for all."""
        return ExactDenoiser(self, label)

    def shared(self, forbidden: Sequence[int], class_labels: Tensor | None = None) -> ClassConditionalPredictor:
        """One network for everything, avoiding ``forbidden``."""
        return ClassConditionalPredictor(ExactDenoiser(self), self.null_class, forbidden, class_labels)

    def pair(self, forbidden: Sequence[int]) -> NetworkPairPredictor:
        """A network for the whole mixture and one for each class of ``forbidden``."""
        return NetworkPairPredictor(self.network(self.null_class), [self.network(label) for label in forbidden])

    def predictor(self, guidance: Guidance, forbidden: Sequence[int], class_labels: Tensor | None = None) -> Predictor:
        """The shared network, with what ``guidance`` needs: the exact posterior, an exact observer of D."""
        predictor: Predictor = self.shared(forbidden, class_labels)
        if guidance.needs().classifier:
            predictor = WithClassifier(predictor, self.log_posterior, forbidden)
        if guidance.needs().probe:
            predictor = WithProbe(predictor, self.log_posterior, "x_t", forbidden)
        if guidance.needs().observer is not None:
            predictor = WithObserver(predictor, lambda denoised: self.posterior(denoised, 0, forbidden))
        return predictor

    def log_posterior(self, x_t: Tensor, level: NoiseLevel | int) -> Tensor:
        """The exact log p(class | x_t) of every class, (B, classes) fp64."""
        log_share = self.log_joint(x_t, level).log_softmax(1).unsqueeze(1)
        return log_share.masked_fill(~self.members[:-1], -torch.inf).logsumexp(2)

    def posterior(self, x_t: Tensor, level: NoiseLevel | int, classes: Sequence[int]) -> Tensor:
        """The exact p(class | x_t), (B, K) fp64."""
        return self.log_posterior(x_t, level)[:, list(classes)].exp()

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` draws of x_0 (B, D) fp64 and their components (B,)."""
        component = self.weights.multinomial(count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], dtype=torch.double, generator=generator)
        return self.means[component] + self.stds[component].unsqueeze(1) * noise, component

    def nearest(self, x: Tensor) -> Tensor:
        """The component whose mean is nearest to each image, (B,)."""
        return torch.cdist(x.flatten(1).double(), self.means).argmin(1)

    def _about_means(self, x_t: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """The variance (M,) of each component at a level and x_t less its mean (B, M, D)."""
        variance = level.alpha**2 * self.stds**2 + level.sigma**2
        return variance, x_t.flatten(1).double().unsqueeze(1) - level.alpha * self.means


class ExactDenoiser:
    """A mixture's exact denoised prediction, whose features are the noisy image itself.

    Args:
        mixture: the mixture.
        label: of the class that is predicted without class labels; None to be given labels.
    """

    def __init__(self, mixture: GaussianMixture, label: int | None = None) -> None:
        self.mixture, self.label = mixture, label

    def __call__(self, x_t: Tensor, level: NoiseLevel, class_labels: Tensor | None) -> Tensor:
        """E[x_0 | x_t, class], (B, ...)."""
        assert self.label is None or class_labels is None
        labels = class_labels if self.label is None else torch.full((len(x_t),), self.label)
        return self.mixture.denoised(x_t, level, labels)

    def with_features(
        self, x_t: Tensor, level: NoiseLevel, class_labels: Tensor | None, module: str
    ) -> tuple[Tensor, Tensor]:
        """That and ``x_t``."""
        assert module == "x_t"
        return self(x_t, level, class_labels), x_t


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


class SixDraws(References):
    """References of whatever shape is asked for."""

    def __init__(self) -> None:
        super().__init__(torch.empty(0), "six draws")

    def like(self, x: Tensor) -> References:
        return References(BatchNoise((6, *x.shape[1:]), seed=9)().to(x.dtype))


def near(method: type[ReferenceGuidance], images: Tensor | None = None, **settings: object) -> ReferenceGuidance:
    """``method`` with ``images`` (N, ...) for references, or with six draws of whatever shape is asked for."""
    return method(references=SixDraws() if images is None else References(images), **settings)


class Trajectory(Recorder):
    """Everything that a run of the sampler goes through.

    Attributes:
        steps: the steps.
        guided: what the guidance made of each.
        predictions: what was predicted at each.
    """

    def start(self, x_T: Tensor, conditions: int) -> None:
        self.states: list[Tensor] = [x_T]
        self.steps: list[Step] = []
        self.guided: list[Guided] = []
        self.predictions: list[Predictions] = []

    def record(self, step: Step, x_t: Tensor, x_s: Tensor, predictions: Predictions, guided: Guided) -> None:
        self.states.append(x_s)
        self.steps.append(step)
        self.guided.append(guided)
        self.predictions.append(predictions)

    @property
    def x(self) -> Tensor:
        """The states, from x_T to x_0, (S + 1, B, ...)."""
        return torch.stack(self.states)

    @property
    def x_0(self) -> Tensor:
        """The samples, (B, ...)."""
        return self.states[-1]

    @property
    def levels(self) -> list[NoiseLevel]:
        """The levels of the states, S + 1 of them."""
        return [self.steps[0].level, *(step.next_level for step in self.steps)]

    @property
    def scale(self) -> Tensor:
        """The guidance scale at each step, (S, B)."""
        return torch.stack([guided.scale for guided in self.guided])

    @property
    def posterior(self) -> Tensor:
        """The posteriors before each step, (S, B, K); empty without one."""
        tracked = [guided.posterior for guided in self.guided if guided.posterior is not None]
        return torch.stack(tracked) if tracked else torch.empty(0)


def trajectory(
    mixture: GaussianMixture,
    guidance: Guidance,
    forbidden: Sequence[int],
    sampler: Sampler,
    noise: Callable[[], Tensor],
    class_label: int | None = None,
) -> Trajectory:
    """Run the package's sampler on ``mixture``, every image of class ``class_label`` if given, and keep everything."""
    first, run = noise(), Trajectory()
    draws = itertools.chain([first], iter(noise, None))
    labels = None if class_label is None else torch.full((len(first),), class_label)
    predictor = mixture.predictor(guidance, forbidden, labels)
    sample(predictor, guidance, mixture.schedule, lambda: next(draws), sampler, [run])
    return run
