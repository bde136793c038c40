"""Mapping between the classes of a judge and those of the diffusion model, by name or by a setting."""

from collections.abc import Sequence

from dng_lightning.class_labels import label_of
from dng_lightning.errors import SettingError

ClassMapping = dict[str | int, str | int | list[str | int]]
"""Class of the diffusion model -> class or classes of the judge, by name or number."""


def groups(
    class_names: Sequence[str], own: Sequence[str], mapping: ClassMapping | None, judge: str
) -> tuple[tuple[int, ...], ...]:
    """The judge's labels that are mapped to each class of the diffusion model.

    Classes without a mapping are matched by name, see ``class_labels.label_of``.

    Args:
        class_names: classes of the diffusion model.
        own: classes of the judge.
        mapping: mapping of classes whose names differ; None for no mapping.
        judge: name of the judge, for the message.

    Returns:
        At least one label for each of ``class_names``; no label occurs twice.

    Raises:
        SettingError: a class matches none of the judge's, or a class of the judge is mapped to two classes.
    """
    given: dict[int, Sequence[str | int]] = {}
    for name, classes in (mapping or {}).items():
        label = label_of(name, class_names, f"the model (classes of {judge})")
        given[label] = [classes] if isinstance(classes, str | int) else list(classes)
    found = []
    for label, name in enumerate(class_names):
        if not (several := given.get(label, [name])):
            raise SettingError(f"classes of {judge}: {name!r} is mapped to no class, name at least one")
        found.append(tuple(label_of(one, own, f"{judge}, whose classes can be mapped to {name!r},") for one in several))
    owner: dict[int, str] = {}
    for name, labels in zip(class_names, found, strict=True):
        for label in labels:
            if label in owner:
                other = owner[label]
                raise SettingError(f"classes of {judge}: {own[label]!r} is mapped to both {other!r} and {name!r}")
            owner[label] = name
    return tuple(found)
