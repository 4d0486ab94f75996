"""The processes of a command: their number, devices and threads, and how they connect."""

import re
from dataclasses import dataclass

from ddpm_cli.errors import UserError, check, one_of

STRATEGIES = ("ddp", "fsdp")


@dataclass(kw_only=True)
class Distributed:
    """How the processes of a run connect and share the work."""

    strategy: str  # a copy of the network in each, or a part
    nnodes: int
    rdzv_endpoint: str | None  # host:port of one of the machines, the same on all
    max_restarts: int

    def __post_init__(self) -> None:
        check(self.strategy in STRATEGIES, "distributed.strategy", self.strategy, one_of(STRATEGIES))
        check(1 <= self.nnodes <= 10_000, "distributed.nnodes", self.nnodes, "in 1..10000, the number of machines")
        check(0 <= self.max_restarts <= 10_000, "distributed.max_restarts", self.max_restarts, "in 0..10000")
        point = self.rdzv_endpoint
        if point is None and self.nnodes > 1:
            raise UserError(
                f"distributed.nnodes={self.nnodes}: needs distributed.rdzv_endpoint, host:port of one of the machines, "
                "the same on each"
            )
        if point is not None:
            ok = re.fullmatch(r"[^:\s]+:\d{1,5}", point) is not None
            check(ok, "distributed.rdzv_endpoint", point, "host:port of one of the machines, the same on each")


def check_devices(devices: object) -> None:
    """Raise `UserError` unless `devices` is a positive number or auto."""
    ok = devices == "auto" or (type(devices) is int and 1 <= devices <= 10_000)
    check(ok, "devices", devices, "a number of processes from 1 up, one a device, or auto")


def check_threads(threads: object) -> None:
    """Raise `UserError` unless `threads` is a positive number or auto."""
    ok = threads == "auto" or (type(threads) is int and 1 <= threads <= 10_000)
    check(ok, "threads", threads, "a number of CPU threads from 1 up, or auto")
