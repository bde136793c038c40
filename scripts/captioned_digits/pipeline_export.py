"""Turns a training of a text-to-image model into a folder that diffusers reads, and so do we."""

import copy
from pathlib import Path

import torch
from lightning import LightningModule
from torch import nn

from dng_lightning.callbacks.export import Export
from dng_lightning.callbacks.requirements import expect
from dng_lightning.text_to_image.optional_deps import quiet
from scripts.captioned_digits.training import TextToImageModule


class PipelineExport(Export):
    """As ``Export``, but what it writes is a ``StableDiffusionPipeline`` in diffusers' own format.

    ``model_index.json``, with ``unet``, ``vae``, ``text_encoder``, ``tokenizer`` and ``scheduler``; the
    weights are safetensors.

    Args:
        half: store the weights of U-Net and autoencoder in half precision. Those of the text encoder stay as they are:
            transformers would load halves as halves, which do not go together with the U-Net as diffusers loads it.
    """

    def write(self, module: LightningModule, folder: Path) -> None:
        """Write the networks."""
        pipeline = expect(TextToImageModule, module, self).pipeline()
        for name in ("unet", "vae", "text_encoder"):
            network: nn.Module = copy.deepcopy(getattr(pipeline, name)).cpu().eval()
            network.to(memory_format=torch.contiguous_format)  # safetensors takes no other
            if self.half and name != "text_encoder":
                network = network.half()
            setattr(pipeline, name, network)
        with quiet():
            pipeline.save_pretrained(folder)
