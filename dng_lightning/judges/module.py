"""Classifiers that are a network of your own, by class path."""

from torch import nn

from dng_lightning.class_labels import names_of
from dng_lightning.judges.base import PretrainedClassifier
from dng_lightning.judges.class_mapping import ClassMapping
from dng_lightning.judges.preprocessing import Preprocessing
from dng_lightning.storage import weights as files


class ModuleClassifier(PretrainedClassifier):
    """Any ``nn.Module`` that gives logits, with the weights of a file.

    Args:
        net: the network, by class path.
        weights: a file with its state dict, `.pth` or `.safetensors`.
        class_names: a list, or a text file with one a line.
        preprocessing: what the network is shown.
        classes: {class of the diffusion model: class or classes of this one}; None to go by names alone.
        head: the layer whose input are the features; None to find it.

    Raises:
        SettingError: the weights cannot be had, or are of another network.
    """

    def __init__(
        self,
        net: nn.Module,
        weights: str,
        class_names: list[str] | str,
        preprocessing: Preprocessing,
        classes: ClassMapping | None = None,
        head: str | None = None,
    ) -> None:
        files.fit(net, files.state_dict(weights), weights)
        name = type(net).__name__
        super().__init__(name, net, names_of(class_names, name), classes, preprocessing, preprocessing.channels)
        self.watch_head(head)
