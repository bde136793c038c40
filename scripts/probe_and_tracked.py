"""Whether the posterior of a probe and the tracked one know more together than each alone.

usage: python scripts/probe_and_tracked.py [--probe mnist-probe] [--num_samples 512]

Unguided chains, with both posteriors for every class. At each level a logistic regression of "became this class" is
fitted to the log odds of the probe, of the tracked posterior, and of both (a product of experts), on one half of the
images, and measured on the other half, both ways. A row has the noise level sigma / alpha, the Brier score and AUC of
each, the weights of the two log odds in the pair (tracked, probe), and the difference in Brier score from the better
one with a 95 % interval over the images.
"""

import argparse
import math

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dng_lightning.data.pixels import to_float, to_uint8
from dng_lightning.guidance import Unguided
from dng_lightning.modules import GuidedSampler
from dng_lightning.posterior import CalibratedPosterior, ProbePosterior
from dng_lightning.posterior.calibration import log_odds
from dng_lightning.sampling import PassiveTracking

Numbers = np.ndarray
BATCH = 128


def judged(features: Numbers, became: Numbers) -> tuple[Numbers, float, Numbers]:
    """Brier score of each image, AUC, and weights of a logistic regression, on the halves that it was not fitted to.

    Args:
        features: log odds of F posteriors, (N, K, F).
        became: whether the image became each class, bool (N, K).
    """
    halves = np.array_split(np.arange(len(became)), 2)
    scores, areas, weights = [], [], []
    for fitted, unseen in (halves, halves[::-1]):
        count = features.shape[-1]
        model = LogisticRegression(C=1e6, max_iter=1000)  # as good as no penalty
        model.fit(features[fitted].reshape(-1, count), became[fitted].ravel())
        p = model.predict_proba(features[unseen].reshape(-1, count))[:, 1].reshape(became[unseen].shape)
        scores.append(np.square(p - became[unseen]).mean(1))
        areas.append(roc_auc_score(became[unseen].ravel(), p.ravel()))
        weights.append(model.coef_[0])
    return np.concatenate([scores[1], scores[0]]), float(np.mean(areas)), np.mean(weights, 0)


def main() -> None:
    """Draw the chains, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="mnist")
    parser.add_argument("--probe", default="mnist-probe")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--first_seed", type=int, default=100_000)
    parser.add_argument("--num_samples", type=int, default=512)
    given = parser.parse_args()
    sampler = GuidedSampler(given.checkpoint, [], Unguided(), steps=given.steps, probe=given.probe)
    sampler.forbidden = list(sampler.model.seen_classes)
    prior = math.log(1 / len(sampler.forbidden))

    # Draw: the log odds of both posteriors before each step, and what the images become
    odds, labels = [], []
    end = given.first_seed + given.num_samples
    for first in range(given.first_seed, end, BATCH):
        tracking = PassiveTracking([CalibratedPosterior([[0.0, 1.0, 0.0]]), ProbePosterior(p_max=1 - 1e-9)])
        images = sampler.draw(range(first, min(first + BATCH, end)), Unguided(), [tracking]).images
        tracked = (prior + tracking.state(0)).clamp(max=-1e-6)  # the state is the sum of the log ratios
        odds.append(torch.stack([log_odds(tracked), log_odds(tracking.log_prob[:, :, 1])], -1))
        assert sampler.judge is not None
        labels.append(sampler.judge.label(to_float(to_uint8(images))).labels)
    features = torch.cat(odds).double().numpy()
    became = (torch.cat(labels)[:, None] == torch.tensor(sampler.forbidden)).numpy()

    # Compare, at every fourth level
    print("sigma/alpha | tracked: Brier, AUC | probe | both | weights | both - better one")
    for step in range(2, features.shape[1], 4):
        here = features[:, step]
        alone = [judged(here[..., [each]], became) for each in (0, 1)]
        both = judged(here, became)
        gain = both[0] - min(alone, key=lambda found: found[0].mean())[0]
        cells = [f"{score.mean():.4f}, {area:.3f}" for score, area, _ in (*alone, both)]
        interval = 1.96 * gain.std() / math.sqrt(len(gain))
        level = tracking.levels[step]
        weights = ", ".join(f"{weight:.2f}" for weight in both[2])
        print(f"{level.sigma / level.alpha:.2f} | {' | '.join(cells)} | {weights} | {gain.mean():.4f} ± {interval:.4f}")


if __name__ == "__main__":
    main()
