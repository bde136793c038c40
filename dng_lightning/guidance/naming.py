"""What a guidance is called and how it is set, also where it wraps another: for tables, file names and messages."""

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from dng_lightning.guidance.base import Guidance


def named(guidance: Guidance) -> str:
    """What its method is called; with what it wraps, as in "AdaptiveNegative(DynamicNegativeGuidance)"."""
    inside = ", ".join(map(named, wrapped(guidance)))
    parity = ", parity" if getattr(guidance, "parity", False) else ""
    return type(guidance).__name__ + (f"({inside})" if inside else "") + parity


def titled(guidance: Guidance) -> str:
    """The same with its scale, if it has one: for several of one method."""
    scale = scale_of(guidance)
    return named(guidance) + (f", scale {scale:g}" if scale is not None else "")


def settings(guidance: Guidance) -> str:
    """The class and all settings, as JSON; the same of each guidance inside."""
    return json.dumps(guidance, default=_as_dict)


def unusual(settings: str) -> str:
    """What of ``settings`` (those that the function of this name gives) is not as it comes, as JSON.

    Results are found again by it when a method got one more setting in the meantime.
    """
    return json.dumps(_unusual(json.loads(settings)), sort_keys=True)


def scale_of(guidance: Guidance) -> float | None:
    """Its ``scale``, or that of what it wraps; None where there is none."""
    own: float | None = getattr(guidance, "scale", None)
    inside = (scale for inner in wrapped(guidance) if (scale := scale_of(inner)) is not None)
    return next(inside, None) if own is None else own


def unscaled(settings: dict[str, Any]) -> dict[str, Any]:
    """The `settings`, read from JSON, without what `scale_of` gives: alike where guidances differ in that alone."""
    if settings.get("scale") is None:
        for name, value in settings.items():
            if isinstance(value, dict) and unscaled(value) != value:
                return settings | {name: unscaled(value)}
    return settings | {"scale": None} if "scale" in settings else settings


def wrapped(guidance: Guidance) -> list[Guidance]:
    """The guidances among its settings."""
    return [value for value in _fields(guidance).values() if isinstance(value, Guidance)]


def _unusual(settings: dict[str, Any]) -> dict[str, Any]:
    method = next((method for method in _below(Guidance) if method.__name__ == settings.get("class")), None)
    usual = {field.name: field.default for field in fields(method)} if method else {}
    inside = {name: _unusual(value) if isinstance(value, dict) else value for name, value in settings.items()}
    return {name: value for name, value in inside.items() if name not in usual or value != _as_json(usual[name])}


def _below(method: type[Any]) -> Iterator[type[Any]]:
    for subclass in method.__subclasses__():
        yield subclass
        yield from _below(subclass)


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _as_dict(guidance: Guidance) -> dict[str, Any]:
    return {"class": type(guidance).__name__, **_fields(guidance)}


def _fields(guidance: Guidance) -> dict[str, Any]:
    settings: dict[str, Any] = {
        field.name: getattr(guidance, field.name)
        for field in fields(guidance)  # type: ignore[arg-type]  # guidances are dataclasses
    }
    return settings
