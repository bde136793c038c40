"""dng: train diffusion models, and sample from them without the classes or prompts that you forbid.

usage: dng COMMAND [--config FILE ...] [--SETTING VALUE ...]

commands:
  fit        train a model           dng fit --config mnist.yaml     (alone: small real digits, two minutes)
  validate   loss on held-out data   dng validate --config mnist.yaml --ckpt_path last
  test       compare guidances       dng test                        (alone: four methods on MNIST, digit 0, N = 1,000)
  predict    sample with guidance    dng predict                     (alone: MNIST, digit 0 removed, 64 images)

  dng COMMAND --help                         every setting of a command
  dng predict --model.help GuidedSampler     every setting of a class; likewise --data.help Seeds,
                                             --model.guidance.help DynamicNegativeGuidance
  dng COMMAND --print_config                 the settings as a YAML, to save, edit and give to --config
  dng --version

A configuration file is searched in the current folder, then in the package. Later settings override earlier ones.
JSONARGPARSE_DEBUG=1 shows the traceback of an error.
"""

import contextlib
import errno
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dng_lightning import __version__
from dng_lightning.errors import SettingError
from dng_lightning.storage import resources
from dng_lightning.storage.files import check_yaml

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI

DEFAULT_CONFIGS = {"fit": "digits.yaml", "validate": "digits.yaml", "test": "test.yaml", "predict": "predict.yaml"}
HELP = ("-h", "--help", "--version", "--print_config")
# Warnings that no setting of ours avoids: a pickle is refused, `torch.jit.script` is torch's own forward mode.
NOISE = (
    "`isinstance(treespec, LeafSpec)`",
    "Total length of `DataLoader` across ranks",
    "Detected pickle protocol",
    "`torch.jit.script` is depr",
)
LOGGERS = ("wandb", "mlflow", "aim", "comet_ml")  # libraries of loggers, whose errors are about their settings
# Errors about settings without a class of errors: unknown metric, missing logger, optimizer for GPUs.
COMPLAINTS = ("Early stopping conditioned on metric", "Requirement '", "If capturable=True")
NO_MEMORY = "DefaultCPUAllocator: "  # torch's error on CPUs
UNWRITABLE = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM
# An output folder that was removed, a folder in the place of a file or a file in that of a folder, names, links.
MISPLACED = errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP
LOST = "Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError"  # in torch's errors
LONGEST = 385  # characters of an error
ALWAYS_FIRST = ("predict",)  # overlays extend this command's default; configurations of other commands are complete


