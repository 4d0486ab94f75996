"""Run a command in several processes, each on its own device.

The processes are started here by torch's elastic launcher, and then Hydra runs in the launching process only; or they
have been started by torchrun or srun, each with its own Hydra.
"""

import logging.config
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from multiprocessing import active_children
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from ddpm_cli.config import Distributed
from ddpm_cli.config.plugins import load_plugins
from ddpm_cli.distributed.requeue import SAVES, STOPS, Meaning
from ddpm_cli.distributed.worker_errors import read_error, write_error
from ddpm_cli.errors import Failure, Stopped, UserError, check

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

T = TypeVar("T")
BLOCKED = STOPS | SAVES | {signal.SIGUSR2}
"""Signals that workers receive when they are ready."""
LOGS = "hydra/job_logging/ddpm.yaml"
GRACE = 60
"""Seconds that a worker has to save after its launcher has died."""
PATIENCE = 20
"""Seconds that a failed worker waits for the others, which usually fail with the same error."""
PORTS = range(20_000, 60_000)
"""Ports for the rendezvous of a SLURM step, chosen by the job id."""
ONE_MACHINE = Distributed(strategy="ddp", nnodes=1, rdzv_endpoint=None, max_restarts=0)


class WorkerFailed(Failure):
    """A worker ended unexpectedly."""


@dataclass(frozen=True)
class WorkerGroup:
    """The processes to start on this machine: their number, the device they run on and the CPU threads of each."""

    count: int
    device: str
    threads: int | str
    distributed: Distributed

    def starts_workers(self) -> bool:
        """Return whether the work is done by new processes rather than by this one."""
        several = self.count > 1 or self.distributed.nnodes > 1 or self.distributed.max_restarts > 0
        return several and not is_one_of_several(self.distributed.rdzv_endpoint)


def worker_group(
    devices: int | str, device: str, threads: int | str, distributed: Distributed = ONE_MACHINE
) -> WorkerGroup:
    """Return the processes that a config asks for. Raise `UserError` if there are too few devices."""
    from ddpm_cli.distributed.devices import processes_of

    return WorkerGroup(processes_of(devices, device), device, threads, distributed)


def run_distributed(work: Callable[..., T], args: tuple[Any, ...], group: WorkerGroup) -> T:
    """Call `work(*args)` in all processes of a group and return or raise what it does on rank 0.

    The group is the one that torchrun or srun has started, or the workers of `group`, or this process alone.
    """
    if group.threads != "auto":
        import torch

        torch.set_num_threads(int(group.threads))
    if is_one_of_several(group.distributed.rdzv_endpoint):
        if group.count > 1:
            raise UserError(f"devices={group.count}: torchrun or srun has started the processes already; leave it out")
        with _process_group(group.device):
            return work(*args)
    return _launch_workers(work, args, group) if group.starts_workers() else work(*args)


def is_launch_rank_zero() -> bool:
    """Return whether this process is the only one or rank 0 of those started by torchrun or srun."""
    return not is_one_of_several() or os.environ["RANK"] == "0"


def is_one_of_several(endpoint: str | None = None) -> bool:
    """Return whether torchrun or srun has started this process as one of several.

    SLURM's environment variables are translated to torch's.

    Args:
        endpoint: host:port of the rendezvous; by default the first machine of the SLURM step.
    """
    env = os.environ
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        return True
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) == 1 or "SLURM_PROCID" not in env:
        return False
    host, _, port = (endpoint or "").partition(":")
    job = int(env.get("SLURM_JOB_ID", "0"))
    env["MASTER_ADDR"] = host or _first_host(env.get("SLURM_STEP_NODELIST", "localhost"))
    env["MASTER_PORT"] = port or str(PORTS[job % len(PORTS)])
    env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_STEP_NUM_TASKS"]
    env["LOCAL_RANK"] = env.get("SLURM_LOCALID", "0")
    return True


