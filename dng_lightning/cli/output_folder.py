"""The output folder of a command, and checks that one folder holds output of one set of settings."""

import itertools
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dng_lightning.cli.saved_config import difference, inputs_of
from dng_lightning.errors import SettingError
from dng_lightning.modules.image_sampler import ImageSampler
from dng_lightning.networks.precision import FP32
from dng_lightning.storage import resources
from dng_lightning.storage.files import file_name

if TYPE_CHECKING:
    from dng_lightning.cli.dng_cli import DNGCLI

# Settings of the model that may differ between runs of `dng test` in one folder.
FREE = ["guidance", "guidances", "steps", "observer", "noise_conditional_classifier", "retrained_checkpoint", "compile"]
# For each command, the files that show its output in a folder, and the settings of the model that may change.
RESULTS = {
    "fit": (("model.ckpt", "model_index.json", "checkpoints/*.ckpt"), ()),
    "predict": (("records",), ()),
    "test": (("results.csv",), FREE),
}
# For each sampler, the setting that names what to avoid.
AVOIDED = {
    "GuidedSampler": "forbidden",
    "PipelineSampler": "negative_prompt",
    "TextToImageSampler": "negative_prompt",
}


class OutputFolder:
    """Chooses and checks the output folder of a command.

    Args:
        cli: the command line, with its model.
    """

    def __init__(self, cli: "DNGCLI") -> None:
        self.cli, self.command, self.settings = cli, cli.subcommand, cli.config[cli.subcommand]

    def default(self) -> str:
        """samples/<checkpoint>-without-<forbidden>-<guidance>, results/<checkpoint>-without-<forbidden>, or logs.

        A file of prompts has its name there. A number is appended if the folder holds output of other settings.
        """
        model = self.settings.model
        avoided = AVOIDED.get(model.class_path.rsplit(".", 1)[-1])
        if self.command not in RESULTS or not avoided:
            return "logs"
        forbidden, prompts = model.init_args[avoided], getattr(model.init_args, "prompts", None)
        names = file_name("-".join(map(str, forbidden)) if isinstance(forbidden, list) else forbidden or "nothing")
        of = file_name(Path(prompts).stem) if prompts else f"without-{names or 'nothing'}"  # a file has its own texts
        checkpoint = model.init_args.checkpoint
        name = resources.name_of(checkpoint if isinstance(checkpoint, str) else checkpoint.init_args.path)
        folder = f"results/{name:.100}-{of}"
        if self.command == "predict":
            guidance = model.init_args.guidance
            method = f"-{guidance.class_path.rsplit('.', 1)[-1]}" if guidance else ""
            folder = f"samples/{Path(folder).name}{method}"
        numbered = (f"{folder}-{number}" if number > 1 else folder for number in itertools.count(1))
        return next(name for name in numbered if not self.conflict(Path(name)))

    def conflict(self, folder: Path) -> str:
        """Output of other settings in ``folder`` that the command would overwrite or mix with; empty for none."""
        if not (self.cli.is_sampling or self.command == "fit"):
            return ""
        config = folder / "config.yaml"
        for command, (patterns, free) in RESULTS.items():
            held = next((path for pattern in patterns for path in folder.glob(pattern)), None)
            again = command == self.command == "fit"
            if held is None or (again and self._resumes(folder)) or not (again or config.exists()):
                continue
            now = yaml.safe_load(self.cli.parser.dump(self.cli.config, skip_none=False))[self.command]
            try:
                before = yaml.safe_load(config.read_text())
                different = difference(_fixed(before, free), _fixed(now, free), "") or self._changed_input(folder)
            except (OSError, yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError):
                different = (
                    "its config.yaml or inputs.json is missing or damaged"  # an interrupted write, or a foreign file
                )
            if different or again:
                settings = f"other settings ({different})" if different else "these model settings"
                return f"{held.relative_to(folder)} made with {settings}"
        return ""

    def check(self, folder: Path) -> None:
        """Refuse a folder with output of other settings.

        Raises:
            SettingError: the folder has some.
        """
        if found := self.conflict(folder):
            resume = "resume it with --ckpt_path last, " if self.command == "fit" else ""
            raise SettingError(f"{folder} holds {found}: {resume}name another --trainer.default_root_dir, or remove it")

    def _resumes(self, folder: Path) -> bool:
        """Whether a training resumes from a checkpoint in the folder, or in the folder of its own checkpoints."""
        path = self.settings.ckpt_path
        if path in (None, "hpc"):  # on a SLURM cluster Lightning finds the checkpoint
            return any(folder.glob("hpc_ckpt_*.ckpt"))
        folders = [folder, *(Path(str(callback.dirpath)) for callback in self.cli.model_checkpoints())]
        return any(
            any(place.glob("last*.ckpt")) if path == "last" else Path(path).resolve().is_relative_to(place.resolve())
            for place in folders
        )

    def _changed_input(self, folder: Path) -> str:
        """The first file named by the settings that has changed since the output was made; empty for none."""
        if not isinstance(self.cli.model, ImageSampler):
            return ""
        before = inputs_of(folder)
        changed = [name for name, value in self._inputs.items() if before.get(name, value) != value]
        return f"the {changed[0]} has changed since" if changed else ""

    @cached_property
    def _inputs(self) -> dict[str, str]:
        hashes: dict[str, str] = self.cli.model.inputs(calibration=self.command == "predict")
        return hashes


def _fixed(config: dict[str, Any], free: Collection[str]) -> dict[str, Any]:
    """The settings that all output in a folder shares: those of the model without ``free``, and the precision."""
    model = config["model"]
    arguments = {name: value for name, value in model["init_args"].items() if name not in free}
    return {"model": model | {"init_args": arguments}, "trainer.precision": config["trainer"]["precision"] or FP32}
