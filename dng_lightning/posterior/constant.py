"""A constant posterior, with which Dynamic Negative Guidance is negative prompting."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, check_in
from dng_lightning.interfaces import Predictions, Step
from dng_lightning.posterior.base import Posterior, mask_inactive, state_dtype


@dataclass(frozen=True)
class ConstantPosterior(Posterior):
    """The same probability for each forbidden condition, whatever the image.

    Attributes:
        p: probability of each condition, in (0, 1); the sum over all conditions is below 1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_in("(0, 1)", p=self.p)

    def start(self, x_T: Tensor, conditions: int) -> Tensor:
        """Log p, (B, K)."""
        if conditions * self.p >= 1:
            raise SettingError(f"p of {conditions} forbidden conditions must sum to less than 1; got {self.p} for each")
        p = torch.tensor(self.p, dtype=state_dtype(x_T.device), device=x_T.device)
        return p.log().expand(len(x_T), conditions)

    def log_prob(self, predictions: Predictions, state: Tensor, step: Step) -> Tensor:
        """The state."""
        return mask_inactive(state, predictions.active)
