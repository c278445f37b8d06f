"""Folders as people have them: what hubs, phones, other systems and their tools leave beside photos."""

from __future__ import annotations

import json
import os

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from raygan.data.contents import contents
from raygan.data.filters import Rules
from raygan.data.listing import find_photos
from raygan.data.settings import FilterOptions
from raygan.data.sources import shown
from raygan.errors import ConfigurationError
from raygan.runtime import storage
from tests.data.messy import jpeg, picture

NAMES = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})}


def listed(*inputs, **options):
    """Each photo's label by its path, and counts of what is left aside."""
    listing = find_photos([str(path) for path in inputs], **options)
    return {shown(row["path"], row["row"]): row["label"] for row in listing.photos.to_pylist()}, listing.ignored


def write(path, content=b"\xff\xd8\xff"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_rows(path, columns, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def structs(count):
    return [{"bytes": b"\xff\xd8\xff", "path": f"{i}.jpg"} for i in range(count)]


def test_names_with_line_breaks_and_terminal_codes_are_escaped(tmp_path):
    write_rows(tmp_path / "t.parquet", {"im\x1b[2Jage": [b"\xff\xd8\xff"] * 4, "la\nbel": ["cat", "dog"] * 2})
    said = find_photos([str(tmp_path)]).describe()
    assert "column im\\x1b[2Jage, labels in column la\\nbel: 2 cat, 2 dog" in said
    assert said.isprintable()


def test_files_of_a_hub_beside_parquet_are_left_aside(tmp_path):
    write_rows(tmp_path / "data" / "train.parquet", {"image": structs(4), "label": [0, 1, 0, 1]}, NAMES)
    for name in ("README.md", "data/_SUCCESS", ".gitattributes", "assets/logo.png"):
        write(tmp_path / name)
    found, ignored = listed(tmp_path)
    assert sorted(found.values()) == ["cat", "cat", "dog", "dog"]
    assert ignored == {"not an image": 2, "hidden file": 1, "no label": 1}


@pytest.mark.parametrize("labels", [[0, 1, -1, 0, 1], [0, 1, None, 0, 1], [["x"], ["y"], [], ["x"], ["y"]]])
def test_rows_without_a_label_are_counted(tmp_path, labels):
    write_rows(tmp_path / "t.parquet", {"image": structs(5), "label": labels}, NAMES if labels[0] == 0 else None)
    found, ignored = listed(tmp_path)
    assert set(found) == {f"t.parquet#{row}" for row in (0, 1, 3, 4)}
    assert ignored == {"no label": 1}


def test_short_endings_and_numbers_of_databases_are_taken(tmp_path):
    labels = pa.array([0, 1, 0, 1]).cast(pa.decimal128(20, 0))
    write_rows(tmp_path / "t.pq", {"image": structs(4), "label": labels}, NAMES)
    assert sorted(listed(tmp_path)[0].values()) == ["cat", "cat", "dog", "dog"]


@pytest.mark.parametrize(
    "kind", [pa.binary(40), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())]
)
def test_photos_and_labels_may_be_bytes_of_any_type(tmp_path, kind):
    photos = [bytes([0xFF, 0xD8, 0xFF]).ljust(40, bytes([number])) for number in range(4)]
    labels = pa.array([b"cat", b"dog"] * 2)
    write_rows(tmp_path / "t.parquet", {"image": pa.array(photos).cast(kind), "label": labels})
    listing = find_photos([str(tmp_path)])
    assert listing.photos["label"].to_pylist() == ["cat", "dog"] * 2
    rules = Rules.choose(FilterOptions(), [])
    assert list(contents(listing.photos.to_pylist(), listing.sources, rules)) == photos


def test_an_input_that_is_neither_a_file_nor_a_folder_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(ConfigurationError, match=f"--input: {place} is neither a file nor a folder"):
            listed(place)


@pytest.mark.parametrize("values", [[True, False] * 2, [{"name": "cat"}] * 4])
def test_columns_that_may_be_meant_are_named(tmp_path, values):
    write_rows(tmp_path / "t.parquet", {"image": structs(4), "animal_is": values})
    with pytest.raises(ConfigurationError, match=r"no labels found .*--label-column \(animal_is\)"):
        listed(tmp_path)


def test_a_file_without_the_metadata_of_its_neighbors_has_their_names(tmp_path):
    write_rows(tmp_path / "0.parquet", {"image": structs(4), "label": [0, 1, 0, 1]})
    write_rows(tmp_path / "1.parquet", {"image": structs(4), "label": [0, 1, 0, 1]}, NAMES)
    assert set(listed(tmp_path)[0].values()) == {"cat", "dog"}


def test_a_column_of_file_names_is_read_as_file_names(tmp_path):
    names = [f"cat_{i}.jpg" for i in range(8)]
    write_rows(tmp_path / "t.parquet", {"image": [b"\xff\xd8\xff"] * 8, "file_name": names})
    assert set(listed(tmp_path)[0].values()) == {"cat"}
    assert set(listed(tmp_path, label_column="file_name")[0].values()) == {"cat"}


def test_paths_in_the_image_column_are_read_like_paths(tmp_path):
    rows = [{"bytes": b"\xff\xd8\xff", "path": f"train/{label}/{i}.jpg"} for i in range(4) for label in ("cats", "dog")]
    write_rows(tmp_path / "t.parquet", {"image": rows})
    assert set(listed(tmp_path)[0].values()) == {"cat", "dog"}


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("kind", [f"{i:032x}" for i in range(8)], "8 labels for 8 photos .*--label-column.*--label"),
        ("text", [f"a cat on mat {i}" for i in range(8)], "its columns are image, text"),
    ],
)
def test_ids_and_captions_are_no_labels(tmp_path, column, values, says):
    write_rows(tmp_path / "t.parquet", {"image": [b"\xff\xd8\xff"] * 8, column: values})
    with pytest.raises(ConfigurationError, match=says):
        listed(tmp_path)
    assert set(listed(tmp_path, label="cat")[0].values()) == {"cat"}


