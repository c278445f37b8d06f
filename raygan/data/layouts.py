"""Labels from paths: class folders, and file names such as ``cat.123.jpg``.

`guess` decides from the paths of all photos of an input; `raygan.data.labels` has the table of what comes out.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence

from raygan.data.kinds import ending, is_image_name, split_path
from raygan.data.labels import ANIMALS, Guess, Layout, normalize
from raygan.errors import ConfigurationError

#: Words of folder names that sort files by purpose, never by class. `test1` and `train_images_2017` are made of them.
_CONTAINER_WORDS = frozenset(
    """
    train training test testing val valid validation eval dev set sets split splits part data dataset datasets image
    images img imgs photo photos picture pictures pic pics input raw original originals all jpeg jpg png jpegs full
    cropped aligned resized archive archives files unlabeled unlabelled classes categories download downloads extracted
    unzipped
    """.split()  # noqa: SIM905 - see above
)

#: Words that are a class beside others (``face`` and ``no_face``), but none alone.
_GENERAL = _CONTAINER_WORDS | {"animal", "animals", "pet", "pets", "face", "faces", "class", "category"}

#: Words of containers whose photos may have no labels.
_TEST_WORDS = frozenset({"test", "testing", "unlabeled", "unlabelled"})

#: Words of folders that describe photos, if they lie beside a container.
_ANNOTATION_WORDS = frozenset(
    """
    annotation annotations mask masks trimap trimaps segmentation segmentations label labels xml xmls bbox bboxes
    landmarks keypoints groundtruth gt metadata depth
    """.split()  # noqa: SIM905 - see above
)

#: Words of file names that say where a photo comes from, never what it shows.
_WEBSITES = frozenset(
    """
    flickr pixabay unsplash pexels google bing pinterest instagram facebook fb whatsapp reddit imgur wikimedia
    shutterstock getty istock
    """.split()  # noqa: SIM905 - see above
)

#: Beginnings of file names that come from cameras and programs and name no class.
_GENERIC = frozenset(
    """
    img image images photo photos pic pics picture pictures dsc dscn dscf dcim pxl p pict mvi screenshot scan
    frame file untitled download thumb crop face sample x n im test train val part batch
    """.split()  # noqa: SIM905 - see above
)

_NAME_WITH_NUMBER = re.compile(r"^(?P<label>.*?[^\W\d_].*?)[ ._\-]*\(?\d[\d ._\-()]*$", re.DOTALL)
_FOLDER_NUMBER = re.compile(r"^(?:\d{1,6}[ ._\-]+)?(?:n\d{6,8}[ _\-]+)?(?=.*[^\W\d_])", re.DOTALL)
_PART_NUMBER = re.compile(r"[ ._\-]*\(?\d+\)?$")
_SYNSET = re.compile(r"n\d{6,}")

#: Name of an image, its ending taken off, in an export from Roboflow.
_EXPORTED = re.compile(r"_(?:jpe?g|png)\.rf\.[0-9a-zA-Z]+$")


def annotation_paths(paths: Sequence[str]) -> set[str]:
    """Those of the paths that lie in a folder of annotations beside a folder of photos."""
    beside: set[tuple[str, ...]] = set()
    found = []
    for path in paths:
        folders = split_path(path)[:-1]
        for level, folder in enumerate(folders):
            words = _words(folder)
            if words & _ANNOTATION_WORDS and words <= _ANNOTATION_WORDS | _CONTAINER_WORDS | {"class", "object"}:
                found.append((path, tuple(folders[:level])))
                break
            if _is_container(folder):
                beside.add(tuple(folders[:level]))
    return {path for path, place in found if place in beside}


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
        inputs: names of all inputs if there are several, all different. Each is then like a class folder.

    Raises:
        ConfigurationError: no labels can be found, or several ways to find them disagree.
    """
    if label is not None:
        spelled = normalize(label)
        return Guess("--label for all", lambda path: spelled, certain=True)
    names = Guess(
        "labels in file names" if layout == "names" else "labels in file names (few different ones for so many files)",
        _name_label,
        certain=layout == "names",
    )
    if layout == "names":
        if not any(map(_name_label, paths)):
            raise ConfigurationError(f"--layout: no file name in {address} is like cat.1.jpg; {_example(paths)}")
        return names
    level = _class_level(paths, numbers=layout == "folders")
    found = _folder_labels(paths, level) if level is not None else {}
    if len(set(found.values())) > 1 or (found and layout == "folders"):
        return _by_folders(paths, level or 0, found, address, sure=layout == "folders")
    found = {name: label for name, label in found.items() if not _is_general(name)}
    own = next(iter(found.values()), "") or (normalize(folder) if _says_class(folder) else "")
    like_folder = bool(found) or (len(inputs) > 1 and bool(own))
    tell = layout == "auto" and _names_tell(paths)
    if tell and not _folder_wins(own, paths, address, like_folder):
        return names
    if own and (like_folder or tell or layout == "folders"):
        if not found:
            _refuse_parts(inputs, address, sure=layout == "folders")
        how = f"class folder {own}" if found else f"the input folder's name, {own}"
        return Guess(how, lambda path: own, certain=True)
    raise _no_labels(paths, address)


