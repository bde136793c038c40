"""Pictures, class counts, tables and settings reach every logger that a trainer may have."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger
from matplotlib.figure import Figure

from dng_lightning.data.pixels import from_pillow, from_png
from dng_lightning.evaluation.boards import Board
from dng_lightning.evaluation.tensorboard import RunLogger

TABLE = b'method,kl\r\n"Unguided, all",0.25\r\n'
RED = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(3, 4, 6).contiguous()


def fill(logger: Any) -> None:
    """Log one of each, as a training does."""
    board = Board([logger])
    board.add_image("samples/guided", RED, 7)
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([0, 1], [1, 0])
    board.add_figure("trajectories/scale", figure, 7)
    board.add_counts("samples/class_counts", [3, 0, 5], 7)
    board.add_row("test/Unguided", {"metrics/kl": 0.25}, 7)
    board.add_table("test/results", ["method", "kl"], [{"method": "Unguided, all", "kl": "0.25"}], 7)
    board.add_settings({"scale": 2.0, "guidance": None}, ["val/loss"])
    board.flush()


def test_csv_and_any_logger_with_a_folder(tmp_path: Path):
    logger = CSVLogger(str(tmp_path), name="", version="")
    fill(logger)
    logger.save()
    assert torch.equal(from_png(tmp_path / "media" / "samples_guided-00000007.png"), RED)
    assert from_png(tmp_path / "media" / "trajectories_scale-00000007.png").shape == (3, 50, 100)
    values: dict[str, str] = {}
    for row in csv.DictReader((tmp_path / "metrics.csv").open(newline="")):
        values |= {name: value for name, value in row.items() if value}
    assert [float(values[f"samples/class_counts/{label}"]) for label in range(3)] == [3, 0, 5]
    assert float(values["test/Unguided/metrics/kl"]) == 0.25
    assert (tmp_path / "media" / "test_results.csv").read_bytes() == TABLE
    assert "run/scale: 2.0" in (tmp_path / "hparams.yaml").read_text()


def test_tensorboard_gets_what_it_got(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fill(RunLogger(str(tmp_path), name="", version="", default_hp_metric=False))
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "histograms": 0}).Reload()
    assert set(events.Tags()["images"]) == {"samples/guided", "trajectories/scale"}
    assert events.Histograms("samples/class_counts")[0].histogram_value.bucket == [3, 0, 5]
    text = events.Tensors("test/results/text_summary")[0].tensor_proto.string_val[0]
    assert text == b"| method | kl |\n| --- | --- |\n| Unguided, all | 0.25 |"
    assert "test/Unguided/metrics/kl" not in events.Tags()["scalars"]


def test_mlflow_with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow", reason="MLFLOW MISSING: its logger was not tried (pip install mlflow)")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("dng", tracking_uri=f"file:{tmp_path}")
    fill(logger)
    run = mlflow.MlflowClient(f"file:{tmp_path}").get_run(logger.run_id)
    assert [run.data.metrics[f"samples/class_counts/{label}"] for label in range(3)] == [3, 0, 5]
    assert run.data.metrics["test/Unguided/metrics/kl"] == 0.25
    (table,) = tmp_path.rglob("artifacts/test/results.csv")
    assert table.read_bytes().split() == TABLE.split()
    assert run.data.params["run/scale"] == "2.0"
    assert len(list(tmp_path.rglob("images/*.png"))) == 2


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb", reason="WANDB MISSING: its logger was not tried (pip install wandb)")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger("run", str(tmp_path), offline=True)
    fill(logger)
    kept = {name: type(value).__name__ for name, value in logger.experiment.summary._as_dict().items()}
    wandb.finish()
    assert {"samples/guided", "trajectories/scale", "samples/class_counts", "test/results"} <= set(kept)
    (table,) = tmp_path.rglob("media/table/**/*.json")
    assert json.loads(table.read_text())["data"] == [["Unguided, all", "0.25"]]
    assert len(list(tmp_path.rglob("media/images/**/*.png"))) == 2


def test_aim_with_a_folder(tmp_path: Path):
    reason = "AIM MISSING: its logger was not tried (pip install aim)"
    aim = pytest.importorskip("aim.pytorch_lightning", reason=reason)
    logger = aim.AimLogger(repo=str(tmp_path), experiment="dng", system_tracking_interval=None)
    fill(logger)
    run = logger.experiment
    sequences = run.collect_sequence_info(("metric", "images", "texts"))
    metrics, images, texts = ({row["name"]: row["values"]["last"] for row in rows} for rows in sequences.values())
    settings = run["hparams"]
    run.close()
    counts = {f"samples/class_counts/{label}": count for label, count in enumerate([3.0, 0.0, 5.0])}
    assert metrics == counts | {"test/Unguided/metrics/kl": 0.25}
    assert torch.equal(from_pillow(images["samples/guided"].to_pil_image()), RED)
    assert images["trajectories/scale"].size == (100, 50)
    assert texts["test/results"].data.encode() == TABLE
    assert settings == {"run/scale": 2.0}
