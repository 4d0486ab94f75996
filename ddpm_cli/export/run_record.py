"""Read the evaluations, the loss and the sample grid of a checkpoint from its run folder, for the model card.

Missing, truncated and malformed data are skipped, so that a model card can always be written.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_cli.checkpoints.run_folder import RunFolder
from ddpm_cli.untrusted_files import content_of

MAX_BYTES = 64 * 2**20
"""Maximum size in bytes of a grid that is read. They are usually much smaller."""
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Record:
    """Results of the weights of a checkpoint.

    evaluations: the lines of evaluations.jsonl for these weights, newest last. loss: the last training loss that was
    logged, or None. grid: the PNG file of the last milestone, or None.
    """

    evaluations: list[dict[str, Any]]
    loss: float | None
    grid: bytes | None


def record_of(checkpoint: Path, step: int, kind: str) -> Record:
    """Return the results of the weights of `kind`, such as ema, at `step` from the run folder of `checkpoint`.

    The record is empty if `checkpoint` is not in a run folder.
    """
    run = RunFolder.of(checkpoint)
    if run is None:
        return Record([], None, None)
    records = run.read_evaluations()
    own = [record for record in records if (record.get("step"), record.get("weights")) == (step, kind)]
    return Record(own, _last_loss(run, step), _last_grid(run, step))


def _last_loss(run: RunFolder, step: int) -> float | None:
    """Return the last loss that was logged at `step` or before, or None."""
    loss = None
    for row in run.read_metrics():
        with suppress(ValueError, TypeError, KeyError):
            if int(row["step"]) <= step:
                loss = float(row["loss"])
    return loss


def _last_grid(run: RunFolder, step: int) -> bytes | None:
    """Return the PNG file of the last milestone at `step` or before, or None."""
    upto = [path for number, path in run.grids_by_step().items() if number <= step]
    content = content_of(upto[-1], MAX_BYTES) if upto else None
    return content if content and content.startswith(PNG) else None
