"""`prepare` end to end: verdicts, counts, pixels, resuming, splits, errors."""

from __future__ import annotations

import csv
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image, ImageOps

import raygan
from raygan import tracking
from raygan.data import chunks, outliers, tasks
from raygan.data import report as photo_report
from raygan.data.listing import SCHEMA, Listing
from raygan.data.locations import Locations
from raygan.data.passes import Passes
from raygan.data.prepare import list_photos, pixel_settings_of, prepare
from raygan.data.settings import PrepareSettings
from raygan.data.shards import DataSet, read_shard
from raygan.errors import ConfigurationError, RayganError
from tests.data import messy
from tests.helpers import REPOSITORY, start_job, wait_until

REAL_MESSY = REPOSITORY.parent / "shared" / "data" / "messy"

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def records(tmp_path_factory, empty_records):
    """A storage for all tests."""
    folder = tmp_path_factory.mktemp("records")
    shutil.copy(empty_records, folder)
    return folder


@pytest.fixture
def settings(tmp_path, records):
    """A function that makes settings: output in the test's folder, and without the slow outlier network."""

    def make(*inputs: Path | str, **changes: Any) -> PrepareSettings:
        values = {"output": str(tmp_path / "shards"), "storage": str(records), "skip": ["outlier"]}
        return PrepareSettings.model_validate({**values, "input": [str(path) for path in inputs], **changes})

    return make


def rows(output: str | Path) -> list[dict[str, Any]]:
    """All rows of all shards in the manifest."""
    data = DataSet.open(str(output))
    return [row for shard in data.manifest.shards for row in pq.read_table(Path(output, shard.file)).to_pylist()]


def rejected(output: str | Path) -> dict[str, str]:
    return {row["path"]: row["reason"] for row in pq.read_table(Path(output, "rejected.parquet")).to_pylist()}


def verdicts(output: str | Path, names: list[str]) -> dict[str, str]:
    kept, reasons = {row["path"] for row in rows(output)}, rejected(output)
    return {name: "kept" if name in kept else reasons.get(name, "ignored") for name in names}


def contents(output: str | Path) -> dict[str, bytes]:
    """The content of every file of a finished data set."""
    return {str(path.relative_to(output)): path.read_bytes() for path in Path(output).rglob("*") if path.is_file()}


def passes_of(settings: PrepareSettings, folder: Path | str) -> Passes:
    """The passes of a preparation with its work folder there."""
    return Passes(settings, pixel_settings_of(settings), list_photos(settings), str(folder))


def photo_folder(root: Path, count: int, labels: tuple[str, ...] = ("cat", "dog"), start: int = 0) -> Path:
    for number, label in enumerate(labels):
        (root / label).mkdir(parents=True, exist_ok=True)
        for i in range(start, start + count):
            messy.picture(1000 * (number + 1) + i, 96).save(root / label / f"{i:04}.png")
    return root


def test_planted_faults_get_their_verdicts(tmp_path, settings):
    expected = messy.build(tmp_path / "messy")
    made = settings(tmp_path / "messy", skip=[])
    report = prepare(made)
    assert verdicts(made.output, list(expected)) == expected
    assert report["kept"] + report["rejected"] + report["ignored"] == report["seen"] == len(expected)
    pictures = {path.name for path in Path(made.output, "pictures").iterdir()}
    assert {"kept.png", "distributions.png"} <= pictures
    assert {f"rejected-{reason}.png" for reason in set(rejected(made.output).values())} <= pictures
    assert not Path(made.output, ".prepare").exists()
    assert_pixels_equal_pillows(tmp_path / "messy", made.output)