@pytest.mark.parametrize("twice", ["image", "label", "path"])
def test_columns_of_the_same_name_are_named(tmp_path, twice):
    columns = {"image": pa.array(structs(4)), "label": pa.array(["cat", "dog"] * 2), "path": pa.array(["a"] * 4)}
    pairs = [*columns.items(), (twice, columns[twice])]
    table = pa.Table.from_arrays([values for _, values in pairs], [name for name, _ in pairs])
    pq.write_table(table, tmp_path / "t.parquet")
    if twice == "path":  # which isn't needed
        assert set(listed(tmp_path)[0].values()) == {"cat", "dog"}
        return
    with pytest.raises(ConfigurationError, match=rf"t.parquet has 2 columns named '{twice}': .* --{twice}-column"):
        listed(tmp_path)


def test_rows_by_path_are_read_relative_to_the_file(tmp_path):
    for i in range(3):
        write(tmp_path / "data" / "photos" / f"{i}.jpg", jpeg(picture(i)))
    rows = [{"bytes": None, "path": f"photos\\{i}.jpg"} for i in range(4)]  # the last is gone
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(rows, kind), "label": ["cat", "dog", "cat", "dog"]}
    write_rows(tmp_path / "data" / "t.parquet", columns)
    expected = {f"data/photos/{i}.jpg": label for i, label in enumerate(columns["label"])}
    assert listed(tmp_path) == (expected, {})
    write_rows(tmp_path / "data" / "t.parquet", {"path": [row["path"] for row in rows], "label": columns["label"]})
    assert listed(tmp_path) == (expected, {})
    assert set(listed(tmp_path / "data" / "t.parquet")[0]) == {f"photos/{i}.jpg" for i in range(4)}


def test_absolute_paths_into_the_input_are_read(tmp_path):
    photo = tmp_path / "photos" / "0.jpg"
    write(photo)
    write_rows(tmp_path / "t.parquet", {"file": [str(photo), None], "label": ["cat", "dog"]})
    assert listed(tmp_path) == ({"photos/0.jpg": "cat"}, {"no photo in the row": 1})


def test_a_table_whose_photos_are_elsewhere_explains_photos_without_labels(tmp_path):
    write(tmp_path / "0.jpg")
    write_rows(tmp_path / "t.parquet", {"file": ["/data/0.jpg"] * 4, "label": ["cat"] * 4})
    with pytest.raises(ConfigurationError, match=r"column file, .*outside of the input"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("path", "says"),
    [("gone.jpg", "not there"), ("/etc/x.jpg", "outside"), ("../x.jpg", "outside"), ("http://x/y.jpg", "download")],
)
def test_rows_by_paths_that_lead_nowhere_are_refused_with_the_reason(tmp_path, path, says):
    write_rows(tmp_path / "t.parquet", {"file": [path] * 4, "label": ["cat"] * 4})
    with pytest.raises(ConfigurationError, match=f"column file, .*{says}"):
        listed(tmp_path)


