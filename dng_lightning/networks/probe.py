"""A small head that reads the class of a noisy image from a diffusion network's own features (Alain & Bengio, 2016)."""

import torch
from torch import Tensor, nn

from dng_lightning.errors import SettingError
from dng_lightning.networks.unet import timestep_embedding


class FeatureProbe(nn.Module):
    """Mean, maximum and standard deviation of each feature over space, and one hidden layer.

    The noise level scales and shifts the hidden layer (Perez et al., 2018, "FiLM").

    Args:
        channels: C of the features.
        num_classes: number of logits, >= 2; None, in a configuration of ``dng fit`` alone, for that of the data.
        hidden: width of the hidden layer.
        embedding: width of the noise level's embedding, even.
        dropout: probability of dropping a hidden unit while training, in [0, 1).

    Raises:
        SettingError: ``num_classes`` is None.
    """

    def __init__(
        self, channels: int, num_classes: int | None, hidden: int = 192, embedding: int = 64, dropout: float = 0.1
    ) -> None:
        super().__init__()
        if num_classes is None:
            raise SettingError("FeatureProbe: null for num_classes is only for the configuration of dng fit")
        self.channels, self.num_classes, self.embedding = channels, num_classes, embedding
        self.norm = nn.LayerNorm(3 * channels)
        self.stem = nn.Linear(3 * channels, hidden)
        self.level = nn.Sequential(nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, 2 * hidden))
        self.head = nn.Sequential(
            nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)
        )

    def forward(self, features: Tensor, t: Tensor) -> Tensor:
        """Class logits.

        Args:
            features: (B, C, H, W), or tokens (B, N, C).
            t: timesteps (B,), as the diffusion network takes them.

        Returns:
            (B, num_classes).

        Raises:
            SettingError: the features have other channels.
        """
        spread = features.flatten(2).transpose(1, 2) if features.ndim > 3 else features  # (B, N, C)
        if spread.ndim != 3 or spread.shape[2] != self.channels:
            shape = tuple(features.shape[1:])
            raise SettingError(f"the features have the shape {shape}, not {self.channels} channels: set net.channels")
        std, mean = torch.std_mean(spread, 1, correction=0)
        pooled = self.norm(torch.cat([mean, spread.amax(1), std], 1))
        scale, shift = self.level(timestep_embedding(t, self.embedding).to(pooled.dtype)).chunk(2, 1)
        logits: Tensor = self.head(self.stem(pooled) * (1 + scale) + shift)
        return logits
