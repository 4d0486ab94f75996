"""Building blocks of the networks. Images are (B, C, H, W), embeddings of t are (B, D)."""

import math
from collections.abc import Callable
from functools import partial, wraps

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def sinusoidal_embedding(t: Tensor, dim: int) -> Tensor:
    """Return the sines, then the cosines, of t at dim/2 frequencies from 1 down to 1/10000.

    Vaswani et al. 2017, section 3.5, in the layout of Ho et al. 2020.

    Args:
        t: (B,) numbers.
        dim: even, at least 4.

    Returns:
        (B, dim) float32.
    """
    half = dim // 2
    exponents = torch.arange(half, device=t.device, dtype=torch.float32) / (half - 1)
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def cosine_first_embedding(t: Tensor, dim: int) -> Tensor:
    """Return the cosines, then the sines, of t at dim/2 frequencies from 1 down, in the ratio 10000**(-2/dim).

    The layout of Nichol & Dhariwal 2021. Shapes are those of `sinusoidal_embedding`.
    """
    half = dim // 2
    exponents = torch.arange(half, device=t.device, dtype=torch.float32) / half
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def class_vectors(classes: int, dim: int) -> nn.Embedding | None:
    """Return an embedding of the classes 0..classes-1 and of the null label `classes`; None without classes.

    The null label means no class (Ho & Salimans 2022, arXiv:2207.12598, section 3.2).
    """
    if not classes:
        return None
    table = torch.empty(classes + 1, dim)
    if not table.is_meta:  # where this would import torch._dynamo, which takes longer than loading a checkpoint
        table.normal_()
    return nn.Embedding.from_pretrained(table, freeze=False)


class Embedding(nn.Module):
    """The embedding (B, out_dim) of timesteps t (B,) plus that of classes y (B,), which may be None.

    The `sinusoids` of `scale` times t go through a two-layer MLP with `activation` between the layers; each class has a
    learned vector (`class_vectors`).
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        scale: float,
        classes: int,
        *,
        activation: Callable[[], nn.Module] = nn.SiLU,
        sinusoids: Callable[[Tensor, int], Tensor] = sinusoidal_embedding,
    ) -> None:
        super().__init__()
        self.dim, self.scale, self.sinusoids = dim, scale, sinusoids
        self.mlp = nn.Sequential(nn.Linear(dim, out_dim), activation(), nn.Linear(out_dim, out_dim))
        self.classes = class_vectors(classes, out_dim)

    def forward(self, t: Tensor, y: Tensor | None) -> Tensor:
        emb = self.mlp(self.sinusoids(t * self.scale, self.dim))
        return emb if self.classes is None or y is None else emb + self.classes(y)


def init_xavier(module: nn.Module) -> None:
    """Initialise a convolution or linear layer as Glorot & Bengio 2010, eq. 16, with biases of zero."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018, arXiv:1803.08494), computed in float32 or a wider type.

    On a CPU, torch's own bf16 group norm takes three times as long in channels_last. Compiled for CUDA, torch's group
    norm would copy channels_last inputs to another layout and back; `group_norm_by_channel` does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        full, weight, bias = x.to(dtype), self.weight.to(dtype), self.bias.to(dtype)
        if x.is_cuda and torch.compiler.is_compiling():
            return group_norm_by_channel(full, self.num_groups, weight, bias, self.eps).to(x.dtype)
        return F.group_norm(full, self.num_groups, weight, bias, self.eps).to(x.dtype)


