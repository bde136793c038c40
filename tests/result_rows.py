"""Rows of a `results.csv`, and the points of a figure made of them."""

from typing import Any

from matplotlib.container import ErrorbarContainer

from dng_lightning.evaluation.class_balance import wilson_interval


def row(method: str, forbidden: float, kl: float, fd: float | str = "", **more: Any) -> dict[str, str]:
    """A row of a `results.csv` with 1,000 images."""
    told = {"method": method, "scale": "", "n": 1000, "seeds": "0-999", "steps": 50, "forbidden_rate": forbidden} | more
    low, high = wilson_interval(round(forbidden * int(told["n"])), int(told["n"]))
    told |= {
        "forbidden_rate_low": low,
        "forbidden_rate_high": high,
        "kl_retained": kl,
        "kl_retained_low": 0.9 * kl,
        "kl_retained_high": 1.1 * kl,
    }
    if fd:
        told |= {
            "fd_retained": fd,
            "fd_retained_low": 0.8 * float(fd),
            "fd_retained_high": 1.2 * float(fd),
            "kid": 0.00123,
        }
        told |= {"precision": 0.75, "recall": 0.625, "rmse_to_unguided": 0.125}
    return {name: str(value) for name, value in {"nfe": 100, "fd_retained": "", **told}.items()}


CURVE = [row("DNG", 0.04, 0.1, 2), row("DNG", 0.0025, 0.3, 4), row("DNG", 0.01, 0.2, 8)]


def points(found: ErrorbarContainer) -> list[tuple[float, float]]:
    line = found.lines[0]
    return [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]
