"""Classes by name or number."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from dng_lightning.errors import SettingError, reason

LISTED = 20  # for more classes than this the error lists the nearest names only


def label_of(name: str | int, class_names: Sequence[str], owner: str) -> int:
    """The label of a class: by its exact name, else by a similar name, else by its number.

    Similar names ignore case, `_` and `-` equal a space, and one name of a list of synonyms such as ImageNet's "tench,
    Tinca tinca" is enough.

    Args:
        name: name or number of a class.
        class_names: all names, in the order of their labels.
        owner: owner of the classes, for the message.

    Raises:
        SettingError: no class, or more than one, has this name; the message lists the nearest names.
    """
    text = str(name)
    similar = [label for label, known in enumerate(class_names) if _plain(text) in _synonyms(known)]
    exact = [label for label in similar if class_names[label] == text]
    number = [int(text)] if text.isdecimal() and int(text) < len(class_names) else []
    found = exact or similar or number
    if len(found) == 1:
        return found[0]
    if found:
        those = ", ".join(f"{class_names[label]} ({label})" for label in found)
        raise SettingError(f"class {name!r} is ambiguous; {owner} knows {those}: give the exact name, or the number")
    known = ", ".join(class_names)
    if len(class_names) > LISTED:
        known = f"{len(class_names)} classes, the nearest being {', '.join(get_close_matches(text, class_names, 5, 0))}"
    raise SettingError(f"there is no class {name!r}; {owner} knows {known}")


@lru_cache(4096)  # a thousand classes are looked up among a thousand
def _synonyms(text: str) -> set[str]:
    return {_plain(part) for part in (text, *text.split(","))}


def _plain(name: str) -> str:
    return " ".join(re.sub(r"(?<=\w)[_-](?=\w)", " ", name.lower()).split())


def labels_of(
    names: Sequence[str | int] | str | int | None, class_names: Sequence[str], seen: Sequence[int]
) -> list[int]:
    """The labels of some classes of a checkpoint, given by name or number; empty for None.

    Raises:
        SettingError: a class is unknown, named twice, or was not in the training data.
    """
    labels: list[int] = []
    for name in [names] if isinstance(names, str | int) else names or ():
        label = label_of(name, class_names, "the checkpoint")
        if label not in seen:
            raise SettingError(f"the checkpoint never saw class {class_names[label]!r}: it cannot be guided by it")
        if label in labels:
            raise SettingError(f"class {class_names[label]!r} is named twice")
        labels.append(label)
    return labels


def names_of(class_names: Sequence[str] | str | None) -> tuple[str, ...]:
    """The class names of a setting: a list, or a text file with one name per line; empty for None.

    Raises:
        SettingError: the file cannot be read.
    """
    if not isinstance(class_names, str):
        return tuple(map(str, class_names or ()))
    try:
        lines = Path(class_names).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"class_names {class_names}: {reason(error)}") from error
    return tuple(line.strip() for line in lines if line.strip())