def test_a_table_about_photos_elsewhere_is_no_hindrance(tmp_path):
    write_rows(tmp_path / "rejected.parquet", {"path": ["gone.jpg"] * 4, "label": ["cat"] * 4})
    for name in ("cat/1.jpg", "dog/1.jpg"):
        write(tmp_path / name)
    assert listed(tmp_path) == ({"cat/1.jpg": "cat", "dog/1.jpg": "dog"}, {"Parquet without photos": 1})


def test_folders_named_by_spark_are_labels(tmp_path):
    for label in ("cats", "dog"):
        write_rows(tmp_path / f"label={label}" / "part-0.parquet", {"image": structs(2)})
    assert set(listed(tmp_path)[0].values()) == {"cat", "dog"}


def test_links_that_lead_to_themselves_are_counted(tmp_path):
    write(tmp_path / "cat" / "1.jpg")
    write(tmp_path / "dog" / "1.jpg")
    (tmp_path / "cat" / "self").symlink_to("self")
    (tmp_path / "cat" / "a").symlink_to("b")
    (tmp_path / "cat" / "b").symlink_to("a")
    found, ignored = listed(tmp_path)
    assert set(found) == {"cat/1.jpg", "dog/1.jpg"}
    assert ignored == {"not a regular file": 3}


def test_a_folder_that_is_linked_twice_is_read_by_its_own_name_and_the_link_is_counted(tmp_path):
    write(tmp_path / "dog" / "1.jpg")
    write(tmp_path / "zebra" / "1.jpg")
    (tmp_path / "cat").symlink_to("dog")
    (tmp_path / "dog" / "up").symlink_to("..")
    assert listed(tmp_path) == ({"dog/1.jpg": "dog", "zebra/1.jpg": "zebra"}, {"not a regular file": 2})


def test_what_systems_leave_among_photos_is_left_aside(tmp_path):
    for label in ("cat", "dog"):
        names = ("1.jpg", "Thumbs.db", "desktop.ini", "Icon\r", "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "._1.jpg")
        for name in names:
            write(tmp_path / label / name)
    write(tmp_path / "$RECYCLE.BIN" / "1.jpg")
    assert listed(tmp_path) == ({"cat/1.jpg": "cat", "dog/1.jpg": "dog"}, {"hidden file": 11})


def test_files_without_an_images_ending_are_said(tmp_path):
    for name in ("cat/1.jpg", "dog/1.jpg", "dog/readme.md"):
        write(tmp_path / name)
    assert "1 of the files have no image extension" in find_photos([str(tmp_path)]).describe()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.zip", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ("t.tar.gz", b"<!DOCTYPE html><html>Google Drive can't scan this file</html>", "failed download"),
        ("t.zip", b"", "an empty file"),
        ("t.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ("t.parquet", b"PAR1 no more", "cannot read t.parquet"),
        ("faces.npz", b"PK", r"file of arrays or records \(1; write as image files or Parquet\)"),
        ("train.tfrecord", b"x", "file of arrays or records"),
    ],
)
def test_files_that_can_not_be_read_are_named_as_what_they_are(tmp_path, name, content, says):
    write(tmp_path / name, content)
    with pytest.raises(ConfigurationError, match=says):
        listed(tmp_path / name)


def test_an_archive_beside_other_files_is_named_in_the_refusal(tmp_path):
    write(tmp_path / "train.zip")
    write(tmp_path / "sampleSubmission.csv", b"id,label\n")
    with pytest.raises(ConfigurationError, match=r"archive \(1; unpack, or give to --input itself\)"):
        listed(tmp_path)


def test_an_address_on_the_web_is_refused():
    with pytest.raises(ConfigurationError, match="is on the web: download it"):
        listed("https://example.com/cats.zip")


