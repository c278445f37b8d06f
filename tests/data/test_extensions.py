"""A filter from an installed package: used by the job and by Ray's workers, without a change to raygan."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from tests.data import messy
from tests.helpers import finish_job, make_package

FILTER = '''
from raygan.data.filters import Filter


class MostlyRed(Filter):
    """Rejects photos with more red than anything else."""

    def of_photo(self, photo, limits):
        red, green, blue = photo.pixels.reshape(-1, 3).mean(axis=0)
        share = red / max(1, red + green + blue)
        return (share, "share of red") if share > 0.6 else None
'''


def test_a_filter_from_a_package_rejects_photos(packages, installed, tmp_path, new_storage):
    make_package(packages, "red", FILTER, "[raygan.filters]\nmostly_red = red:MostlyRed")
    photos = tmp_path / "photos" / "cat"
    photos.mkdir(parents=True)
    for number in range(4):
        messy.picture(number, 96).save(photos / f"{number}.png")
    gray = messy.picture(9, 96).convert("L")
    dark = gray.point(lambda level: level // 8)
    Image.merge("RGB", [gray, dark, dark]).save(photos / "red.png")
    output = tmp_path / "shards"
    arguments = ["--input", str(photos.parent), "--output", str(output), "--storage", str(new_storage)]
    job = finish_job("prepare", *arguments, "--skip", "outlier", environment=installed)
    assert job.returncode == 0, job.stderr
    assert json.loads(Path(output, "report.json").read_text())["reasons"] == {"mostly_red": 1}
    (rejected,) = pq.read_table(output / "rejected.parquet").to_pylist()
    assert (rejected["path"], rejected["reason"], rejected["detail"]) == ("cat/red.png", "mostly_red", "share of red")
    assert rejected["score"] > 0.6
    assert Path(output, "pictures", "rejected-mostly_red.png").is_file()
    manifest = json.loads(Path(output, "manifest.json").read_text())
    assert manifest["configuration"]["offered_filters"] == ["mostly_red"]
