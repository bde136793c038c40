"""Models of denoising-diffusion-pytorch (lucidrains): the `model-N.pt` files of its Trainer."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dng_lightning.class_labels import names_of
from dng_lightning.errors import SettingError, reason, require
from dng_lightning.parametrization import Prediction
from dng_lightning.pretrained.base import ModelParts, PretrainedModel
from dng_lightning.schedule import NoiseSchedule
from dng_lightning.storage import weights


class LucidrainsModel(PretrainedModel):
    """A `Unet` of `GaussianDiffusion`, or the class-conditional one of `classifier_free_guidance` (``lucidrains``).

    The network's widths and classes, the schedule and the prediction are read from the file.

    Args:
        path: the file.
        image_size: side of the images, or [height, width], in pixels; the file does not contain it.
        ema: use the EMA weights.
        attn_heads: heads of a class-conditional network's middle attention; the file does not contain it.
        class_names: class names, a list or a text file with one name per line; None for those of the classifier, or
            numbers.
    """

    def __init__(
        self,
        path: str,
        image_size: int | list[int],
        ema: bool = True,
        attn_heads: int = 4,
        class_names: list[str] | str | None = None,
    ) -> None:
        self.path, self.image_size, self.ema, self.attn_heads = path, image_size, ema, attn_heads
        self.class_names = names_of(class_names)

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
            if "classes_emb.weight" in own:
                kinds = importlib.import_module("denoising_diffusion_pytorch.classifier_free_guidance")
                net = kinds.Unet(**_class_conditional(own, self.attn_heads))
            else:
                net = library.Unet(**_settings(own))
        except Exception as error:  # the network of another version
            raise SettingError(f"{self.path} holds no supported Unet: {reason(error)}") from error
        weights.fit(net, own, self.path)
        wrapped = _Network(net)
        if self.class_names and len(self.class_names) != wrapped.num_classes:
            raise SettingError(f"{self.path} has {wrapped.num_classes} classes, not {len(self.class_names)}")
        alpha_bar = state["alphas_cumprod"].double()
        sides = [self.image_size] * 2 if isinstance(self.image_size, int) else self.image_size
        schedule = NoiseSchedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
        shape = (net.channels, sides[0], sides[1])
        prediction = _prediction(state["loss_weight"].double(), alpha_bar, self.path)
        folder, names = Path(self.path).parent, self.class_names
        return ModelParts(wrapped, schedule, prediction, shape, folder, clip=1.0, class_names=names)


class _Network(nn.Module):
    """Either network; the label after the last class is the null class."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.num_classes = net, net.classes_emb.num_embeddings if hasattr(net, "classes_emb") else 0

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        settings: dict[str, Any] = {}
        if class_labels is not None:
            kept = class_labels < self.num_classes
            settings = {"classes": class_labels.masked_fill(~kept, 0), "cond_drop_prob": 0.0, "cond_keep_mask": kept}
        output: Tensor = self.net(x, t, **settings)
        return output


def _settings(state: dict[str, Tensor]) -> dict[str, object]:
    """Arguments of `Unet`, from the shapes of the weights."""
    dim = state["time_mlp.3.weight"].shape[0] // 4
    stages = sum(name.startswith("downs.") and name.endswith(".2.mem_kv") for name in state)
    last = stages - 1
    outputs = [state[f"downs.{stage}.3.{'weight' if stage == last else '1.weight'}"] for stage in range(stages)]
    full = [f"downs.{stage}.2.to_out.weight" in state for stage in range(stages)]
    heads = [state[f"downs.{stage}.2.mem_kv"].shape[1] for stage in range(stages)]
    widths = [state[f"downs.{stage}.2.to_qkv.weight"].shape[0] // 3 for stage in range(stages)]
    return {
        **_widths(state, dim, outputs),
        "full_attn": tuple(full),
        "attn_heads": tuple(heads),
        "attn_dim_head": tuple(width // head for width, head in zip(widths, heads, strict=True)),
    }


def _class_conditional(state: dict[str, Tensor], heads: int) -> dict[str, object]:
    """Arguments of the `Unet` of `classifier_free_guidance`, from the shapes of the weights."""
    dim, width = state["classes_emb.weight"].shape[1], state["mid_attn.fn.fn.to_qkv.weight"].shape[0] // 3
    if width % heads:
        raise SettingError(f"attn_heads {heads} does not divide the width {width} of its attention")
    outputs = [state[f"downs.{stage}.3.weight"] for stage in range(len(state)) if f"downs.{stage}.3.weight" in state]
    classes = state["classes_emb.weight"].shape[0]
    return _widths(state, dim, outputs) | {"num_classes": classes, "attn_heads": heads, "attn_dim_head": width // heads}


def _widths(state: dict[str, Tensor], dim: int, outputs: Sequence[Tensor]) -> dict[str, object]:
    """Arguments that both networks have; ``outputs`` are the last weights of each stage."""
    channels = state["final_conv.weight"].shape[0]
    if state["init_conv.weight"].shape[1] != channels:
        raise SettingError("it has self-conditioning or predicts a variance")
    mults = tuple(weight.shape[0] // dim for weight in outputs)
    return {"dim": dim, "init_dim": state["init_conv.weight"].shape[0], "dim_mults": mults, "channels": channels}


def _prediction(loss_weight: Tensor, alpha_bar: Tensor, path: str) -> Prediction:
    """The prediction, inferred from `loss_weight`: all have weight min(SNR, gamma) on the error of x_0."""
    snr = alpha_bar / (1 - alpha_bar)
    kinds: dict[Prediction, Tensor] = {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}
    for prediction, factor in kinds.items():
        weight = loss_weight * factor
        if torch.allclose(weight, snr.clamp(max=float(weight.max())), rtol=1e-3):
            return prediction
    raise SettingError(f"{path} does not determine what its network predicts")
