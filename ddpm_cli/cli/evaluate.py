"""ddpm-evaluate: measure a checkpoint or a set of samples."""

import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from ddpm_cli.cli import sample
from ddpm_cli.cli.app import Command, run_command
from ddpm_cli.config import EvaluateConfig
from ddpm_cli.errors import UserError

USAGE = """
ddpm-evaluate compares a checkpoint of ddpm-train, or samples, with the data.

  ddpm-evaluate ckpt=outputs/train/fashion_mnist/… metrics=[nll] n=64
  ddpm-evaluate ckpt=… metrics=[fid,kid,is,prc,nll] n=50000
  ddpm-evaluate ckpt=… features=classifier                           without Inception's weights
  ddpm-evaluate samples=pictures/ dataset=fashion_mnist
  ddpm-evaluate ckpt=… -m sampler=ddpm,ddim,dpmpp_2m sampler.steps=10,20,50,100
  ddpm-evaluate ckpt=… -m weights=ema:0.02,ema:0.05,ema:0.10,ema:0.15     of a run with train.ema_lengths=[0.05,0.10]

nll: the variational bound on the negative log-likelihood of n images in bits per dimension. All timesteps are
computed, so an image takes T network calls.
fid, kid, is (inception score), prc (precision and recall): of n samples, by torch-fidelity. Their floor is given too:
the same metrics of n real images of the other split.
"""


def main() -> None:
    """Entry point of the console script."""
    run_command(COMMAND)


def check(config: EvaluateConfig) -> None:
    """Raise `UserError` if there is no checkpoint or a package is missing."""
    if config.samples is None:
        sample.check(config)
    if config.distances and find_spec("torch_fidelity") is None:
        raise UserError(f"metrics={config.distances}: need torch-fidelity; pip install 'ddpm-cli[eval]'")


def run(config: EvaluateConfig, folder: Path) -> None:
    """Write evaluation.json and pictures to `folder`, which must be new or empty, and a line to evaluations.jsonl."""
    evaluate_into(folder, config, HydraConfig.get().overrides.task)


def evaluate_into(folder: Path, config: EvaluateConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Do what `run` does and return the content of evaluation.json."""
    from ddpm_cli.distributed.launch import run_distributed, worker_group
    from ddpm_cli.evaluation.evaluate import evaluate

    group = worker_group(config.devices, config.device, config.threads)
    return run_distributed(evaluate, (config, folder, shlex.join(["ddpm-evaluate", *overrides])), group)


def after_sweep(folder: Path) -> None:
    """Write the table and the plot of a sweep over samplers or averages."""
    from ddpm_cli.evaluation.tradeoff import save_tradeoff

    save_tradeoff(folder)


COMMAND = Command("evaluate", USAGE, EvaluateConfig, check, run, after_sweep=after_sweep)
