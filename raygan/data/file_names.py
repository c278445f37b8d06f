"""Labels from file names such as ``cat.123.jpg``."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence

from raygan.data.folders import SYNSET, WEBSITES, may_lack_labels
from raygan.data.kinds import split_path, without_ending
from raygan.data.labels import LETTER, normalize

#: Beginnings of file names that come from cameras and programs and name no class.
_GENERIC = frozenset(
    """
    img image images photo photos pic pics picture pictures dsc dscn dscf dcim pxl p pict mvi screenshot scan
    frame file untitled unnamed download received thumb crop face sample x n im test train val part batch at from e wa
    """.split()  # noqa: SIM905 - see above
)

_NAME_WITH_NUMBER = re.compile(rf"^(?P<label>.*?{LETTER}.*?)[ ._\-]*\(?\d[\d ._\-()]*$", re.DOTALL)

#: Name of an image, its ending taken off, in an export from Roboflow.
_EXPORTED = re.compile(r"_(?:jpe?g|png)\.rf\.[0-9a-zA-Z]+$")


def name_label(path: str) -> str | None:
    """The label in a photo's file name, as in ``cat.123.jpg``; None if it has none."""
    name = (split_path(path) or [""])[-1]
    match = _NAME_WITH_NUMBER.match(_EXPORTED.sub("", without_ending(name)))
    return _label(match.group("label")) if match else None


@functools.lru_cache(maxsize=1 << 16)  # photos may be millions, and few names are different without their numbers
def _label(beginning: str) -> str | None:
    label = beginning.strip(" ._-(")
    words = set(re.split(r"[\W_\d]+", label.casefold())) - {""}
    if (words and words <= _GENERIC | WEBSITES) or SYNSET.fullmatch(label):
        return None
    return "_".join(word for word in normalize(label).split("_") if word not in WEBSITES) or None


def names_tell(paths: Sequence[str]) -> bool:
    """Whether nearly all names carry a label, and there are few labels for that many files.

    Test folders may have none, if there are other photos.
    """
    asked = Counter(name_label(path) for path in paths if not may_lack_labels(path)) or Counter(map(name_label, paths))
    count, known = asked.total(), asked.total() - asked.pop(None, 0)
    return known >= 0.9 * count and len(asked) <= max(1, count // 4)
