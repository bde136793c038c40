"""What a model is trained on, where its data are of another kind than ours and do not say so."""

from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError

FACTS = ("image_shape", "class_names", "seen_classes")  # of the data, which a checkpoint tells


def facts_of_a_batch(loader: Any, hooks: Any, num_classes: int) -> dict[str, tuple[Any, ...]]:
    """``FACTS`` by the first training batch.

    Args:
        loader: of the training; its data set's ``classes``, if it has them, are the names.
        hooks: with ``class_names`` it has them instead; its ``on_after_batch_transfer`` makes of a batch what the
            module gets.
        num_classes: of the network, for the names if there are none; 0 for an unconditional one.

    Raises:
        SettingError: a batch is not images (B, C, H, W) in [-1, 1] and labels int64 (B,) of these classes.
    """
    batch = hooks.on_after_batch_transfer(hooks.on_before_batch_transfer(next(iter(loader)), 0), 0)
    if not (isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(x, Tensor) for x in batch)):
        kind = type(batch).__name__
        raise SettingError(f"a batch of the data must be two tensors, images and labels; it is a {kind}")
    images, labels = batch
    if not (images.ndim == 4 and images.is_floating_point() and -1 <= images.min() < 0 and images.max() <= 1):
        found = f"{images.dtype} {tuple(images.shape)} in [{images.min():g}, {images.max():g}]"
        raise SettingError(f"the data's images must be floats (B, C, H, W) in [-1, 1]; they are {found}")
    names = getattr(hooks, "class_names", ()) or getattr(getattr(loader, "dataset", None), "classes", ())
    names = tuple(map(str, names or range(num_classes)))
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise SettingError(f"the data's labels must be int64 (B,); they are {labels.dtype} {tuple(labels.shape)}")
    if names and not 0 <= labels.min() <= labels.max() < len(names):
        found = f"from {labels.min()} to {labels.max()}"
        raise SettingError(f"the data's labels must be from 0 to {len(names) - 1}; they are {found}: set num_classes")
    return {"image_shape": tuple(images.shape[1:]), "class_names": names, "seen_classes": tuple(range(len(names)))}