# ---------------------------------------------------------------- folders


def _by_folders(paths: Sequence[str], level: int, found: dict[str, str], address: str, *, sure: bool) -> Guess:
    if not sure:
        _refuse_parts(found, address, sure=False)
    loose = [path for path in paths if len(_folders(path)) <= level]
    by_name = not sure and bool(loose) and _names_tell(loose)

    def label_of(path: str) -> str | None:
        chain = _folders(path)
        if len(chain) > level:
            folder = chain[level]  # one that has only files without an image's ending isn't among those found
            return found.get(folder) or (normalize(folder) if _says_class(folder) else None)
        return _name_label(path) if by_name else None

    how = "class folders, and labels in the names of files outside of them" if by_name else "class folders"
    return Guess(how, label_of, certain=True)


def _folder_labels(paths: Sequence[str], level: int) -> dict[str, str]:
    """The label of each folder. Numbers before names (``n02085620-Chihuahua``) go if the labels stay different."""
    folders = sorted({chain[level] for path in paths if len(chain := _folders(path)) > level})
    plain = {folder: normalize(folder) for folder in folders}
    short = {folder: normalize(_FOLDER_NUMBER.sub("", folder, count=1)) for folder in folders}
    numbered = all((start := _FOLDER_NUMBER.match(folder)) and start[0] for folder in folders)
    apart = len(set(short.values())) == len(set(plain.values()))
    return short if numbered and apart and all(short.values()) else plain


def _refuse_parts(folders: Collection[str], address: str, *, sure: bool) -> None:
    """Refuse folders like CAT_00 and CAT_01: are they parts of one class, or a class each?"""
    stems = {folder: normalize(_PART_NUMBER.sub("", folder)) for folder in folders}
    if sure or len(folders) < 2 or len(set(stems.values())) * 2 > len(folders):
        return
    if all(_PART_NUMBER.search(folder) for folder in folders):
        some = ", ".join(sorted(folders)[:3])
        classes = sorted(set(stems.values()))
        one = f"--label {classes[0] or 'CLASS'} makes them one class" if len(classes) == 1 else "rename them if so"
        raise ConfigurationError(
            f"--input: the folders of {address} differ by a number only ({some}): are they parts of "
            f"{', '.join(classes[:3]) or 'one class'}? {one}; --layout folders makes each of them a class"
        )


def _class_level(paths: Sequence[str], *, numbers: bool) -> int | None:
    """Which folder of `_folders` is the class: the first where paths differ, or the last if they never do.

    Where the first ones are mere numbers, such as years, it is the next. `numbers` allows numbers as classes.
    """
    chains = [chain for path in paths if (chain := _folders(path))]
    level = 0
    while chains:
        names = {chain[level] for chain in chains if len(chain) > level}
        deeper = all(len(chain) > level + 1 for chain in chains)
        if len(names) == 1 and deeper:
            level += 1
            continue
        if numbers or all(map(_says_class, names)):
            return level
        if any(map(_says_class, names)) or not deeper:
            return None
        level += 1
    return None


def _folders(path: str) -> tuple[str, ...]:
    """The folders above a file that may be classes."""
    folder, _, _ = path.replace("\\", "/").rpartition("/")
    return _classes_of(folder)


