"""Which of a judge's classes are which of the diffusion model's: by their names, or by a mapping."""

from collections.abc import Sequence

from dng_lightning.class_labels import label_of
from dng_lightning.errors import SettingError

ClassMapping = dict[str | int, str | int | list[str | int]]
"""A class of the diffusion model -> the judge's class or classes, by name or number."""


def groups(
    wanted: Sequence[str], own: Sequence[str], mapping: ClassMapping | None, judge: str
) -> tuple[tuple[int, ...], ...]:
    """The judge's labels that stand for each class of the diffusion model.

    Names are the same as ``class_labels.label_of`` says.

    Args:
        wanted: the classes of the diffusion model.
        own: the classes of the judge.
        mapping: for classes that are called otherwise; None for none.
        judge: its name, for the message.

    Returns:
        for each of ``wanted`` at least one label, none for two.

    Raises:
        SettingError: a class has no name among the judge's, or a label stands for two classes.
    """
    given: dict[int, Sequence[str | int]] = {}
    for name, classes in (mapping or {}).items():
        label = label_of(name, wanted, f"the model (classes of {judge})")
        given[label] = [classes] if isinstance(classes, str | int) else list(classes)
    found = []
    for label, name in enumerate(wanted):
        if not (several := given.get(label, [name])):
            raise SettingError(f"classes of {judge}: {name!r} stands for no class")
        found.append(tuple(label_of(one, own, f"{judge}, whose classes can be mapped to {name!r},") for one in several))
    owner: dict[int, str] = {}
    for name, labels in zip(wanted, found, strict=True):
        for label in labels:
            if label in owner:
                other = owner[label]
                raise SettingError(f"classes of {judge}: {own[label]!r} stands for {other!r} and {name!r}")
            owner[label] = name
    return tuple(found)
