"""Labels from tables beside photos."""

from __future__ import annotations

import json
import unicodedata
import zipfile

import pytest

from raygan.data.listing import find_photos
from raygan.data.sources import shown
from raygan.errors import ConfigurationError


def write(path, content=b"\xff\xd8\xff"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def labels(folder, **options):
    photos = find_photos([str(folder)], **options).photos.to_pylist()
    return {shown(row["path"]): row["label"] for row in photos}


def breeds(paths, line="{},{}", head="id,breed", end="\n"):
    """A table in which photos are dogs and cats in turn."""
    return end.join([head, *(line.format(path, ("dog", "cat")[i % 2]) for i, path in enumerate(paths))]) + end


@pytest.mark.parametrize(
    "content",
    [
        breeds(f"{i:03}" for i in range(8)).encode(),  # names without endings, which aren't numbers
        breeds((f"photos/{i:03}.jpg" for i in range(8)), head="file_name,label").encode(),
        breeds((f"/kaggle/input/x/{i:03}.jpg" for i in range(8)), head="path,target").encode(),
        breeds((f"photos\\{i:03}.jpg" for i in range(8)), end="\r\n").encode(),
        ("\ufeff" + breeds((f"{i:03}.jpg" for i in range(8)), '"{}";"{}"', "id;breed", "\r\n")).encode(),
        breeds((f"{i:03}.jpg" for i in range(8)), "{}\t{}", "id\tbreed").encode("utf-16"),  # Excel's "Unicode text"
        breeds((f"{i:03}.jpg" for i in range(8)), "7,{},{}", ",id,breed").encode(),  # with pandas' index
        breeds((f"{i:03}.jpg" for i in range(8)), f'"{"1 " * 100_000}",{{}},{{}}', "embedding,id,breed").encode(),
    ],
)
def test_photos_by_any_name_get_their_labels(tmp_path, content):
    for i in range(9):  # the last is in no table
        write(tmp_path / "photos" / f"{i:03}.jpg")
    write(tmp_path / "labels.csv", content)
    expected = {f"photos/{i:03}.jpg": ("dog", "cat")[i % 2] for i in range(8)}
    assert labels(tmp_path) == expected
    listing = find_photos([str(tmp_path)])
    assert listing.ignored == {"no label": 1, "not an image": 1}
    assert "of labels.csv, photos by its column" in listing.describe()


def test_capitals_of_an_ending_make_no_difference(tmp_path):
    for i in range(8):
        write(tmp_path / "photos" / f"{i:03}.{('JPG', 'jpg')[i % 2]}")
    write(tmp_path / "photos" / "twice.jpg")
    write(tmp_path / "photos" / "twice.JPG")
    write(tmp_path / "photos" / "other.PNG")
    named = [*(f"{i:03}.jpg" for i in range(8)), "twice.JPG", "twice.jpg", "other.jpg"]
    write(tmp_path / "labels.csv", breeds(named).encode())
    known = {f"photos/{i:03}.{('JPG', 'jpg')[i % 2]}": ("dog", "cat")[i % 2] for i in range(8)}
    assert labels(tmp_path) == known | {"photos/twice.JPG": "dog", "photos/twice.jpg": "cat"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("labels.csv", breeds((f"{i:03}.jpg" for i in range(8)), "{},{}ñ").encode("latin-1"), "is not UTF-8"),
        ("labels.csv", breeds(f"{i:03}.jpg" for i in range(8)).encode("utf-16-le"), "is not UTF-8"),
        (
            "labels.csv",
            breeds((f"{i:03}.jpg" for i in range(8)), "{},x,{}", "id,breed,breed").encode(),
            "has several columns",
        ),
        ("labels.csv", breeds((f"{i:03}.jpg" for i in range(8)), '{},"{}').encode(), "is damaged"),
        ("labels.csv", b"filename,cat,dog\n000.jpg,1,0\n001.jpg,0,1\n", r"has no column of labels \(cat, dog\)"),
        ("labels.csv", b"filename,label\n000.jpg,0.5\n001.jpg,0\n", "row 0: column label has 0.5, a fraction"),
        ("metadata.jsonl", b'{"file_name": "000.jpg", "label": "cat"}\n{"file_na', "is damaged: line 2 is no JSON"),
        ("labels.csv", b"filename,label\n0.jpg,cat\n1.jpg,dog\n", "has no label of a photo"),
        ("labels.csv", b"filename,label\n000.jpg,cat\n000.jpg,dog\n", "has several labels for each photo"),
        ("metadata.jsonl", b'{"file_name": "000.jpg", "label": ["cat"]}\n' * 2, "has no label of a photo"),
        ("metadata.jsonl", b"[" * 100_000, "is damaged: line 1 is no JSON"),
    ],
)
def test_a_table_that_can_not_be_read_is_named_where_labels_are_missed(tmp_path, name, content, says):
    for i in range(8):
        write(tmp_path / f"{i:03}.jpg")
    write(tmp_path / name, content)
    with pytest.raises(ConfigurationError, match=rf"no labels found .*; {name},? {says}"):
        find_photos([str(tmp_path)])


