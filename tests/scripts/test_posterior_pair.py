"""The fit and the scores of `scripts/posterior_pair.py`."""

import math

import pytest
import torch
from posterior_pair import fitted, scores


def test_the_fit_finds_the_weights_of_two_independent_posteriors():
    """Both hold the prior, so that the product of experts takes it out once."""
    generator = torch.Generator().manual_seed(0)
    became = (torch.rand(20_000, 1, generator=generator) < 0.3).double()
    prior = math.log(0.3 / 0.7)
    noise = torch.randn(20_000, 1, 2, generator=generator, dtype=torch.double)
    log_odds = 2 * ((2 * became - 1).unsqueeze(2) + noise) + prior  # of +-1 + unit noise, by Bayes' rule
    weights = fitted(log_odds, became)
    assert weights[:2].tolist() == pytest.approx([1, 1], abs=0.05)
    assert float(weights[2]) == pytest.approx(-prior, abs=0.1)


def test_scores_of_a_coin():
    became = torch.tensor([[1.0], [0.0]], dtype=torch.double)
    assert scores(torch.zeros(2, 1).double(), became) == f"0.2500 | {math.log(2):.4f}"