@functools.lru_cache(maxsize=1 << 16)
def _classes_of(folder: str) -> tuple[str, ...]:
    return tuple(part for part in split_path(folder) if not _is_container(part))


@functools.lru_cache(maxsize=1 << 16)
def _words(name: str) -> frozenset[str]:
    """The words of a name, without numbers and sizes."""
    parted = re.sub(r"([a-z])(?=[A-Z])|([A-Z])(?=[A-Z][a-z])", r"\1\2 ", name)  # JPEGImages
    return frozenset(word for word in re.split(r"[\W_\d]+", parted.casefold()) if word and word != "x")


def _is_container(name: str) -> bool:
    words = _words(name)
    return bool(words) and words <= _CONTAINER_WORDS


def _is_general(name: str) -> bool:
    """Whether a name says nothing about a class if it is the only one, such as ``faces`` or ``img_align_celeba``."""
    words = _words(name)
    return words <= _GENERAL or bool(words & _CONTAINER_WORDS and not {normalize(word) for word in words} & ANIMALS)


def _says_class(name: str) -> bool:
    """Whether a folder's name can be a class: it contains a letter and isn't a container's name."""
    return bool(re.search(r"[^\W\d_]", name)) and not _is_container(name)


# ---------------------------------------------------------------- file names


def _name_label(path: str) -> str | None:
    name = (split_path(path) or [""])[-1]
    stem = name[: len(name) - len(ending(path))]
    match = _NAME_WITH_NUMBER.match(_EXPORTED.sub("", stem))
    label = match.group("label").strip(" ._-(") if match else ""
    if label.casefold() in _GENERIC or _SYNSET.fullmatch(label):
        return None
    return "_".join(word for word in normalize(label).split("_") if word not in _WEBSITES) or None


def _names_tell(paths: Sequence[str]) -> bool:
    """Whether nearly all names carry a label, and there are few labels for that many files.

    Test folders may have none, if there are other photos.
    """
    asked = [path for path in paths if not any(_words(part) & _TEST_WORDS for part in split_path(path)[:-1])]
    names = [_name_label(path) for path in asked or paths]
    known = [name for name in names if name]
    return len(known) >= 0.9 * len(names) and len(set(known)) <= max(1, len(names) // 4)


def _folder_wins(own: str, paths: Sequence[str], address: str, like_folder: bool) -> bool:
    """Whether the one class folder, not the labels in file names, is the class.

    Raises:
        ConfigurationError: nothing shows which of them.
    """
    names = sorted({name for path in paths if (name := _name_label(path))})
    words = set(own.split("_"))
    if own and all(words <= set(name.split("_")) for name in names):
        return True  # train/cat/flickr_cat_0.jpg
    if own.rpartition("_")[2] in ANIMALS and like_folder and not words & set(names):
        return True  # cat/whiskers_1.jpg
    spelled = {normalize(word) for word in words}
    if not (own and like_folder) or spelled & set(names) or any(set(name.split("_")) & ANIMALS for name in names):
        return False  # dogs-vs-cats/cat.0.jpg
    raise ConfigurationError(
        f"--input: is the class of the photos in {address} the folder ({own}) or in their names "
        f"({', '.join(names[:3])})? give --layout folders or --layout names, or name one class with --label"
    )


# ---------------------------------------------------------------- refusals


def _example(paths: Sequence[str]) -> str:
    return f"the first file is {paths[0]!r}"


def _no_labels(paths: Sequence[str], address: str) -> ConfigurationError:
    if not any(map(is_image_name, paths)):
        return ConfigurationError(
            f"--input: there is no photo in {address}: no file name has an image ending ({_example(paths)}); if the "
            f"files are photos anyway, name their class with --label"
        )
    numbers = ", or give --layout folders to take folders of numbers for classes" if any(map(_folders, paths)) else ""
    labels = {label for path in paths if (label := _name_label(path))}
    many = f", but {len(labels):,} different ones in {len(paths):,} file names" if len(labels) > 1 else ""
    return ConfigurationError(
        f"--input: no labels found in {address} (no class folders, no file names such as cat.1.jpg{many}; "
        f"{_example(paths)}): if all photos are of one class, name it with --label{numbers}"
    )
