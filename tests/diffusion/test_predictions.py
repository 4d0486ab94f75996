"""Compare the parameterizations with the papers' formulas."""

import math

import pytest
import torch

from ddpm_cli.config import EdmPath, FlowPath, Linear, Schedule
from ddpm_cli.diffusion.denoiser import Denoiser, Output
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.schedules import path_of

T = 20
SCHEDULES: dict[str, Schedule] = {
    "linear": Linear(timesteps=T, beta_start=0.01, beta_end=0.3, rescale=False, zero_terminal_snr=False),
    "edm": EdmPath(timesteps=T, sigma_min=0.02, sigma_max=30.0, rho=7.0),
    "flow": FlowPath(timesteps=T, shift=2.0),
}
PAIRS = [(name, prediction) for name, schedule in SCHEDULES.items() for prediction in schedule.predictions]


def denoiser_of(name: str, prediction: str, sigma_data: float = 0.5) -> Denoiser:
    return Denoiser(lambda x, t, y: x, Process(path_of(SCHEDULES[name])), prediction, sigma_data=sigma_data)


@pytest.mark.parametrize(("name", "prediction"), PAIRS)
def test_x0_and_eps_invert_the_target(name: str, prediction: str) -> None:
    torch.manual_seed(0)
    denoiser = denoiser_of(name, prediction)
    x0, eps, t = torch.randn(T, 3, 4, 4), torch.randn(T, 3, 4, 4), torch.arange(T)
    x_t = denoiser.process.q_sample(x0, t, eps)
    output = Output(denoiser.target(x0, t, eps), None)
    assert torch.allclose(denoiser.x0(output, x_t, t), x0, atol=1e-4)
    assert torch.allclose(denoiser.eps(output, x_t, t), eps, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("name", "prediction"), PAIRS)
def test_errors_of_x0_and_of_the_output(name: str, prediction: str) -> None:
    """An error d of the output is an error of x0 whose square is d**2 / `per_squared_error_of_x0`."""
    torch.manual_seed(0)
    denoiser = denoiser_of(name, prediction)
    x0, t = torch.randn(T, 8), torch.arange(T)
    x_t = denoiser.process.q_sample(x0, t, torch.randn(T, 8))
    output = torch.randn(T, 8)
    difference = denoiser.x0(Output(output + 1, None), x_t, t) - denoiser.x0(Output(output, None), x_t, t)
    factor = denoiser.parameterization.per_squared_error_of_x0(denoiser.process.snr[t])
    signal = denoiser.process.signal > 0  # without signal, eps says nothing about x0
    assert torch.allclose((difference.square().mean(1) * factor)[signal], torch.ones(T)[signal], rtol=1e-3)


def test_edm_preconditioning_is_table_1() -> None:
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), and lambda c_out**2 = 1."""
    torch.manual_seed(0)
    seen = {}

    def network(x: torch.Tensor, time: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        seen["input"], seen["noise"] = x, time
        return torch.tanh(x)

    process = Process(path_of(SCHEDULES["edm"]))
    denoiser = Denoiser(network, process, "edm", sigma_data=0.4)
    t = torch.arange(T)
    x_t = process.q_sample(0.4 * torch.randn(T, 6), t, torch.randn(T, 6))
    estimate = denoiser.x0(denoiser(x_t, t), x_t, t)
    for i, sigma in enumerate(process.sigmas):
        total = sigma**2 + 0.4**2
        c_skip, c_out, c_in = 0.4**2 / total, sigma * 0.4 / math.sqrt(total), 1 / math.sqrt(total)
        assert torch.allclose(seen["input"][i], c_in * x_t[i], rtol=1e-4, atol=1e-6)
        assert seen["noise"][i].item() == pytest.approx(math.log(sigma) / 4, abs=1e-5)
        expected = c_skip * x_t[i] + c_out * torch.tanh(c_in * x_t[i])
        assert torch.allclose(estimate[i], expected, rtol=1e-4, atol=1e-5)
        weight = total / (sigma * 0.4) ** 2
        factor = denoiser.parameterization.per_squared_error_of_x0(process.snr[i])
        assert factor.item() == pytest.approx(weight, rel=1e-4) == pytest.approx(1 / c_out**2)


def test_targets_and_inputs_of_edm_have_unit_variance() -> None:
    torch.manual_seed(0)
    denoiser = denoiser_of("edm", "edm", sigma_data=0.3)
    t = torch.arange(T)
    x0, eps = 0.3 * torch.randn(T, 50_000), torch.randn(T, 50_000)
    x_t = denoiser.process.q_sample(x0, t, eps)
    assert torch.allclose(denoiser(x_t, t).prediction.std(1), torch.ones(T), atol=0.02)  # the network is the identity
    assert torch.allclose(denoiser.target(x0, t, eps).std(1), torch.ones(T), atol=0.02)


def test_v_is_orthogonal_to_x_t() -> None:
    """Check that (x_t, v) is (x0, eps) rotated by the angle whose cosine is the signal."""
    torch.manual_seed(0)
    denoiser = denoiser_of("linear", "v")
    x0, eps, t = torch.randn(T, 5), torch.randn(T, 5), torch.arange(T)
    x_t, v = denoiser.process.q_sample(x0, t, eps), denoiser.target(x0, t, eps)
    assert torch.allclose(x_t**2 + v**2, x0**2 + eps**2, atol=1e-5)


def test_edm_with_unit_data_is_minus_v() -> None:
    """On a variance-preserving path with data of unit variance, the preconditioned output is -v."""
    torch.manual_seed(0)
    x0, eps, t = torch.randn(T, 5), torch.randn(T, 5), torch.arange(T)
    v = denoiser_of("linear", "v").target(x0, t, eps)
    assert torch.allclose(denoiser_of("linear", "edm", 1.0).target(x0, t, eps), -v, atol=1e-5)


def test_flow_is_the_velocity() -> None:
    """x_t moves by eps - x0 as sigma grows: the derivative of x_t along the path."""
    denoiser = denoiser_of("flow", "flow")
    x0, eps = torch.tensor([[0.5, -1.0]]), torch.tensor([[2.0, 0.3]])
    early, late = torch.tensor([5]), torch.tensor([6])
    x_early, x_late = (denoiser.process.q_sample(x0, t, eps) for t in (early, late))
    change = (x_late - x_early) / (denoiser.process.sigmas[6] - denoiser.process.sigmas[5])
    assert torch.allclose(change, denoiser.target(x0, early, eps), rtol=1e-4)