def assert_pixels_equal_pillows(photos: Path, output: str) -> None:
    found = {row["path"]: np.frombuffer(row["image"], np.uint8).reshape(64, 64, 3) for row in rows(output)}
    for name in ("cat/rotated.jpg", "cat/cmyk.jpg", "dog/gray.png", "dog/palette.gif", "dog/animated.gif"):
        with Image.open(photos / name) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        np.testing.assert_array_equal(found[name], np.asarray(upright.resize((64, 64), Image.Resampling.BICUBIC)))
    gray = np.asarray(messy.picture(501).convert("L").resize((64, 64), Image.Resampling.BICUBIC), float)
    assert np.abs(found["dog/gray16.png"][..., 0] - gray).max() <= 1


@pytest.mark.skipif(not REAL_MESSY.is_dir(), reason="the folder of real faulty photos is missing")
@pytest.mark.parametrize("size", [32, 128])
def test_real_photos_get_their_verdicts(settings, size):
    made = settings(REAL_MESSY, skip=[], image_size=size)
    report = prepare(made)
    with open(REAL_MESSY / "expected.csv", encoding="utf-8") as file:
        expected = {row["file"]: row["reason"] or row["verdict"] for row in csv.DictReader(file)}
    assert verdicts(made.output, list(expected)) == expected
    assert report["seen"] == sum(len(files) for _, _, files in os.walk(REAL_MESSY))


def test_png_shards_hold_the_same_pixels(tmp_path, settings):
    photos = photo_folder(tmp_path / "photos", 8)
    pixels = {}
    for encoding in ("raw", "png"):
        made = settings(photos, encoding=encoding, output=str(tmp_path / encoding), validation=0)
        prepare(made)
        data = DataSet.open(made.output)
        pixels[encoding] = [read_shard(made.output, data.manifest, shard)[0] for shard in data.shards("train")]
    assert pixels["raw"][0].shape == (16, 3, 64, 64)
    np.testing.assert_array_equal(pixels["raw"][0], pixels["png"][0])


def test_padding_keeps_the_whole_photo(tmp_path, settings):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    messy.picture(3, 160).crop((0, 0, 160, 80)).save(tmp_path / "photos" / "cat" / "wide.png")
    made = settings(tmp_path / "photos", fit="pad")
    prepare(made)
    (row,) = rows(made.output)
    pixels = np.frombuffer(row["image"], np.uint8).reshape(64, 64, 3)
    assert not pixels[:16].any()
    assert not pixels[48:].any()
    assert pixels[16:48].std() > 10


def test_parquet_input_gives_the_same_as_a_folder(tmp_path, settings):
    photos = photo_folder(tmp_path / "photos", 10)
    files = sorted(photos.rglob("*.png"))
    table = pa.table(
        {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path in files] + [{"bytes": b"", "path": ""}],
            "label": [path.parent.name.upper() + "S" for path in files] + ["cat"],
        }
    )
    pq.write_table(table, tmp_path / "hub.parquet", row_group_size=6)
    of_folder = settings(photos, output=str(tmp_path / "a"), chunk_images=4)
    of_table = settings(tmp_path / "hub.parquet", output=str(tmp_path / "b"), chunk_images=4)
    prepare(of_folder)
    report = prepare(of_table)
    assert (report["seen"], report["kept"]) == (21, 20)
    assert rejected(of_table.output) == {"hub.parquet#20": "unreadable"}

    def content(output: str) -> list[Any]:
        return sorted((row["hash"], row["label"], row["split"], row["image"]) for row in rows(output))

    assert content(of_table.output) == content(of_folder.output)


