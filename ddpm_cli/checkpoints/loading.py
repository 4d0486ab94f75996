"""Load the network of a checkpoint, ready for sampling and evaluation."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpm_cli.averages.reconstruct import averaged
from ddpm_cli.checkpoints.format import check_matches, load_checkpoint
from ddpm_cli.checkpoints.run_checkpoints import find_checkpoint
from ddpm_cli.checkpoints.safetensors_file import Weights, read_weights
from ddpm_cli.checkpoints.stored_config import with_noted_paths
from ddpm_cli.config import ClassLabels, TrainConfig
from ddpm_cli.config.averages import length_of
from ddpm_cli.diffusion.denoiser import Denoiser
from ddpm_cli.distributed.devices import configure_arithmetic, resolve_device, resolve_precision
from ddpm_cli.errors import UserError
from ddpm_cli.sampling.build import build_denoiser, network_of


def weights_like(config: TrainConfig, classes: list[str]) -> dict[str, Tensor]:
    """Return the weights of the network of a run on the meta device, to compare shapes with."""
    with torch.device("meta"):
        return dict(network_of(config, classes).state_dict())


def parameters_like(config: TrainConfig, classes: list[str]) -> dict[str, Tensor]:
    """Return the parameters of the network of a run on the meta device: its weights without buffers."""
    with torch.device("meta"):
        return dict(network_of(config, classes).named_parameters())


def check_classes(key: str, path: Path, config: TrainConfig, classes: list[str]) -> None:
    """Raise `UserError` unless there are `classes` exactly if the network of `config` is conditional."""
    if bool(classes) != isinstance(config.conditioning, ClassLabels):
        raise UserError(f"{key}={path}: its classes do not match its conditioning; name another checkpoint")


@dataclass(frozen=True)
class Trained:
    """A trained network, ready to use. `classes`: names of its classes, empty for an unconditional network."""

    path: Path
    step: int
    config: TrainConfig
    network: nn.Module
    denoiser: Denoiser
    classes: list[str]
    device: torch.device


def load_weights(key: str, path: Path, kind: str) -> Weights:
    """Return the `kind` weights (ema, model, or an average such as ema:0.1) of a checkpoint or a .safetensors file.

    They are checked against the network of their config. The folder of the data is taken from the run folder, if the
    checkpoint is in one. Raise `UserError`.
    """
    length, state = length_of(kind), None
    if path.suffix == ".safetensors":
        weights, size = read_weights(key, path), path.stat().st_size
    else:
        state = load_checkpoint(key, path)
        size, tensors = state["stored_bytes"], state[kind if length is None else "ema"]
        weights = Weights(state["config"], state["classes"], state["step"], kind, tensors, state["phases"])
    if weights.kind != kind:
        if key == "guidance.guide":
            raise UserError(f"{key}={path}: contains only the {weights.kind} weights; name the run that it came from")
        setting = "init_weights" if key == "init" else "weights"
        raise UserError(
            f"{setting}={kind}: {path} contains only the {weights.kind} weights; use {setting}={weights.kind}"
        )
    config = with_noted_paths(weights.config, path)
    check_classes(key, path, config, weights.classes)
    like = weights_like(config, weights.classes)
    check_matches(key, path, {kind: weights.tensors}, {kind: like}, size)
    if state is not None and length is not None:
        parameters = averaged(key, path, state, length, parameters_like(config, weights.classes))
        weights = replace(weights, tensors=weights.tensors | parameters)
    return replace(weights, config=config)


def load_trained(ckpt: str, weights: str, device: str, precision: str, key: str = "ckpt") -> Trained:
    """Return the network that `ckpt` names with its `weights`, see `load_weights`.

    Raise `UserError`, which names `key`.
    """
    path = find_checkpoint(key, ckpt)
    on = resolve_device(device)
    held = load_weights(key, path, weights)
    configure_arithmetic(precision)
    network = network_of(held.config, held.classes)
    network.load_state_dict(held.tensors)
    layout = torch.channels_last if on.type == "cuda" else torch.contiguous_format  # which cuDNN computes faster in
    network = network.to(device=on, memory_format=layout).eval().requires_grad_(False)  # type: ignore[call-overload]
    denoiser = build_denoiser(held.config, network, on, resolve_precision(precision, on))
    return Trained(path, held.step, held.config, network, denoiser, held.classes, on)


def load_guide(guide: str | None, device: str, precision: str) -> Trained | None:
    """Return the averaged network that guidance.guide=`guide` names, or None. Raise `UserError`."""
    return None if guide is None else load_trained(guide, "ema", device, precision, key="guidance.guide")