class Output(io.FileIO):
    """A standard output that discards its text once its reader (``head``) has left, so that a command goes on."""

    def write(self, text: Any) -> int:
        """Write, or discard."""
        try:
            return super().write(text)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return super().write(text)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; ``args`` as in ``sys.argv[1:]``, which is the default."""
    argv = list(sys.argv[1:] if args is None else args)
    is_debugging = _is_debugging()
    try:
        with _output():
            if argv == ["--version"]:
                print(f"dng {__version__}")
            elif not argv or argv[0] in HELP:
                print(__doc__)  # without the parser of the commands, whose import takes seconds
            else:
                run(_with_configs(argv), argv)
    except KeyboardInterrupt:
        print("dng: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # what is not about settings is raised again
        mendable = setting_error(error)
        if mendable is None or is_debugging:
            raise
        print(f"dng: error: {complaint(mendable)}", file=sys.stderr)
        sys.exit(2)


def _is_debugging() -> bool:
    """Whether ``JSONARGPARSE_DEBUG`` is set, to which jsonargparse itself accepts only true and false."""
    is_debugging = os.environ.pop("JSONARGPARSE_DEBUG", "").lower() not in ("", "0", "false", "no", "off")
    if is_debugging:
        os.environ["JSONARGPARSE_DEBUG"] = "true"
    return is_debugging


@contextlib.contextmanager
def _output() -> Iterator[None]:
    """Let the reader of a pipe leave, and replace characters of the tables that a terminal lacks."""
    before = sys.stdout
    if isinstance(before, io.TextIOWrapper):
        before.reconfigure(errors="replace")
    raw = None
    with contextlib.suppress(AttributeError, ValueError):  # closed, or not a file
        raw = Output(before.fileno(), "w", closefd=False)
    if raw is None:
        yield
        return
    in_lines = bool(before.line_buffering or getattr(before, "write_through", False))
    text = io.TextIOWrapper(io.BufferedWriter(raw), before.encoding, before.errors, line_buffering=in_lines)
    with contextlib.redirect_stdout(text) as output:
        try:
            yield
        finally:
            output.flush()


def run(argv: Sequence[str], given: Sequence[str] | None = None) -> "LightningCLI":
    """Run a command with the stock LightningCLI and return it, for use from Python.

    Args:
        argv: the command, with the paths of its configuration files.
        given: the command as the user gave it, for the command to continue with; None for ``argv``.
    """
    # Hide advertisements, and warnings that no setting of ours avoids.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "Tip" not in str(r.msg)[:6])
    for message in NOISE:
        warnings.filterwarnings("ignore", message=f".*{re.escape(message)}")

    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # for the user's own classes by class path

    from dng_lightning.cli import DNGCLI

    return DNGCLI(list(argv), given or argv)


def complaint(error: SettingError) -> str:
    """The message in one line, without the middle where a setting in it is long."""
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 105]} ... {text[-100:]}"


def setting_error(error: BaseException | None) -> SettingError | None:
    """The SettingError that ``error`` is or wraps (jsonargparse wraps the errors of constructors).

    Lightning's own errors about settings count, by their first line.
    """
    if isinstance(error, OSError) and error.errno in MISPLACED and error.filename:  # not one that code has handled
        return _of_file(error, "")
    while error is not None and not isinstance(error, SettingError):
        if isinstance(error, MemoryError) or NO_MEMORY in str(error):
            return SettingError(f"not enough memory: lower data.batch_size, or make the network smaller ({error})")
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            return _of_file(error, "cannot write ")
        if isinstance(error, RuntimeError) and any(word in str(error) for word in LOST):
            return SettingError(
                "another process of this run has ended: run the same command again (dng fit with "
                "--ckpt_path last); what is finished is kept"
            )
        if type(error).__module__.split(".")[0] in LOGGERS:
            return SettingError(f"trainer.logger: {str(error).strip().splitlines()[0]}")
        text, is_setting = str(error).strip(), type(error).__name__ == "MisconfigurationException"  # slow to import
        if is_setting or text.startswith(COMPLAINTS):
            return SettingError(text.splitlines()[0])
        error = error.__cause__ or error.__context__
    return error


def _of_file(error: OSError, what: str) -> SettingError:
    file = f"{what}{error.filename or 'a file'}: {error.strerror}"
    return SettingError(f"{file}; what is finished is kept: mend it and run the same command again")


def _with_configs(argv: list[str]) -> list[str]:
    """``argv`` with the paths of its configuration files, and with the command's default one if it has none."""
    command, rest = argv[0], argv[1:]
    found, named = [command], False
    for before, arg in zip([command, *rest], rest, strict=False):
        flag, equals, value = arg.partition("=")
        if before in ("-c", "--config"):
            found.append(_config(arg))
        elif flag == "--config" and equals:
            found.append(f"--config={_config(value)}")
        else:
            found.append(arg)
        named |= flag in ("-c", "--config")
    if command in DEFAULT_CONFIGS and (command in ALWAYS_FIRST or not named):
        found[1:1] = ["--config", str(resources.config(DEFAULT_CONFIGS[command]))]
    return found


def _config(name: str) -> str:
    """The path of a configuration that can be read."""
    check_yaml(path := resources.config(name))
    return str(path)


if __name__ == "__main__":
    main()
