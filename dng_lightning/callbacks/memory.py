"""How much memory a part of an evaluation took."""

from contextlib import suppress
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux


class PeakMemory:
    """The most memory in use at a time, from now on: what came before does not count, unless it is still held.

    Args:
        device: its own memory, as torch hands it out, if it is a GPU of CUDA; else the resident memory of the process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.is_counted = device, False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.is_counted = True
        elif RESET.exists():
            with suppress(OSError):  # where a container forbids it
                RESET.write_text("5")  # the peak alone
                self.is_counted = True

    def mb(self) -> float | None:
        """In MB; None where nobody counts it: without CUDA on anything but Linux."""
        if not self.is_counted:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        (peak,) = [line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        return int(peak) / 2**10
