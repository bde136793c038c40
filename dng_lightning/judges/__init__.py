"""Judges from other libraries: classifiers of clean images that were not trained with this package."""

from dng_lightning.judges.base import PretrainedClassifier
from dng_lightning.judges.module import ModuleClassifier
from dng_lightning.judges.onnx import ONNXClassifier
from dng_lightning.judges.preprocessing import Preprocessing
from dng_lightning.judges.timm import TimmClassifier
from dng_lightning.judges.torchscript import TorchScriptClassifier
from dng_lightning.judges.torchvision import TorchvisionClassifier
from dng_lightning.judges.transformers import TransformersClassifier
from dng_lightning.judges.zero_shot import ZeroShotClassifier

__all__ = [
    "ModuleClassifier",
    "ONNXClassifier",
    "Preprocessing",
    "PretrainedClassifier",
    "TimmClassifier",
    "TorchScriptClassifier",
    "TorchvisionClassifier",
    "TransformersClassifier",
    "ZeroShotClassifier",
]
