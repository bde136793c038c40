"""Does the tracked posterior of a class add to that of a probe? Measured on the unguided images of a model.

usage: python scripts/posterior_pair.py [--checkpoint mnist] [--probe mnist-probe] [--num_samples 256]

All classes are tracked along the same unguided chains. The pair adds the log odds of both posteriors,

    logit p = w logit p_calibrated + v logit p_probe + b,

with w, v and b fitted to the labels of the first half of the images at each time; (1, 1, -logit of the prior) is the
product of experts. A row has the mean Brier score and log loss over all classes of the second half.
"""

import argparse

import torch
from torch import Tensor
from torch.nn import functional

from dng_lightning.data.pixels import to_float, to_uint8
from dng_lightning.guidance import DynamicNegativeGuidance, Unguided
from dng_lightning.modules import GuidedSampler
from dng_lightning.modules.checkpoint_settings import load_settings
from dng_lightning.posterior import CalibratedPosterior, ProbePosterior
from dng_lightning.sampling import PassiveTracking

TIMES = (0.6, 0.5, 0.4, 0.3, 0.2, 0.0)  # t / T
BATCH = 64
CERTAIN = 1e-6  # log odds are bounded there


def scores(log_odds: Tensor, became: Tensor) -> str:
    """Brier score and log loss of log odds (N, K) against what happened (N, K), as cells of a table."""
    loss = functional.binary_cross_entropy_with_logits(log_odds, became)
    return f"{(log_odds.sigmoid() - became).square().mean():.4f} | {loss:.4f}"


def fitted(features: Tensor, became: Tensor) -> Tensor:
    """Weights and bias of a logistic regression, (F + 1,), from log odds (N, K, F) that all classes share."""
    ones = torch.cat([features, torch.ones_like(features[..., :1])], 2)
    weights = torch.zeros(ones.shape[2], dtype=ones.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.binary_cross_entropy_with_logits(ones @ weights, became)
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]  # it returns a tensor
    return weights.detach()


def main() -> None:
    """Draw the chains, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="mnist")
    parser.add_argument("--probe", default="mnist-probe")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--num_samples", type=int, default=256)
    parser.add_argument("--first_seed", type=int, default=200_000)
    given = parser.parse_args()

    # All classes are tracked on the same chains
    sampler = GuidedSampler(given.checkpoint, [], Unguided(), steps=given.steps, probe=given.probe)
    sampler.forbidden = list(sampler.model.seen_classes)
    calibrated = load_settings(
        DynamicNegativeGuidance(posterior=CalibratedPosterior(p_max=1 - CERTAIN)), sampler.folder
    )
    log_p, labels = [], []
    seeds = range(given.first_seed, given.first_seed + given.num_samples)
    for first in range(0, len(seeds), BATCH):
        tracking = PassiveTracking([calibrated.posterior, ProbePosterior(p_max=1 - CERTAIN)])
        drawn = sampler.draw(seeds[first : first + BATCH], Unguided(), [tracking])
        places = [max(sum(time > at for time in drawn.times) - 1, 0) for at in TIMES]
        log_p.append(tracking.log_prob[:, places].double())
        assert sampler.judge is not None
        labels.append(sampler.judge.label(to_float(to_uint8(drawn.images))).labels)
        print(f"{min(first + BATCH, len(seeds))} of {len(seeds)} images", flush=True)
    became = functional.one_hot(torch.cat(labels), len(sampler.forbidden)).double()

    # One table, of the half that nothing was fitted to
    print("| t/T | posterior | Brier score | log loss |\n|---|---|---|---|")
    prior, half = torch.tensor(1 / len(sampler.forbidden)).double().logit(), len(became) // 2
    for at, each in zip(TIMES, torch.cat(log_p).exp().logit(CERTAIN).unbind(1), strict=True):  # (N, 2, K)
        tracked, probed = each.unbind(1)
        first, second = slice(half), slice(half, None)
        print(f"| {at} | calibrated | {scores(tracked[second], became[second])} |")
        print(f"| | probe | {scores(probed[second], became[second])} |")
        print(f"| | product of experts | {scores((tracked + probed - prior)[second], became[second])} |")
        for name, features in (("calibrated", [tracked]), ("probe", [probed]), ("pair", [tracked, probed])):
            features = torch.stack(features, 2)
            *weights, bias = fitted(features[first], became[first])
            fit = (features[second] * torch.stack(weights)).sum(2) + bias
            print(f"| | {name}, fitted ({', '.join(f'{w:.2f}' for w in weights)}) | {scores(fit, became[second])} |")


if __name__ == "__main__":
    main()
