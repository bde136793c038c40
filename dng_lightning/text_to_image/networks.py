"""Networks of diffusers' and transformers' for pictures with captions, made from a few settings of theirs.

What one part must know of another is filled in: a U-Net's latents are the autoencoder's, its text is as wide as the
text encoder's, and that one reads the captions' own tokenizer.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dng_lightning import diffusers_format
from dng_lightning.errors import SettingError, reason
from dng_lightning.parametrization import Prediction
from dng_lightning.schedule import NoiseSchedule
from dng_lightning.text_to_image.optional_deps import libraries
from dng_lightning.text_to_image.tokenizer import LENGTH

Settings = Mapping[str, Any]
PREDICTION_TYPES = {ours: theirs for theirs, ours in diffusers_format.PREDICTIONS.items()}


def autoencoder(settings: Settings) -> Any:
    """Make an ``AutoencoderKL``; the kinds of its blocks are those that Stable Diffusion's has, unless told otherwise.

    Raises:
        SettingError: they do not make one, or the extra is not installed.
    """
    levels = _levels(settings)
    usual = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "scaling_factor": 1.0,
    }
    return _made(libraries().AutoencoderKL, "an AutoencoderKL", usual | dict(settings))


def unet(settings: Settings, vae: Any, text_encoder: Any) -> Any:
    """Make a ``UNet2DConditionModel`` of the autoencoder's latents; every block attends to the text.

    Raises:
        SettingError: as ``autoencoder``.
    """
    levels = _levels(settings)
    side = vae.config.sample_size // 2 ** (len(vae.config.block_out_channels) - 1)
    usual = {
        "down_block_types": ("CrossAttnDownBlock2D",) * levels,
        "up_block_types": ("CrossAttnUpBlock2D",) * levels,
    }
    told = {
        "sample_size": side,
        "in_channels": vae.config.latent_channels,
        "out_channels": vae.config.latent_channels,
        "cross_attention_dim": text_encoder.config.hidden_size,
    }
    return _made(libraries().UNet2DConditionModel, "a UNet2DConditionModel", usual | dict(settings), told)


def text_encoder(settings: Settings, tokenizer: Any) -> Any:
    """Make a ``CLIPTextModel`` that reads what the tokenizer writes.

    Raises:
        SettingError: as ``autoencoder``.
    """
    libraries()
    import transformers

    told = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }

    def make(**settings: Any) -> Any:
        if unknown := set(settings) - set(vars(transformers.CLIPTextConfig())):
            raise ValueError(f"there is no setting {sorted(unknown)[0]}")
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings))

    return _made(make, "a CLIPTextModel", settings, told)


def moments(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of images, fp32, without the scaling factor.

    Args:
        vae: an ``AutoencoderKL``.
        images: (B, C, H, W) in [-1, 1].
    """
    mean, log_variance = vae.encode(images).latent_dist.parameters.float().chunk(2, dim=1)
    return mean, (log_variance.clamp(-30, 20) / 2).exp()


def tokens(tokenizer: Any, texts: list[str]) -> Tensor:
    """The texts as numbers, int64 (B, LENGTH), as a ``StableDiffusionPipeline`` has them read."""
    read = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    numbers: Tensor = read.input_ids
    return numbers


def eager(compiled: bool) -> AbstractContextManager[Any]:
    """Without compiling for what is done but now and then, which would take longer than it saves.

    Args:
        compiled: whether anything is compiled at all.
    """
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def scheduler(schedule: NoiseSchedule, prediction: Prediction) -> Any:
    """The ``DDPMScheduler`` with these noise levels, which walks our chain.

    Raises:
        SettingError: the schedule does not preserve the variance, as all of theirs do, or the extra is not installed.
    """
    kind = libraries().DDPMScheduler
    alpha_bar = schedule.alpha**2
    if not torch.allclose(alpha_bar + schedule.sigma**2, torch.ones_like(alpha_bar)):
        raise SettingError("diffusers has no scheduler of this schedule: take one that preserves the variance")
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]
    plain = {
        "num_train_timesteps": schedule.T,
        "prediction_type": PREDICTION_TYPES[prediction],
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # of no account for that spacing, but any other is called outdated
        "clip_sample": False,
    }
    linear = {"beta_start": round(float(beta[0]), 9), "beta_end": round(float(beta[-1]), 9), "beta_schedule": "linear"}
    for levels in (linear, {"beta_schedule": "squaredcos_cap_v2"}):
        made = kind(**plain, **levels)
        if torch.allclose(made.betas.double(), beta, rtol=1e-5, atol=1e-7):  # theirs are in single precision
            return made
    return kind(**plain, trained_betas=beta.tolist())


def _levels(settings: Settings) -> int:
    """How many resolutions there are; one if that is not said, or not as it should be."""
    channels = settings.get("block_out_channels")
    return len(channels) if isinstance(channels, list | tuple) else 1


def _made(make: Any, what: str, settings: Settings, told: Settings | None = None) -> Any:
    """What ``make`` makes of the settings and of what follows from other parts."""
    told = dict(told or {})
    if taken := set(settings) & set(told):
        raise SettingError(f"{what} gets its {sorted(taken)[0]} from the parts beside it: leave the setting out")
    with _clear(what):
        return make(**{name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}, **told)


@contextmanager
def _clear(what: str) -> Iterator[None]:
    """Turn whatever goes wrong while a library makes ``what`` into one line."""
    try:
        yield
    except Exception as error:  # it can fail in any way
        raise SettingError(f"these settings do not make {what}: {reason(error)}") from error
