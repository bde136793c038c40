"""Training of a small text-to-image transformer of pixels, with the networks of diffusers' ``PRXPixelPipeline``."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor, nn

from dng_lightning.errors import check_in
from dng_lightning.parametrization import Prediction
from dng_lightning.schedule import NoiseSchedule
from dng_lightning.text_to_image.optional_deps import libraries
from scripts.captioned_images import networks
from scripts.captioned_images.data import Captioned
from scripts.captioned_images.tokenizer import captions_tokenizer
from scripts.captioned_images.training import TextToImageTraining
from scripts.portraits.captions import MOST_WORDS, VOCABULARY
from scripts.portraits.data import CaptionedPortraits

LEVELS = 1000  # of the flow
LEAST = 0.05  # noise level below which errors are weighed as there, as in PRX's pipeline


class PixelTransformerModule(TextToImageTraining):
    """Trains a transformer of pixels and its text encoder together, on the straight path x_t = (1 - u) x_0 + u eps.

    The network predicts the clean image, which lies on a manifold, and its error is that of the flow that follows:
    |D - x_0|^2 / max(u, 0.05)^2 (Li & He, 2025, "Back to Basics: Let Denoising Generative Models Denoise").

    Args:
        transformer: settings of diffusers' ``PRXTransformer2DModel``, besides its channels.
        text_encoder: settings of transformers' ``CLIPTextConfig``, besides those of the tokenizer.
        caption_dropout: share of the images that are trained with the empty caption, in [0, 1].
        shift: of the noise levels, which are trained and sampled at shift t / (1 + (shift - 1) t) for even t (Esser et
            al., 2024, equation 23): what a caption says shows at much noise alone, where even levels are too few.
        optimizer: makes the optimiser from the parameters of transformer and text encoder.
        scheduler: makes the learning-rate schedule, stepped at each training step; None for a constant rate.
        compile: compile the transformer for training (needs a C++ compiler on CPUs).

    Attributes:
        net: the transformer.
        text_encoder: a ``CLIPTextModel``.
        tokenizer: of the captions' words.

    Raises:
        SettingError: the settings do not make networks, or the extra ``text-to-image`` is not installed.
    """

    net: Any  # a PRXTransformer2DModel
    learns_from = CaptionedPortraits

    def __init__(
        self,
        transformer: dict[str, Any],
        text_encoder: dict[str, Any],
        caption_dropout: float = 0.1,
        shift: float = 3.0,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.keep_hyperparameters("optimizer", "scheduler")
        check_in("[0, 1]", caption_dropout=caption_dropout)
        check_in("(0, inf)", shift=shift)
        even = torch.arange(LEVELS + 1, dtype=torch.double) / LEVELS
        u = shift * even / (1 + (shift - 1) * even)
        self.schedule, self.shift = NoiseSchedule(1 - u[1:], u[1:], timesteps=u.float()), shift
        self.prediction: Prediction = "x0"
        self.snr_gamma, self.caption_dropout = None, caption_dropout
        self.optimizer, self.scheduler, self.compile_net = optimizer, scheduler, compile
        self.tokenizer = captions_tokenizer(VOCABULARY, MOST_WORDS)
        encoder = networks.text_encoder(text_encoder, self.tokenizer)
        # CLIP's small ones leave the words of an attribute alike for thousands of steps
        nn.init.normal_(encoder.get_input_embeddings().weight)
        self.text_encoder = encoder
        self.net = networks.pixel_transformer(transformer, self.text_encoder)
        self.image_shape = CaptionedPortraits.image_shape

    def batch_losses(self, batch: Captioned, generator: Generator | None) -> tuple[Tensor, Tensor]:
        """See ``losses``."""
        return self.losses(batch.images, batch.captions, generator)

    def losses(self, images: Tensor, captions: list[str], generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Mean squared error of the flow of each image at a random level.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            captions: B of them.
            generator: source of the levels, noise and caption dropout; None for torch's global one.

        Returns:
            The errors (B,) and the levels (B,).
        """
        x_t, target, t, dropped = self.noised(images, self.caption_dropout, generator)
        texts = ["" if drop else caption for drop, caption in zip(dropped.tolist(), captions, strict=True)]
        tokens, mask = (part.to(images.device) for part in networks.masked_tokens(self.tokenizer, texts))
        embedded = self.text_encoder(tokens, attention_mask=mask).last_hidden_state
        u = self.schedule.timestep(t)
        output = self.net(x_t, u, embedded, attention_mask=mask.bool()).sample.float()
        return (output - target).square().flatten(1).mean(1) / u.clamp(min=LEAST).square(), t

    def pipeline(self) -> Any:
        """See ``TextToImageTraining.pipeline``."""
        diffusers, _ = libraries()
        return diffusers.PRXPixelPipeline(
            self.net,
            diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=LEVELS, shift=self.shift),
            self.text_encoder,
            self.tokenizer,
            default_sample_size=self.image_shape[1],
            prompt_max_tokens=self.tokenizer.model_max_length,
            noise_scale=1.0,
        )
