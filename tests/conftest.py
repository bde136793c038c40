"""Fixtures for the whole suite."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

# On cores that others use too (pytest -n 2) torch's threads wait for each other, and everything takes ten times longer.
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the real MNIST and CIFAR-10, unpacked from beside the checkout."""
    prepare = SHARED / "prepare.py"
    if not prepare.exists():
        pytest.skip(f"REAL DATA MISSING: no {prepare}, so nothing here was tried on the real MNIST and CIFAR-10")
    root = tmp_path_factory.mktemp("real_data")
    subprocess.run([sys.executable, str(prepare), str(root)], check=True)
    return root
