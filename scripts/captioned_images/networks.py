"""Networks of diffusers and transformers for images with captions, made from a few of their settings.

Settings that follow from another part are filled in: the U-Net has the autoencoder's latents and the width of the text
encoder, and the text encoder the vocabulary of the tokenizer.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, reason
from dng_lightning.parametrization import Prediction
from dng_lightning.pretrained import diffusers_format
from dng_lightning.schedule import NoiseSchedule
from dng_lightning.text_to_image.optional_deps import libraries

Settings = Mapping[str, Any]
PREDICTION_TYPES = {ours: theirs for theirs, ours in diffusers_format.PREDICTIONS.items()}


def autoencoder(settings: Settings) -> Any:
    """Make an ``AutoencoderKL``, by default with the kinds of blocks that Stable Diffusion has.

    Raises:
        SettingError: the settings do not make one, or the extra is not installed.
    """
    usual = {**_blocks(settings, "DownEncoderBlock2D", "UpDecoderBlock2D"), "scaling_factor": 1.0}
    return _made(libraries()[0].AutoencoderKL, "an AutoencoderKL", usual | dict(settings))


def unet(settings: Settings, vae: Any, text_encoder: Any) -> Any:
    """Make a ``UNet2DConditionModel`` of the autoencoder's latents; every block attends to the text.

    Raises:
        SettingError: as ``autoencoder``.
    """
    usual = _blocks(settings, "CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
    latents, side = vae.config.latent_channels, vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
    given = {"sample_size": side, "in_channels": latents, "out_channels": latents}
    given["cross_attention_dim"] = text_encoder.config.hidden_size
    return _made(libraries()[0].UNet2DConditionModel, "a UNet2DConditionModel", usual | dict(settings), given)


def pixel_transformer(settings: Settings, text_encoder: Any) -> Any:
    """Make a ``PRXTransformer2DModel`` of pixels that attends to the text.

    Raises:
        SettingError: as ``autoencoder``.
    """
    given = {"in_channels": 3, "context_in_dim": text_encoder.config.hidden_size}
    return _made(libraries()[0].PRXTransformer2DModel, "a PRXTransformer2DModel", settings, given)


def text_encoder(settings: Settings, tokenizer: Any) -> Any:
    """Make a ``CLIPTextModel`` for the tokenizer.

    Raises:
        SettingError: as ``autoencoder``.
    """
    _, transformers = libraries()
    given = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    given |= {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}

    def make(**settings: Any) -> Any:
        if unknown := set(settings) - set(vars(transformers.CLIPTextConfig())):
            raise ValueError(f"there is no setting {sorted(unknown)[0]}")
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings))

    return _made(make, "a CLIPTextModel", settings, given)


def moments(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of images, fp32, without the scaling factor.

    Args:
        vae: an ``AutoencoderKL``.
        images: (B, C, H, W) in [-1, 1].
    """
    mean, log_variance = vae.encode(images).latent_dist.parameters.float().chunk(2, dim=1)
    return mean, (log_variance.clamp(-30, 20) / 2).exp()


def tokens(tokenizer: Any, texts: list[str]) -> Tensor:
    """The texts as numbers, int64 (B, the tokenizer's length), as diffusers' pipelines have them."""
    settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    numbers: Tensor = tokenizer(texts, **settings).input_ids
    return numbers


def masked_tokens(tokenizer: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """The texts as numbers, and where they are no padding, int64 (B, the tokenizer's length) both."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return encoded.input_ids, encoded.attention_mask


def eager(compiled: bool) -> AbstractContextManager[Any]:
    """Run infrequent calls without ``torch.compile``, which would take longer than it saves.

    Args:
        compiled: whether the network is compiled for its frequent calls.
    """
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def scheduler(schedule: NoiseSchedule, prediction: Prediction) -> Any:
    """The ``DDPMScheduler`` with these noise levels.

    Raises:
        SettingError: the schedule does not preserve the variance, as all of diffusers' do, or the extra is not
            installed.
    """
    kind = libraries()[0].DDPMScheduler
    alpha_bar = schedule.alpha**2
    if not torch.allclose(alpha_bar + schedule.sigma**2, torch.ones_like(alpha_bar)):
        raise SettingError("diffusers has no scheduler of this schedule: take one that preserves the variance")
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    plain = {"num_train_timesteps": schedule.T, "prediction_type": PREDICTION_TYPES[prediction], "clip_sample": False}
    plain |= {"timestep_spacing": "trailing", "steps_offset": 1}  # that offset has no effect; others are deprecated
    linear = {"beta_start": round(float(beta[0]), 9), "beta_end": round(float(beta[-1]), 9), "beta_schedule": "linear"}
    for levels in (linear, {"beta_schedule": "squaredcos_cap_v2"}):
        made = kind(**plain, **levels)
        if torch.allclose(made.betas.double(), beta, rtol=1e-5, atol=1e-7):  # theirs are in single precision
            return made
    return kind(**plain, trained_betas=beta.tolist())


def _blocks(settings: Settings, down: str, up: str) -> dict[str, Any]:
    """Blocks of two kinds, one of each for every resolution."""
    channels = settings.get("block_out_channels")
    levels = len(channels) if isinstance(channels, list | tuple) else 1
    return {"down_block_types": (down,) * levels, "up_block_types": (up,) * levels}


def _made(make: Any, what: str, settings: Settings, given: Settings | None = None) -> Any:
    """Call ``make`` with the settings and with those that follow from other parts; what fails becomes one line."""
    given = dict(given or {})
    if taken := set(settings) & set(given):
        raise SettingError(f"{what} gets its {sorted(taken)[0]} from another part: leave the setting out")
    try:
        return make(**{name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}, **given)
    except Exception as error:  # a library's constructor can fail in any way
        raise SettingError(f"these settings do not make {what}: {reason(error)}") from error
