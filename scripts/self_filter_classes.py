"""What the self-filter leaves of each class of a model, from one set of unguided chains for all classes.

usage: python scripts/self_filter_classes.py [--probe mnist-probe] [--early 0.3] [--end 0.05] [--num_samples 400]

A chain is kept where p(c | x_t) of the probe is at most `early` at t/T = .4 and at most `end` at the last step. The
filter replaces each other chain by further chains until one is kept, so that the shares among the kept chains estimate
the shares among its images. A row has the removed class, the number of chains kept, the images of the class among them,
the least and the greatest share of another class, and the chains that an image costs.
"""

import argparse

import torch
from torch import Tensor

from dng_lightning.data.pixels import to_float, to_uint8
from dng_lightning.guidance import Unguided
from dng_lightning.modules import GuidedSampler
from dng_lightning.posterior import ProbePosterior
from dng_lightning.sampling import PassiveTracking

CHECK = 0.4  # t / T of the early check


def row(early: Tensor, end: Tensor, labels: Tensor, label: int, thresholds: tuple[float, float], saved: float) -> str:
    """One row of the table.

    Args:
        early: the posterior of the class at the early check, (N,).
        end: that at the end, (N,).
        labels: what the images became, (N,).
        label: the removed class.
        thresholds: of the early check and of the end.
        saved: share of a chain that an early check saves.
    """
    going = early <= thresholds[0]
    kept = going & (end <= thresholds[1])
    shares = labels[kept].bincount(minlength=int(labels.max()) + 1) / kept.sum()
    others = 100 * torch.cat([shares[:label], shares[label + 1 :]])
    chains = (going.sum() + (1 - saved) * (~going).sum()) / kept.sum()
    left = int((labels[kept] == label).sum())
    return f"{label} | {int(kept.sum())} | {left} | {others.min():.1f}-{others.max():.1f} | {chains:.2f}"


def main() -> None:
    """Draw the chains, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="mnist")
    parser.add_argument("--probe", default="mnist-probe")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--early", type=float, default=0.3)
    parser.add_argument("--end", type=float, default=0.05)
    parser.add_argument("--num_samples", type=int, default=400)
    given = parser.parse_args()
    sampler = GuidedSampler(given.checkpoint, [], Unguided(), steps=given.steps, probe=given.probe)
    sampler.forbidden = list(sampler.model.seen_classes)
    early, end, labels = [], [], []
    for first in range(0, given.num_samples, 100):
        tracking = PassiveTracking([ProbePosterior(p_max=1 - 1e-9)])
        drawn = sampler.draw(range(first, min(first + 100, given.num_samples)), Unguided(), [tracking])
        place = sum(time > CHECK for time in drawn.times) - 1
        early.append(tracking.log_prob[:, place, 0].exp())
        end.append(tracking.log_prob[:, -1, 0].exp())
        assert sampler.judge is not None
        labels.append(sampler.judge.label(to_float(to_uint8(drawn.images))).labels)
    print("removed | kept | left | others, % | chains")
    for label in sampler.forbidden:
        of_class = torch.cat(early)[:, label], torch.cat(end)[:, label]
        print(row(*of_class, torch.cat(labels), label, (given.early, given.end), CHECK))


if __name__ == "__main__":
    main()
