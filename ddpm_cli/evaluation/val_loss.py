"""The validation loss: the error of the predicted noise, whatever the network was trained to predict."""

import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_cli import rng
from ddpm_cli.checkpoints.loading import Trained
from ddpm_cli.data.table import Examples, to_float
from ddpm_cli.distributed import collectives
from ddpm_cli.sampling.sample_generator import batches_with_oom_retry


@torch.no_grad()
def val_loss(trained: Trained, examples: Examples, n: int, batch_size: int) -> float:
    """Return the mean squared error of eps over n of `examples`, noised at timesteps spaced evenly over 0..T-1.

    The examples, timesteps and noise are the same for all runs, so their values can be compared to the last digit. Runs
    with different noise schedules cannot be compared, because the schedule defines what a timestep means. A conditional
    network is given the class. A self-conditioned network is given no estimate.
    """
    denoiser, device = trained.denoiser, trained.device
    process = denoiser.process
    chosen = torch.randperm(len(examples), generator=rng.generator("val_loss", "order"))[:n]
    n = len(chosen)
    timesteps = torch.arange(n) * process.timesteps // n
    values, labels = examples.values[chosen], None if examples.labels is None else examples.labels[chosen]
    with tqdm(total=n, desc="val_loss", unit="image", leave=False, disable=collectives.progress_bar_disabled()) as bar:

        def measure(numbers: range) -> Tensor:
            part = slice(numbers.start, numbers.stop)
            x0, t = to_float(values[part].to(device)), timesteps[part].to(device)
            noise = [torch.randn(x0.shape[1:], generator=rng.generator("val_loss", i)) for i in numbers]
            eps = torch.stack(noise).to(device)
            y = labels[part].to(device) if trained.classes and labels is not None else None
            x_t = process.q_sample(x0, t, eps)
            output = denoiser(x_t, t, y).prediction
            found = process.eps_from(denoiser.prediction, output, x_t, t)
            bar.update(len(numbers))
            return (found - eps).square().flatten(1).mean(1).cpu().double()

        errors = torch.cat([found for _, found in batches_with_oom_retry(n, batch_size, measure)])
    return errors.mean().item()
