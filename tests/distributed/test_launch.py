"""Commands with `devices=2`, and the detection of torchrun and SLURM."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from ddpm_cli.distributed import collectives, launch
from ddpm_cli.distributed.launch import (
    ONE_MACHINE,
    WorkerFailed,
    WorkerGroup,
    _first_host,
    is_one_of_several,
    run_distributed,
)
from ddpm_cli.errors import Failure
from ddpm_cli.training.start import TrainingJob, _job_after_restart
from tests.conftest import TINY, Result, composed, train_into
from tests.processes import START_METHOD

Run = Callable[..., Result]


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the workers as `tests.processes` does. Otherwise each of them imports torch first."""
    config = launch._launch_config

    def forking(*args: Any) -> Any:
        return replace(config(*args), start_method=START_METHOD)

    monkeypatch.setattr(launch, "_launch_config", forking)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    return train_into(folder, *TINY, "train.steps=2", "conditioning=class", f"out={folder}")


@pytest.mark.usefixtures("forked")
def test_samples_do_not_depend_on_the_number_of_processes(trained: Path, run: Run) -> None:
    """Draw five samples in batches of two, so that the processes draw different numbers of samples."""
    for devices in (1, 2):
        overrides = [f"ckpt={trained}", "n=5", "batch_size=2", "npz=true", "gif=true", "device=cpu"]
        result = run("sample", *overrides, f"devices={devices}", f"out=of{devices}")
        assert result.code == 0, result.err
    one, two = (np.load(f"of{devices}/samples.npz") for devices in (1, 2))
    assert np.array_equal(one["labels"], two["labels"])
    assert np.abs(one["images"].astype(int) - two["images"]).max() <= 1  # the rounding depends on the batch size
    names = [sorted(str(path.relative_to(f"of{i}")) for path in Path(f"of{i}").rglob("*")) for i in (1, 2)]
    assert names[0] == names[1]


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_number_of_processes(trained: Path, run: Run) -> None:
    for devices in (1, 2):
        overrides = [f"ckpt={trained}", "metrics=[nll]", "n=5", "batch_size=2", "device=cpu"]
        result = run("evaluate", *overrides, f"devices={devices}", f"out=of{devices}")
        assert result.code == 0, result.err
    one, two = (json.loads(Path(f"of{devices}/evaluation.json").read_text()) for devices in (1, 2))
    assert one["metrics"]["nll"] == pytest.approx(two["metrics"]["nll"], rel=1e-5)
    assert len((trained / "evaluations.jsonl").read_text().splitlines()) == 2


@pytest.mark.usefixtures("forked")
def test_error_in_two_processes_is_one_line(trained: Path, run: Run) -> None:
    result = run("sample", f"ckpt={trained}", "device=cpu", "devices=2", f"out={trained}")
    assert result.code == 2
    assert result.err == f"ddpm-sample: out={trained}: already contains files; choose another folder\n"


def _enter_slowly(rank: int, folder: Path) -> None:
    initialise = dist.init_process_group

    def slowly(backend: str) -> None:
        initialise(backend, f"file://{folder}/meet", rank=rank, world_size=2)
        if rank == 1:
            time.sleep(0.5)
            (folder / "connected").touch()

    dist.init_process_group = slowly
    with launch._process_group("cpu"):
        assert (folder / "connected").exists()


def test_work_begins_when_all_ranks_are_connected(tmp_path: Path) -> None:
    multiprocessing.start_processes(_enter_slowly, (tmp_path,), nprocs=2, start_method=START_METHOD)


def _kill_rank_one() -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


def _fail_on_rank_one() -> None:
    if collectives.rank() == 1:
        raise Failure("a damaged image")
    collectives.all_reduce_max(1)  # which rank 1 never calls


@pytest.mark.slow
def test_error_of_one_worker_ends_the_others() -> None:
    with pytest.raises(Failure, match="a damaged image"):
        run_distributed(_fail_on_rank_one, (), WorkerGroup(2, "cpu", "auto", ONE_MACHINE))


@pytest.mark.parametrize("count", [1, 2])
def test_workers_that_fail_alike_do_not_wait(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "PATIENCE", 0)
    for rank in range(count):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert launch._all_fail(tmp_path, count) == (rank == count - 1)


def test_lost_worker_is_a_failure_that_names_it() -> None:
    with pytest.raises(WorkerFailed, match="process 1 was lost: Signal 9"):
        run_distributed(_kill_rank_one, (), WorkerGroup(2, "cpu", "auto", ONE_MACHINE))


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_threads_of_each_process(count: int) -> None:
    before = torch.get_num_threads()
    try:
        assert run_distributed(torch.get_num_threads, (), WorkerGroup(count, "cpu", 3, ONE_MACHINE)) == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node7", "node7"), ("node[03-07,9],other", "node03"), ("a-1,b-2", "a-1"), ("gpu[12]", "gpu12")],
)
def test_first_host_of_a_slurm_node_list(nodes: str, first: str) -> None:
    assert _first_host(nodes) == first


def test_slurm_without_several_tasks_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a SLURM allocation without srun, and a step of one task."""
    assert not is_one_of_several()
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert not is_one_of_several()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not is_one_of_several()


def test_sweep_under_torchrun_is_rejected(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = run("train", "-m", *TINY, "train.seed=0,1")
    assert result.code == 2
    assert "-m: not under torchrun" in result.err


def test_restarted_job_resumes_from_its_newest_checkpoint(trained: Path, tmp_path: Path) -> None:
    """Check that it starts neither from scratch nor from the older checkpoint that was given as resume=."""
    config = composed(*TINY)
    started = TrainingJob(config, trained, ["train.seed=0"], changes=("train.seed=0",))
    assert _job_after_restart(started) == replace(started, resume=str(trained), changes=())
    from_older = replace(started, folder=tmp_path, resume=str(trained / "checkpoints" / "step_00000000.pt"))
    assert _job_after_restart(from_older) == replace(from_older, resume=str(trained))
    without_checkpoint = replace(started, folder=tmp_path)
    assert _job_after_restart(without_checkpoint) == without_checkpoint
