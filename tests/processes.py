"""Run a function in two processes of one gloo process group."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing

START_METHOD = "forkserver"
"""Processes are forked from a server that has imported torch and ddpm_cli, so that they need not import them."""
multiprocessing.set_forkserver_preload(["ddpm_cli.training.start", "torch._dynamo"])


def _one(rank: int, work: Callable[..., Any], folder: Path) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    dist.barrier()  # a process that ended at once would close connections that the other still opens
    found = work(*torch.load(folder / "args.pt", weights_only=False))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def in_two(work: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Return the results of `work(*args)`, a module-level function, in each of two processes, by rank."""
    torch.save(args, folder / "args.pt")  # the server takes at most 256 file descriptors, and each tensor needs one
    multiprocessing.start_processes(_one, (work, folder), nprocs=2, start_method=START_METHOD)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]
