"""Names and settings of a guidance, also where it wraps another: for tables, file names and messages."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.references import References
from dng_lightning.posterior import CalibratedPosterior, Posterior, Timing, TrackedPosterior

T = TypeVar("T")

PLAIN_POSTERIORS = (TrackedPosterior, CalibratedPosterior)  # not part of a name


def display_name(guidance: Guidance) -> str:
    """The method's name, with what it wraps and an unusual posterior: "DynamicNegativeGuidance, released"."""
    inside = ", ".join(map(display_name, wrapped(guidance)))
    posterior = type(getattr(guidance, "posterior", None))
    usual = (*PLAIN_POSTERIORS, type(getattr(type(guidance), "posterior", None)))
    suffix = "" if posterior in usual else f", {posterior.__name__.removesuffix('Posterior').lower()}"
    return type(guidance).__name__ + (f"({inside})" if inside else "") + suffix


def display_name_with_scale(guidance: Guidance) -> str:
    """The same with its scale, if it has one: for several of one method."""
    scale = scale_of(guidance)
    return display_name(guidance) + (f", scale {scale:g}" if scale is not None else "")


def settings_json(guidance: Guidance | Posterior) -> str:
    """The class and all settings, as JSON; the same of each guidance and posterior inside."""
    return json.dumps(guidance, default=_as_dict)


def non_default_settings(settings: str) -> str:
    """Of the result of ``settings_json`` what differs from the defaults, as JSON.

    Results are found again by it when a method has one more setting than it had.
    """
    return json.dumps(_non_default(json.loads(settings)), sort_keys=True)


def scale_of(guidance: Guidance) -> float | None:
    """Its ``scale``, or that of the guidance that it wraps; None where there is none."""
    own: float | None = getattr(guidance, "scale", None)
    inside = (scale for inner in wrapped(guidance) if (scale := scale_of(inner)) is not None)
    return next(inside, None) if own is None else own


def wrapped(guidance: Guidance) -> list[Guidance]:
    """The guidances among its settings."""
    return [value for value in _fields(guidance).values() if isinstance(value, Guidance)]


def map_settings(value: T, function: Callable[[Any], Any]) -> T:
    """A guidance with ``function`` applied to each guidance and posterior in it, from the inside out, and to itself."""
    inner = {name: v for name, v in _fields(value).items() if isinstance(v, Guidance | Posterior)}
    changed = {name: new for name, v in inner.items() if (new := map_settings(v, function)) is not v}
    mapped: T = function(replace(value, **changed) if changed else value)  # type: ignore[type-var]  # dataclasses
    return mapped


def _non_default(settings: dict[str, Any]) -> dict[str, Any]:
    kinds = (*_subclasses(Guidance), *_subclasses(Posterior), Timing)
    kind = next((kind for kind in kinds if kind.__name__ == settings.get("class")), None)
    defaults = {field.name: _stripped(field.default) for field in fields(kind)} if is_dataclass(kind) else {}
    inside = {name: _stripped(value) for name, value in settings.items()}
    return {name: value for name, value in inside.items() if name not in defaults or value != defaults[name]}


def _stripped(value: Any) -> Any:
    """A setting as JSON has it, nested ones without their defaults."""
    if is_dataclass(value):
        value = json.loads(json.dumps(value, default=_as_dict))
    return _non_default(value) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _as_dict(value: Any) -> dict[str, Any] | str:
    """What stands for an object in JSON; the rows of a calibration by their hash, for they are many."""
    if isinstance(value, References):
        return str(value.source)
    settings = _fields(value)
    if isinstance(value, CalibratedPosterior) and value.calibration not in ("checkpoint", None):
        rows = json.dumps([list(map(float, row)) for row in value.calibration or ()])
        settings["calibration"] = f"sha256 {hashlib.sha256(rows.encode()).hexdigest()[:12]}"
    return {"class": type(value).__name__, **settings}


def _fields(value: Any) -> dict[str, Any]:
    """The settings; none of a user's own class that is no dataclass."""
    return {field.name: getattr(value, field.name) for field in fields(value)} if is_dataclass(value) else {}
