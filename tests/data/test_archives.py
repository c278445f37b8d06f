"""Archives are read as folders, and nothing in them leads outside."""

from __future__ import annotations

import errno
import io
import os
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygan.data import archives, chunks
from raygan.data.chunks import PixelSettings
from raygan.data.filters import Rules
from raygan.data.listing import find_photos
from raygan.data.settings import Limits
from raygan.errors import ConfigurationError, RayganError

PHOTOS = {f"{label}/{i}.jpg": f"{label}{i}".encode() * 100 for label in ("cats", "dogs") for i in range(3)}


def pack(path, files, prefix=""):
    """An archive with these contents by name; the path's ending says of which kind."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(prefix + name, content)
        return path
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tar.xz"])
@pytest.mark.parametrize("prefix", ["", "./", "set\\"])
def test_archives_are_read_as_folders(tmp_path, name, prefix):
    listing = find_photos([str(pack(tmp_path / name, PHOTOS, prefix))])
    (source,) = listing.decompressed(str(tmp_path / "work"))
    rows = listing.photos.to_pylist()
    assert [row["label"] for row in rows] == ["cat"] * 3 + ["dog"] * 3
    for row in rows:
        content = PHOTOS[archives.name_of(row["path"].decode()).removeprefix("set/")]
        assert row["size"] == len(content)
        assert source.read(row["path"]) == content
        assert source.read(row["path"], 4) == content[:4]
    with pytest.raises(FileNotFoundError):
        source.read(b"cats/9.jpg")


@pytest.mark.parametrize("name", ["photos.tar", "photos.tar.gz", "photos.tar.bz2"])
def test_tables_and_rows_in_a_tar_are_read(tmp_path, name):
    photos = {f"im/{i}.jpg": b"photo" for i in range(8)}
    table = "\n".join(["id,breed", *(f"{i},{('cat', 'dog')[i % 2]}" for i in range(8))]).encode()
    listing = find_photos([str(pack(tmp_path / name, {**photos, "labels.csv": table}))])
    assert listing.photos["label"].to_pylist() == ["cat", "dog"] * 4
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [b"\xff\xd8\xff"] * 4, "label": ["cat", "dog"] * 2}), sink)
    rows = {f"data/{i}.parquet": sink.getvalue().to_pybytes() for i in range(2)}
    listing = find_photos([str(pack(tmp_path / name, rows))])
    assert listing.photos["label"].to_pylist() == ["cat", "dog"] * 4


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz"])
def test_photos_that_are_replaced_in_an_archive_are_other_photos(tmp_path, name):
    """Though their names, sizes and times are the same, as those of a reproducible archive are."""
    settings = PixelSettings(64, "crop", Rules((), Limits()))

    def keys(files):
        (tmp_path / name).unlink(missing_ok=True)
        listing = find_photos([str(pack(tmp_path / name, files))])
        return chunks.keys_of(listing.photos, listing.sources, settings)

    before = keys(PHOTOS)
    assert before[0] not in keys({**PHOTOS, "cats/0.jpg": PHOTOS["cats/0.jpg"][::-1]})


def test_several_archives_are_class_folders(tmp_path):
    packed = [str(pack(tmp_path / f"{name}.zip", {"1.jpg": b"1"})) for name in ("cats", "dogs")]
    assert find_photos(packed).photos["label"].to_pylist() == ["cat", "dog"]


def test_what_leads_outside_and_links_are_left_aside(tmp_path):
    outside = dict.fromkeys(["../up.jpg", "/etc/root.jpg", "\\\\host\\cats\\1.jpg"], b"x")
    path = pack(tmp_path / "photos.tar", {**PHOTOS, **outside, "__MACOSX/._1.jpg": b"x"})
    with tarfile.open(path, "a") as archive:
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "cats/0.jpg"), (tarfile.CHRTYPE, "")):
            info = tarfile.TarInfo(f"cats/link{kind!r}.jpg")
            info.type, info.linkname = kind, target
            archive.addfile(info)
    listing = find_photos([str(path)])
    assert listing.photos.num_rows == 6
    assert listing.ignored == {"outside the archive": 3, "hidden file": 1, "not a regular file": 3}


def test_an_archive_inside_a_folder_is_counted(tmp_path):
    for name in ("cat/1.jpg", "dog/1.jpg", "more.tar.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    listing = find_photos([str(tmp_path)])
    assert listing.ignored == {"archive": 1}
    assert "archive (1; unpack, or give to --input itself)" in listing.describe()


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz"])
def test_damaged_archives_are_refused_in_one_line(tmp_path, name):
    content = pack(tmp_path / name, PHOTOS).read_bytes()
    # Half of a plain tar ends between two files, a third of it in a header.
    for damaged in (b"", b"not an archive", content[: len(content) // 2], content[: len(content) // 3]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(ConfigurationError, match=r"cannot read the archive|no files"):
            find_photos([str(tmp_path / name)])
    with pytest.raises(ConfigurationError, match="does not exist"):
        find_photos([str(tmp_path / f"gone-{name}")])


@pytest.mark.parametrize(
    ("made", "named", "says"),
    [("x.zip", "x.tar", ".zip archive"), ("x.zip", "x.tar.gz", ".zip archive"), ("x.tar", "x.zip", ".tar archive")],
)
def test_an_archive_with_another_ones_ending_is_named_as_what_it_is(tmp_path, made, named, says):
    pack(tmp_path / made, PHOTOS).rename(tmp_path / named)
    with pytest.raises(ConfigurationError, match=f"it is a {says} that has another ending or isn't whole"):
        find_photos([str(tmp_path / named)])


def test_bytes_that_are_damaged_in_an_archive_can_not_be_read(tmp_path):
    path = pack(tmp_path / "photos.zip", PHOTOS)
    content = bytearray(path.read_bytes())
    content[40:45] = b"\xff" * 5
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"."):
        archives.read(str(path), str(path), "cats/0.jpg")


def test_a_plain_copy_is_made_once_and_again_for_another_archive(tmp_path):
    path = pack(tmp_path / "photos.tar.gz", PHOTOS)
    first = archives.plain_copy(str(path), str(tmp_path))
    assert os.path.getsize(first) <= find_photos([str(path)]).unpacked < 3 * os.path.getsize(first)
    assert archives.plain_copy(str(path), str(tmp_path)) == first
    pack(path, {"new.jpg": b"1"})
    assert archives.plain_copy(str(path), str(tmp_path)) != first


def test_a_copy_that_fills_the_disk_says_so_and_leaves_no_part(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = pack(tmp_path / "photos.tar.gz", PHOTOS)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RayganError, match=r"cannot decompress .*: its disk is full: make room$"):
        archives.plain_copy(str(path), str(tmp_path / "work"))
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("code", ["utf-8", "cp866"])
def test_names_in_a_code_page_that_an_archive_does_not_name(tmp_path, code):
    """Zip files of old programs: names in UTF-8 are known by their looks, any others aren't guessed."""
    path = tmp_path / "photos.zip"
    names = {"a" * len(name.encode(code)): name.encode(code) for name in ("кошка", "пес")}
    pack(path, {f"{name}/{i}.jpg": b"photo" for name in names for i in range(3)})
    content = path.read_bytes()
    for ascii_name, name in names.items():
        content = content.replace(ascii_name.encode() + b"/", name + b"/")
    path.write_bytes(content)
    if code == "utf-8":
        listing = find_photos([str(path)])
        assert set(listing.photos["label"].to_pylist()) == {"кошка", "пес"}
    else:
        with pytest.raises(ConfigurationError, match=r"code page that it doesn't name: .*unzip -O CP936.*--label"):
            find_photos([str(path)])
        listing = find_photos([str(path)], label="cat")
    assert {listing.sources[0].read(row["path"]) for row in listing.photos.to_pylist()} == {b"photo"}
