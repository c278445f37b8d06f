"""Labels from paths: class folders, and file names such as ``cat.123.jpg``.

`guess` decides between `folders` and `file_names` from the paths of all photos of an input; `raygan.data.labels` has
the table of what comes out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import replace

from raygan.data.file_names import name_label, names_tell
from raygan.data.folders import (
    CONTAINER_WORDS,
    SYNSET,
    class_level,
    crossed,
    folder_labels,
    folders_of,
    folders_within,
    may_lack_labels,
    origins,
    places_of,
    says_class,
    splits_among,
    words_of,
)
from raygan.data.kinds import is_image_name
from raygan.data.labels import ANIMALS, Guess, Layout, normalize, says_animal
from raygan.errors import ConfigurationError

#: Words that name a class only beside other classes (``face`` and ``no_face``), and data sets of many classes.
_GENERAL = CONTAINER_WORDS | {"animal", "animals", "pet", "pets", "face", "faces", "class", "category", "voc", "coco"}

_PART_NUMBER = re.compile(r"[ ._\-]*\(?\d+\)?$")


def guess(
    paths: Sequence[str],
    address: str,
    *,
    label: str | None = None,
    layout: Layout = "auto",
    folder: str = "",
    inputs: Collection[str] = (),
) -> Guess:
    """How the labels of an input's photos are found.

    Args:
        paths: of all its photos, relative to the input; at least one.
        address: the input, for messages.
        label: the label of every photo, if given.
        layout: where to look: class folders, file names, or (auto) both.
        folder: name of the input's own folder.
        inputs: names of all inputs if there are several, all different. Each then counts as a class folder.

    Raises:
        ConfigurationError: no labels can be found, or several ways to find them disagree.
    """
    if label is not None:
        spelled = normalize(label)
        return Guess("--label for all", lambda path: spelled, certain=True)
    names = Guess(
        "labels in file names" if layout == "names" else "labels in file names (few distinct labels in many files)",
        name_label,
        certain=layout == "names",
    )
    if layout == "names":
        if not any(map(name_label, paths)):
            raise ConfigurationError(f"--layout: no file name in {address} is like cat.1.jpg; {_example(paths)}")
        return names
    sure = layout == "folders"
    places = places_of(paths)
    passed = frozenset() if sure else origins(places)
    level = class_level(paths, passed, numbers=sure)
    found = folder_labels(paths, level, passed) if level is not None else {}
    if len(set(found.values())) > 1 or (found and sure):
        if not sure:
            _refuse_parts(found, address, sure=False)
            _refuse_splits(found, address)
            _refuse_crossed(places, passed, address)
        return _by_folders(paths, level or 0, found, passed, sure=sure)
    found = {name: label for name, label in found.items() if not _is_general(name)}
    if len(inputs) > 1 and says_class(folder) and any(len(folders_of(path, passed)) <= (level or 0) for path in paths):
        found = {}  # cats/1.jpg and cats/indoor/2.jpg, beside another input: it is the class, not the folder inside
    own = next(iter(found.values()), "") or (normalize(folder) if says_class(folder) else "")
    like_folder = bool(found) or (len(inputs) > 1 and bool(own))
    tell = layout == "auto" and names_tell(paths)
    if tell and not _folder_wins(own, paths, address, like_folder):
        return names
    if own and (like_folder or tell or sure):
        if not found:
            _refuse_parts(inputs, address, sure=sure)
            return Guess(f"the input folder's name, {own}", lambda path: own, certain=True)
        if not (sure or tell or says_animal(own)):
            _refuse_mixed(paths, passed, level or 0, address)
        return replace(_by_folders(paths, level or 0, found, passed, sure=True), how=f"class folder {own}")
    raise _no_labels(paths, address)


# ---------------------------------------------------------------- decisions


def _by_folders(
    paths: Sequence[str], level: int, found: dict[str, str], passed: frozenset[str], *, sure: bool
) -> Guess:
    loose = [path for path in paths if len(folders_of(path, passed)) <= level]
    by_name = not sure and bool(loose) and names_tell(loose)
    known = set(found.values())

    def label_of(path: str) -> str | None:
        chain = folders_of(path, passed)
        if len(chain) > level:
            folder = chain[level]  # one that has only files without an image extension isn't among those found
            return found.get(folder) or (normalize(folder) if says_class(folder) else None)
        label = name_label(path) if by_name else None
        return label if label in known or not may_lack_labels(path) else None

    by_origin = f", in folders by origin ({', '.join(sorted(passed)[:4])})" if passed else ""
    named = ", and labels in the names of files outside of them" if by_name else ""
    how = f"class folders{by_origin}{named}"
    return Guess(how, label_of, certain=True)


def _folder_wins(own: str, paths: Sequence[str], address: str, like_folder: bool) -> bool:
    """Whether the one class folder, not the labels in file names, is the class.

    Raises:
        ConfigurationError: nothing shows which of them.
    """
    names = sorted({name for path in paths if (name := name_label(path))})
    words = set(own.split("_"))
    if own and all(words <= set(name.split("_")) for name in names):
        return True  # train/cat/flickr_cat_0.jpg
    if says_animal(own) and like_folder and not words & set(names):
        return True  # cat/whiskers_1.jpg
    spelled = {normalize(word) for word in words}
    if not (own and like_folder) or spelled & set(names) or any(set(name.split("_")) & ANIMALS for name in names):
        return False  # dogs-vs-cats/cat.0.jpg
    raise ConfigurationError(
        f"--input: the class of the photos in {address} may be the folder's name ({own}) or be in the file names "
        f"({', '.join(names[:3])}): give --layout folders or --layout names, or name one class with --label"
    )


def _is_general(name: str) -> bool:
    """Whether a name says nothing about a class if it is the only one, such as ``faces`` or ``img_align_celeba``."""
    words = words_of(name)
    return words <= _GENERAL or bool(words & CONTAINER_WORDS and not {normalize(word) for word in words} & ANIMALS)


# ---------------------------------------------------------------- refusals


def _refuse_parts(folders: Collection[str], address: str, *, sure: bool) -> None:
    """Refuse folders like CAT_00 and CAT_01: are they parts of one class, or a class each?"""
    stems = {folder: normalize(_PART_NUMBER.sub("", folder)) for folder in folders}
    if sure or len(folders) < 2 or len(set(stems.values())) * 2 > len(folders) or all(map(SYNSET.fullmatch, folders)):
        return
    if all(_PART_NUMBER.search(folder) for folder in folders):
        some = ", ".join(sorted(folders)[:3])
        classes = sorted(set(stems.values()))
        one = (
            f"--label {shlex.quote(classes[0] or 'CLASS')} makes them one class"
            if len(classes) == 1
            else "rename them if so"
        )
        raise ConfigurationError(
            f"--input: the folders of {address} differ only by a number ({some}): are they parts of "
            f"{', '.join(classes[:3]) or 'one class'}? {one}; --layout folders makes each of them a class"
        )


def _refuse_splits(folders: Collection[str], address: str) -> None:
    """Refuse some folders like seg_train and seg_test beside others: classes are often in them, not in their names."""
    splits = splits_among(folders)
    if splits:
        some, others = ", ".join(splits[:3]), ", ".join(sorted(set(folders) - set(splits))[:3])
        raise ConfigurationError(
            f"--input: some folders of {address} ({some}) are named like splits, others ({others}) are not: if they "
            f"are the classes, give --layout folders; otherwise give --input the folder that holds the classes"
        )


def _refuse_crossed(places: Collection[str], passed: frozenset[str], address: str) -> None:
    """Refuse folders that contain the same subfolders: which of them are the classes?"""
    found = crossed(places, passed)
    if found:
        outer, inner = (", ".join(names[:3]) for names in found)
        raise ConfigurationError(
            f"--input: the folders of {address} ({outer}) contain the same subfolders ({inner}): which are the "
            f"classes? --layout folders uses {outer}; giving each of them to --input uses {inner}"
        )


def _refuse_mixed(paths: Sequence[str], passed: frozenset[str], level: int, address: str) -> None:
    """Refuse a folder that has both photos and several folders of photos: is it the class, or are they the classes?"""
    outer, inner, _ = folders_within(paths, passed, level)
    if len(inner) > 1:
        some = ", ".join(sorted(inner)[:3])
        raise ConfigurationError(
            f"--input: the folder {outer} of {address} has photos, and folders with photos ({some}): which are the "
            f"classes? --layout folders uses {outer}; giving that folder itself to --input uses {some}"
        )


def _example(paths: Sequence[str]) -> str:
    return f"the first file is {paths[0]!r}"


def _no_labels(paths: Sequence[str], address: str) -> ConfigurationError:
    if not any(map(is_image_name, paths)):
        return ConfigurationError(
            f"--input: there is no photo in {address}: no file has an image extension ({_example(paths)}); if the "
            f"files are photos anyway, name their class with --label"
        )
    numbers = ", or give --layout folders if numbered folders are the classes" if any(map(folders_of, paths)) else ""
    labels = {label for path in paths if (label := name_label(path))}
    many = f", but {len(labels):,} different ones in {len(paths):,} file names" if len(labels) > 1 else ""
    return ConfigurationError(
        f"--input: no labels found in {address} (no class folders, no file names such as cat.1.jpg{many}; "
        f"{_example(paths)}): if all photos are of one class, name it with --label{numbers}; else sort them into "
        f"folders, one for each class"
    )
