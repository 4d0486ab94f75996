"""Generate the model card of an exported network: a README.md with the metadata of the Hugging Face hub."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from ddpm_cli.checkpoints.safetensors_file import Weights
from ddpm_cli.checkpoints.stored_config import to_stored
from ddpm_cli.config import ImageDataset
from ddpm_cli.config.averages import length_of
from ddpm_cli.diffusion.process import Process
from ddpm_cli.diffusion.schedules import path_of
from ddpm_cli.export.run_record import Record

LIBRARY = {"safetensors": "ddpm-cli", "diffusers": "diffusers", "onnx": "onnx"}
MAX_LENGTH = 60
"""Maximum length in characters of a class name or of a value from evaluations.jsonl."""
OUTPUTS = {"eps": "eps", "x0": "x0", "v": "v", "flow": "the velocity eps - x0"}
EDM_NOTE = (
    "`output` is F of a preconditioned network (Karras et al. 2022, eq. 7) with sigma_data = {}: x is c_in x_t, and "
    "t is c_noise = log(sigma) / 4."
)
MAX_CLASSES = 20
"""Maximum number of class names that are listed."""


def model_card(weights: Weights, record: Record, file_format: str) -> str:
    """Return the text of README.md: usage, training, evaluation and config. Facts that are not known are omitted."""
    parts = [_front_matter(weights, file_format), f"# {_card_title(weights)}\n\n{_training_summary(weights)}\n"]
    if record.grid is not None:
        parts.append("![Samples generated during training](samples.png)\n")
    parts += [
        f"## Usage\n\n{_usage(weights, file_format)}\n",
        "## Model and training\n\n" + _markdown_table(("Property", "Value"), _model_properties(weights, record)),
        f"## Evaluation\n\n{_evaluation_table(record)}",
        "Biases of the training data were not evaluated, nor was the similarity of samples to training images.\n",
        "No license is stated. If you publish this model, add one as `license:` at the top of this file.\n",
        f"## Configuration\n\n```yaml\n{_config_yaml(weights)}```\n",
    ]
    return "\n".join(parts)


def _front_matter(weights: Weights, file_format: str) -> str:
    """Return the metadata block in YAML that the Hugging Face hub reads."""
    fields: dict[str, Any] = {"library_name": LIBRARY[file_format], "tags": ["ddpm-cli", "ddpm", "diffusion"]}
    if isinstance(weights.config.dataset, ImageDataset) and not weights.classes:
        fields["pipeline_tag"] = "unconditional-image-generation"
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n"


def _card_title(weights: Weights) -> str:
    dataset = weights.config.dataset
    size = "x".join(map(str, dataset.shape))
    return f"Denoising diffusion model of {dataset.name} ({size})"


def _training_summary(weights: Weights) -> str:
    if weights.step == 0:
        return "Not trained by `ddpm-train`: it is untrained or was imported by `ddpm-import`."
    return f"Trained by `ddpm-train` for {weights.step} steps. These are the `{weights.kind}` weights."


def _model_properties(weights: Weights, record: Record) -> Iterator[tuple[str, str]]:
    """Yield the properties of the model and its training as (name, value)."""
    config, train = weights.config, weights.config.train
    parameters = sum(tensor.numel() for tensor in weights.tensors.values() if tensor.is_floating_point())
    yield "dataset", f"{config.dataset.name}, {'x'.join(map(str, config.dataset.shape))}"
    if weights.classes:
        names = ", ".join(_escape_cell(name) for name in weights.classes[:MAX_CLASSES])
        yield "classes", f"{len(weights.classes)}: {names}{', …' if len(weights.classes) > MAX_CLASSES else ''}"
    yield "network", f"{config.model.name}, {parameters / 1e6:.2f}M parameters"
    yield "prediction", f"{config.prediction}; variance {config.variance}"
    yield "noise schedule", f"{config.schedule.name}, T={config.schedule.timesteps}"
    if weights.step:
        yield "loss", f"{config.loss.name}, weighting {config.weighting.name}"
        last = "" if len(weights.phases) == 1 else " at the end"
        yield "steps", f"{weights.step}, batch size {train.batch_size}{last}: {weights.images} examples"
        yield "optimizer", f"{train.optimizer}, learning rate {train.lr:g}"
    if weights.kind == "ema" and weights.step:
        yield "EMA decay", f"{train.ema_decay:g}"
    if (length := length_of(weights.kind)) is not None:
        yield "relative length of the average", f"{length:g}"
    if record.loss is not None and math.isfinite(record.loss):
        yield "final training loss", f"{record.loss:.4g}"


def _evaluation_table(record: Record) -> str:
    """Return a table of all metrics, or a hint how to compute them."""
    rows = [row for entry in record.evaluations for row in _metric_rows(entry)]
    if not rows:
        return "None. Run `ddpm-evaluate ckpt=<the run>` before `ddpm-export` to include its results here.\n"
    return _markdown_table(("Metric", "Value", "95% interval", "Floor (real images)", "Settings"), rows)


def _metric_rows(entry: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a table row for each metric of a line of evaluations.jsonl. Values of the wrong type are omitted."""
    intervals, floor = _dict_or_empty(entry.get("intervals")), _dict_or_empty(entry.get("floor"))
    sampler = _dict_or_empty(entry.get("sampler")).get("name")
    known = {"n": entry.get("n"), "split": entry.get("split"), "sampler": sampler, "nfe": entry.get("nfe")}
    used = ", ".join(f"{key}={_escape_cell(value)}" for key, value in known.items() if value is not None)
    for name, value in _dict_or_empty(entry.get("metrics")).items():
        if isinstance(value, int | float):
            ends = intervals.get(name)
            between = " to ".join(map(_format_number, ends)) if isinstance(ends, list) else ""
            yield _escape_cell(name), _format_number(value), between, _format_number(floor.get(name)), used


