"""Classifiers with a network of your own, given by class path."""

from torch import nn

from dng_lightning.class_labels import names_of
from dng_lightning.judges.base import PretrainedClassifier
from dng_lightning.judges.class_mapping import ClassMapping
from dng_lightning.judges.preprocessing import Preprocessing
from dng_lightning.storage import weights as files


class ModuleClassifier(PretrainedClassifier):
    """An ``nn.Module`` that returns logits, with weights from a file.

    Args:
        net: the network, by class path.
        weights: file with its state dict, `.pth` or `.safetensors`.
        class_names: a list, or a text file with one name per line.
        preprocessing: preprocessing of the images.
        classes: {class of the diffusion model: class or classes of this classifier}; None to match by name.
        head: layer whose input is the features; None to find it.

    Raises:
        SettingError: the weights cannot be read, or do not fit the network.
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
        super().__init__(type(net).__name__, net, names_of(class_names), classes, preprocessing)
        self.watch_head(head)