def group_norm_by_channel(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the group norm of x (B, C, H, W) from the mean and variance of each channel.

    The reductions run over the pixels of a channel, which suits channels_last. The variance of a group is the mean of
    the variances of its channels plus the variance of their means.
    """
    var, mean = torch.var_mean(x, dim=(2, 3), correction=0)  # (B, C)
    by_group = mean.unflatten(1, (groups, -1))  # (B, groups, C / groups)
    var_of_means, group_mean = torch.var_mean(by_group, dim=2, correction=0, keepdim=True)
    group_var = var.unflatten(1, (groups, -1)).mean(dim=2, keepdim=True) + var_of_means
    scale = ((group_var + eps).rsqrt().expand_as(by_group)).flatten(1) * weight
    shift = bias - group_mean.expand_as(by_group).flatten(1) * scale
    return x * scale[:, :, None, None] + shift[:, :, None, None]


class WeightStandardizedConv2d(nn.Conv2d):
    """A convolution whose filters have zero mean and unit variance (Qiao et al. 2019, arXiv:1903.10520)."""

    def forward(self, x: Tensor) -> Tensor:
        filters = self.weight.permute(0, 2, 3, 1)  # their layout in memory
        filters = F.layer_norm(filters, filters.shape[1:], eps=1e-5)
        return self._conv_forward(x, filters.permute(0, 3, 1, 2), self.bias)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Return softmax attention over all pixels (Vaswani et al. 2017, eq. 1): (B, 3 C, H, W) -> (B, C, H, W)."""
    q, k, v = rearrange(qkv, "b (three h d) y x -> three b h (y x) d", three=3, h=heads)
    if qkv.requires_grad and qkv.device.type == "cpu":  # the fused kernel is 2 to 4 times slower here
        out = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return rearrange(out, "b h (y x) d -> b (h d) y x", y=qkv.shape[2])


def recomputable(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate the forward of a module whose activations can be recomputed in the backward pass to save memory.

    Gradient checkpointing (Chen et al. 2016, arXiv:1604.06174). `set_recompute` turns it on. The random numbers of
    dropout are the same in both passes.
    """

    @wraps(forward)
    def run(self: nn.Module, *inputs: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled() and getattr(self, "recompute", False):
            output: Tensor = checkpoint(partial(forward, self), *inputs, use_reentrant=False)
            return output
        return forward(self, *inputs)

    return run


def set_recompute(network: nn.Module) -> None:
    """Let the `recomputable` modules of a network recompute their activations in the backward pass."""
    for module in network.modules():
        module.recompute = True  # type: ignore[assignment]


class RepeatableDropout(nn.Dropout):
    """Dropout that uses its last mask again while `repeats` is true, if x has the same shape."""

    repeats = False
    mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if not self.repeats or self.mask is None or self.mask.shape != x.shape:
            self.mask = F.dropout(torch.ones_like(x), self.p)
        return x * self.mask


def make_dropout_repeatable(network: nn.Module) -> list[RepeatableDropout]:
    """Replace the `nn.Dropout` layers of a network in place, and return the new ones."""
    made = []
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                made.append(RepeatableDropout(child.p).train(child.training))
                setattr(module, name, made[-1])
    return made


class Layer(nn.Module):
    """A residual block, followed by attention at the levels of a U-Net that have it."""

    def __init__(self, block: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    @recomputable
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.attention(self.block(x, emb))


class Attention(nn.Module):
    """Group norm, `attend`, and a residual connection."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(1, dim)
        self.to_qkv = nn.Conv2d(dim, 3 * heads * head_dim, 1, bias=False)
        self.to_out = nn.Conv2d(heads * head_dim, dim, 1)

    @recomputable
    def forward(self, x: Tensor) -> Tensor:
        return x + self.to_out(attend(self.to_qkv(self.norm(x)), self.heads))


class LinearAttention(nn.Module):
    """Attention whose cost is linear in the pixels (Shen et al. 2018, arXiv:1812.01243, eq. 3), with a residual.

    The softmax of the queries is over their channels, that of the keys over the pixels: softmax(q) (softmax(k)^T v).
    Because v = x V and the output layer are linear, this is softmax(q) ((softmax(k)^T x) V out), which avoids computing
    the values of all pixels.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_dim**-0.5
        self.norm = GroupNorm(1, dim)
        self.to_qkv = nn.Conv2d(dim, 3 * heads * head_dim, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * head_dim, dim, 1), GroupNorm(1, dim))

    @recomputable
    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).mT  # (B, H W, C)
        to_q, to_k, to_v = self.to_qkv.weight.flatten(1).chunk(3)
        to_out, bias = self.to_out[0].parameters()
        q = F.linear(pixels, to_q).unflatten(2, (self.heads, -1)).softmax(dim=-1)
        k = F.linear(pixels, to_k).softmax(dim=1)
        seen = (pixels.mT @ k).unflatten(2, (self.heads, -1))  # (B, C, heads, d)
        to_v = to_v.unflatten(0, (self.heads, -1))
        to_out = to_out.flatten(1).unflatten(1, (self.heads, -1)) * self.scale
        context = torch.einsum("bchd,hec,ohe->bhdo", seen, to_v, to_out)
        attended = torch.baddbmm(bias, q.flatten(2), context.flatten(1, 2))  # (B, H W, C)
        return x + self.to_out[1](attended.mT.unflatten(2, x.shape[2:]))


def attention_layer(kind: str, dim: int, heads: int, head_dim: int) -> nn.Module:
    """Return the layer for `kind` none, linear or full."""
    match kind:
        case "none":
            return nn.Identity()
        case "linear":
            return LinearAttention(dim, heads, head_dim)
        case "full":
            return Attention(dim, heads, head_dim)
    raise ValueError(f"attention={kind}")
