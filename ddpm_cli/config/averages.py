"""Names of the weights of a run, and relative lengths of averages (Karras et al. 2024, arXiv:2312.02696, section 3).

The relative length of an average over t steps is the standard deviation of its profile divided by t.
"""

from ddpm_cli.errors import check

MIN_LENGTH, MAX_LENGTH = 0.001, 0.28
"""Range of relative lengths. 1 / sqrt(12) = 0.289 is that of the mean of all steps."""
MAX_COUNT = 8
"""Largest number of averages that a run tracks; each takes the memory of a copy of the network."""
PREFIX = "ema:"
ALLOWED = f"ema, model, or the averaged weights of a relative length in [{MIN_LENGTH}, {MAX_LENGTH}), as in ema:0.10"
LENGTHS = f"null, or 2 to {MAX_COUNT} different lengths in [{MIN_LENGTH}, {MAX_LENGTH}), as in [0.05,0.10]"


def check_lengths(lengths: list[float] | None) -> None:
    """Raise `UserError` unless train.ema_lengths may have this value."""
    if lengths is not None:
        in_range = all(MIN_LENGTH <= length < MAX_LENGTH for length in lengths)
        ok = in_range and 2 <= len(set(lengths)) == len(lengths) <= MAX_COUNT
        check(ok, "train.ema_lengths", lengths, LENGTHS)


def checked_weights(key: str, value: str) -> str:
    """Return the one name of the weights that `value` names: ema:0.1 for ema:0.10. Raise `UserError` for other values.

    key: is named in errors.
    """
    if value in ("ema", "model"):
        return value
    length = length_of(value)
    check(length is not None and MIN_LENGTH <= length < MAX_LENGTH, key, value, ALLOWED)
    return f"{PREFIX}{length}"


def length_of(weights: str) -> float | None:
    """Return the relative length in a name such as ema:0.10, or None for other names."""
    try:
        return float(weights.removeprefix(PREFIX)) if weights.startswith(PREFIX) else None
    except ValueError:
        return None
