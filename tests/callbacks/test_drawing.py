"""All processes of a sampling write to one folder; `scripts/two_nodes.py` tries it with two nodes."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dng_lightning.callbacks.drawing import DrawingCallback
from dng_lightning.errors import SettingError


class _Strategy:
    """Two processes, of which the other one finds the first one's files or not."""

    def __init__(self, other_finds: bool) -> None:
        self.other_finds = other_finds

    def broadcast(self, name: str) -> str:
        return name

    def barrier(self, name: str) -> None:
        """Nobody else is there to wait for."""

    def reduce_boolean_decision(self, decision: bool) -> bool:
        return decision and self.other_finds


def _trainer(folder: Path, other_finds: bool, processes: int = 2) -> SimpleNamespace:
    strategy = _Strategy(other_finds)
    return SimpleNamespace(world_size=processes, default_root_dir=folder, is_global_zero=True, strategy=strategy)


def test_nodes_with_different_folders_are_refused(tmp_path: Path):
    with pytest.raises(SettingError, match="is a different folder on each node"):
        DrawingCallback().check_shared(_trainer(tmp_path, other_finds=False))


@pytest.mark.parametrize(("other_finds", "processes"), [(True, 2), (False, 1)])
def test_a_shared_folder_is_left_as_it_was(tmp_path: Path, other_finds: bool, processes: int):
    DrawingCallback().check_shared(_trainer(tmp_path, other_finds, processes))
    assert not any(tmp_path.iterdir())
