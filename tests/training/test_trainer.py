import csv
import math
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_cli.checkpoints.format import load_checkpoint, read_tree
from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.config import ImageDataset, TrainConfig
from ddpm_cli.data.sources import load_examples
from ddpm_cli.data.table import Examples, Table, to_float
from ddpm_cli.sampling.milestone import _draw_samples
from ddpm_cli.training.loop import Loop
from ddpm_cli.training.muon import Muon
from ddpm_cli.training.signals import Signals
from ddpm_cli.training.trainer import Trainer
from tests.conftest import TINY, composed

CPU = torch.device("cpu")
EVERYTHING = [
    "model.dropout=0.2",
    "model.self_condition=true",
    "train.accumulate=2",
    "train.log_every=2",
    "train.milestone_every=3",
    "train.warmup_steps=3",
    "train.lr_decay=cosine",
    "dataset.flip=true",
    "sampler=ddpm",
    "sampler.steps=3",
    "conditioning=class",
    "timestep_sampler=loss_second_moment",
    "timestep_sampler.history=1",
    "schedule=constant",
    "schedule.beta=0.3",
    "schedule.timesteps=6",  # few, so that the loss history fills during the test
    "variance=learned_range",
    "loss=hybrid",
    "weighting=min_snr",
    "train.ema_lengths=[0.05,0.10]",
]


AUGMENTED = [
    *TINY[:1],
    *TINY[4:],
    "model=ddpmpp",
    "model.width=8",
    "model.multipliers=[1]",
    "model.attention=[none]",
    "model.blocks=1",
    "model.dropout=0",
    "model.self_condition=true",
    "dataset.augment=0.5",
]


def trainer_of(config: TrainConfig, count: int = 20) -> Trainer:
    examples = load_examples(config.dataset, train=True)
    labels = None if examples.labels is None else examples.labels[:count]
    few = Examples(examples.values[:count], labels, examples.classes)
    images = config.dataset if isinstance(config.dataset, ImageDataset) else None
    flip, augment = (images.flip, images.augment) if images else (False, 0.0)
    return Trainer(config, Table(few, flip, config.train.seed, CPU, augment), CPU)


