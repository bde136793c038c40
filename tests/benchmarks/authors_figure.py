"""Our trade-off beside the authors' first: python tests/benchmarks/authors_figure.py [results.csv of dng test]

Prints how Dynamic Negative Guidance compares with negative prompting and Safe Latent Diffusion at equal shares of
airplanes in CIFAR-10: as ratios, since the networks, the classifiers and the features of the distances are others, and
so are the settings: ours is calibrated, of 50 steps, and its Safe Latent Diffusion has another mask. The authors'
numbers were read off the figure in the first commit of their repository (10,240 images a point), to about .03 points in
the share, .003 in KL and .2 in FID.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dng_lightning.errors import SettingError
from dng_lightning.evaluation.report import equal_safety
from dng_lightning.evaluation.table import read

METHODS = ("DynamicNegativeGuidance", "NegativePrompting", "SafeLatentDiffusion")
# by share of forbidden images; the methods' values in the order above
KL = {
    0.006: (0.140, 0.218, 0.190),
    0.01: (0.118, 0.154, 0.169),
    0.015: (0.105, 0.130, 0.139),
    0.02: (0.096, 0.116, 0.126),
    0.03: (0.097, 0.108, 0.121),
}
FID = {
    0.006: (13.9, 26.7, 16.8),
    0.01: (12.4, 16.1, 14.9),
    0.015: (11.4, 13.0, 12.7),
    0.02: (10.8, 11.4, 11.8),
    0.03: (10.8, 10.4, 11.2),
}


def ratios(rows: Sequence[Mapping[str, str]], measure: str, level: float) -> list[str]:
    """DNG's value over each other method's at this share, the first curve of each method that reaches it."""
    values: dict[str, float] = {}
    for result in equal_safety(rows, [level]):
        name = result["method"].split(",")[0]
        if measure in result and "parity" not in result["method"]:
            values.setdefault(name, result[measure])
    ours = values.get(METHODS[0])
    return [f"{ours / values[name]:.2f}" if ours and name in values else "–" for name in METHODS[1:]]


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown: a line for each share, theirs before ours."""
    heads = [f"{measure} DNG / {short}" for measure in ("KL", "Fréchet distance") for short in ("NP", "SLD")]
    lines = [f"| forbidden | {' | '.join(f'{head}: theirs | ours' for head in heads)} |", "|" + "---|" * 9]
    for level in KL:
        cells = []
        for theirs, measure in ((KL[level], "kl"), (FID[level], "fd_retained")):
            for other, found in zip(theirs[1:], ratios(rows, measure, level), strict=True):
                cells += [f"{theirs[0] / other:.2f}", found]
        lines.append(f"| {level:.1%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(results: str = "results/cifar10-tradeoff/results.csv") -> None:
    """Print the table."""
    try:
        print(table(read(Path(results))))
    except SettingError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
