"""A sweep: its folder, what became of each of its jobs, the cores and devices that those running at once share."""

import csv
import io
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from ddpm_cli.cli.error_messages import FORESEEN, on_one_line, one_line
from ddpm_cli.cli.overrides import check_groups, checked
from ddpm_cli.errors import Failure, Stopped, UserError
from ddpm_cli.files import write

log = logging.getLogger(__name__)

FILE = "jobs.csv"
RESUME = "sweep.resume="


@dataclass(frozen=True)
class Job:
    """A row of jobs.csv: status is done or failed, value what the job returned, error why it failed, in one line."""

    job: int
    status: str
    value: float | None
    seconds: float
    overrides: str
    error: str


COLUMNS = [field.name for field in fields(Job)]


@dataclass(frozen=True)
class Plan:
    """folder: that of the sweep; jobs: how many there will be, or None where a search chooses them as it goes."""

    folder: Path
    jobs: int | None


def planned(command: str, schema: type, overrides: list[str], check_config: Callable[[Any], None]) -> Plan:
    """What `ddpm-<command> -m <overrides>` will do. Raises what composing or checking its first bad job raises."""
    with initialize_config_module("ddpm_cli.configs", version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        typed = parser.parse_overrides(overrides)
        for override in typed:
            if override.key_or_group == "out":
                raise UserError(
                    f"{override.input_line}: the jobs of a sweep write to hydra.sweep.dir/0, 1, …; "
                    "use hydra.sweep.dir=… instead"
                )
        fixed = [override.input_line or "" for override in typed if not override.is_sweep_override()]
        cfg = compose(command, fixed, return_hydra_config=True)
        folder = _to_resume(overrides) or Path(cfg.hydra.sweep.dir)
        swept = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
        every = [*parser.parse_overrides(swept), *typed]
        if "n_trials" in cfg.hydra.sweeper or any(map(_is_search, every)):
            return Plan(folder, None)
        (jobs,) = BasicSweeper.split_arguments(every, None)
        for job in jobs:
            check_groups(schema, job)
            check_config(checked(compose(command, job)))
        return Plan(folder, len(jobs))


def _is_search(override: Override) -> bool:
    return override.is_sweep_override() and not override.is_discrete_sweep()


def _to_resume(overrides: Iterable[str]) -> Path | None:
    """The folder in sweep.resume=…, if that was typed."""
    for override in overrides:
        if override.startswith(RESUME):
            folder = Path(override.removeprefix(RESUME)).expanduser()
            if not folder.is_dir():
                raise UserError(f"{override}: no such folder; name that of a sweep, which has a folder for each job")
            return folder
    return None


def begin(plan: Plan) -> None:
    """Make the folder of a sweep, and its jobs.csv unless it goes on with one."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    if not (plan.folder / FILE).exists():
        write(plan.folder / FILE, f"{','.join(COLUMNS)}\n".encode())


def note(folder: Path, job: Job) -> None:
    """Add a row to the sweep's jobs.csv, in one write: other jobs may be adding theirs."""
    row = io.StringIO(newline="")
    csv.writer(row).writerow(["" if value is None else value for value in asdict(job).values()])
    with (folder / FILE).open("ab", buffering=0) as stream:
        stream.write(row.getvalue().encode())


def jobs_of(folder: Path) -> dict[int, Job]:
    """What became of each job at last, by its number. A row cut short is none."""
    if not (folder / FILE).is_file():
        return {}
    with (folder / FILE).open(newline="") as stream:
        found = {job.job: job for job in map(_job, csv.reader(stream)) if job is not None}
    return dict(sorted(found.items()))


def _job(row: list[str]) -> Job | None:
    if len(row) != len(COLUMNS) or not row[0].isdecimal():
        return None
    number, status, value, seconds, overrides, error = row
    return Job(int(number), status, float(value) if value else None, float(seconds), overrides, error)


def run_job(work: Callable[[], float | None], schema: type, plan: Plan) -> float | None:
    """What `work`, a job of the sweep, returns. Where it fails that is said and noted, and the other jobs go on."""
    own = HydraConfig.get()
    number, overrides = own.job.num, shlex.join(typed_overrides())
    take_share(number, at_once(own.launcher, plan.jobs))
    started = time.perf_counter()
    value, status, line = None, "done", ""
    try:
        value = work()
    except Stopped:
        raise  # the whole sweep was asked to end
    except FORESEEN as error:
        status, line = "failed", one_line(error, schema)
        log.error("job %d: %s", number, line)
    except Exception as error:
        status, line = "failed", on_one_line(f"{type(error).__name__}: {error}")
        log.exception("job %d failed for a reason that nobody foresaw", number)
    note(plan.folder, Job(number, status, value, time.perf_counter() - started, overrides, line))
    return value


def finish(plan: Plan, after_sweep: Callable[[Path], None] | None) -> None:
    """Say what became of the jobs, and make what is made of a sweep. Raises `Failure` where some failed."""
    jobs = jobs_of(plan.folder)
    print(_summary(jobs), file=sys.stderr)
    if after_sweep is not None:
        after_sweep(plan.folder)
    failed = [job for job in jobs.values() if job.status == "failed"]
    if failed:
        raise Failure(
            f"{len(failed)} of {len(jobs)} jobs failed, job {failed[0].job} the first: {failed[0].error}; "
            f"{plan.folder / FILE} has all"
        )


def _summary(jobs: Mapping[int, Job]) -> str:
    """A line for each job, with what it does not share with all others."""
    typed = {number: shlex.split(job.overrides) for number, job in jobs.items()}
    shared = set.intersection(*map(set, typed.values())) if len(jobs) > 1 else set()
    own = {number: " ".join(one for one in overrides if one not in shared) for number, overrides in typed.items()}
    width = max(map(len, own.values()), default=0)
    lines = []
    for number, job in jobs.items():
        outcome = f"{job.value:.6g}" if job.value is not None else job.error
        lines.append(f"{number:4d}  {own[number]:{width}}  {job.status:6}  {outcome}".rstrip())
    return "\n".join(lines)


def typed_overrides() -> list[str]:
    """What was typed for this job, less what is said of the sweep."""
    return [override for override in HydraConfig.get().overrides.task if not override.startswith(("sweep.", "sweep="))]


def quoted(folder: Path) -> str:
    """A path as the value of an override, whatever is in it."""
    text = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


def at_once(launcher: Mapping[str, Any], jobs: int | None) -> int:
    """How many jobs share this machine: joblib's n_jobs, all of submitit's local ones, one of other launchers'."""
    if "n_jobs" in launcher:
        asked = int(launcher["n_jobs"])
        wanted = asked if asked > 0 else cores() + 1 + asked  # -1 is a job a core
    elif "submitit_folder" in launcher and "partition" not in launcher:
        wanted = jobs or cores()
    else:
        wanted = 1
    return max(1, wanted if jobs is None else min(wanted, jobs))


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def take_share(job: int, side_by_side: int) -> None:
    """Have job number `job` use its part of the cores, and of several devices, with device=auto, one in turn."""
    if side_by_side == 1:
        return
    import torch

    torch.set_num_threads(max(1, cores() // side_by_side))
    if torch.cuda.is_available():
        torch.cuda.set_device(job % torch.cuda.device_count())
