"""The model card: README.md beside an exported network, with the front matter that the Hugging Face hub reads."""

import math
from collections.abc import Iterator
from typing import Any

import yaml

from ddpm_cli.checkpoints.safetensors_file import Weights
from ddpm_cli.checkpoints.stored_config import to_stored
from ddpm_cli.config import ImageDataset
from ddpm_cli.export.run_record import Record

LIBRARY = {"safetensors": "ddpm-cli", "diffusers": "diffusers", "onnx": "onnx"}
LONGEST = 60
"""Letters of a class's name, or of what a line of evaluations.jsonl says, that are shown."""
MANY = 20
"""Classes that are named."""


def card(weights: Weights, record: Record, form: str) -> str:
    """The text of README.md: what it learned, how, how well, and how to use it; nothing that is not known."""
    parts = [_front_matter(weights, form), f"# {_title(weights)}\n\n{_summary(weights)}\n"]
    if record.grid is not None:
        parts.append("![samples, drawn while it was trained](samples.png)\n")
    parts += [
        f"## Use\n\n{_use(weights, form)}\n",
        "## What it learned, and how\n\n" + _table(("what", "value"), _facts(weights, record)),
        f"## Measured\n\n{_measured(record)}",
        "Nothing else was measured: not what biases its data have, nor how near its samples come to them.\n",
        "No licence is stated here; whoever publishes this names one, as `license:` at the top.\n",
        f"## All settings\n\n```yaml\n{_settings(weights)}```\n",
    ]
    return "\n".join(parts)


def _front_matter(weights: Weights, form: str) -> str:
    fields: dict[str, Any] = {"library_name": LIBRARY[form], "tags": ["ddpm-cli", "ddpm", "diffusion"]}
    if isinstance(weights.config.dataset, ImageDataset) and not weights.classes:
        fields["pipeline_tag"] = "unconditional-image-generation"
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n"


def _title(weights: Weights) -> str:
    dataset = weights.config.dataset
    size = "x".join(map(str, dataset.shape))
    return f"{dataset.name}, {size}: a denoising diffusion model"


def _summary(weights: Weights) -> str:
    if weights.step == 0:
        return "Of no step of `ddpm-train`: it is untrained, or came from elsewhere through `ddpm-import`."
    return f"Trained by `ddpm-train` for {weights.step} steps; these are its `{weights.kind}` weights."


def _facts(weights: Weights, record: Record) -> Iterator[tuple[str, str]]:
    config, train = weights.config, weights.config.train
    parameters = sum(tensor.numel() for tensor in weights.tensors.values() if tensor.is_floating_point())
    yield "data", f"{config.dataset.name}, {'x'.join(map(str, config.dataset.shape))}"
    if weights.classes:
        named = ", ".join(_plain(name) for name in weights.classes[:MANY])
        yield "classes it is told", f"{len(weights.classes)}: {named}{', …' if len(weights.classes) > MANY else ''}"
    yield "network", f"{config.model.name}, {parameters / 1e6:.2f}M weights"
    yield "predicts", f"{config.prediction}; variance {config.variance}"
    yield "schedule", f"{config.schedule.name}, T={config.schedule.timesteps}"
    if weights.step:
        yield "loss", f"{config.loss.name}, weighting {config.weighting.name}"
        yield "steps", f"{weights.step} of {train.batch_size} examples: {weights.step * train.batch_size} in all"
        yield "optimizer", f"{train.optimizer}, learning rate {train.lr:g}"
    if weights.kind == "ema" and weights.step:
        yield "average", f"of decay {train.ema_decay:g}"
    if record.loss is not None and math.isfinite(record.loss):
        yield "loss at the end", f"{record.loss:.4g}, on what it was trained on"


def _measured(record: Record) -> str:
    rows = [row for entry in record.evaluations for row in _rows(entry)]
    if not rows:
        return "Nothing; `ddpm-evaluate ckpt=<the run>` before `ddpm-export` puts its figures here.\n"
    return _table(("metric", "value", "interval", "of real images", "how"), rows)


def _rows(entry: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    intervals, floor = _mapping(entry.get("intervals")), _mapping(entry.get("floor"))
    sampler = _mapping(entry.get("sampler")).get("name")
    known = {"n": entry.get("n"), "split": entry.get("split"), "sampler": sampler, "nfe": entry.get("nfe")}
    how = ", ".join(f"{key}={_plain(value)}" for key, value in known.items() if value is not None)
    for name, value in _mapping(entry.get("metrics")).items():
        if isinstance(value, int | float):
            ends = intervals.get(name)
            between = " to ".join(map(_figure, ends)) if isinstance(ends, list) else ""
            yield _plain(name), _figure(value), between, _figure(floor.get(name)), how


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _figure(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, int | float) else ""


def _use(weights: Weights, form: str) -> str:
    match form:
        case "diffusers":
            return _use_diffusers(weights)
        case "onnx":
            return _use_onnx(weights)
    option = "" if weights.kind == "ema" else f" weights={weights.kind}"
    argument = "" if weights.kind == "ema" else f', weights="{weights.kind}"'
    return f"""```sh
pip install 'ddpm-cli[export]'
ddpm-sample ckpt=model.safetensors n=64{option}
```

```python
from ddpm_cli import load

load("model.safetensors"{argument}).sample(16, seed=7)
```"""


def _use_diffusers(weights: Weights) -> str:
    return f"""```python
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained(".")  # this folder
images = pipeline(batch_size=16, num_inference_steps={weights.config.schedule.timesteps}).images
```

It draws what `ddpm-sample sampler=ddpm sampler.steps=null` does."""


def _use_onnx(weights: Weights) -> str:
    config = weights.config
    channels, *rest = config.dataset.shape
    seen = 2 * channels if config.model.self_condition else channels
    shape = ", ".join(map(str, (16, seen, *rest)))
    told = ', "y": np.zeros(16, dtype=np.int64)' if weights.classes else ""
    notes = [
        f"`output` is its estimate of {config.prediction} in x_t, for t from 0 to {config.schedule.timesteps - 1}."
    ]
    if config.model.self_condition:
        notes.append("The first half of x's channels is its last estimate of x0, zeros at first; x_t is the second.")
    if config.variance == "learned_range":
        notes.append("The second half of its channels is where between its bounds the log-variance lies, from -1 to 1.")
    if weights.classes:
        notes.append(f"y is the number of a class; {len(weights.classes)} means none.")
    return f"""```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
x = np.random.randn({shape}).astype(np.float32)
t = np.full(16, {config.schedule.timesteps - 1}, dtype=np.int64)
(output,) = session.run(None, {{"x": x, "t": t{told}}})
```

{" ".join(notes)}"""


def _settings(weights: Weights) -> str:
    """The config as YAML, less what is of the machine."""
    stored = to_stored(weights.config)
    told = {key: value for key, value in stored.items() if key not in ("device", "compile", "out")}
    return yaml.safe_dump({key: value for key, value in told.items() if not key.startswith("resume")}, sort_keys=False)


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _plain(value: object) -> str:
    """In a cell of a table: names of folders, and what stands in evaluations.jsonl, may be anything."""
    text = "".join(letter if letter.isprintable() and letter not in "|<>`[]" else "?" for letter in str(value))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
