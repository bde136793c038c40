"""Uploads a checkpoint and its model card to the Hugging Face hub.

python -m dng_lightning.hub FOLDER OWNER/MODEL [--private]

FOLDER is the output of `dng fit`, such as logs/image-folder. After the upload, --model.checkpoint hf:OWNER/MODEL loads
it. Log in first, with `hf auth login`, or set HF_TOKEN.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from dng_lightning.errors import SettingError, reason, require
from dng_lightning.storage import resources
from dng_lightning.storage.download import WANTED

CARD = """---
license: other
library_name: dng_lightning
pipeline_tag: {task}
tags: [dng_lightning, {kind}]
---

# {name}

A {network} for images of {shape}, trained with [dng_lightning](https://arxiv.org/abs/2410.14398).

- Classes: {classes}
- Data: {data}
- Measured at the end of the training: {metrics}

```bash
{command}
```

`config.yaml` holds every setting of the training.
"""


def upload(folder: str | Path, name: str, private: bool = False) -> str:
    """Upload the folder of a checkpoint, with its ``README.md`` or a generated one as the model card.

    Args:
        folder: folder with a ``model.safetensors``, a ``model.ckpt`` or a model in diffusers' format.
        name: ``owner/model``; the repository is created if it does not exist.
        private: create a private repository.

    Returns:
        The address, ``hf:owner/model``.

    Raises:
        SettingError: there is no checkpoint, ``huggingface_hub`` is not installed, or the hub refuses the upload.
    """
    checkpoint = resources.checkpoint(folder)
    folder = checkpoint.parent
    hub = require("huggingface_hub", "an upload", "hub")
    card = None if (folder / "README.md").exists() else model_card(folder, name).encode()
    unsafe = ["model.ckpt"] if (folder / "model.safetensors").exists() else []  # the hub warns of pickles
    try:
        api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        api.create_repo(name, private=private, exist_ok=True)
        settings: dict[str, Any] = {"allow_patterns": list(WANTED), "ignore_patterns": ["inputs.json", *unsafe]}
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.name}", **settings)
        if card:
            api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=name)
    except Exception as error:  # no connection, no permission, no such owner
        raise SettingError(f"{folder} was not uploaded: {type(error).__name__}: {reason(error)}") from error
    return f"hf:{name}"


def model_card(folder: Path, name: str) -> str:
    """A model card from the ``config.yaml`` and ``metrics.json`` of a training."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        metrics = json.loads((folder / "metrics.json").read_text())
        model, data = config["model"], config["data"]
        network = model["init_args"]["net"]["class_path"].rpartition(".")[2]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{folder} has no config.yaml and metrics.json of a training, nor a README.md") from error
    from dng_lightning.modules import ClassifierModule, DiffusionModule  # slow to import

    is_classifier = model["class_path"].endswith("ClassifierModule")
    module = (ClassifierModule if is_classifier else DiffusionModule).load(str(folder))
    seen = [module.class_names[label] for label in module.seen_classes]
    flag = "classifier" if is_classifier else "checkpoint"
    return CARD.format(
        task="image-classification" if is_classifier else "unconditional-image-generation",
        kind="classifier" if is_classifier else "diffusion",
        name=name.rpartition("/")[2],
        network=network,
        shape="x".join(map(str, module.image_shape)),
        classes=", ".join(seen) or "none",
        data=data["class_path"].rpartition(".")[2],
        metrics=", ".join(f"{metric} {value:.4g}" for metric, value in metrics.items()),
        command=f"dng predict --model.{flag} hf:{name}",
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("name")
    parser.add_argument("--private", action="store_true")
    given = parser.parse_args()
    try:
        address = upload(given.folder, given.name, given.private)
    except SettingError as error:
        sys.exit(f"dng_lightning.hub: error: {error}")
    print(f"uploaded to {address}\nnext: dng predict --model.checkpoint {address}")


if __name__ == "__main__":
    main()
