"""From a slice of the listing to the bytes of its photos: files, members of archives, and rows of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raygan.data.columns import choose
from raygan.data.decode import looks_like_image
from raygan.data.filters import Photo, Rules
from raygan.data.kinds import is_image_name
from raygan.data.sources import Source, image_bytes, shown
from raygan.errors import RayganError, first_line, reason

#: A photo's bytes; a verdict, if the photo was not read; or None for a file that is not a photo.
Content = bytes | Photo | None


def contents(rows: Sequence[dict[str, Any]], sources: Sequence[Source], rules: Rules) -> Iterator[Content]:
    """The content of each photo of a slice of the listing, in order.

    Args:
        rows: of the listing.
        sources: the inputs.
        rules: the filters in use; a photo that they reject by its size is not read.

    Raises:
        RayganError: a whole input has vanished.
    """
    for (source, path, start), group in groupby(enumerate(rows), _run):
        run = [row for _, row in group]
        if start is None:
            yield from (_file_content(sources[source], row, rules) for row in run)
        else:
            yield from _row_contents(sources[source], path, run[0]["row"], len(run))


def _run(numbered: tuple[int, dict[str, Any]]) -> tuple[int, bytes, int | None]:
    """What is the same for consecutive rows of a Parquet file; a key of `groupby`."""
    number, row = numbered
    return row["source"], row["path"], row["row"] - number if row["row"] >= 0 else None


def _file_content(source: Source, row: dict[str, Any], rules: Rules) -> Content:
    path = row["path"]
    try:
        if not is_image_name(shown(path)) and not looks_like_image(source.read(path, 16)):
            return None
        objection = rules.objection(lambda each: each.of_file(row["size"], rules.limits))
        return Photo(**objection) if objection else source.read(path)
    except OSError as error:
        _still_there(source)
        gone = isinstance(error, FileNotFoundError)
        return Photo("unreadable", detail="gone since it was listed" if gone else f"cannot be read: {reason(error)}")


def _row_contents(source: Source, path: bytes, first: int, count: int) -> Iterator[Content]:
    """Contents of consecutive rows of a Parquet file; reads only the row groups with these rows."""
    done = 0
    try:
        with source.parquet(path) as parquet:
            name = choose(parquet.schema_arrow, source.image_column, source.label_column).image
            groups, skip = _row_groups(parquet.metadata, first, count)
            for batch in parquet.iter_batches(batch_size=64, row_groups=groups, columns=[name]):
                for data in image_bytes(batch[name]):
                    if skip > 0:
                        skip -= 1
                    elif done < count:
                        done += 1
                        yield data if data is not None else Photo("unreadable", detail="no image in this row")
    except (OSError, pa.ArrowException) as error:
        _still_there(source)
        why = f"cannot be read: {first_line(error)}"
    else:
        why = "gone since it was listed"
    yield from [Photo("unreadable", detail=why)] * (count - done)


def _row_groups(metadata: pq.FileMetaData, first: int, count: int) -> tuple[list[int], int]:
    """The row groups with `count` rows from `first`, and how many rows to skip at their start."""
    groups: list[int] = []
    skip, start = 0, 0
    for number in range(metadata.num_row_groups):
        size = metadata.row_group(number).num_rows
        if start < first + count and start + size > first:
            if not groups:
                skip = first - start
            groups.append(number)
        start += size
    return groups, skip


def _still_there(source: Source) -> None:
    try:
        there = source.exists()
    except OSError:
        there = False
    if not there:
        raise RayganError(
            f"--input: {source.address} vanished while it was being read; once it is back, the same command resumes"
        )
