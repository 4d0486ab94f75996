#!/usr/bin/env python3
"""Does ddpm-cli train on a GPU, and how fast? One run of all checks on a machine with one.

  python device_check.py                           all checks but the experiments, in at most 450 s
  python device_check.py --only try --budget 230   those whose names begin with a word; try: the experiments
  python device_check.py --device cpu --tiny       the control flow of all of it, on a CPU, with networks of nothing

Each check is a process of its own with a time limit; what it finds is a line of JSON. A check that fails, hangs or
crashes costs its own result alone. First those of correctness, several at a time, which also fill Inductor's cache;
then those that time something, one at a time. $OUT gets results.json, table.txt, log.txt and profile.txt.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve()
OUT = Path(os.environ.get("OUT", "/tmp/ddpm-check-out"))
WORK = Path(os.environ.get("CHECK_WORK", "/tmp/ddpm-check"))  # not the checkout, whose ddpm_cli lacks the configs
DATA = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist")).resolve()
CUDA, TINY = True, False  # set from the arguments

# ------------------------------------------------------------------------------------------------- what checks share

CIFAR = ["experiment=cifar10_conditional"]
NOT_MUCH = {
    "conv_fashion": [],
    "swiss_roll": [],
    "dit_s": ["model.width=24"],
    "ddpmpp": ["model.width=8"],
    "": ["model.width=8", "model.groups=4"],
}  # of --tiny, by words of the overrides


def device_name():
    return "cuda" if CUDA else "cpu"


def composed(*overrides, command="train"):
    """The checked config of `ddpm-train <overrides>`."""
    import hydra
    from hydra import initialize_config_module
    from omegaconf import OmegaConf

    from ddpm_cli.cli.app import register_schemas
    from ddpm_cli.config import TrainConfig

    register_schemas(command, TrainConfig)
    with initialize_config_module("ddpm_cli.configs", version_base="1.3"):
        return OmegaConf.to_object(hydra.compose(command, list(overrides)))


def sized(overrides, batch_size=None):
    """`overrides`, in --tiny with next to no network and batch."""
    more = [f"device={device_name()}"]
    if TINY:
        typed = " ".join(overrides)
        more += next(few for word, few in NOT_MUCH.items() if word in typed)
        batch_size = 4
    return [*overrides, *more, *([f"train.batch_size={batch_size}"] if batch_size else [])]


def noise_images(shape, count=2048, classes=10):
    """Random images: what is timed does not depend on them."""
    import torch

    from ddpm_cli.data.table import Examples

    made = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (count, *shape), generator=made).byte()
    return Examples(values, torch.randint(0, classes, (count,), generator=made), [str(i) for i in range(classes)])


def trainer_of(overrides, batch_size=None, compile=False):
    import torch

    from ddpm_cli.data.sources import load_examples
    from ddpm_cli.data.table import Table
    from ddpm_cli.training.trainer import Trainer

    config = composed(*sized(overrides, batch_size), f"compile={str(compile).lower()}")
    device = torch.device(device_name())
    points = len(config.dataset.shape) == 1
    examples = load_examples(config.dataset, True) if points else noise_images(config.dataset.shape)
    flip, augment = (getattr(config.dataset, key, False) for key in ("flip", "augment"))
    trainer = Trainer(config, Table(examples, flip, 0, device, float(augment)), device)
    trainer.network.train()
    return trainer


def sync():
    import torch

    if CUDA:
        torch.cuda.synchronize()


def relative(found, wanted):
    """||found - wanted|| / ||wanted||, in float64."""
    import torch

    a, b = found.detach().double().cpu().flatten(), wanted.detach().double().cpu().flatten()
    error = (torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp(min=1e-30)).item()
    return error if error == error else float("inf")


def cli(command, *overrides, limit=200, env=None):
    """Run ddpm-<command>: (status, all that it said, seconds)."""
    begun = time.perf_counter()
    code = f"from ddpm_cli.cli.{command} import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", code, *overrides],
        cwd=WORK,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit,
    )
    print(process.stdout[-6000:], flush=True)
    return process.returncode, process.stdout, time.perf_counter() - begun


def rows(run):
    import csv

    with (run / "metrics.csv").open() as stream:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]


def train_cli(name, *overrides, limit=200, few=3):
    """A run of ddpm-train, and what is to be said of it; it must learn, and leave what a run leaves."""
    run = WORK / name
    subprocess.run(["rm", "-rf", str(run)], check=True)
    tiny = ["compile=false", "train.batch_size=4", "train.samples=4", "sampler.steps=3"] if TINY else []
    status, said, seconds = cli("train", *sized(overrides), *tiny, f"out={run}", limit=limit)
    assert status == 0, f"exit status {status}: {said[-600:]}"
    found = rows(run)
    losses = [row["loss"] for row in found]
    assert all(loss == loss for loss in losses), "a loss that is not finite"
    assert (run / "checkpoints" / "last.pt").is_file() and list((run / "samples").glob("step_*.png")), "no pictures"
    assert TINY or losses[-1] < 0.9 * losses[0], f"it does not learn: {losses[0]} to {losses[-1]}"
    speed = sorted(row["images_per_second"] for row in found[-few:])[len(found[-few:]) // 2]
    return {
        "wall_s": round(seconds, 1),
        "steps": int(found[-1]["step"]),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "skipped": found[-1]["skipped"],
        "images_per_s_late": round(speed),
        "seconds_in_steps": round(found[-1]["seconds"], 1),
    }


def pictures_folder():
    """CIFAR's format as a folder: 2000 coloured squares of 32x32 in ten classes, with something to learn in them."""
    import numpy as np
    from PIL import Image

    folder = WORK / "pictures"
    if not (folder / "done").exists():
        rng = np.random.default_rng(0)
        for label in range(10):
            (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
            for i in range(4 if TINY else 200):
                y, x = np.mgrid[:32, :32] / 31
                wave = np.sin(x[..., None] * (label + 1) + y[..., None] * rng.normal(size=3) * 3 + rng.normal(size=3))
                pixels = (127.5 + 100 * wave + rng.normal(size=(32, 32, 3)) * 5).clip(0, 255).astype("uint8")
                Image.fromarray(pixels).save(folder / f"class{label}" / f"{i}.png")
        (folder / "done").touch()
    return folder


def network_and_batch(overrides, batch_size):
    """A network without dropout whose layers are all at work, and a batch for it, both on the CPU."""
    import torch

    from ddpm_cli.config import ClassLabels
    from ddpm_cli.sampling.build import network_of

    config = composed(*sized(overrides), "model.dropout=0")
    classes = [str(i) for i in range(10)] if isinstance(config.conditioning, ClassLabels) else []
    torch.manual_seed(0)
    network = network_of(config, classes)
    for parameter in network.parameters():
        if not parameter.detach().any():  # what starts as zeros would hide all that comes before it
            torch.nn.init.normal_(parameter, std=0.02)
    x = torch.randn(batch_size, *config.dataset.shape)
    t = torch.randint(0, config.schedule.timesteps, (batch_size,))
    y = torch.randint(0, 10, (batch_size,)) if classes else None
    return network, (x, t, y)


def both_ways(call, network, batch, device):
    """The output of a network at a batch, and the gradients of its mean square, in a row."""
    import torch

    x, t, y = (None if part is None else part.to(device) for part in batch)
    network.zero_grad(set_to_none=True)
    output = call(x, t, y).float()
    (1024 * output.square().mean()).backward()  # so that in fp16 nothing is too small
    return output, torch.cat([parameter.grad.float().flatten() for parameter in network.parameters()])


MODELS = {
    "small": [],
    "tiny": ["model=tiny"],
    "annotated": ["experiment=annotated"],
    "quickstart": ["experiment=quickstart"],
    "conv": ["experiment=conv_fashion_mnist"],
    "points": ["experiment=swiss_roll"],
    "cifar": CIFAR,
    "improved": ["experiment=improved"],
    "dit": ["model=dit_s", "model.positions=rotary", "model.qk_norm=true"],
    "ddpmpp": ["model=ddpmpp", "dataset=cifar10"],
}
RUNS = {
    "default": [],
    "annotated": ["experiment=annotated"],
    "conv": ["experiment=conv_fashion_mnist"],
    "cifar_class_muon": [*CIFAR, "train.optimizer=muon"],
    "improved_vlb": ["experiment=improved", "loss=vlb", "timestep_sampler=loss_second_moment"],
    "fp16": ["train.precision=fp16"],
    "self_condition": ["model.self_condition=true"],
    "accumulate": ["train.accumulate=2"],
    "augment": ["model=ddpmpp", "dataset=cifar10", "dataset.augment=0.12"],
}

# ------------------------------------------------------------------------------------------------ checks: it is right


def env():
    """What machine this is."""
    import shutil

    import torch

    found = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "gcc": shutil.which("gcc") or shutil.which("cc"),
        "cpus": os.cpu_count(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
    }
    if CUDA:
        import triton

        of = torch.cuda.get_device_properties(0)
        found |= {
            "device": of.name,
            "memory_gib": round(of.total_memory / 2**30, 1),
            "multiprocessors": of.multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
            "triton": triton.__version__,
        }
        from ddpm_cli.distributed.devices import resolve_device, resolve_precision

        found["auto"] = f"{resolve_device('auto')} {resolve_precision('auto', torch.device('cuda'))}"
    return found


def models():
    """Each network forward and backward on the device, eager, in each precision, against the CPU's float32."""
    import torch

    from ddpm_cli.sampling.build import in_precision

    device, found, worst = torch.device(device_name()), {}, []
    limits = {"fp32": 1e-3, "fp32_tf32": 2e-2, "bf16": 1e-1, "fp16": 3e-2}
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    for name, overrides in MODELS.items():
        network, batch = network_and_batch(overrides, 4)
        wanted = both_ways(network, network, batch, "cpu")
        network = network.to(device=device, memory_format=torch.channels_last)
        for precision, limit in limits.items():
            if not CUDA and precision in ("fp16", "fp32_tf32"):
                continue
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "fp32_tf32"
            call = in_precision(network, device, dtypes.get(precision, torch.float32))
            errors = [relative(a, b) for a, b in zip(both_ways(call, network, batch, device), wanted)]
            found[f"{name} {precision}"] = [float(f"{error:.2g}") for error in errors]
            if max(errors) > limit * (10 if name == "conv" else 1):  # batch norms and ReLUs: small changes flip signs
                worst.append(f"{name} {precision} {max(errors):.2g}")
    assert not worst, f"too far from the CPU's float32: {worst}"
    return found


def compiled(name, batch_size=16):
    """The compiled network against the eager one: in float32 the same, in bf16 as far from float32 as that."""
    import torch

    from ddpm_cli.sampling.build import in_precision

    torch.backends.cudnn.allow_tf32 = False
    device = torch.device(device_name())
    network, batch = network_and_batch(MODELS[name], 2 if TINY else batch_size)
    network = network.to(device=device, memory_format=torch.channels_last)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    eager = {p: both_ways(in_precision(network, device, d), network, batch, device) for p, d in dtypes.items()}
    network.compile()
    found = {}
    for precision, dtype in dtypes.items():
        begun = time.perf_counter()
        made = both_ways(in_precision(network, device, dtype), network, batch, device)
        sync()
        found[f"{precision}_compile_s"] = round(time.perf_counter() - begun, 1)
        for what, ours, theirs, exact in zip(("out", "grad"), made, eager[precision], eager["fp32"]):
            found[f"{precision}_{what}"] = float(f"{relative(ours, theirs):.2g}")
            if precision == "fp32":
                assert relative(ours, theirs) < (3e-2 if name == "conv" else 1e-3), found  # batch norms, as in `models`
            else:
                found[f"bf16_{what}_to_fp32"] = [float(f"{relative(one, exact):.2g}") for one in (ours, theirs)]
                assert relative(ours, exact) < 1.5 * relative(theirs, exact) + 1e-3, found
    return found


def syncs():
    """In which lines of a step the host waits for the device: there should be none."""
    import warnings

    import torch

    if not CUDA:
        return {"skipped": "needs CUDA"}
    found = {}
    for name, overrides in RUNS.items():
        trainer = trainer_of(overrides, 16)
        for _ in range(8):
            trainer.train_step()
        sync()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            for _ in range(3):
                trainer.train_step()
            torch.cuda.set_sync_debug_mode("default")
        waits = {f"{Path(w.filename).name}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)}
        found[name] = sorted(waits)
        del trainer
    assert not any(found.values()), found
    return found


def repeats(names, compile, deterministic):
    """Whether two runs, and one that is stopped half way and restored, are the same bit for bit."""
    import io

    import torch

    def new(name):
        return trainer_of([*RUNS[name], f"train.deterministic={str(deterministic).lower()}"], 32, compile)

    def state(trainer):
        kept = io.BytesIO()
        torch.save({key: value for key, value in trainer.state().items() if key != "config"}, kept)
        kept.seek(0)
        return torch.load(kept, map_location="cpu", weights_only=True)

    def steps(trainer, count):
        return [trainer.train_step()[0] for _ in range(count)]

    found = {}
    for name in names:
        try:
            whole = new(name)
            losses = torch.stack(steps(whole, 8)).tolist()
            again = new(name)
            others = torch.stack(steps(again, 4)).tolist()
            rest = new(name)
            rest.restore(state(again))
            others += torch.stack(steps(rest, 4)).tolist()
            a, b = state(whole)["model"], state(rest)["model"]
            found[name] = {
                "same_bits": all(torch.equal(a[key], b[key]) for key in a) and losses == others,
                "weights_apart": float(f"{max(relative(b[key].float(), a[key].float()) for key in a):.2g}"),
                "losses_apart": float(f"{max(abs(p - q) / abs(q) for p, q in zip(others, losses)):.2g}"),
            }
        except RuntimeError as error:  # an operation without a deterministic form
            found[name] = str(error).splitlines()[0][:160]
    bad = [name for name, one in found.items() if isinstance(one, dict) and one["losses_apart"] > 0.05]
    if deterministic:
        bad += [name for name, one in found.items() if not isinstance(one, dict) or not one["same_bits"]]
    assert not bad, f"resumed elsewhere: {bad} {found}"
    return found


def parts():
    """Noise on the device against the CPU, a table that stays on the host, recomputed activations, host copies."""
    import torch

    from ddpm_cli.data import table as tables
    from ddpm_cli.sampling.noise import ImageNoise
    from ddpm_cli.tracking.run_writer import on_host

    found: dict = {}
    ours, cpu = (ImageNoise(2**40 + 7, range(64), (3, 32, 32), torch.device(name)) for name in (device_name(), "cpu"))
    found["noise_apart"] = max(float((ours().cpu() - cpu()).abs().max()) for _ in range(9))
    assert found["noise_apart"] < 2e-6, found
    begun = time.perf_counter()
    for _ in range(64):
        x = ours()
    sync()
    found["ms_of_noise"] = round((time.perf_counter() - begun) * 1000 / 64, 3)
    on_device, share = trainer_of(["model=small"], 32).table, tables.SHARE_OF_MEMORY
    tables.SHARE_OF_MEMORY = 0.0
    on_cpu = trainer_of(["model=small"], 32).table
    tables.SHARE_OF_MEMORY = share
    found["table_on"] = [str(one.values.device) for one in (on_device, on_cpu)]
    assert all(torch.equal(on_device.batch(i, 32).x0, on_cpu.batch(i, 32).x0) for i in range(20)), found
    for recompute in (False, True):
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        trainer = trainer_of([f"model.gradient_checkpointing={str(recompute).lower()}", "train.optimizer=adam"], 32)
        key = "recomputed" if recompute else "kept"
        found[f"losses_{key}"] = torch.stack([trainer.train_step()[0] for _ in range(5)]).tolist()
        found[f"MB_{key}"] = torch.cuda.max_memory_allocated() // 2**20 if CUDA else 0
    begun = time.perf_counter()
    copied = on_host(trainer.state())
    found["s_of_host_copy"] = round(time.perf_counter() - begun, 3)
    state = trainer.state()
    assert all(torch.equal(copied["model"][key], state["model"][key].cpu()) for key in state["model"])
    assert all(relative(torch.tensor(a), torch.tensor(b)) < 0.02
               for a, b in zip(found["losses_kept"], found["losses_recomputed"])), found  # fmt: skip
    del x
    return found


def graph_exact(names):
    """Whether steps replayed as a CUDA graph have the bits of steps launched kernel by kernel."""
    import logging

    import torch

    class Refused(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    said, found = [], {}
    logging.getLogger("ddpm_cli").addHandler(Refused())
    for name in names:
        states = []
        said.clear()
        captured = 0
        for graphed in (True, False):
            trainer = trainer_of(RUNS[name], 32)
            if not graphed:
                trainer._graph = None
            losses = torch.stack([trainer.train_step()[0] for _ in range(12)]).tolist()
            states.append(({k: v.clone() for k, v in trainer.ema.network.state_dict().items()}, losses))
            if trainer._graph is not None:
                captured = len(trainer._graph._captures)
            del trainer
        a, b = states[0][0], states[1][0]
        found[name] = {
            "same_bits": all(torch.equal(a[key], b[key]) for key in a)
            and str(states[0][1]) == str(states[1][1]),  # NaN is not equal to NaN
            "weights_apart": float(f"{max(relative(a[key].float(), b[key].float()) for key in a):.2g}"),
            "graphs": captured,
            "said": list(said),
        }
    bad = [n for n, one in found.items() if one["said"] or (CUDA and not one["graphs"]) or one["weights_apart"] > 0.5]
    assert not bad, found
    return found


def fp16():
    """Steps in fp16: the scaler's scale settles, and few steps are skipped."""
    import torch

    if not CUDA:
        return {"skipped": "needs CUDA"}
    trainer = trainer_of(["train.precision=fp16", "train.warmup_steps=0"], 64)
    losses = torch.stack([trainer.train_step()[0] for _ in range(60)])
    finite = losses.isfinite().sum().item()
    assert finite > 40 and losses[-1].isfinite(), losses.tolist()
    return {"finite_of_60": finite, "scale": trainer.scaler.get_scale(), "last_loss": losses[-1].item()}


def samplers():
    """Every sampler; image i whatever is drawn beside it; the device against the CPU; fp32 and bf16; CUDA graphs."""
    from dataclasses import replace

    import torch

    from ddpm_cli.checkpoints.loading import load_trained
    from ddpm_cli.images.png_gif import to_uint8
    from ddpm_cli.sampling.sample_generator import generator_of

    train_cli("for_samplers", "experiment=quickstart", f"dataset.root={DATA}", "compile=false", "train.steps=200",
              "train.milestone_every=200", "train.samples=4", limit=150)  # fmt: skip
    found, n = {}, 8
    on = {p: load_trained(str(WORK / "for_samplers"), "ema", device_name(), p) for p in ("bf16", "fp32_strict")}
    on["fp32"] = on.pop("fp32_strict")  # loaded last, since the setting is that of the process
    cpu = load_trained(str(WORK / "for_samplers"), "ema", "cpu", "fp32_strict")

    def drawn(trained, sampler, images, graphs=True):
        config = composed(f"sampler={sampler}", "sampler.steps=10").sampler
        generator = generator_of(trained, config, None, None)
        if not graphs:
            generator = replace(generator, denoiser=trained.denoiser)
        x = torch.empty(0)
        for step in generator.steps(0, [0] * n, images):
            x = step.x
        return x.float().cpu()

    for sampler in ("ddpm", "ddim", "euler", "heun", "edm", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc"):
        together = drawn(on["fp32"], sampler, range(n))
        apart = torch.cat([drawn(on["fp32"], sampler, range(i, i + 2)) for i in range(0, n, 2)])
        levels = (to_uint8(together).int() - to_uint8(apart).int()).abs()
        found[sampler] = {
            "batch_of_2": float(f"{relative(apart, together):.2g}"),
            "pixels_other": int((levels > 0).sum()),
            "levels_at_most": int(levels.max()),
            "cpu": float(f"{relative(together, drawn(cpu, sampler, range(n))):.2g}"),
            "bf16": float(f"{relative(drawn(on['bf16'], sampler, range(n)), together):.2g}"),
            "graph_same_bits": all(
                torch.equal(drawn(one, sampler, range(n)), drawn(one, sampler, range(n), graphs=False))
                for one in on.values()
            ),
        }
        assert together.isfinite().all() and found[sampler]["batch_of_2"] < 0.05, found
    return found


def out_of_memory():
    """A batch that does not fit is halved until it does, and the images are the same."""
    import logging

    import torch

    from ddpm_cli.sampling.build import build_denoiser, network_of
    from ddpm_cli.sampling.sample_generator import SampleGenerator, batches_with_oom_retry

    config = composed(*sized(["experiment=improved", "sampler=ddim"]), "sampler.steps=2")
    device = torch.device(device_name())
    torch.manual_seed(0)
    network = network_of(config, []).to(device).eval().requires_grad_(False)
    generator = SampleGenerator(
        build_denoiser(config, network, device, torch.float32), config.sampler, config.dataset.shape, device
    )
    n, said = (8 if TINY else 256), []

    class Listener(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    logging.getLogger("ddpm_cli").addHandler(Listener())

    def draw(images):
        x = torch.empty(0)
        for step in generator.steps(0, [0] * n, images):
            x = step.x
        return x.cpu()

    wanted = torch.cat([made for _, made in batches_with_oom_retry(n, n, draw)])
    found = {}
    if CUDA:
        found["peak_gib_of_all"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        torch.cuda.empty_cache()
        room = torch.cuda.memory_reserved() + 0.35 * torch.cuda.max_memory_allocated()
        torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    made = torch.cat([made for _, made in batches_with_oom_retry(n, n, draw)])
    found |= {"said": said, "apart": float(f"{relative(made, wanted):.2g}")}
    assert found["apart"] < 0.02 and (not CUDA or any("out of memory" in line for line in said)), found
    if CUDA:  # a batch that cannot be trained on: what is said of it?
        try:
            trainer_of(CIFAR, 2048).train_step()
            found["training"] = "fits"
        except Exception as error:
            found["training"] = f"{type(error).__name__}: {str(error)[:80]}"
    return found


def fsdp_one_device():
    """FSDP2 with a process alone: the loss of the network as it is, eager and compiled block by block."""
    import copy

    import torch
    from torch import distributed as dist

    from ddpm_cli.distributed.sharding import wrap_distributed
    from ddpm_cli.sampling.build import in_precision

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("nccl" if CUDA else "gloo")
    try:
        device, found = torch.device(device_name()), {}
        network, batch = network_and_batch([], 8)
        network = network.to(device)
        output = both_ways(in_precision(network, device, torch.bfloat16), network, batch, device)[0]
        x, t, y = (None if part is None else part.to(device) for part in batch)
        for compiled in (False, True):
            begun = time.perf_counter()
            sharded, average = copy.deepcopy(network), copy.deepcopy(network)
            wrap_distributed(sharded, average, "fsdp", device, torch.bfloat16, compiled)
            again = in_precision(sharded, device, torch.bfloat16)(x, t, y).float()
            again.square().mean().backward()
            sync()
            key = "compiled" if compiled else "eager"
            found[key] = {"apart": float(f"{relative(again, output):.2g}"), "s": round(time.perf_counter() - begun, 1)}
            assert found[key]["apart"] < 0.05, found
        return found
    finally:
        dist.destroy_process_group()


def _rank(rank, strategy, port, path):
    """One of two processes on one GPU, which NCCL does not allow: by gloo."""
    import torch
    from torch import distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    if not CUDA:
        torch.set_num_threads(1)
    dist.init_process_group("gloo")
    trainer = trainer_of(
        ["train.precision=fp32_strict", "train.warmup_steps=0", f"distributed.strategy={strategy}"], 16
    )
    losses = torch.stack([trainer.train_step()[0] for _ in range(4)]).tolist()
    trainer.state()
    if rank == 0:
        Path(path).write_text(json.dumps(losses))
    dist.destroy_process_group()


def two_ranks(strategy):
    """Two processes, by gloo on the one device, train as one alone does."""
    import torch
    from torch import multiprocessing

    if CUDA and strategy == "fsdp":
        return {"skipped": "NCCL needs a GPU for each process, and FSDP by gloo crashes in torch (2.11)"}
    torch.backends.cudnn.allow_tf32 = False
    path, port = WORK / f"ranks_{strategy}.json", 29612 if strategy == "ddp" else 29613
    os.environ["CHECK_DEVICE"], os.environ["CHECK_TINY"] = device_name(), str(int(TINY))
    multiprocessing.spawn(_rank_of, (strategy, port, str(path)), nprocs=2)
    trainer = trainer_of(["train.precision=fp32_strict", "train.warmup_steps=0"], 16)
    alone = torch.stack([trainer.train_step()[0] for _ in range(4)]).tolist()
    both = json.loads(path.read_text())
    apart = max(abs(a - b) / abs(b) for a, b in zip(both, alone))
    assert apart < 1e-2, (both, alone)
    return {"losses_apart": float(f"{apart:.2g}")}


def _rank_of(rank, strategy, port, path):
    global CUDA, TINY
    CUDA, TINY = os.environ["CHECK_DEVICE"] == "cuda", os.environ["CHECK_TINY"] == "1"
    _rank(rank, strategy, port, path)


def cli_default():
    """ddpm-train with nothing said, compiled; from typing to the end."""
    few = ["train.steps=6", "train.milestone_every=3", "train.log_every=1"]
    usual = ["train.steps=600", "train.milestone_every=300"]
    found = train_cli("default", f"dataset.root={DATA}", *(few if TINY else usual), limit=220)
    said = (WORK / "default" / "train.log").read_text()
    found["says"] = [
        line for line in said.splitlines() if "device" in line or "precision" in line or "take about" in line
    ]
    return found


def cli_annotated():
    """An epoch of it, eager."""
    few = ["train.epochs=null", "train.steps=4", "train.log_every=1"]
    return train_cli("annotated", "experiment=annotated", f"dataset.root={DATA}", "compile=false",
                     *(few if TINY else ["train.epochs=1"]), limit=200)  # fmt: skip


def cli_cifar():
    """The 35.7M network on coloured 32x32 images with classes, by Muon, in batches of 128."""
    steps = 3 if TINY else 150
    return train_cli("cifar", *CIFAR, "dataset=image_folder", f"dataset.root={pictures_folder()}",
                     "train.optimizer=muon", "train.lr=1e-3", f"train.steps={steps}", f"train.milestone_every={steps}",
                     f"train.log_every={1 if TINY else 25}", "train.ema_decay=0.99", "sampler=dpmpp_2m",
                     "train.samples=16", limit=280)  # fmt: skip


def cli_improved():
    """Learned variance, the bound, importance-sampled timesteps: eager, few steps."""
    steps = 3 if TINY else 60
    return train_cli("improved", "experiment=improved", "dataset=image_folder", f"dataset.root={pictures_folder()}",
                     "compile=false", f"train.steps={steps}", f"train.milestone_every={steps}",
                     f"train.log_every={1 if TINY else 10}", "train.batch_size=64", "train.samples=4",
                     "sampler.steps=10", "train.lr=3e-4", limit=200)  # fmt: skip


def cli_kill_resume():
    """Killed by SIGKILL after its first milestone, and gone on, deterministic: against a run that never was."""
    import torch

    steps, every = (8, 4) if TINY else (300, 100)
    typed = ["experiment=quickstart", f"dataset.root={DATA}", "compile=false", f"train.steps={steps}",
             f"train.milestone_every={every}", "train.samples=4", "train.deterministic=true"]  # fmt: skip
    train_cli("whole", *typed, limit=120)
    run = WORK / "killed"
    subprocess.run(["rm", "-rf", str(run)], check=True)
    tiny = ["train.batch_size=4", "train.samples=4", "sampler.steps=3"] if TINY else []
    code = "from ddpm_cli.cli.train import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *sized(typed), *tiny, f"out={run}"], cwd=WORK)
    milestone = run / "checkpoints" / f"step_{every:08d}.pt"
    while not milestone.exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.0 if TINY else 0.3)
    process.kill()
    process.wait()
    status, said, seconds = cli("train", f"resume={run}", limit=120)
    assert status == 0, said[-600:]
    last = [torch.load(WORK / name / "checkpoints" / "last.pt", weights_only=True) for name in ("whole", "killed")]
    assert last[0]["step"] == last[1]["step"] == steps
    a, b = (one["model"] for one in last)
    assert all(torch.equal(a[key], b[key]) for key in a), "resumed elsewhere"
    return {
        "killed_by": process.returncode,
        "weights_apart": float(f"{max(relative(b[key].float(), a[key].float()) for key in a):.2g}"),
        "resume_s": round(seconds, 1),
    }


def cli_quality():
    """All of experiment=quickstart, and the distance of 2000 samples: see docs/benchmarks.md for CPUs."""
    few = ["train.steps=3", "train.log_every=1", "evaluate.n=10"]
    found = train_cli("quickstart", "experiment=quickstart", f"dataset.root={DATA}", "evaluate.every=1",
                      *(few if TINY else ["evaluate.n=500"]), limit=200)  # fmt: skip
    if TINY:
        return found
    out = WORK / "evaluated"
    subprocess.run(["rm", "-rf", str(out)], check=True)
    status, said, seconds = cli(
        "evaluate", f"ckpt={WORK / 'quickstart'}", "metrics=[fid]", "features=classifier", "n=2000", "batch_size=500",
        f"root={DATA}", f"out={out}", limit=200)  # fmt: skip
    assert status == 0, said[-600:]
    record = json.loads((out / "evaluation.json").read_text())
    found |= {"evaluate_s": round(seconds, 1), **record["metrics"], "floor": record["floor"]}
    assert record["metrics"]["fd_classifier"] < 2.5, found
    return found


def cli_sample():
    """ddpm-sample with film and arrays, after a short run."""
    train_cli("for_sample", "experiment=quickstart", f"dataset.root={DATA}", "compile=false", "train.steps=20",
              "train.milestone_every=20", "train.samples=4", "train.log_every=5", limit=120) if TINY else train_cli(
        "for_sample", "experiment=quickstart", f"dataset.root={DATA}", "compile=false", "train.steps=100",
        "train.milestone_every=100", "train.samples=4", limit=120)  # fmt: skip
    out, found = WORK / "sampled", {}
    subprocess.run(["rm", "-rf", str(out)], check=True)
    n = 4 if TINY else 256
    status, said, seconds = cli("sample", f"ckpt={WORK / 'for_sample'}", f"n={n}", f"batch_size={n}", "gif=true",
                                "npz=true", f"device={device_name()}", f"out={out}", limit=120)  # fmt: skip
    assert status == 0, said[-600:]
    assert len(list((out / "images").glob("*.png"))) == n and (out / "film.gif").is_file()
    found["wall_s"] = round(seconds, 1)
    return found


def warm(name):
    """Nothing but to have Inductor make the kernels that are timed below, while there is other work."""
    overrides, batch_size = TIMED[name]
    trainer = trainer_of(overrides, batch_size, compile=True)
    begun = time.perf_counter()
    trainer.train_step()
    sync()
    return {"first_step_s": round(time.perf_counter() - begun, 1)}


# ------------------------------------------------------------------------------------------- checks: how long it takes

TIMED = {
    "small_muon": ([], 128),
    "small_adam": (["train.optimizer=adam"], 128),
    "quickstart": (["experiment=quickstart"], 64),
    "cifar_adam": (CIFAR, 128),
    "cifar_muon": ([*CIFAR, "train.optimizer=muon"], 128),
    "cifar_512": (CIFAR, 512),
    "improved": (["experiment=improved"], 128),
    "fast": (["experiment=cifar10_fast"], 512),
}


def ceilings():
    """Bytes a second of a copy, and FLOP a second of a matrix product."""
    import torch

    if not CUDA:
        return {"skipped": "needs CUDA"}
    from triton.testing import do_bench

    a = torch.randn(2**30, device="cuda")
    b = torch.empty_like(a)
    copy = do_bench(lambda: b.copy_(a), return_mode="median")
    m = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = do_bench(lambda: m @ m, return_mode="median")
    return {"copy_TB_s": round(2 * 4 * 2**30 / copy / 1e9, 2), "bf16_TFLOP_s": round(2 * 8192**3 / product / 1e9)}


def profiled(step, title):
    """The kernels of a step: how many, and how long the device is busy. A table of them goes to profile.txt."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    steps = 3
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as kept:
        for _ in range(steps):
            step()
        sync()
    on_device = [e for e in kept.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [e for e in on_device if not getattr(e, "is_user_annotation", False) and not e.name.startswith("Mem")]
    launches = sum(e.count for e in kept.key_averages() if "LaunchKernel" in e.key)
    table = kept.key_averages().table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=70)
    with (OUT / "profile.txt").open("a") as stream:
        stream.write(f"\n===== {title} ({steps} steps)\n{table}\n")
    busy = sum(e.self_device_time_total for e in kernels) / steps / 1000
    return {"kernels": len(kernels) // steps, "launches": launches // steps, "busy_ms": round(busy, 2)}


def timed_step(step, batch_size, flops=None, title=""):
    """Milliseconds of a step, and of the host's part in it."""
    import torch

    warm_up, count = (1, 2) if TINY else (8, 30)
    for _ in range(warm_up):
        step()
    sync()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    host, whole = [], []
    for _ in range(3):
        begun = time.perf_counter()
        for _ in range(count // 3 or 1):
            step()
        host.append((time.perf_counter() - begun) / (count // 3 or 1))
        sync()
        whole.append((time.perf_counter() - begun) / (count // 3 or 1))
    ms = sorted(whole)[1] * 1000
    found = {"ms": round(ms, 2), "host_ms": round(sorted(host)[1] * 1000, 2), "images_s": round(batch_size / ms * 1000)}
    if flops:
        found["TFLOP_s"] = round(flops / ms / 1e9, 1)
    if CUDA:
        found["peak_MiB"] = round(torch.cuda.max_memory_allocated() / 2**20)
        found |= profiled(step, title)
        found["busy"] = f"{min(1, found['busy_ms'] / ms):.0%}"
    return found


GFLOP = {"small": 1.844, "quickstart": 0.584, "cifar": 37.324, "improved": 50.313}  # an image, both ways


def time_step(name, compile):
    """A training step as ddpm-train makes it."""
    overrides, batch_size = TIMED[name]
    trainer = trainer_of(overrides, batch_size, compile)
    size = trainer.config.train.batch_size
    flops = GFLOP.get(name.split("_")[0], 0) * 1e9 * size
    return timed_step(trainer.train_step, size, flops, f"{name} compile={compile} batch {size}")


SAMPLED = {"small": [], "cifar": ["model=ddpm_cifar10", "dataset=cifar10", "prediction=eps"]}
KINDS = {"bf16 eager": False, "bf16 graph": True}


def ms_of_a_call(name, kind, sampler, batch_size):
    """Milliseconds of a step of a sampler that calls the network once."""
    import torch

    from ddpm_cli.sampling.build import build_denoiser, for_inference, network_of
    from ddpm_cli.sampling.sample_generator import SampleGenerator

    device, steps = torch.device(device_name()), 3 if TINY else 20
    config = composed(*sized([*SAMPLED[name], f"sampler={sampler}"]), f"sampler.steps={steps}")
    network = network_of(config, []).to(device=device, memory_format=torch.channels_last)
    denoiser = build_denoiser(config, network.eval().requires_grad_(False), device, torch.bfloat16)
    if KINDS[kind]:
        denoiser = for_inference(denoiser, device)
    generator = SampleGenerator(denoiser, config.sampler, config.dataset.shape, device)
    for _ in range(2):  # the second one counts
        sync()
        begun = time.perf_counter()
        for _ in generator.steps(0, [0] * batch_size, range(batch_size)):
            pass
        sync()
        seconds = time.perf_counter() - begun
    return round(seconds / steps * 1000, 2)


def time_sampling(name):
    """Milliseconds of a call of the network; ddpm, beside dpmpp_2m, draws noise on the CPU."""
    found = {}
    for kind in KINDS:
        for batch_size in (2,) if TINY else (64, 512):
            for sampler in ("dpmpp_2m", "ddpm"):
                found[f"{kind} {sampler} {batch_size}"] = ms_of_a_call(name, kind, sampler, batch_size)
    return found


def time_milestone(name):
    """Seconds of what a milestone does while nothing is trained."""
    import torch

    from ddpm_cli.checkpoints.run_checkpoints import save_checkpoint
    from ddpm_cli.tracking.metrics_csv import COLUMNS, Metrics
    from ddpm_cli.training.loss_monitor import LossMonitor

    overrides, batch_size = TIMED[name]
    trainer = trainer_of([*overrides, "sampler=dpmpp_2m", "sampler.steps=20"], batch_size)
    trainer.train_step()
    folder, found = WORK / f"milestone_{name}", {}
    folder.mkdir(parents=True, exist_ok=True)

    def timed(key, work):
        sync()
        begun = time.perf_counter()
        made = work()
        sync()
        found[key] = round(time.perf_counter() - begun, 3)
        return made

    state = {**trainer.state(), "losses": LossMonitor(10).state(), "seconds": 1.0, "data": "none"}
    for _ in range(2):  # the second one counts
        timed("save_checkpoint", lambda: save_checkpoint(folder, state))
    n = 4 if TINY else 64

    def draw():
        x = torch.empty(0)
        for step in trainer.generator.steps(0, [0] * n, range(n)):
            x = step.x
        return x.cpu()

    timed("samples_first", draw)
    timed("samples", draw)
    metrics = Metrics(folder)
    for i in range(200):
        metrics.append(dict.fromkeys(COLUMNS, float(i + 1)))
    timed("plot_first", lambda: metrics.draw(lambda step: step % 100 == 0))
    timed("plot", lambda: metrics.draw(lambda step: step % 100 == 0))
    found["checkpoint_MB"] = round((folder / "checkpoints" / "last.pt").stat().st_size / 1e6)
    return found


# ---------------------------------------------------------------------- experiments: what would make it faster, roughly


STEPS = [  # network and batch, compiled, what is otherwise
    ("small_muon", False, ""),
    ("quickstart", False, ""),
    ("cifar_adam", False, ""),
    ("cifar_muon", False, ""),
    ("small_muon", True, ""),
    ("cifar_adam", True, ""),
    ("fast", True, ""),
    ("cifar_512", True, ""),
    ("cifar_adam", True, "torch's norm"),
]


def time_steps():
    """Training steps as ddpm-train makes them, one kind after another in one process."""
    import gc

    import torch

    from ddpm_cli.models.layers import GroupNorm

    def torchs_norm(self, x):
        return torch.nn.GroupNorm.forward(self, x.to(self.weight.dtype)).to(x.dtype)

    found, own_norm = {}, GroupNorm.forward
    for name, compile, what in STEPS:
        begun = time.perf_counter()
        overrides, batch_size = TIMED[name]
        try:
            torch._dynamo.reset()
            GroupNorm.forward = own_norm
            if what:
                GroupNorm.forward = torchs_norm
            trainer = trainer_of(overrides, batch_size, compile)
            size = trainer.config.train.batch_size
            flops = GFLOP.get(name.split("_")[0], 0) * 1e9 * size
            key = f"{name} {'compiled' if compile else 'eager'} {what}".strip()
            one = timed_step(trainer.train_step, size, flops, key)
            one["loss"] = round(trainer.train_step()[0].item(), 4)
            one["graphs"] = len(trainer._graph._captures) if trainer._graph else 0
            del trainer
        except Exception as error:
            one = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            traceback.print_exc()
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()
        found[key] = one | {"s": round(time.perf_counter() - begun, 1)}
        (OUT / "steps.json").write_text(json.dumps(found, indent=1))
        print(key, json.dumps(found[key]), flush=True)
    return found


# ----------------------------------------------------------------------------------------------------- running them all

# name: (function, its arguments, seconds at most). The first ones go side by side, the others one by one.
SIDE_BY_SIDE = {
    "samplers": (samplers, (), 100),
    "fsdp_one_device": (fsdp_one_device, (), 200),
    "graph_exact": (graph_exact, (list(RUNS),), 170),
    "cli_kill_resume": (cli_kill_resume, (), 150),
    "two_ranks_ddp": (two_ranks, ("ddp",), 150),
    "two_ranks_fsdp": (two_ranks, ("fsdp",), 150),
    "syncs": (syncs, (), 150),
    "repeat_eager": (repeats, (list(RUNS)[:5], False, False), 150),
    "cli_annotated": (cli_annotated, (), 150),
    "fp16": (fp16, (), 60),
    "parts": (parts, (), 80),
    "repeat_deterministic": (repeats, (list(RUNS)[:5], False, True), 150),
}
ONE_BY_ONE = {
    "cli_quality": (cli_quality, (), 75),
    "time_sampling_small": (time_sampling, ("small",), 40),
    "time_sampling_cifar": (time_sampling, ("cifar",), 40),
    "time_steps": (time_steps, (), 300),
    "time_milestone_small": (time_milestone, ("small_muon",), 40),
    "cli_default": (cli_default, (), 80),
}
EXPERIMENTS = {}
ALL = {**SIDE_BY_SIDE, **ONE_BY_ONE, **EXPERIMENTS}
MARK = "RESULT "
RESULTS: dict = {}
LOCK = threading.Lock()


def run_one(name):
    """In a process of its own: do a check, and say what it found."""
    if not CUDA:  # Inductor's C++ takes minutes; whether a network can be traced is seen without it
        import torch

        torch.set_num_threads(1)
        before = torch.compile
        torch.compile = lambda function, **options: before(function, **{**options, "backend": "eager"})
    function, args, _ = ALL[name]
    try:
        found = {"status": "ok", "found": function(*args)}
    except BaseException as error:
        traceback.print_exc()
        found = {"status": "FAILED", "found": f"{type(error).__name__}: {str(error)[:700]}"}
    print(MARK + json.dumps(found), flush=True)


def launch(name, deadline, args, side_by_side):
    """Run a check, wait for it, keep what it found."""
    limit = min(ALL[name][2], deadline - time.monotonic())
    if limit < 15:
        record(name, {"status": "not run", "found": "no time left", "s": 0.0}, "")
        return
    env_ = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    if side_by_side:
        env_ |= {"TORCHINDUCTOR_COMPILE_THREADS": "4", "OMP_NUM_THREADS": "2" if CUDA else "1"}
    command = [sys.executable, str(HERE), "--one", name, "--device", args.device, *(["--tiny"] if args.tiny else [])]
    begun = time.monotonic()
    process = subprocess.Popen(
        command, cwd=WORK, env=env_, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        said += f"\n{MARK}" + json.dumps({"status": "TOO LONG", "found": f"killed after {limit:.0f} s"})
    lines = [line for line in said.splitlines() if line.startswith(MARK)]
    crash = {"status": "CRASHED", "found": f"status {process.returncode}: {said[-400:]}"}
    found = json.loads(lines[-1][len(MARK) :]) if lines else crash
    record(name, {**found, "s": round(time.monotonic() - begun, 1)}, said)


def record(name, found, said):
    with LOCK:
        RESULTS[name] = found
        (OUT / "results.json").write_text(json.dumps(RESULTS, indent=1))
        with (OUT / "log.txt").open("a") as stream:
            stream.write(f"\n########## {name}: {found['status']} in {found['s']} s\n{said[-40_000:]}\n")
        print(f"{found['status']:8} {found['s']:6} s  {name}", flush=True)


def table():
    """What was found, a line each, the failures last."""
    order = sorted(RESULTS, key=lambda name: (RESULTS[name]["status"] != "ok", list(ALL).index(name)))
    lines = []
    for name in order:
        one = RESULTS[name]
        lines.append(f"{one['status']:8} {name:26} {json.dumps(one['found'])[: 270 if one['status'] == 'ok' else 500]}")
    good = sum(one["status"] == "ok" for one in RESULTS.values())
    return "\n".join([*lines, f"{good} of {len(RESULTS)} ok"])


def main():
    global CUDA, TINY
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="*", help="beginnings of names")
    parser.add_argument("--skip", nargs="*", default=[], help="beginnings of names")
    parser.add_argument("--budget", type=float, default=450, help="seconds for all")
    parser.add_argument("--side", type=float, default=0.52, help="share of it for the first part")
    parser.add_argument("--jobs", type=int, default=6, help="checks side by side")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    CUDA, TINY = args.device == "cuda", args.tiny
    for folder in (OUT, WORK):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("DDPM_CACHE", str(WORK / "cache"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(WORK / "inductor"))
    if args.one:
        run_one(args.one)
        return
    begun = time.monotonic()
    chosen = [
        name
        for name in ALL
        if (name.startswith(tuple(args.only)) if args.only else name not in EXPERIMENTS)
        and not name.startswith(tuple(args.skip) or ("\0",))
    ]
    for name in ("results.json", "log.txt", "profile.txt"):
        (OUT / name).unlink(missing_ok=True)
    first, alone = [n for n in chosen if n in SIDE_BY_SIDE], [n for n in chosen if n not in SIDE_BY_SIDE]
    end = begun + args.budget
    middle = begun + args.budget * (args.side if alone else 1)
    waiting = list(first)

    def work():
        while True:
            with LOCK:
                if not waiting:
                    return
                name = waiting.pop(0)
            launch(name, middle, args, True)

    threads = [threading.Thread(target=work) for _ in range(args.jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in alone:
        launch(name, end, args, False)
    shown = table()
    (OUT / "table.txt").write_text(shown + "\n")
    print(f"\n{shown}\n{time.monotonic() - begun:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
