"""The listing: all photos of all inputs with their labels, before anything is decoded.

1. Each input is walked in sorted order (`raygan.data.sources`) and sorted into image files, Parquet files, and files
   left aside, which are counted by reason.
2. Paths of image files and columns of Parquet files give labels (`raygan.data.labels`). A photo without one is left
   aside, too.
3. What remains is one table with a row for every photo. `Listing.describe` says how the labels were found.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from raygan import addresses
from raygan.data import archives, kinds, layouts
from raygan.data.kinds import is_image_name
from raygan.data.labels import Guess, Layout, check_guess, check_labels, normalize
from raygan.data.rows import PhotosElsewhereError, Rows, read_rows
from raygan.data.sources import File, Source, check_apart, files, open_source
from raygan.errors import ConfigurationError

SCHEMA = pa.schema(
    [
        ("source", pa.int32()),  # index into Listing.sources
        ("path", pa.binary()),  # relative to the source's root, in the file system's own bytes
        ("row", pa.int64()),  # row of a Parquet file; -1 if the file itself is the photo
        ("size", pa.int64()),  # bytes; 0 for Parquet rows
        ("changed", pa.int64()),  # modification time in ns; 0 if unknown
        ("label", pa.string()),
    ]
)

#: How to correct a guess from file names.
_FLAGS = ("name one class with --label", "take them as they are with --layout names")


@dataclass
class Listing:
    """All photos found, and what was left aside.

    Attributes:
        sources: the inputs.
        photos: a table of `SCHEMA`.
        ignored: files left aside, by reason.
        layouts: for each source, where labels come from, in words.
    """

    sources: list[Source]
    photos: pa.Table
    ignored: Counter[str] = field(default_factory=Counter)
    layouts: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """The layout and label counts in words, one line per source, and what is left aside."""
        lines = []
        for number, source in enumerate(self.sources):
            found = self.photos.filter(pc.equal(self.photos["source"], number))["label"]
            counts = sorted(_counts(found).items(), key=lambda item: (-item[1], item[0]))
            named = ", ".join(f"{count:,} {label}" for label, count in counts[:12])
            more = f" and {len(counts) - 12} more labels" if len(counts) > 12 else ""
            lines.append(f"{source.address}: {self.layouts[number]}: {named}{more}")
        return "\n".join([*lines, *([self.aside()] if self.ignored else [])])

    def aside(self) -> str:
        """What is left aside, in words."""
        counts = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))
        each = (f"{kind} ({n:,}{'; ' + kinds.ADVICE[kind] if kind in kinds.ADVICE else ''})" for kind, n in counts)
        return f"left aside: {', '.join(each)}"

    def decompressed(self, folder: str) -> list[Source]:
        """The sources, ready to be read: compressed tars with a plain copy in a folder.

        Raises:
            ConfigurationError: the folder is remote.
        """
        packed = next((source for source in self.sources if source.compressed), None)
        if packed and addresses.is_remote(folder):
            raise ConfigurationError(
                f"--input: {packed.address} has to be decompressed beside a local --output: unpack it first"
            )
        return [
            replace(source, plain=archives.plain_copy(source.root, folder)) if source.compressed else source
            for source in self.sources
        ]


def find_photos(
    inputs: Sequence[str],
    *,
    label: str | None = None,
    layout: Layout = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    exclude: str | None = None,
) -> Listing:
    """List the photos of all inputs with their labels, in sorted order.

    Args:
        inputs: folders, archives, globs, files or URIs.
        label: the label of every photo, if given.
        layout: where labels come from.
        image_column: column of photos in Parquet files; None to guess it.
        label_column: column of labels in Parquet files; None to guess it.
        exclude: the output folder, which is not an input even if it lies inside one.

    Raises:
        ConfigurationError: an input is missing or empty, or has no labels. The message names it.
    """
    if label is not None and not normalize(label):
        raise ConfigurationError(f"--label: {label!r} has no letter or digit")
    listing = Listing([], SCHEMA.empty_table())
    tables = []
    names = [_class_of(address) for address in inputs]
    several = names if len(set(names)) == len(names) > 1 else []
    for number, address in enumerate(inputs):
        source = open_source(address, image_column or "", label_column or "")
        check_apart(source, exclude)
        found = sorted(files(source, exclude), key=lambda file: os.fsencode(file.path))
        if not found:
            raise ConfigurationError(f"--input: there are no files in {address}")

        def guess(paths: Sequence[str], source: Source = source) -> Guess:
            own = _class_of(source.root)
            return layouts.guess(
                paths, source.address, label=label, layout=layout, folder=own, inputs=several if own in several else ()
            )

        sorter = _Sorter(source, number, listing.ignored, label, layout, guess)
        tables.append(sorter.sort(found))
        listing.sources.append(source)
        listing.layouts.append("; ".join(dict.fromkeys(sorter.layouts)))
    listing.photos = pa.concat_tables(tables).combine_chunks()
    if not listing.photos.num_rows:
        aside = f" ({listing.aside()})" if listing.ignored else ""
        raise ConfigurationError(f"--input: there are no photos in {', '.join(inputs)}{aside}")
    check_labels(listing.photos["label"].unique().to_pylist())
    return listing


def _class_of(address: str) -> str:
    """The name of an input's folder, or of an archive without its ending."""
    name = addresses.name(address)
    ending = next((ending for ending in kinds.ARCHIVE_ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def _counts(found: pa.ChunkedArray) -> dict[str, int]:
    return {each["values"]: each["counts"] for each in pc.value_counts(found).to_pylist()}


# ---------------------------------------------------------------- from files to photos


class _Sorter:
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
        self.named: set[str] = set()  # paths of image files that rows name

    def sort(self, found: Sequence[File]) -> pa.Table:
        """The photos among these files, as a table of `SCHEMA`."""
        photos, tables = [], []
        about = layouts.annotation_paths([file.path for file in found])
        for file in found:
            reason = kinds.left_aside(file.path) if file.regular else "not a regular file"
            reason = "annotation" if file.path in about and reason is None else reason
            if reason:
                self.ignored[reason] += 1
            elif kinds.ending(file.path) == ".parquet":
                tables.append(file)
            else:
                photos.append(file)
        if self.wanted not in ("auto", "columns"):
            self.ignored["Parquet file"] += len(tables)
            tables = []
        rows = self._rows(tables)
        if self.elsewhere and not rows and not photos:
            raise self.elsewhere
        if self.wanted == "columns":
            self.ignored["not Parquet"] += len(photos)
            photos = []
        photos = [file for file in photos if file.path not in self.named]
        known = {label for part in rows for label in part["label"].unique().to_pylist()}
        parts = [*rows, *([self._files(photos, known)] if photos else [])]
        self.ignored -= Counter()  # without zeros
        return pa.concat_tables(parts) if parts else SCHEMA.empty_table()

    def _files(self, photos: Sequence[File], beside: set[str]) -> pa.Table:
        """The photos among image files, and files that may be images.

        Beside Parquet files, whose labels are given, only photos with the same labels count: a logo has none.
        """
        named = [file.path for file in photos if is_image_name(file.path)]
        try:
            guess = self.guess(named or [file.path for file in photos]) if named or not beside else None
        except ConfigurationError:
            if not beside:
                raise
            guess = None
        found = [guess.label_of(file.path) if guess else None for file in photos]
        found = [label if not beside or label in beside else None for label in found]
        for file, label in zip(photos, found, strict=True):
            if not label:
                self.ignored["no label" if is_image_name(file.path) else "not an image"] += 1
        if guess is None:
            return SCHEMA.empty_table()
        self.layouts.append(guess.how)
        if not guess.certain:
            check_guess(guess.how, Counter(label for label in found if label), _FLAGS)
        kept = [(file, _as_text(label)) for file, label in zip(photos, found, strict=True) if label]
        return self._table([file for file, _ in kept], [label for _, label in kept])

    def _rows(self, tables: Sequence[File]) -> list[pa.Table]:
        """The photos of Parquet files, a table for each file."""
        read = [self._read(file) for file in tables]
        names = next((part.names for part in read if part and part.names), None)
        if names:  # parts of one data set, some of which lack its metadata
            read = [
                self._read(file, names) if part and not part.names else part
                for file, part in zip(tables, read, strict=True)
            ]
        self.ignored["Parquet without photos"] += sum(part is None for part in read)
        parts = [part for part in read if part and part.how]
        damaged = [part for part in read if part and not part.how]
        by_path = [part for part in parts if part.paths is not None]
        if by_path:
            guess = self.guess([path for part in by_path for path in part.paths or () if path])
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
        except (OSError, pa.ArrowException):
            # List the whole file as one photo: reading it will find it unreadable.
            return Rows([file], [-1], "", [self.label or "unknown"])

    def _check(self, parts: Sequence[Rows], *, guessed: bool, flags: Sequence[str]) -> None:
        self.layouts += [part.how for part in parts]
        if guessed:
            check_guess(parts[0].how, Counter(label for part in parts for label in part.labels if label), flags)

    def _of_rows(self, part: Rows) -> pa.Table:
        found = zip(part.files, part.rows, part.labels, strict=True)
        kept = [(file, row, label) for file, row, label in found if label]
        self.named |= {file.path for file, row in zip(part.files, part.rows, strict=True) if row < 0}
        self.ignored += part.ignored
        self.ignored["no label"] += len(part.files) - len(kept) - part.ignored["several labels"]
        return self._table([file for file, _, _ in kept], [label for *_, label in kept], [row for _, row, _ in kept])

    def _table(self, found: Sequence[File], labels: Sequence[str], rows: Sequence[int] | None = None) -> pa.Table:
        rows = [-1] * len(found) if rows is None else rows
        return pa.table(
            {
                "source": [self.number] * len(found),
                "path": [os.fsencode(file.path) for file in found],
                "row": rows,
                "size": [0 if row >= 0 else file.size for file, row in zip(found, rows, strict=True)],
                "changed": [file.changed for file in found],
                "label": labels,
            },
            schema=SCHEMA,
        )


def _as_text(label: str) -> str:
    """A label without surrogates: bytes of a name that aren't UTF-8 are escaped."""
    return label.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
