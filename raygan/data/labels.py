"""Labels: what each photo shows, from folders, file names and Parquet columns.

`layouts` reads paths, `columns` Parquet columns, `tables` CSV and JSON lines, and this module spells what they find and
refuses what can't be right. A new layout of paths usually needs a word in the lists of `folders` or `file_names`, and a
row here. All are pure functions: nothing is read from a disk, and the same listing always gives the same labels. What
comes out, and why:

    layout                    example                                 label          because
    Kaggle Dogs vs. Cats      train/cat.0.jpg                         cat            file names tell
                              test1/1.jpg                             none           test folders may have no labels
    Oxford-IIIT Pet           images/great_pyrenees_1.jpg             great_pyrenees file names tell
                              annotations/trimaps/great_pyrenees_1.png left aside    it lies beside images/
    AFHQ                      train/cat/flickr_cat_000000.jpg         cat            file names repeat the folder's name
    Stanford Dogs             n02085620-Chihuahua/n02085620_7.jpg     chihuahua      class folders, less their numbers
    one folder per identity   Aaron_Eckhart/Aaron_Eckhart_0001.jpg    aaron_eckhart  class folders
    copies, counts            cat - Copy/0.jpg, cat (120)/0.jpg       cat            class folders, less these
    splits in folder names    train_cat/1.jpg, test_cat/2.jpg         cat            class folders, less the split
                              seg_train/sea/1.jpg, seg_test, seg_pred asks           splits, or classes
    several sources           google/cat/1.jpg, flickr/cat/1.jpg      cat            class folders, in folders by origin
                              backup/cat/1.jpg beside cat/1.jpg       cat            class folders, in folders by origin
                              in/happy/1.jpg, out/happy/1.jpg, sad    asks           either may be the classes
    cards of cameras          DCIM/100APPLE/1.jpg, 101APPLE/1.jpg     none           folders are by number
    CycleGAN                  trainA/1.jpg, testB/1.jpg               a, b           class folders, less the split
    masks beside photos       cat/1_mask.png beside cat/1.jpg         left aside     the name is a photo's
    photos beside one folder  cat/0.jpg, IMG_1.jpg                    cat, none      nothing tells the other's
    photos beside folders     x/train/sad/1.jpg, x/test/1.jpg         sad, none      test folders may have no labels
                              rex/old/1.jpg, rex/new/1.jpg, rex/1.jpg asks           the folder or those in it
    partitions                split=train/label=cat/1.jpg             cat            class folders, less the key
    numbered folders          CAT_00/0.jpg, CAT_01/1.jpg              asks           parts of one class, or a class each
    several inputs            --input train/cat train/dog             cat, dog       class folders
    Pascal VOC, COCO          VOC2012/JPEGImages/2007_1.jpg           asks           no name tells a class
    ClassLabel metadata       label: 1, names: [cat, dog]             dog            the metadata names the numbers
                              label: -1 or null                       none           there is no label
                              label: 2                                refused        it is beyond the names
    a dictionary (category)   label: "cat"                            cat            it is text
    a list                    label: ["cat"]                          cat            it has one item; else none
    path in the image struct  image: {bytes, path: "cat.0.jpg"}       cat            like a file's path; no column
    file names in a column    file_name: "cat_0.jpg"                  cat            like a file's path
    captions, ids             text: "a cat on a mat"                  refused        a class for each photo
    a table beside photos     labels.csv: id,breed / 000bec,boxer     boxer          folders and file names tell nothing
                              im/0.jpg, and the table                 boxer          one folder that is no animal
                              train/metadata.jsonl                    its label      like labels.csv

A class folder, or a column that a flag names, is no guess. A guess that gives a class to each photo is refused.
"""

from __future__ import annotations

import re
import statistics
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from raygan.errors import ConfigurationError

Layout = Literal["auto", "folders", "names", "columns"]

#: Longest label, in characters.
LONGEST = 200

#: The label of what is trained on all labels together.
ALL = "all"

