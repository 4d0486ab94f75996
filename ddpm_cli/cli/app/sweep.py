"""Sweeps: their plan, how a job is run, and how jobs that run at the same time share cores and devices."""

import fcntl
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.cli.app.error_messages import EXPECTED_ERRORS, message_of, on_one_line
from ddpm_cli.cli.app.overrides import check_no_chdir, check_overrides, explain_composition_error, to_typed
from ddpm_cli.cli.app.own_configs import includes_itself
from ddpm_cli.distributed.waiting import cores
from ddpm_cli.errors import Failure, Stopped, UserError
from ddpm_cli.shell import quoted
from ddpm_cli.sweeps.jobs_csv import FILE, SweepJob, append_job, create_jobs, jobs_of
from ddpm_cli.sweeps.pruning import is_pruned
from ddpm_cli.sweeps.study import Study, store_study, study_of

log = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"
RESUME = "sweep.resume"


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep does.

    Attributes:
        folder: of the sweep.
        jobs: their number; None if a search chooses them one after another.
        study: of a search with Optuna, to be stored in the folder.
    """

    folder: Path
    jobs: int | None
    study: Study | None = None


def plan_sweep(command: str, schema: type, overrides: list[str], check: Callable[[Any], None]) -> SweepPlan:
    """Return the plan of `ddpm-<command> -m <overrides>`. Raise the error of its first job that cannot run."""
    check_overrides(command, schema, overrides)
    with initialize_config_module("ddpm_cli.configs", version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        typed = parser.parse_overrides(overrides)
        for override in typed:
            if override.key_or_group == "out":
                raise UserError(
                    f"{override.input_line}: the jobs of a sweep write to hydra.sweep.dir/0, 1, …; "
                    "set hydra.sweep.dir=… instead"
                )
        fixed = [override.input_line or "" for override in typed if not override.is_sweep_override()]
        cfg = _compose(command, schema, fixed, with_hydra=True)
        resumed = _folder_to_resume(cfg, typed)
        folder = resumed or Path(cfg.hydra.sweep.dir)
        swept = [f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items()]
        every = [*parser.parse_overrides(swept), *typed]
        check_no_chdir(cfg.hydra.job.chdir)
        _check_launcher(cfg.hydra.launcher)
        study = study_of(cfg.hydra, resumed is not None)
        if "n_trials" in cfg.hydra.sweeper or any(map(_is_search, every)):
            return SweepPlan(folder, None, study)
        (jobs,) = BasicSweeper.split_arguments(every, None)
        if resumed is not None:
            _check_same_jobs(resumed, jobs)
        for job in jobs:
            check_overrides(command, schema, job)
            check(to_typed(_compose(command, schema, job)))
        return SweepPlan(folder, len(jobs))


def _compose(command: str, schema: type, overrides: list[str], with_hydra: bool = False) -> DictConfig:
    try:
        return compose(command, overrides, return_hydra_config=with_hydra)
    except ConfigCompositionException as error:
        GlobalHydra.instance().clear()  # as the explanation composes in a context of its own
        raise explain_composition_error(command, schema, overrides, error) from error
    except RecursionError as error:
        raise includes_itself() from error


def _check_launcher(launcher: Mapping[str, Any]) -> None:
    if "partition" in launcher and shutil.which("srun") is None:
        raise UserError("hydra/launcher=submitit_slurm: there is no srun on this machine; use one of a SLURM cluster")


def _is_search(override: Override) -> bool:
    return override.is_sweep_override() and not override.is_discrete_sweep()


def _folder_to_resume(cfg: DictConfig, typed: Iterable[Override]) -> Path | None:
    """Return the folder in sweep.resume=…, if that was typed. Raise `UserError` if there is no such folder."""
    for override in typed:
        if override.key_or_group == RESUME and override.is_sweep_override():
            raise UserError(f"{override.input_line}: has several values; name the folder of one sweep")
    resume = OmegaConf.select(cfg, RESUME)
    if resume is None:
        return None
    folder = Path(resume).expanduser()
    if not folder.is_dir():
        raise UserError(f"{RESUME}={resume}: no such folder; name the folder of a sweep")
    return folder


def _check_same_jobs(folder: Path, jobs: Sequence[Sequence[str]]) -> None:
    """Raise `UserError` if a job that a sweep to resume has started has other overrides now."""
    ended = jobs_of(folder)
    for number, job in enumerate(jobs):
        run = RunFolder(folder / str(number))
        if run.overrides.is_file():
            check_same_overrides(folder, number, run.read_overrides(), _own_overrides(job))
        elif number in ended and ended[number].status != "failed":
            check_same_overrides(folder, number, shlex.split(ended[number].overrides), _own_overrides(job))


def check_same_overrides(folder: Path, number: int, before: list[str], now: list[str]) -> None:
    """Raise `UserError` if the overrides of a job of the sweep in `folder` have changed."""
    if before != now:
        had, has = ([text for text in one if text not in other] for one, other in ((before, now), (now, before)))
        raise UserError(
            f"{RESUME}={folder}: job {number} of the sweep had {shlex.join(had) or 'nothing else'}, and now has "
            f"{shlex.join(has) or 'nothing else'}; type the command of the sweep"
        )


def create_sweep(plan: SweepPlan) -> list[str]:
    """Create the folder of a sweep, and its jobs.csv unless the sweep is resumed; return the overrides for Hydra."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    create_jobs(plan.folder)
    folder = f"hydra.sweep.dir={quoted(str(plan.folder))}"
    return [folder] if plan.study is None else [folder, *store_study(plan.study, plan.folder)]


