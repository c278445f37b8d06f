"""Parquet files in a listing: which photos they hold or name, and what their columns say about labels.

A photo is a row with encoded bytes, or a file that a row names by its path relative to the Parquet file. Bytes of
photos are never read here.
"""

from __future__ import annotations

import os
import posixpath
import re
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow.parquet as pq

from raygan.data import columns
from raygan.data.columns import Columns
from raygan.data.files import File
from raygan.data.labels import normalize
from raygan.data.sources import Source, shown
from raygan.errors import ConfigurationError


class PhotosElsewhereError(ConfigurationError):
    """A file holds no photos, and those that it names aren't there."""


@dataclass
class Rows:
    """The photos of one Parquet file.

    Attributes:
        files: of each photo, the file it is in: the Parquet file, or one that a row names.
        rows: of each photo, its row in the Parquet file; -1 for a file.
        how: where photos are, and where labels come from, in words.
        labels: of each photo, spelled; None for a photo without one.
        paths: of each photo, if its label is to be found there and not in `labels`.
        guessed: the labels are from a column that no flag names.
        flags: what is likeliest to correct the guess.
        names: of the classes, where labels are numbers and the file's metadata names them.
        ignored: rows left aside, by reason.
    """

    files: list[File]
    rows: Sequence[int]
    how: str
    labels: Sequence[str | None] = ()
    paths: list[str] | None = None
    guessed: bool = False
    flags: tuple[str, str] = ("", "")
    names: Sequence[str] | None = None
    ignored: Counter[str] = field(default_factory=Counter)


def read_rows(source: Source, file: File, label: str | None, names: Sequence[str] | None = None) -> Rows | None:
    """The photos of a Parquet file; None if it holds none.

    Args:
        source: where it is.
        file: the Parquet file.
        label: the label of every photo, spelled, if given.
        names: of the classes, if labels are numbers that the file's own metadata doesn't name.

    Raises:
        PhotosElsewhereError: the photos that it names don't exist.
        ConfigurationError: there is no column of labels, or one is wrong.
        OSError, pa.ArrowException: the file is damaged.
    """
    name = shown(os.fsencode(file.path))
    with source.parquet(os.fsencode(file.path)) as parquet:
        chosen = columns.choose(parquet.schema_arrow, source.image_column, source.label_column)
        embedded = chosen.image is not None and _has_bytes(parquet, chosen.image)
        _check_once(parquet.schema_arrow.names, name, chosen.image, "--image-column")
        _check_once(parquet.schema_arrow.names, name, None if label else chosen.label, "--label-column")
        texts = _paths(parquet, chosen) if not embedded or (label is None and chosen.label is None) else {}
        naming = next((column for column, found in texts.items() if columns.are_file_names(found)), None)
        if embedded:
            count = parquet.metadata.num_rows
            rows = Rows([file] * count, range(count), f"Parquet rows, photos in column {chosen.image}")
            kept = None
        elif naming is not None:
            named = _named(source, file, name, naming, texts[naming])
            kept = [number for number, photo in enumerate(named) if photo is not None]
            rows = Rows([photo for photo in named if photo], [-1] * len(kept), f"files that column {naming} names")
            rows.ignored["no photo in the row"] = len(named) - len(kept)
        else:
            return None
        rows.names = columns.class_names(parquet.schema_arrow, chosen.label or "") or names
        _label(rows, parquet, chosen, name, label, {column: texts[column] for column in [naming] if column}, kept)
    return rows


def _label(
    rows: Rows,
    parquet: pq.ParquetFile,
    chosen: Columns,
    name: str,
    label: str | None,
    naming: dict[str, list[str | None]],
    kept: list[int] | None,
) -> None:
    """Find the labels of the photos, or the paths that have them. kept: numbers of the rows that are photos."""

    def of_photos(values: Sequence[str | None]) -> list[str | None]:
        return list(values) if kept is None else [values[number] for number in kept]

    schema = parquet.schema_arrow
    if label is not None:
        rows.labels, rows.how = [label] * len(rows.files), f"{rows.how}, --label for all"
        return
    partition = _partition(name)
    if chosen.label is not None:
        values = parquet.read(columns=[chosen.label])[chosen.label]
        as_text = columns.text_values(values) if chosen.label in chosen.paths else []
        if not columns.are_file_names(as_text):
            found, why = columns.row_labels(values, rows.names, chosen.label, name)
            rows.labels = of_photos(found.to_pylist())
            rows.ignored["several labels"] = why["several labels"] if kept is None else 0
            rows.how += f", labels in column {chosen.label}"
            rows.guessed = not chosen.given
            candidates = ", ".join((chosen.label, *chosen.others))
            rows.flags = (f"say which column it is with --label-column ({candidates})", "name one class with --label")
            return
        naming = {chosen.label: as_text}
    if partition is not None:
        rows.labels, rows.how = [partition] * len(rows.files), f"{rows.how}, labels in folder names such as label=cat"
    elif naming:
        ((column, values),) = naming.items()
        rows.paths = [path or "" for path in of_photos(values)]
        others = [each for each in schema.names if each not in (column, chosen.image)]
        rows.flags = (f"say which column has them with --label-column ({', '.join(others)})" if others else "", "")
        rows.how += f", by the paths in column {column}"
    else:
        raise ConfigurationError(
            f"--input: no label column found in {name}; its columns are {', '.join(schema.names)}: "
            f"name one with --label-column, or give --label"
        )


