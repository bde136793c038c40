"""The parser of the command line, and three changes to jsonargparse."""

import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_args

from jsonargparse import Namespace, _completions, _typehints
from jsonargparse._completions import add_subactions_and_get_subclass_choices
from jsonargparse._typehints import get_all_subclass_paths
from jsonargparse._util import NestedArg, parse_value_or_config
from lightning.pytorch.cli import LightningArgumentParser

from dng_lightning.errors import SettingError


def _discard_init_args(parser: Any, before: Any, now: Any) -> None:
    """Discard the settings of a class that another class replaces.

    jsonargparse keeps settings that both classes have: `--model.guidance NegativePrompting` would get the scale of the
    method in the configuration, which has another meaning.
    """
    if before and "init_args" in before and before["class_path"].split(".")[-1] != now["class_path"].split(".")[-1]:
        before["init_args"] = Namespace()  # type: ignore[no-untyped-call]


def _leave_text(value: Any, **settings: Any) -> tuple[Any, Any]:
    """Parse the text of a setting by the type of the setting only: `a: b` may be a prompt.

    jsonargparse parses the text as YAML first, and reads the content of a file with this name, which is right for a
    configuration and wrong for a checkpoint.
    """
    if isinstance(value, NestedArg) and isinstance(value.val, str) and value.key != "init_args":
        return value, None
    if isinstance(value, str) and Path(value).suffix not in (".yaml", ".yml", ".json"):
        settings["enable_path"] = False
    return parse_value_or_config(value, **settings)


def _completed(kind: Any, prefix: str | None, *rest: Any, **settings: Any) -> list[str]:
    """The class paths that shells complete, with the options of the classes of settings such as ``--model.guidance``.

    jsonargparse goes on with the classes of each option, which does not end: a guidance may wrap a guidance. Of
    ``torch.nn.Module`` it completes thousands of classes.
    """
    if prefix is None or prefix.count(".") > 1:
        return _completed_classes(kind)
    return add_subactions_and_get_subclass_choices(kind, prefix, *rest, **settings)


def _completed_classes(kind: Any) -> list[str]:
    """The subclasses of the package and of Lightning, and of torch's optimisers."""
    own = ("dng_lightning.", "lightning.", "torch.optim.")
    return [path for path in get_all_subclass_paths(kind) if path.startswith(own)]


_completions.get_all_subclass_paths = _completed_classes  # type: ignore[assignment, attr-defined]  # imported there
_completions.add_subactions_and_get_subclass_choices = _completed  # type: ignore[assignment]
_typehints.discard_init_args_on_class_path_change = _discard_init_args
_typehints.parse_value_or_config = _leave_text  # type: ignore[assignment, attr-defined]  # imported there


# jsonargparse's messages about a class path that names no class, and Python's about a module without a class
NO_CLASS = re.compile(
    r"Expected a dot import path string: (?P<bare>\S+)"
    r"|class_path '(?P<path>\S+)':\s+(?P<why>No module named \S+)"
    r"|module '(?P<module>\S+)' has no attribute '(?P<name>\w+)'"
)
SEARCHED = ("dng_lightning", "lightning.pytorch.callbacks", "lightning.pytorch.loggers", "torch.optim")


def _with_nearest(message: str) -> str:
    """The message; if it is about a class path without a class, only this and the nearest names."""
    if not (found := NO_CLASS.search(message)):
        return message
    path = found["bare"] or found["path"] or f"{found['module']}.{found['name']}"
    modules = [module for name, module in sys.modules.items() if name.startswith(SEARCHED)]
    names = {name for module in modules for name in getattr(module, "__all__", ())}
    names |= {*dir(sys.modules.get(found["module"]))}
    nearest = get_close_matches(path.rpartition(".")[2], [name for name in names if name[0].isupper()], 3)
    why = f" ({found['why']})" if found["why"] else ""
    settings = re.match('(Parser key "\\S+":\\s*)*', message)
    listed = f"; the nearest: {', '.join(nearest)}" if nearest else ""
    return f"{settings[0] if settings else ''}there is no class {path!r}{why}{listed}"


class Parser(LightningArgumentParser):
    """Reports an error in one line, without the usage of all options."""

    def validate(self, cfg: Namespace, **settings: Any) -> None:
        """Refuse null for settings that have another default and no such type; jsonargparse takes it for all."""
        super().validate(cfg, **settings)
        for action in self._actions:
            hint, key = getattr(action, "_typehint", None), action.dest
            takes_null = hint in (None, Any) or type(None) in get_args(hint) or action.default is None
            if not takes_null and key in cfg and cfg[key] is None:
                raise TypeError(f'Parser key "{key}": it cannot be null')

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a SettingError; see ``ArgumentParser.error``."""
        lines = [line.strip(" -") for line in _with_nearest(message).splitlines()]
        lacks = any(line.startswith("the following arguments are required") for line in lines)
        other_type = "Expected a <class" if lacks else "Expected a <class 'NoneType'>"  # than the class that lacks them
        noise = ("Does not validate", "Subtypes:", "Errors:", "Given value", other_type)
        text = " ".join(line for line in lines if line and not line.startswith(noise))
        raise SettingError(re.sub('Parser key "(\\S+)":', r"\1:", text)) from ex
