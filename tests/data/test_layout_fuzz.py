"""Trees, names and columns that nobody has thought of: every photo is accounted for, or one line says why not.

`RAYGAN_EXAMPLES=2000 pytest tests/data/test_layout_fuzz.py` tries more of them.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raygan.data.labels import check_labels, normalize
from raygan.data.listing import find_photos
from raygan.errors import RayganError
from tests.data.test_archives import pack

WORDS = """
cat cats Dog dogs CAT_00 CAT_01 train test1 val images photos annotations masks n02085620-Chihuahua 001.auk 2019 12 all
trainA testB thumbnails cat_mask Copy_of_cat cats\u200b @eaDir flickr_cat cat.1 IMG_0001
_ - . .. .git __MACOSX label=cat 🐱 قط кот e\u0301 a\\b 'q" x,y a:b %41 #1 ?v=1 *.jpg [a]
""".split()  # noqa: SIM905 - a list of quoted words would fill a screen
ENDINGS = [
    "",
    ".jpg",
    ".JPEG",
    ".png",
    ".heic",
    ".jxl",
    ".nef",
    ".txt",
    ".parquet",
    ".csv",
    ".zip",
    ".tar.gz",
    ".jpg.cat",
]
words = st.sampled_from(WORDS) | st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=8)
names = st.builds(
    lambda folders, stem, number, ending: "/".join([*folders, f"{stem}{number}{ending}"]),
    st.lists(words, max_size=3),
    words,
    st.sampled_from(["", "_1", ".2", " (3)", "0007"]),
    st.sampled_from(ENDINGS),
)
trees = st.lists(names, min_size=1, max_size=24, unique=True)

label_columns = st.one_of(
    st.lists(st.integers(-2, 3) | st.none(), min_size=1, max_size=9).map(lambda v: pa.array(v, pa.int64())),
    st.lists(st.floats() | st.none(), min_size=1, max_size=9).map(lambda v: pa.array(v, pa.float64())),
    st.lists(words | st.none(), min_size=1, max_size=9).map(lambda v: pa.array(_text(v), pa.string())),
    st.lists(names, min_size=1, max_size=9).map(lambda v: pa.array(_text(v), pa.string())),
    st.lists(words, min_size=1, max_size=9).map(lambda v: pa.array(_text(v), pa.string()).dictionary_encode()),
    st.lists(st.lists(words, max_size=2) | st.none(), min_size=1, max_size=9).map(
        lambda v: pa.array([None if each is None else _text(each) for each in v], pa.list_(pa.string()))
    ),
    st.lists(st.booleans() | st.none(), min_size=1, max_size=9).map(lambda v: pa.array(v, pa.bool_())),
    st.lists(st.binary(max_size=4) | st.none(), min_size=1, max_size=9).map(lambda v: pa.array(v, pa.binary())),
    st.lists(st.datetimes() | st.none(), min_size=1, max_size=9).map(lambda v: pa.array(v, pa.timestamp("us"))),
)
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
METADATA = {"huggingface": '{"info": {"features": {"label": {"names": ["Cats", "dog"]}}}}'}

many = settings(
    max_examples=int(os.environ.get("RAYGAN_EXAMPLES", "25")),
    deadline=None,
    derandomize="RAYGAN_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


def _text(values):
    return [None if value is None else value.encode("utf-8", "replace").decode() for value in values]


def write_tree(root: Path, paths: list[str]) -> None:
    for path in paths:
        try:
            place = root / path.replace("..", "up")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"\xff\xd8\xff")
        except (OSError, UnicodeEncodeError):
            continue  # a file where a folder should be, or a name that no file can have


def files_below(root: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(root))


def check(root: Path, count: int, **options) -> None:
    """Every file or row is a photo with a label that can be used, or left aside; or one line says why not."""
    try:
        listing = find_photos([str(root)], **options)
    except RayganError as refusal:
        error = str(refusal)
    else:
        error = ""
    if error:
        assert error.startswith("--")
        assert "\n" not in error
        return
    assert listing.photos.num_rows + sum(listing.ignored.values()) == count
    labels = listing.photos["label"].unique().to_pylist()
    check_labels(labels)
    assert all(label and normalize(label) == label for label in labels)
    assert str(root) in listing.describe()


@many
@given(trees, st.sampled_from([{}, {"layout": "folders"}, {"layout": "names"}, {"label": "cat"}]))
def test_every_file_of_any_tree_is_accounted_for(paths, options):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "input")
        root.mkdir()
        write_tree(root, paths)
        check(root, files_below(root), **options)


@many
@given(trees, st.sampled_from(["zip", "tar", "tar.gz"]))
def test_every_file_of_any_archive_is_accounted_for(paths, kind):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, f"input.{kind}")
        names = {}
        for path in paths:
            name = "/".join(_text(path.split("/")))
            key = "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
            if key:
                names.setdefault(key, name)
        pack(root, dict.fromkeys(names.values(), b"\xff\xd8\xff"))
        check(root, len(names))


@many
@given(
    label_columns,
    st.sampled_from(["label", "kind", "file_name", "Class"]),
    st.sampled_from(["bytes", "struct", "paths", "none"]),
    st.booleans(),
    st.sampled_from([{}, {"label_column": True}, {"label": "cat"}]),
)
def test_every_row_of_any_table_is_accounted_for(values, name, kind, named, options):
    count = len(values)
    images = {
        "bytes": pa.array([b"\xff\xd8\xff"] * count),
        "struct": pa.array([{"bytes": b"\xff", "path": f"cat_{i}.jpg"} for i in range(count)], IMAGE),
        "paths": pa.array([{"bytes": None, "path": f"{i}.jpg"} for i in range(count)], IMAGE),
        "none": pa.array(range(count)),
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "input")
        root.mkdir()
        if kind == "paths":
            write_tree(root, [f"{i}.jpg" for i in range(0, count, 2)])
        table = pa.table({"image": images[kind], name: values})
        pq.write_table(table.replace_schema_metadata(METADATA if named else None), root / "t.parquet")
        options = {**options, **({"label_column": name} if "label_column" in options else {})}
        other_photos = pa.types.is_binary(values.type) and "label_column" not in options
        check(root, count if kind != "none" or other_photos else 1, **options)
        shutil.rmtree(root)


cells = words | st.integers(-2, 9).map(lambda number: f"{number}.jpg") | st.integers(-2, 9).map(str) | st.just("")
rows = st.lists(st.lists(cells, min_size=1, max_size=3), min_size=1, max_size=9)


@many
@given(
    st.sampled_from(["", "im/", "cats/", "train/"]),
    st.one_of(
        st.tuples(st.sampled_from([".csv", ".tsv"]), rows.map(lambda v: "\n".join(",".join(_text(row)) for row in v))),
        st.tuples(st.just(".jsonl"), rows.map(lambda v: "\n".join(json.dumps(dict(enumerate(row))) for row in v))),
        st.tuples(st.sampled_from([".csv", ".jsonl"]), st.text(st.characters(exclude_categories=["Cs"]))),
    ),
    st.sampled_from([{}, {"label_column": "1"}, {"label": "cat"}]),
)
def test_every_file_beside_any_table_is_accounted_for(folder, table, options):
    ending, content = table
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "input")
        root.mkdir()
        write_tree(root, [f"{folder}{i}.jpg" for i in range(6)])
        (root / f"table{ending}").write_bytes(content.encode())
        check(root, 7, **options)
