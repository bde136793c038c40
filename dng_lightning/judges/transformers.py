"""Image classifiers of transformers, from a folder or the Hugging Face hub."""

from pathlib import Path
from typing import Any

from torch import Tensor

from dng_lightning.class_labels import names_of
from dng_lightning.errors import SettingError, reason, require
from dng_lightning.judges.base import PretrainedClassifier
from dng_lightning.judges.class_mapping import ClassMapping


class TransformersClassifier(PretrainedClassifier):
    """A model of transformers' `AutoModelForImageClassification` (extra ``transformers``), with its image processor.

    Args:
        model: a folder, or a Hugging Face model, `owner/model`, which is downloaded if the cache lacks it.
        revision: branch, tag or commit on the hub.
        class_names: a list, or a text file with one name per line; None for the names in the model's configuration.
        classes: {class of the diffusion model: class or classes of this classifier}; None to match by name.
        head: layer whose input is the features; None to find it.

    Raises:
        SettingError: transformers is not installed, or the model is missing or no image classifier.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        class_names: list[str] | str | None = None,
        classes: ClassMapping | None = None,
        head: str | None = None,
    ) -> None:
        kinds = ("AutoModelForImageClassification", "AutoImageProcessor")
        net, processor = load(model, revision, "image classifier", *kinds)
        labels = net.config.id2label
        own_names = names_of(class_names) or [labels[label] for label in sorted(labels)]
        channels = getattr(net.config, "num_channels", 3)
        super().__init__(f"transformers-{Path(model).name}", net, own_names, classes, Processor(processor), channels)
        self.watch_head(head)


def load(model: str, revision: str | None, what: str, *kinds: str) -> list[Any]:
    """Load the parts of a model of transformers.

    Args:
        model: a folder, or a Hugging Face model, `owner/model`.
        revision: branch, tag or commit on the hub.
        what: what the model is, for the message.
        kinds: classes of transformers, one for each part.

    Raises:
        SettingError: transformers is not installed, or a part is missing.
    """
    transformers = require("transformers", f"the classifier {model}", "transformers")
    try:
        return [getattr(transformers, kind).from_pretrained(model, revision=revision or "main") for kind in kinds]
    except Exception as error:  # a foreign folder can fail in any way
        raise SettingError(f"{model} is no {what} of transformers: {reason(error)}") from error


class Processor:
    """Applies an image processor, which reads pixels in 0..255, to a batch in [0, 1]."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __repr__(self) -> str:
        return repr(self.processor)

    def __call__(self, x: Tensor) -> Tensor:
        """The network's input, of images (B, C, H, W) in [0, 1]."""
        pixels: Tensor = self.processor(images=list(255 * x), return_tensors="pt")["pixel_values"]
        return pixels.to(x.device)
