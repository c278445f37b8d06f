"""Labels from columns of Parquet files. `raygan.data.labels` has the table of what comes out.

`choose` finds the columns in a schema, and `row_labels` makes labels of a column's values.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raygan.data.arrow import whole
from raygan.data.kinds import is_image_name
from raygan.data.labels import normalize
from raygan.errors import ConfigurationError

#: Column names that usually hold labels, photos, and their paths, in small letters; the first that exists is taken.
_LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "class_label", "label_name", "category", "target", "breed", "species"),
    *("animal", "identity", "fine_label", "coarse_label", "class_id", "label_id", "category_id"),
)
_IMAGE_COLUMNS = ("image", "img", "photo", "picture", "jpg", "png")

#: Column names of text that says something about one photo, or where it is from, never about a class.
_TEXTS = frozenset(
    """
    caption captions text prompt description title url uri link id md5 sha256 hash split subset fold partition usage
    source license author photographer credit user camera date time datetime timestamp country format mode mime_type
    """.split()  # noqa: SIM905 - a list of quoted words would fill a screen
)

#: Text that programs write for a missing value, as pandas reads it. In small letters, `none` and `na` may be classes.
_MISSING = frozenset(
    """
    #N/A #NA -1.#IND -1.#QNAN 1.#IND 1.#QNAN -NaN -nan NaN NAN nan <NA> <na> N/A n/a NA NULL null None
    """.split()  # noqa: SIM905 - see above
)

#: A number below zero as text.
_NEGATIVE = re.compile(r"-\d+")


@dataclass(frozen=True)
class Columns:
    """The columns of photos and labels.

    Attributes:
        image: of encoded photos, or structs with a field `bytes`; None without one.
        label: None without one.
        paths: columns that may hold the photos' paths: text, or structs with a field `path`.
        given: the user named the label column.
        others: the names of further columns that could hold labels.
    """

    image: str | None
    label: str | None
    paths: tuple[str, ...]
    given: bool
    others: tuple[str, ...]


def choose(schema: pa.Schema, image: str = "", label: str = "") -> Columns:
    """The columns of a Parquet file's schema.

    Args:
        schema: of the file.
        image: the column of photos, if known.
        label: the column of labels, if known.

    Raises:
        ConfigurationError: a given column doesn't exist, or can't hold what it should.
    """
    for flag, name in (("--image-column", image), ("--label-column", label)):
        if name and name not in schema.names:
            raise ConfigurationError(f"{flag}: there is no column {name!r}; the file has {', '.join(schema.names)}")
        if name and schema.names.count(name) > 1:
            raise ConfigurationError(f"{flag}: the file has {schema.names.count(name)} columns named {name!r}")
    once = [item for item in schema if schema.names.count(item.name) == 1]  # the others can't be read by name
    paths = tuple(item.name for item in once if is_text(item.type) or _path_field(item.type))
    if image and image not in paths and not _holds_bytes(schema.field(image).type):
        raise ConfigurationError(f"--image-column: column {image!r} holds {schema.field(image).type}, no photos")
    if label and not (_is_label(schema.field(label).type) or _is_binary(schema.field(label).type)):
        raise ConfigurationError(f"--label-column: column {label!r} holds {schema.field(label).type}, no labels")
    images = _in_order([item.name for item in schema if _holds_bytes(item.type) and item.name != label], _IMAGE_COLUMNS)
    fields = [
        item
        for item in schema
        if item.name not in images[:1]
        and (_is_label(item.type) or (is_label_name(item.name) and _is_binary(item.type)))
    ]
    named = [item.name for item in fields if is_label_name(item.name)]
    classes = [item.name for item in fields if class_names(schema, item.name)]
    categories = [item.name for item in fields if pa.types.is_dictionary(item.type)]
    texts = [item.name for item in fields if is_text(item.type) and item.name.lower() not in _TEXTS]
    likely = [
        *_in_order(named, _LABEL_COLUMNS),
        *classes,
        *(categories if len(categories) == 1 else []),
        *(texts if len(texts) == 1 else []),
    ]
    likely = list(dict.fromkeys(likely))
    chosen = label or next(iter(likely), None)
    others = tuple(dict.fromkeys(name for name in [*likely, *texts] if name != chosen))
    return Columns(image or next(iter(images), None), chosen, paths, bool(label), others)


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Names of the classes in a column of integers, from Hugging Face's metadata; None without it."""
    try:
        feature: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        names = (feature.get("feature") or feature)["names"]
        if isinstance(names, dict):
            names = [names[str(number)] for number in range(len(names))]
        return [str(name) for name in names]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def is_missing(text: str) -> bool:
    """Whether a text stands for a missing value."""
    return text.strip() in _MISSING or not text.strip()


