import pytest
import torch

from ddpm_cli.config import EdmPath, FlowPath, Linear
from ddpm_cli.diffusion.process import Path, Process
from ddpm_cli.diffusion.schedules import path_of

BETAS = torch.linspace(0.01, 0.3, 20, dtype=torch.float64)


def test_q_sample_has_the_moments_of_the_iterated_chain() -> None:
    torch.manual_seed(0)
    count, start = 200_000, 0.7
    x = torch.full((count,), start, dtype=torch.float64)
    for beta in BETAS:
        x = (1 - beta).sqrt() * x + beta.sqrt() * torch.randn_like(x)  # q(x_t | x_{t-1}), eq. 2
    t = torch.full((count,), len(BETAS) - 1)
    closed = Process.from_betas(BETAS).q_sample(torch.full((count,), start), t, torch.randn(count))
    assert closed.mean() == pytest.approx(x.mean().item(), abs=0.01)
    assert closed.var() == pytest.approx(x.var().item(), abs=0.01)


def test_each_image_is_noised_at_its_own_t() -> None:
    process = Process.from_betas(torch.tensor([0.19, 0.36], dtype=torch.float64))
    x0, eps = torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 2.0)
    x_t = process.q_sample(x0, torch.tensor([0, 1]), eps)
    product = 0.81 * 0.64
    assert x_t[0].unique().item() == pytest.approx(0.9 + 2 * 0.19**0.5)
    assert x_t[1].unique().item() == pytest.approx(product**0.5 + 2 * (1 - product) ** 0.5)


def test_noising_is_float32_under_autocast() -> None:
    process = Process.from_betas(BETAS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x_t = process.q_sample(torch.ones(2, 4), torch.tensor([3, 4]), torch.ones(2, 4))
    assert x_t.dtype == torch.float32
    plain = process.q_sample(torch.ones(2, 4), torch.tensor([3, 4]), torch.ones(2, 4))
    assert torch.equal(x_t, plain)


PATHS = {
    "linear": path_of(Linear(timesteps=50, beta_start=1e-3, beta_end=0.2, rescale=False, zero_terminal_snr=False)),
    "edm": path_of(EdmPath(timesteps=50, sigma_min=0.002, sigma_max=80.0, rho=7.0)),
    "flow": path_of(FlowPath(timesteps=50, shift=3.0)),
}


@pytest.mark.parametrize("path", PATHS.values(), ids=list(PATHS))
@pytest.mark.parametrize(("t", "s"), [(49, 48), (30, 29), (1, 0), (49, 10), (20, 13)])
def test_posterior_is_bayes_rule(path: Path, t: int, s: int) -> None:
    """Check q(x_s | x_t, x0) against the conditional of the joint Gaussian of (x_s, x_t) given x0."""
    process = Process(path)
    (signal_t, sigma_t), (signal_s, sigma_s) = process.amplitudes(t), process.amplitudes(s)
    scale = signal_t / signal_s
    x0, x_t = 0.3, -1.2
    covariance = scale * sigma_s**2
    mean = signal_s * x0 + covariance / sigma_t**2 * (x_t - signal_t * x0)
    variance = sigma_s**2 - covariance**2 / sigma_t**2
    found = process.posterior(t, s)
    assert found.of_x0 * x0 + found.of_x_t * x_t == pytest.approx(mean, rel=1e-9)
    assert found.std**2 == pytest.approx(variance, rel=1e-7)
    assert found.forward_std**2 == pytest.approx(sigma_t**2 - scale**2 * sigma_s**2, rel=1e-7)


@pytest.mark.parametrize("path", PATHS.values(), ids=list(PATHS))
def test_tables_are_those_of_the_steps(path: Path) -> None:
    process, t = Process(path), torch.arange(1, 50)
    x0, x_t = torch.randn(49, 2), torch.randn(49, 2)
    steps = [process.posterior(i, i - 1) for i in t.tolist()]
    expected = torch.stack([step.of_x0 * a + step.of_x_t * b for step, a, b in zip(steps, x0, x_t, strict=True)])
    assert torch.allclose(process.posterior_mean(x0, x_t, t), expected, rtol=1e-5, atol=1e-6)
    stds = torch.tensor([step.std for step in steps])
    assert torch.allclose((process.log_posterior_variance[t] / 2).exp(), stds, rtol=1e-5)
    assert process.log_posterior_variance[0] == process.log_posterior_variance[1]
    assert torch.allclose(process.posterior_mean(x0[:1], x_t[:1], torch.zeros(1, dtype=torch.long)), x0[:1])


@pytest.mark.parametrize("path", PATHS.values(), ids=list(PATHS))
def test_chain_has_the_moments_of_q_sample(path: Path) -> None:
    torch.manual_seed(0)
    process = Process(path)
    x0 = torch.full((100_000,), 0.7, dtype=torch.float64)
    *_, x = process.chain(x0, lambda: torch.randn_like(x0))
    signal, sigma = process.amplitudes(49)
    assert x.mean() == pytest.approx(0.7 * signal, abs=0.015 * max(1, sigma))
    assert x.std() == pytest.approx(sigma, rel=0.01)


def test_noise_that_samplers_start_from() -> None:
    stds = {name: Process(path).initial_std(49) for name, path in PATHS.items()}
    assert stds == {"linear": 1.0, "edm": pytest.approx(80.0), "flow": 1.0}
