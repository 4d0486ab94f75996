"""Fingerprint of a dataset, used to detect changed data on resume."""

import hashlib

from ddpm_cli.data.table import Examples

AT_ONCE = 4096


def fingerprint(examples: Examples) -> str:
    """Return the SHA-256 of all values, labels and class names, in hexadecimal."""
    digest = hashlib.sha256(repr((tuple(examples.values.shape), examples.values.dtype, examples.classes)).encode())
    for part in examples.values.split(AT_ONCE):
        digest.update(part.numpy().tobytes())
    if examples.labels is not None:
        digest.update(examples.labels.numpy().tobytes())
    return digest.hexdigest()
