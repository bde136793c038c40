"""Loads diffusion models by name: checkpoints of the package, and those of other libraries."""

from pathlib import Path

from dng_lightning.errors import SettingError
from dng_lightning.modules.diffusion import DiffusionModule
from dng_lightning.pretrained import PretrainedModel
from dng_lightning.storage import weights
from dng_lightning.storage.safe_checkpoint import is_own

AnyModel = PretrainedModel | str

# A weight by which a network is recognised, and the class that reads it.
KINDS = {
    "ema_model.alphas_cumprod": "LucidrainsModel",
    "input_blocks.0.0.weight": "GuidedDiffusionModel",
    "model.map_layer0.weight": "EDMModel",
}


def load_model(given: AnyModel) -> DiffusionModule:
    """Load the diffusion model of a setting.

    Args:
        given: a model of another library, or a name, see ``DiffusionModule.load``.

    Raises:
        SettingError: there is no such model, it cannot be used, or it needs more settings than its name.
    """
    if isinstance(given, PretrainedModel):
        return DiffusionModule.of(given.read())
    path = Path(given)
    if path.is_file() and not is_own(path) and path.suffix in (".pt", ".pth", ".pkl", ".safetensors", ".bin"):
        content = weights.read(path)
        ema = content.get("ema")
        nested = ema if isinstance(ema, dict) else content
        kind = next((reader for weight, reader in KINDS.items() if weight in nested), "DiffusersModel or EDMModel")
        raise SettingError(
            f"{given} does not say all that sampling needs: name it by class_path {kind} with the settings of "
            "docs/how-to/your-model.md"
        )
    return DiffusionModule.load(given)
