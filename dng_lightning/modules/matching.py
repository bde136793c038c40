"""Refuses checkpoints that do not go together, before anything is drawn. Names are for the messages."""

from collections.abc import Sequence

from dng_lightning.errors import SettingError
from dng_lightning.guidance import Guidance
from dng_lightning.guidance.serialization import display_name
from dng_lightning.modules.classifier import ClassifierModule
from dng_lightning.modules.diffusion import DiffusionModule
from dng_lightning.modules.trained import TrainedModule


def name_classes(model: DiffusionModule, others: Sequence[TrainedModule], name: str) -> None:
    """Tell another library's model, which does not say what it was trained on, the classes of one of the ``others``."""
    if model.class_names:
        return
    known = next((other.class_names for other in others if other.class_names), ())
    if not known:
        raise SettingError(f"{name} does not name its classes: name a classifier that does")
    model.class_names, model.seen_classes = known, tuple(range(len(known)))


def check_negatives(
    negatives: Sequence[DiffusionModule], model: DiffusionModule, name: str, forbidden: Sequence[int]
) -> None:
    """Refuse single-class models that are not one for each of the ``forbidden``, and no negatives at all."""
    if negatives and len(negatives) != len(forbidden):
        raise SettingError(f"{len(forbidden)} forbidden classes need as many negative_checkpoints")
    if not negatives and not model.null_class:
        raise SettingError(f"{name} is unconditional: name negative_checkpoints for the forbidden classes")
    for negative, label in zip(negatives, forbidden, strict=False):
        if negative.class_names and negative.seen_classes != (label,):
            raise SettingError(
                f"a negative checkpoint was trained on classes {list(negative.seen_classes)}, not on {label} alone: "
                "name the single-class models in the order of forbidden"
            )
        if negative.image_shape != model.image_shape:
            raise SettingError(f"a negative checkpoint makes images of {negative.image_shape}, not {model.image_shape}")
        if not negative.schedule.agrees(model.schedule):
            raise SettingError(f"a negative checkpoint has another noise schedule than {name}: name another")


def check_classifier(classifier: ClassifierModule, model: DiffusionModule, name: str, model_name: str) -> None:
    """Refuse a classifier of other classes or images than the model's."""
    if classifier.class_names != model.class_names:
        raise SettingError(f"{name} knows other classes than {model_name}: name another, or null")
    if classifier.image_shape != model.image_shape:
        raise SettingError(f"{name} judges images of {classifier.image_shape}, not {model.image_shape}: name another")


def check_noisy(classifier: ClassifierModule, model: DiffusionModule, name: str, model_name: str) -> None:
    """Refuse a noise-conditional classifier that judges other images than the model makes."""
    if classifier.class_names != model.class_names or classifier.seen_classes != model.seen_classes:
        raise SettingError(f"{name} was trained on other classes than {model_name}: name another")
    if classifier.image_shape != model.image_shape:
        raise SettingError(f"{name} judges images of {classifier.image_shape}, not {model.image_shape}")
    if classifier.schedule is None or not classifier.schedule.agrees(model.schedule):
        raise SettingError(f"{name} was trained with another noise schedule than {model_name}: name another")


def check_retrained(
    retrained: DiffusionModule, model: DiffusionModule, name: str, model_name: str, forbidden: Sequence[int]
) -> None:
    """Refuse a model of other images, or one that was trained with a ``forbidden`` class."""
    if (retrained.image_shape, retrained.class_names) != (model.image_shape, model.class_names):
        raise SettingError(f"{name} makes other images than {model_name}: name another, or null")
    if set(retrained.seen_classes) & set(forbidden):
        raise SettingError(f"{name} was trained with a forbidden class: name another, or null")


def check_classes(forbidden: Sequence[int], wanted: Sequence[int], guidances: Sequence[Guidance]) -> None:
    """Refuse to avoid nothing, or all that is wanted, by a guidance that avoids something."""
    if not any(guidance.needs().negatives for guidance in guidances):
        return
    if not forbidden:
        raise SettingError("forbidden names no class: name one, or set the guidance to Unguided")
    if wanted and set(wanted) <= set(forbidden):
        raise SettingError("every wanted class is forbidden: name others, or set the guidance to Unguided")


def check_needs(guidance: Guidance, observer: bool, noisy_classifier: bool, wanted: bool) -> None:
    """Refuse a guidance that needs a classifier or a wanted class, where none is named, or a text, which none has."""
    needs, name = guidance.needs(), display_name(guidance)
    if needs.attention is not None:
        raise SettingError(f"{name} acts in the attention to a text: it is for the TextToImageSampler")
    if needs.classifier and not noisy_classifier:
        raise SettingError(f"{name} needs a noisy_classifier: name its checkpoint")
    if needs.observer is not None and not observer:
        raise SettingError(f"{name} needs a classifier to look at the images: name one as observer")
    if needs.class_labels and not wanted:
        raise SettingError(f'{name} guides toward a class: set wanted to one, or to "all"')