def run_sweep_job(
    work: Callable[[], float | None], schema: type, plan: SweepPlan, devices: int | str = 1
) -> float | None:
    """Return what `work`, a job of the sweep, returns. If it fails, log that, write it to jobs.csv and return None.

    Args:
        devices: number of devices that the job asks for, or auto.
    """
    own = HydraConfig.get()
    number, overrides = own.job.num, shlex.join(typed_overrides())
    started = time.perf_counter()
    value, status, line = None, "done", ""
    try:
        with share_of_machine(plan.folder, at_once(own.launcher, plan.jobs), devices):
            value = work()
    except Stopped:
        raise  # a signal stops the whole sweep
    except EXPECTED_ERRORS as error:
        status, line = "failed", message_of(error, schema)
        log.error("job %d: %s", number, line)
    except Exception as error:
        status, line = "failed", on_one_line(f"{type(error).__name__}: {error}")
        log.exception("job %d failed unexpectedly", number)
    if status == "done" and is_pruned(plan.folder, number):
        status = "pruned"
    append_job(plan.folder, SweepJob(number, status, value, time.perf_counter() - started, overrides, line))
    return value


def finish_sweep(plan: SweepPlan, after_sweep: Callable[[Path], None] | None) -> None:
    """Print a line for each job and call `after_sweep`. Raise `Failure` if jobs failed."""
    jobs = jobs_of(plan.folder)
    print(_summary(jobs), file=sys.stderr)
    if after_sweep is not None:
        after_sweep(plan.folder)
    failed = [job for job in jobs.values() if job.status == "failed"]
    if failed:
        raise Failure(
            f"{len(failed)} of {len(jobs)} jobs failed; the first was job {failed[0].job}: {failed[0].error}; "
            f"{plan.folder / FILE} lists all"
        )


def _summary(jobs: Mapping[int, SweepJob]) -> str:
    """Return a line for each job, with the overrides that not all jobs have in common."""
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
    """Return the overrides of this job without those of the sweep."""
    return _own_overrides(HydraConfig.get().overrides.task)


def _own_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a job without those of the sweep and of Hydra."""
    others = ("sweep.", "sweep=", "hydra.", "hydra/")
    return [text for text in overrides if not text.lstrip("+~").startswith(others)]


def at_once(launcher: Mapping[str, Any], jobs: int | None) -> int:
    """Return the number of jobs that run on this machine at once.

    That is n_jobs for joblib, all jobs for submitit's local launcher, and one for other launchers.
    """
    if "n_jobs" in launcher:
        asked = int(launcher["n_jobs"])
        wanted = asked if asked > 0 else cores() + 1 + asked  # -1 means one job for each core
    elif "submitit_folder" in launcher and "partition" not in launcher:
        wanted = jobs or cores()
    else:
        wanted = 1
    return max(1, wanted if jobs is None else min(wanted, jobs))


@contextmanager
def share_of_machine(folder: Path, side_by_side: int, devices: int | str) -> Iterator[None]:
    """Limit this process and those that it starts to a share of the cores and CUDA devices.

    Args:
        folder: of the sweep, in which the jobs that run at the same time have numbers.
        side_by_side: largest number of such jobs.
        devices: number of devices that each job asks for, or auto.
    """
    if side_by_side == 1:
        yield
        return
    import torch

    torch.set_num_threads(max(1, cores() // side_by_side))
    with _free_number(folder, side_by_side) as number:
        visible = os.environ.get(VISIBLE)
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        own = devices_of(number, side_by_side, count, devices)
        if devices == 1 and own:
            torch.cuda.set_device(own[0])
        elif own:  # for the processes of the job; this one does not use CUDA
            names = visible.split(",") if visible else [str(i) for i in range(count)]
            os.environ[VISIBLE] = ",".join(names[i] for i in own)
        try:
            yield
        finally:
            os.environ.pop(VISIBLE, None)
            os.environ.update({} if visible is None else {VISIBLE: visible})


def devices_of(number: int, side_by_side: int, count: int, devices: int | str) -> list[int]:
    """Return the CUDA devices, of `count`, of the job with this number among those that run at the same time.

    If there are fewer devices than the jobs ask for, jobs share them.
    """
    wanted = max(1, count // side_by_side) if devices == "auto" else int(devices)
    return sorted({(number * wanted + i) % count for i in range(wanted)}) if count else []


@contextmanager
def _free_number(folder: Path, side_by_side: int) -> Iterator[int]:
    """Take a number below `side_by_side` that no other job of the sweep has. Killed jobs give theirs back."""
    for number in range(side_by_side):
        with (folder / f".running_{number}").open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            yield number
            return
    yield 0  # a file system without locks
