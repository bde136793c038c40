"""DINOv2 and CLIP as feature extractors, from torch-fidelity."""

import os
from contextlib import redirect_stderr

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, reason, require
from dng_lightning.evaluation.features import FeatureExtractor

KINDS = {"dinov2": "DinoV2", "clip": "CLIP"}
NAMES = ("dinov2-vit-s-14", "dinov2-vit-b-14", "dinov2-vit-l-14", "clip-vit-b-32", "clip-vit-b-16", "clip-vit-l-14")


class TorchFidelityFeatures(FeatureExtractor):
    """Features of DINOv2 (Oquab et al., 2023) or CLIP (Radford et al., 2021) by torch-fidelity's names and resizing.

    Fréchet distances in DINOv2 features agree with human judgement better than FID (Stein et al., 2023). Grey images
    are repeated to three channels.

    Args:
        name: one of ``NAMES``, such as `dinov2-vit-b-14` or `clip-vit-b-32`.
        weights: weight file of CLIP's authors; None to take the weights from torch.hub's cache, or to download them
            (DINOv2 with its code, from GitHub).

    Raises:
        SettingError: torch-fidelity is not installed, or the weights are not available.
    """

    def __init__(self, name: str, weights: str | None = None) -> None:
        require("torch_fidelity", f"the features {name}", "fid")
        kind = name.split("-")[0]
        module = require(f"torch_fidelity.feature_extractor_{kind}", f"the features {name}", "fid")
        if weights is not None and kind == "dinov2":
            raise SettingError(f"{name} comes from torch.hub's cache, not from a file: set feature_weights to null")
        try:
            with open(os.devnull, "w") as nothing, redirect_stderr(nothing):  # noqa: PTH123  # no path of a user's
                net = getattr(module, f"FeatureExtractor{KINDS[kind]}")(name, [kind], weights)
                width = net(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))[0].shape[1]
        except Exception as error:  # no connection, no such file, weights of another network
            source = f"from {weights}" if weights else "in torch.hub's cache, and they cannot be downloaded"
            raise SettingError(f"no weights of {name} {source}: {reason(error)}") from error
        super().__init__(name, net, width)

    def _extract(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        features: Tensor = self.net(pixels.expand(-1, 3, -1, -1))[0]
        return features