#: Plurals that become singular. This is a list because some names (Pyrenees, James) only look like plurals.
_PLURALS = {
    **{
        f"{word}s": word
        for word in """
        animal bear beagle bengal bird boxer bulldog bunny camel cat chicken chihuahua chimpanzee corgi cow coyote
        cheetah dachshund dalmatian deer dog dolphin donkey duck eagle elephant ferret frog giraffe goat goldfish
        goose gorilla hamster hedgehog horse hound human hyena jaguar kangaroo kitten koala labrador lemur leopard lion
        lizard llama mastiff meerkat monkey otter owl panda panther parrot penguin person persian pet pig pigeon pointer
        poodle pug pup rabbit raccoon ragdoll rat retriever rottweiler samoyed seal setter sheep shepherd shorthair
        snake spaniel squirrel swan terrier tiger toad tortoise turtle whale wildcat wildlife zebra
        """.split()  # noqa: SIM905 - a list of quoted words would fill a screen
    },
    **{"foxes": "fox", "finches": "finch", "ostriches": "ostrich", "mice": "mouse", "geese": "goose"},
    **{"wolves": "wolf", "calves": "calf", "people": "person", "women": "woman", "men": "man", "children": "child"},
    **{"puppies": "puppy", "kitties": "kitty", "bunnies": "bunny", "ponies": "pony", "butterflies": "butterfly"},
    **{"huskies": "husky", "tabbies": "tabby", "collies": "collie", "faces": "face"},
}

#: Pattern of what makes a name more than a number: a letter of any script, an emoji, or a byte that is no UTF-8.
LETTER = "(?:[^\\W\\d_]|[\u2600-\u27bf\U0001f000-\U0001faff\udc80-\udcff])"

#: Words that name an animal. Where a folder and file names disagree, such a word is the class.
ANIMALS = frozenset(_PLURALS.values()) - {"animal", "face", "human", "person", "pet", "wildlife"}

#: A number below zero, whose hyphen is no mark between words.
_NEGATIVE = re.compile(r"-\d[\d._]*")

#: Invisible characters: byte order marks, zero-width spaces, marks of direction, soft hyphens. Joiners stay,
#: which some scripts and emoji need.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")


@dataclass(frozen=True)
class Guess:
    """How the labels of an input's photos are found.

    Attributes:
        how: in words, with the reason.
        label_of: from a path to its label, spelled; None for a path without one.
        certain: it is no guess: the user said so, or there are class folders.
    """

    how: str
    label_of: Callable[[str], str | None]
    certain: bool = False


def normalize(label: str) -> str:
    """One spelling for variants of a label: ``Cats``, ``CAT`` and ``cat`` become ``cat``.

    Spaces, dots, hyphens and underscores become one underscore; plurals of animals become singular; invisible
    characters go. A number keeps its sign.
    """
    label = _INVISIBLE.sub("", label)
    words = unicodedata.normalize("NFC", unicodedata.normalize("NFC", label).casefold())
    sign = "-" if _NEGATIVE.fullmatch(words.strip()) else ""
    words = re.sub(r"[\s_\-.]+", "_", words).strip("_")
    head, underscore, last = words.rpartition("_")
    return sign + head + underscore + _PLURALS.get(last, last)


def says_animal(label: str) -> bool:
    """Whether a label, spelled by `normalize`, is some animal's: ``tabby_cat``."""
    return label.rpartition("_")[2] in ANIMALS


def check_labels(labels: Sequence[str]) -> None:
    """Raise ConfigurationError if a label can't be used: it names the label and what is wrong with it."""
    for label in labels:
        where = f"--input: the label {label[:60]!r}"
        if len(label) > LONGEST:
            raise ConfigurationError(f"{where} … has {len(label)} characters: shorten it to {LONGEST} or fewer")
        strange = [c for c in label if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
        if strange:
            codes = ", ".join(f"U+{ord(c):04X}" for c in dict.fromkeys(strange))
            raise ConfigurationError(f"{where} has control characters ({codes}): rename it")
        if label == ALL:
            raise ConfigurationError(f"{where} stands for all labels together: rename it")


def check_guess(guess: str, counts: Mapping[str, int], flags: Sequence[str]) -> None:
    """Refuse a guess that gives a class to each photo.

    Args:
        guess: in words.
        counts: photos by label.
        flags: the two likeliest to tell what the labels are.

    Raises:
        ConfigurationError: more than one label, and half of them or more have one photo.
    """
    if len(counts) > 1 and statistics.median(counts.values()) <= 1:
        few = ", ".join(list(counts)[:3])
        raise ConfigurationError(
            f"--input: {guess} would give {len(counts):,} labels for {sum(counts.values()):,} photos ({few} …), "
            f"a class for nearly each photo: {' or '.join(flags)}"
        )
