"""Training a denoising diffusion model (Ho et al., 2020), class-conditional or unconditional."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor, nn

from dng_lightning.errors import SettingError, check_in
from dng_lightning.kernel import NoiseLevel
from dng_lightning.modules.base_module import TrainedModule
from dng_lightning.networks.diffusers import LatentDecoder
from dng_lightning.networks.features import FeatureTap, features_only
from dng_lightning.parametrization import Prediction, denoised_of, network_input
from dng_lightning.pretrained import DiffusersModel, diffusers_format
from dng_lightning.pretrained.base import ModelParts
from dng_lightning.schedule import LinearSchedule, NoiseSchedule


class BaseDiffusionModule(TrainedModule, ABC):
    """Trains a denoiser at random noise levels; a subclass defines the data and the condition.

    Attributes:
        schedule: the noise schedule.
        prediction: output of the network: eps, x0, v, flow or edm.
        snr_gamma: bound of the min-SNR weights, > 0; None for no weights.
        compile_net: compile the network for training.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    snr_gamma: float | None
    compile_net: bool

    def setup(self, stage: str) -> None:
        """Take shape and classes of the images, and compile the network if set."""
        super().setup(stage)
        if self.compile_net and stage == "fit":
            self.net.compile()

    @abstractmethod
    def batch_losses(self, batch: Any, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """Error of each image of a batch, (B,), and its noise level, (B,).

        Args:
            batch: batch of the datamodule.
            generator: source of all random numbers; None for torch's global one.
        """

    def noised(self, x_0: Tensor, dropout: float, generator: Generator | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sample noise levels, noise and dropped conditions, and make the network's input and target.

        Args:
            x_0: images, or latents, (B, C, H, W).
            dropout: share of the images without condition, in [0, 1].
            generator: source of the levels, noise and dropout; None for torch's global one.

        Returns:
            x_t and the network's target, (B, C, H, W); the levels t in 1..T, (B,); and which images are without
            condition, bool (B,).
        """
        x_t, noise, t = self.schedule.noised(x_0, generator)
        dropped = torch.rand(len(x_0), device=x_0.device, generator=generator) < dropout
        return x_t, self.schedule.target(x_0, t, noise, self.prediction), t, dropped

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step of the loss, weighted by level if ``snr_gamma`` is set."""
        losses, t = self.batch_losses(batch, None)
        if self.snr_gamma is not None:
            losses = losses * self.schedule.min_snr_weight(t, self.snr_gamma, self.prediction)
        loss = losses.mean()
        self.log("train/loss", loss, prog_bar=True, batch_size=len(losses))
        return loss

    def evaluate(self, stage: str, batch: Any, generator: Generator) -> None:
        """Log the loss, also by quarter of the levels."""
        losses, t = self.batch_losses(batch, generator)
        self.log(f"{stage}/loss", losses.mean(), batch_size=len(losses), sync_dist=True, prog_bar=True)
        self.log_by_level(f"{stage}/loss_t", losses, t, self.schedule.T)


class DiffusionModule(BaseDiffusionModule):
    """Trains a class-conditional or unconditional diffusion model; its checkpoint has all that sampling needs.

    Args:
        net: network ``net(x, t, class_labels)`` with an attribute ``num_classes``: 0 if unconditional; else the label
            ``num_classes`` is the null class. ``networks.UNet``, or another by class path.
        schedule: the noise schedule; None for DDPM's linear one with 1,000 levels.
        prediction: output of the network: eps, x0, v, flow or edm.
        condition_dropout: share of the training images with the null class, in [0, 1], which train the unconditional
            prediction, the base of negative guidance.
        snr_gamma: weigh the levels by min-SNR-gamma (Hang et al., 2023, use 5); None for Ho et al.'s simple loss, which
            validation always uses.
        optimizer: makes the optimiser from the parameters.
        scheduler: makes the learning-rate schedule, stepped at each training step; None for a constant rate.
        compile: compile the network (needs a C++ compiler on CPUs); faster after the first step.

    Attributes:
        clip: bound on the denoised prediction, from a checkpoint in diffusers' format; None for none.
        decoder: makes images of the latents that the network denoises; None for a network of pixels.
    """

    clip: float | None = None

    def __init__(
        self,
        net: nn.Module,
        schedule: NoiseSchedule | None = None,
        prediction: Prediction = "eps",
        condition_dropout: float = 0.1,
        snr_gamma: float | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.keep_hyperparameters("net", "schedule", "optimizer", "scheduler")
        check_in("[0, 1]", condition_dropout=condition_dropout)
        check_in("(0, inf)", snr_gamma=snr_gamma)
        if not isinstance(getattr(net, "num_classes", None), int):
            name = type(net).__name__
            raise SettingError(f"{name} has no num_classes; wrap it, for example in networks.DiffusersNetwork")
        self.net = net.to(memory_format=torch.channels_last)
        self.schedule, self.prediction = schedule or LinearSchedule(), prediction
        self.schedule.check(prediction)
        self.condition_dropout, self.snr_gamma = condition_dropout, snr_gamma
        self.optimizer, self.scheduler, self.compile_net = optimizer, scheduler, compile
        self.taps: dict[str, FeatureTap] = {}
        self.decoder: LatentDecoder | None = None

    @classmethod
    def load(cls, name: str) -> Self:
        """Load a checkpoint for use, see ``TrainedModule.load``, or a model in diffusers' format.

        Args:
            name: see ``TrainedModule.load``; or a folder with a ``model_index.json``; or a model of the Hugging Face
                hub.

        Raises:
            SettingError: see ``TrainedModule.load``; or diffusers is not installed, or the folder has another model.
        """
        path = diffusers_format.find(name)
        if path.name != diffusers_format.INDEX:
            return super().load(name)
        return cls.of(DiffusersModel(str(path.parent)).read())

    @classmethod
    def of(cls, parts: ModelParts) -> Self:
        """A model of another library, for use; its ``class_names`` may be empty."""
        module = cls(parts.net, parts.schedule, parts.prediction)
        module.clip, module.folder = parts.clip, parts.folder
        module.net.to(memory_format=torch.contiguous_format)  # for the same bits as in diffusers
        module.image_shape, module.decoder = parts.state_shape, parts.decoder
        module.class_names = parts.class_names
        module.seen_classes = tuple(range(module.null_class))
        return module.eval().requires_grad_(False)

    @property
    def decoded_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images; ``image_shape`` is that of what the network denoises, which may be latents."""
        if self.decoder is None:
            return self.image_shape
        _, height, width = self.image_shape
        return self.decoder.channels, self.decoder.pixels * height, self.decoder.pixels * width

    def decode(self, x_0: Tensor) -> Tensor:
        """The images (B, C, H, W), about [-1, 1], of what the network denoises: of latents, or of the images itself."""
        return x_0 if self.decoder is None else self.decoder(x_0)

    @property
    def null_class(self) -> int:
        """Label of the null class; 0 for an unconditional model."""
        return int(self.net.num_classes)  # type: ignore[arg-type]  # an int, as the constructor checked

    def forward(self, x_t: Tensor, level: NoiseLevel, class_labels: Tensor | None = None) -> Tensor:
        """The denoised prediction in fp32.

        Args:
            x_t: noisy images (B, C, H, W).
            level: noise level.
            class_labels: class of each image, (B,); None for the null class.
        """
        timesteps = torch.full((len(x_t),), level.timestep, device=x_t.device)
        model_input = network_input(x_t, level.alpha, level.sigma, self.prediction)
        output = self._output(model_input, timesteps, class_labels)
        return denoised_of(output, x_t, level.alpha, level.sigma, self.prediction)

    def with_features(
        self, x_t: Tensor, level: NoiseLevel, class_labels: Tensor | None, module: str
    ) -> tuple[Tensor, Tensor]:
        """The denoised prediction, and the output of a module of the network, (B, ...).

        Args:
            x_t: noisy images (B, C, H, W).
            level: noise level.
            class_labels: class of each image, (B,); None for the null class.
            module: name of the module, see ``tap``.
        """
        tap = self.tap(module)
        return self(x_t, level, class_labels), tap.output

    def tap(self, module: str) -> FeatureTap:
        """Keep the output of a module; call it before the first use of a compiled network."""
        if module not in self.taps:
            self.taps[module] = FeatureTap(self.net, module)
        return self.taps[module]

    def features(self, x_t: Tensor, t: Tensor, module: str) -> Tensor:
        """Output of a module, (B, ...), for noisy images (B, C, H, W) at levels ``t`` (B,) with the null class."""
        model_input = network_input(x_t, *self.schedule.coefficients(t, x_t), self.prediction)
        null = torch.full((len(x_t),), self.null_class, device=x_t.device)
        return features_only(self.net, module, lambda: self._output(model_input, self.schedule.timestep(t), null))

    def _output(self, model_input: Tensor, timesteps: Tensor, class_labels: Tensor | None) -> Tensor:
        """The network's output in fp32."""
        output: Tensor = self.net(model_input.to(self.dtype), timesteps, class_labels if self.null_class else None)
        return output.float()

    def output_shape(self, image: Tensor) -> tuple[Sequence[int], Sequence[int]]:
        """See ``TrainedModule.output_shape``; for the null class, which has the greatest label."""
        t = torch.ones(1, dtype=torch.long, device=image.device)
        return self._output(image, self.schedule.timestep(t), t * self.null_class).shape, image.shape

    def losses(self, images: Tensor, labels: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Mean squared error of each image at a random noise level (Ho et al., eq. 14).

        Args:
            images: images (B, C, H, W) in [-1, 1].
            labels: class of each image, (B,).
            generator: source of the levels, noise and condition dropout; None for torch's global one.

        Returns:
            the errors (B,) and the levels (B,).
        """
        x_t, target, t, dropped = self.noised(images, self.condition_dropout, generator)
        labels = labels.masked_fill(dropped, self.null_class) if self.null_class else labels
        model_input = network_input(x_t, *self.schedule.coefficients(t, x_t), self.prediction)
        return (self._output(model_input, self.schedule.timestep(t), labels) - target).square().flatten(1).mean(1), t

    def batch_losses(self, batch: tuple[Tensor, Tensor], generator: Generator | None) -> tuple[Tensor, Tensor]:
        """See ``losses``."""
        return self.losses(*batch, generator)
