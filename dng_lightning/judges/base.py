"""A classifier of another library as a judge: images in [-1, 1] to logits over the model's classes, and features."""

import hashlib
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from dng_lightning.errors import SettingError, reason
from dng_lightning.evaluation.runs import Labels
from dng_lightning.judges.class_mapping import ClassMapping, groups

CHUNK = 64  # images that the network sees at a time: enlarged to 224x224 they take much memory


class PretrainedClassifier(nn.Module):
    """Judges images as a ``ClassifierModule`` does; a subclass for each library loads the network.

    Where the judge knows other classes than the diffusion model, its probabilities are of those that stand for the
    model's, added up for each of these and scaled to sum to 1: an image of anything else is called what it is nearest.

    Args:
        name: what its features are reported under.
        net: (B, C, H, W) as ``preprocess`` gives them -> logits (B, classes), or an object with these as `logits`.
        own_names: what its classes are called.
        classes: see ``class_mapping.ClassMapping``; None to go by names alone.
        preprocess: images (B, C, H, W) in [0, 1] -> the network's input.
        channels: of the images that it takes, 1 or 3; grey ones are repeated, coloured ones are made grey.

    Attributes:
        num_features: width of its features; missing where it has none.
        class_names: of the diffusion model after ``sort_into``; before that, those of the mapping, or its own.
        image_shape: None, as it takes images of any size.

    Raises:
        SettingError: the mapping does not fit.
    """

    image_shape = None
    num_features: int
    own_names: tuple[str, ...]
    channels: int
    preprocess: Callable[[Tensor], Tensor]

    def __init__(
        self,
        name: str,
        net: nn.Module,
        own_names: Sequence[str],
        classes: ClassMapping | None,
        preprocess: Callable[[Tensor], Tensor],
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.name = re.sub(r"[^\w.-]+", "-", name).strip("-.")  # it is a part of files' names
        self.own_names, self.preprocess, self.channels = tuple(own_names), preprocess, channels
        self.classes = dict(classes or {})
        self.anchor = nn.Parameter(torch.empty(0))  # says where the judge is, also of a network without parameters
        self.classifier = net.float()
        self._seen: Tensor | None = None
        self._group(tuple(map(str, self.classes)) or self.own_names)
        self.eval().requires_grad_(False)

    @property
    def net(self) -> nn.Module:
        """Itself: its features are those of images in [-1, 1]."""
        return self

    def watch_head(self, head: str | None) -> None:
        """Take the features from the input of a layer.

        Args:
            head: name of the submodule; None for the last layer with an output for each class, if there is one.

        Raises:
            SettingError: there is no such submodule, or it is no linear layer and no convolution.
        """
        layers = dict(self.classifier.named_modules())
        widths = {key: (_width(layer, "in"), _width(layer, "out")) for key, layer in layers.items()}
        linear = [key for key, (width, _) in widths.items() if width is not None]
        if head is None:
            head = next((key for key in reversed(linear) if widths[key][1] == len(self.own_names)), None)
            if head is None:
                return
        if head not in linear:
            those = ", ".join(linear[-5:]) or "none"
            raise SettingError(f"{self.name} has no layer {head!r}: set its head to a linear layer, such as {those}")
        self.num_features = int(widths[head][0])  # type: ignore[arg-type]  # linear ones have a width
        layers[head].register_forward_pre_hook(self._note)

    def sort_into(self, class_names: Sequence[str], image_shape: Sequence[int]) -> None:
        """Judge by the classes of a diffusion model from now on, and try it on an image.

        Args:
            class_names: of the model.
            image_shape: (C, H, W) of its images.

        Raises:
            SettingError: a class has no counterpart, or the network does not take the images.
        """
        self._group(tuple(class_names))
        try:
            self(torch.zeros(1, *image_shape, device=self.anchor.device))
        except SettingError:
            raise
        except Exception as error:  # a foreign network can fail in any way
            raise SettingError(f"{self.name} cannot judge images of {tuple(image_shape)}: {reason(error)}") from error

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, class_names) of images (B, C, H, W) in [-1, 1], float32."""
        logits = self._in_chunks(x)[0]
        return torch.stack([logits[:, list(group)].logsumexp(1) for group in self.groups], 1)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer decides by, (B, num_features), of images in [-1, 1].

        Raises:
            SettingError: the network has none.
        """
        found = self._in_chunks(x)[1]
        if found is None:
            raise SettingError(f"{self.name} gives no features: set the features to another judge or extractor")
        return found

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """The probability of every class, (B, class_names) float32, in full precision whatever the trainer runs in."""
        if self.anchor.device != x.device:
            self.to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            return self(x.float()).softmax(1)  # type: ignore[no-any-return]  # a Module's call is Any

    def label(self, x: Tensor) -> Labels:
        """The most probable class of each image (B, C, H, W) in [-1, 1], and its probability."""
        confidence, labels = self.probabilities(x).max(dim=1)
        return Labels(labels, confidence)

    def _run(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits over the judge's own classes, and the features; ``inputs`` are preprocessed."""
        output = self.classifier(inputs)
        features, self._seen = self._seen, None
        if features is not None and features.ndim == 4:  # of a head that is a convolution, before the pooling
            features = features.mean((2, 3))
        if features is not None and features.ndim != 2:
            shape = tuple(features.shape[1:])
            raise SettingError(f"the features of {self.name} are {shape}, no vector: set its head to another layer")
        return getattr(output, "logits", output), features

    def _in_chunks(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        found = [self._run(self._input(part)) for part in torch.split(x, CHUNK)]
        logits, features = (list(parts) for parts in zip(*found, strict=True))
        if (width := logits[0].shape[1:]) != (len(self.own_names),):
            outputs, names = "x".join(map(str, width)), len(self.own_names)
            raise SettingError(f"{self.name} has {outputs} outputs and {names} class_names: name all of its classes")
        return torch.cat(logits).float(), None if features[0] is None else torch.cat(features).float()

    def _input(self, x: Tensor) -> Tensor:
        pixels = (x.float().clamp(-1, 1) + 1) / 2
        if pixels.shape[1] != self.channels:
            pixels = functional.rgb_to_grayscale(pixels) if self.channels == 1 else pixels.expand(-1, 3, -1, -1)
        shown: Tensor = self.preprocess(pixels)
        return shown

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen = inputs[0]

    def _group(self, class_names: tuple[str, ...]) -> None:
        self.class_names = class_names
        is_own = class_names == self.own_names and not self.classes
        own = tuple((label,) for label in range(len(class_names)))
        self.groups = own if is_own else groups(class_names, self.own_names, self.classes, self.name)
        # what changes its labels or features changes its fingerprint, which is of its state
        settings = repr((self.class_names, self.groups, self.preprocess)).encode()
        digest = torch.tensor(list(hashlib.sha256(settings).digest()), dtype=torch.uint8)
        self.register_buffer("settings", digest.to(self.anchor.device))


def _width(layer: nn.Module, end: str) -> int | None:
    width = getattr(layer, f"{end}_features", getattr(layer, f"{end}_channels", None))
    return width if isinstance(width, int) else None
