"""The optimizer and its learning rate."""

import math

import torch
from torch import nn

from ddpm_cli.config import Train


def learning_rate(step: int, train: Train, steps: int) -> float:
    """The learning rate of `step` (0 is the first): linear warm-up, then constant, or cosine to 0."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    if train.lr_decay == "constant":
        return train.lr
    progress = (step - train.warmup_steps) / max(1, steps - train.warmup_steps)
    return train.lr * (1 + math.cos(math.pi * progress)) / 2


def build_optimizer(train: Train, network: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW over all parameters."""
    cls = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    beta1, beta2 = train.betas
    return cls(network.parameters(), train.lr, (beta1, beta2), weight_decay=train.weight_decay, fused=True)
