"""Check that a checkpoint fits its own config, before anything is built from it."""

from pathlib import Path
from typing import Any

import torch

from ddpm_cli.checkpoints.format import check_matches
from ddpm_cli.checkpoints.loading import check_classes
from ddpm_cli.sampling.build import build_timestep_sampler, network_of
from ddpm_cli.training.loss_monitor import LossMonitor
from ddpm_cli.training.optimizer import moments_like


def check_resumable(key: str, path: Path, state: dict[str, Any]) -> None:
    """Raise `UserError` unless training can continue from `state`, which `load_checkpoint` read from `path`."""
    config = state["config"]
    check_classes(key, path, config, state["classes"])
    with torch.device("meta"):
        network = network_of(config, state["classes"])
    weights = dict(network.state_dict())
    timesteps = build_timestep_sampler(config, "meta")
    like = {
        "model": weights,
        "ema": weights,
        "optimizer": moments_like(config.train, network) if state["step"] > 0 else {},
        "scaler": {"scale": 1.0, "_growth_tracker": 0} if state["scaler"] else {},
        "timestep_sampler": timesteps.state(),
        "losses": LossMonitor(1).state(),
    }
    check_matches(key, path, state, like)
