"""`loss=ect init=<run>`: from a diffusion model to samples in two steps, on the command line and in the trainer."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddpm_cli.config import Consistency
from ddpm_cli.errors import UserError
from tests.conftest import TINY, Result, composed
from tests.processes import in_two
from tests.training.test_trainer import trainer_of

Run = Callable[..., Result]
TUNED = ["loss=ect", "sampler=consistency", "sampler.steps=2"]
OWN = [word for word in TINY if not word.startswith(("model", "schedule", "sampler"))]
ECT = [
    *TINY,
    "model.dropout=0.3",
    "model.self_condition=true",
    "train.accumulate=2",
    "conditioning=class",
    *TUNED,
]


def checkpoint(folder: str, step: int) -> dict[str, dict[str, torch.Tensor]]:
    return dict(torch.load(Path(folder, f"checkpoints/step_{step:08d}.pt"), weights_only=True))


def test_train_tune_resume_and_sample(run: Run) -> None:
    more = ["schedule=edm", "schedule.timesteps=50", "prediction=edm", "sigma_data=0.5", "model.dropout=0.2"]
    assert run("train", *TINY, *more, "train.steps=10", "out=base").code == 0
    tune = [*OWN, "init=base", *TUNED, "train.milestone_every=2", "train.log_every=2", "train.report=val_loss"]
    result = run("train", *tune, "train.steps=4", "out=whole")
    assert result.code == 0, result.err
    assert "warning" not in result.err.lower()
    assert "loss       ect, prediction=edm, variance=fixed_small" in result.err
    assert torch.load("whole/checkpoints/last.pt", weights_only=True)["config"]["sigma_data"] == 0.5  # that of the base

    shutil.copytree("whole", "part")
    result = run("train", "resume=part/checkpoints/step_00000002.pt")
    assert result.code == 0, result.err
    assert "init=<run>" not in result.err
    for name, x in checkpoint("whole", 4)["model"].items():
        assert torch.equal(x, checkpoint("part", 4)["model"][name]), name

    result = run("sample", "ckpt=whole", "sampler.steps=2", "n=4", "out=images")
    assert result.code == 0, result.err
    assert len(list(Path("images").rglob("*.png"))) > 0
    assert "sampler=consistency" not in result.err
    result = run("sample", "ckpt=base", "sampler=consistency", "n=2", "out=blurred")
    assert "this network was trained with loss=l2" in result.err
    result = run("sample", "ckpt=whole", "sampler=ddim", "sampler.steps=2", "n=2", "out=wrong")
    assert "sampler=ddim: this network is a consistency model; use sampler=consistency" in result.err


def test_from_scratch_is_one_warning(run: Run) -> None:
    result = run("train", *TINY, "loss=ect", "sampler=consistency", "train.steps=1", "out=run")
    assert result.code == 0, result.err
    assert result.err.count("loss=ect: tunes a trained network; init=<run> starts from one") == 1


def test_the_stage_follows_the_step() -> None:
    trainer = trainer_of(composed(*ECT, "train.steps=8"))
    trainer.step = 6
    assert float(trainer._batch().progress) == 0.75


@pytest.mark.slow
def test_objective_compiles_without_graph_breaks() -> None:
    trainer = trainer_of(composed(*ECT))
    assert len(list(trainer.objective.dropouts)) > 0
    batch = trainer._batch()
    compiled = torch.compile(trainer.objective.__call__, backend="eager", fullgraph=True)
    for show_estimate in (False, True):
        given = (batch.x0, batch.t, batch.eps, batch.y, show_estimate, None, batch.progress)
        torch.manual_seed(0)
        by_compiler = compiled(*given)
        torch.manual_seed(0)
        assert torch.allclose(by_compiler, trainer.objective(*given), rtol=1e-4)


def test_nothing_in_a_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(composed(*ECT))
    trainer.train_step()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the host would wait for the device")

    for name in ("item", "cpu", "numpy", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    trainer.train_step()


REFUSED = {
    ("prediction=x0",): "prediction=x0: not with loss=ect",
    ("weighting=min_snr",): "weighting=min_snr: must be none with loss=ect, whose weights are loss.weight=gap",
    ("variance=learned_range",): "variance=learned_range: loss=ect teaches the network no variance",
    ("schedule=flow", "prediction=flow"): "loss.weight=gap: must be edm with a schedule that ends without signal",
    ("loss.q=1",): "loss.q=1.0: must be above 1",
    ("loss.c=0",): "loss.c=0.0: must be at least 1e-8, or null",
    ("loss.weight=snr",): "loss.weight=snr: must be gap, level or edm",
    ("sampler=consistency", "sampler.sections=[2,2]"): "sampler.sections=[2, 2]: must be null",
    ("sampler=consistency", "sampler.spacing=logsnr"): "sampler.spacing=logsnr: must be time",
    ("sampler=consistency", "sampler.mid_sigma=0"): "sampler.mid_sigma=0.0: must be above 0, or null",
}


@pytest.mark.parametrize("overrides", REFUSED, ids="-".join)
def test_what_does_not_fit_is_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        composed("loss=ect", *overrides)
    assert str(error.value).startswith(REFUSED[overrides])


def test_what_fits() -> None:
    composed("loss=ect", "schedule=flow", "prediction=flow", "loss.weight=edm")
    sampler = composed("sampler=consistency", "sampler.mid_sigma=null", "sampler.spacing=logsnr").sampler
    assert isinstance(sampler, Consistency)


def losses_of(*overrides: str) -> list[float]:
    trainer = trainer_of(composed(*ECT, "model.dropout=0", "train.steps=4", *overrides))
    return [float(trainer.train_step()[0]) for _ in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_have_the_losses_of_one(strategy: str, tmp_path: Path) -> None:
    alone = torch.tensor(losses_of())
    for both in in_two(losses_of, tmp_path, f"distributed.strategy={strategy}"):
        assert torch.allclose(torch.tensor(both), alone, rtol=1e-3)
