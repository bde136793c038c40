"""Classes by name or number."""

from collections.abc import Sequence

from dng_lightning.errors import SettingError


def labels_of(names: Sequence[str | int] | str | int, class_names: Sequence[str], seen: Sequence[int]) -> list[int]:
    """The labels of classes given by name or number.

    Raises:
        SettingError: one of them is unknown, named twice, or the checkpoint never saw it.
    """
    labels = []
    for name in [names] if isinstance(names, str | int) else names:
        known = {text.lower(): label for label, text in enumerate(class_names)}
        label = known.get(str(name).lower(), int(name) if str(name).isdecimal() else -1)
        if not 0 <= label < len(class_names):
            raise SettingError(f"there is no class {name!r}; the checkpoint knows {', '.join(class_names)}")
        if label not in seen:
            raise SettingError(f"the checkpoint never saw class {class_names[label]!r}: it cannot be guided by it")
        if label in labels:
            raise SettingError(f"class {class_names[label]!r} is named twice")
        labels.append(label)
    return labels
