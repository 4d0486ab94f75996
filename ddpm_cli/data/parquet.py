"""Read images and labels from Parquet files, as Hugging Face stores data sets."""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ddpm_cli.config import Parquet
from ddpm_cli.data.decoding import MAX_BYTES, Undecoded, cached_table, decode_image, one_line
from ddpm_cli.data.image_folder import find_files, key_of_files
from ddpm_cli.data.table import Examples, with_fingerprint
from ddpm_cli.errors import UserError, check, one_of

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

ROWS = 4096
"""Number of labels that are read at once. Images are read one by one, because a small file may have many large ones."""
STREAMED = 2**20
"""Number of bytes that are read from a file at once."""
MAX_CLASSES = 2**16
SPLIT_NAME = re.compile(r"(?<![a-z])(train|test|validation)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """Rows of a file. numbers: those of the rows that belong to a split, ascending."""

    file: Path
    numbers: np.ndarray


@dataclass(frozen=True)
class Labels:
    """Classes that number both splits, further ones of test files, and for each file those of its rows (N,) int64."""

    classes: list[str]
    unknown: list[str]
    by_file: dict[Path, np.ndarray]

    def of(self, parts: list[Part]) -> np.ndarray:
        """Return the classes of the rows of `parts`."""
        return np.concatenate([np.zeros(0, np.int64), *(self.by_file[part.file][part.numbers] for part in parts)])


def read_parquet(dataset: Parquet, train: bool, cache: Path) -> Examples:
    """Load the images of a split of the Parquet files in `dataset.root`, which may also be a single file.

    If there are files for training and for testing, judged by their names and those of their folders, they are the
    splits. Otherwise, the test split is the fraction `dataset.test_fraction` of the rows with the smallest hashes.

    cache: the folder of the decoded images. Raises `UserError` if pyarrow or a column is missing, or if a file, a label
    or an image is damaged.
    """
    root, files = _list_files(dataset)
    counts = {file: _opened(dataset, file).metadata.num_rows for file in files}
    splits = _splits(dataset, root, counts)
    labels = _read_labels(dataset, splits) if dataset.label_column is not None else None
    sizes = {split: sum(len(part.numbers) for part in parts) for split, parts in splits.items()}
    if sizes[train] == 0:
        split = "training" if train else "testing"
        raise UserError(
            f"dataset.root={dataset.root}: no rows for {split} with dataset.test_fraction={dataset.test_fraction}"
        )
    parts = splits[train]
    key = key_of_files((_facts(dataset, root), train), root, files)
    images = _undecoded(dataset, parts, key)
    pixels, valid = cached_table(dataset.root, images, dataset.shape, cache)
    skipped = f", {images.count - len(valid)} skipped" if len(valid) < images.count else ""
    counted = f"{len(valid) if train else sizes[True]} to train, {sizes[False]} held out{skipped}"
    examples = Examples(torch.from_numpy(pixels), source=str(root), counts=counted)
    if labels is not None:
        numbers = torch.from_numpy(labels.of(parts)[valid])
        names = labels.classes + labels.unknown
        only_held_out = np.setdiff1d(labels.of(splits[False]), labels.of(splits[True]))
        classes = labels.classes if train else names
        examples = replace(examples, labels=numbers, classes=classes, held_out=[names[i] for i in only_held_out])
    return with_fingerprint(examples, cache / key)


def _facts(dataset: Parquet, root: Path) -> tuple[object, ...]:
    """Return all that the decoded images depend on besides the files."""
    return str(root.resolve()), dataset.shape, dataset.skip_broken, dataset.image_column, dataset.test_fraction


def _undecoded(dataset: Parquet, parts: list[Part], key: str) -> Undecoded[bytes | None]:
    names = [(part.file, int(number)) for part in parts for number in part.numbers]
    channels, height, width = dataset.shape
    return Undecoded(
        key=key,
        count=len(names),
        sources=partial(_contents, dataset, parts),
        decode=lambda content: _decode(content, height, width, channels),
        name=lambda i: f"row {names[i][1]} of {names[i][0]}",
        skip_broken=dataset.skip_broken,
    )


def _list_files(dataset: Parquet) -> tuple[Path, list[Path]]:
    """Return the folder of the files, and the files. Raise `UserError` if there are none."""
    dataset.check_root()
    root = Path(str(dataset.root)).expanduser()
    try:
        if root.is_file():
            return root.parent, [root]
        files = sorted(find_files(root, root, dataset.follow_links, {".parquet"})) if root.is_dir() else []
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"dataset.root={dataset.root}: cannot be read ({reason}); name another folder") from error
    if not files:
        raise UserError(f"dataset.root={dataset.root}: no .parquet file; name one, or a folder that contains some")
    return root, files


def _opened(dataset: Parquet, file: Path) -> "ParquetFile":
    """Open a file. Raise `UserError` if it cannot be read or lacks a column, or if pyarrow is not installed."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile, read_metadata  # optional: pip install 'ddpm-cli[parquet]'
    except ImportError as error:
        raise UserError("dataset=parquet: needs pyarrow; pip install 'ddpm-cli[parquet]'") from error
    try:
        if not file.is_file():
            raise OSError("not a file")  # opening a pipe would block
        metadata = read_metadata(file)
        leaves = {metadata.schema.column(i).path for i in range(metadata.num_columns)}
        distinct = [*leaves & {dataset.label_column}]  # of which a text is read once rather than for each row
        opened = ParquetFile(file, metadata=metadata, buffer_size=STREAMED, pre_buffer=False, read_dictionary=distinct)
        columns = opened.schema_arrow.names
        if not 0 <= opened.metadata.num_rows <= file.stat().st_size:
            raise ValueError(f"{opened.metadata.num_rows} rows in {file.stat().st_size} bytes")
    except (ArrowException, OSError, ValueError) as error:
        raise _unreadable(dataset, file, error) from error
    for key in ("image_column", "label_column"):
        name = getattr(dataset, key)
        if name is not None and name not in columns:
            null = ", or null" if key == "label_column" else ""
            allowed = f"one of the columns of {file.name}: {one_of(columns)}{null}"
            check(False, f"dataset.{key}", name, allowed)
    return opened


def _splits(dataset: Parquet, root: Path, counts: dict[Path, int]) -> dict[bool, list[Part]]:
    """Return the parts of the train split (True) and of the test split. `counts` are the rows of the files."""
    named: dict[str, list[Path]] = {"train": [], "test": [], "validation": []}
    for file in counts:
        found = SPLIT_NAME.findall(file.relative_to(root).as_posix())
        if found:
            named[found[-1].lower()].append(file)
    held_out = named["test"] or named["validation"]
    if named["train"] and held_out:
        return {
            train: [Part(file, np.arange(counts[file])) for file in files]
            for train, files in ((True, named["train"]), (False, held_out))
        }
    hashes = [
        np.array([zlib.crc32(f"{file.relative_to(root).as_posix()}:{row}".encode()) for row in range(count)])
        for file, count in counts.items()
    ]
    order = np.argsort(np.concatenate(hashes), kind="stable")
    is_test = np.zeros(len(order), dtype=bool)
    is_test[order[: round(dataset.test_fraction * len(order))]] = True
    by_file = np.split(is_test, np.cumsum([*counts.values()])[:-1])
    return {
        train: [Part(file, np.flatnonzero(test != train)) for file, test in zip(counts, by_file, strict=True)]
        for train in (True, False)
    }


def _read_labels(dataset: Parquet, splits: dict[bool, list[Part]]) -> Labels:
    """Return the labels of all rows of the files. Raise `UserError` for labels that are missing or out of range.

    Without names in the metadata, the classes are the values in the files for training, sorted. Rows that are split at
    random are in the same files.
    """
    files = list(dict.fromkeys(part.file for train in (True, False) for part in splits[train]))
    names = [_class_names(dataset, file) for file in files]
    values = {file: _label_values(dataset, file) for file in files}
    classes = names[0]
    if any(other != classes for other in names):
        raise UserError(f"dataset.root={dataset.root}: its files have different names of classes; name one data set")
    if classes is not None:
        for file, labels in values.items():
            for row, label in enumerate(labels):
                if type(label) is not int or not 0 <= label < len(classes):
                    raise _bad_label(dataset, file, row, label, f"in 0..{len(classes) - 1}, the named classes")
        return Labels(classes, [], {file: np.array(labels, dtype=np.int64) for file, labels in values.items()})
    trained = {label for part in splits[True] for label in values[part.file]}
    others = {label for labels in values.values() for label in labels} - trained
    kinds = [label for some in (trained, others) for label in sorted(some, key=lambda one: (str(type(one)), one))]
    if len(kinds) > MAX_CLASSES:
        raise UserError(
            f"dataset.label_column={dataset.label_column}: has more than {MAX_CLASSES} different values; name a column "
            "with classes, or null for no labels"
        )
    number = {label: i for i, label in enumerate(kinds)}
    by_file = {file: np.array([number[label] for label in labels], np.int64) for file, labels in values.items()}
    text = [str(label) for label in kinds]
    return Labels(text[: len(trained)], text[len(trained) :], by_file)


def _label_values(dataset: Parquet, file: Path) -> list[int | str]:
    """Return the labels of all rows as integers from 0 up or text. Raise `UserError` for other ones."""
    found: list[int | str] = []
    for batch in _batches(dataset, file, str(dataset.label_column), ROWS):
        for value in _values(batch):
            if type(value) not in (int, str) or (type(value) is int and value < 0):
                raise _bad_label(dataset, file, len(found), value, "a whole number from 0 up, or text")
            found.append(value)
    return found


def _values(array: Any) -> list[Any]:
    """Return the values of an array of Arrow, which may be encoded with a dictionary."""
    import pyarrow

    if not isinstance(array, pyarrow.DictionaryArray):
        return array.to_pylist()
    values = array.dictionary.to_pylist()
    return [None if i is None else values[i] for i in array.indices.to_pylist()]


def _class_names(dataset: Parquet, file: Path) -> list[str] | None:
    """Return the names of the classes in the metadata that Hugging Face writes; None if there are none."""
    metadata = _opened(dataset, file).schema_arrow.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[dataset.label_column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    valid = isinstance(names, list) and 0 < len(names) <= MAX_CLASSES and all(type(name) is str for name in names)
    return names if valid else None


def _batches(dataset: Parquet, file: Path, column: str, rows: int) -> Iterator[Any]:
    """Yield the values of a column as arrays of Arrow with at most `rows` values."""
    import pyarrow

    opened = _opened(dataset, file)
    left = opened.metadata.num_rows
    try:
        for batch in opened.iter_batches(rows, columns=[column], use_threads=False):
            left -= len(batch)
            yield batch.column(0)
        if left != 0:
            raise ValueError(f"{left} rows are missing")
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _unreadable(dataset, file, error) from error


def _contents(dataset: Parquet, parts: list[Part]) -> Iterator[bytes | None]:
    """Yield the encoded images of the rows of `parts`; None for a row without one."""
    from pyarrow import compute, types

    for part in parts:
        kind = _opened(dataset, part.file).schema_arrow.field(dataset.image_column).type
        nested = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        content = kind.field("bytes").type if nested else kind
        if not (types.is_binary(content) or types.is_large_binary(content)):
            raise UserError(
                f"dataset.image_column={dataset.image_column}: has values of type {kind} in {part.file.name}; name a "
                "column with the bytes of image files, or with structs that have a field bytes"
            )
        name = f"{dataset.image_column}.bytes" if nested else dataset.image_column
        wanted = set(part.numbers.tolist())
        for row, batch in enumerate(_batches(dataset, part.file, name, 1)):
            if row in wanted:
                value = compute.struct_field(batch, "bytes") if nested else batch
                yield value[0].as_py()


def _decode(content: bytes | None, height: int, width: int, channels: int) -> np.ndarray:
    if content is None:
        raise ValueError("it has no bytes, and a path in it is not followed")
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    return decode_image(content, height, width, channels)


def _bad_label(dataset: Parquet, file: Path, row: int, label: object, allowed: str) -> UserError:
    return UserError(
        f"dataset.root={dataset.root}: row {row} of {file}: {dataset.label_column}={str(label)[:100]!r}: must be "
        f"{allowed}; remove the row, or use no labels by dataset.label_column=null"
    )


def _unreadable(dataset: Parquet, file: Path, error: Exception) -> UserError:
    return UserError(
        f"dataset.root={dataset.root}: {file} cannot be read as Parquet ({one_line(error)[:300]}); restore this file"
    )
