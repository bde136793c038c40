"""A small convolutional classifier: fast to train on a CPU, faster to label thousands of generated images with."""

from collections.abc import Sequence

from torch import Tensor, nn


class ImageClassifier(nn.Module):
    """Convolutional blocks, global average pooling, one hidden layer; any image size from 8x8 pixels.

    Each block widens at full resolution, halves the resolution, and looks once more at half the cost.

    Args:
        image_channels: 1 for grey, 3 for colour.
        num_classes: number of logits, >= 2.
        channels: width of each block; every block halves the resolution, so an image needs 2**len(channels) pixels.
        features: width of the penultimate layer.
        dropout: probability of dropping a penultimate feature while training, in [0, 1).
    """

    def __init__(
        self,
        image_channels: int,
        num_classes: int,
        channels: Sequence[int] = (32, 64, 128),
        features: int = 128,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, features
        widths = [image_channels, *channels]
        blocks = [_block(before, after) for before, after in zip(widths, channels, strict=False)]
        self.blocks = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.hidden = nn.Sequential(nn.Linear(channels[-1], features), nn.BatchNorm1d(features), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features, num_classes))

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features, the space in which Fréchet distances are taken.

        Args:
            x: (B, C, H, W) in [-1, 1].

        Returns:
            (B, num_features), >= 0.
        """
        hidden: Tensor = self.hidden(self.blocks(x))
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        """Class logits.

        Args:
            x: (B, C, H, W) in [-1, 1].

        Returns:
            (B, num_classes).
        """
        logits: Tensor = self.head(self.features(x))
        return logits


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),  # the batch norm brings its own bias
        nn.BatchNorm2d(after),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )
