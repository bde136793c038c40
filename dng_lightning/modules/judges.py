"""Loads classifiers and feature extractors by name: checkpoints of the package, and those of other libraries."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from torchvision import models

from dng_lightning.errors import SettingError
from dng_lightning.evaluation import torch_fidelity
from dng_lightning.evaluation.features import ClassifierFeatures, FeatureExtractor
from dng_lightning.judges import PretrainedClassifier, TimmClassifier, TorchvisionClassifier, TransformersClassifier
from dng_lightning.modules.classifier import ClassifierModule
from dng_lightning.storage import resources
from dng_lightning.storage.files import check_is_checkpoint
from dng_lightning.storage.safe_checkpoint import is_own

AnyClassifier = ClassifierModule | PretrainedClassifier

NEEDS_SETTINGS = {
    ".onnx": "ONNXClassifier",
    ".pt": "TorchScriptClassifier",
    ".pth": "ModuleClassifier",
    ".safetensors": "ModuleClassifier",
    ".torchscript": "TorchScriptClassifier",
    ".ts": "TorchScriptClassifier",
}


def load_classifier(given: PretrainedClassifier | str) -> AnyClassifier:
    """Load the classifier of a setting.

    Args:
        given: a classifier of another library; the name of a checkpoint, see ``ClassifierModule.load``; a folder in
            the format of transformers or timm; a name of torchvision (``resnet50``) or of timm
            (``timm/resnet18.a1_in1k``); or a model of the Hugging Face hub, ``owner/model``. Local files take
            precedence.

    Raises:
        SettingError: there is no such classifier, it cannot be used, or it needs more settings than its name.
    """
    if isinstance(given, PretrainedClassifier):
        return given
    path = Path(given)
    if path.is_file() and path.suffix in NEEDS_SETTINGS and not is_own(path):
        check_is_checkpoint(path)
        kind = NEEDS_SETTINGS[path.suffix]
        raise SettingError(
            f"{given} does not say its classes and preprocessing: name it by class_path {kind} with class_names and "
            "preprocessing (docs/how-to/your-judge.md)"
        )
    if (config := path / "config.json").is_file():
        is_timm = "pretrained_cfg" in json.loads(config.read_text())
        return TimmClassifier(given) if is_timm else TransformersClassifier(given)
    try:
        resources.checkpoint(given)
    except SettingError as error:
        if given in models.list_models(module=models):
            return TorchvisionClassifier(given)
        if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", given) or given.endswith(".ckpt") or path.parent.is_dir():
            raise SettingError(f"{error}. Nor is it a classifier of torchvision, timm/NAME or OWNER/MODEL") from error
        owner, name = given.split("/")
        return TimmClassifier(name) if owner == "timm" else TransformersClassifier(given)
    return ClassifierModule.load(given)


def load_features(features: PretrainedClassifier | str, weights: str | None = None) -> FeatureExtractor:
    """Load the feature extractor of a setting.

    Args:
        features: ``inception``; a name of torch-fidelity, such as ``dinov2-vit-b-14`` or ``clip-vit-b-32``; or a
            classifier, see ``load_classifier``.
        weights: file with the weights of Inception or CLIP; None to download them.

    Raises:
        SettingError: there is no such extractor, or its weights cannot be read.
    """
    if isinstance(features, str) and features in torch_fidelity.NAMES:
        return torch_fidelity.TorchFidelityFeatures(features, weights)
    try:
        return ClassifierFeatures(load_classifier(features))
    except SettingError as error:
        names = ", ".join(torch_fidelity.NAMES)
        raise SettingError(f"features {features} are not classifier, {names} or null: {error}") from error


def sort_into(classifier: AnyClassifier, class_names: Sequence[str], image_shape: Sequence[int]) -> None:
    """Map the classes of another library's classifier to these classes; no effect on a ``ClassifierModule``.

    Raises:
        SettingError: the classifier has other classes, or takes other images.
    """
    if isinstance(classifier, PretrainedClassifier):
        classifier.sort_into(class_names, image_shape)
