"""Every experiment: its published settings, a step and samples, and whether its small variant learns."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm_cli.config import ImageDataset, TrainConfig
from ddpm_cli.data.sources import load_examples
from ddpm_cli.data.table import Examples, Table
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.schedules import betas_of, path_of
from ddpm_cli.diffusion.timesteps import timestep_pairs
from ddpm_cli.sampling.sample_generator import SampleGenerator
from ddpm_cli.tracking.timeline import new_timeline
from ddpm_cli.training.loop import Loop
from ddpm_cli.training.signals import Signals
from ddpm_cli.training.trainer import Trainer
from tests.conftest import composed
from tests.distances import sliced_wasserstein

CPU = torch.device("cpu")
ALL = sorted(file.stem for file in (Path(__file__).parent.parent / "configs/experiment").glob("*.yaml"))
RECIPES = [name for name in ALL if name.startswith("recipe_")]
EXPERIMENTS = [name for name in ALL if name not in RECIPES]
FLOWS = ("flow_cifar10", "quickstart")
SMALL = {
    "annotated": ["dataset.image_size=16", "model.width=8", "model.multipliers=[1,2]", "model.attention=[linear,none]"],
    "quickstart": ["model.width=16"],
    "conv_fashion_mnist": ["model.width=8"],
    "cifar10_conditional": [
        "dataset.image_size=16",
        "model.width=16",
        "model.groups=8",
        "model.multipliers=[1,2]",
        "model.attention=[none,full]",
    ],
    "cifar10_fast": [
        "dataset.image_size=16",
        "model.width=16",
        "model.groups=8",
        "model.multipliers=[1,2]",
        "model.attention=[none,full]",
    ],
    "ddim_cifar10": [
        "dataset.image_size=16",
        "model.width=16",
        "model.groups=8",
        "model.multipliers=[1,2]",
        "model.attention=[none,full]",
    ],
    "dit_cifar10": ["dataset.image_size=16", "model.width=32", "model.depth=2", "model.heads=2", "model.patch_size=4"],
    "edm_cifar10": [
        "dataset.image_size=16",
        "model.width=16",
        "model.multipliers=[1,2]",
        "model.attention=[none,full]",
        "model.blocks=1",
    ],
    "edm_fashion_mnist": ["model.width=16"],
    "emoji": ["dataset.image_size=16", "model.width=16"],
    "flow_cifar10": [
        "dataset.image_size=16",
        "model.width=16",
        "model.groups=8",
        "model.multipliers=[1,2]",
        "model.attention=[none,full]",
    ],
    "improved": [
        "dataset.image_size=16",
        "model.width=16",
        "model.groups=8",
        "model.multipliers=[1,2]",
        "model.attention=[none,full]",
    ],
    "swiss_roll": ["model.width=32", "model.blocks=2"],
}


def examples_like(config: TrainConfig, count: int) -> Examples:
    """Return synthetic blobs of two classes, of the size of the experiment's images, in place of its data."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    if not isinstance(config.dataset, ImageDataset):
        return Examples(torch.randn(count, 2, generator=generator) * 0.1 + labels[:, None], labels, ["a", "b"])
    channels, height, width = config.dataset.shape
    coarse = torch.rand(count, channels, 4, 4, generator=generator) * 100 + 155 * labels.view(-1, 1, 1, 1)
    images = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return Examples(images.round().byte(), labels, ["a", "b"])


def trainer_of(config: TrainConfig, count: int = 32) -> Trainer:
    return Trainer(config, Table(examples_like(config, count), False, 0, CPU), CPU)


def trained(trainer: Trainer, folder: Path) -> float:
    return Loop(trainer, folder, "a fingerprint", Signals()).run()


def test_every_text_has_an_experiment() -> None:
    assert {"annotated", "conv_fashion_mnist", "cifar10_conditional", "swiss_roll", "improved"} <= {*EXPERIMENTS}
    assert SMALL.keys() == {*EXPERIMENTS}


# As cifar10_conditional, or as quickstart.
SAME_NETWORK = ("cifar10_fast", "ddim_cifar10", "flow_cifar10", "edm_fashion_mnist")