def _check_once(names: Sequence[str], file: str, column: str | None, flag: str) -> None:
    """Raise ConfigurationError if the file has several columns of the name."""
    if column is not None and names.count(column) > 1:
        raise ConfigurationError(
            f"--input: {file} has {names.count(column)} columns named {column!r}: rename all but one, or name another "
            f"with {flag}"
        )


def _partition(path: str) -> str | None:
    """The label in a folder's name such as ``label=cat``, as Spark writes it."""
    parts = [part.partition("=") for part in path.split("/")[:-1]]
    values = [urllib.parse.unquote(value) for key, _, value in parts if columns.is_label_name(key) and value]
    return normalize(values[-1]) if values else None


def _has_bytes(parquet: pq.ParquetFile, column: str) -> bool:
    """Whether any row has the bytes of a photo, as far as the file's own statistics tell."""
    metadata = parquet.metadata
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        for chunk in (group.column(number) for number in range(group.num_columns)):
            if chunk.path_in_schema in (column, f"{column}.bytes"):
                known = chunk.statistics is not None and chunk.statistics.has_null_count
                # Without statistics: nothing but nulls takes less than a byte per row.
                empty = (
                    chunk.statistics.null_count
                    if known
                    else group.num_rows * (chunk.total_uncompressed_size < group.num_rows)
                )
                if empty < chunk.num_values:
                    return True
    return bool(metadata.num_rows == 0)


def _paths(parquet: pq.ParquetFile, chosen: Columns) -> dict[str, list[str | None]]:
    """The text of each column that may name files, the column of photos first."""
    found = {}
    for column in sorted(chosen.paths, key=lambda column: column != chosen.image):
        leaf = column if columns.is_text(parquet.schema_arrow.field(column).type) else f"{column}.path"
        found[column] = columns.text_values(parquet.read(columns=[leaf])[column])
    return found


def _named(source: Source, file: File, name: str, column: str, values: Sequence[str | None]) -> list[File | None]:
    """The file that each row names; None for a row that names none.

    Raises PhotosElsewhereError if no file exists.
    """
    folder = posixpath.dirname(file.path)
    inside = posixpath.join(source.root, "")  # where absolute paths may lead, too
    spelled = [path.replace("\\", "/") if path else None for path in values]
    whole = [posixpath.normpath(posixpath.join(folder, path)) if path else None for path in spelled]
    joined = [path.removeprefix(inside) if path else None for path in whole]
    wrong = {number: reason for number, path in enumerate(joined) if path and (reason := _leads_out(path))}
    wanted = [path for path in joined if path]
    there = {} if wrong else dict(zip(wanted, source.look(wanted), strict=True))
    if not any(there.values()):
        number = next(iter(wrong), next(number for number, path in enumerate(joined) if path))
        why = wrong.get(number, "not there, seen from this file: put the photos there")
        raise PhotosElsewhereError(
            f"--input: {name} has no photos but their paths in column {column}, and {values[number]!r} is {why}, or "
            f"give a file that contains them"
        )
    # One that is gone is listed, and found unreadable when it is read.
    return [None if path is None else there[path] or File(path, 0, 0, regular=True) for path in joined]


def _leads_out(path: str) -> str:
    """Why a path, seen from the input, is not read; empty if it is."""
    if re.match(r"[a-zA-Z][\w+.-]*:/", path):
        return "on another machine: download the photos"
    if path.startswith(("/", "../")):
        return "outside of the input: give the folder that holds both to --input, with relative paths"
    return ""