def test_a_table_that_can_not_be_read_is_named_beside_what_is_guessed_without_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("labels.csv", breeds(f"{i:03}" for i in range(8)))
        for i in range(8):
            archive.writestr(f"im/{i:03}.jpg", b"\xff\xd8\xff")
    assert set(labels(tmp_path / "photos.zip").values()) == {"cat", "dog"}
    content = (tmp_path / "photos.zip").read_bytes()
    (tmp_path / "photos.zip").write_bytes(content.replace(b"id,breed", b"id,bread"))  # its checksum is wrong
    listing = find_photos([str(tmp_path / "photos.zip")])
    assert set(listing.photos["label"].to_pylist()) == {"im"}
    assert "class folder im; labels.csv can't be read: Bad CRC-32" in listing.describe()
    with pytest.raises(ConfigurationError, match=r"has a column 'breed'; labels.csv can't be read"):
        find_photos([str(tmp_path / "photos.zip")], label_column="breed")


def test_folders_and_file_names_come_before_tables(tmp_path):
    for i in range(8):
        write(tmp_path / "train" / f"cat.{i}.jpg")
    write(tmp_path / "labels.csv", breeds(f"cat.{i}" for i in range(8)).encode())
    assert set(labels(tmp_path).values()) == {"cat"}


def test_classes_by_number_do_not_pass_for_names_of_photos(tmp_path):
    for i in range(8):
        write(tmp_path / f"{i}.jpg")
    write(tmp_path / "labels.csv", b"label,id\n" + b"".join(b"%d,%d\n" % (i % 2, i) for i in range(8)))
    assert labels(tmp_path) == {f"{i}.jpg": str(i % 2) for i in range(8)}


def test_accents_are_the_same_however_they_are_stored(tmp_path):
    names = [f"ét/chât{i}x.jpg" for i in range(8)]
    for name in names:
        write(tmp_path / unicodedata.normalize("NFD", name))
    write(tmp_path / "labels.csv", breeds(unicodedata.normalize("NFC", name) for name in names).encode())
    assert len(labels(tmp_path)) == 8


@pytest.mark.parametrize("number", ["1234567890123456789{}", "99999999999999999999999{}"])
def test_long_numbers_stay_different_classes(tmp_path, number):
    for i in range(8):
        write(tmp_path / f"{i}x.jpg")
    rows = "".join(f"{i}x.jpg,{number.format(i % 2)}\n" for i in range(8))
    write(tmp_path / "labels.csv", f"file,label\n{rows}".encode())
    assert labels(tmp_path) == {f"{i}x.jpg": number.format(i % 2) for i in range(8)}


def test_a_name_that_two_photos_share_stands_for_neither(tmp_path):
    for i in range(8):
        write(tmp_path / "train" / f"{i}.jpg")
    for i in range(4):
        write(tmp_path / "test" / f"{i}.jpg")
    write(tmp_path / "labels.csv", breeds(map(str, range(8))).encode())
    assert set(labels(tmp_path)) == {f"train/{i}.jpg" for i in range(4, 8)}


def test_a_photo_with_two_labels_has_none(tmp_path):
    for i in range(8):
        write(tmp_path / f"{i}.jpg")
    boxes = breeds([*range(8), 0, 1], "{},{},1 2 3 4", "image_id,class_name,box")  # 0 and 1 have two boxes each
    write(tmp_path / "boxes.csv", boxes.encode())
    assert len(labels(tmp_path)) == 8
    write(tmp_path / "boxes.csv", boxes.encode() + b"5,dog,1 2 3 4\n")  # and a cat's
    assert set(labels(tmp_path)) == {f"{i}.jpg" for i in range(8) if i != 5}


@pytest.mark.parametrize(
    "content",
    [
        b"id,caption\n0,a cat\n1,a dog\n",  # says something of each photo, never a class
        b"id,x,y\n0,1.5,2\n1,2.5,3\n",  # no column of labels
        b"id,label\n0,0.5\n1,0.5\n",  # fractions are no labels
        b"name,label\nsomething,cat\nelse,dog\n",  # about other files
        b"id,label\n0,\xea\xee\xf2\n1,\xf1\xee\xe1\n",  # in a code page that nothing names
        b"just text\n",
        b"",
        b'id,label\n0,"cat',
    ],
)
def test_tables_that_say_nothing_of_classes_give_no_labels(tmp_path, content):
    for i in range(4):
        write(tmp_path / f"{i}.jpg")
    write(tmp_path / "table.csv", content)
    with pytest.raises(ConfigurationError, match=r"no labels found .*sort them into folders"):
        labels(tmp_path)


