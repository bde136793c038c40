"""Classifiers of other libraries as judges: images in [-1, 1] to logits over the diffusion model's classes."""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from dng_lightning.errors import SettingError, reason
from dng_lightning.evaluation.runs import Labels
from dng_lightning.judges.class_mapping import ClassMapping, groups

Outputs = Literal["logits", "probabilities"]

CHUNK = 64  # batch size of the network: images resized to 224x224 need much memory


class PretrainedClassifier(nn.Module):
    """Judges images like a ``ClassifierModule``; a subclass for each library loads the network.

    The probability of a class of the diffusion model is the sum over the judge's classes that are mapped to it,
    normalised over the model's classes. So the judge gives every image one of the model's classes.

    Args:
        name: name of its features in tables.
        net: preprocessed images (B, C, H, W) -> logits (B, classes), or an object with an attribute `logits`.
        own_names: names of the judge's classes.
        classes: see ``class_mapping.ClassMapping``; None to match classes by name.
        preprocess: images (B, C, H, W) in [0, 1] -> the network's input.
        channels: channels of the network's input, 1 or 3; images are converted. None for those of ``preprocess``, or 3.
        outputs: kind of the network's outputs.

    Attributes:
        num_features: width of its features; not set if it has no features.
        class_names: classes of the diffusion model after ``sort_into``; before that, of the mapping or its own.
        image_shape: None: it takes images of any size.

    Raises:
        SettingError: the mapping does not fit the classes.
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
        channels: int | None = None,
        outputs: Outputs = "logits",
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.name = re.sub(r"[^\w.-]+", "-", name).strip("-.")  # part of file names
        self.own_names, self.preprocess = tuple(own_names), preprocess
        self.channels = channels if channels else int(getattr(preprocess, "channels", 3))
        self.classes = dict(classes or {})
        self.anchor = nn.Parameter(torch.empty(0))  # holds the device, also for a network without parameters
        self.classifier = net.float()
        self._seen: Tensor | None = None
        self._group(tuple(map(str, self.classes)) or self.own_names)
        self.eval().requires_grad_(False)

    @property
    def net(self) -> nn.Module:
        """The judge itself, whose ``features`` takes images in [-1, 1]."""
        return self

    def watch_head(self, head: str | None) -> None:
        """Use the input of a layer as the features.

        Args:
            head: name of the layer; None for the last layer with one output for each class, if there is one.

        Raises:
            SettingError: there is no such layer, or it is neither linear nor a convolution.
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
        self.num_features = int(widths[head][0])  # type: ignore[arg-type]  # a linear layer has a width
        layers[head].register_forward_pre_hook(self._note)

    def try_out(self, path: str) -> None:
        """Call the network of a file on a black image, which finds the width of its features.

        Raises:
            SettingError: the network cannot read the preprocessed images.
        """
        try:
            features = self._in_chunks(torch.zeros(1, 3, 32, 32))[1]  # resized by the preprocessing
        except SettingError:
            raise
        except Exception as error:  # a foreign network can fail in any way
            raise SettingError(
                f"{path} does not take the preprocessed images: set preprocessing.size, or preprocessing.channels to 1 "
                f"for grey ones: {reason(error)}"
            ) from error
        if features is not None:
            self.num_features = features.shape[1]

    def sort_into(self, class_names: Sequence[str], image_shape: Sequence[int]) -> None:
        """Switch to the classes of a diffusion model, and test the judge on one image.

        Args:
            class_names: classes of the diffusion model.
            image_shape: (C, H, W) of the model's images.

        Raises:
            SettingError: a class of the model has no class of the judge, or the network cannot read the images.
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
        """Features (B, num_features), the input of the last layer, of images (B, C, H, W) in [-1, 1].

        Raises:
            SettingError: the network has no features.
        """
        found = self._in_chunks(x)[1]
        if found is None:
            raise SettingError(f"{self.name} gives no features: set the features to another judge or extractor")
        return found

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities (B, class_names), float32; never under the trainer's autocast."""
        if self.anchor.device != x.device:
            self.to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            return self(x.float()).softmax(1)  # type: ignore[no-any-return]  # a Module's call is Any

    def label(self, x: Tensor) -> Labels:
        """The most probable class of each image (B, C, H, W) in [-1, 1], and its probability."""
        confidence, labels = self.probabilities(x).max(dim=1)
        return Labels(labels, confidence)

    def _run(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits over the judge's own classes, and the features, of preprocessed ``inputs``."""
        output = self.classifier(inputs)
        features, self._seen = self._seen, None
        if features is not None and features.ndim == 4:  # the head is a convolution before the pooling
            features = features.mean((2, 3))
        if features is not None and features.ndim != 2:
            shape = tuple(features.shape[1:])
            raise SettingError(
                f"the features of {self.name} have shape {shape} and are no vector: set its head to another layer"
            )
        return getattr(output, "logits", output), features

    def _in_chunks(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        found = [self._run(self._input(part)) for part in torch.split(x, CHUNK)]
        logits, features = (list(parts) for parts in zip(*found, strict=True))
        if (width := logits[0].shape[1:]) != (len(self.own_names),):
            outputs, names = "x".join(map(str, width)), len(self.own_names)
            raise SettingError(f"{self.name} has {outputs} outputs and {names} class_names: name all of its classes")
        joined = torch.cat(logits).float()
        joined = joined.log() if self.outputs == "probabilities" else joined
        return joined, None if features[0] is None else torch.cat(features).float()

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
        # the fingerprint is a hash of the state, so settings that change labels or features belong to the state
        settings = repr((self.class_names, self.groups, self.preprocess)).encode()
        digest = torch.tensor(list(hashlib.sha256(settings).digest()), dtype=torch.uint8)
        self.register_buffer("settings", digest.to(self.anchor.device))


def _width(layer: nn.Module, end: str) -> int | None:
    width = getattr(layer, f"{end}_features", getattr(layer, f"{end}_channels", None))
    return width if isinstance(width, int) else None
