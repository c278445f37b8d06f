"""Labels from names: class folders, file names such as ``cat.123.jpg``, and columns of Parquet files.

Nothing here reads a file: these are pure functions of paths and Parquet schemas. `rule` decides from the paths of all
photos of an input how the label of each is found.
"""

from __future__ import annotations

import json
import posixpath
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyarrow as pa

from raygan.errors import ConfigurationError

Layout = Literal["auto", "folders", "names", "columns"]

#: Endings of image files. Files with other endings are photos only if their first bytes say so.
IMAGE_ENDINGS = frozenset(
    """
    .jpg .jpeg .jpe .jfif .png .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .avif .heic .heif
    .tga .ico
    """.split()  # noqa: SIM905 - a list of quoted words would fill a screen
)

#: Folder names that sort files by purpose, never by class.
_CONTAINERS = frozenset(
    """
    train training train_set training_set test testing test_set val valid validation val_set validation_set
    data dataset datasets image images img imgs photo photos picture pictures pic pics input raw original
    originals all jpeg jpg png
    """.split()  # noqa: SIM905 - a list of quoted words would fill a screen
)

#: Prefixes of file names that come from cameras and programs and name no class.
_GENERIC = frozenset(
    """
    img image images photo photos pic pics picture pictures dsc dscn dscf dcim pxl p pict mvi screenshot scan
    frame file untitled download thumb crop face sample x n im
    """.split()  # noqa: SIM905 - a list of quoted words would fill a screen
)

#: Column names that usually hold labels, and photos.
_LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "breed", "species", "animal")
_IMAGE_COLUMNS = ("image", "img", "photo", "picture", "jpg", "png")

_NAME_WITH_NUMBER = re.compile(r"^(?P<label>.*?[^\W\d_].*?)[ ._\-]*\(?\d[\d ._\-()]*$", re.DOTALL)


def normalize(label: str) -> str:
    """One spelling for plural and case variants of a label: ``Cats``, ``cats`` and ``cat`` become ``cat``.

    Only English plurals are recognized. Words in -ss, -us or -is are taken as singular.
    """
    words = unicodedata.normalize("NFC", label).strip().casefold()
    words = re.sub(r"[\s_\-.]+", "_", words).strip("_")
    if len(words) > 4 and words.endswith("ies"):
        return words[:-3] + "y"
    if len(words) > 4 and words.endswith(("xes", "ches", "shes", "sses")):
        return words[:-2]
    if len(words) > 3 and words.endswith("s") and not words.endswith(("ss", "us", "is")):
        return words[:-1]
    return words


def is_image_name(path: str) -> bool:
    """Whether the file's ending is that of an image."""
    return posixpath.splitext(path)[1].lower() in IMAGE_ENDINGS


# ---------------------------------------------------------------- folders and file names


def rule(
    paths: Sequence[str], address: str, *, label: str | None, layout: Layout, fallback: str | None
) -> tuple[str, Callable[[str], str | None]]:
    """How the labels of an input's photos are found.

    Args:
        paths: of all its photos, relative to the input; at least one.
        address: the input, for messages.
        label: the label of every photo, if given.
        layout: where to look: class folders, file names, or (auto) both.
        fallback: the label of every photo if neither folders nor names tell.

    Returns:
        The layout in words, and a function from a path to its label, not normalized, or None for a path without one.

    Raises:
        ConfigurationError: no labels can be found.
    """
    if label is not None:
        return "one label for all", lambda path: label
    level = _class_level(paths) if layout in ("auto", "folders") else None
    by_name = _names_tell(paths) if layout in ("auto", "names") else False
    if level is not None:
        folders = {normalize(found) for path in paths if (found := _folder_label(path, level))}
        if len(folders) > 1 or not by_name:
            loose = [path for path in paths if _folder_label(path, level) is None]
            if loose and _names_tell(loose):
                how = "class folders, and labels in the names of files outside of them"
                return how, lambda path: _folder_label(path, level) or _name_label(path)
            return "class folders", lambda path: _folder_label(path, level)
    if by_name:
        return "labels in file names", _name_label
    if fallback and layout == "auto" and _says_class(fallback):
        return "the input folder's name", lambda path: fallback
    if not any(map(is_image_name, paths)):
        raise ConfigurationError(
            f"--input: there is no photo in {address}: no file name has an image ending; if the files are photos "
            f"anyway, name their class with --label"
        )
    raise ConfigurationError(
        f"--input: no labels found in {address} (no class folders, no file names such as cat.1.jpg; the first file "
        f"is {paths[0]!r}): if all photos are of one class, name it with --label"
    )


def _says_class(name: str) -> bool:
    """Whether a folder's name can be a class: it contains a letter and isn't a container's name."""
    return normalize(name) not in _CONTAINERS | {normalize(c) for c in _CONTAINERS} and bool(
        re.search(r"[^\W\d_]", name)
    )


def _folders(path: str) -> list[str]:
    """The folders above a file that may be classes."""
    return [part for part in path.split("/")[:-1] if normalize(part) not in _CONTAINERS]


def _class_level(paths: Sequence[str]) -> int | None:
    """Which folder of `_folders` is the class: the first where paths differ, or the last if they never do."""
    chains = [chain for path in paths if (chain := _folders(path))]
    if not chains:
        return None
    level = 0
    while len({chain[level] for chain in chains}) == 1 and all(len(chain) > level + 1 for chain in chains):
        level += 1
    return level if all(_says_class(chain[level]) for chain in chains) else None


def _folder_label(path: str, level: int) -> str | None:
    chain = _folders(path)
    return chain[level] if len(chain) > level else None


def _name_label(path: str) -> str | None:
    stem = posixpath.splitext(posixpath.basename(path))[0]
    match = _NAME_WITH_NUMBER.match(stem)
    label = match.group("label").strip(" ._-(") if match else None
    return label if label and label.casefold() not in _GENERIC else None


def _names_tell(paths: Sequence[str]) -> bool:
    """Whether nearly all names carry a label, and there are few labels for that many files."""
    labels = [_name_label(path) for path in paths]
    known = [normalize(label) for label in labels if label]
    return len(known) >= 0.9 * len(paths) and len(set(known)) <= max(1, len(paths) // 4)


# ---------------------------------------------------------------- Parquet columns


def columns(schema: pa.Schema, image: str = "", label: str = "") -> tuple[str | None, str | None]:
    """The columns of encoded photos and of labels; None for one that doesn't exist.

    A column can hold photos if it is binary, or a struct with a binary field ``bytes``, as in data sets from hubs.

    Args:
        schema: of the Parquet file.
        image: the column of photos, if known.
        label: the column of labels, if known.

    Raises:
        ConfigurationError: a given column doesn't exist.
    """
    for flag, name in (("--image-column", image), ("--label-column", label)):
        if name and name not in schema.names:
            raise ConfigurationError(f"{flag}: there is no column {name!r}; the file has {', '.join(schema.names)}")
    images = [item.name for item in schema if _holds_bytes(item.type)]
    texts = [item.name for item in schema if pa.types.is_string(item.type) or pa.types.is_large_string(item.type)]
    numbers = [item.name for item in schema if pa.types.is_integer(item.type)]
    guesses = [name for name in _LABEL_COLUMNS if name in texts + numbers] + (texts if len(texts) == 1 else [])
    preferred = [name for name in _IMAGE_COLUMNS if name in images]
    return image or next(iter(preferred + images), None), label or next(iter(guesses), None)


def class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Names of the classes in a column of integers, from Hugging Face's metadata; None without it."""
    try:
        info: Any = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in info]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
