"""Base class of guidances that select among whole chains: reject some, or resample them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NoReturn

from torch import Tensor

from dng_lightning.errors import SettingError
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.unguided import Unguided
from dng_lightning.guidance.wrapper import GuidanceWrapper
from dng_lightning.interfaces import Needs, Predictions, Step
from dng_lightning.posterior import Posterior, TrackedPosterior

UNGUIDED = Unguided()


@dataclass(frozen=True)
class ChainGuidance(GuidanceWrapper, ABC):
    """Samples chains with another guidance and selects among them; it replaces the loop of ``sampling.sample``.

    It must be the outermost guidance.

    Attributes:
        guidance: guidance of each chain.
        posterior: probability that a chain becomes forbidden; None for the posterior of ``guidance``, which may be a
            ``DynamicNegativeGuidance`` of scale 0.
    """

    guidance: Guidance = UNGUIDED
    posterior: Posterior | None = TrackedPosterior()

    def needs(self, state: None = None, step: Step | None = None) -> Needs:
        """The needs of the guidance and of the posterior."""
        own = self.posterior.needs() if self.posterior else Needs()
        return self.guidance.needs(state, step) | own

    @abstractmethod
    def sample(
        self,
        predictor: Any,
        schedule: Any,
        noise: Callable[[], Tensor],
        sampler: Any,
        recorders: Sequence[Any] = (),
    ) -> Tensor:
        """See ``sampling.sample``."""

    def guide(self, predictions: Predictions, state: Any, step: Step) -> NoReturn:
        """Refuse a use inside another guidance: there is no choice among chains at a single step.

        Raises:
            SettingError: always.
        """
        raise SettingError(f"{type(self).__name__} chooses among whole chains: make it the outermost guidance")


def take(state: Any, images: Tensor) -> Any:
    """The state of a guidance or posterior for some of its images.

    Args:
        state: tensors (B, ...), alone or in dataclasses, tuples or lists.
        images: indices of the images, (N,), which may repeat.
    """
    if isinstance(state, Tensor):
        return state[images]
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{field.name: take(getattr(state, field.name), images) for field in fields(state)})
    if isinstance(state, tuple | list):
        return type(state)(take(part, images) for part in state)
    return state
