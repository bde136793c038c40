"""Classifiers in TorchScript files, which contain the network."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from dng_lightning.class_labels import names_of
from dng_lightning.errors import SettingError, reason
from dng_lightning.judges.base import Outputs, PretrainedClassifier
from dng_lightning.judges.class_mapping import ClassMapping
from dng_lightning.judges.preprocessing import Preprocessing


class TorchScriptClassifier(PretrainedClassifier):
    """A file written by ``torch.jit.save``.

    The features are the second of two outputs, or the output of an exported method `features`.

    Args:
        path: the file.
        class_names: a list, or a text file with one name per line.
        preprocessing: preprocessing of the images, which the file does not contain.
        classes: {class of the diffusion model: class or classes of this classifier}; None to match by name.
        outputs: kind of the first output.

    Raises:
        SettingError: the file is missing, is no TorchScript file, or cannot read the preprocessed images.
    """

    def __init__(
        self,
        path: str,
        class_names: list[str] | str,
        preprocessing: Preprocessing,
        classes: ClassMapping | None = None,
        outputs: Outputs = "logits",
    ) -> None:
        try:
            with warnings.catch_warnings(action="ignore"):  # torch deprecates TorchScript
                net = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        except Exception as error:  # a foreign file can fail in any way
            raise SettingError(
                f"{path} is no TorchScript file: {reason(error)}; write one with "
                "torch.jit.save(torch.jit.trace(network.eval(), images), path), or use ModuleClassifier"
            ) from error
        super().__init__(Path(path).stem, net, names_of(class_names), classes, preprocessing, outputs=outputs)
        self.try_out(path)

    def _run(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``PretrainedClassifier``."""
        output = self.classifier(inputs)
        if isinstance(output, tuple):
            return output
        has_features = hasattr(self.classifier, "features")  # an exported method
        return output, self.classifier.features(inputs) if has_features else None  # type: ignore[operator]