def loop_of(
    config: TrainConfig,
    folder: Path,
    count: int = 20,
    signals: Signals | None = None,
    from_step: int | None = None,
) -> Loop:
    """Return the loop of a run in `folder`; with `from_step`, resumed from the checkpoint of that step."""
    folder.mkdir(exist_ok=True)
    trainer, state = trainer_of(config, count), None
    if from_step is not None:
        state = load_checkpoint("resume", folder / f"checkpoints/step_{from_step:08d}.pt")
        trainer.restore(state)
    return Loop(trainer, folder, "a fingerprint", signals or Signals(), state)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def assert_same(ours: Any, theirs: Any) -> None:
    """Check that all tensors and values are bit-identical."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif isinstance(ours, list):
        for a, b in zip(ours, theirs, strict=True):
            assert_same(a, b)
    else:
        assert ours == theirs


@pytest.mark.parametrize(("precision", "optimizer"), [("fp32", "adam"), ("bf16", "adam"), ("bf16", "muon")])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, precision: str, optimizer: str) -> None:
    knobs = [f"train.precision={precision}", f"train.optimizer={optimizer}"]
    config = composed(*TINY, *EVERYTHING, "train.steps=7", *knobs)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    loop_of(config, whole).run()

    first = loop_of(config, stopped)
    step = first.trainer.train_step

    def dies_after_five() -> Any:
        if first.trainer.step == 5:
            raise KeyboardInterrupt
        return step()

    first.trainer.train_step = dies_after_five  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    torch.rand(1000)  # another process has another state of the global generator
    second = loop_of(config, stopped, from_step=3)
    assert second.trainer.step == 3
    second.run()

    ours = load_checkpoint("ckpt", stopped / "checkpoints" / "last.pt")
    theirs = load_checkpoint("ckpt", whole / "checkpoints" / "last.pt")
    assert ours["step"] == 7
    for key in ours.keys() - {"seconds", "stored_bytes"}:
        assert_same(ours[key], theirs[key])
    assert rows_of(stopped) == rows_of(whole)
    snapshots = [RunFolder(folder).snapshots_by_step() for folder in (stopped, whole)]
    assert [*snapshots[0]] == [*snapshots[1]] == [3, 6, 7]
    for step in snapshots[0]:
        assert_same(*(read_tree("averages", paths[step]) for paths in snapshots))
    grid = Path("samples") / "step_00000007.png"
    assert (stopped / grid).read_bytes() == (whole / grid).read_bytes()


def test_changed_options_are_used_on_resume(tmp_path: Path) -> None:
    trainer = trainer_of(composed(*TINY))
    trainer.train_step()
    other = trainer_of(composed(*TINY, "train.weight_decay=0.5", "train.betas=[0.5,0.6]"))
    state = trainer.state()
    other.restore(state)
    assert isinstance(other.optimizer, Muon)
    assert other.optimizer.matrix_decay == 0.5
    assert other.optimizer.param_groups[0]["betas"] == (0.5, 0.6)


def test_milestones_are_at_global_steps_and_the_end(tmp_path: Path) -> None:
    config = composed(*TINY, *EVERYTHING, "train.steps=null", "train.epochs=2.8")  # 2.5 steps per epoch
    loop = loop_of(config, tmp_path)
    assert loop.trainer.steps == 7
    loop.run()
    steps = [f"step_{step:08d}" for step in (3, 6, 7)]
    assert (
        sorted(f.stem for f in (tmp_path / "checkpoints").glob("step_*")) == steps
    )  # step 0, the beginning, is pruned
    assert sorted(f.stem for f in (tmp_path / "samples").glob("step_*")) == steps
    assert (tmp_path / "loss.png").stat().st_size > 1000
    rows = rows_of(tmp_path)
    assert [int(row["step"]) for row in rows] == [2, 3, 4, 6, 7]
    assert float(rows[-1]["epoch"]) == pytest.approx(7 * 8 / 20)
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())


@pytest.mark.parametrize("overrides", [TINY, AUGMENTED], ids=["tiny", "augmented"])
def test_accumulation_does_not_change_the_step(overrides: list[str]) -> None:
    whole = trainer_of(composed(*overrides, "train.accumulate=1"))
    parts = trainer_of(composed(*overrides, "train.accumulate=4"))
    for _ in range(3):
        loss, _ = whole.train_step()
        loss_of_parts, _ = parts.train_step()
        assert loss_of_parts == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(parts.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_network_is_told_the_augmentation_in_training_and_not_in_sampling(precision: str) -> None:
    trainer = trainer_of(composed(*AUGMENTED, f"train.precision={precision}"))
    told: list[torch.Tensor | None] = []
    for network in (trainer.network, trainer.ema.network):
        network.register_forward_pre_hook(lambda _, __, given: told.append(given.get("augmentation")), with_kwargs=True)
    expected = [trainer.table.batch(step, 8).augmentation for step in range(2)]
    for labels in expected:
        told.clear()
        trainer.train_step()
        assert told
        assert all(torch.equal(torch.as_tensor(seen), torch.as_tensor(labels)) for seen in told)
    assert not torch.equal(*map(torch.as_tensor, expected))
    told.clear()
    assert len([*_draw_samples(trainer.generator, [0] * 4, trainer.config.train, False, lambda: None)]) > 0
    assert told
    assert not any(seen is not None for seen in told)


def test_objective_with_augmentation_compiles_without_graph_breaks() -> None:
    trainer = trainer_of(composed(*AUGMENTED))
    batch = trainer._batch()
    given = (batch.x0, batch.t, batch.eps, batch.y, True, batch.augmentation)
    compiled = torch.compile(trainer.objective.__call__, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(*given), trainer.objective(*given), rtol=1e-4)


@pytest.mark.parametrize("overrides", [[*TINY, *EVERYTHING], AUGMENTED], ids=["everything", "augmented"])
def test_nothing_in_a_step_waits_for_the_device(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(composed(*overrides))
    trainer.train_step()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the host would wait for the device")

    for name in ("item", "cpu", "numpy", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    trainer.train_step()


def test_the_network_computes_in_bf16_and_the_loss_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(composed(*TINY, "train.precision=bf16"))
    seen: list[torch.dtype] = []
    conv = next(m for m in trainer.network.modules() if isinstance(m, torch.nn.Conv2d))
    conv.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    loss, _ = trainer.train_step()
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in trainer.network.parameters())


def test_half_precision_with_its_loss_scaler_trains() -> None:
    trainer = trainer_of(composed(*TINY, "train.precision=fp16"))
    before = [parameter.clone() for parameter in trainer.network.parameters()]
    assert trainer.scaler.is_enabled()
    for _ in range(12):  # the first steps find the loss scale; those that overflow are skipped
        trainer.train_step()
    after = list(trainer.network.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_compiled_step_has_no_graph_breaks_and_is_never_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noising, network, loss and their gradients are one graph, also after a milestone. Names stay clean."""
    few = [
        "train.steps=4",
        "train.milestone_every=2",
        "train.warmup_steps=3",
        "train.log_every=1",
        "conditioning=class",
    ]
    few += ["model.multipliers=[1]", "model.attention=[none]"]
    plain = trainer_of(composed(*TINY, *few))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        closing(loop_of(composed(*TINY, *few, "compile=true"), tmp_path)) as loop,
    ):
        loop.run()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    losses = [plain.train_step()[0].item() for _ in range(4)]
    assert [float(row["loss"]) for row in rows_of(tmp_path)] == pytest.approx(losses, rel=1e-4)
    assert loop.trainer.state()["model"].keys() == plain.state()["model"].keys()


