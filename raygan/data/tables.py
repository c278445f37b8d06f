"""Labels from tables beside photos, such as a competition's ``labels.csv`` or a hub's ``metadata.jsonl``.

A table counts only where neither several folders nor file names tell the labels. It names photos by their paths, their
names, or their names without endings. A name that several photos share stands for none of them; whether an ending has
capitals makes no difference.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from raygan.data import columns
from raygan.data.kinds import ending, split_path, without_ending
from raygan.data.labels import Guess
from raygan.errors import ConfigurationError

_DELIMITERS = ",;\t|"

#: A whole number of more digits than a float keeps.
_LONG_NUMBER = r"^[-+]?\d{16,}$"


def guess(paths: Sequence[str], tables: Mapping[str, bytes], label_column: str = "") -> tuple[Guess | None, list[str]]:
    """How tables give the labels of photos, None if they give none; and why tables about photos don't, in words.

    Args:
        paths: of the photos, relative to the input.
        tables: content by path, relative to the input.
        label_column: the column of labels; empty to guess it.
    """
    photos = _Photos(paths)
    found: dict[str, set[str]] = {}
    how, objections = [], []
    for name, content in tables.items():
        try:
            table = _read(name, content, partial(photos.find, folder=posixpath.dirname(name)))
        except ValueError as error:
            objections.append(f"{name} {error}")
            continue
        naming, named = _naming(photos, name, table) if table else ("", [])
        if table is None or not any(named):
            continue
        try:
            column, labels = _labels(table.drop_columns([naming]), label_column, name)
        except ConfigurationError as error:
            objections.append(str(error).removeprefix("--input: "))
            continue
        for path, label in zip(named, labels.to_pylist(), strict=True):
            if path and label:
                found.setdefault(path, set()).add(label)
        how.append(f"column {column} of {name}, photos by its column {naming}")
    certain = {path: min(labels) for path, labels in found.items() if len(labels) == 1}
    if not certain:
        what = "several labels for each photo" if found else "no label of a photo"
        nothing = f"{', '.join(list(tables)[:3])} {'has' if len(tables) == 1 else 'have'} {what}"
        return None, objections or ([nothing] if tables else [])
    return Guess(f"labels in {'; '.join(how)}", certain.get, certain=bool(label_column)), objections


def _labels(table: pa.Table, label_column: str, name: str) -> tuple[str, pa.ChunkedArray]:
    """The column of labels, and what it says. Raises ConfigurationError if there is none, or it has no labels."""
    column = columns.choose(table.schema, label=label_column).label
    if column is None:
        some = ", ".join([*table.column_names[:8], *(["…"] if table.num_columns > 8 else [])])
        raise ConfigurationError(f"{name} has no column of labels ({some}): if it has, name it with --label-column")
    return column, columns.row_labels(table[column], None, column, name)[0]


class _Photos:
    """Photos by what tables call them."""

    def __init__(self, paths: Sequence[str]):
        self._whole: dict[str, str] = {}
        self._short: dict[str, str | None] = {}
        for path in paths:
            parts = split_path(_composed(path))
            whole, short = "/".join(parts), parts[-1] if parts else ""
            for key in (whole, without_ending(whole)):
                self._whole.setdefault(key, path)
            for key in {short, without_ending(short)}:
                self._short[key] = None if key in self._short else path

    def find(self, value: str | None, folder: str) -> str | None:
        """The path of the photo that a table in a folder means; None for none, or for one of several."""
        if not value:
            return None
        path = posixpath.normpath(_composed(value).replace("\\", "/"))
        found = self._find(path, folder)
        if found is None:  # 1.jpg in the table may be 1.JPG on the disk
            other = self._find(without_ending(path), folder)
            found = other if other and ending(other) == ending(path) else None
        return found

    def _find(self, path: str, folder: str) -> str | None:
        below = self._whole.get(posixpath.join(_composed(folder), path)) or self._whole.get(path)
        return below or self._short.get(posixpath.basename(path))


def _composed(name: str) -> str:
    """One spelling of a name: macOS stores an accent apart from its letter, tables have them as one."""
    return unicodedata.normalize("NFC", name)


def _naming(photos: _Photos, name: str, table: pa.Table) -> tuple[str, list[str | None]]:
    """The column that names the most photos, and the path of the photo of each row.

    A photo counts once: classes 0 and 1 name ``0.jpg`` and ``1.jpg`` again and again.
    """
    folder = posixpath.dirname(name)
    found = {}
    for column in table.column_names:
        values = pc.cast(table[column], pa.string()).to_pylist()
        found[column] = [photos.find(value, folder) for value in values]
    best = max(found, key=lambda column: len(set(found[column]) - {None}))
    return best, found[best]


def _read(name: str, content: bytes, is_photo: Callable[[str], object]) -> pa.Table | None:
    """A table with names of columns; None if the content is none.

    Args:
        name: of the file.
        content: of the file.
        is_photo: whether a value names a photo. If one in the first row does, that is no row of names.

    Raises:
        ValueError: it can't be read. The message goes on after its name.
    """
    try:
        text = _text(content)
        names, *rows = _json_rows(text) if name.lower().endswith(".jsonl") else _csv_rows(text) or [[]]
        names = [name.strip() for name in names]
        if any(map(is_photo, names)):
            names, rows = [f"#{number}" for number in range(1, len(names) + 1)], [names, *rows]
        rows = [row for row in rows if len(row) == len(names)]
        twice = next((each for each in names if names.count(each) > 1), None)
        if twice is not None and rows:
            raise ValueError(f"has several columns named {twice!r}: rename them")
        return pa.table(dict(zip(names, _columns(rows), strict=True))) if len(names) > 1 and rows else None
    except UnicodeError:
        raise ValueError("is not UTF-8: save it in this encoding") from None
    except csv.Error as error:
        raise ValueError(f"is damaged: {error}") from None


def _text(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 that says so. Raises UnicodeError."""
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = content.decode("utf-16" if utf16 else "utf-8-sig")
    if "\0" in text:  # UTF-16 that doesn't say so
        raise UnicodeError
    return text


def _csv_rows(text: str) -> list[list[str]]:
    csv.field_size_limit(len(text) + 1)  # a row may have an embedding
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row]


def _json_rows(text: str) -> list[list[str]]:
    """The names, then the rows, of an object on each line. Lists and objects inside it are no labels."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError):
            raise ValueError(f"is damaged: line {number} is no JSON") from None
    if not all(isinstance(each, dict) for each in found):
        return [[]]
    names = list(dict.fromkeys(name for each in found for name in each))
    values = [[each.get(name) for name in names] for each in found]
    return [names, *(["" if v is None or isinstance(v, list | dict) else str(v) for v in row] for row in values)]


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[pa.Array]:
    """The columns: numbers, or text as it is, with null for a missing value."""
    for values in zip(*rows, strict=True):
        texts = pa.array([None if columns.is_missing(value) else value.strip() for value in values], pa.string())
        try:
            numbers = texts.cast(pa.float64())
        except pa.ArrowInvalid:
            yield texts
            continue
        try:
            whole = texts.cast(pa.int64())
        except pa.ArrowInvalid:
            long = pc.any(pc.match_substring_regex(texts, _LONG_NUMBER)).as_py()
            yield texts if long else numbers  # as floats, such numbers would become equal
            continue
        # 007 is the name of a file, or a code.
        yield whole if whole.cast(pa.string()).equals(texts) else texts