def test_a_job_killed_beside_a_second_one_resumes_to_the_bytes_of_an_undisturbed_one(tmp_path, settings, capfd):
    photos = photo_folder(tmp_path / "photos", 60)
    calm = settings(photos, output=str(tmp_path / "calm"), chunk_images=4)
    prepare(calm)
    killed = settings(photos, output=str(tmp_path / "killed"), chunk_images=4)
    job = start_job("prepare", settings=killed, address=ray.get_runtime_context().gcs_address)
    work = Path(killed.output, ".prepare")
    wait_until(lambda: len(list(work.glob("chunk-*.parquet"))) >= 2, "two chunks are written", alive=job)
    (tmp_path / "same").symlink_to(killed.output)
    with pytest.raises(RayganError, match=r"another job is writing to .*: wait for it"):
        prepare(settings(photos, output=str(tmp_path / "same"), hash_distance=3))
    job.kill()
    job.wait()
    for name in (".prepare/chunk-0.parquet.part", "train-00000.parquet.part"):  # as a write leaves it that is cut off
        Path(killed.output, name).write_bytes(b"PAR1")
    assert not Path(killed.output, "manifest.json").exists()
    with pytest.raises(RayganError, match="manifest"):
        DataSet.open(killed.output)
    capfd.readouterr()
    prepare(killed)
    assert "photos are known" in capfd.readouterr().out
    assert contents(killed.output) == contents(calm.output)


def test_a_grown_input_is_examined_only_where_it_is_new(tmp_path, settings, capfd):
    photos = photo_folder(tmp_path / "photos", 30)
    grown = settings(photos, output=str(tmp_path / "grown"), chunk_images=8, more_later=True)
    prepare(grown)
    before = {path.name for path in Path(grown.output, ".prepare").glob("chunk-*")}
    photo_folder(photos, 12, start=500)
    shutil.copy(photos / "cat" / "0000.png", photos / "cat" / "0000 copy.png")  # among the old ones
    capfd.readouterr()
    prepare(grown.model_copy(update={"overwrite": True}))
    assert "60 of 85 photos are known" in capfd.readouterr().out
    assert before < {path.name for path in Path(grown.output, ".prepare").glob("chunk-*")}
    at_once = settings(photos, output=str(tmp_path / "at-once"), chunk_images=8)
    prepare(at_once)
    shutil.rmtree(Path(grown.output, ".prepare"))
    assert contents(grown.output) == contents(at_once.output)


def test_split_is_stable_when_files_are_added_and_renamed(tmp_path, settings):
    photos = photo_folder(tmp_path / "photos", 40)
    first = settings(photos, output=str(tmp_path / "first"), validation=0.3)
    prepare(first)
    photo_folder(photos, 20, start=100)
    for number, path in enumerate(sorted(photos.rglob("00*.png"))):
        path.rename(path.with_name(f"renamed {100 - number}.png"))
    second = settings(photos, output=str(tmp_path / "second"), validation=0.3)
    prepare(second)
    before = {row["hash"]: row["split"] for row in rows(first.output)}
    after = {row["hash"]: row["split"] for row in rows(second.output)}
    assert len(after) == 120
    assert {hash_: after[hash_] for hash_ in before} == before
    assert 0.1 < sum(split == "validation" for split in after.values()) / len(after) < 0.5


def test_kept_near_duplicates_share_a_split(tmp_path, settings):
    photos = photo_folder(tmp_path / "photos", 20, ("cat",))
    for path in list((photos / "cat").iterdir()):
        Image.open(path).resize((90, 90)).save(path.with_suffix(".jpg"), quality=85)
    made = settings(photos, skip=["outlier", "near_duplicate"], validation=0.5)
    prepare(made)
    splits: dict[str, set[str]] = {}
    for row in rows(made.output):
        splits.setdefault(Path(row["path"]).stem, set()).add(row["split"])
    assert len(splits) == 20
    assert all(len(found) == 1 for found in splits.values())


def test_near_duplicates_share_a_split_even_if_the_photo_between_them_is_rejected(tmp_path, monkeypatch):
    about = {"label": "cat", "width": 64, "height": 64, "phash": bytes(8)}
    hashes = ["00000000", "11111111", "88888888", "eeeeeeee", "ffffffff"]  # alone, three would be for training
    rows = [{**about, "path": f"{i}.png", "hash": value} for i, value in enumerate(hashes)]
    monkeypatch.setattr(Locations, "records", lambda where: pa.Table.from_pylist(rows, chunks.RECORD))
    monkeypatch.setattr(Passes, "reject_outliers", lambda passes, verdicts: verdicts.reject(2, "outlier", 1.0))
    settings = PrepareSettings(input=["photos"], output=str(tmp_path), skip=["near_duplicate"], validation=0.5)
    passes = Passes(settings, pixel_settings_of(settings), Listing([], SCHEMA.empty_table()), str(tmp_path))
    records, _ = passes.compare()
    assert records["split"].to_pylist() == ["validation", "validation", None, "validation", "validation"]


