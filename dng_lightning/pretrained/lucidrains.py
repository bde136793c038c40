"""Models of denoising-diffusion-pytorch (lucidrains): the `model-N.pt` files of its Trainer."""

from pathlib import Path

import torch
from torch import Tensor, nn

from dng_lightning.errors import SettingError, reason, require
from dng_lightning.parametrization import Prediction
from dng_lightning.pretrained.base import ModelParts, PretrainedModel
from dng_lightning.schedule import NoiseSchedule
from dng_lightning.storage import weights


class LucidrainsModel(PretrainedModel):
    """An unconditional `Unet` of `GaussianDiffusion` (extra ``lucidrains``).

    The network's widths, the schedule and the prediction are read from the file.

    Args:
        path: the file.
        image_size: side of the images, or [height, width], in pixels; the file does not contain it.
        ema: use the EMA weights.
    """

    def __init__(self, path: str, image_size: int | list[int], ema: bool = True) -> None:
        self.path, self.image_size, self.ema = path, image_size, ema

    def read(self) -> ModelParts:
        """See ``PretrainedModel.read``."""
        library = require("denoising_diffusion_pytorch", self.path, "lucidrains")
        content = weights.read(self.path)
        state = content.get("ema" if self.ema else "model")
        prefix = "ema_model." if self.ema else ""
        if not isinstance(state, dict) or f"{prefix}alphas_cumprod" not in state:
            raise SettingError(f"{self.path} is no model-N.pt of denoising-diffusion-pytorch's Trainer")
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        own = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        try:
            net = library.Unet(**_settings(own))
        except Exception as error:  # the network of another version
            raise SettingError(f"{self.path} holds no supported unconditional Unet: {reason(error)}") from error
        weights.fit(net, own, self.path)
        alpha_bar = state["alphas_cumprod"].double()
        sides = [self.image_size] * 2 if isinstance(self.image_size, int) else self.image_size
        schedule = NoiseSchedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
        shape = (net.channels, sides[0], sides[1])
        prediction = _prediction(state["loss_weight"].double(), alpha_bar, self.path)
        return ModelParts(_Unconditional(net), schedule, prediction, shape, Path(self.path).parent, clip=1.0)


class _Unconditional(nn.Module):
    num_classes = 0

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        output: Tensor = self.net(x, t)
        return output


def _settings(state: dict[str, Tensor]) -> dict[str, object]:
    """Arguments of `Unet`, from the shapes of the weights."""
    if "classes_emb.weight" in state:
        raise SettingError("it is class-conditional")
    dim = state["time_mlp.3.weight"].shape[0] // 4
    stages = sum(name.startswith("downs.") and name.endswith(".2.mem_kv") for name in state)
    last = stages - 1
    outputs = [state[f"downs.{stage}.3.{'weight' if stage == last else '1.weight'}"] for stage in range(stages)]
    channels = state["final_conv.weight"].shape[0]
    if state["init_conv.weight"].shape[1] != channels:
        raise SettingError("it has self-conditioning or predicts a variance")
    full = [f"downs.{stage}.2.to_out.weight" in state for stage in range(stages)]
    heads = [state[f"downs.{stage}.2.mem_kv"].shape[1] for stage in range(stages)]
    widths = [state[f"downs.{stage}.2.to_qkv.weight"].shape[0] // 3 for stage in range(stages)]
    return {
        "dim": dim,
        "init_dim": state["init_conv.weight"].shape[0],
        "dim_mults": tuple(weight.shape[0] // dim for weight in outputs),
        "channels": channels,
        "full_attn": tuple(full),
        "attn_heads": tuple(heads),
        "attn_dim_head": tuple(width // head for width, head in zip(widths, heads, strict=True)),
    }


def _prediction(loss_weight: Tensor, alpha_bar: Tensor, path: str) -> Prediction:
    """The prediction, inferred from `loss_weight`: all have weight min(SNR, gamma) on the error of x_0."""
    snr = alpha_bar / (1 - alpha_bar)
    kinds: dict[Prediction, Tensor] = {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}
    for prediction, factor in kinds.items():
        weight = loss_weight * factor
        if torch.allclose(weight, snr.clamp(max=float(weight.max())), rtol=1e-3):
            return prediction
    raise SettingError(f"{path} does not determine what its network predicts")
