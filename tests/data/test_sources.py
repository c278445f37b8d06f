"""Finding photos, with their labels."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygan.data import listing
from raygan.data.columns import choose
from raygan.data.files import File
from raygan.data.listing import find_photos
from raygan.data.sources import shown
from raygan.errors import ConfigurationError


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8\xff")
    return root


def labels(*inputs, **options):
    listing = find_photos([str(path) for path in inputs], **options)
    return {shown(row["path"], row["row"]): row["label"] for row in listing.photos.to_pylist()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Cats/a.jpg", "cats/b.jpg", "cat/c.jpg", "DOG/d.jpg"), {"cat", "dog"}),
        (("training_set/training_set/cats/cat.1.jpg", "test_set/test_set/dogs/dog.1.jpg"), {"cat", "dog"}),
        (("deep/er/cats/2019/a.jpg", "deep/er/dogs/2020/b.jpg"), {"cat", "dog"}),
        (("cats/12/1.jpg", "dogs/12/1.jpg"), {"cat", "dog"}),
        (
            (
                "train/cat.1.jpg",
                "train/dog.1.jpg",
                "train/cat.2.jpg",
                "train/dog.2.jpg",
                *(f"train/cat.{i}.jpg" for i in range(3, 9)),
            ),
            {"cat", "dog"},
        ),
        (tuple(f"great_pyrenees_{i}.jpg" for i in range(5)), {"great_pyrenees"}),
        (tuple(f"photos/{label}_{i:05}.jpg" for i in range(8) for label in ("cat", "dog")), {"cat", "dog"}),
        (("wolf/1.jpg", "fox/2.jpg", *(f"cat.{i}.jpg" for i in range(4))), {"wolf", "fox", "cat"}),
        (("only/cats/1.jpg", "only/cats/2.jpg"), {"cat"}),
        (("котики/1.jpg", "Собаки/2.jpg"), {"котики", "собаки"}),
    ],
)
def test_labels_are_guessed(tmp_path, names, expected):
    assert set(labels(make(tmp_path, *names)).values()) == expected


@pytest.mark.parametrize(
    "names",
    [("after_4_bis/12/12.3.jpg", "after_4_bis/13/13.1.jpg"), ("1.jpg", "15747.jpg"), ("IMG_0001.jpg", "IMG_0002.jpg")],
)
def test_folders_of_one_class_need_a_label(tmp_path, names):
    make(tmp_path, *names)
    with pytest.raises(ConfigurationError, match="--label"):
        labels(tmp_path)
    assert set(labels(tmp_path, label="Dogs").values()) == {"dog"}


def test_photos_that_a_shell_names_one_by_one_are_one_input(tmp_path, monkeypatch):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(40):
            (tmp_path / label / f"{number}.jpg").write_bytes(b"\xff\xd8\xff")
    photos = sorted(map(str, tmp_path.glob("*/*.jpg")))
    monkeypatch.setattr("raygan.data.sources._walk_local", None)  # walking the folder for each takes minutes
    listing = find_photos([*photos, photos[0]])
    assert [source.root for source in listing.sources] == [str(tmp_path / "cat"), str(tmp_path / "dog")]
    assert listing.photos["label"].to_pylist() == ["cat"] * 40 + ["dog"] * 40
    assert len(listing.describe().splitlines()) == 2
    assert len(find_photos(photos[3:30], label="cat").photos) == 27


def test_a_table_is_no_input(tmp_path):
    (tmp_path / "labels.csv").write_text("id,breed")
    with pytest.raises(ConfigurationError, match="is a table: give the folder of the photos that it names"):
        find_photos([str(tmp_path / "labels.csv")])


def test_several_inputs_globs_and_single_files_are_listed(tmp_path):
    make(tmp_path, "a/cats/1.jpg", "b/cats/2.jpg", "b/dogs/3.jpg", "c/dog.1.jpg")
    assert set(labels(tmp_path / "*" / "cats", label="cat")) == {"a/cats/1.jpg", "b/cats/2.jpg"}
    assert set(labels(tmp_path / "**" / "*.jpg", label="x")) == {
        "a/cats/1.jpg",
        "b/cats/2.jpg",
        "b/dogs/3.jpg",
        "c/dog.1.jpg",
    }
    assert labels(tmp_path / "c" / "dog.1.jpg", tmp_path / "b") == {
        "dog.1.jpg": "dog",
        "cats/2.jpg": "cat",
        "dogs/3.jpg": "dog",
    }
    assert labels(tmp_path / "a" / "cats", tmp_path / "b" / "dogs") == {"1.jpg": "cat", "3.jpg": "dog"}


def test_files_left_aside_are_counted_by_reason(tmp_path):
    make(tmp_path, "cat/1.jpg", "dog/2.jpg", "stray.jpg", "notes.txt", ".hidden.jpg", "__MACOSX/cat/._1.jpg")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    (tmp_path / "dog" / "nowhere.jpg").symlink_to(tmp_path / "gone")
    (tmp_path / "dog" / "around").symlink_to(tmp_path)
    listing = find_photos([str(tmp_path)])
    assert listing.photos.num_rows == 3  # the dangling link is a photo that can't be read
    assert listing.ignored == {"no label": 1, "not an image": 1, "hidden file": 2, "not a regular file": 2}


def test_names_that_are_not_utf_8_are_escaped(tmp_path):
    make(tmp_path, "cat/a.jpg")
    with open(os.fsencode(tmp_path) + b"/cat/caf\xe9.jpg", "wb") as file:
        file.write(b"\xff\xd8\xff")
    assert set(labels(tmp_path)) == {"cat/a.jpg", "cat/caf\\xe9.jpg"}


def test_parquet_labels_get_the_names_in_the_metadata(tmp_path):
    names = b'{"info": {"features": {"label": {"names": ["Cat", "Dog"]}}}}'
    table = pa.table({"image": [{"bytes": b"a", "path": "x"}] * 3, "label": [0, 1, 1]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": names}), tmp_path / "train.parquet")
    assert labels(tmp_path) == {"train.parquet#0": "cat", "train.parquet#1": "dog", "train.parquet#2": "dog"}
    assert (choose(table.schema).image, choose(table.schema).label) == ("image", "label")
    with pytest.raises(ConfigurationError, match="--label-column"):
        labels(tmp_path, label_column="kind")


#: Lists photos, and asks for the room on a disk, as a user who isn't root.
AS_ANYBODY = """
import os, sys
from raygan.data.listing import find_photos
from raygan.errors import RayganError
from raygan.runtime.storage import room
find_photos([sys.argv[1] + "/warm/up"], label="cat")  # imports what is imported late
if os.getuid() == 0:
    os.setuid(65534)
