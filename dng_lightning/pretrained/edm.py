"""Networks with EDM's interface (Karras et al., 2022), ``net(x, sigma, class_labels) -> denoised``."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from dng_lightning.class_labels import names_of
from dng_lightning.pretrained.base import ModelParts, PretrainedModel
from dng_lightning.schedule import KarrasSchedule, NoiseSchedule
from dng_lightning.storage import weights


class EDMModel(PretrainedModel):
    """A network with EDM's interface, with weights from a file; the zero label vector is its null class.

    EDM's own `.pkl` files contain code and are refused; the message says how to convert one.

    Args:
        path: state dict of the network, `.safetensors`, or `.pt` without code.
        net: the network with its preconditioning, by class path, such as EDM's `training.networks.EDMPrecond`; its
            attributes `img_resolution`, `img_channels` and `label_dim` are read.
        schedule: noise schedule; None for EDM's.
        class_names: a list, or a text file with one name per line; None for the names of the classifier, or numbers.
    """

    def __init__(
        self,
        path: str,
        net: nn.Module,
        schedule: KarrasSchedule | None = None,
        class_names: list[str] | str | None = None,
    ) -> None:
        self.path, self.net = path, net
        self.schedule: NoiseSchedule = schedule or KarrasSchedule()
        self.class_names = names_of(class_names)

    def read(self) -> ModelParts:
        """See ``PretrainedModel.read``."""
        weights.fit(self.net, weights.state_dict(self.path), self.path)
        size: int = self.net.img_resolution  # type: ignore[assignment]  # a module's is Any
        shape = (int(self.net.img_channels), size, size)  # type: ignore[arg-type]  # likewise
        net = _Denoiser(self.net, self.schedule)
        return ModelParts(net, self.schedule, "x0", shape, Path(self.path).parent, class_names=self.class_names)


class _Denoiser(nn.Module):
    """The network with the schedule's timesteps and integer class labels as inputs."""

    def __init__(self, net: nn.Module, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.net, self.num_classes = net, int(net.label_dim or 0)  # type: ignore[arg-type]  # a module's is Any
        self.register_buffer("sigmas", schedule.sigma.float())

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        sigmas: Tensor = self.sigmas  # type: ignore[assignment]  # a buffer
        labels = None
        if self.num_classes:
            numbers = torch.full_like(t, self.num_classes) if class_labels is None else class_labels
            labels = functional.one_hot(numbers.long(), self.num_classes + 1)[:, :-1].to(x.dtype)
        denoised: Tensor = self.net(x, sigmas[t.long() + 1], labels)
        return denoised