def _launch_workers(work: Callable[..., T], args: tuple[Any, ...], group: WorkerGroup) -> T:
    import torch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    # A new store for each rendezvous: in a shared one, restarted workers would wait for the addresses of dead ones.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault(
        "PYTHONWARNINGS", "ignore:resource_tracker:UserWarning"
    )  # about what killed processes leave behind
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # errors are reported below
    logging.getLogger("torch.multiprocessing").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="ddpm-cli_") as name, _forward_signals(asked := Path(name, "asked")):
        ended, lost = Path(name, "ended"), ""
        config = _launch_config(group, name)
        threads = max(1, torch.get_num_threads() // (group.count if group.threads == "auto" else 1))
        try:
            # Not in the main thread, where the launcher would handle signals and kill workers that still save.
            with ThreadPoolExecutor(1, initializer=_block_signals) as thread:
                launch = elastic_launch(config, _worker_main)
                values: dict[int, T] = thread.submit(launch, work, args, group, name, threads).result()
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            told: Any = failure.message  # a dict for an exception
            text = told["message"] if isinstance(told, dict) else told
            lost = f"process {rank} was lost: {text.strip().splitlines()[-1]}"
            values = {}
        except RendezvousError as error:
            raise Failure(
                f"distributed.rdzv_endpoint={group.distributed.rdzv_endpoint}: {group.distributed.nnodes} machines did "
                "not meet there; start the same command on each, and check that this port can be reached"
            ) from error
        if ended.exists():
            raise read_error(ended)
        if not values and asked.exists():
            number = int(asked.read_text())
            raise Stopped(number, f"{signal.Signals(number).name}: stopped")
        if not values:
            raise WorkerFailed(lost)  # without the original error, which keeps references to the launcher's state
    return values[min(values)]


def _launch_config(group: WorkerGroup, log_dir: str) -> "LaunchConfig":
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    own = group.distributed
    return LaunchConfig(
        min_nodes=own.nnodes,
        max_nodes=own.nnodes,
        nproc_per_node=group.count,
        run_id="ddpm-cli",
        rdzv_backend="c10d",
        rdzv_endpoint=own.rdzv_endpoint or "localhost:0",
        max_restarts=own.max_restarts,
        local_addr="localhost" if own.nnodes == 1 else None,
        logs_specs=DefaultLogsSpecs(log_dir=log_dir),
    )


def _worker_main(
    work: Callable[..., T], args: tuple[Any, ...], group: WorkerGroup, name: str, threads: int
) -> T | None:
    """The main function of a worker. Expected errors are written to a file for the launching process."""
    import torch

    os.setpgid(0, 0)  # so that Ctrl-C reaches the launcher alone, which forwards it
    ended = Path(name, "ended")
    if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0" and (ended.exists() or Path(name, "asked").exists()):
        return None
    load_plugins()
    logging.config.dictConfig(yaml.safe_load((files("ddpm_cli.configs") / LOGS).read_text()))
    torch.set_num_threads(threads)
    launcher, value = os.getppid(), None
    threading.Thread(target=_exit_with_launcher, args=(launcher,), daemon=True).start()
    try:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # which SLURM sends to all processes of a job, for the launcher
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
        with _process_group(group.device):
            value = work(*args)
    except (UserError, Failure, Stopped) as error:
        write_error(error, ended)
        if not isinstance(error, Stopped) and not _all_fail(Path(name), group.count):
            os._exit(1)  # so that torch ends the workers, which wait for this one
    except KeyboardInterrupt:
        write_error(Stopped(signal.SIGINT, "interrupted"), ended)
    if os.getppid() != launcher:  # the launcher has died; torch would wait for it
        os._exit(1)
    return value


def _all_fail(folder: Path, count: int) -> bool:
    """Return whether all workers of this machine fail within `PATIENCE` seconds; one of them has failed just now."""
    (folder / f"failed.{os.environ['LOCAL_RANK']}").touch()
    until = time.monotonic() + PATIENCE
    while not (all_fail := len([*folder.glob("failed.*")]) >= count) and time.monotonic() < until:
        time.sleep(0.05)
    return all_fail


def _exit_with_launcher(launcher: int) -> None:
    """End this process `GRACE` seconds after its launcher was killed."""
    while os.getppid() == launcher:
        time.sleep(1)
    time.sleep(GRACE)
    os._exit(1)


@contextmanager
def _process_group(device: str) -> Iterator[None]:
    """Initialise the default process group from the environment variables, and wait until all ranks have done so."""
    import torch
    from torch import distributed as dist

    from ddpm_cli.distributed import collectives
    from ddpm_cli.distributed.devices import resolve_device

    backend = "gloo"
    if resolve_device(device).type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        last = torch.cuda.device_count() - 1
        check(local <= last, "devices", f"{local + 1} or more", f"at most {last + 1}, the CUDA devices that torch sees")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    try:
        collectives.all_reduce_max(0)  # a rank that ended at once would close connections that others still open
        if not collectives.is_rank_zero():
            logging.getLogger("ddpm_cli").setLevel(logging.WARNING)
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _forward_signals(asked: Path) -> Iterator[None]:
    """Forward signals to the workers. Record a signal that asks to stop in the file `asked`.

    A signal by which a job of SLURM is put back into the queue stops the workers by SIGTERM; the handler that does so
    is called when they have ended.
    """
    meaning = Meaning()

    def pass_on(number: int, frame: FrameType | None) -> None:
        stops = number in meaning.stops
        if stops:
            asked.write_text(str(number))
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), b"\nstopping after this step; once more stops at once\n")
        forwarded = number if number in STOPS and stops else signal.SIGTERM if stops else signal.SIGUSR1
        for child in active_children():
            with suppress(ProcessLookupError):  # it has ended in the meantime
                os.kill(child.pid, forwarded)  # type: ignore[arg-type]  # the process has been started

    before = {number: signal.getsignal(number) for number in meaning.stops | meaning.saves}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if sys.exc_info()[0] is not None and asked.exists() and int(asked.read_text()) in meaning.requeues:
            signal.raise_signal(int(asked.read_text()))


def _block_signals() -> None:
    """Block signals in the processes that this thread starts, until they are ready to handle them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)


def _first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list: node03 of `node[03-07,9],other`."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    return f"{found[1]}{found[2] or ''}" if found else nodes