@pytest.mark.slow
def test_network_memorises_eight_images(tmp_path: Path) -> None:
    """Samples of a network trained on eight digits are each close to one of them, and not all to the same one."""
    config = composed(
        *TINY,
        "model.width=16",
        "model.attention=[none,full]",
        "schedule=cosine",
        "schedule.timesteps=200",
        "prediction=v",
        "sampler.steps=50",
        "train.steps=300",
        "train.batch_size=32",
        "train.lr=4e-3",
        "train.warmup_steps=20",
        "train.lr_decay=cosine",
        "train.milestone_every=300",
        "train.samples=32",
    )
    loop = loop_of(config, tmp_path, count=8)
    final = loop.run()
    first = float(rows_of(tmp_path)[0]["loss"])
    assert final < first / 3
    originals = to_float(loop.trainer.table.values).flatten(1)
    samples = torch.cat(
        [x for _, x in _draw_samples(loop.trainer.generator, [0] * 32, config.train, False, lambda: None)]
    ).flatten(1)
    distances = torch.cdist(samples, originals)
    apart = torch.cdist(originals, originals).fill_diagonal_(math.inf).min().item()
    near = distances.min(dim=1)
    assert (near.values < apart / 2).float().mean() > 0.8  # nearer to one image than to the mean of two
    assert len(near.indices.unique()) >= 5


def test_class_is_dropped_for_a_share_of_the_examples() -> None:
    trainer = trainer_of(composed(*TINY, "conditioning=class", "conditioning.dropout=0.25", "train.batch_size=8"))
    given, known = [], []
    for trainer.step in range(200):
        given.append(trainer._batch().y)
        known.append(trainer.table.batch(trainer.step, 8).y)
    given, known = torch.cat(given), torch.cat(known)
    hidden = given == 10  # digits have classes 0 to 9
    assert 0.2 < hidden.float().mean() < 0.3
    assert torch.equal(given[~hidden], known[~hidden])


def test_unconditional_network_gets_no_class() -> None:
    trainer = trainer_of(composed(*TINY))
    assert trainer.classes == []
    assert trainer._batch().y is None


