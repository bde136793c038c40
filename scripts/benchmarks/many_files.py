"""Reading a folder of many small files: start-up, waiting for data, and memory above the in-memory limit.

    nice -n 10 python scripts/benchmarks/many_files.py [--quick] [--to FILE]

For 25,000 files, the first run and the next, each in a process of its own: seconds until the first batch,
the share of a training step that waits for data, and the peak of the process's own memory over that of the imported
libraries. All with the decoded images in a mapped file. Its own memory is what Linux calls anonymous, RssAnon: the
pages of the mapped file are not part of it, because the system takes them back where memory is short.
"""

import io
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import Measurement, run
from PIL import Image

from dng_lightning.cli import open_settings
from dng_lightning.data import ImageFolder
from dng_lightning.networks import UNet

SIDE, BATCH, STEPS = 32, 64, 6
COUNTS = [25_000]  # the docs have 100_000 as well


def make(root: Path, count: int) -> None:
    """Files of ten classes; a thousand different images, so that writing them takes no time."""
    draws, contents = np.random.default_rng(0), []
    for _ in range(min(count, 1000)):
        file = io.BytesIO()
        Image.fromarray(draws.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file, "png", compress_level=1)
        contents.append(file.getvalue())
    for label in range(10):
        (root / str(label)).mkdir(parents=True)
    for number in range(count):
        (root / str(number % 10) / f"{number}.png").write_bytes(contents[number % len(contents)])


class OwnMemory(threading.Thread):
    """Follows the anonymous memory of this process, in MiB above that at the start, every 5 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.before = 0.0, self.now()
        self.start()

    def run(self) -> None:
        """Keep the largest value."""
        while True:
            self.peak = max(self.peak, self.now() - self.before)
            time.sleep(0.005)

    @staticmethod
    def now() -> float:
        """RssAnon of this process in MiB."""
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
        return int(line.split()[1]) / 1024


def start(root: Path, steps: int) -> dict[str, float]:
    """What one run sees: until the first batch, its steps, and its memory."""
    torch.set_num_threads(1)
    memory = OwnMemory()
    began, used = time.perf_counter(), time.process_time()
    data = ImageFolder(str(root), memory_share=0.0, batch_size=BATCH)
    data.prepare_data()
    data.setup()
    batches = iter(data.train_dataloader())
    next(batches)
    found = {
        "s to the first batch": time.perf_counter() - began,
        "s of CPU to the first batch": time.process_time() - used,
    }
    found["MiB of own memory to the first batch"] = memory.peak
    net = UNet(3, 10, **open_settings.unet_of([SIDE, SIDE], 100_000))
    waited = stepped = 0.0
    for _ in range(steps):
        began = time.perf_counter()
        images, labels = next(batches)
        fetched = time.perf_counter()
        net(data.on_after_batch_transfer((images, labels), 0)[0], torch.zeros(BATCH).long()).square().mean().backward()
        waited, stepped = waited + fetched - began, stepped + time.perf_counter() - began
    found["% of a step that waits for data"] = 100 * waited / stepped
    return found | {"MiB of own memory with the steps": memory.peak}


def measure(quick: bool) -> Iterator[Measurement]:
    """Both sizes, each started twice."""
    root = Path(tempfile.mkdtemp())
    try:
        for count in [1000] if quick else COUNTS:
            make(root / str(count), count)
            for name in ("first", "next"):
                command = [sys.executable, __file__, str(root / str(count)), str(1 if quick else STEPS)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                for unit, value in json.loads(done.stdout.splitlines()[-1]).items():
                    yield Measurement(f"{count:,} files, {name} run", unit, [value])
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    if len(sys.argv) == 3 and Path(sys.argv[1]).is_dir():  # a run of it
        print(json.dumps(start(Path(sys.argv[1]), int(sys.argv[2]))))
    else:
        run(__doc__, measure)
