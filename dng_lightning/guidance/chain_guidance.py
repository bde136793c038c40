"""A guidance that decides over whole chains: which of them are drawn anew, and which go on."""

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
    """Draws with another guidance, and chooses among the chains; ``sample`` leaves the whole of the sampling to it.

    It must be the outermost guidance.

    Attributes:
        guidance: draws the chains.
        posterior: how likely it is that a chain becomes forbidden.
    """

    guidance: Guidance = UNGUIDED
    posterior: Posterior = TrackedPosterior()

    def needs(self, state: None = None, step: Step | None = None) -> Needs:
        """The needs of the guidance and of the posterior."""
        return self.guidance.needs(state, step) | self.posterior.needs()

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
        """Refuse to be wrapped: a step alone has no chains to choose from.

        Raises:
            SettingError: always.
        """
        raise SettingError(f"{type(self).__name__} chooses among whole chains: make it the outermost guidance")


def take(state: Any, images: Tensor) -> Any:
    """A guidance's or posterior's state for some of its images, or for some of them several times.

    Args:
        state: tensors (B, ...), alone or in dataclasses, tuples or lists.
        images: their numbers, (N,).
    """
    if isinstance(state, Tensor):
        return state[images]
    if is_dataclass(state) and not isinstance(state, type):
        return replace(state, **{field.name: take(getattr(state, field.name), images) for field in fields(state)})
    if isinstance(state, tuple | list):
        return type(state)(take(part, images) for part in state)
    return state
