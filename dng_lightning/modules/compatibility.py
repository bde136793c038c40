"""Checks that checkpoints fit together, before sampling starts."""

from collections.abc import Sequence

from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info

from dng_lightning.data.images import MNIST
from dng_lightning.errors import SettingError
from dng_lightning.evaluation.features import fingerprint
from dng_lightning.guidance import Guidance
from dng_lightning.guidance.serialization import display_name
from dng_lightning.judges import PretrainedClassifier
from dng_lightning.modules.base_module import TrainedModule
from dng_lightning.modules.diffusion import DiffusionModule
from dng_lightning.modules.probe import ProbeModule
from dng_lightning.storage import resources

DIFFERENCES = {
    "class_names": "other classes",
    "seen_classes": "other classes in its training",
    "image_shape": "images of another shape",
    "schedule": "another noise schedule",
}


def name_classes(
    model: DiffusionModule, others: Sequence[TrainedModule | PretrainedClassifier], name: str, needed: bool
) -> None:
    """Name the classes of another library's model like those of its classifier or negative checkpoint.

    Without such a network, the names of a class-conditional model are its labels.

    Args:
        model: model, which may lack class names.
        others: networks that may have class names.
        name: name of the model, for the message.
        needed: whether the sampling needs class names.

    Raises:
        SettingError: class names are needed, and no network has any.
    """
    if model.class_names:
        return
    count = model.null_class  # 0 for an unconditional model
    named = (other.class_names for other in others if other.class_names and count in (0, len(other.class_names)))
    known = next(named, tuple(map(str, range(count))))
    if needed and not known:
        raise SettingError(f"{name} does not name its classes: name a classifier that does, or set forbidden to []")
    model.class_names, model.seen_classes = known, tuple(range(len(known)))


def check_same(name: str, other: TrainedModule, model_name: str, model: LightningModule, *attributes: str) -> None:
    """Check that a checkpoint agrees with the model in these ``attributes``.

    Raises:
        SettingError: an attribute differs.
    """
    for attribute in attributes:
        theirs, ours = getattr(other, attribute), getattr(model, attribute)
        same = theirs == ours if attribute != "schedule" else theirs is not None and theirs.agrees(ours)
        if not same:
            sizes = f" ({theirs}, not {ours})" if attribute == "image_shape" else ""
            raise SettingError(f"{name} has {DIFFERENCES[attribute]} than {model_name}{sizes}: name another")


def check_negatives(
    negatives: Sequence[DiffusionModule],
    model: DiffusionModule,
    name: str,
    forbidden: Sequence[int],
    guidances: Sequence[Guidance],
) -> None:
    """Check that there is one single-class model for each forbidden class, or a class-conditional model.

    Raises:
        SettingError: a model is missing, or has other classes, images or noise levels.
    """
    if negatives and len(negatives) != len(forbidden):
        raise SettingError(f"{len(forbidden)} forbidden classes need as many negative_checkpoints")
    needing = [display_name(guidance) for guidance in guidances if guidance.needs().negatives]
    if needing and not negatives and not model.null_class:
        raise SettingError(
            f"{name} is unconditional: name negative_checkpoints for the forbidden classes, or another guidance than "
            f"{needing[0]}, which needs their predictions"
        )
    for negative, label in zip(negatives, forbidden, strict=False):
        if negative.class_names and negative.seen_classes != (label,):
            raise SettingError(
                f"a negative checkpoint was trained on classes {list(negative.seen_classes)}, not on {label} alone: "
                "name the single-class models in the order of forbidden"
            )
        check_same("a negative checkpoint", negative, name, model, "image_shape", "schedule")


def check_classes(forbidden: Sequence[int], class_labels: Sequence[int], guidances: Sequence[Guidance]) -> None:
    """Check that a negative guidance has a forbidden class, and a class label that is not forbidden.

    Raises:
        SettingError: there is none.
    """
    if not any(guidance.needs().negatives for guidance in guidances):
        return
    if not forbidden:
        raise SettingError("forbidden names no class: name one, or set the guidance to Unguided")
    if class_labels and set(class_labels) <= set(forbidden):
        raise SettingError("every class of class_labels is forbidden: name others, or set the guidance to Unguided")


def check_probe(
    name: str, probe: ProbeModule, model_name: str, model: DiffusionModule, forbidden: Sequence[int]
) -> None:
    """Check that a probe belongs to the model, and knows the ``forbidden`` classes.

    Raises:
        SettingError: it does not.
    """
    if probe.read_from != fingerprint(model):
        raise SettingError(
            f"{name} reads the features of another model than {model_name}: train one with "
            f"dng fit --config mnist_probe.yaml --model.diffusion_checkpoint {model_name}"
        )
    names = [model.class_names[label] for label in forbidden]
    if unknown := [each for each in names if each not in probe.class_names]:
        known = ", ".join(probe.class_names)
        raise SettingError(f"{name} does not know the class {unknown[0]}: it knows {known}")


def check_null_class(
    model: DiffusionModule, name: str, class_labels: Sequence[int], guidances: Sequence[Guidance]
) -> None:
    """Check that a class-conditional model has an unconditional prediction, if one is needed.

    Raises:
        SettingError: it has none.
    """
    if not model.null_class or getattr(model.net, "has_null_class", True):
        return
    mend = "name an unconditional model as checkpoint, or a model with a null class"
    if not class_labels:
        raise SettingError(f"{name} has no null class, so no unconditional prediction: set class_labels, or {mend}")
    for guidance in guidances:
        if guidance.needs().null:
            raise SettingError(f"{display_name(guidance)} needs the unconditional prediction, {name} has none: {mend}")


def own_classifier(name: str, model: DiffusionModule) -> str | None:
    """The default classifier of a model's images.

    Args:
        name: name of the model's checkpoint.
        model: the model.

    Returns:
        ``<checkpoint>-classifier``, if there is one; else ``mnist-classifier`` for MNIST's digits; else None.
    """
    if own := resources.classifier_of(name):
        return own
    is_mnist = (model.class_names, tuple(model.image_shape)) == (MNIST.class_names, MNIST.image_shape)
    if not is_mnist:
        rank_zero_info(f"There is no {resources.name_of(name)}-classifier: no image is labelled. See model.classifier.")
    return "mnist-classifier" if is_mnist else None
