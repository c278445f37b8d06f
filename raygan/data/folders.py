"""Folders of an input: which sort files by purpose, which are classes, and which files only describe photos."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise, takewhile

from raygan.data.kinds import is_image_name, split_path, without_ending
from raygan.data.labels import LETTER, normalize, says_animal

#: Words of folder names that sort files by purpose, never by class. `test1` and `train_images_2017` are made of them.
CONTAINER_WORDS = frozenset(
    """
    train training test testing val valid validation eval dev set sets split splits part data dataset datasets image
    images img imgs photo photos picture pictures pic pics input raw original originals all jpeg jpg png jpegs full
    cropped aligned resized archive archives files unlabeled unlabelled classes categories download downloads extracted
    unzipped thumbnail thumbnails thumb thumbs preview previews holdout heldout trainval evaluation backup backups dcim
    query gallery output outputs result results
    """.split()  # noqa: SIM905 - see above
)

#: Words of file and folder names that say where a photo comes from, never what it shows.
WEBSITES = frozenset(
    """
    flickr pixabay unsplash pexels google bing pinterest instagram facebook fb whatsapp reddit imgur wikimedia
    shutterstock getty istock snapchat telegram signal adobestock depositphotos
    """.split()  # noqa: SIM905 - see above
)

#: Words of containers whose photos may have no labels.
_TEST_WORDS = frozenset({"test", "testing", "unlabeled", "unlabelled"})

#: Words of folders that describe photos, if they lie beside a container.
_ANNOTATION_WORDS = frozenset(
    """
    annotation annotations mask masks trimap trimaps segmentation segmentations label labels xml xmls bbox bboxes
    landmarks keypoints groundtruth truth gt metadata depth
    """.split()  # noqa: SIM905 - see above
)

#: Words beside these.
_QUALIFIERS = CONTAINER_WORDS | {"class", "object", "ground"}

#: Endings of the names of files that describe the photo of the same name: ``1_mask.png`` beside ``1.jpg``.
_ANNOTATION_ENDINGS = tuple(
    f"{mark}{word}"
    for mark in "_-. "
    for word in ("mask", "seg", "segmentation", "trimap", "matte", "depth", "landmarks", "bbox", "annotation", "label")
)

#: What makes a class of such a word: ``no_mask`` beside ``mask``.
_NEGATIONS = ("without", "non", "not", "no", "un")

#: Files that tell a folder of shards, and one of runs, from one of photos.
_MADE_BY_RAYGAN = ({"manifest.json", "report.json"}, {"mlflow.db", "mlflow.db.lock"})

#: Folders on a camera's card: by the standard of cameras (DCF), such as ``100APPLE``, and a phone's by month.
_CARD = re.compile(r"[1-9]\d\d(?=[\d_]*[A-Z])[A-Z\d_]{5}|\d{6}_[a-z_]")

#: WordNet's number of a class, as ImageNet has it.
SYNSET = re.compile(r"n\d{6,8}")

_FOLDER_NUMBER = re.compile(r"^(?:\d{1,6}[ ._\-]+)?(?:n\d{6,8}[ _\-]+)?(?=.*[^\W\d_])", re.DOTALL)
_KEY = re.compile(r"^[^=]+=(?=.)", re.DOTALL)
_COUNT = re.compile(r"[ ._\-]*[(\[]\d[\d.,]*[)\]]$")
_COPY = re.compile(r"^copy of |(?: - copy| copy| \((?:\w+ )?copy\))(?: \(?\d+\)?)?$", re.IGNORECASE)
_SPLIT = re.compile(
    r"^(?:train|training|test|testing|val|valid|validation|dev)[ ._\-]+|"
    r"[ ._\-]+(?:train|training|test|testing|val|valid|validation|dev)$",
    re.IGNORECASE,
)
_DOMAIN = re.compile(r"(?:train|test|val|valid)_?([AB])")


def annotation_paths(paths: Sequence[str]) -> set[str]:
    """Those of the paths that lie in a folder of annotations beside a folder of photos, or are named for a photo."""
    beside: set[tuple[str, ...]] = set()
    denied: set[tuple[tuple[str, ...], str]] = set()  # folders that have a class beside them: they are its opposite
    found = []
    for path in paths:
        folders = split_path(path)[:-1]
        for level, folder in enumerate(folders):
            words, place = words_of(folder), tuple(folders[:level])
            if words & _ANNOTATION_WORDS and words <= _ANNOTATION_WORDS | _QUALIFIERS:
                found.append((path, place, _letters(folder)))
                break
            if _is_container(folder):
                beside.add(place)
            elif negation := next(filter(_letters(folder).startswith, _NEGATIONS), ""):
                denied.add((place, _letters(folder).removeprefix(negation)))
    return {path for path, *at in found if at[0] in beside and tuple(at) not in denied} | _named_for_photos(paths)


@functools.lru_cache(maxsize=1 << 16)
def _letters(folder: str) -> str:
    """A folder's name for comparison: ``No_Masks`` is ``nomask``."""
    return re.sub(r"[\W\d_]+", "", folder.casefold()).removesuffix("s")