def text_values(values: pa.ChunkedArray) -> list[str | None]:
    """The text, or paths, of a column that `Columns.paths` names."""
    found = [value.get("path") if isinstance(value, dict) else value for value in values.to_pylist()]
    return [value if isinstance(value, str) else None for value in found]


def are_file_names(values: Sequence[str | None]) -> bool:
    """Whether nearly all values are names or paths of image files."""
    known = [value for value in values if value]
    return bool(known) and sum(map(is_image_name, known)) >= 0.9 * len(known)


def row_labels(
    values: pa.ChunkedArray, names: Sequence[str] | None, column: str, file: str
) -> tuple[pa.ChunkedArray, Counter[str]]:
    """Labels of a column's values.

    Args:
        values: the column; rows of any type that `choose` takes for labels.
        names: of the classes, if the values are their numbers.
        column, file: their names, for messages.

    Returns:
        A string for each row, spelled, or null for a row without a label; and counts of these by reason.

    Raises:
        ConfigurationError: a number is beyond the names, or the values are no labels.
    """
    why: Counter[str] = Counter()
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    array = whole(values)
    if _is_list(array.type):
        array, why["several labels"] = _only_items(array)
    if pa.types.is_float16(array.type):
        array = array.cast(pa.float64())  # Arrow has no dictionaries of half floats, nor of short decimals
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.decimal256(76, array.type.scale))
    encoded = array.dictionary_encode()
    distinct = [_plain(value) if isinstance(value, Decimal) else value for value in encoded.dictionary.to_pylist()]
    spelled: list[str | None] = []
    for number, value in enumerate(distinct):
        try:
            spelled.append(_label(value, distinct, names))
        except ValueError as error:
            row = pc.index(encoded.indices, number).as_py()
            raise ConfigurationError(f"--input: {file}, row {row}: column {column} has {value!r}, {error}") from None
    found = pa.chunked_array([pa.array(spelled, pa.string()).take(encoded.indices)])
    why["no label"] = found.null_count - why["several labels"]
    return found, +why


def _label(value: Any, distinct: Sequence[Any], names: Sequence[str] | None) -> str | None:
    """One value as a label, spelled; None for no label. Raises ValueError, which says what is wrong with it."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if not value.is_integer():
            raise ValueError("a fraction, which is no label: name another column with --label-column, or give --label")
        value = int(value)
    if isinstance(value, str) and _NEGATIVE.fullmatch(value.strip()):
        value, distinct = int(value), [0] if 0 in distinct or "0" in distinct else []
    if isinstance(value, str):
        return None if is_missing(value) else normalize(value) or None
    if value is None or isinstance(value, bool):
        return None if value is None else str(value).lower()
    if value == -1 and (names is not None or 0 in distinct):
        return None  # what data sets write for no label
    if names is None and value >= 0:
        return str(value)
    if names is None:
        raise ValueError("and a number below zero may be a class or none: give the classes names")
    if not 0 <= value < len(names):
        raise ValueError(
            f"but the file's metadata names only {len(names)} classes, 0 to {len(names) - 1}: correct the file, or "
            f"name another column with --label-column"
        )
    return normalize(names[value]) or None


def _plain(value: Decimal) -> int | float:
    """A decimal, as databases write ids; those of 16 digits or more would become equal as floats."""
    return int(value) if value == int(value) else float(value)


def _only_items(lists: pa.Array) -> tuple[pa.Array, int]:
    """The item of each list that has exactly one, else null; and the number of lists with more."""
    found = lists.to_pylist()
    items = [value[0] if value and len(value) == 1 else None for value in found]
    return pa.array(items, lists.type.value_type), sum(len(value) > 1 for value in found if value)


def _in_order(names: Sequence[str], order: Sequence[str]) -> list[str]:
    """The names, those in `order` first."""
    return sorted(names, key=lambda name: order.index(name.lower()) if name.lower() in order else len(order))


def is_label_name(name: str) -> bool:
    """Whether a column of this name usually holds labels."""
    return name.lower() in _LABEL_COLUMNS


def is_text(kind: pa.DataType) -> bool:
    """Whether an Arrow type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_label(kind.value_type)
    if _is_list(kind):
        return not _is_list(kind.value_type) and _is_label(kind.value_type)
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null)
    return is_text(kind) or any(is_kind(kind) for is_kind in plain)


def _path_field(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and (at := kind.get_field_index("path")) >= 0 and is_text(kind.field(at).type))


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_binary(kind.value_type)
    plain = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(is_kind(kind) for is_kind in plain)