for place in ("listed", "closed"):
    try:
        find_photos([sys.argv[1] + "/" + place])
    except RayganError as error:
        print(error)
print(room(sys.argv[1] + "/closed/cat/shards") > 0)
"""


def test_folders_that_may_not_be_entered_are_refused_not_left_out():
    """A class folder whose names may be listed but not read would be a class that is lost."""
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which only its owner may enter
        os.chmod(folder, 0o755)  # noqa: S103
        for path in ("warm/up/0.jpg", "listed/cat/0.jpg", "listed/dog/0.jpg", "closed/cat/0.jpg", "closed/dog/0.jpg"):
            os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
            Path(folder, path).write_bytes(b"\xff\xd8\xff")
        os.chmod(f"{folder}/listed/cat", 0o644)
        os.chmod(f"{folder}/closed/cat", 0)
        command = [sys.executable, "-c", AS_ANYBODY, folder]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        os.chmod(f"{folder}/closed/cat", 0o700)
        os.chmod(f"{folder}/listed/cat", 0o700)
    assert said == [
        f"--input: cannot read the files in {folder}/listed/cat: Permission denied",
        f"--input: cannot list {folder}/closed/cat: Permission denied",
        "True",
    ]


def test_a_listing_holds_no_object_for_each_photo(tmp_path, monkeypatch):
    find_photos([str(make(tmp_path, "cat/1.jpg"))])  # imports what it needs
    count = 30_000
    found = (File(f"{'cat' if i % 2 else 'dog'}/{i:08}.jpg", 4500, 10**18 + i, regular=True) for i in range(count))
    monkeypatch.setattr(listing, "files", lambda *_: found)
    tracemalloc.start()
    try:
        photos = find_photos([str(tmp_path)]).photos
        # A path alone takes 66 bytes, and Arrow's memory doesn't count here.
        assert tracemalloc.get_traced_memory()[1] < 130 * count
    finally:
        tracemalloc.stop()
    assert photos["label"].to_pylist() == ["cat"] * (count // 2) + ["dog"] * (count // 2)
    assert photos["changed"].to_pylist()[:2] == [10**18 + 1, 10**18 + 3]
