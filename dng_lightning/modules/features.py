"""Feature extractors by name."""

from dng_lightning.errors import SettingError
from dng_lightning.evaluation import torch_fidelity
from dng_lightning.evaluation.features import ClassifierFeatures, FeatureExtractor, InceptionFeatures
from dng_lightning.judges import PretrainedClassifier
from dng_lightning.modules.judges import classifier_name, load_classifier


def load_features(features: PretrainedClassifier | str, weights: str | None = None) -> FeatureExtractor:
    """Load the feature extractor of a setting.

    Args:
        features: ``inception``; a name of torch-fidelity, such as ``dinov2-vit-b-14`` or ``clip-vit-b-32``; or a
            classifier, see ``load_classifier``.
        weights: file with the weights of Inception or CLIP; None to download them.

    Raises:
        SettingError: there is no such extractor, or its weights cannot be read.
    """
    if features == "inception":
        return InceptionFeatures(weights)
    if isinstance(features, str) and features in torch_fidelity.NAMES:
        return torch_fidelity.TorchFidelityFeatures(features, weights)
    try:
        classifier = load_classifier(features)
    except SettingError as error:
        names = ", ".join(torch_fidelity.NAMES)
        raise SettingError(f"features {features} are not classifier, inception, {names} or null: {error}") from error
    return ClassifierFeatures(classifier, classifier_name(classifier, features))
