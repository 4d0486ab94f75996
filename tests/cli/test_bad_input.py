"""Invalid input is refused: one line that names the key, exit status 2, no files written and no traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import TINY, TINY_POINTS, Result, train_into
from tests.data.test_image_folder import save_image

Run = Callable[..., Result]

TRAIN = {
    "trian.steps=3": "trian.steps: no such key; did you mean train.steps?",
    "datset=mnist": "datset: no such key; did you mean dataset?",
    "ema=0.99": "ema: no such key; did you mean train.ema_decay?",
    "xyzzy=1": "xyzzy: no such key; --cfg job lists the keys",
    "+xyzzy=1": "xyzzy: no such key",
    "+train.xyzzy=1": "train.xyzzy: no such key",
    "loss.delta=2": "loss.delta: only loss=huber has this key",
    "sampler=ddim sampler.eat=1": "sampler.eat: no such key; did you mean sampler.eta?",
    "dataset=imagenet": "dataset=imagenet: must be cifar10, digits, emoji, fashion_mnist, image_folder, mnist,",
    "schedule=exponential": "schedule=exponential: must be constant, cosine, edm, flow, linear, quadratic or sigmoid",
    "train.steps=many": "train.steps=many: must be a whole number",
    "train.steps=1.5": "train.steps=1.5: must be a whole number",
    "train.lr=fast": "train.lr=fast: must be a number",
    "dataset.flip=perhaps": "dataset.flip=perhaps: must be true or false",
    "train.betas=0.9": "train.betas=0.9: must be a list",
    "train.max_bad_steps=0": "train.max_bad_steps=0: must be in 1..10000",
    "train.on_disk_full=maybe": "train.on_disk_full=maybe: must be stop or continue",
    "checkpoint.keep_last=0": "checkpoint.keep_last=0: must be at least 1, or null for all",
    "checkpoint.keep_every=x": "checkpoint.keep_every=x: must be a number of steps from 1 up, or of epochs",
    "resume_data_changed=3x": "resume_data_changed=3x: must be true or false",
    "dataset=image_folder dataset.root=x dataset.follow_links=perhaps": "dataset.follow_links=perhaps: must be true",
    "train=fast": "train=fast",
    "train.lr=0": "train.lr=0.0: must be in (0, 10]",
    "schedule.timesteps=0": "schedule.timesteps=0: must be in 1..100000",
    "dataset.image_size=30": "dataset.image_size=30: must be divisible by 4",
    "dataset.name=mnist": "dataset.name=mnist",
    "device=cuda": "device=cuda: torch sees no CUDA device here",
    "device=tpu": "device=tpu: must be auto, cpu, cuda",
    "experiment=null": "experiment=null: leave it out, it is null by default",
    "sweep=null": "sweep=null: leave it out, it is null by default",
    "devices=0": "devices=0: must be a number of processes from 1 up",
    "threads=0": "threads=0: must be a number of CPU threads from 1 up, or auto",
    "threads=all": "threads=all: must be a number of CPU threads from 1 up, or auto",
    "devices=many": "devices=many: must be a number of processes from 1 up",
    "devices=1 distributed.nnodes=3 distributed.rdzv_endpoint=a:1": "train.batch_size=128: must be divisible by 3, "
    "which is devices times distributed.nnodes times train.accumulate",
    "devices=3": "train.batch_size=128: must be divisible by 3, which is devices times train.accumulate",
    "distributed.strategy=zero": "distributed.strategy=zero: must be ddp or fsdp",
    "distributed.nnodes=0": "distributed.nnodes=0: must be in 1..10000",
    "distributed.nnodes=2": "distributed.nnodes=2: needs distributed.rdzv_endpoint, host:port of one of the machines",
    f"train.steps={'9' * 5000}": "train.steps: a number has at most 1000 digits; give a shorter one",
    "out=s3://bucket/run": "out=s3://bucket/run: is a URL; mount the bucket or the server, for example with rclone",
    "dataset=image_folder dataset.root='gs://pictures'": "dataset.root='gs://pictures': is a URL; mount the bucket",
    "~train.lr=3": "~train.lr=3: a name is removed without a value; write it up to the =",
    "distributed.rdzv_endpoint=host": "distributed.rdzv_endpoint=host: must be host:port",
    "distributed.max_restarts=-1": "distributed.max_restarts=-1: must be in 0..10000",
    "prediction=noise": "prediction=noise: must be eps, x0, v, edm or flow",
    "prediction=flow": "prediction=flow: not with schedule=cosine, which needs prediction=eps, x0, v or edm; "
    "prediction=flow needs schedule=flow",
    "schedule=flow": "prediction=v: not with schedule=flow, which needs prediction=flow or x0",
    "schedule=edm": "prediction=v: not with schedule=edm, which needs prediction=edm",
    "schedule=edm prediction=edm schedule.sigma_min=90": "schedule.sigma_max=80.0: must be above",
    "schedule=edm prediction=edm schedule.rho=0": "schedule.rho=0.0: must be in [1, 100]",
    "schedule=edm prediction=edm sigma_data=0": "sigma_data=0: must be in [0.001, 100], or auto",
    "schedule=flow prediction=flow schedule.shift=0": "schedule.shift=0.0: must be in [0.01, 100]",
    "schedule=flow prediction=flow weighting=sigmoid": "weighting=sigmoid: must be none or edm with schedule=flow",
    "prediction=edm schedule.zero_terminal_snr=true": "zero_terminal_snr=true: not with prediction=edm",
    "timestep_sampler=log_normal timestep_sampler.std=0": "timestep_sampler.std=0.0: must be in (0, 20]",
    "variance=huge": "variance=huge: must be fixed_small, fixed_large or learned_range",
    "variance=learned_range loss=l2": "variance=learned_range: loss=l2 teaches the network no variance",
    "loss=hybrid": "loss=hybrid: needs variance=learned_range, not fixed_small",
    "loss=hybrid variance=fixed_large": "loss=hybrid: needs variance=learned_range, not fixed_large",
    "loss=hybrid variance=learned_range loss.vlb_weight=0": "loss.vlb_weight=0.0: must be in (0, 1000]",
    "loss.vlb_weight=1": "loss.vlb_weight: only loss=hybrid has this key",
    "loss=rmse": "loss=rmse: must be ect, huber, hybrid, l1, l2 or vlb",
    "loss=vlb weighting=min_snr": "weighting=min_snr: must be none with loss=vlb",
    "weighting=max_snr": "weighting=max_snr: must be edm, min_snr, none, p2 or sigmoid",
    "weighting=min_snr weighting.gamma=0": "weighting.gamma=0.0: must be a finite number above 0",
    "weighting=p2 weighting.gamma=-1": "weighting.gamma=-1.0: must be in [0, 10]",
    "weighting=p2 weighting.k=0": "weighting.k=0.0: must be in [0.001, 1000]",
    "weighting.gamma=1": "weighting.gamma: only weighting=min_snr or weighting=p2 has this key",
    "timestep_sampler=importance": "timestep_sampler=importance: must be log_normal, logit_normal, loss_sec",
    "timestep_sampler.history=5": "timestep_sampler.history: only timestep_sampler=loss_second_moment has this key",
    "timestep_sampler=loss_second_moment timestep_sampler.history=0": "timestep_sampler.history=0: must be in 1..1000",
    "timestep_sampler=loss_second_moment timestep_sampler.uniform_mix=0": "timestep_sampler.uniform_mix=0.0: must be",
    "conditioning=text": "conditioning=text: must be class or none",
    "conditioning=null": "conditioning=null: must be class or none",
    "conditioning=": "conditioning=: must be class or none",
    "conditioning.dropout=0.1": "conditioning.dropout: only conditioning=class has this key",
    "sampler=ddim sampler.spacing=stride sampler.steps=2": "sampler.spacing=stride: these steps start at t=500 of",
    "sampler=ddim sampler.sections=[10,1]": "sampler.sections=[10, 1]: these steps start at t=500 of T=1000, but 70.2% "
    "of the amplitude of x_t is signal; use 2 or more in the last section, or sampler.sections=null",
    "sampler=ddim sampler.spacing=stride sampler.steps=20": "sampler.spacing=stride: these steps start at t=950 of "
    "T=1000, but 7.6% of the amplitude of x_t is signal; use sampler.spacing=trailing or time, or more steps",
    "sampler=ddim sampler.spacing=stride schedule.zero_terminal_snr=true": "sampler.spacing=stride: these steps start "
    "at t=980 of T=1000, but only the last one is pure noise; use sampler.spacing=trailing",
    "sampler=ddim sampler.spacing=quadratic schedule=flow prediction=flow": "sampler.spacing=quadratic: these steps "
    "start at t=800 of T=1000, but only the last one is pure noise; use sampler.spacing=trailing or time\n",
    "sampler=ddim sampler.spacing=stride schedule=flow prediction=flow schedule.shift=0.3": "sampler.spacing=stride: ",
    "prediction=edm sigma_data=1e-9": "sigma_data=1e-09: must be in [0.001, 100], or auto",
    "weighting=edm weighting.sigma_data=0": "weighting.sigma_data=0.0: must be in [0.001, 100], or null",
    "sweep=recipes": "sweep=recipes: chooses the runs of a sweep; add -m, or leave it out",
    "sampler=ddim sampler.rho=0.5": "sampler.rho=0.5: must be in [1, 100]",
    "sampler=edm sampler.s_churn=-1": "sampler.s_churn=-1.0: must be 0 or more",
    "sampler=edm sampler.s_tmin=2": "sampler.s_tmax=1.0: must be above sampler.s_tmin=2.0",
    "sampler=edm sampler.s_noise=0": "sampler.s_noise=0.0: must be in (0, 2]",
    "sampler=unipc sampler.order=4": "sampler.order=4: must be 2 or 3",
    "sampler=dpmpp_2m_sde sampler.eta=2": "sampler.eta=2.0: must be in [0, 1]",
    "weighting=p2 weighting.gamma=11": "weighting.gamma=11.0: must be in [0, 10]",
    "weighting=min_snr schedule.zero_terminal_snr=true prediction=v": "weighting=min_snr: must be none or edm with",
    "model=conv dataset=digits dataset.image_size=4": "dataset.image_size=4: must be at least 8",
    "experiment=annotated model=conv": "experiment=annotated: sets model.groups, which the model chosen with it",
    "conditioning=class conditioning.dropout=1": "conditioning.dropout=1.0: must be in [0, 1)",
    "conditioning=class experiment=swiss_roll": "conditioning=class: dataset=swiss_roll has no labels",
    "guidance_scale=2": "guidance_scale=2.0: this network is unconditional; train one with conditioning=class",
    "guidance.interval=[0.2,3] conditioning=class": "guidance.interval=[0.2, 3.0]: has no effect with guidance_scale=1",
    "guidance_scale=-1 conditioning=class": "guidance_scale=-1.0: must be in [0, 1000]",
    "guidance_scale=2 conditioning=class conditioning.dropout=0": "guidance_scale=2.0: this network was never trained",
    "prediction=eps schedule.zero_terminal_snr=true": "schedule.zero_terminal_snr=true: not with prediction=eps, "
    "because at the last timestep x_t is pure noise, and eps does not determine x0; use prediction=v",
    "schedule.zero_terminal_snr=maybe": "schedule.zero_terminal_snr=maybe: must be true or false",
    "schedule.zero_terminal_snr=true prediction=v schedule.timesteps=1": "schedule.timesteps=1: must be at least 2",
    "sampler=eluer": "sampler=eluer: must be consistency, ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, edm, euler",
    "sampler=heun sampler.eta=1": "sampler.eta: only sampler=ddim or sampler=dpmpp_2m_sde has this key",
    "sampler.steps=1001": "sampler.steps=1001: must be in 1..1000, the timesteps of the schedule",
    "sampler=dpmpp_2m sampler.steps=0": "sampler.steps=0: must be at least 1",
    "sampler=ddim sampler.sections=[2000]": "sampler.sections=[2000]: section 0 has only 1000 of the T=1000 timesteps",
    "sampler=ddim sampler.sections=[1,600]": "sampler.sections=[1, 600]: section 1 has only 500 of the T=1000",
    "sampler=ddim sampler.sections=[]": "sampler.sections=[]: must be counts of at least 1, as in [10,15,20], or null",
    "sampler=ddim sampler.sections=[3,0]": "sampler.sections=[3, 0]: must be counts of at least 1",
    "sampler=ddim sampler.sections=10": "sampler.sections=10: must be a list",
    "sampler.spacing=even": "sampler.spacing=even: must be time, trailing, stride, quadratic, logsnr or karras",
    "sampler.spacing=stride sampler.steps=300": "sampler.steps=300: no integer stride through T=1000 has that "
    "many steps; with sampler.spacing=stride use 250 or 334",
    "sampler.thresholding=hard": "sampler.thresholding=hard: must be auto, clip, dynamic or none",
    "sampler.thresholding=null": "sampler.thresholding=null: must not be null",
    "dataset=swiss_roll model=small": "dataset=swiss_roll: has points, and this model is for images; use model=mlp",
    "dataset=swiss_roll model=conv": "dataset=swiss_roll: has points, and this model is for images; use model=mlp",
    "dataset=swiss_roll model=mlp dataset.points=0": "dataset.points=0: must be in 1..100000000",
    "dataset=swiss_roll model=mlp dataset.noise=-1": "dataset.noise=-1.0: must be in [0, 100]",
    "dataset=swiss_roll model=mlp dataset.flip=true": "dataset.flip: only dataset=fashion_mnist, dataset=cifar10",
    "model=mlp": "model=mlp: is for points, dataset=fashion_mnist has images; use model=small",
    "model=mlp dataset=swiss_roll model.blocks=0": "model.blocks=0: must be in 1..64",
    "model=conv model.time_dim=3": "model.time_dim=3: must be an even number in 4..4096",
    "model=conv model.attention=[none]": "model.attention: only model=base, model=large, model=small",
    "model=conv dataset.image_size=30": "dataset.image_size=30: must be divisible by 4 for this model: 28 or 32",
    "dataset=swiss_roll model=dit_s": "dataset=swiss_roll: has points, and this model is for images; use model=mlp",
    "model=dit_s dataset.image_size=29": "dataset.image_size=29: must be divisible by 2 for this model: 28 or 30 would "
    "do, or another model.patch_size",
    "model=dit_s model.patch_size=0": "model.patch_size=0: must be in 1..64",
    "model=dit_s model.heads=5": "model.heads=5: must be a divisor of model.width=384",
    "model=dit_s model.depth=0": "model.depth=0: must be in 1..128",
    "model=dit_s model.positions=learned": "model.positions=learned: must be sine or rotary",
    "model=dit_s model.width=6": "model.width=6: must be divisible by 4 for model.positions=sine",
    "model=dit_tiny model.heads=64": "model.heads=64: must be such that model.width / model.heads is divisible by 4 "
    "for model.positions=rotary",
    "model=ddpmpp model.attention=[none,linear,none]": "model.attention=['none', 'linear', 'none']: must be none or",
    "dataset.augment=1.5": "dataset.augment=1.5: must be a probability in [0, 1]",
    "dataset.augment=0.12": "dataset.augment=0.12: model=unet takes no augmentation labels; use model=ddpmpp or dit_s",
    "dataset=digits model=dit_s dataset.image_size=2 dataset.augment=0.1": "dataset.image_size=2: must be at least 4",
    "dataset=swiss_roll model=mlp dataset.augment=0.1": "dataset.augment: only dataset=",
    "model=ddpmpp model.groups=8": "model.groups: only model=",
    "model.time_scale=0": "model.time_scale=0.0: must be a finite number above 0",
    "model.time_scale=inf": "model.time_scale=inf: must be a finite number above 0",
    "train.ema_start=-1": "train.ema_start=-1: must be 0 or more",
    "train.milestone_every=0": "train.milestone_every=0: must be a number of steps from 1 up, or of epochs",
    "train.milestone_every=often": "train.milestone_every=often: must be a number of steps",
    "train.milestone_every=0epochs": "train.milestone_every=0epochs: must be a number of steps",
    "train.milestone_every=1.5": "train.milestone_every=1.5: must be a number of steps",
    "train.milestone_every=null": "train.milestone_every=null: must be a number of steps",
    "experiment=nothing": "experiment=nothing: must be annotated",
    "ckpt=nowhere": "ckpt: no such key",
    "resume=nowhere": "resume=nowhere: no such file or folder",
    "dataset=image_folder": "dataset.root=null",
    "dataset.image_size=[28,": "dataset.image_size=[28,: not readable",
    "dataset=null": "dataset=null: must be cifar10",
    "schedule=null": "schedule=null: must be constant",
    "device=cpu:": "device=cpu:: must be auto, cpu, cuda",
    "schedule=constant schedule.beta=0.5": "schedule=constant: with timesteps=1000 its alphas_cumprod ends",
    f"resume={'x' * 300}": "cannot be read (File name too long)",
    f"dataset=image_folder dataset.root={'x' * 300}": "cannot be read (File name too long)",
    "dataset=digits dataset.image_size=4096": "dataset.image_size=4096: 1500 images of that size need",
    "hydra.run.dir=taken/by/a/file": "taken/by/a/file: Not a directory",
    "--steps=3": "--steps=3: keys are written without dashes; write steps=3",
    "out=taken/by/a/file": "out=taken/by/a/file: cannot be created",
    "logger=tensorbord": "logger=tensorbord: must be csv, tensorboard or wandb, or a list of some",
    "logger=[csv,mlflow]": "logger=['csv', 'mlflow']: must be csv, tensorboard or wandb",
    "logger=null": "logger=null: must be csv, tensorboard or wandb",
    "logger={wandb:1}": "logger={'wandb': 1}: must be csv, tensorboard or wandb",
}


@pytest.mark.parametrize("override", TRAIN)
def test_invalid_train_override_is_refused(run: Run, tmp_path: Path, override: str) -> None:
    (tmp_path / "taken").write_text("")
    if override.startswith("device=cuda") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    tiny = TINY if override.startswith("out=") else []
    assert_refused(run("train", *tiny, *override.split()), TRAIN[override])
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def assert_refused(result: Result, message: str) -> None:
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1, result.err
    assert "Traceback" not in result.err + result.out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trian.steps=3", "schedule=linear,cosine"], "trian.steps: no such key; did you mean train.steps?"),
        (["schedule=linear,cosmic"], "schedule=cosmic: must be"),
        (["train.lr=0.1,20"], "train.lr=20.0: must be in (0, 10]"),
        (["train.lr=0.1,0.2", "dataset=null"], "dataset=null: must be cifar10"),
        (["train.lr=0.1,0.2", "+xyzzy=1"], "xyzzy: no such key"),
        (["train.lr=0.1,0.2", "device=tpu"], "device=tpu: must be"),
        (["train.lr=0.1,0.2", "resume=nowhere"], "resume=nowhere: no such file"),
        (["train.lr=0.1,0.2", "out=here"], "out=here: the jobs of a sweep write to hydra.sweep.dir"),
    ],
)
def test_sweep_is_checked_before_its_first_job(run: Run, tmp_path: Path, overrides: list[str], message: str) -> None:
    assert_refused(run("train", "-m", *overrides), message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "ckpt=: missing"),
        (["ckpt=nowhere"], "ckpt=nowhere: no such file or folder"),
        (["ckpt=empty"], "ckpt=empty: no checkpoint in this folder"),
        (["ckpt=text.pt"], "ckpt=text.pt: not a checkpoint"),
        (["ckpt=x", "n=0"], "n=0: must be in 1..10000000"),
        (["ckpt=x", "weights=best"], "weights=best: must be ema, model, or"),
        (["ckpt=x", "precision=int8"], "precision=int8: must be auto, fp32, fp32_strict, bf16 or fp16"),
        (["ckpt=x", "sampler=eluer"], "sampler=eluer: must be"),
        (["ckpt=x", "sampler=null"], "sampler=null: leave it out, it is null by default"),
        (["ckpt=x", "sampler.steps=x"], "sampler.steps=x: must be a whole number"),
        (["ckpt=x", "sampler=ddim", "sampler.eta=-1"], "sampler.eta=-1.0: must be in [0, 1]"),
        (["ckpt=x", "gif=maybe"], "gif=maybe: must be true or false"),
        (["ckpt=x", "m=3"], "m: no such key"),
        (["ckpt=x", "task=wrong"], "task=wrong: must be generate, interpolate or inpaint"),
        (["ckpt=x", "task=interpolate"], "a=null: task=interpolate needs it; name a file, or the number of an image"),
        (["ckpt=x", "task=interpolate", "a=0"], "b=null: task=interpolate needs it"),
        (["ckpt=x", "task=inpaint", "mask=hole.png"], "image=null: task=inpaint needs it"),
        (["ckpt=x", "task=inpaint", "image=0"], "mask=null: task=inpaint needs it; name a file\n"),
        (["ckpt=x", "a=0"], "a=0: only with task=interpolate"),
        (["ckpt=x", "b=cat.png"], "b=cat.png: only with task=interpolate"),
        (["ckpt=x", "t=3"], "t=3: only with task=interpolate"),
        (["ckpt=x", "task=interpolate", "a=0", "b=1", "mask=hole.png"], "mask=hole.png: only with task=inpaint"),
        (["ckpt=x", "task=interpolate", "a=0", "b=1", "t=-1"], "t=-1: must be a timestep from 0 up"),
        (["ckpt=x", "task=inpaint", "image=1", "mask=hole.png", "resamplings=0"], "resamplings=0: must be in 1..1000"),
        (["ckpt=x", "variance=small"], "variance=small: must be fixed_small, fixed_large or learned_range"),
        (["ckpt=x", "guidance_scale=lots"], "guidance_scale=lots: must be a number"),
        (["ckpt=x", "sampler.sections=3"], "sampler.sections=3: must be a list"),
        (["ckpt=x", "sampler=heun", "sampler.spacing=odd"], "sampler.spacing=odd: must be time, trailing"),
        (
            ["ckpt=x", "sampler=heun", "sampler.thresholding=hard"],
            "sampler.thresholding=hard: must be auto, clip, dynamic",
        ),
        (["ckpt=x", "sampler=ddpm", "sampler.sections=[]"], "sampler.sections=[]: must be counts of at least 1"),
        (["ckpt=x", "gif=null"], "gif=null: must not be null"),
    ],
)
def test_invalid_sample_override_is_refused(run: Run, tmp_path: Path, overrides: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    assert_refused(run("sample", *overrides), message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "text.pt"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with several runs of one step each, trained with different options."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in {
        "plain": [],
        "classes": ["conditioning=class"],
        "always": ["conditioning=class", "conditioning.dropout=0"],
        "learned": ["variance=learned_range", "loss=hybrid"],
    }.items():
        train_into(folder / name, *TINY, "train.steps=1", *more)
    train_into(folder / "points", *TINY_POINTS, "train.steps=1")
    return folder


INTERPOLATE = "task=interpolate a=0 b=1"
INPAINT = "task=inpaint image=0 mask=white.png"
SAMPLE = {
    "plain class=3": "class=3: this network is unconditional; train one with conditioning=class",
    "plain class=sneaker": "class=sneaker: this network is unconditional",
    "points class=1": "class=1: this network is unconditional",
    "classes class=10": "class=10: must be a number in 0..9 or one of 0, 1, 2, 3, 4, 5, 6, 7, 8 or 9",
    "classes class=-1": "class=-1: must be a number in 0..9",
    "classes class=sneaker": "class=sneaker: must be a number in 0..9 or one of 0, 1, 2, 3, 4, 5, 6, 7, 8 or 9",
    "classes class=[1,sneaker]": "class=sneaker: must be a number in 0..9",
    "classes class=1.5": "class=1.5: must be a number in 0..9",
    "classes class=": "class=: must be a number in 0..9",
    "classes class=[]": "class=[]: must be a class or a list of some",
    f"classes {INTERPOLATE} guidance_scale=3": "guidance_scale=3.0: task=interpolate needs a class",
    f"classes {INTERPOLATE} guidance_scale=0 guidance.rescale=0.5": "guidance.rescale=0.5: has no effect with "
    "task=interpolate and without a class; leave it out",
    "plain resamplings=7": "resamplings=7: only with task=inpaint",
    "plain root=/data": "root=/data: task=generate reads no data",
    f"always {INTERPOLATE}": "class=null: task=interpolate needs a class, because this network was never trained",
    "classes task=interpolate a=1 b=2 class=[1,2]": "class=[1, 2]: must be a single class",
    "points sampler=ddim sampler.steps=3 sampler.thresholding=clip": "sampler.thresholding=clip: must be auto or",
    "plain sampler.eta=0.5": "sampler.eta: the run's sampler=dpmpp_2m has no such key; choose another sampler",
    "plain guidance_scale=2": "guidance_scale=2.0: this network is unconditional; train one with conditioning=class",
    "points guidance_scale=0": "guidance_scale=0.0: this network is unconditional",
    "always guidance_scale=0": "guidance_scale=0.0: this network was never trained without a class; train one with "
    "conditioning.dropout=0.1",
    "plain guidance.rescale=0.5": "guidance.rescale=0.5: has no effect with guidance_scale=1.0; set guidance_scale=…",
    "classes guidance_scale=2 guidance.rescale=2": "guidance.rescale=2.0: must be in [0, 1]",
    "classes guidance_scale=2 guidance.interval=[1]": "guidance.interval=[1.0]: must be two rising numbers from 0 up",
    "classes guidance_scale=2 guidance.interval=[2,1]": "guidance.interval=[2.0, 1.0]: must be two rising numbers",
    "plain guidance_scale=2 guidance.guide=nowhere": "guidance.guide=nowhere: ",
    "plain guidance_scale=2 guidance.guide={runs}/points": "its images are 2, those of ckpt are 1x8x8",
    "plain guidance_scale=2 guidance.guide={runs}/classes": "has other classes than ckpt",
    "classes guidance_scale=-1": "guidance_scale=-1.0: must be in [0, 1000]",
    "plain variance=learned_range": "variance=learned_range: this network was trained with variance=fixed_small",
    "learned variance=fixed_small": "variance=fixed_small: this network was trained with variance=learned_range",
    "plain sampler=ddim sampler.steps=51": "sampler.steps=51: must be in 1..50",
    "plain sampler=ddpm sampler.sections=[26,1]": "sampler.sections=[26, 1]: section 0 has only 25 of the T=50 "
    "timesteps, fewer than 26",
    "plain sampler=ddim sampler.spacing=stride sampler.steps=10": "sampler.spacing=stride: these steps start at t=45 "
    "of T=50, but 12.4% of the amplitude of x_t is signal; use sampler.spacing=trailing or time, or more steps",
    "plain sampler=ddpm sampler.spacing=stride sampler.steps=30": "sampler.steps=30: no integer stride through T=50 "
    "has that many steps; with sampler.spacing=stride use 17 or 25",
    f"plain {INTERPOLATE} t=50": "t=50: must be in 0..49, the timesteps of the schedule",
    f"plain {INTERPOLATE} a=nowhere.png": "a=nowhere.png: cannot be read as an image",
    f"plain {INTERPOLATE} a=text.png": "a=text.png: cannot be read as an image",
    f"plain {INTERPOLATE} b=297": "b=297: must be in 0..296, the test images, or a file",
    f"plain {INTERPOLATE} a=-1": "a=-1: must be in 0..296, the test images, or a file",
    f"points {INTERPOLATE}": "task=interpolate: is for images, and this network was trained on points",
    f"plain {INPAINT} mask=nowhere.png": "mask=nowhere.png: cannot be read as an image",
    f"plain {INPAINT} mask=large.png": "mask=large.png: must be as large as the image, 8x8, but is 9x8",
    f"plain {INPAINT} image=large.png": "mask=white.png: must be as large as the image, 9x8, but is 8x8",
    f"plain {INPAINT} mask=black.png": "mask=black.png: must be white where the image is to be filled, but is all",
    f"plain {INPAINT} image=text.png": "image=text.png: cannot be read as an image",
    f"points {INPAINT}": "task=inpaint: is for images, and this network was trained on points",
}


@pytest.mark.parametrize("words", SAMPLE)
def test_sample_option_that_the_run_does_not_support_is_refused(
    run: Run, runs: Path, tmp_path: Path, words: str
) -> None:
    (tmp_path / "text.png").write_text("hello")
    for name, size, value in [("white", (8, 8), 255), ("black", (8, 8), 0), ("large", (9, 8), 255)]:
        Image.new("L", size, value).save(tmp_path / f"{name}.png")
    before = sorted(tmp_path.iterdir())
    ckpt, *overrides = words.format(runs=runs).split()
    last = {override.split("=")[0]: override for override in overrides}  # Hydra accepts each key only once
    assert_refused(run("sample", f"ckpt={runs / ckpt}", *last.values()), SAMPLE[words])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "ckpt=: must be a run folder or a checkpoint, or samples=… instead, but not both"),
        (["ckpt=nowhere"], "ckpt=nowhere: no such file or folder"),
        (["ckpt=text.pt"], "ckpt=text.pt: not a checkpoint"),
        (["ckpt=x", "metrics=[fad]"], "metrics=['fad']: must be a list of fid, kid, is, prc or nll, as in [fid,kid]"),
        (["ckpt=x", "metrics=[nll,fad]"], "metrics=['nll', 'fad']: must be a list of fid, kid"),
        (["ckpt=x", "metrics=[]"], "metrics=[]: must be a list of fid, kid, is, prc or nll"),
        (["ckpt=x", "metrics=nll"], "metrics=nll: must be a list"),
        (["ckpt=x", "metric=[nll]"], "metric: no such key; did you mean metrics?"),
        (["ckpt=x", "metrics=[nll]", "n=0"], "n=0: must be at least 1 for these metrics, or null"),
        (
            ["ckpt=x", "metrics=[nll]", "guidance.guide=y"],
            "guidance.guide: has no effect with metrics=[nll], for which no samples are drawn; leave it out",
        ),
        (
            ["ckpt=x", "metrics=[nll]", "sampler.steps=3"],
            "sampler.steps: has no effect with metrics=[nll], for which no",
        ),
        (["ckpt=x", "n=9"], "n=9: must be at least 10 for these metrics, or null"),
        (["ckpt=x", "n=some"], "n=some: must be a whole number"),
        (["ckpt=x", "features=clip"], "features=clip: must be auto, inception or classifier"),
        (["ckpt=x", "samples=y"], "ckpt=x: must be a run folder or a checkpoint, or samples=… instead"),
        (["ckpt=x", "dataset=digits"], "dataset=digits: a checkpoint has its own; leave it out, or use root=…"),
        (["samples=."], "dataset=null: must be set with samples=…, as in dataset=fashion_mnist"),
        (["samples=.", "dataset=swiss_roll"], "dataset=swiss_roll: must be a dataset of images"),
        (
            ["samples=.", "dataset=digits", "metrics=[nll]"],
            "metrics=[nll]: needs a network",
        ),
        (
            ["samples=.", "dataset=digits", "sampler=ddim"],
            "sampler: has no effect on samples=…, which are drawn already",
        ),
        (["samples=.", "dataset=digits"], "samples=.: no images"),
        (["samples=text.pt", "dataset=digits"], "samples=text.pt: must be a folder of images, or an npz file with"),
        (
            ["ckpt=x", "sampler=dim"],
            "sampler=dim: must be consistency, ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, edm, euler, heun or unipc",
        ),
        (["ckpt=x", "variance=huge"], "variance=huge: must be fixed_small, fixed_large or learned_range"),
        (["ckpt=x", "split=val"], "split=val: must be test or train"),
        (["ckpt=x", "batch_size=0"], "batch_size=0: must be in 1..1000000"),
        (["ckpt=x", "seed=-1"], "seed=-1: must be in 0..2**63-1"),
        (["ckpt=x", "weights=best"], "weights=best: must be ema, model, or"),
        (["ckpt=x", "precision=half"], "precision=half: must be auto, fp32, fp32_strict, bf16 or fp16"),
    ],
)
def test_invalid_evaluate_override_is_refused(run: Run, tmp_path: Path, overrides: list[str], message: str) -> None:
    (tmp_path / "text.pt").write_text("hello")
    assert_refused(run("evaluate", *overrides), message)
    assert [path.name for path in tmp_path.iterdir()] == ["text.pt"]


def test_evaluation_on_other_classes_is_rejected(run: Run, tmp_path: Path) -> None:
    for place in ("train/cats", "train/dogs", "test/dogs"):
        save_image(tmp_path / "pictures" / place / "0.png")
    data = ["dataset=image_folder", f"dataset.root={tmp_path}/pictures", "dataset.image_size=8", *TINY[1:]]
    assert run("train", *data, "conditioning=class", "train.steps=1", "out=here").code == 0
    save_image(tmp_path / "pictures/test/eels/0.png")
    result = run("evaluate", "ckpt=here", "metrics=[nll]", "n=2")
    assert_refused(result, "split=test: this split has images of eels, and the network was trained on cats, dogs")
    assert not Path("outputs").exists()


def test_conditioning_on_a_folder_without_subfolders_is_refused(run: Run, tmp_path: Path) -> None:
    save_image(tmp_path / "pictures/0.png")
    overrides = ["dataset=image_folder", f"dataset.root={tmp_path}/pictures", "dataset.test_fraction=0", *TINY[1:]]
    result = run("train", *overrides, "conditioning=class", "train.steps=1")
    assert_refused(
        result,
        "conditioning=class: dataset=image_folder has no labels (the sub-folders directly below",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_images_without_contrast_have_no_sigma_data(run: Run, tmp_path: Path) -> None:
    for i in range(8):
        save_image(tmp_path / f"gray/{i}.png", (41, 41, 41))
    data = ["dataset=image_folder", f"dataset.root={tmp_path}/gray", "dataset.image_size=8", "dataset.test_fraction=0"]
    result = run("train", *data, *TINY[1:], "prediction=edm", "train.steps=1", "out=new")
    assert_refused(result, "sigma_data=auto: the values of the data hardly differ; set a number, for example")
    assert not Path("new").exists()


def test_folder_with_a_broken_image_is_refused_unless_it_is_skipped(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    overrides = ["train", "dataset=image_folder", f"dataset.root={folder}", "dataset.test_fraction=0", *TINY[1:]]
    assert_refused(run(*overrides), f"dataset.root={folder}: no images")
    save_image(folder / "good.png")
    (folder / "bad.png").write_bytes(b"no image")
    assert_refused(run(*overrides), "bad.png cannot be decoded")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    result = run(*overrides, "dataset.skip_broken=true", "train.steps=1")
    assert result.code == 0, result.err
    assert "1 to train, 0 held out, 1 skipped: bad.png" in result.err


def test_hydra_full_error_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm_cli.errors import UserError

    monkeypatch.setattr("tests.conftest.pytest.MonkeyPatch.delenv", lambda *_, **__: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match=r"train\.lr=0"):
        run("train", "train.lr=0")
