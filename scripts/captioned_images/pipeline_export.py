"""Turns a training of a text-to-image model into a folder that diffusers reads, and so do we."""

import copy
from pathlib import Path

import torch
from lightning import LightningModule
from torch import nn

from dng_lightning.callbacks.export import Export
from dng_lightning.callbacks.requirements import expect
from dng_lightning.text_to_image.optional_deps import quiet
from scripts.captioned_images.training import TextToImageTraining


class PipelineExport(Export):
    """As ``Export``, but what it writes is the module's pipeline in diffusers' own format.

    ``model_index.json``, with a folder for each network, for ``tokenizer`` and ``scheduler``; the weights are
    safetensors.

    Args:
        half: store the weights of all networks but the text encoder in half precision. Transformers would load halves
            of that as halves, which do not go together with the denoiser as diffusers loads it.
    """

    def write(self, module: LightningModule, folder: Path) -> None:
        """Write the networks."""
        pipeline = expect(TextToImageTraining, module, self).pipeline()  # type: ignore[type-abstract]
        for name, part in list(pipeline.components.items()):
            if not isinstance(part, nn.Module):
                continue
            network = copy.deepcopy(part).cpu().eval()
            network.to(memory_format=torch.contiguous_format)  # safetensors takes no other
            if self.half and name != "text_encoder":
                network = network.half()
            setattr(pipeline, name, network)
        with quiet():
            pipeline.save_pretrained(folder)