@pytest.mark.parametrize("size", ["small", pytest.param("true", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_steps(name: str, size: str, tmp_path: Path) -> None:
    """Train, write a checkpoint and draw samples. tests/config builds each network at full size on the meta device."""
    few = ["train.steps=2", "train.epochs=null", "train.batch_size=2", "train.samples=2", "train.ema_start=0"]
    more = SMALL[name] if size == "small" else []
    config = composed(f"experiment={name}", *more, *few, "sampler.steps=2", "train.precision=fp32", "compile=false")
    trainer = trainer_of(config)
    before = [parameter.clone() for parameter in trainer.network.parameters()]
    loss = trained(trainer, tmp_path)
    assert loss > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    assert (tmp_path / "checkpoints/last.pt").is_file()
    assert (tmp_path / "samples/step_00000002.png").stat().st_size > 500


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SAME_NETWORK else []) for name in EXPERIMENTS]
)
def test_the_small_variant_learns(name: str) -> None:
    """Check that the loss at fixed timesteps and noise falls."""
    steps = 90 if name in FLOWS else 30  # a velocity takes longer to learn
    few = ["train.batch_size=8", "train.lr=4e-3", "train.warmup_steps=0", "train.precision=fp32"]
    config = composed(f"experiment={name}", *SMALL[name], *few, f"train.steps={steps}", "train.epochs=null")
    trainer = trainer_of(config)
    generator = torch.Generator().manual_seed(1)
    x0, y, _ = trainer.table.batch(0, 32)
    t = torch.linspace(0, config.schedule.timesteps - 1, 32).long()
    eps = torch.randn(x0.shape, generator=generator)
    given = y if trainer.classes else None

    def loss() -> float:
        with torch.no_grad():
            return trainer.objective(x0, t, eps, given).mean().item()

    first = loss()
    for _ in range(steps):
        trainer.train_step()
    assert loss() < 0.8 * first


SCHEDULES = ["linear", "cosine", "quadratic", "sigmoid", "constant"]
WITH_SCHEDULES = [
    pytest.param(name, schedule, marks=[] if (i - k) % len(SCHEDULES) == 0 else pytest.mark.slow)
    for i, name in enumerate(EXPERIMENTS)
    for k, schedule in enumerate(SCHEDULES)
]


@pytest.mark.parametrize(("name", "schedule"), WITH_SCHEDULES)
def test_every_schedule_in_every_experiment(name: str, schedule: str) -> None:
    prediction = ["prediction=v"] if name in FLOWS else []
    own = composed(f"experiment={name}", f"schedule={schedule}", *prediction).schedule
    betas = betas_of(own)
    assert ((betas > 0) & (betas < 1)).all()
    assert betas_of(replace(own, zero_terminal_snr=True))[-1] == 1


KNOBS = [
    "sampler=dpmpp_2m",
    "sampler=heun",
    "sampler=ddim",
    "sampler.sections=[2,3]",
    "sampler.thresholding=none",
    "weighting=min_snr",
    "weighting=p2",
    "timestep_sampler=loss_second_moment",
    "conditioning=class",
    "variance=fixed_large loss=l2",
    "variance=learned_range loss=hybrid",
    "variance=learned_range loss=vlb",
    "model.self_condition=true",
    "prediction=v schedule.zero_terminal_snr=true",
]


def _selected(name: str, knob: str) -> bool:
    """Return whether `make test` runs a combination: two experiments for each option, in rotation."""
    return (EXPERIMENTS.index(name) - KNOBS.index(knob)) % len(EXPERIMENTS) < 2


OF_BETAS = ["prediction=v schedule.zero_terminal_snr=true"]
IMPOSSIBLE = {
    "edm_cifar10": OF_BETAS,
    "edm_fashion_mnist": [*OF_BETAS, "timestep_sampler=loss_second_moment"],
    **{name: [*OF_BETAS, "weighting=min_snr", "weighting=p2"] for name in FLOWS},
}
"""Options that a path does not have, or that lack a key that the experiment sets."""
COMBINATIONS = [
    pytest.param(name, knob, marks=[] if _selected(name, knob) else pytest.mark.slow)
    for name in EXPERIMENTS
    for knob in KNOBS
    if knob not in IMPOSSIBLE.get(name, [])
]


