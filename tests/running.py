"""What the tests that run the command line share."""

import subprocess
from collections.abc import Callable
from pathlib import Path

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


# The networks of other libraries, narrow.
TINY = {
    "captioned_digits_autoencoder": {"net": {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}},
    "captioned_digits": {
        "unet": {"block_out_channels": [8, 8], "norm_num_groups": 4, "attention_head_dim": 2},
        "text_encoder": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    },
}


def fit_settings(config: str) -> list[str]:
    """What makes a shipped training tiny: one batch an epoch, and a narrow network."""
    settings = [f"--model.{part}.{k}={v}" for part, given in TINY.get(config, {}).items() for k, v in given.items()]
    settings = [*(settings or ["--model.net.channels=[8]"]), "--trainer.limit_val_batches=1"]
    settings += ["--data.batch_size=1297"] if config.startswith("digits") else ["--data.validation=20"]  # of 200 images
    if "classifier" not in config:
        settings += ["--model.compile=false"] + (["--model.net.patch=4"] if "cifar10" in config else [])
    return settings


Dng = Callable[..., None]
Fitted = Callable[[str], Path]
DngProcess = Callable[..., "subprocess.CompletedProcess[str]"]
