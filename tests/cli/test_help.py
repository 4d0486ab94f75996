"""The help texts of the commands, and the composed config that --cfg prints."""

from collections.abc import Callable

import pytest

from tests.conftest import Result

Run = Callable[..., Result]


@pytest.mark.parametrize("command", ["train", "sample", "forward", "evaluate"])
def test_help_shows_usage_groups_and_values(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert result.out.startswith(f"ddpm-{command} ")
    assert "out: outputs/" in result.out
    assert "hydra:" not in result.out
    assert "defaults" not in result.out
    assert "_schema" not in result.out
    assert "Groups" in result.out


def test_help_lists_every_option(run: Run) -> None:
    out = run("train", "--help").out
    for line in [
        "dataset          cifar10 digits emoji fashion_mnist image_folder mnist parquet shards swiss_roll",
        "schedule         constant cosine edm flow linear quadratic sigmoid",
        "loss             ect huber hybrid l1 l2 vlb",
        "model            base conv ddpm_cifar10 ddpmpp dit_b dit_s dit_tiny improved_cifar10 large",
        "sampler          consistency ddim ddpm dpmpp_2m dpmpp_2m_sde dpmpp_3m edm euler heun unipc",
        "weighting        edm min_snr none p2 sigmoid",
        "timestep_sampler log_normal logit_normal loss_second_moment low_discrepancy uniform",
        "conditioning     class none",
        "experiment       annotated cifar10_conditional cifar10_fast conv_fashion_mnist ddim_cifar10",
    ]:
        assert line in out
    assert "sampler          consistency ddim ddpm" in run("sample", "--help").out


def test_cfg_job_prints_the_composed_config(run: Run) -> None:
    """The flag may stand anywhere."""
    for typed in (
        ["--cfg", "job", "model=base", "train.lr=0.5", "steps=7"],
        ["model=base", "--cfg", "job", "train.lr=0.5", "steps=7"],
        ["model=base", "train.lr=0.5", "steps=7", "--cfg=job"],
    ):
        result = run("train", *typed)
        assert result.code == 0, result.err
        assert all(line in result.out for line in ("width: 64", "lr: 0.5", "steps: 7"))
