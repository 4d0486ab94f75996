from typing import Any

import pytest
import yaml

from ddpm_cli.checkpoints.safetensors_file import Weights
from ddpm_cli.checkpoints.stored_config import from_stored, to_stored, without_paths
from ddpm_cli.export.model_card import model_card
from ddpm_cli.export.run_record import PNG, Record
from tests.conftest import TINY, TINY_POINTS, composed

EMPTY = Record([], None, None)
EVALUATION: dict[str, Any] = {
    "step": 12,
    "weights": "ema",
    "split": "test",
    "n": 2000,
    "sampler": {"name": "ddim", "steps": 50},
    "nfe": 50,
    "metrics": {"fd_classifier": 12.31, "nll": 3.9},
    "intervals": {"fd_classifier": [11.9, 12.8]},
    "floor": {"fd_classifier": 0.9},
}


def weights(*overrides: str, classes: tuple[str, ...] = (), step: int = 12, kind: str = "ema") -> Weights:
    return Weights(composed(*TINY, *overrides), list(classes), step, kind, {}, [[0, 8, 20]])


def test_front_matter_has_the_metadata_of_the_hub() -> None:
    for file_format, library in {"safetensors": "ddpm-cli", "diffusers": "diffusers", "onnx": "onnx"}.items():
        _, matter, _ = model_card(weights(), EMPTY, file_format).split("---\n", 2)
        fields = yaml.safe_load(matter)
        assert fields["library_name"] == library
        assert fields["pipeline_tag"] == "unconditional-image-generation"
        assert "ddpm" in fields["tags"]
    points = Weights(composed(*TINY_POINTS), [], 1, "ema", {})
    assert "pipeline_tag" not in model_card(points, EMPTY, "onnx")


def test_card_states_only_what_is_known() -> None:
    text = model_card(weights(), Record([EVALUATION], 0.125, PNG), "safetensors")
    assert "| fd_classifier | 12.31 | 11.9 to 12.8 | 0.9 | n=2000, split=test, sampler=ddim, nfe=50 |" in text
    assert "| nll | 3.9 |  |  | n=2000, split=test, sampler=ddim, nfe=50 |" in text
    assert "| final training loss | 0.125 |" in text
    assert "| steps | 12, batch size 8: 96 examples |" in text
    assert "(samples.png)" in text
    bare = model_card(weights(), EMPTY, "safetensors")
    assert "## Evaluation\n\nNone. Run `ddpm-evaluate" in bare
    assert "samples.png" not in bare
    assert "final training loss" not in bare


def test_card_counts_the_examples_of_each_batch_size() -> None:
    """Ten steps of 4 examples and two of 8."""
    found = Weights(composed(*TINY), [], 12, "ema", {}, [[0, 4, 20], [10, 8, 20]])
    assert "| steps | 12, batch size 8 at the end: 56 examples |" in model_card(found, EMPTY, "safetensors")


@pytest.mark.parametrize(
    "entry",
    [{}, {"metrics": [1]}, {"metrics": {"nll": "low"}}, {"metrics": {"nll": 1.0}, "intervals": 3, "sampler": "ddim"}],
)
def test_malformed_evaluations_are_skipped(entry: dict[str, Any]) -> None:
    assert "## Evaluation" in model_card(weights(), Record([entry], float("nan"), None), "safetensors")


def test_class_names_are_escaped() -> None:
    names = ("cat|dog", "<script>", "a\nb", "![x](http://x)", "y" * 100)
    text = model_card(weights("conditioning=class", classes=names), EMPTY, "safetensors")
    (row,) = (line for line in text.splitlines() if line.startswith("| classes"))
    assert row.count("|") == 3
    assert "<script>" not in row
    assert "![x]" not in row
    assert "y" * 100 not in row


def test_config_in_the_card_is_that_of_the_run() -> None:
    config = from_stored(to_stored(weights().config))
    text = model_card(Weights(config, [], 12, "ema", {}), EMPTY, "safetensors")
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    again = from_stored(without_paths(settings) | {"device": "cpu", "compile": None})
    assert again == config


@pytest.mark.parametrize(
    ("file_format", "overrides", "classes", "lines"),
    [
        ("safetensors", (), (), ["ddpm-sample ckpt=model.safetensors n=64\n", 'load("model.safetensors").sample']),
        ("diffusers", (), (), ["num_inference_steps=50"]),
        ("onnx", (), (), ["np.random.randn(16, 1, 8, 8)", '{"x": x, "t": t})', "estimate of v"]),
        (
            "onnx",
            ("schedule=edm", "prediction=edm", "sigma_data=0.5"),
            (),
            ["np.full(16, 1.0955, dtype=np.float32)", "sigma_data = 0.5: x is c_in x_t"],  # log(80) / 4
        ),
        ("onnx", ("schedule=flow", "prediction=flow"), (), ["dtype=np.int64", "the velocity eps - x0"]),
        (
            "onnx",
            ("conditioning=class", "model.self_condition=true", "variance=learned_range", "loss=hybrid"),
            ("0", "1"),
            ["np.random.randn(16, 2, 8, 8)", '"y": np.zeros(16', "2 means none", "log-variance", "estimate of x0"],
        ),
    ],
)
def test_usage_matches_the_format_and_the_network(
    file_format: str, overrides: tuple[str, ...], classes: tuple[str, ...], lines: list[str]
) -> None:
    text = model_card(weights(*overrides, classes=classes), EMPTY, file_format)
    assert all(line in text for line in lines)


def test_card_names_the_weights_and_imported_networks() -> None:
    text = model_card(weights(kind="model"), EMPTY, "safetensors")
    assert "ddpm-sample ckpt=model.safetensors n=64 weights=model" in text
    assert 'load("model.safetensors", weights="model")' in text
    imported = model_card(weights(step=0), EMPTY, "onnx")
    assert "it is untrained or was imported" in imported
    assert "learning rate" not in imported