def test_photos_in_formats_that_are_not_decoded_are_named(tmp_path):
    for name in ("cat/1.jxl", "cat/2.JXL", "dog/1.NEF", "dog/clip.mp4"):
        write(tmp_path / name)
    with pytest.raises(
        ConfigurationError, match=r"JPEG XL photo \(2; convert to JPEG or PNG\), camera RAW file \(1; convert"
    ):
        listed(tmp_path)
    write(tmp_path / "cat" / "3.jpg")
    assert listed(tmp_path)[1] == {"JPEG XL photo": 2, "camera RAW file": 1, "video": 1}


def test_the_output_may_not_be_an_input(tmp_path):
    write(tmp_path / "cat" / "1.jpg")
    write(tmp_path / "dog" / "1.jpg")
    for inputs in (str(tmp_path), str(tmp_path / "*" / "*.jpg"), f"{tmp_path}/cat/.."):
        with pytest.raises(ConfigurationError, match=r"--output: .* is an input"):
            find_photos([inputs], exclude=str(tmp_path))


def test_an_output_inside_an_input_must_be_new_or_a_data_set(tmp_path):
    for path in ("cat/1.jpg", "dog/1.jpg"):
        write(tmp_path / path)
    with pytest.raises(ConfigurationError, match=r"--output: .*dog lies in the input and holds other files"):
        find_photos([str(tmp_path)], exclude=str(tmp_path / "dog"))
    shards = tmp_path / "shards"
    assert find_photos([str(tmp_path)], exclude=str(shards)).photos.num_rows == 2
    for name in (".prepare/1", "manifest.json"):
        write(shards / name)
        assert find_photos([str(tmp_path)], exclude=str(shards)).photos.num_rows == 2


def test_an_output_in_a_bucket_is_held_apart_from_the_input_alike(tmp_path, monkeypatch):
    for path in ("photos/cat/1.jpg", "photos/dog/1.jpg", "photos/shards/.prepare/1"):
        write(tmp_path / path)
    bucket = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(storage, "open_root", lambda root: (bucket, ""))
    for output, says in (("photos", "is an input"), ("photos/", "is an input"), ("photos/cat", "holds other files")):
        with pytest.raises(ConfigurationError, match=rf"--output: mock://here/{output} .*{says}"):
            find_photos(["mock://here/photos/"], exclude=f"mock://here/{output}")
    for output in ("mock://here/photos/shards", "mock://here/photos/new", "mock://here/photos-too", str(tmp_path)):
        assert find_photos(["mock://here/photos"], exclude=output).photos.num_rows == 2


@pytest.mark.parametrize("files", [("manifest.json", "report.json"), ("mlflow.db", "mlflow.db.lock")])
def test_pictures_of_shards_and_runs_among_photos_are_no_photos(tmp_path, files):
    for path in ("cat/1.jpg", "dog/1.jpg", *(f"made/{name}" for name in files), "made/pictures/kept.png"):
        write(tmp_path / path)
    assert listed(tmp_path) == ({"cat/1.jpg": "cat", "dog/1.jpg": "dog"}, {"made by raygan": 3})
    with pytest.raises(ConfigurationError, match="holds shards or runs already"):
        listed(tmp_path / "made")


def test_names_that_are_not_utf_8_make_labels_with_escapes(tmp_path):
    for name in (b"/caf\xe9", b"/dog"):
        os.makedirs(os.fsencode(tmp_path) + name)
        with open(os.fsencode(tmp_path) + name + b"/1.jpg", "wb") as file:
            file.write(b"\xff\xd8\xff")
    assert set(listed(tmp_path)[0].values()) == {"caf\\xe9", "dog"}


def test_a_damaged_parquet_file_is_one_photo_that_can_not_be_read(tmp_path):
    write(tmp_path / "bad.parquet", b"PAR1 no more")
    write_rows(tmp_path / "good.parquet", {"image": structs(4), "label": ["cat", "dog"] * 2})
    found, _ = listed(tmp_path)
    assert found.pop("bad.parquet") == "unknown"
    assert list(found.values()) == ["cat", "dog"] * 2


def test_what_is_found_and_left_aside_is_said(tmp_path):
    for name in ("train/cat.0.jpg", *(f"train/dog.{i}.jpg" for i in range(7)), "test1/1.jpg", "notes.txt"):
        write(tmp_path / name)
    assert find_photos([str(tmp_path)]).describe() == (
        f"{tmp_path}: labels in file names (few distinct labels in many files): 7 dog, 1 cat\n"
        "left aside: no label (1), not an image (1)"
    )
