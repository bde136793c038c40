"""The ways in which ``dng test`` draws its seeds."""

import json
from dataclasses import dataclass
from typing import Any

from dng_lightning.guidance import Guidance
from dng_lightning.guidance.naming import named, scale_of, settings


@dataclass(frozen=True)
class Pass:
    """One way in which ``dng test`` draws its seeds.

    Attributes:
        method: what it is called.
        guidance: how the images are guided.
        retrained: draw from the model that never saw the forbidden classes.
        checkpoint: name of the network that it needs besides those that all passes use, None for none.
        observer: name of the classifier that looks at its images on the way, None for the one that labels them.
    """

    method: str
    guidance: Guidance
    retrained: bool = False
    checkpoint: str | None = None
    observer: str | None = None

    @property
    def scale(self) -> float | None:
        """The guidance's scale; None where it has none, and for a reference."""
        return scale_of(self.guidance) if self._is_method else None

    @property
    def label(self) -> str:
        """The method and its scale."""
        return self.method if self.scale is None else f"{self.method} {self.scale}"

    @property
    def settings(self) -> str:
        """The guidance's full configuration, or the reference's name, and its own networks, as JSON."""
        own: dict[str, Any] = json.loads(settings(self.guidance)) if self._is_method else {"class": self.method}
        networks = {"checkpoint": self.checkpoint, "observer": self.observer}
        return json.dumps(own | {key: name for key, name in networks.items() if name})

    @property
    def _is_method(self) -> bool:
        return self.method == named(self.guidance)