def test_output_is_replaced_only_with_overwrite(tmp_path, settings, capsys):
    photos = photo_folder(tmp_path / "photos", 4)
    made = settings(photos)
    report = prepare(made)
    assert prepare(made) == report
    assert "nothing to do" in capsys.readouterr().out
    other = settings(photos, image_size=32)
    with pytest.raises(ConfigurationError, match="--overwrite"):
        prepare(other)
    assert DataSet.open(made.output).manifest.image_size == 64
    prepare(settings(photos, image_size=32, overwrite=True))
    assert DataSet.open(made.output).manifest.image_size == 32


def test_a_notebooks_dry_run_writes_nothing(tmp_path, settings, monkeypatch):
    for name in ("RAY_ENABLE_AUTO_CONNECT", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):  # `raygan.prepare` would set them
        monkeypatch.setenv(name, "0")
    photos = photo_folder(tmp_path / "photos", 4)
    made = settings(photos, dry_run=True, storage=str(tmp_path / "storage"))
    assert raygan.prepare(**made.plain())["kept"] == 8
    assert not Path(made.output).exists()
    assert not Path(made.storage).exists()


def test_output_inside_an_input_is_not_read(tmp_path, settings):
    photos = photo_folder(tmp_path / "photos", 4)
    made = settings(photos, output=str(photos / "shards"))
    assert prepare(made)["seen"] == 8
    assert prepare(settings(photos, output=made.output, overwrite=True, image_size=32))["seen"] == 8


