"""A plain implementation of "The Annotated Diffusion Model" (Rogge & Rasul, 2022), written for this benchmark.

It has the network of experiment=annotated, with the modules of the text, in float32. It uses a torchvision dataset that
transforms images individually, a DataLoader and Adam, and reads the loss at each step.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import Tensor, einsum, nn

from tests.benchmarks.data import endless, image_loader

HEADS, HEAD_DIM, GROUPS = 4, 32, 4


class TimeEmbedding(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, t: Tensor) -> Tensor:
        half = self.dim // 2
        frequencies = torch.exp(torch.arange(half, device=t.device) * -(math.log(10_000) / (half - 1)))
        angles = t[:, None] * frequencies[None, :]
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class StandardizedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean(dim=(1, 2, 3), keepdim=True)
        var = self.weight.var(dim=(1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) * (var + 1e-5).rsqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Block(nn.Module):
    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.conv = StandardizedConv(dim, dim_out, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, dim_out)
        self.act = nn.SiLU()

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.norm(self.conv(x))
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        return self.act(x)


class ResnetBlock(nn.Module):
    def __init__(self, dim: int, dim_out: int, time_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * dim_out))
        self.block1 = Block(dim, dim_out)
        self.block2 = Block(dim_out, dim_out)
        self.skip = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = rearrange(self.mlp(emb), "b c -> b c 1 1").chunk(2, dim=1)
        return self.block2(self.block1(x, (scale, shift))) + self.skip(x)


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(dim, 3 * HEADS * HEAD_DIM, 1, bias=False)
        self.to_out = nn.Conv2d(HEADS * HEAD_DIM, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(part, "b (h c) x y -> b h c (x y)", h=HEADS) for part in self.to_qkv(x).chunk(3, dim=1))
        scores = einsum("b h d i, b h d j -> b h i j", q * HEAD_DIM**-0.5, k)
        scores = scores - scores.amax(dim=-1, keepdim=True).detach()
        out = einsum("b h i j, b h d j -> b h i d", scores.softmax(dim=-1), v)
        return self.to_out(rearrange(out, "b h (x y) d -> b (h d) x y", x=x.shape[2]))


class LinearAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(dim, 3 * HEADS * HEAD_DIM, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(HEADS * HEAD_DIM, dim, 1), nn.GroupNorm(1, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(part, "b (h c) x y -> b h c (x y)", h=HEADS) for part in self.to_qkv(x).chunk(3, dim=1))
        q, k = q.softmax(dim=-2) * HEAD_DIM**-0.5, k.softmax(dim=-1)
        context = einsum("b h d n, b h e n -> b h d e", k, v)
        out = einsum("b h d e, b h d n -> b h e n", context, q)
        return self.to_out(rearrange(out, "b h c (x y) -> b (h c) x y", x=x.shape[2]))


class PreNormResidual(nn.Module):
    def __init__(self, dim: int, inner: nn.Module) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, dim)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.norm(x)) + x


def down(dim: int, dim_out: int) -> nn.Module:
    fold = Rearrange("b c (h p1) (w p2) -> b (c p1 p2) h w", p1=2, p2=2)
    return nn.Sequential(fold, nn.Conv2d(4 * dim, dim_out, 1))


def up(dim: int, dim_out: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(dim, dim_out, 3, padding=1))


class Unet(nn.Module):
    """Predict the noise in x: x (B, 1, H, W), t (B,) -> (B, 1, H, W)."""

    def __init__(self, dim: int = 28, multipliers: tuple[int, ...] = (1, 2, 4), channels: int = 1) -> None:
        super().__init__()
        dims = [dim, *(dim * multiplier for multiplier in multipliers)]
        pairs = list(pairwise(dims))
        time_dim, last = 4 * dim, len(pairs) - 1
        self.stem = nn.Conv2d(channels, dim, 1)
        self.time = nn.Sequential(
            TimeEmbedding(dim), nn.Linear(dim, time_dim), nn.GELU(), nn.Linear(time_dim, time_dim)
        )
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, (a, b) in enumerate(pairs):
            stage = [ResnetBlock(a, a, time_dim), ResnetBlock(a, a, time_dim), PreNormResidual(a, LinearAttention(a))]
            self.downs.append(nn.ModuleList([*stage, down(a, b) if i < last else nn.Conv2d(a, b, 3, padding=1)]))
        self.middle1 = ResnetBlock(dims[-1], dims[-1], time_dim)
        self.middle_attention = PreNormResidual(dims[-1], Attention(dims[-1]))
        self.middle2 = ResnetBlock(dims[-1], dims[-1], time_dim)
        for i, (a, b) in reversed(list(enumerate(pairs))):
            blocks = [ResnetBlock(b + a, b, time_dim), ResnetBlock(b + a, b, time_dim)]
            after = up(b, a) if i > 0 else nn.Conv2d(b, a, 3, padding=1)
            self.ups.append(nn.ModuleList([*blocks, PreNormResidual(b, LinearAttention(b)), after]))
        self.final = ResnetBlock(2 * dim, dim, time_dim)
        self.head = nn.Conv2d(dim, channels, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.stem(x)
        stem, emb, skips = x.clone(), self.time(t), []
        for block1, block2, attention, downsample in self.downs:
            x = block1(x, emb)
            skips.append(x)
            x = attention(block2(x, emb))
            skips.append(x)
            x = downsample(x)
        x = self.middle2(self.middle_attention(self.middle1(x, emb)), emb)
        for block1, block2, attention, upsample in self.ups:
            x = block1(torch.cat((x, skips.pop()), dim=1), emb)
            x = block2(torch.cat((x, skips.pop()), dim=1), emb)
            x = upsample(attention(x))
        return self.head(self.final(torch.cat((x, stem), dim=1), emb))


class Diffusion:
    """The diffusion process of the text: linear betas from 1e-4 to 0.02 over `timesteps`."""

    def __init__(self, timesteps: int) -> None:
        self.timesteps = timesteps
        self.betas = torch.linspace(0.0001, 0.02, timesteps)
        alphas = 1.0 - self.betas
        alphas_cumprod = torch.cumprod(alphas, dim=0)
        before = F.pad(alphas_cumprod[:-1], (1, 0), value=1.0)
        self.sqrt_recip_alphas = torch.sqrt(1.0 / alphas)
        self.sqrt_alphas_cumprod = torch.sqrt(alphas_cumprod)
        self.sqrt_one_minus_alphas_cumprod = torch.sqrt(1.0 - alphas_cumprod)
        self.posterior_variance = self.betas * (1.0 - before) / (1.0 - alphas_cumprod)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        signal, spread = _at(self.sqrt_alphas_cumprod, t), _at(self.sqrt_one_minus_alphas_cumprod, t)
        return signal * x0 + spread * noise

    @torch.no_grad()
    def p_sample(self, network: Callable[[Tensor, Tensor], Tensor], x: Tensor, i: int) -> Tensor:
        """Return x after a step of Ho et al. 2020, Algorithm 2, from timestep i."""
        t = torch.full((len(x),), i, dtype=torch.long)
        share = _at(self.betas, t) / _at(self.sqrt_one_minus_alphas_cumprod, t)
        mean = _at(self.sqrt_recip_alphas, t) * (x - share * network(x, t))
        if i == 0:
            return mean
        return mean + torch.sqrt(_at(self.posterior_variance, t)) * torch.randn_like(x)


def _at(table: Tensor, t: Tensor) -> Tensor:
    return table.gather(-1, t).reshape(-1, 1, 1, 1)


class Reference:
    """The training loop of the text, one step per call."""

    def __init__(self, data: Path, batch_size: int) -> None:
        self.diffusion = Diffusion(300)
        self.network = Unet()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        self.batches = endless(image_loader(data, batch_size, workers=0))

    def step(self) -> None:
        self.optimizer.zero_grad()
        x0, _ = next(self.batches)
        t = torch.randint(0, self.diffusion.timesteps, (len(x0),))
        noise = torch.randn_like(x0)
        predicted = self.network(self.diffusion.q_sample(x0, t, noise), t)
        loss = F.smooth_l1_loss(noise, predicted)
        loss.backward()
        self.optimizer.step()
        loss.item()

    def save(self, folder: Path) -> None:
        """Save what is needed to resume. (The text saves nothing.)"""
        state = {"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, folder / "checkpoint.pt")


def reference_steps(timesteps: int, images: int, steps: int) -> Iterator[Tensor]:
    """Yield x after `steps` evenly spaced steps of the text's sampling loop over `timesteps`."""
    diffusion, network = Diffusion(timesteps), Unet()
    x, seen = torch.randn(images, 1, 28, 28), []
    for i in torch.linspace(timesteps - 1, 0, steps).round().long().tolist():
        x = diffusion.p_sample(network, x, i)
        seen.append(x.numpy())  # kept as in the text, for its animation
        yield x
