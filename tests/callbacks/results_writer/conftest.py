"""The comparison of `digits_comparison.py`, run once for the tests of this folder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from digits_comparison import FIRST, FORBIDDEN, GUIDANCES, METHODS, STEPS, N
from running import Dng, rendered_figures
from torch import Tensor

from dng_lightning.evaluation.runs import Samples
from dng_lightning.guidance import Unguided
from dng_lightning.modules import GuidedSampler
from dng_lightning.sampling import NetworkPairPredictor


@pytest.fixture(scope="session")
def without_3_and_8(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says that it never saw the forbidden classes; its weights are those of `digits`, scaled."""
    stored = torch.load(digits / "model.ckpt", weights_only=True)
    stored["trained_on"]["seen_classes"] = [c for c in range(10) if c not in FORBIDDEN]
    stored["state_dict"] = {name: 0.9 * value for name, value in stored["state_dict"].items()}
    path = tmp_path_factory.mktemp("retrained") / "model.ckpt"
    torch.save(stored, path)
    return path


@pytest.fixture(scope="session")
def settings(digits: Path) -> list[str]:
    model = [f"--model.checkpoint={digits}", "--model.classifier=digits-classifier", f"--model.steps={STEPS}"]
    seeds = [
        f"--data.num_samples={N}",
        f"--data.first_seed={FIRST}",
        "--data.reference_data=Digits",
        "--data.batch_size=10",
    ]
    return [*model, f"--model.forbidden={FORBIDDEN}", f"--model.guidances={GUIDANCES}", *seeds]


@pytest.fixture(scope="session")
def written(dng: Dng, settings: list[str], without_3_and_8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    command = ["test", *settings, f"--model.retrained_checkpoint={without_3_and_8}"]
    with rendered_figures():
        dng(*command, f"--trainer.default_root_dir={folder}")
    return folder


@pytest.fixture(scope="session")
def sampler(digits: Path, without_3_and_8: Path) -> GuidedSampler:
    return GuidedSampler(
        str(digits),
        FORBIDDEN,
        steps=STEPS,
        classifier="digits-classifier",
        retrained_checkpoint=str(without_3_and_8),
        guidances=METHODS,
    )


@pytest.fixture(scope="session")
def samples(sampler: GuidedSampler) -> list[Samples]:
    """Unguided, of each method, and retrained, in one batch."""
    seeds = range(FIRST, FIRST + N)
    guided = [sampler.draw(seeds, method) for method in METHODS]
    retrained = NetworkPairPredictor(sampler.retrained, [], sampler.retrained.null_class)
    return [sampler.draw(seeds, Unguided()), *guided, sampler.draw(seeds, Unguided(), predictor=retrained)]


# --- however they are drawn ---


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The method of each batch that is drawn."""
    methods: list[str] = []
    test_step = GuidedSampler.test_step

    def watched(self: GuidedSampler, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Any:
        methods.append(self.draws[dataloader_idx].run.method)
        return test_step(self, batch, batch_idx, dataloader_idx)

    monkeypatch.setattr(GuidedSampler, "test_step", watched)
    return methods


@pytest.fixture(scope="session")
def whole(dng: Dng, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    dng("test", *settings, f"--trainer.default_root_dir={folder}")
    return folder
