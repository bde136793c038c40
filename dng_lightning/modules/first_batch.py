"""Shape and classes of the images of a foreign datamodule, from its first batch."""

from typing import Any

import torch
from torch import Tensor

from dng_lightning.errors import SettingError

FACTS = ("image_shape", "class_names", "seen_classes")  # about the data, stored in checkpoints


def facts_of_a_batch(loader: Any, hooks: Any, num_classes: int) -> dict[str, tuple[Any, ...]]:
    """``FACTS`` of the first training batch.

    Args:
        loader: training loader; the names of the classes are its data set's ``classes``, if it has them.
        hooks: datamodule or module, whose transfer hooks are applied to the batch; its ``class_names`` take precedence.
        num_classes: number of classes of the network, whose labels are the names otherwise; 0 if unconditional.

    Raises:
        SettingError: a batch is not images (B, C, H, W) in [-1, 1] and labels, int64 (B,), of these classes.
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
