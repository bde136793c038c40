"""Classifiers of timm, also from the Hugging Face hub."""

from pathlib import Path
from typing import Any

from dng_lightning.class_labels import names_of
from dng_lightning.errors import SettingError, reason, require
from dng_lightning.judges.base import PretrainedClassifier
from dng_lightning.judges.class_mapping import ClassMapping
from dng_lightning.judges.preprocessing import Preprocessing
from dng_lightning.storage import weights as files


class TimmClassifier(PretrainedClassifier):
    """A model of timm (extra ``timm``), with timm's weights or your own.

    Args:
        model: a name such as `resnet18.a1_in1k`, a folder in timm's format, or a Hugging Face model, `owner/model`.
        weights: file with a state dict, `.pth` or `.safetensors`; None for timm's weights.
        class_names: a list, or a text file with one name per line; None for the names in the model's configuration,
            or ImageNet's.
        classes: {class of the diffusion model: class or classes of this classifier}; None to match by name.
        preprocessing: preprocessing of the images; None for that of the model's configuration.
        head: layer whose input is the features; None to find it.

    Raises:
        SettingError: timm is not installed, the model is missing, or the weights cannot be read or do not fit.
    """

    def __init__(
        self,
        model: str,
        weights: str | None = None,
        class_names: list[str] | str | None = None,
        classes: ClassMapping | None = None,
        preprocessing: Preprocessing | None = None,
        head: str | None = None,
    ) -> None:
        timm = require("timm", f"the classifier {model}", "timm")
        source = f"local-dir:{model}" if Path(model).is_dir() else f"hf-hub:{model}" if "/" in model else model
        name = f"timm-{Path(model).name}"
        given = names_of(class_names)
        settings = {"num_classes": len(given)} if given and weights else {}
        try:
            net = timm.create_model(source, pretrained=weights is None, **settings)
        except Exception as error:  # no connection, no such model, a damaged file
            raise SettingError(f"timm cannot load {model}, set weights to a file: {reason(error)}") from error
        if weights is not None:
            files.fit(net, files.state_dict(weights), weights)
        config = timm.data.resolve_model_data_config(net)
        own_names = given or _names(timm, net, name)
        transform = preprocessing or timm.data.create_transform(**config, is_training=False)
        channels = None if preprocessing else config["input_size"][0]
        super().__init__(name, net, own_names, classes, transform, channels)
        self.watch_head(head)


def _names(timm: Any, net: Any, name: str) -> tuple[str, ...]:
    """Class names of the model's configuration, or of the part of ImageNet that the network was trained on."""
    config = net.pretrained_cfg
    if config.get("label_names"):
        return tuple(config["label_names"])
    subset = timm.data.infer_imagenet_subset(net)
    if not subset:
        raise SettingError(f"{name} does not name its classes: set its class_names, a list or a file")
    return tuple(timm.data.ImageNetInfo(subset).label_descriptions())
