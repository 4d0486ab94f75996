"""Compute averages of the parameters that a run did not track (Karras et al. 2024, arXiv:2312.02696, section 3.2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.averages.power import Profile, exponent_of, fit, lengths_within_reach
from ddpm_cli.averages.snapshots import Snapshot, read_snapshots
from ddpm_cli.checkpoints.format import check_matches
from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.config.averages import PREFIX
from ddpm_cli.errors import UserError


def averaged(
    key: str, path: Path, state: Mapping[str, Any], length: float, like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the parameters of the average with a relative length at the step of a checkpoint, in float32.

    It is computed from the averages in the checkpoint and the earlier snapshots in its run folder.

    Args:
        key: names the checkpoint in errors, as `path` does.
        state: the contents of the checkpoint.
        like: the parameters of its network; they may be on the meta device.

    Raise `UserError` if the run tracks no averages, or if they cannot represent this length.
    """
    asked = f"{'init_weights' if key == 'init' else 'weights'}={PREFIX}{length}"
    tracked, step = state["config"].train.ema_lengths, state["step"]
    if not tracked:
        raise UserError(
            f"{asked}: {path} has no averages to compute it from; set train.ema_lengths=[0.05,0.10] while training"
        )
    if step == 0:
        raise UserError(f"{asked}: no step of {path} has been trained; use ema or model")
    check_matches(key, path, state, {"averages": dict.fromkeys(range(len(tracked)), like)}, state["stored_bytes"])
    run = RunFolder.of(path)
    snapshots = [] if run is None else [*read_snapshots(run, step, tracked, like)]
    snapshots.append(Snapshot(step, state["averages"]))
    exponents = [exponent_of(one) for one in tracked]
    profiles = [Profile(one.step, exponent, one.step == step) for one in snapshots for exponent in exponents]
    found = fit(profiles, [Profile(step, exponent_of(length))])
    if not found.accurate[0]:
        raise UserError(
            f"{asked}: {path} and the {len(snapshots) - 1} snapshots before it represent relative lengths of "
            f"{lengths_within_reach(profiles, step, tracked)}; choose one of these"
        )
    averages = [own for snapshot in snapshots for _, own in sorted(snapshot.averages.items())]
    return _combined(averages, found.coefficients[:, 0].tolist())


def _combined(averages: list[Mapping[str, Tensor]], coefficients: list[float]) -> dict[str, Tensor]:
    """Return the linear combination of tensors by name, summed in float64."""
    combined = {}
    for name, like in averages[-1].items():
        total = torch.zeros_like(like, dtype=torch.float64)
        for own, coefficient in zip(averages, coefficients, strict=True):
            total.add_(own[name], alpha=coefficient)
        combined[name] = total.to(like.dtype)
    return combined
