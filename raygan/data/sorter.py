"""Sorts one input's files into labeled photos and files left aside, which are counted by reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raygan.data import kinds, tables
from raygan.data.arrow import counts
from raygan.data.files import FILES, File, Paths, table_of
from raygan.data.folders import annotation_paths, folders_of_raygan
from raygan.data.kinds import is_image_name
from raygan.data.labels import Guess, Layout, check_guess, normalize, says_animal
from raygan.data.rows import PhotosElsewhereError, Rows, read_rows
from raygan.data.sources import Source
from raygan.errors import ConfigurationError, reason

SCHEMA = pa.schema(
    [
        ("source", pa.int32()),  # index into Listing.sources
        ("path", pa.binary()),  # relative to the source's root, in the file system's own bytes
        ("row", pa.int64()),  # row of a Parquet file; -1 if the file itself is the photo
        ("size", pa.int64()),  # bytes; 0 for Parquet rows
        ("changed", pa.int64()),  # modification time in ns, or see `archives.Member`; 0 if unknown
        ("label", pa.string()),
    ]
)

#: How to correct a guess from tables, and one from file names.
_TABLE_FLAGS = ("say which column it is with --label-column", "name one class with --label")
_FLAGS = ("name one class with --label", "take them as they are with --layout names")


class Sorter:
    """Sorts one source's files into photos with labels, and files left aside."""

    def __init__(
        self,
        source: Source,
        number: int,
        ignored: Counter[str],
        label: str | None,
        layout: Layout,
        guess: Callable[[Sequence[str]], Guess],
    ):
        self.source, self.number, self.ignored = source, number, ignored
        self.label, self.wanted, self.guess = None if label is None else normalize(label), layout, guess
        self.layouts: list[str] = []
        self.elsewhere: PhotosElsewhereError | None = None
        self.damaged: ConfigurationError | None = None  # if all Parquet files are
        self.named: set[str] = set()  # paths of image files that rows name
        self.has_columns = False  # Parquet files or tables say something about photos
        self.objections: list[str] = []  # why tables about photos can't be read

    def sort(self, found: pa.Table) -> pa.Table:
        """The photos among files, given as a table of `FILES`, as a table of `SCHEMA`."""
        paths = Paths(found["path"])
        about, ours = annotation_paths(paths), tuple(f"{folder}/" for folder in folders_of_raygan(paths))
        if "/" in ours:
            raise ConfigurationError(
                f"--input: {self.source.address} holds shards or runs already, not photos: train on shards with --data"
            )

        def reason_of(path: str, regular: bool) -> str | None:
            why = kinds.left_aside(path) if regular else "not a regular file"
            return "made by raygan" if path.startswith(ours) else why or ("annotation" if path in about else None)

        why = pa.array(map(reason_of, paths, found["regular"].to_pylist()), pa.string())
        self.ignored.update(counts(why))
        are_rows = pa.array((kinds.ending(path) in (".parquet", ".pq") for path in paths), pa.bool_())
        parquet = [
            File(**{**file, "path": os.fsdecode(file["path"])})
            for file in found.filter(pc.and_(why.is_null(), are_rows)).to_pylist()
        ]
        photos = found.filter(pc.and_not(why.is_null(), are_rows))
        if self.wanted not in ("auto", "columns"):
            self.ignored["Parquet file"] += len(parquet)
            parquet = []
        rows = self._rows(parquet)
        self.has_columns = bool(rows)
        if self.elsewhere and not rows and not photos.num_rows:
            raise self.elsewhere
        if self.damaged and not photos.num_rows:
            raise self.damaged
        if self.wanted == "columns":
            self.ignored["not Parquet"] += photos.num_rows
            photos = FILES.empty_table()
        if self.named:
            photos = photos.filter(pa.array((path not in self.named for path in Paths(photos["path"])), pa.bool_()))
        known = {label for part in rows for label in part["label"].unique().to_pylist()}
        parts = [*rows, *([self._files(photos, known)] if photos.num_rows else [])]
        self.ignored -= Counter()  # without zeros
        return pa.concat_tables(parts) if parts else SCHEMA.empty_table()

    def _files(self, photos: pa.Table, beside: set[str]) -> pa.Table:
        """The photos among image files, and files that may be images.

        Beside Parquet files, whose labels are given, only photos with the same labels count: a logo has none.
        """
        paths = Paths(photos["path"])
        are_images = pa.array(map(is_image_name, paths), pa.bool_())
        named = Paths(photos["path"].filter(are_images))
        flags = _FLAGS
        try:
            guess = self.guess(named or paths) if named or not beside else None
        except ConfigurationError as error:
            guess = None
            if not beside:
                guess, flags = self._by_tables(paths, named), _TABLE_FLAGS
                if guess is None:
                    raise self.elsewhere or ConfigurationError(
                        f"{'; '.join([str(error), *self.objections])}{also(self.ignored)}"
                    ) from None
        if guess and not beside and self._tables_first(guess, named) and (better := self._by_tables(paths, named)):
            guess, flags = better, _TABLE_FLAGS
        found = [guess.label_of(path) if guess else None for path in paths]
        found = [label if label and (not beside or label in beside) else None for label in found]
        labels = pa.array([_as_text(label) if label else None for label in found], pa.string())
        labeled = labels.is_valid()
        for why, those in (("no label", are_images), ("not an image", pc.invert(are_images))):
            self.ignored[why] += pc.sum(pc.and_not(those, labeled)).as_py()
        if guess is None:
            return SCHEMA.empty_table()
        unsure = pc.sum(pc.and_not(labeled, are_images)).as_py()
        note = f" ({unsure:,} of the files have no image extension: only those that are images will count)"
        self.layouts.append("; ".join([guess.how + (note if unsure and named else ""), *self.objections]))
        if self.source.archive and any(label and _as_text(label) != label for label in set(found)):
            raise ConfigurationError(
                f"--input: {self.source.address} has labels in names of a code page that it doesn't name: unpack it "
                f"with that code page (unzip -O CP936 for Chinese, CP866 for Cyrillic), or give --label"
            )
        if not guess.certain:
            check_guess(guess.how, Counter(label for label in found if label), flags)
        return self._table(photos.filter(labeled), labels.drop_null())

    def _tables_first(self, guess: Guess, named: Sequence[str]) -> bool:
        """Whether tables, if there are any, know better than folders and names: one label that is no animal's."""
        if self.label is not None or self.source.label_column:
            return self.label is None
        labels = {label for path in named if (label := guess.label_of(path))}
        return len(labels) == 1 and not says_animal(labels.pop())

    def _by_tables(self, paths: Sequence[str], named: Sequence[str]) -> Guess | None:
        found, objections = tables.guess(named, self._tables(paths), self.source.label_column)
        self.objections += objections
        self.has_columns |= found is not None
        return found

    def _tables(self, paths: Sequence[str]) -> dict[str, bytes]:
        """The content of the tables among files that can be read, if no flag says that labels are elsewhere.

        A competition's sample of answers is none: its labels are made up.
        """
        csv = [path for path in paths if kinds.ending(path) in kinds.TABLES]
        content = {}
        for path in csv:
            if self.wanted == "auto" and "submission" not in path.lower():
                try:
                    content[path] = self.source.read(os.fsencode(path))
                except OSError as error:
                    self.objections.append(f"{path} can't be read: {reason(error)}")
        return content

    def _rows(self, found: Sequence[File]) -> list[pa.Table]:
        """The photos of Parquet files, a table for each file."""
        read = [self._read(file) for file in found]
        names = next((part.names for part in read if part and part.names), None)
        if names:  # parts of one data set, some of which lack its metadata
            read = [
                self._read(file, names) if part and not part.names else part
                for file, part in zip(found, read, strict=True)
            ]
        self.ignored["Parquet without photos"] += sum(part is None for part in read)
        parts = [part for part in read if part and part.how]
        damaged = [part for part in read if part and not part.how]
        self.damaged = None if parts else self.damaged
        by_path = [part for part in parts if part.paths is not None]
        if by_path:
            try:
                guess = self.guess([path for part in by_path for path in part.paths or () if path])
            except ConfigurationError as error:
                flag = by_path[0].flags[0]
                raise ConfigurationError(f"{error}, or {flag}") if flag else error from None
            for part in by_path:
                part.labels = [guess.label_of(path) if path else None for path in part.paths or ()]
                part.how += f": {guess.how}"
            self._check(by_path, guessed=not guess.certain, flags=_FLAGS)
        columns = [part for part in parts if part.paths is None]
        if columns:
            self._check(columns, guessed=any(part.guessed for part in columns), flags=columns[0].flags)
        return [self._of_rows(part) for part in [*parts, *damaged]]

    def _read(self, file: File, names: Sequence[str] | None = None) -> Rows | None:
        try:
            return read_rows(self.source, file, self.label, names)
        except PhotosElsewhereError as error:  # a table about photos, which matters only if there are no others
            self.elsewhere = error
            return None
        except (OSError, pa.ArrowException) as error:
            why = kinds.why_unreadable(lambda: self.source.read(os.fsencode(file.path), 512), error)
            self.damaged = ConfigurationError(f"--input: cannot read {file.path}: {why}")
            # List the whole file as one photo: reading it will find it unreadable.
            return Rows([file], [-1], "", [self.label or "unknown"])

    def _check(self, parts: Sequence[Rows], *, guessed: bool, flags: Sequence[str]) -> None:
        self.layouts += [part.how for part in parts]
        if guessed:
            check_guess(parts[0].how, Counter(label for part in parts for label in part.labels if label), flags)

    def _of_rows(self, part: Rows) -> pa.Table:
        labels, rows = pa.array(part.labels, pa.string()), np.array(part.rows, np.int64)
        labeled = labels.is_valid()
        self.named |= {file.path for file, row in zip(part.files, part.rows, strict=True) if row < 0}
        self.ignored += part.ignored
        self.ignored["no label"] += labels.null_count - part.ignored["several labels"]
        return self._table(table_of(part.files).filter(labeled), labels.drop_null(), rows[pc.indices_nonzero(labeled)])

    def _table(self, found: pa.Table, labels: pa.Array, rows: np.ndarray | None = None) -> pa.Table:
        numbers = np.full(len(labels), -1) if rows is None else rows
        columns = {
            "source": np.full(len(labels), self.number, np.int32),
            "path": found["path"],
            "row": numbers,
            "size": pc.if_else(numbers >= 0, 0, found["size"]),
            "changed": found["changed"],
            "label": labels,
        }
        return pa.table(columns, schema=SCHEMA)


def _as_text(label: str) -> str:
    """A label without surrogates: bytes of a name that aren't UTF-8 are escaped."""
    return label.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def aside(ignored: Counter[str]) -> str:
    """What is left aside, in words."""
    found = sorted((+ignored).items(), key=lambda item: (-item[1], item[0]))
    each = (f"{kind} ({n:,}{'; ' + kinds.ADVICE[kind] if kind in kinds.ADVICE else ''})" for kind, n in found)
    return f"left aside: {', '.join(each)}"


def also(ignored: Counter[str]) -> str:
    """For the end of a refusal: what is left aside, since that may be what the user meant."""
    return f" ({aside(ignored)})" if +ignored else ""
