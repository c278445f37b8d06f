"""The listing: all photos of all inputs with their labels, before anything is decoded.

1. Each input is walked in sorted order (`raygan.data.sources`) and sorted into image files, Parquet files, and files
   left aside, which are counted by reason.
2. Paths of image files and columns of Parquet files give labels (`raygan.data.labels`). A photo without one is left
   aside, too.
3. What remains is one table with a row for every photo. `Listing.describe` says how the labels were found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from raygan import addresses
from raygan.data import archives, kinds, layouts
from raygan.data.arrow import counts
from raygan.data.files import table_of
from raygan.data.labels import Guess, Layout, check_labels, normalize
from raygan.data.sorter import SCHEMA as SCHEMA
from raygan.data.sorter import Sorter, also, aside
from raygan.data.sources import Source, check_apart, files, joined, open_source
from raygan.errors import ConfigurationError, printable, some


@dataclass
class Listing:
    """All photos found, and what was left aside.

    Attributes:
        sources: the inputs.
        photos: a table of `SCHEMA`.
        ignored: files left aside, by reason.
        layouts: for each source, where labels come from, in words.
        unpacked: bytes that the plain copies of compressed tars take, at most.
    """

    sources: list[Source]
    photos: pa.Table
    ignored: Counter[str] = field(default_factory=Counter)
    layouts: list[str] = field(default_factory=list)
    unpacked: int = 0

    def describe(self) -> str:
        """The layout and label counts in words, one line per source, and what is left aside."""
        lines = []
        for number, source in enumerate(self.sources):
            found = self.photos.filter(pc.equal(self.photos["source"], number))["label"]
            labels = sorted(counts(found).items(), key=lambda item: (-item[1], item[0]))
            named = some([f"{count:,} {label}" for label, count in labels])
            lines.append(f"{printable(f'{source.address}: {self.layouts[number]}')}: {named}")
        return "\n".join([*lines, *([aside(self.ignored)] if self.ignored else [])])

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
    has_columns, objections = False, []
    sources = joined([open_source(address, image_column or "", label_column or "") for address in inputs])
    names = [_class_of(source.address) for source in sources]
    several = names if len(set(names)) == len(names) > 1 else []
    for number, source in enumerate(sources):
        check_apart(source, exclude)
        found = table_of(files(source, exclude)).sort_by("path")
        if not found.num_rows:
            raise ConfigurationError(f"--input: there are no files in {source.address}")

        def guess(paths: Sequence[str], source: Source = source) -> Guess:
            own = _class_of(source.root)
            return layouts.guess(
                paths, source.address, label=label, layout=layout, folder=own, inputs=several if own in several else ()
            )

        sorter = Sorter(source, number, listing.ignored, label, layout, guess)
        tables.append(sorter.sort(found))
        has_columns |= sorter.has_columns
        objections += sorter.objections
        listing.sources.append(source)
        listing.unpacked += archives.plain_bytes(found["size"].to_pylist()) if source.compressed else 0
        listing.layouts.append("; ".join(dict.fromkeys(sorter.layouts)))
    listing.photos = pa.concat_tables(tables).combine_chunks()
    places = ", ".join(source.address for source in sources)
    if not listing.photos.num_rows:
        raise ConfigurationError(f"--input: there are no photos in {places}{also(listing.ignored)}")
    for flag, column in (("--image-column", image_column), ("--label-column", label_column)):
        if column and not has_columns:
            kind = "Parquet file" if flag == "--image-column" else "Parquet file or table about the photos"
            why = "".join(f"; {each}" for each in objections) or ": leave it out"
            raise ConfigurationError(f"{flag}: no {kind} in {places} has a column {column!r}{why}")
    check_labels(listing.photos["label"].unique().to_pylist())
    return listing


def _class_of(address: str) -> str:
    """The name of an input's folder, or of an archive without its ending."""
    name = addresses.name(address)
    ending = next((ending for ending in kinds.ARCHIVE_ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]
