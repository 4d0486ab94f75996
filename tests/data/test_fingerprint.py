import torch

from ddpm_cli.data.table import Examples, fingerprint

IMAGES = torch.arange(5000 * 4, dtype=torch.int64).remainder(251).byte().view(5000, 1, 2, 2)
LABELS = torch.arange(5000) % 2


def test_fingerprint_does_not_depend_on_the_memory_layout() -> None:
    one = Examples(IMAGES, LABELS, ["cat", "dog"])
    other = Examples(IMAGES.clone(), LABELS.clone(), ["cat", "dog"])
    assert fingerprint(one) == fingerprint(other)
    strided = Examples(IMAGES.transpose(2, 3).contiguous().transpose(2, 3), LABELS, ["cat", "dog"])
    assert fingerprint(one) == fingerprint(strided)


def test_fingerprint_changes_with_the_data() -> None:
    changed, relabelled = IMAGES.clone(), LABELS.clone()
    changed[4999, 0, 1, 1] ^= 1
    relabelled[17] = 1 - relabelled[17]
    found = {
        fingerprint(examples)
        for examples in (
            Examples(IMAGES, LABELS, ["cat", "dog"]),
            Examples(changed, LABELS, ["cat", "dog"]),
            Examples(IMAGES, relabelled, ["cat", "dog"]),
            Examples(IMAGES, LABELS, ["dog", "cat"]),
            Examples(IMAGES),
            Examples(IMAGES[:-1], LABELS[:-1], ["cat", "dog"]),
            Examples(IMAGES.flip(0), LABELS, ["cat", "dog"]),
            Examples(IMAGES.view(5000, 1, 4, 1), LABELS, ["cat", "dog"]),
            Examples(IMAGES.flatten(1).float()),
        )
    }
    assert len(found) == 9