def _class_with_one_outlier(root: Path) -> Path:
    (root / "cat").mkdir(parents=True, exist_ok=True)
    base = np.asarray(messy.picture(7, 64), float)
    for i in range(110):
        noise = np.random.default_rng(i).normal(0, 12, base.shape)
        Image.fromarray((base + noise).clip(0, 255).astype(np.uint8)).save(root / "cat" / f"{i}.png")
    y, x = np.mgrid[:64, :64]
    board = ((x // 8 + y // 8) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(root / "cat" / "board.png")
    return root


def test_a_failing_outlier_search_says_why_in_one_line(tmp_path, settings, monkeypatch):
    def fail(places: Any, others: Any, own: Any) -> None:
        raise RayganError("cannot read the chunk")

    monkeypatch.setattr(tasks, "outlier_scores", fail)
    monkeypatch.setattr(outliers, "MIN_PHOTOS", 4)
    made = settings(photo_folder(tmp_path / "photos", 4, ("cat",)))
    verdicts = SimpleNamespace(alive_by_label=lambda: {"cat": np.arange(4)})
    passes = passes_of(made, made.output)
    passes.where.locate(np.arange(4), "chunk")
    with pytest.raises(RayganError, match=r"^cannot read the chunk$"):  # without Ray's traceback
        passes.reject_outliers(verdicts)


def test_a_job_that_died_while_writing_finds_the_same_outlier_and_leaves_the_same_bytes(
    tmp_path, settings, monkeypatch
):
    photos = _class_with_one_outlier(tmp_path / "photos")
    same = {"skip": ["near_duplicate"], "outlier_deviations": 6, "chunk_images": 16}
    calm = settings(photos, output=str(tmp_path / "calm"), **same)
    report = prepare(calm)
    assert rejected(calm.output) == {"cat/board.png": "outlier"}
    assert report["outliers"]["cat"]["found"] == 1
    died = settings(photos, output=str(tmp_path / "died"), **same)

    def die(*args: Any) -> None:
        raise KeyboardInterrupt("now")

    with monkeypatch.context() as patch:
        patch.setattr(photo_report, "write", die)
        with pytest.raises(KeyboardInterrupt, match="now"):
            prepare(died)
    assert list(Path(died.output).glob("*-00000.parquet"))
    chunks = sorted(Path(died.output, ".prepare").glob("chunk-*.parquet"))
    for lost in chunks[::2]:  # as if it had died with all shards but only some of the chunks there
        lost.unlink()
    prepare(died)
    assert contents(died.output) == contents(calm.output)


@pytest.mark.parametrize(
    ("file", "error", "says"),
    [
        (None, ConfigurationError, "no files"),
        ("notes.txt", RayganError, "no photo"),
        ("cat/broken.jpg", RayganError, "unreadable"),
        ("12/12.3.jpg", ConfigurationError, "--label"),
    ],
)
def test_inputs_without_photos_are_refused(tmp_path, settings, file, error, says):
    photos = tmp_path / "photos"
    photos.mkdir()
    if file:
        (photos / file).parent.mkdir(exist_ok=True)
        (photos / file).write_bytes(b"not a photo")
    with pytest.raises(error, match=says):
        prepare(settings(photos))


def test_a_missing_input_is_refused(tmp_path, settings):
    with pytest.raises(ConfigurationError, match="does not exist"):
        prepare(settings(tmp_path / "nowhere"))


def test_an_unwritable_output_is_an_error(tmp_path, settings):
    photos = photo_folder(tmp_path / "photos", 2)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RayganError, match="cannot write"):
        prepare(settings(photos, output=str(tmp_path / "file" / "shards")))


def test_a_vanished_input_stops_the_job_but_a_vanished_file_does_not(tmp_path, settings):
    photos = photo_folder(tmp_path / "photos", 4)
    made = settings(photos)
    (tmp_path / "work").mkdir()
    passes = passes_of(made, tmp_path / "work")
    (photos / "cat" / "0001.png").unlink()
    passes.examine()
    reasons = passes.compare()[0]["reason"].to_pylist()
    assert reasons.count("unreadable") == 1
    shutil.rmtree(tmp_path / "work")
    (tmp_path / "work").mkdir()
    shutil.rmtree(photos)
    with pytest.raises(RayganError, match="vanished"):
        passes.examine()


def test_a_data_set_whose_run_was_not_recorded_is_recorded_by_the_same_command(tmp_path, settings, monkeypatch, capsys):
    photos = photo_folder(tmp_path / "photos", 6)
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as archive:
        archive.add(photos, "photos")
    made = settings(tmp_path / "photos.tar.gz", experiment="late", chunk_images=4)
    kept = prepare(settings(photos, output=str(tmp_path / "other")))["kept"]
    with monkeypatch.context() as away:

        def refuse(*args: Any, **options: Any) -> None:
            raise RayganError("MLflow is away")

        away.setattr(tracking, "start_run", refuse)
        with pytest.raises(RayganError, match=r"MLflow is away; the shards .* are complete, and the same command"):
            prepare(made)
    assert not Path(made.output, ".prepare").exists()
    Path(made.output, ".prepare").mkdir()  # as if the job had been killed a moment before
    report = prepare(made)
    assert not Path(made.output, ".prepare").exists()
    assert report["kept"] == kept == 12
    assert "recording them" in capsys.readouterr().out
    client = tracking.connect(made)
    (run,) = client.search_runs([client.get_experiment_by_name("late").experiment_id])
    assert run.data.metrics["kept"] == 12
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"report.json", "pictures"}
    assert prepare(made) == report
    assert "nothing to do" in capsys.readouterr().out


def test_a_disk_without_room_is_found_before_the_work(tmp_path, settings, monkeypatch):
    photos = photo_folder(tmp_path / "photos", 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(RayganError, match=r"--output: up to 0.2 MB will be written .* room for 0.0 MB"):
        prepare(settings(photos))
    assert not list(tmp_path.glob("shards/.prepare/chunk-*"))
