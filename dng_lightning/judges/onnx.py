"""Classifiers in ONNX files, which contain the network."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dng_lightning.class_labels import names_of
from dng_lightning.errors import SettingError, reason, require
from dng_lightning.judges.base import PretrainedClassifier
from dng_lightning.judges.class_mapping import ClassMapping
from dng_lightning.judges.preprocessing import Preprocessing


class ONNXClassifier(PretrainedClassifier):
    """An ONNX file (extra ``onnx``); runs on the GPU if the installed onnxruntime supports it, else on the CPU.

    Args:
        path: the file; its first output is (B, classes).
        class_names: a list, or a text file with one name per line.
        preprocessing: preprocessing of the images, which the file does not contain.
        classes: {class of the diffusion model: class or classes of this classifier}; None to match by name.
        outputs: kind of the first output.
        features: name of the output with the features; None for no features.

    Raises:
        SettingError: onnxruntime is not installed, the file is missing or no ONNX file, or the output is missing.
    """

    def __init__(
        self,
        path: str,
        class_names: list[str] | str,
        preprocessing: Preprocessing,
        classes: ClassMapping | None = None,
        outputs: Literal["logits", "probabilities"] = "logits",
        features: str | None = None,
    ) -> None:
        network, name = _Network(path), Path(path).stem
        super().__init__(name, network, names_of(class_names, name), classes, preprocessing)
        self.outputs, self.features_output = outputs, features
        if features is not None:
            if features not in network.widths:
                raise SettingError(f"{path} has no output {features!r}: its outputs are {', '.join(network.widths)}")
            width = network.widths[features]
            if not isinstance(width, int):
                raise SettingError(f"{path} does not say how wide its output {features!r} is: export it with its shape")
            self.num_features = width

    def _run(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``PretrainedClassifier``."""
        found = self.classifier(inputs)
        logits = found[next(iter(found))]
        features = found[self.features_output].flatten(1) if self.features_output else None
        return logits.log() if self.outputs == "probabilities" else logits, features


class _Network(nn.Module):
    """The file's network: images -> its outputs by name."""

    def __init__(self, path: str) -> None:
        super().__init__()
        runtime = require("onnxruntime", f"the classifier {path}", "onnx")
        try:
            content = Path(path).read_bytes()
            self.session: Any = runtime.InferenceSession(content, providers=runtime.get_available_providers())
        except Exception as error:  # a foreign file can fail in any way
            raise SettingError(f"{path} is no ONNX file: {reason(error)}") from error
        self.input = self.session.get_inputs()[0].name
        self.widths = {output.name: output.shape[-1] for output in self.session.get_outputs()}
        digest = torch.tensor(list(hashlib.sha256(content).digest()), dtype=torch.uint8)
        self.register_buffer("digest", digest)  # the fingerprint sees the weights by this hash

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> the outputs, on the device of ``inputs``."""
        arrays = self.session.run(list(self.widths), {self.input: inputs.cpu().numpy()})
        tensors = (torch.from_numpy(array).to(inputs.device) for array in arrays)
        return dict(zip(self.widths, tensors, strict=True))
