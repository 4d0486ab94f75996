"""The optimizer and its learning rate."""

import math

import torch
from torch import Tensor, nn

from ddpm_cli.config import Train
from ddpm_cli.distributed.sharding import local_part
from ddpm_cli.training.muon import Muon, matrices_of


def learning_rate(step: int, train: Train, steps: int) -> float:
    """Return the learning rate of `step` (0 is the first): linear warm-up, then constant or cosine decay to 0."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    if train.lr_decay == "constant":
        return train.lr
    progress = (step - train.warmup_steps) / max(1, steps - train.warmup_steps)
    return train.lr * (1 + math.cos(math.pi * progress)) / 2


def build_optimizer(train: Train, network: nn.Module, dtype: torch.dtype) -> torch.optim.Optimizer:
    """Return Adam, AdamW or Muon over all parameters of a network that computes in `dtype`.

    Weight decay acts on the weights of convolutions and linear layers only, not on norms, biases and embeddings.
    """
    beta1, beta2 = train.betas
    device = next(network.parameters()).device
    capturable = device.type == "cuda"  # the learning rate is a tensor that a CUDA graph reads
    lr = torch.tensor(train.lr, device=device) if capturable else train.lr
    if train.optimizer == "muon":
        first = next(network.parameters())
        pad = capturable and local_part(first) is first  # shards have different numbers of rows
        return Muon(network, lr, (beta1, beta2), train.weight_decay, dtype, capturable, pad=pad)
    cls = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    matrices = matrices_of(network)
    of_matrices = {id(weight) for weight in matrices}
    others = [parameter for parameter in network.parameters() if id(parameter) not in of_matrices]
    groups = [{"params": matrices, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return cls([group for group in groups if group["params"]], lr, (beta1, beta2), fused=True, capturable=capturable)


def in_groups(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return the parameters in the order in which `optimizer.state_dict()` numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups, in place if it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def moments_like(train: Train, network: nn.Module) -> dict[int, dict[str, Tensor]]:
    """Return the shapes of the state that the optimizer has after a step, for each parameter by its number."""
    matrices = {id(weight) for weight in matrices_of(network)} if train.optimizer == "muon" else set()
    count = torch.zeros((), device="meta")
    return {
        i: {"step": count, "momentum": x} if id(x) in matrices else {"step": count, "exp_avg": x, "exp_avg_sq": x}
        for i, x in enumerate(network.parameters())
    }
