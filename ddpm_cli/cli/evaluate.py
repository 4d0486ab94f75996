"""ddpm-evaluate: how good a checkpoint is, in numbers."""

import json
import logging
from pathlib import Path

from ddpm_cli.cli.checks import check_checkpoint
from ddpm_cli.cli.command import launch
from ddpm_cli.cli.folders import new_folder
from ddpm_cli.config import EvaluateConfig
from ddpm_cli.errors import UserError, one_of

log = logging.getLogger(__name__)

USAGE = """
ddpm-evaluate measures a checkpoint of ddpm-train on the data that it learned.

  ddpm-evaluate ckpt=outputs/train/fashion_mnist/… metrics=[nll] n=64

nll: the variational bound on the likelihood of n images, in bits per dimension, exact but for the noise drawn;
every timestep is computed, so an image takes T calls of the network.
"""


def main() -> None:
    """The console script."""
    launch("evaluate", USAGE, EvaluateConfig, check_checkpoint, run)


def run(config: EvaluateConfig, folder: Path) -> None:
    """Write nll.json, nll.csv and nll.png into `folder`, which must be new or empty."""
    from ddpm_cli.data.sources import load_examples, moved
    from ddpm_cli.files import write
    from ddpm_cli.plots import save_bound_plot
    from ddpm_cli.training.build import load_trained
    from ddpm_cli.training.nll import bound, first_examples

    trained = load_trained(config.ckpt, config.weights, config.device, config.precision)
    examples = first_examples(
        load_examples(moved(trained.config.dataset, config.root), config.split == "train"), config.n
    )
    if trained.classes and examples.classes != trained.classes:
        raise UserError(
            f"split={config.split}: its classes are {one_of(examples.classes or ['unknown'])}, and the network is told "
            f"{one_of(trained.classes)}; name another split"
        )
    new_folder(folder)
    found = bound(trained, examples, config.batch_size, config.seed)
    summary = {
        "nll": found.total,
        "standard_error": found.standard_error if len(examples) > 1 else None,  # JSON has no NaN
        "L_0": found.terms[0],
        "L_1_to_T-1": sum(found.terms[1:]),
        "L_T": found.prior,
        "unit": "bits/dim",
        "n": len(examples),
        "split": config.split,
        "ckpt": config.ckpt,
        "weights": config.weights,
        "seed": config.seed,
    }
    write(folder / "nll.json", f"{json.dumps(summary, indent=2)}\n".encode())
    lines = ["t,bits_per_dim", *(f"{t},{x:.8g}" for t, x in enumerate(found.terms)), ""]
    write(folder / "nll.csv", "\n".join(lines).encode())
    save_bound_plot(found.terms, folder / "nll.png")
    log.info(
        "at most %.4f bits/dim (standard error %.4f) over %d examples of the %s split",
        found.total,
        found.standard_error,
        len(examples),
        config.split,
    )
    log.info("L_0 %.4f, L_1..T-1 %.4f, L_T %.6f", summary["L_0"], summary["L_1_to_T-1"], found.prior)
    log.info("nll.json, nll.csv and nll.png in %s", folder)
