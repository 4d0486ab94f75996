"""Compute the variational bound on the negative log-likelihood of examples under a trained network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_cli import rng
from ddpm_cli.checkpoints.loading import Trained
from ddpm_cli.config import ClassLabels, ImageDataset
from ddpm_cli.data.table import Examples, to_float
from ddpm_cli.diffusion.likelihood import bound_term, prior_term
from ddpm_cli.sampling.build import compile_for_inference, for_inference
from ddpm_cli.sampling.sample_generator import batches_with_oom_retry
from ddpm_cli.tracking.terminal import ImageBar

NLL_N = 64
"""Default number of examples."""


@dataclass(frozen=True)
class Bound:
    """A variational bound in bits per dimension, as the mean over examples.

    standard_error: that of `total`; NaN for a single example. terms: the mean of each of the T terms; index t is the
    term of p(x_{t-1} | x_t). prior: the mean of L_T.
    """

    total: float
    standard_error: float
    terms: list[float]
    prior: float


@torch.no_grad()
def bound(
    trained: Trained, examples: Examples, batch_size: int, seed: int, compiled: bool | None = None
) -> Bound | None:
    """Compute the variational bound on `examples`, with one noise sample for each example and timestep.

    Of several processes only rank 0 has the result; the others return None.

    Conditional networks receive the labels. The noise depends on `seed`, but not on `batch_size`. compiled: whether to
    compile the network; see `compile_for_inference`.
    """
    denoiser, device = for_inference(trained.denoiser, trained.device), trained.device
    timesteps = denoiser.process.timesteps
    compile_for_inference(trained.network, device, compiled, len(examples), batch_size, timesteps)
    discrete = isinstance(trained.config.dataset, ImageDataset)
    conditional = isinstance(trained.config.conditioning, ClassLabels)

    def measure(numbers: range) -> tuple[Tensor, Tensor]:
        """Return the terms (T, B) and the priors (B,) of the examples at the indices `numbers`."""
        part = slice(numbers.start, numbers.stop)
        x0 = to_float(examples.values[part].to(device))
        y = examples.labels[part].to(device) if conditional and examples.labels is not None else None
        generators = [rng.generator(seed, "nll", i) for i in numbers]
        terms = torch.zeros(timesteps, len(numbers), dtype=torch.float64)
        for t in range(timesteps):
            eps = torch.stack([torch.randn(x0.shape[1:], generator=one) for one in generators])
            term = bound_term(denoiser, x0, t, eps.to(device), y, discrete)
            terms[t] = term.cpu().double()
            bar.reach(numbers, (t + 1) / timesteps)
        return terms, prior_term(denoiser.process, x0).cpu().double()

    with ImageBar(len(examples), "nll") as bar:
        parts = [found for _, found in batches_with_oom_retry(len(examples), batch_size, measure)]
    if not parts:
        return None
    terms, priors = torch.cat([terms for terms, _ in parts], dim=1), torch.cat([priors for _, priors in parts])
    totals = terms.sum(0) + priors
    error = totals.std().item() / len(totals) ** 0.5 if len(totals) > 1 else float("nan")
    return Bound(totals.mean().item(), error, terms.mean(1).tolist(), priors.mean().item())