def test_a_competitions_sample_of_answers_is_no_table_of_labels(tmp_path):
    for i in range(4):
        write(tmp_path / "test1" / f"{i}.jpg")
    write(tmp_path / "sampleSubmission.csv", b"id,label\n0,0\n1,0\n2,0\n3,0\n")
    with pytest.raises(ConfigurationError, match="no labels found"):
        labels(tmp_path)


def test_a_table_with_a_class_for_each_photo_is_refused(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.jpg")
    write(tmp_path / "t.csv", b"id,name,breed\n0,rex,pug\n1,tom,pug\n2,ada,boxer\n3,bo,boxer\n")
    assert set(labels(tmp_path).values()) == {"pug", "boxer"}
    assert set(labels(tmp_path, label_column="name").values()) == {"rex", "tom", "ada", "bo"}
    write(tmp_path / "t.csv", b"id,name\n0,rex\n1,tom\n2,ada\n3,bo\n")
    with pytest.raises(ConfigurationError, match=r"4 labels for 4 photos .*--label-column .*--label"):
        labels(tmp_path)


def test_a_missing_label_is_no_class(tmp_path):
    """As R (NA) and SQL (NULL) write it: numbers beside it are numbers."""
    for i in range(8):
        write(tmp_path / f"{i:03}.jpg")
    table = breeds(f"{i:03}" for i in range(8))
    for missing in ("NA", "NULL", "None", "#N/A"):
        write(tmp_path / "labels.csv", table.replace("003,cat", f"003,{missing}").encode())
        assert labels(tmp_path) == {f"{i:03}.jpg": ("dog", "cat")[i % 2] for i in range(8) if i != 3}
    write(
        tmp_path / "labels.csv", table.replace("003,cat", "003,NA").replace("cat", "1.0").replace("dog", "0.0").encode()
    )
    assert set(labels(tmp_path).values()) == {"0", "1"}


def test_a_first_row_that_names_a_photo_is_no_row_of_names(tmp_path):
    for i in range(8):
        write(tmp_path / f"{i:03}.jpg")
    write(tmp_path / "labels.csv", breeds((f"{i:03}.jpg" for i in range(1, 8)), head="000.jpg,cat").encode())
    assert labels(tmp_path) == {f"{i:03}.jpg": ("cat", "dog")[i % 2] for i in range(8)}


def test_metadata_of_a_hub_gives_labels(tmp_path):
    lines = []
    for i in range(8):
        write(tmp_path / "train" / f"{i}.jpg")
        about = {"file_name": f"{i}.jpg", "label": ("cat", "dog")[i % 2], "boxes": [[1, 2]], "line": "a\u2028b"}
        lines.append(json.dumps(about, ensure_ascii=False))
    write(tmp_path / "train" / "metadata.jsonl", "\n".join(lines).encode())
    assert labels(tmp_path) == {f"train/{i}.jpg": ("cat", "dog")[i % 2] for i in range(8)}
    write(tmp_path / "train" / "metadata.jsonl", b"[1, 2]\n[3, 4]\n")
    with pytest.raises(ConfigurationError, match="no labels found"):
        labels(tmp_path)


@pytest.mark.parametrize(("folder", "expected"), [("im", {"cat", "dog"}), ("cats", {"cat"})])
def test_a_table_knows_more_than_one_folder_whose_name_is_no_animals(tmp_path, folder, expected):
    for i in range(8):
        write(tmp_path / folder / f"{i:03}.jpg")
    write(tmp_path / "labels.csv", breeds(f"{i:03}.jpg" for i in range(8)).encode())
    assert set(labels(tmp_path).values()) == expected
    assert set(labels(tmp_path, label="pet").values()) == {"pet"}
    assert set(labels(tmp_path, layout="folders").values()) == {folder.removesuffix("s")}


def test_a_column_that_a_flag_names_comes_before_folders(tmp_path):
    for i in range(8):
        write(tmp_path / ("cat", "dog")[i % 2] / f"{i:03}.jpg")
    write(tmp_path / "about.csv", "\n".join(["id,coat", *(f"{i:03},{i // 4}" for i in range(8))]).encode())
    assert set(labels(tmp_path).values()) == {"cat", "dog"}
    assert set(labels(tmp_path, label_column="coat").values()) == {"0", "1"}


@pytest.mark.parametrize("flag", ["label_column", "image_column"])
def test_a_column_that_nothing_has_is_refused(tmp_path, flag):
    for path in ("cat/1.jpg", "dog/1.jpg"):
        write(tmp_path / path)
    with pytest.raises(ConfigurationError, match=rf"--{flag.replace('_', '-')}: no .* has a column 'breed'"):
        labels(tmp_path, **{flag: "breed"})


def test_a_column_of_splits_is_no_column_of_labels(tmp_path):
    for i in range(8):
        write(tmp_path / f"{i:03}.jpg")
    write(tmp_path / "t.csv", breeds((f"{i:03}" for i in range(8)), "{},{}", "id,split").encode())
    with pytest.raises(ConfigurationError, match="no labels found"):
        labels(tmp_path)
