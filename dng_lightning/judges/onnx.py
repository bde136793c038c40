"""Classifiers in ONNX files, which contain the network."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dng_lightning.class_labels import names_of
from dng_lightning.errors import SettingError, reason, require
from dng_lightning.judges.base import Outputs, PretrainedClassifier
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
        outputs: Outputs = "logits",
        features: str | None = None,
    ) -> None:
        net = _Network(path, features)
        super().__init__(Path(path).stem, net, names_of(class_names), classes, preprocessing, outputs=outputs)
        self.try_out(path)

    def _run(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``PretrainedClassifier``."""
        return self.classifier(inputs)  # type: ignore[no-any-return]  # a Module's call is Any


class _Network(nn.Module):
    """The file's network."""

    def __init__(self, path: str, features: str | None) -> None:
        super().__init__()
        runtime = require("onnxruntime", f"the classifier {path}", "onnx")
        try:
            content = Path(path).read_bytes()
            self.session: Any = runtime.InferenceSession(content, providers=runtime.get_available_providers())
        except Exception as error:  # a foreign file can fail in any way
            raise SettingError(f"{path} is no ONNX file: {reason(error)}") from error
        self.input = self.session.get_inputs()[0].name
        names = [output.name for output in self.session.get_outputs()]
        if features not in (None, *names):
            raise SettingError(f"{path} has no output {features!r}: its outputs are {', '.join(names)}")
        self.outputs = names[:1] if features is None else [names[0], features]
        digest = torch.tensor(list(hashlib.sha256(content).digest()), dtype=torch.uint8)
        self.register_buffer("digest", digest)  # the fingerprint sees the weights by this hash

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> the first output and the features, on the device of ``inputs``."""
        arrays = self.session.run(self.outputs, {self.input: inputs.cpu().numpy()})
        first, *others = (torch.from_numpy(array).to(inputs.device) for array in arrays)
        return first, others[0].flatten(1) if others else None
