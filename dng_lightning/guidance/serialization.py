"""Names and settings of a guidance and of those that it wraps, for tables, file names and messages."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from dng_lightning.guidance.base import Guidance
from dng_lightning.guidance.references import References
from dng_lightning.posterior import CalibratedPosterior, Posterior, ProbePosterior, TimedPosterior, TrackedPosterior

T = TypeVar("T")

PLAIN_POSTERIORS = (TrackedPosterior, TimedPosterior, CalibratedPosterior)  # omitted from names


def display_name(guidance: Guidance) -> str:
    """The class, what it wraps, and a posterior that is not the default: "DynamicNegativeGuidance, released"."""
    inside = ", ".join(map(display_name, wrapped(guidance)))
    posterior = getattr(guidance, "posterior", None)
    usual = (*PLAIN_POSTERIORS, type(None), type(getattr(type(guidance), "posterior", None)))
    suffix = "" if type(posterior) in usual else f", {type(posterior).__name__.removesuffix('Posterior').lower()}"
    return type(guidance).__name__ + (f"({inside})" if inside else "") + suffix


def display_name_with_scale(guidance: Guidance) -> str:
    """``display_name`` with the scale, if there is one: tells several of one method apart."""
    scale = scale_of(guidance)
    return display_name(guidance) + (f", scale {scale:g}" if scale is not None else "")


def settings_json(guidance: Guidance | Posterior) -> str:
    """The class and all settings as JSON, nested guidances and posteriors included."""
    return json.dumps(guidance, default=_as_dict)


def non_default_settings(settings: str) -> str:
    """The settings in the result of ``settings_json`` that differ from the defaults, as JSON.

    Finished results are identified by these, so that a new setting of a method does not invalidate them.
    """
    return json.dumps(_non_default(json.loads(settings)), sort_keys=True)


def scale_of(guidance: Guidance) -> float | None:
    """The ``scale`` of the guidance, or of the guidance that it wraps; None if there is none."""
    own: float | None = getattr(guidance, "scale", None)
    inside = (scale for inner in wrapped(guidance) if (scale := scale_of(inner)) is not None)
    return next(inside, None) if own is None else own


def wrapped(guidance: Guidance) -> list[Guidance]:
    """The guidances among its settings."""
    return [value for value in _fields(guidance).values() if isinstance(value, Guidance)]


def contains(guidance: Guidance, kind: type[Any]) -> bool:
    """Whether it is of this kind, or a guidance that it wraps is."""
    return isinstance(guidance, kind) or any(contains(inner, kind) for inner in wrapped(guidance))


def map_settings(value: T, function: Callable[[Any], Any]) -> T:
    """A guidance with ``function`` applied to each nested guidance and posterior, innermost first, and to itself."""
    inner = {name: v for name, v in _fields(value).items() if isinstance(v, Guidance | Posterior)}
    changed = {name: new for name, v in inner.items() if (new := map_settings(v, function)) is not v}
    mapped: T = function(replace(value, **changed) if changed else value)  # type: ignore[type-var]  # dataclasses
    return mapped


def _non_default(settings: dict[str, Any]) -> dict[str, Any]:
    kinds = (*_subclasses(Guidance), *_subclasses(Posterior))
    kind = next((kind for kind in kinds if kind.__name__ == settings.get("class")), None)
    defaults = {field.name: _stripped(field.default) for field in fields(kind)} if is_dataclass(kind) else {}
    inside = {name: _stripped(value) for name, value in settings.items()}
    return {name: value for name, value in inside.items() if name not in defaults or value != defaults[name]}


def _stripped(value: Any) -> Any:
    """A setting in its JSON form, without the defaults of nested objects."""
    if is_dataclass(value):
        value = json.loads(json.dumps(value, default=_as_dict))
    return _non_default(value) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _as_dict(value: Any) -> dict[str, Any] | str:
    """The JSON form of an object; a calibration is represented by the hash of its rows."""
    if isinstance(value, References):
        return str(value.source)
    settings = _fields(value)
    if isinstance(value, CalibratedPosterior | ProbePosterior) and value.calibration not in ("checkpoint", None):
        rows = json.dumps([list(map(float, row)) for row in value.calibration or ()])
        settings["calibration"] = f"sha256 {hashlib.sha256(rows.encode()).hexdigest()[:12]}"
    return {"class": type(value).__name__, **settings}


def _fields(value: Any) -> dict[str, Any]:
    """The settings of a dataclass; {} for any other object."""
    return {field.name: getattr(value, field.name) for field in fields(value)} if is_dataclass(value) else {}
