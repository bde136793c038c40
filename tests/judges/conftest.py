"""Fixtures of the judges."""

import pytest
import torch
from tiny_judges import Net


@pytest.fixture
def net() -> Net:
    """A classifier with random weights."""
    torch.manual_seed(0)
    return Net()
