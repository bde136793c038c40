"""A small convolutional classifier of images, fast enough for training and labelling on a CPU."""

from collections.abc import Sequence

from torch import Tensor, nn

from dng_lightning.errors import SettingError, check_at_least, check_in
from dng_lightning.networks.unet import OPEN, timestep_embedding


class ImageClassifier(nn.Module):
    """Convolutional blocks, global average pooling, one hidden layer; any image size from 8x8 pixels.

    Each block has a convolution at full resolution, a max pool, and a convolution at half resolution, or there a
    residual pair of convolutions (Page, 2018, "How to Train Your ResNet"). A noise-conditional classifier takes the
    noise level, whose embedding scales and shifts the channels of each block (Perez et al., 2018, "FiLM").

    Args:
        image_channels: 1 for grey, 3 for colour.
        num_classes: number of logits, >= 2.
        channels: width of each block; every block halves the resolution, so an image needs 2**len(channels) pixels.
        features: width of the penultimate layer.
        dropout: probability of dropping a penultimate feature while training, in [0, 1).
        embedding: width of the noise level's embedding, even; 0 for a classifier of clean images.
        residual: whether each block ends with a residual pair of convolutions instead of one convolution.

    In a configuration of ``dng fit`` the first three settings may be null, and follow from the data; ``residual``
    follows along with ``channels``.

    Raises:
        SettingError: one of them is None, or a setting is out of its range.
    """

    def __init__(
        self,
        image_channels: int | None,
        num_classes: int | None,
        channels: Sequence[int] | None = (32, 64, 128),
        features: int = 128,
        dropout: float = 0.2,
        embedding: int = 0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if image_channels is None or num_classes is None or channels is None:
            raise SettingError(f"ImageClassifier: {OPEN}")
        sizes = {"image_channels": image_channels, "num_classes": num_classes, "features": features}
        check_at_least(1, **sizes, channels=min(channels, default=0))
        check_in("[0, 1)", dropout=dropout)
        check_at_least(0, embedding=embedding)
        if embedding % 2:
            raise SettingError(f"embedding must be even; got {embedding}")
        self.num_classes, self.num_features = num_classes, features
        widths = [image_channels, *channels]
        blocks = [_block(before, after, residual) for before, after in zip(widths, channels, strict=False)]
        self.blocks = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(channels[-1], features), nn.BatchNorm1d(features), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, num_classes))
        self.embedding = embedding
        if embedding:
            self.level = nn.Sequential(nn.Linear(embedding, 4 * embedding), nn.SiLU())
            self.films = nn.ModuleList(nn.Linear(4 * embedding, 2 * width) for width in channels)

    @property
    def noise_conditional(self) -> bool:
        """Whether the network takes the noise level of its images."""
        return self.embedding > 0

    def features(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Penultimate features, the space in which Fréchet distances are taken.

        Args:
            x: (B, C, H, W) in [-1, 1], or that plus noise.
            t: noise levels (B,), counted from 0 (least noise); None for clean images.

        Returns:
            (B, num_features), >= 0.

        Raises:
            SettingError: a noise level is missing for a noise-conditional network, or given to another one.
        """
        if self.noise_conditional != (t is not None):
            raise SettingError(
                "a noise-conditional classifier needs the noise level"
                if t is None
                else "a classifier of clean images takes no noise level: set embedding of its network, and train it"
            )
        if t is None:
            x = self.blocks(x)
        else:
            level = self.level(timestep_embedding(t, self.embedding).to(x.dtype))
            for block, film in zip(self.blocks[:-2], self.films, strict=True):
                scale, shift = film(level)[:, :, None, None].chunk(2, dim=1)
                h = block[:-1](x) * (1 + scale) + shift  # type: ignore[index]  # a Sequential
                x = block[-1](h)  # type: ignore[index]  # its ReLU, or residual pair
            x = self.blocks[-2:](x)
        hidden: Tensor = self.hidden(x)
        return hidden

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """Class logits; see ``features``.

        Returns:
            (B, num_classes).
        """
        logits: Tensor = self.head(self.features(x, t))
        return logits


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self:
            h = layer(h)
        return x + h


def _block(before: int, after: int, residual: bool) -> nn.Sequential:
    halved = [*_convolution(before, after), nn.MaxPool2d(2)]
    if residual:
        return nn.Sequential(*halved, _Residual(*_convolution(after, after), *_convolution(after, after)))
    return nn.Sequential(*halved, *_convolution(after, after))


def _convolution(before: int, after: int) -> list[nn.Module]:
    # no bias: the batch norm has one
    return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
