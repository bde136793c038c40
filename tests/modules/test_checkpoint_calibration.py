"""The calibration in a checkpoint's folder."""

from pathlib import Path

import pytest
import yaml

from dng_lightning.errors import SettingError
from dng_lightning.guidance import DynamicNegativeGuidance, LimitedInterval
from dng_lightning.modules.checkpoint_settings import load_settings
from dng_lightning.posterior import CalibratedPosterior, ObserverPosterior, TrackedPosterior

ROWS = [[-4.0, 1.0, -2.0], [0.0, 1.5, -1.0], [2.0, 0.5, 3.0]]
SETTINGS = {"p_max": 0.9, "guidance_shift_weight": 0.5, "divergence": 1}


def write(folder: Path, rows: object) -> None:
    """An overlay, as the calibration writer writes it, whose other settings are not read."""
    posterior = {"class_path": "CalibratedPosterior", "init_args": {"calibration": rows, "p_max": 0.2}}
    overlay = {"model": {"init_args": {"guidance": {"init_args": {"scale": 9.0, "posterior": posterior}}}}}
    (folder / "calibration.yaml").write_text(yaml.safe_dump(overlay))


def test_a_calibration_is_found_in_the_folder_of_the_checkpoint(tmp_path: Path):
    guidance = DynamicNegativeGuidance(2.0, CalibratedPosterior(**SETTINGS))
    assert load_settings(guidance, tmp_path) == DynamicNegativeGuidance(2.0, TrackedPosterior(**SETTINGS))
    write(tmp_path, ROWS)
    assert load_settings(guidance, tmp_path) == DynamicNegativeGuidance(2.0, CalibratedPosterior(ROWS, **SETTINGS))
    none = DynamicNegativeGuidance(2.0, CalibratedPosterior(None, **SETTINGS))
    assert load_settings(none, tmp_path) == DynamicNegativeGuidance(2.0, TrackedPosterior(**SETTINGS))
    plain = DynamicNegativeGuidance(2.0)
    assert load_settings(plain, tmp_path) is plain


def test_it_is_found_for_a_posterior_inside_others(tmp_path: Path):
    write(tmp_path, ROWS)
    guidance = LimitedInterval(DynamicNegativeGuidance(posterior=ObserverPosterior(CalibratedPosterior())))
    found = load_settings(guidance, tmp_path)
    assert found == LimitedInterval(DynamicNegativeGuidance(posterior=ObserverPosterior(CalibratedPosterior(ROWS))))


@pytest.mark.parametrize("text", ["", "[1, 2]", "model: {init_args: 3}", "a: b: c", "{}"])
def test_another_file_of_that_name_is_refused(text: str, tmp_path: Path):
    (tmp_path / "calibration.yaml").write_text(text)
    with pytest.raises(SettingError, match="is no calibration: fit it anew") as refused:
        load_settings(DynamicNegativeGuidance(posterior=CalibratedPosterior()), tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("rows", ["checkpoint", [], [[0, 1]], [[1, 1, 0], [0, 1, 0]], [["a", 1, 0]]])
def test_rows_that_are_no_calibration_are_refused(rows: object, tmp_path: Path):
    write(tmp_path, rows)
    with pytest.raises(SettingError, match="is no calibration: fit it anew"):
        load_settings(DynamicNegativeGuidance(posterior=CalibratedPosterior()), tmp_path)