def test_the_average_is_a_copy_before_it_starts() -> None:
    trainer = trainer_of(composed(*TINY, "train.ema_start=3", "train.ema_decay=0.9", "train.ema_warmup=false"))
    for _ in range(3):
        trainer.train_step()
        pairs = zip(trainer.network.parameters(), trainer.ema.network.parameters(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs) == (trainer.step < 3)


def test_milestones_by_epochs(tmp_path: Path) -> None:
    """20 images in batches of 8 take 2.5 steps, so epochs end after 3, 5 and 8 steps."""
    config = composed(*TINY, "train.steps=null", "train.epochs=3", "train.milestone_every=1epoch", "train.log_every=1")
    loop_of(config, tmp_path).run()
    steps = sorted(int(file.stem[5:]) for file in (tmp_path / "samples").glob("step_*"))
    assert steps == [3, 5, 8]


def changed_run(folder: Path, *more: str, size: int = 6) -> list[list[int]]:
    """Train 3 steps of 4 images of 12, then batches of `size` to 3 epochs. Return the images of each step."""
    few = [*TINY, "train.steps=null", "train.milestone_every=1epoch", "train.log_every=1", "checkpoint.keep_last=null"]
    first = loop_of(composed(*few, "train.epochs=1", "train.batch_size=4", *more), folder, 12)
    seen = recorded(first)
    first.run()
    second = loop_of(composed(*few, "train.epochs=3", f"train.batch_size={size}", *more), folder, 12, from_step=3)
    seen_later = recorded(second)
    second.run()
    return [*seen, *seen_later]


def recorded(loop: Loop) -> list[list[int]]:
    """Return a list that gets the indices of the examples of each step of `loop`."""
    table, seen = loop.trainer.table, list[list[int]]()
    part = table._part

    def recording(*batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = part(*batch)
        seen.append(indices.tolist())
        return values, indices

    table._part = recording  # type: ignore[method-assign]
    return seen


def test_another_batch_size_goes_on_where_the_images_before_ended(tmp_path: Path) -> None:
    """3 steps of 4 and 4 of 6 are three epochs of 12 images, each of which has every image once."""
    seen = changed_run(tmp_path)
    assert [*map(len, seen)] == [4, 4, 4, 6, 6, 6, 6]
    flat = [*chain(*seen)]
    assert [sorted(flat[i : i + 12]) for i in (0, 12, 24)] == [[*range(12)]] * 3
    assert flat[:12] != flat[12:24] != flat[24:]
    rows = rows_of(tmp_path)
    assert [int(row["images"]) for row in rows] == [4, 8, 12, 18, 24, 30, 36]
    assert [float(row["epoch"]) for row in rows] == pytest.approx([1 / 3, 2 / 3, 1, 1.5, 2, 2.5, 3])
    assert sorted(int(file.stem[5:]) for file in (tmp_path / "samples").glob("step_*")) == [3, 5, 7]
    assert load_checkpoint("ckpt", tmp_path / "checkpoints/last.pt")["phases"] == [[0, 4, 12], [3, 6, 12]]


def test_another_batch_size_within_an_epoch_repeats_no_image(tmp_path: Path) -> None:
    """From step 2 of 4 images, with 4 of 12 left in the epoch, go on in batches of 8."""
    config = composed(*TINY, "train.steps=2", "train.batch_size=4")
    first = loop_of(config, tmp_path, 12)
    seen = recorded(first)
    first.run()
    second = loop_of(composed(*TINY, "train.steps=4", "train.batch_size=8"), tmp_path, 12, from_step=2)
    later = recorded(second)
    second.run()
    assert sorted([*chain(*seen), *later[0][:4]]) == [*range(12)]
    assert sorted(later[0][4:] + later[1]) == [*range(12)]


def test_run_with_another_batch_size_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    changed_run(tmp_path / "whole", "train.lr_decay=cosine", "dataset.flip=true")
    changed_run(tmp_path / "stopped", "train.lr_decay=cosine", "dataset.flip=true")
    state = load_checkpoint("resume", tmp_path / "stopped/checkpoints/step_00000005.pt")
    loop_of(replace(state["config"], out="x"), tmp_path / "stopped", 12, from_step=5).run()
    ours, theirs = (load_checkpoint("ckpt", tmp_path / name / "checkpoints/last.pt") for name in ("stopped", "whole"))
    for key in ours.keys() - {"seconds", "stored_bytes"}:
        assert_same(ours[key], theirs[key])
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")


def test_checkpoints_kept_by_epochs_stay_kept(tmp_path: Path) -> None:
    """Epochs end after 3 steps of 4 and 4 and 8 of 3; if step 3 counted as 9 images, it would be removed."""
    changed_run(tmp_path, "checkpoint.keep_last=1", "checkpoint.keep_every=1epoch", size=3)
    steps = sorted(int(file.stem[5:]) for file in (tmp_path / "checkpoints").glob("step_*"))
    assert steps == [3, 7, 11]


def test_hybrid_bound_trains_the_variance_only() -> None:
    """The mean gets the gradient of L2 alone, however large the weight of the variational bound."""
    hybrid = composed(*TINY, "variance=learned_range", "loss=hybrid", "loss.vlb_weight=1000")
    trainer = trainer_of(hybrid)
    part = trainer._batch()
    trainer.objective(part.x0, part.t, part.eps).mean().backward()
    head = trainer.network.head[0].weight.grad  # output channels: mean, variance
    plain = trainer_of(composed(*TINY, "variance=learned_range", "loss=hybrid", "loss.vlb_weight=1e-9"))
    plain.objective(part.x0, part.t, part.eps).mean().backward()
    assert torch.allclose(head[0], plain.network.head[0].weight.grad[0], atol=1e-6)
    assert not torch.allclose(head[1], plain.network.head[0].weight.grad[1], atol=1e-3)
