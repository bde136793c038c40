"""Our trade-off beside the authors' first: python scripts/benchmarks/authors_figure.py [results.csv of dng test]

Prints how Dynamic Negative Guidance compares with negative prompting and Safe Latent Diffusion at equal shares of
airplanes in CIFAR-10: as ratios, since the networks, the classifiers and the features of the distances are others, and
so are the settings: ours are of 50 steps, and Safe Latent Diffusion has another mask. `released` is DNG as they
released it. The authors' numbers were read off the figure in the first commit of their repository (10,240 images a
point), to about .03 points in the share, .003 in KL and .2 in FID.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dng_lightning.errors import SettingError
from dng_lightning.evaluation.results_file import read
from dng_lightning.evaluation.tables import equal_safety

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


def ratios(ours: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """KL and Fréchet distance of one curve of DNG over those of each other method's first; a dash where one lacks."""
    cells = []
    for measure in ("kl_retained", "fd_retained"):
        for name in METHODS[1:]:
            values = [result[measure] for result in others if result["method"].startswith(name) and measure in result]
            cells.append(f"{ours[measure] / values[0]:.2f}" if values and measure in ours else "–")
    return cells


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Markdown: for each share, theirs and then every curve of DNG that reaches it."""
    heads = [f"{measure}, DNG / {short}" for measure in ("KL", "Fréchet distance") for short in ("NP", "SLD")]
    lines = [f"| forbidden | | {' | '.join(heads)} |", "|" + "---|" * 6]
    for level in KL:
        theirs = [f"{values[0] / other:.2f}" for values in (KL[level], FID[level]) for other in values[1:]]
        lines.append(f"| {level:.1%} | theirs | {' | '.join(theirs)} |")
        results = equal_safety(rows, [level])
        for result in results:
            ours = ratios(result, results) if METHODS[0] in result["method"] else []  # alone or inside another
            if any(cell != "–" for cell in ours):
                lines.append(f"| | {result['method']} | {' | '.join(ours)} |")
    return "\n".join(lines)


def main(results: str = "results/cifar10-tradeoff/results.csv") -> None:
    """Print the table."""
    try:
        print(table(read(Path(results))))
    except SettingError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
