"""The variational bound against closed forms."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from ddpm_cli.config import Cosine, Linear
from ddpm_cli.diffusion.denoiser import Denoiser, Output
from ddpm_cli.diffusion.likelihood import bound_term, discretised_nll, normal_kl, normal_nll, prior_term, reverse_term
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.schedules import path_of
from tests.diffusion.toys import COSINE, LINEAR

SHORT = Process.from_betas(torch.linspace(0.01, 0.5, 20, dtype=torch.float64))
VARIANCE = 0.3
"""The data are x0 ~ N(0, VARIANCE), independent in each dimension."""


def test_kl_and_nll_are_torch_distributions() -> None:
    torch.manual_seed(0)
    mean1, mean2, log_var1, log_var2, x = torch.randn(5, 100)
    p = torch.distributions.Normal(mean1, (0.5 * log_var1).exp())
    q = torch.distributions.Normal(mean2, (0.5 * log_var2).exp())
    expected = torch.distributions.kl_divergence(p, q)
    assert torch.allclose(normal_kl(mean1, log_var1, mean2, log_var2), expected, atol=1e-4)
    assert torch.allclose(normal_nll(x, mean1, log_var1), -p.log_prob(x), atol=1e-4)


LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.mark.parametrize(("mean", "std"), [(0.1, 0.3), (-0.98, 0.02), (0.4, 0.003), (3.0, 0.5)])
def test_discretised_probabilities_sum_to_one_and_match_scipy(mean: float, std: float) -> None:
    nll = discretised_nll(LEVELS, torch.tensor(mean).double(), torch.tensor(2 * math.log(std)).double())
    assert nll.neg().exp().sum().item() == pytest.approx(1, abs=1e-9)
    edges = torch.cat([torch.tensor([-math.inf]), (LEVELS[1:] + LEVELS[:-1]) / 2, torch.tensor([math.inf])]).numpy()
    mass = stats.norm(mean, std).cdf(edges[1:]) - stats.norm(mean, std).cdf(edges[:-1])
    likely = torch.tensor(mass > 1e-12)  # below that, scipy's difference of two CDFs is rounding error
    assert torch.allclose(nll[likely], -torch.tensor(mass).log()[likely], rtol=1e-3)


def test_far_from_the_mean_values_and_gradients_stay_finite() -> None:
    mean = torch.tensor([-1.0, 0.9, 50.0], requires_grad=True)
    log_var = torch.full((3,), 2 * math.log(0.005), requires_grad=True)
    nll = discretised_nll(torch.tensor([1.0, -1.0, 0.0]), mean, log_var)
    nll.sum().backward()
    assert nll.isfinite().all()
    assert mean.grad.isfinite().all()
    assert log_var.grad.isfinite().all()
    assert (mean.grad.sign() == torch.tensor([-1.0, 1.0, 1.0])).all()  # towards x


def perfect(process: Process, variance: str = "fixed_small") -> Denoiser:
    """Network that predicts E[x0 | x_t]."""

    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        ac = torch.tensor(process.alphas_cumprod)[t][:, None]
        x0 = ac.sqrt() * VARIANCE / (ac * VARIANCE + 1 - ac) * x
        return torch.cat([x0, torch.zeros_like(x0)], 1) if variance == "learned_range" else x0

    return Denoiser(network, process, "x0", variance)


def true_reverse_variance(process: Process, t: int) -> float:
    """Return the variance of q(x_{t-1} | x_t) for the Gaussian data, by conditioning a pair of Gaussians."""
    ac = process.alphas_cumprod[t]
    before = process.alphas_cumprod[t - 1] if t else 1.0
    alpha = ac / before
    var_before = before * VARIANCE + 1 - before
    return var_before - alpha * var_before**2 / (ac * VARIANCE + 1 - ac)


@pytest.mark.parametrize("process", [SHORT, COSINE], ids=["short", "cosine"])
def test_the_bound_of_the_optimal_denoiser_is_the_closed_form(process: Process) -> None:
    """Closed form of E_q KL(q(x_{t-1} | x_t, x0) || N(optimal mean, fixed_small)): the two means differ by the
    error of the optimal estimate of x0, whose variance is known, times the posterior's coefficient of x0.
    """
    torch.manual_seed(0)
    denoiser = perfect(process)
    x0 = VARIANCE**0.5 * torch.randn(4000, 50)
    ac_all = process.alphas_cumprod
    for t in [t for t in (1, 2, 7, 19, 400, 999) if t < process.timesteps]:
        ac, before = ac_all[t], ac_all[t - 1]
        beta = 1 - ac / before
        error = VARIANCE * (1 - ac) / (ac * VARIANCE + 1 - ac)  # of x0 given x_t
        coefficient = math.sqrt(before) * beta / (1 - ac)
        posterior = beta * (1 - before) / (1 - ac)
        expected = coefficient**2 * error / (2 * posterior) / math.log(2)
        found = bound_term(denoiser, x0, t, torch.randn_like(x0), None, discrete=False)
        assert found.mean().item() == pytest.approx(expected, rel=0.02)
    first = bound_term(denoiser, x0, 0, torch.randn_like(x0), None, discrete=False)
    error = VARIANCE * (1 - ac_all[0]) / (ac_all[0] * VARIANCE + 1 - ac_all[0])
    log_var = process.log_posterior_variance[0].item()
    expected = 0.5 * (math.log(2 * math.pi) + log_var + error / math.exp(log_var)) / math.log(2)
    assert first.mean().item() == pytest.approx(expected, rel=0.02)


def test_bound_equals_the_entropy_for_the_true_reverse_process() -> None:
    """With the optimal mean and the true variance of q(x_{t-1} | x_t), p is the true reverse chain: the terms sum to
    the entropy of the data, 0.5 log2(2 pi e VARIANCE), plus the KL divergence of x_T from the prior.
    """
    torch.manual_seed(0)
    process = SHORT
    x0 = VARIANCE**0.5 * torch.randn(20_000, 10)
    total = prior_term(process, x0).mean()
    for t in range(process.timesteps):
        at = torch.full((len(x0),), t)
        x_t = process.q_sample(x0, at, torch.randn_like(x0))
        small, large = process.log_posterior_variance[t], process.log_forward_variance[t]
        fraction = (math.log(true_reverse_variance(process, t)) - small) / (large - small)
        denoiser = perfect(process, "learned_range")
        output = Output(denoiser(x_t, at).prediction, fraction.expand_as(x0))
        term = reverse_term(denoiser, output, output.prediction, x0, x_t, at, discrete=False)
        total = total + term.mean()
    ac = process.alphas_cumprod[-1]
    last = ac * VARIANCE + 1 - ac
    mismatch = 0.5 * (last - 1 - math.log(last))  # KL(q(x_T) || N(0, 1))
    entropy = 0.5 * math.log(2 * math.pi * math.e * VARIANCE)
    assert total.item() == pytest.approx((entropy + mismatch) / math.log(2), abs=0.01)


def test_kl_terms_are_zero_for_the_true_posterior() -> None:
    """Network that returns the true x0 and the smallest learned variance, that of the posterior: each KL is 0."""
    torch.manual_seed(0)
    x0 = torch.randn(19, 5)
    t = torch.arange(1, 20)

    def network(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return torch.cat([x0, -torch.ones_like(x0)], 1)  # -1 selects the lower bound

    denoiser = Denoiser(network, SHORT, "x0", "learned_range")
    x_t = SHORT.q_sample(x0, t, torch.randn_like(x0))
    output = denoiser(x_t, t)
    terms = reverse_term(denoiser, output, output.prediction, x0, x_t, t, discrete=False)
    assert terms.abs().max() < 1e-5
    larger = Denoiser(lambda x, t, y: x0, SHORT, "x0", "fixed_large")
    output = larger(x_t, t)
    terms = reverse_term(larger, output, output.prediction, x0, x_t, t, discrete=False)
    small, large = SHORT.log_posterior_variance[t], SHORT.log_forward_variance[t]
    expected = 0.5 * (large - small + (small - large).exp() - 1) / math.log(2)
    assert torch.allclose(terms, expected, atol=1e-5)


def test_prior_term_is_zero_only_if_the_schedule_ends_in_noise() -> None:
    x0 = torch.full((1, 4), 0.5)
    assert prior_term(LINEAR, x0).item() < 1e-4
    assert prior_term(COSINE, x0).item() < 1e-4
    short = Linear(timesteps=300, beta_start=1e-4, beta_end=0.02, rescale=False, zero_terminal_snr=False)
    process = Process(path_of(short))
    ac = process.alphas_cumprod[-1]
    expected = 0.5 * (ac * 0.25 + (1 - ac) - 1 - math.log(1 - ac)) / math.log(2)
    assert prior_term(process, x0).item() == pytest.approx(expected, rel=1e-3)
    assert expected > 0.005
    nothing_left = Cosine(timesteps=100, s=0.008, max_beta=0.999, zero_terminal_snr=True)
    assert prior_term(Process(path_of(nothing_left)), x0).item() == 0


def test_clipping_the_estimate_of_8_bit_data_lowers_the_bound() -> None:
    torch.manual_seed(0)
    x0 = torch.ones(50, 20)
    denoiser = Denoiser(lambda x, t, y: torch.full_like(x, 1.7), SHORT, "x0")
    eps = torch.randn_like(x0)
    cut = bound_term(denoiser, x0, 10, eps, None, discrete=True)
    uncut = bound_term(denoiser, x0, 10, eps, None, discrete=False)
    assert (cut < uncut).all()
    assert cut.abs().max() < 1e-5
