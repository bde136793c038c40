"""Every guidance on mixtures whose exact predictions are known.

    python scripts/benchmarks/mixture_table.py > scripts/benchmarks/mixture.md

Prints ``INTRODUCTION`` and a table a problem and number of steps, as it goes: the share of samples that are not of the
true conditional's components, with its 95 % interval; how far the retained modes were moved, and their width; the
divergence of their shares from the truth; how far the posterior was off; and how many networks a sample asks at each
step.
"""

import math
import sys

from exact import PROBLEMS, STD, Method, Problem, methods

from dng_lightning.evaluation.class_balance import kl_divergence, wilson_interval

INTRODUCTION = """\
# Every guidance on exact mixtures

`python scripts/benchmarks/mixture_table.py > scripts/benchmarks/mixture.md`, one seed, about ten minutes on one core.
Scales are examples, not tuned; without a class or prompt the forms of negative prompting are one. Sampling is ancestral
but where eta 0 is said. The references all lie in the forbidden mode; in two dimensions SPELL and Safety-Guided Flow
move an image off them, not out of the mode. "Posterior off by" is the mean distance, before the last step and on the
method's own images, of the p that it went by (tracked, or told and bounded) from the exact p(forbidden | x).
"""
COLUMNS = (
    "guidance",
    "forbidden, %",
    "modes moved by",
    "their width",
    "KL of their shares",
    "posterior off by",
    "networks a step",
)


def heading(problem: Problem, steps: int) -> str:
    """What stands above a table."""
    return f"{problem.title}; {steps} steps, N = {problem.count}."


def line(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def number(value: float) -> str:
    """Two digits, or a dash where there was nothing to measure."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def row(problem: Problem, name: str, method: Method, steps: int) -> str:
    """The line of a method."""
    x_0, networks, off = problem.draw(method, steps)
    counts, moved, width = problem.measure(x_0)
    kept = [counts[component] for component in problem.retained]
    bad = len(x_0) - sum(kept)
    low, high = (100 * bound for bound in wilson_interval(bad, len(x_0)))
    kl = f"{kl_divergence(kept):.3f}" if len(kept) > 1 else "–"
    share = f"{100 * bad / len(x_0):.2f} ({low:.2f}–{high:.2f})"
    return line(name, share, number(moved), number(width), kl, number(off), f"{networks:.2f}")


def main() -> None:
    """Print it all, and on stderr what is being measured."""
    print(INTRODUCTION)
    for problem in PROBLEMS:
        for steps in problem.steps:
            print(heading(problem, steps), end="\n\n")
            print(line(*COLUMNS), "|---" * len(COLUMNS) + "|", sep="\n")
            print(line("*the truth*", "0", "0", f"{STD:.2f}", "0" if len(problem.retained) > 1 else "–", "–", "–"))
            for name, method in methods(problem).items():
                print(f"{heading(problem, steps)} {name}", file=sys.stderr, flush=True)
                print(row(problem, name, method, steps), flush=True)
            print()


if __name__ == "__main__":
    main()
