"""Inception, DINOv2 and CLIP as feature extractors, from torch-fidelity."""

import os
from contextlib import redirect_stderr

import torch
from torch import Tensor

from dng_lightning.errors import SettingError, reason, require
from dng_lightning.evaluation.features import FeatureExtractor

KINDS = {"inception": "InceptionV3", "dinov2": "DinoV2", "clip": "CLIP"}
DINO, CLIP = [f"dinov2-vit-{size}-14" for size in "sbl"], [f"clip-vit-{size}" for size in ("b-32", "b-16", "l-14")]
NAMES = ("inception", *DINO, *CLIP)


class TorchFidelityFeatures(FeatureExtractor):
    """Features of a network by torch-fidelity's names and resizing; grey images are repeated to three channels.

    The 2,048 pooled features of Inception v3, whose weights and resizing are those of the original TensorFlow graph,
    define FID (Heusel et al., 2017). Fréchet distances in features of DINOv2 (Oquab et al., 2023) agree with human
    judgement better (Stein et al., 2023). CLIP: Radford et al., 2021.

    Args:
        name: one of ``NAMES``, such as `inception`, `dinov2-vit-b-14` or `clip-vit-b-32`.
        weights: torch-fidelity's weight file of Inception, or that of CLIP's authors; None to take the weights from
            torch.hub's cache, or to download them (DINOv2 with its code, from GitHub).

    Raises:
        SettingError: torch-fidelity is not installed, or the weights are missing, cannot be downloaded, or are those of
            another network.
    """

    def __init__(self, name: str, weights: str | None = None) -> None:
        kind = name.split("-")[0]
        for library in ("torch_fidelity", f"torch_fidelity.feature_extractor_{KINDS[kind].lower()}"):
            module = require(library, f"the features {name}", "fid")
        if weights is not None and kind == "dinov2":
            raise SettingError(f"{name} comes from torch.hub's cache, not from a file: set feature_weights to null")
        try:
            if kind == "inception":  # torch-fidelity would run code in the file; reading it here refuses such a file
                if weights is None:
                    torch.hub.load_state_dict_from_url(module.URL_INCEPTION_V3, map_location="cpu", weights_only=True)
                else:
                    torch.load(weights, map_location="cpu", weights_only=True)
            with open(os.devnull, "w") as nothing, redirect_stderr(nothing):  # noqa: PTH123  # no path of a user's
                layers = ["2048" if kind == "inception" else kind]
                net = getattr(module, f"FeatureExtractor{KINDS[kind]}")(name, layers, weights)
                width = net(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))[0].shape[1]
        except Exception as error:  # no connection, no such file, weights of another network
            source = f"from {weights}" if weights else "in torch.hub's cache, and they cannot be downloaded"
            raise SettingError(f"no weights of {name} {source}: {reason(error)}") from error
        super().__init__(f"inception-{width}" if kind == "inception" else name, net, width)

    def _extract(self, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        features: Tensor = self.net(pixels.expand(-1, 3, -1, -1))[0]
        return features