@pytest.mark.parametrize(("name", "knob"), COMBINATIONS)
def test_every_option_in_every_experiment(name: str, knob: str) -> None:
    """Take a step and draw samples with the small variant."""
    few = ["train.batch_size=4", "train.precision=fp32", "schedule.timesteps=40", "sampler.steps=3"]
    config = composed(f"experiment={name}", *SMALL[name], *few, *knob.split())
    trainer = trainer_of(config, count=4)
    loss, _ = trainer.train_step()
    assert loss.isfinite()
    samples = [*trainer.generator.steps(0, [0, 1], range(2))][-1].x
    assert samples.shape == (2, *config.dataset.shape)
    assert samples.isfinite().all()


def test_conv_fashion_mnist_is_what_the_text_trains() -> None:
    config = composed("experiment=conv_fashion_mnist")
    betas = betas_of(config.schedule)
    assert (len(betas), betas[0].item(), betas[-1].item()) == (1000, pytest.approx(1e-3), pytest.approx(0.01))
    assert (config.dataset.shape, config.loss.name, config.model.time_dim) == ((1, 32, 32), "l2", 100)
    assert (config.train.optimizer, config.train.lr, config.train.batch_size) == ("adam", 1e-3, 128)
    timeline = new_timeline(config.train, 60_000)
    assert timeline.steps == 4688
    milestones = [step for step in range(1, 4689) if timeline.is_milestone(step)]
    assert milestones == [-(-60_000 * epoch // 128) for epoch in range(1, 11)]


def test_cifar10_conditional_is_what_the_text_trains() -> None:
    config = composed("experiment=cifar10_conditional")
    assert (config.model.width, config.conditioning.name, config.loss.name) == (128, "class", "l2")
    assert (config.train.ema_decay, config.train.ema_start, config.train.steps) == (0.9999, 2000, 80_000)
    assert betas_of(config.schedule)[-1].item() == pytest.approx(0.02)
    shorter = composed("experiment=cifar10_conditional", "schedule.timesteps=500").schedule
    assert betas_of(shorter)[-1].item() == pytest.approx(0.04)
    assert composed("experiment=cifar10_conditional", "schedule=cosine", "loss=l1").loss.name == "l1"


def test_edm_cifar10_is_what_the_paper_trains() -> None:
    """Karras et al. 2022, table 7 and table 1."""
    config = composed("experiment=edm_cifar10")
    train, sampling = config.train, config.timestep_sampler
    assert (config.schedule.sigma_min, config.schedule.sigma_max, config.schedule.rho) == (0.002, 80, 7)
    assert (config.sigma_data, sampling.mean, sampling.std) == (0.5, -1.2, 1.2)
    assert (train.batch_size, train.optimizer, train.lr, config.model.dropout) == (512, "adam", 1e-3, 0.13)
    assert train.steps * 512 == 200_000_000
    assert train.warmup_steps * 512 == pytest.approx(10e6, rel=1e-4)
    assert train.ema_decay ** (500_000 / 512) == pytest.approx(0.5, abs=1e-3)
    assert (config.dataset.flip, config.dataset.augment) == (True, 0.12)


def test_edm_cifar10_samples_at_the_papers_levels() -> None:
    """Equation 5 with 18 steps, as near as a grid of 1000 levels is."""
    config = composed("experiment=edm_cifar10")
    process = Process(path_of(config.schedule))
    pairs = timestep_pairs(process, config.sampler)
    levels = [process.sigmas[t] for t, _ in pairs]
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert levels == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("steps", "visited"), [(10, [0, 9, 39, 88, 158, 246, 355, 483, 632, 800])])
def test_ddim_cifar10_samples_at_the_papers_timesteps(steps: int, visited: list[int]) -> None:
    """Song et al. 2020, appendix D.2: int(i**2) for i on a line from 0 to sqrt(0.8 T)."""
    config = composed("experiment=ddim_cifar10", f"sampler.steps={steps}")
    process = Process(path_of(config.schedule))
    pairs = timestep_pairs(process, config.sampler)
    assert [t for t, _ in pairs][::-1] == visited
    assert (config.sampler.eta, config.train.steps, config.model.dropout) == (0.0, 800_000, 0.1)


def test_flow_cifar10_is_what_the_code_trains() -> None:
    config = composed("experiment=flow_cifar10")
    train, model = config.train, config.model
    assert (train.batch_size, train.lr, train.warmup_steps, train.steps) == (128, 2e-4, 5000, 400_000)
    assert (train.grad_clip, train.ema_decay, train.ema_warmup) == (1.0, 0.9999, False)
    assert (model.width, model.multipliers, model.heads, model.dropout) == (128, [1, 2, 2, 2], 4, 0.1)
    assert (config.schedule.shift, config.dataset.flip) == (1.0, True)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_differ_only_in_the_objective(name: str) -> None:
    config, base = (composed(f"experiment={one}", "out=x") for one in (name, "recipe_cosine_v"))
    same = {"schedule": base.schedule, "timestep_sampler": base.timestep_sampler, "prediction": base.prediction}
    assert replace(config, **same) == base
    assert name == "recipe_cosine_v" or config != base


def test_improved_is_what_the_paper_trains() -> None:
    config = composed("experiment=improved")
    assert (config.variance, config.loss.name, config.loss.vlb_weight) == ("learned_range", "hybrid", 0.001)
    assert (config.schedule.name, config.schedule.timesteps) == ("cosine", 4000)
    assert config.model.time_scale * config.schedule.timesteps == 1000
    alone = composed("experiment=improved", "loss=vlb", "timestep_sampler=loss_second_moment")
    assert (alone.timestep_sampler.history, alone.timestep_sampler.uniform_mix) == (10, 0.001)
    for override in ("sampler.steps=50", "sampler.sections=[10,15,20]", "sampler.spacing=stride"):
        composed("experiment=improved", override)


@pytest.mark.parametrize("schedule", ["linear", "quadratic", "sigmoid"])
def test_swiss_roll_has_the_texts_betas(schedule: str) -> None:
    betas = betas_of(composed("experiment=swiss_roll", f"schedule={schedule}").schedule)
    rounding = 0.003 if schedule == "sigmoid" else 1e-9  # sigmoid never reaches its bounds
    assert betas[0].item() == pytest.approx(1e-5, abs=rounding * 0.01 + 1e-12)
    assert betas[-1].item() == pytest.approx(0.01, abs=rounding * 0.01 + 1e-12)
    assert betas_of(composed("experiment=swiss_roll", "schedule=constant").schedule).unique().item() == 0.035


@pytest.mark.slow
def test_points_of_two_clusters_are_reproduced(tmp_path: Path) -> None:
    """The network and settings of swiss_roll learn two clusters of points well enough to draw both."""
    config = composed(
        "experiment=swiss_roll",
        *SMALL["swiss_roll"],
        "train.steps=400",
        "train.batch_size=128",
        "train.lr=4e-3",
        "train.milestone_every=400",
        "schedule.timesteps=100",
        "schedule=constant",
        "sampler=dpmpp_2m",
        "sampler.steps=20",
        "schedule.beta=0.06",
    )
    trainer = trainer_of(config, count=512)
    trained(trainer, tmp_path)
    generator = SampleGenerator(trainer.generator.denoiser, config.sampler, (2,), CPU)
    *_, last = generator.steps(0, [0] * 500, range(500))
    near = torch.cdist(last.x, torch.tensor([[0.0, 0.0], [1.0, 1.0]])).min(dim=1)
    assert (near.values < 0.4).float().mean() > 0.7
    assert 0.3 < near.indices.float().mean() < 0.7


@pytest.mark.slow
def test_swiss_roll_end_to_end(tmp_path: Path) -> None:
    """After two fifths of its steps, 10,000 samples are as close to fresh data as other fresh data are."""
    config = composed("experiment=swiss_roll", "train.steps=1200", "train.samples=100", "sampler.steps=100")
    train, test = (load_examples(replace(config.dataset, points=50_000), split).values for split in (True, False))
    trainer = Trainer(config, Table(Examples(train), False, 0, CPU), CPU)
    trained(trainer, tmp_path)
    *_, last = trainer.generator.steps(0, [0] * 10_000, range(10_000))
    fresh = test.split(10_000)
    floor = sum(sliced_wasserstein(a, b) for a, b in itertools.pairwise(fresh)) / (len(fresh) - 1)
    ours = sum(sliced_wasserstein(last.x, a) for a in fresh) / len(fresh)
    assert ours < 2 * floor
