"""The table of `scripts/self_filter_classes.py`."""

import torch
from self_filter_classes import row


def test_a_row_counts_the_kept_chains_and_what_an_early_check_saves():
    """Ten chains: one is given up early, one at the end; of the eight kept, one became the class all the same."""
    early = torch.tensor([0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    end = torch.tensor([0.0, 0.5, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01])
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 0, 2, 2, 2])
    cost = (9 + 0.6) / 8
    assert row(early, end, labels, 1, (0.3, 0.03), 0.4) == f"1 | 8 | 1 | 37.5-50.0 | {cost:.2f}"
