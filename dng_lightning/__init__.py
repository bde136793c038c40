"""Dynamic Negative Guidance of diffusion models, in PyTorch Lightning.

Removes a class from what a diffusion model draws and leaves the others in balance, after Koulischer, Deleu, Raya,
Demeester and Ambrogioni, "Dynamic Negative Guidance of Diffusion Models", ICLR 2025 (arXiv 2410.14398).
"""

__version__ = "0.1.0"
