"""The drawn faces: repeatable, varied, fit to train on, and two classes that a simple classifier can tell apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from raygan.data.duplicates import near_repeats
from raygan.data.examine import judge, look
from raygan.data.filters import Rules
from raygan.data.neighbors import words_of
from raygan.data.settings import Limits
from raygan.data.synthetic import LABELS, draw_face, draw_folder
from tests.data.messy import encoded

PER_LABEL = 100


@pytest.fixture(scope="module")
def faces() -> dict[str, npt.NDArray[np.uint8]]:
    """PER_LABEL faces of each label, (n, 64, 64, 3)."""
    return {label: np.stack([np.asarray(draw_face(label, seed, 64)) for seed in range(PER_LABEL)]) for label in LABELS}


def coarse(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Pictures averaged down to 16 x 16 and flattened, 0 to 1."""
    cells: npt.NDArray[np.float64] = pictures.reshape(-1, 16, 4, 16, 4, 3).mean((2, 4)) / 255
    return cells.reshape(len(cells), -1)


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean absolute difference of two pictures, 0 to 255."""
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("size", [2, 16, 64, 96, 130])
def test_a_face_is_rgb_of_the_requested_size(label: str, size: int) -> None:
    face = draw_face(label, 3, size)
    assert (face.mode, face.size) == ("RGB", (size, size))


@pytest.mark.parametrize("label", LABELS)
def test_a_seed_draws_the_same_bytes_whatever_was_drawn_in_between(label: str) -> None:
    first = draw_face(label, 7, 64).tobytes()
    draw_face(label, 8, 64)
    draw_face(label, 7, 96)
    assert draw_face(label, 7, 64).tobytes() == first


def test_seed_and_label_each_change_the_face() -> None:
    drawn = {draw_face(label, seed, 64).tobytes() for label in LABELS for seed in (0, 1)}
    assert len(drawn) == 4


@pytest.mark.parametrize("label", LABELS)
def test_a_seed_is_the_same_animal_at_every_size(label: str) -> None:
    for seed in range(5):
        small, large = draw_face(label, seed, 64), draw_face(label, seed, 128).reduce(2)
        stranger = draw_face(label, seed + 100, 64)
        assert difference(small, large) < 8 < 16 < difference(small, stranger)


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'horse' is unknown; choose one of cat, dog"):
        draw_face("horse", 0)


def test_no_two_faces_are_equal(faces: dict[str, npt.NDArray[np.uint8]]) -> None:
    assert len({face.tobytes() for drawn in faces.values() for face in drawn}) == PER_LABEL * len(LABELS)


@pytest.mark.parametrize("label", LABELS)
def test_faces_of_a_label_vary(faces: dict[str, npt.NDArray[np.uint8]], label: str) -> None:
    # Each face against the next, in coarse cells, where neither fur nor grain counts as variety.
    cells = coarse(faces[label])
    assert np.abs(cells - np.roll(cells, 1, 0)).mean() > 0.12
    assert cells.std(0).min() > 0.05


@pytest.mark.parametrize("label", LABELS)
def test_faces_use_the_tonal_range_without_burning_out(faces: dict[str, npt.NDArray[np.uint8]], label: str) -> None:
    assert 60 < faces[label].mean() < 190
    assert (faces[label] == 255).mean() < 0.05


@pytest.mark.parametrize("label", LABELS)
def test_prepare_keeps_nearly_all_faces(faces: dict[str, npt.NDArray[np.uint8]], label: str) -> None:
    rules = Rules.choose(Limits(), skip=[])
    files = [encoded(Image.fromarray(face), "PNG") for face in faces[label]]
    photos = judge([look(data, 64, "crop", rules) for data in files], rules)
    assert not any(photo.reason for photo in photos)
    hashes = np.frombuffer(b"".join(photo.phash for photo in photos), np.uint8).reshape(-1, 8)
    repeats, _ = near_repeats(words_of(hashes), 6)
    assert (repeats >= 0).sum() <= 0.03 * PER_LABEL


def test_a_classifier_trained_on_half_the_faces_tells_the_others_apart(faces: dict[str, npt.NDArray[np.uint8]]) -> None:
    # Ridge regression on coarse pixels is too simple to use anything but shapes in their places.
    pixels = np.concatenate([coarse(faces[label]) for label in LABELS])
    truth = np.repeat([-1.0, 1.0], PER_LABEL)
    seen = np.arange(len(truth)) % 2 == 0
    centered = pixels - pixels[seen].mean(0)
    kernel = centered[seen] @ centered[seen].T
    weights = centered[seen].T @ np.linalg.solve(kernel + 10 * np.eye(len(kernel)), truth[seen])
    right = np.sign(centered[~seen] @ weights) == truth[~seen]
    assert right.mean() > 0.9


def test_a_folder_has_a_subfolder_of_complete_pngs_for_each_label(tmp_path: Path) -> None:
    draw_folder(tmp_path / "faces", per_label=3, size=32)
    found = sorted(path.relative_to(tmp_path / "faces").as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == [f"{label}/{label}-{index:05d}.png" for label in LABELS for index in range(3)]
    for name in found:
        with Image.open(tmp_path / "faces" / name) as picture:
            picture.load()
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (32, 32))


def test_a_larger_folder_starts_with_the_same_faces_and_another_seed_shares_none(tmp_path: Path) -> None:
    def drawn(name: str, per_label: int, seed: int) -> list[bytes]:
        draw_folder(tmp_path / name, per_label, seed, size=32)
        return [path.read_bytes() for path in sorted((tmp_path / name / "dog").iterdir())]

    small, large, other = drawn("small", 2, 0), drawn("large", 4, 0), drawn("other", 4, 1)
    assert large[:2] == small
    assert not set(large) & set(other)


def test_drawing_into_a_folder_again_replaces_its_faces(tmp_path: Path) -> None:
    draw_folder(tmp_path, per_label=1, size=32)
    draw_folder(tmp_path, per_label=1, size=48)
    with Image.open(tmp_path / "cat" / "cat-00000.png") as picture:
        assert picture.size == (48, 48)
    assert len(list((tmp_path / "cat").iterdir())) == 1
