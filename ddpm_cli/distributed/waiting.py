"""How long the threads of torch wait busily for each other, which must be decided before torch is imported.

With the default of libgomp (300,000 turns), a step beside other busy programs takes up to 30 times as long, because
threads wait busily for one whose core was taken away. On idle cores the default is the fastest.
"""

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
BUSY_CORES = 0.3
"""Number of cores used by other programs from which threads wait for a short time only."""
SHORT_WAIT = "1000"
IDLE, IOWAIT = 3, 4
"""Columns of /proc/stat in which a core does nothing."""


class OtherPrograms:
    """Measure how much of the cores of this process other programs use, from now on."""

    def __init__(self) -> None:
        self._start, self._busy, self._own = time.monotonic(), busy_seconds(), time.process_time()

    def busy_cores(self) -> float:
        """Return the average number of cores that other programs have used since the start; 0 if it is unknown."""
        elapsed, busy = time.monotonic() - self._start, busy_seconds()
        if busy is None or self._busy is None or elapsed == 0:
            return 0.0
        return (busy - self._busy - (time.process_time() - self._own)) / elapsed


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_seconds() -> float | None:
    """Return the seconds that the cores of this process were busy since the system started; None if unknown."""
    try:
        lines = STAT.read_text().splitlines()
        own = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        ticks = [[int(word) for word in line.split()[1:9]] for line in lines if line.split()[0] in own]
        return sum(sum(row) - row[IDLE] - row[IOWAIT] for row in ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):  # not Linux
        return None


def limit_busy_waiting(others: OtherPrograms) -> None:
    """Shorten the busy waiting of threads if other programs use the cores, unless the user has set how they wait."""
    if "OMP_WAIT_POLICY" not in os.environ and others.busy_cores() >= BUSY_CORES:
        os.environ.setdefault("GOMP_SPINCOUNT", SHORT_WAIT)
