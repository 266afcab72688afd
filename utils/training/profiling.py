"""Where the time of a training step goes: --profile."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

SKIPPED, RECORDED = 4, 6  # steps: the first ones allocate, choose kernels and compile
ROWS = 30  # operations in the table


class StepProfiler:
    """Records a few steps, and writes profile/trace.json (for chrome://tracing or Perfetto) and profile/operations.txt.

    It records once and costs nothing afterwards.

    Args:
        folder: of the run; None: nothing is recorded.
    """

    def __init__(self, folder: Path | None):
        self._steps_left = SKIPPED + RECORDED if folder else 0
        if folder is None:
            return
        self.folder = folder / "profile"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        plan = schedule(wait=SKIPPED - 1, warmup=1, active=RECORDED, repeat=1)
        self._profile = profile(activities=activities, schedule=plan, on_trace_ready=self._write)
        self._profile.start()

    def step(self) -> None:
        """To be called after every optimizer step."""
        if self._steps_left:
            self._profile.step()
            self._steps_left -= 1

    def close(self) -> None:
        """Writes what was recorded if training ended before all of the steps."""
        if self._steps_left:
            self._profile.stop()

    def _write(self, recorded: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        recorded.export_chrome_trace(str(self.folder / "trace.json"))
        (self.folder / "operations.txt").write_text(recorded.key_averages().table(sort_by=by, row_limit=ROWS) + "\n")