def _dict_or_empty(value: object) -> dict[str, Any]:
    """Return `value` if it is a dictionary, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def _format_number(value: object) -> str:
    """Return a number with five significant digits, or an empty string for other values."""
    return f"{value:.5g}" if isinstance(value, int | float) else ""


def _usage(weights: Weights, file_format: str) -> str:
    """Return example code that loads the exported file."""
    match file_format:
        case "diffusers":
            return _usage_diffusers(weights)
        case "onnx":
            return _usage_onnx(weights)
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


def _usage_diffusers(weights: Weights) -> str:
    return f"""```python
from diffusers import DDPMPipeline

pipeline = DDPMPipeline.from_pretrained(".")  # this folder
images = pipeline(batch_size=16, num_inference_steps={weights.config.schedule.timesteps}).images
```

This is equivalent to `ddpm-sample sampler=ddpm sampler.steps=null`."""


def _usage_onnx(weights: Weights) -> str:
    config = weights.config
    channels, *rest = config.dataset.shape
    input_channels = 2 * channels if config.model.self_condition else channels
    shape = ", ".join(map(str, (16, input_channels, *rest)))
    labels = ', "y": np.zeros(16, dtype=np.int64)' if weights.classes else ""
    end = config.schedule.timesteps - 1
    if config.prediction == "edm":  # the network is told the noise level, not t
        noise, kind = f"{-Process(path_of(config.schedule)).logsnr(end) / 8:.4f}", "float32"
        notes = [EDM_NOTE.format(config.sigma_data)]
    else:
        noise, kind = f"{end}", "int64"
        notes = [f"`output` is the estimate of {OUTPUTS[config.prediction]} for x_t, with t from 0 to {end}."]
    if config.model.self_condition:
        notes.append(
            "The first half of the channels of x is the previous estimate of x0, at first zeros; the second is x_t."
        )
    if config.variance == "learned_range":
        notes.append(
            "The second half of the channels of `output` is the log-variance, from -1 (lower bound) to 1 (upper bound)."
        )
    if weights.classes:
        notes.append(f"y is the index of the class; {len(weights.classes)} means none.")
    return f"""```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
x = np.random.randn({shape}).astype(np.float32)
t = np.full(16, {noise}, dtype=np.{kind})
(output,) = session.run(None, {{"x": x, "t": t{labels}}})
```

{" ".join(notes)}"""


def _config_yaml(weights: Weights) -> str:
    """Return the config as YAML without the keys that depend on the machine."""
    stored = to_stored(weights.config)
    settings = {key: value for key, value in stored.items() if key not in ("device", "compile", "out")}
    return yaml.safe_dump(
        {key: value for key, value in settings.items() if not key.startswith("resume")}, sort_keys=False
    )


def _markdown_table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escape_cell(value: object) -> str:
    """Return `value` as text without markup, for a table cell. Class names and evaluations.jsonl are not trusted."""
    text = "".join(letter if letter.isprintable() and letter not in "|<>`[]" else "?" for letter in str(value))
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 1]}…"
