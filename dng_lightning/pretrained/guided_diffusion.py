"""Models of OpenAI's improved-diffusion and guided-diffusion, loaded into diffusers' `UNet2DModel`."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from dng_lightning.class_labels import names_of
from dng_lightning.errors import SettingError, reason, require
from dng_lightning.networks.diffusers import DiffusersNetwork
from dng_lightning.parametrization import Prediction
from dng_lightning.pretrained.base import ModelParts, PretrainedModel
from dng_lightning.pretrained.diffusers_format import classes_of
from dng_lightning.schedule import LinearSchedule, NoiseSchedule
from dng_lightning.storage import weights

GROUPS = 32  # of every group norm
BLOCK = re.compile(r"(input|middle|output)_blocks?\.(?:(\d+)\.)?(\d+)\.(.+)")  # side, block, its part, layer
ATTENTION = {"norm": "group_norm", "qkv": "to_{}", "proj_out": "to_out.0"}
LAYERS = ATTENTION | {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "op": "conv",
    "conv": "conv",
}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


class GuidedDiffusionModel(PretrainedModel):
    """A `.pt` of improved-diffusion or guided-diffusion (extra ``diffusers``); a learned variance is discarded.

    The network's shape is read from the weights; the files do not contain the other settings. The 512x512 model of
    guided-diffusion is not supported: its time embedding is wider than its first block, unlike in `UNet2DModel`.

    Args:
        path: the file.
        image_size: side of the images, in pixels.
        heads: number of attention heads (`num_heads` of the training); None if ``head_channels`` is set.
        head_channels: channels of each head (`num_head_channels` of the training); None if ``heads`` is set.
        new_attention_order: `use_new_attention_order` of the training.
        schedule: noise schedule; None for the linear one with 1,000 levels.
        prediction: what the network predicts; x0 after a training with `predict_xstart`.
        class_names: class names of a class-conditional model, a list or a text file with one name per line.
        null_class: whether the last class embedding is the null class; OpenAI's models have none.
    """

    def __init__(
        self,
        path: str,
        image_size: int,
        heads: int | None = None,
        head_channels: int | None = None,
        new_attention_order: bool = False,
        schedule: NoiseSchedule | None = None,
        prediction: Prediction = "eps",
        class_names: list[str] | str | None = None,
        null_class: bool | None = False,
    ) -> None:
        if (heads is None) == (head_channels is None):
            raise SettingError(
                f"{path}: set heads or head_channels to the num_heads or num_head_channels of its training"
            )
        self.path, self.image_size, self.heads, self.head_channels = path, image_size, heads, head_channels
        self.new_attention_order, self.null_class = new_attention_order, null_class
        self.schedule: NoiseSchedule = schedule or LinearSchedule()
        self.prediction: Prediction = prediction
        self.class_names = names_of(class_names)

    def read(self) -> ModelParts:
        """See ``PretrainedModel.read``."""
        diffusers = require("diffusers", self.path, "diffusers")
        state = weights.state_dict(self.path)
        try:
            config, converted = self._config(state), self._converted(state)
        except SettingError:
            raise
        except (KeyError, IndexError, ValueError) as error:
            raise SettingError(f"{self.path} holds no U-Net of guided-diffusion: {reason(error)}") from error
        net = diffusers.UNet2DModel(**config)
        weights.fit(net, converted, self.path)
        for attention in (part for part in net.modules() if hasattr(part, "to_q")):
            width = attention.to_q.out_features
            attention.heads = self._heads(width)
            attention.scale = (width // attention.heads) ** -0.5
        classes = classes_of(config["num_class_embeds"] or 0, len(self.class_names), self.null_class, self.path)
        wrapped = DiffusersNetwork(net.eval(), *classes, config["out_channels"] == 2 * config["in_channels"])
        shape = (config["in_channels"], self.image_size, self.image_size)
        parts = (wrapped, self.schedule, self.prediction, shape, Path(self.path).parent)
        return ModelParts(*parts, clip=1.0, class_names=self.class_names)

    def _config(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """The settings of the `UNet2DModel`, from the shapes of the weights."""
        levels, blocks, updown = _layout(state)
        first = [1 + level * (blocks + 1) for level in range(levels)]
        widths = [state[f"input_blocks.{place}.0.out_layers.3.weight"].shape[0] for place in first]
        attends = [f"input_blocks.{place}.1.qkv.weight" in state for place in first]
        if state["time_embed.0.weight"].shape[1] != widths[0]:
            raise SettingError(f"{self.path}: its time embedding and its first block differ in width: not supported")
        down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if updown else ("DownBlock2D", "UpBlock2D")
        scaled = state["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * widths[0]
        return {
            "sample_size": self.image_size,
            "in_channels": state["input_blocks.0.0.weight"].shape[1],
            "out_channels": state["out.2.weight"].shape[0],
            "layers_per_block": blocks,
            "block_out_channels": widths,
            "down_block_types": ["AttnDownBlock2D" if attend else down for attend in attends],
            "up_block_types": ["AttnUpBlock2D" if attend else up for attend in reversed(attends)],
            "downsample_type": "resnet" if updown else "conv",
            "upsample_type": "resnet" if updown else "conv",
            "resnet_time_scale_shift": "scale_shift" if scaled else "default",
            "attention_head_dim": GROUPS,  # ``read`` sets the real one
            "norm_num_groups": GROUPS,
            "attn_norm_num_groups": GROUPS,
            "num_class_embeds": len(state["label_emb.weight"]) if "label_emb.weight" in state else None,
        }

    def _converted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights, renamed to those of `UNet2DModel`."""
        _, blocks, _ = _layout(state)
        found: dict[str, Tensor] = {}
        for name, weight in state.items():
            module, _, end = name.rpartition(".")
            target = f"{ENDS.get(module) or _renamed(module, blocks)}.{end}"
            if module.endswith("proj_out"):  # a convolution of width 1
                weight = weight.reshape(len(weight), *weight.shape[1:2])
            parts = zip("qkv", self._split(weight), strict=True) if module.endswith("qkv") else [("", weight)]
            found |= {target.format(part): value for part, value in parts}
        return found

    def _split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """The weights of queries, keys and values, (width, width), or their biases (width,)."""
        width = len(qkv) // 3
        groups = 1 if self.new_attention_order else self._heads(width)
        parts = qkv.reshape(groups, 3, width // groups, -1).transpose(0, 1).reshape(3, width, -1)
        return parts.squeeze(2).unbind()  # of a bias

    def _heads(self, width: int) -> int:
        return self.heads or width // (self.head_channels or width)


def _renamed(module: str, blocks: int) -> str:
    """The name in `UNet2DModel` of a layer of a block, with ``blocks`` residual blocks at each resolution."""
    match = BLOCK.fullmatch(module)
    if match is None or match[4] not in LAYERS:
        raise ValueError(f"{module} is no layer of it")
    side, place, part, layer = match[1], int(match[2] or 0), int(match[3]), match[4]
    if side == "middle":
        return f"mid_block.{('resnets.0', 'attentions.0', 'resnets.1')[part]}.{LAYERS[layer]}"
    level, block = divmod(place - 1 if side == "input" else place, blocks + 1)
    kind = f"attentions.{block}" if layer in ATTENTION else f"resnets.{block}"
    if side == "input" and block == blocks:
        kind = "downsamplers.0"
    if side == "output" and part > 0 and layer not in ATTENTION:
        kind = "upsamplers.0"
    return f"{'down' if side == 'input' else 'up'}_blocks.{level}.{kind}.{LAYERS[layer]}"


def _layout(state: dict[str, Tensor]) -> tuple[int, int, bool]:
    """Number of resolutions, residual blocks of each, and whether residual blocks change the resolution."""
    count = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("output_blocks."))
    second = [f"output_blocks.{place}.{part}" for place in range(count) for part in (1, 2)]
    resampling = [name for name in second if f"{name}.conv.weight" in state or f"{name}.in_layers.0.weight" in state]
    levels = len(resampling) + 1
    updown = bool(resampling) and f"{resampling[0]}.in_layers.0.weight" in state
    return levels, count // levels - 1, updown