def _named_for_photos(paths: Sequence[str]) -> set[str]:
    """Those of the paths whose names are a photo's and the name of an annotation."""
    found = {path: stem for path in paths if (stem := without_ending(path)).lower().endswith(_ANNOTATION_ENDINGS)}
    photos = {without_ending(path) for path in paths if path not in found and is_image_name(path)} if found else set()
    return {path for path, stem in found.items() if re.split(r"[ ._\-]+(?=[^ ._\-]+$)", stem)[0] in photos}


def folders_of_raygan(paths: Sequence[str]) -> set[str]:
    """The folders of data sets and runs among photos, whose pictures are no photos; "" is the input itself."""
    known = set().union(*_MADE_BY_RAYGAN)
    names: dict[str, set[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if name in known:  # photos may be millions
            names.setdefault(folder, set()).add(name)
    return {folder for folder, found in names.items() if any(made <= found for made in _MADE_BY_RAYGAN)}


def places_of(paths: Sequence[str]) -> set[str]:
    """The folders that files are in, as paths."""
    return {path.replace("\\", "/").rpartition("/")[0] for path in paths}


def origins(places: Collection[str]) -> frozenset[str]:
    """Names of folders that sort photos by where they come from, and so have folders of classes in them.

    They have only folders whose names lie beside them, too (``cat``, ``dog`` and ``copies/cat``). Or all are websites
    (``google/cat``, ``flickr/cat``), or none names an animal where folders in them do (``home/cat``, ``zoo/dog``).
    """
    found: frozenset[str] = frozenset()
    while inside := _first_folders(places, found):
        beside = Counter(map(normalize, inside))
        more = {
            name
            for name, inner in inside.items()
            if not _says_animal(name) and all(beside[each] > (each == normalize(name)) for each in inner)
        }
        inner = set().union(*inside.values())
        if not more and all(map(says_class, [*inside, *inner])) and not any(map(_says_animal, inside)):
            from_web = all(words_of(name) <= WEBSITES | CONTAINER_WORDS for name in inside)
            more = set(inside) if from_web or any(map(_says_animal, inner)) else set()
        if not more:
            break
        found |= more
    return found


def crossed(places: Collection[str], origins: frozenset[str]) -> tuple[list[str], list[str]] | None:
    """The outer and the inner folders where either may be the classes: the inner ones' names repeat, and none is known.

    Such as ``studio/happy``, ``studio/sad``, ``outdoor/happy`` and ``outdoor/sad``.
    """
    inside = _first_folders(places, origins)
    inner = sorted(set().union(*inside.values()))
    return (sorted(inside), inner) if _repeat(inside) and not any(map(_says_animal, inside)) else None


def _first_folders(places: Collection[str], origins: frozenset[str]) -> dict[str, set[str]]:
    """The folders where places first differ, and the spelled names of the folders in each; "." for files there."""
    chains = {chain for place in places if (chain := _classes_of(place, origins))}
    level = len(list(takewhile(lambda names: len(set(names)) == 1, zip(*chains, strict=False))))
    inside: dict[str, set[str]] = {}
    for chain in chains:
        if len(chain) > level:
            inner = chain[level + 1 : level + 2]
            inside.setdefault(chain[level], set()).add(normalize(inner[0]) if inner else ".")
    return inside


def _repeat(inside: dict[str, set[str]]) -> bool:
    """Whether several folders have the same classes in them: two or more, and half of all at least, are in several."""
    found = Counter(name for inner in inside.values() for name in inner)
    again = sum(count > 1 for count in found.values())
    return all(map(says_class, [*inside, *found])) and again > 1 and again * 2 >= len(found)


def _says_animal(name: str) -> bool:
    return says_animal(normalize(name))


def folder_labels(paths: Sequence[str], level: int, origins: frozenset[str]) -> dict[str, str]:
    """The label of each folder.

    Numbers before names (``n02085620-Chihuahua``), keys (``label=cat``) and counts after them go if all have them and
    the labels stay different; so do splits (``train_cat``, ``test_cat``) if all have one, where labels become the same.
    A copy of a folder has the folder's label.
    """
    folders = sorted({chain[level] for path in paths if len(chain := folders_of(path, origins)) > level})
    labels = {folder: normalize(folder) for folder in folders}
    for number in (_KEY, _FOLDER_NUMBER, _COUNT):
        short = {folder: normalize(number.sub("", folder, count=1)) for folder in folders}
        all_numbered = all(short[folder] and number.sub("", folder, count=1) != folder for folder in folders)
        if all_numbered and len(set(short.values())) == len(set(labels.values())):
            labels = short
    unsplit = {folder: normalize(_SPLIT.sub("", folder, count=1)) for folder in folders}
    if all(unsplit[folder] and _SPLIT.search(folder) for folder in folders):
        labels = unsplit
    known = set(labels.values())
    originals = {folder: normalize(_COPY.sub("", folder, count=1)) for folder in folders}
    return {folder: originals[folder] if originals[folder] in known else label for folder, label in labels.items()}


def splits_among(folders: Collection[str]) -> list[str]:
    """Folders that are the same without the names of splits (``seg_train``, ``seg_test``), if others have none."""
    whole = {folder: normalize(_SPLIT.sub("", folder, count=1)) for folder in folders if _SPLIT.search(folder)}
    counts = Counter(whole.values())
    return sorted(folder for folder, name in whole.items() if counts[name] > 1) if len(whole) < len(folders) else []


def class_level(paths: Sequence[str], origins: frozenset[str], *, numbers: bool) -> int | None:
    """Which folder of `folders_of` is the class: the first where paths differ, or the last if they never do.

    Where the first ones are mere numbers, such as years, it is the next. `numbers` allows numbers as classes.
    """
    chains = [chain for path in paths if (chain := folders_of(path, origins))]
    level = 0
    while chains:
        names = {chain[level] for chain in chains if len(chain) > level}
        deeper = all(len(chain) > level + 1 for chain in chains)
        if len(names) == 1 and (deeper or _holds_classes(paths, origins, level)):
            level += 1
            continue
        if numbers or all(map(says_class, names)):
            return level
        if any(map(says_class, names)) or not deeper:
            return None
        level += 1
    return None


def _holds_classes(paths: Sequence[str], origins: frozenset[str], level: int) -> bool:
    """Whether the only folder at a level holds class folders, although some photos in it are in none of these.

    Such photos lie in a container beside the one of the class folders (``pets/train/happy``, ``pets/train/sad`` and
    ``pets/test``), or the class folders are animals' (``pets/cat``, ``pets/dog`` and ``pets/1.jpg``).
    """
    outer, inner, loose = folders_within(paths, origins, level)
    if not inner or _says_animal(outer) or not all(map(says_class, inner)):
        return False
    return any(map(_says_animal, inner)) or all(map(_is_container, loose))


def folders_within(paths: Sequence[str], origins: frozenset[str], level: int) -> tuple[str, set[str], set[str]]:
    """The only folder at a level, the folders of the next level, and the innermost folders of photos in none of these.

    The latter may be containers, which `folders_of` leaves out.
    """
    outer, inner, loose = "", set(), set()
    for place in places_of(paths):
        chain = _classes_of(place, origins)
        if len(chain) > level:
            outer = chain[level]
        if len(chain) > level + 1:
            inner.add(chain[level + 1])
        elif len(chain) > level:
            loose.add(split_path(place)[-1])
    return outer, inner, loose


def folders_of(path: str, origins: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The folders above a file that may be classes. origins: names of folders that are none."""
    folder, _, _ = path.replace("\\", "/").rpartition("/")
    return _classes_of(folder, origins)


@functools.lru_cache(maxsize=1 << 16)
def _classes_of(folder: str, origins: frozenset[str]) -> tuple[str, ...]:
    # The domains of CycleGAN are split by name: trainA and testA are A.
    parts = [_DOMAIN.sub(r"\1", part) if _DOMAIN.fullmatch(part) else part for part in split_path(folder)]
    # In DCIM, cameras and phones have folders of their own.
    of_camera = {part for before, part in pairwise(parts) if before.upper() == "DCIM" and not _says_animal(part)}
    return tuple(part for part in parts if not _is_container(part) and part not in origins | of_camera)


@functools.lru_cache(maxsize=1 << 16)
def words_of(name: str) -> frozenset[str]:
    """The words of a name, without numbers and sizes."""
    parted = re.sub(r"([a-z])(?=[A-Z])|([A-Z])(?=[A-Z][a-z])", r"\1\2 ", name)  # JPEGImages
    return frozenset(word for word in re.split(r"[\W_\d]+", parted.casefold()) if word and word != "x")


def _is_container(name: str) -> bool:
    words = words_of(name)
    return (bool(words) and words <= CONTAINER_WORDS) or bool(_CARD.fullmatch(name))


def says_class(name: str) -> bool:
    """Whether a folder's name can be a class: it contains a letter or an emoji and isn't a container's name."""
    return bool(re.search(LETTER, name)) and not _is_container(name)


def may_lack_labels(path: str) -> bool:
    """Whether a file is in a folder of test photos, which often have no labels."""
    return any(words_of(part) & _TEST_WORDS for part in split_path(path)[:-1])
