"""Guidance away from reference images, which take the place of a model of the forbidden class.

The methods change the denoised prediction D. The releases of Safe Denoiser and SGF then add fresh noise to the changed
D; here x_s is sampled from the reverse kernel q(x_s | x_t, D) of the changed D.
"""

from abc import abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from dng_lightning.errors import SettingError, check_at_least
from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.references import References
from dng_lightning.interfaces import Guided, Needs, Predictions, Step


@dataclass(frozen=True)
class ReferenceGuidance(Guidance):
    """Moves the denoised prediction away from reference images, without predictions of the forbidden conditions.

    The state of a batch is the references on the device of the images.

    Attributes:
        scale: strength of the push, >= 0; 0 is unguided.
        references: the images, or their location: a ``.pt`` file of one tensor (N, C, H, W), uint8 pixels or floats in
            [-1, 1], a folder of image files, or a shipped name such as ``mnist/zeros.pt``.

    Raises:
        SettingError: a setting is out of its range.
    """

    scale: float = 1.0
    references: str | References = field(kw_only=True)

    def __post_init__(self) -> None:
        check_at_least(0, scale=self.scale)

    def needs(self, state: References | None = None, step: Step | None = None) -> Needs:
        """The base prediction alone."""
        return Needs()

    def start(self, x_T: Tensor, conditions: int) -> References:
        """The references.

        Raises:
            SettingError: the references are not read yet, or have another shape than the images.
        """
        if not isinstance(self.references, References):
            raise SettingError(f"references {self.references!r} are not read: take load_settings(guidance, folder)")
        return self.references.like(x_T)


@dataclass(frozen=True)
class Repulsion(ReferenceGuidance):
    """A push that depends on the denoised prediction alone."""

    def guide(self, predictions: Predictions, state: References, step: Step) -> Guided:
        """The denoised prediction and the push; the scale is 0 for images without a push."""
        push = self.push(step.kernel.clipped(predictions.denoised), state)
        scale = self.scale * push.flatten(1).any(1).to(push.dtype)
        return Guided(predictions.denoised + self.scale * push, scale)

    @abstractmethod
    def push(self, denoised: Tensor, references: References) -> Tensor:
        """The push of ``denoised`` (B, ...) at scale 1, (B, ...)."""
