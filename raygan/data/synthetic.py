"""Cat and dog faces drawn from a seed: the embedded data set, so that a first training needs no download.

The mental model:

1. A label and a seed start one random generator, and everything that varies comes from it: pose, light, coat,
   shape of the head, eyes. The size is no part of it, so an animal looks the same at every size.
2. A `Canvas` speaks the head's own coordinates: x to the right, y down, the origin between the eyes or just
   below, ears' tips near y = -1 and chins near 0.75. It alone knows how the head is tilted, scaled and placed
   among the pixels; the numbers in the anatomy below are all in these head units, of an upright head.
3. Fur is a field: a colour for every pixel, made of a pattern, strands and the light on a relief. Parts of the
   body are outlines that let the field through, painted back to front: backdrop, shoulders, ears, head, muzzle,
   eyes. Pillow draws every outline `OVERSAMPLING` times too large and averages it down.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFilter

LABELS = ("cat", "dog")

#: Drawn pixels to a side of each pixel kept: an edge has 9 levels of coverage.
OVERSAMPLING = 3

#: `draw_folder` gives each of its seeds this many faces that no other seed has.
FACES_PER_SEED = 1_000_000

# Everything per pixel is float32: mixing in float64 would double the time a face takes.
Field = npt.NDArray[np.float32]  # one number for every pixel, (height, width)
Colour = npt.NDArray[np.float32]  # red, green, blue from 0 to 1, (3, 1, 1), or for every pixel, (3, height, width)
Outline = npt.NDArray[np.float64]  # corners of a closed shape in head coordinates, (n, 2); of several, (shapes, n, 2)
Point = tuple[float, float]
T = TypeVar("T")

# Coats by name: the fur itself, its dark markings, its pale markings.
CAT_COATS = {
    "ginger": ("#d98e4a", "#a3541c", "#f6e2c6"),
    "black": ("#37332f", "#191715", "#8b847e"),
    "grey": ("#8d929c", "#50555f", "#dde0e4"),
    "white": ("#ece6dd", "#c9bdb0", "#faf7f2"),
    "brown": ("#8a6545", "#402a1c", "#dcc5a6"),
    "golden": ("#c9a066", "#7a5228", "#f3e3c4"),
    "cream": ("#ead3ae", "#c39b69", "#fbf4e6"),
}
DOG_COATS = {
    "golden": ("#d9a75e", "#a06c2c", "#f5e2b9"),
    "ginger": ("#b5682f", "#6f3916", "#eccfa4"),
    "brown": ("#74492c", "#3d2415", "#d0b08c"),
    "black": ("#35312f", "#171514", "#b9b0a6"),
    "grey": ("#83868c", "#414449", "#e0e1e3"),
    "cream": ("#ead7b4", "#bd9a68", "#fbf5e8"),
    "white": ("#ece7df", "#c2b6a7", "#faf7f2"),
}
CAT_EYES = ("#b6c240", "#d9a62e", "#6fa85a", "#c97f2a", "#5f9fc9", "#8fb7a0")
DOG_EYES = ("#5a3318", "#6e4320", "#3b2415", "#8a5a26", "#5a3318", "#3b2415", "#7fb0d0")
BACKDROPS = ("#8fb59a", "#b3c8dd", "#dcc09a", "#7fa0bd", "#cfa29a", "#6c8a5c", "#e8e0d0", "#8a78a0", "#5b6674")
INK = "#1d1512"
PINK = "#e39a96"
WHITE = "#ffffff"
MILK = "#f4eee5"

# Patterns whose pale part is white whatever the coat.
WHITE_MARKED = ("patches", "tuxedo", "blaze")


def draw_face(label: str, seed: int, size: int = 96) -> Image.Image:
    """A front-facing animal face that fills its frame, as aligned face crops do.

    label: one of `LABELS`. seed: 0 or more; the same label, seed and size give the same pixels, and the same
    label and seed the same animal at another size. size: side in pixels, 2 or more. Returns an RGB image.
    Raises ValueError on an unknown label.
    """
    if label not in LABELS:
        raise ValueError(f"label: {label!r} is unknown; choose one of {', '.join(LABELS)}")
    rng = np.random.default_rng([LABELS.index(label), seed])
    canvas = Canvas.posed(size, rng)
    paint_backdrop(canvas, rng)
    if label == "cat":
        paint_cat(canvas, rng)
    else:
        paint_dog(canvas, rng)
    return canvas.photo(rng)


def draw_folder(folder: Path, per_label: int, seed: int = 0, size: int = 96) -> None:
    """Draw `per_label` faces of every label as `folder/<label>/<label>-00000.png` and so on.

    seed: 0 or more; other seeds draw other animals. size: side in pixels. A file appears under its name only
    when it is whole, and replaces one that is there. A larger folder of the same seed begins with the same faces.
    """
    for label in LABELS:
        room = folder / label
        room.mkdir(parents=True, exist_ok=True)
        for index in range(per_label):
            part = room / f".{label}-{index:05d}.part"
            face = draw_face(label, seed * FACES_PER_SEED + index, size)
            # Fur and grain compress no better with more effort.
            face.save(part, format="PNG", compress_level=1)
            os.replace(part, room / f"{label}-{index:05d}.png")


# The canvas


@dataclass(frozen=True)
class Canvas:
    """Pixels under a posed head, or a window on some of them.

    pixels: (3, height, width), 0 to 1; a window shares them with its canvas. x, y: head coordinates of every
    pixel. scale: pixels to a head unit. turn: points as rows times this matrix, (2, 2), are points in pixels from
    the origin. origin: where the head's (0, 0) is, in pixels. light: where the light comes from, in head
    coordinates with z towards the viewer.
    """

    pixels: Colour
    x: Field
    y: Field
    scale: float
    turn: npt.NDArray[np.float64]
    origin: npt.NDArray[np.float64]
    light: tuple[float, float, float]

    @staticmethod
    def posed(size: int, rng: np.random.Generator) -> Canvas:
        """A black canvas of size x size pixels, its head near the middle and almost upright."""
        tilt, scale = rng.normal(0, 0.06), size / 2 * rng.uniform(0.98, 1.1)
        cos, sin = scale * np.cos(tilt), scale * np.sin(tilt)
        turn = np.array([[cos, sin], [-sin, cos]])
        origin = size / 2 * rng.normal((1, 1.1), 0.03)
        across, down = np.arange(size) + 0.5 - origin[:, None]
        x = (across * cos + down[:, None] * sin) / scale**2
        y = (down[:, None] * cos - across * sin) / scale**2
        light = np.array([pick(rng, (-1, 1)) * rng.uniform(0.15, 0.6), -rng.uniform(0.3, 0.7), 1.0])
        to_x, to_y, to_z = (light / np.linalg.norm(light)).tolist()
        pixels = np.zeros((3, size, size), np.float32)
        return Canvas(pixels, x.astype(np.float32), y.astype(np.float32), scale, turn, origin, (to_x, to_y, to_z))

    def window(self, left: float, top: float, right: float, bottom: float) -> Canvas:
        """The part of the canvas around a box in head coordinates. Work in it costs its own pixels only."""
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)]) @ self.turn + self.origin
        low, high = np.floor(corners.min(0)).tolist(), np.ceil(corners.max(0)).tolist()
        rows, columns = span(low[1], high[1], self.x.shape[0]), span(low[0], high[0], self.x.shape[1])
        return replace(
            self,
            pixels=self.pixels[:, rows, columns],
            x=self.x[rows, columns],
            y=self.y[rows, columns],
            origin=self.origin - (columns.start, rows.start),
        )

    def mask(self, *outlines: Outline) -> Field:
        """How much of each pixel the outlines cover together, 0 to 1."""
        return as_field(self.cover(*outlines))

    def mask_and_halo(self, outline: Outline, softness: float) -> tuple[Field, Field]:
        """The mask, and the mask out of focus by `softness` head units."""
        covered = self.cover(outline)
        return as_field(covered), as_field(covered.filter(ImageFilter.BoxBlur(softness * self.scale)))

    def cover(self, *outlines: Outline) -> Image.Image:
        """The outlines filled with white on black, smooth at their edges."""
        height, width = self.x.shape
        drawing = Image.new("L", (width * OVERSAMPLING, height * OVERSAMPLING))
        pen = ImageDraw.ImageDraw(drawing)
        # Pillow counts from the middle of the first pixel, hence the half.
        turn, origin = self.turn * OVERSAMPLING, self.origin * OVERSAMPLING - 0.5
        for outline in outlines:
            corners = outline @ turn + origin
            for shape in corners.reshape(-1, corners.shape[-2] * 2).tolist():
                pen.polygon(shape, fill=255)
        return drawing.reduce(OVERSAMPLING)

    def blob(self, x: float, y: float, width: float, height: float) -> Field:
        """A Gaussian hill of height 1 at (x, y)."""
        return np.exp(-(((self.x - x) / width) ** 2) - ((self.y - y) / height) ** 2)

    def twin_blobs(self, x: float, y: float, width: float, height: float) -> Field:
        """The hill at (x, y) and its mirror image."""
        return np.exp(-(((np.abs(self.x) - x) / width) ** 2) - ((self.y - y) / height) ** 2)

    def cloud(self, rng: np.random.Generator, cells: int) -> Field:
        """Smooth noise, about -1 to 1, with `cells` hills and dales to a side."""
        grid = Image.fromarray(rng.normal(0, 0.6, (cells, cells)).astype(np.float32))
        return np.asarray(grid.resize((self.x.shape[1], self.x.shape[0]), Image.Resampling.BICUBIC))

    def paint(self, where: Field, colour: Colour) -> None:
        """Lay a colour over the pixels. where: its opacity at each, 0 to 1."""
        change = colour - self.pixels
        change *= where
        np.add(self.pixels, change, out=self.pixels)

    def shade(self, relief: Field) -> Field:
        """Brightness of a matt surface, about 0.55 to 1. relief: its height in head units."""
        to_x, to_y, to_z = self.light
        down, right = np.gradient(relief * np.float32(self.scale))
        facing = (to_z - to_x * right - to_y * down) / np.sqrt(1 + right**2 + down**2)
        brightness: Field = 0.55 + 0.48 * np.maximum(facing, 0)
        return brightness

    def photo(self, rng: np.random.Generator) -> Image.Image:
        """The finished picture, in uneven light and with a camera's grain."""
        right, down = rng.normal(0, 0.06, 2).tolist()
        tint = (1 + rng.normal(0, 0.01, (3, 1, 1)) + rng.normal(0, 0.05)).astype(np.float32)
        finished = self.pixels * (tint * 255) * (1 + right * self.x + down * self.y)
        finished += 3 * rng.standard_normal(self.x.shape, np.float32) + 0.5
        levels = np.clip(finished, 0, 255).astype(np.uint8)
        return Image.merge("RGB", [Image.fromarray(channel) for channel in levels])


def span(low: float, high: float, side: int) -> slice:
    """The pixels from `low` to `high` along a side; at least one of them, even where none is in the picture."""
    first = min(max(int(low), 0), side - 1)
    return slice(first, min(max(int(high), first + 1), side))


def as_field(picture: Image.Image) -> Field:
    """A grey picture's levels as 0 to 1."""
    levels: Field = np.asarray(picture) * np.float32(1 / 255)
    return levels


# Outlines


def ellipse(x: float, y: float, width: float, height: float, corners: int = 24) -> Outline:
    """An ellipse about (x, y) with these half axes."""
    angle = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], 1)


def curve(*points: Point) -> Outline:
    """The smooth closed shape through the points: a Catmull-Rom spline."""
    count = len(points)
    knots = np.array(points[-1:] + points + points[:2])
    before, here, after, beyond = (knots[start : start + count] for start in range(4))
    t = (np.arange(6) / 6)[:, None, None]
    slope, bend = after - before, 2 * before - 5 * here + 4 * after - beyond
    twist = 3 * (here - after) + beyond - before
    between = here + 0.5 * t * (slope + t * (bend + t * twist))  # (steps, points, 2)
    rounded: Outline = between.transpose(1, 0, 2).reshape(-1, 2)
    return rounded


def symmetric(*points: Point) -> Outline:
    """The smooth closed shape whose right half passes through the points, from top to bottom."""
    return curve(*points, *[(-x, y) for x, y in reversed(points) if x > 0])


def stroke(start: npt.ArrayLike, through: npt.ArrayLike, end: npt.ArrayLike, width: float) -> Outline:
    """A line bent towards `through` that tapers from `width`; arrays of points, (n, 2), give n lines."""
    t = (np.arange(9) / 8)[:, None]
    first, middle, last = (np.asarray(point, float)[..., None, :] for point in (start, through, end))
    spine = (1 - t) ** 2 * first + 2 * t * (1 - t) * middle + t**2 * last
    along = (1 - t) * (middle - first) + t * (last - middle)
    across = along[..., ::-1] * (-1, 1) / np.sqrt((along**2).sum(-1, keepdims=True))
    edge = across * (width / 2 * (1 - 0.8 * t))
    return np.concatenate([spine + edge, (spine - edge)[..., ::-1, :]], axis=-2)


def both(outline: Outline) -> Outline:
    """The shape and its mirror image on the other side of the face."""
    pair: Outline = outline * np.array([[[1, 1]], [[-1, 1]]])
    return pair


def tufted(outline: Outline, depth: float, rng: np.random.Generator) -> Outline:
    """The outline with locks of fur: every other corner moves away from the origin by a share up to `depth`."""
    reach = np.ones((outline.shape[-2], 1))
    reach[::2, 0] += rng.uniform(-0.2 * depth, depth, len(reach[::2]))
    return outline * reach


# Colours and fur


@lru_cache
def colour(name: str) -> Colour:
    """The colour of a hexadecimal name."""
    return (np.array(ImageColor.getrgb(name)) / 255).astype(np.float32).reshape(3, 1, 1)


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices; the generator's own `choice` is slow, and turns what it is given into an array."""
    return choices[int(rng.integers(len(choices)))]


def ramp(start: float, end: float, field: Field) -> Field:
    """0 where the field is below `start`, 1 where it is above `end`, smooth between them."""
    t: Field = np.minimum(np.maximum((field - start) * (1 / (end - start)), 0), 1)
    return t * t * (3 - 2 * t)


def mix(under: Colour, over: Colour, share: Field | float) -> Colour:
    """The colour `share` of the way from one to the other."""
    return under + share * (over - under)


@dataclass(frozen=True)
class Coat:
    """One animal's fur: its colours, how they are arranged, and how far its locks stand out."""

    pattern: str
    base: Colour
    dark: Colour
    pale: Colour
    shag: float

    @staticmethod
    def choose(rng: np.random.Generator, coats: dict[str, tuple[str, str, str]], patterns: tuple[str, ...]) -> Coat:
        """A coat at random, its colours a little off their names."""
        base, dark, pale = (colour(name) for name in coats[pick(rng, list(coats))])
        cast = (1 + rng.normal(0, 0.015, (3, 1, 1)) + rng.normal(0, 0.06)).astype(np.float32)
        pattern, shag = pick(rng, patterns), rng.uniform(0.02, 0.08)
        if pattern in WHITE_MARKED:
            pale = colour(MILK)
        return Coat(pattern, base * cast, dark * cast, np.minimum(pale * cast, 1), shag)


def strands(canvas: Canvas, rng: np.random.Generator) -> Field:
    """Fur's texture, about 0.85 to 1.15: strands that run away from the nose, as on a real face."""
    noise = Image.fromarray(rng.normal(0, 1, (110, 14)).astype(np.float32))
    table = np.asarray(noise.resize((32, 256), Image.Resampling.BICUBIC))
    where, depth = strand_map(len(canvas.x))
    texture: Field = table.ravel().take(where)
    return 1 + depth * texture


@lru_cache(maxsize=4)
def strand_map(size: int) -> tuple[npt.NDArray[np.intp], Field]:
    """Which number of a 256 (directions) x 32 (distances) table each pixel takes, and how much it counts there.

    The strands run from the middle of the picture, not of the head: the pose is too slight for it to show, and
    the map is the same for every face.
    """
    down, right = np.mgrid[0:size, 0:size] * (2 / size) + np.array([-1.25, -1])[:, None, None]
    around, away = np.arctan2(right, -down), np.hypot(right, down)
    # Unbroken rings would show; a wavy distance lets strands begin where others end.
    ring = np.clip(away * 20 + np.sin(around * 14), 0, 31).astype(np.intp)
    where = (around * 40.5 + 128).astype(np.intp) * 32 + ring
    return where, (0.06 * ramp(0.1, 0.5, away)).astype(np.float32)


def blaze(canvas: Canvas, rng: np.random.Generator) -> Field:
    """Where a white streak runs from the forehead down over the muzzle and the chest, 0 to 1."""
    top, waist, spread = rng.uniform(-0.7, 0.0), rng.uniform(0.03, 0.12), rng.uniform(0.3, 0.5)
    width = waist * ramp(top - 0.2, top + 0.2, canvas.y) + spread * ramp(-0.1, 0.45, canvas.y)
    return ramp(-0.05, 0.05, width - np.abs(canvas.x) + 0.06 * canvas.cloud(rng, 6))


def cat_fur(canvas: Canvas, coat: Coat, rng: np.random.Generator) -> Colour:
    """A cat's fur at every pixel before light falls on it, (3, size, size)."""
    x, y = np.abs(canvas.x), canvas.y
    fur = mix(coat.base, coat.pale, 0.25 * ramp(0.1, 0.8, y))
    if coat.pattern == "tabby":
        # Stripes fan out from between the eyes: upright on the forehead, level on the cheeks.
        fan = np.arctan2(x, 0.1 - y) * rng.uniform(9, 13) + 0.5 * canvas.cloud(rng, 8)
        reach = ramp(0.4, 0.6, np.hypot(x * 0.9, y - 0.1) + 0.08 * canvas.cloud(rng, 9))
        fur = mix(fur, coat.dark, rng.uniform(0.6, 0.9) * ramp(-0.1, 0.7, np.cos(fan)) * reach)
    elif coat.pattern == "patches":
        lower = 0.6 * ramp(0, 0.6, y)
        fur = mix(coat.pale, coat.base, ramp(0, 0.12, canvas.cloud(rng, 5) + rng.uniform(-0.1, 0.25) - lower))
        fur = mix(fur, coat.dark, ramp(0.25, 0.35, canvas.cloud(rng, 5) - lower))
    elif coat.pattern == "tuxedo":
        fur = mix(fur, coat.pale, blaze(canvas, rng))
    lips, brows = canvas.twin_blobs(0.15, 0.42, 0.2, 0.16), canvas.twin_blobs(0.36, -0.14, 0.2, 0.12)
    return mix(fur, coat.pale, 0.55 * lips + 0.3 * brows)


def dog_fur(canvas: Canvas, coat: Coat, rng: np.random.Generator) -> Colour:
    """A dog's fur at every pixel before light falls on it, (3, size, size)."""
    x, y = np.abs(canvas.x), canvas.y
    fur = mix(coat.base, coat.pale, 0.35 * canvas.blob(0, 0.45, 0.4, 0.35))
    if coat.pattern == "patches":
        # Round one eye and over its ear, or round both.
        side = canvas.x * pick(rng, (-1, 1)) if rng.random() < 0.5 else x
        near = np.hypot((side - 0.5) / 0.42, (y + 0.3) / 0.55) + 0.15 * canvas.cloud(rng, 6)
        fur = mix(coat.pale, coat.base, ramp(1.05, 0.95, near))
    elif coat.pattern == "mask":
        near = np.hypot(x / 0.45, (y - 0.4) / 0.45) + 0.12 * canvas.cloud(rng, 6)
        dusk: Field = np.maximum(ramp(1.15, 0.75, near), ramp(0.62, 0.75, x - 0.2 * y))
        fur = mix(fur, coat.dark, 0.85 * dusk)
    elif coat.pattern == "blaze":
        streak = blaze(canvas, rng)
        fur = mix(fur, coat.pale, np.maximum(streak, 0.7 * canvas.twin_blobs(0.27, -0.44, 0.1, 0.07)))
    return fur


# Both animals


def paint_backdrop(canvas: Canvas, rng: np.random.Generator) -> None:
    """A room out of focus: a gradient between two colours, lighter here and darker there."""
    near, far = colour(pick(rng, BACKDROPS)), colour(pick(rng, BACKDROPS))
    angle = rng.uniform(0, 2 * np.pi)
    slope = ramp(-1.3, 1.3, float(np.cos(angle)) * canvas.x + float(np.sin(angle)) * canvas.y)
    canvas.pixels[:] = mix(near, mix(near, far, 0.7), slope) * rng.uniform(0.65, 1.05)
    glow = canvas.cloud(rng, int(rng.integers(3, 6)))
    canvas.paint(0.3 * ramp(0, 1, np.abs(glow)), (glow > 0).astype(np.float32)[None])


def paint_part(canvas: Canvas, outline: Outline, fur: Colour, shadow: float = 0.35) -> None:
    """A furry part of the body, darker towards its rim, over its own soft shadow."""
    inside, around = canvas.mask_and_halo(outline, 0.16)
    canvas.paint(shadow * around, colour(INK))
    canvas.paint(inside, fur * (0.72 + 0.31 * ramp(0.3, 1, around)))


def paint_shoulders(canvas: Canvas, rng: np.random.Generator, fur: Colour, coat: Coat) -> None:
    """What is seen of the body below the head, a little in its shade."""
    outline = symmetric((0, 0.3), (0.6, 0.55), (0.93, 1.0), (1.2, 1.8), (0, 2))
    canvas.paint(canvas.mask(tufted(outline, coat.shag, rng)), fur * 0.8)


@dataclass(frozen=True)
class Eyes:
    """A pair of eyes, told by the right one.

    x, y: its middle. width, height: its half axes. tilt: how far its outer corner is raised, in radians.
    point: 0 round, 1 almond. iris: its colour. pupil: the pupil's half axes.
    """

    x: float
    y: float
    width: float
    height: float
    tilt: float
    point: float
    iris: Colour
    pupil: Point

    def opening(self, grow: float = 1.0) -> Outline:
        """Both eyes between their lids, (2, n, 2), or as many times larger."""
        angle = np.arange(24) * (2 * np.pi / 24)
        across = grow * self.width * np.cos(angle)
        down = grow * self.height * np.sin(angle) * np.abs(np.sin(angle)) ** self.point
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        return both(np.stack([self.x + across * cos + down * sin, self.y + down * cos - across * sin], 1))


def paint_eyes(face: Canvas, eyes: Eyes) -> None:
    """Eyes that look at the viewer: dark lids, a lit iris, a pupil, and the window that lights the face."""
    x, y, width, height = eyes.x, eyes.y, eyes.width, eyes.height
    canvas = face.window(-x - 2 * width, y - 2 * height, x + 2 * width, y + 2 * height)
    canvas.paint(0.45 * canvas.twin_blobs(x, y, width * 1.35, height * 1.5), colour(INK))
    canvas.paint(canvas.mask(eyes.opening(1.2)), colour(INK))
    inside = canvas.mask(eyes.opening())
    away = np.hypot(np.abs(canvas.x) - x, canvas.y - y) / width
    glow = mix(eyes.iris * 0.8, mix(eyes.iris, colour(WHITE), 0.2), ramp(y - height, y + height, canvas.y))
    canvas.paint(inside, glow * (1 - 0.6 * ramp(0.55, 1.05, away)))
    canvas.paint(inside * canvas.mask(both(ellipse(x, y, *eyes.pupil))), colour("#0b0a0a"))
    canvas.paint(inside * (0.55 * ramp(y - 0.1 * height, y - height, canvas.y)), colour(INK))
    canvas.paint(0.2 * inside * canvas.twin_blobs(x, y + 0.6 * height, 0.5 * width, 0.3 * height), colour(WHITE))
    # A reflection isn't mirrored: the window is seen on the same side of both eyes.
    spark = ellipse(math.copysign(0.35 * width, face.light[0]), y - 0.38 * height, 0.22 * width, 0.2 * width)
    canvas.paint(0.95 * canvas.mask(spark + np.array((x, 0)), spark - np.array((x, 0))), colour(WHITE))


def paint_nose(face: Canvas, outline: Outline, skin: Colour) -> None:
    """Wet leather: lit from above, shining on the side of the light, dark at its nostrils."""
    (half, bottom), top = outline.max(0).tolist(), float(outline[:, 1].min())
    height = bottom - top
    canvas = face.window(-1.5 * half, top - half, 1.5 * half, bottom + half)
    canvas.paint(0.5 * canvas.blob(0, top + 0.6 * height, 1.2 * half, 0.8 * height), colour(INK))
    inside = canvas.mask(outline)
    canvas.paint(inside, skin * (1.1 - 0.45 * ramp(top, bottom, canvas.y)))
    nostrils = canvas.twin_blobs(0.54 * half, top + 0.62 * height, 0.22 * half, 0.17 * height)
    canvas.paint(0.75 * inside * nostrils, colour(INK))
    side = math.copysign(0.24 * half, face.light[0])
    canvas.paint(0.55 * inside * canvas.blob(side, top + 0.22 * height, 0.44 * half, 0.13 * height), colour(WHITE))


# Cats


def paint_cat(canvas: Canvas, rng: np.random.Generator) -> None:
    """A cat: ears that stand up, large almond eyes, a small nose on a short muzzle, whiskers."""
    coat = Coat.choose(rng, CAT_COATS, ("solid", "tabby", "tabby", "patches", "tuxedo"))
    fur = cat_fur(canvas, coat, rng) * strands(canvas, rng)
    wide, cheek, chin = rng.uniform(0.72, 0.84), rng.uniform(0.1, 0.3), rng.uniform(0.66, 0.76)
    paint_shoulders(canvas, rng, fur, coat)
    paint_cat_ears(canvas, rng, fur, coat, wide)
    skull = ((0, -0.56), (0.3, -0.55), (0.62, -0.36), (wide, cheek - 0.1))
    jaws = ((wide * 0.88, cheek + 0.22), (0.44, chin - 0.1), (0.14, chin), (0, chin))
    eye_x, eye_y = rng.uniform(0.33, 0.39), rng.uniform(-0.1, 0.0)
    # A domed skull, the ridge of the nose, cushions for lips and chin, hollows for the eyes.
    dome = 1 - (canvas.x / (wide + 0.1)) ** 2 - ((canvas.y - 0.08) / 0.8) ** 2
    relief = 0.7 * np.sqrt(np.maximum(0.03, dome)) + 0.12 * canvas.blob(0, 0.1, 0.12, 0.35)
    relief += 0.12 * canvas.twin_blobs(0.13, 0.4, 0.17, 0.15) + 0.1 * canvas.blob(0, 0.6, 0.14, 0.1)
    relief -= 0.08 * canvas.twin_blobs(eye_x, eye_y, 0.2, 0.15)
    paint_part(canvas, tufted(symmetric(*skull, *jaws), coat.shag, rng), fur * canvas.shade(relief))
    paint_cat_muzzle(canvas, rng, coat)
    size, openness = rng.uniform(0.15, 0.195), rng.uniform(0.7, 0.98)
    pupil = size * openness * 0.98
    tilt, point, iris = rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.5), colour(pick(rng, CAT_EYES))
    slit = (pupil * rng.uniform(0.22, 0.8), pupil)
    paint_eyes(canvas, Eyes(eye_x, eye_y, size, size * openness, tilt, point, iris, slit))
    paint_whiskers(canvas, rng)


def paint_cat_ears(face: Canvas, rng: np.random.Generator, fur: Colour, coat: Coat, wide: float) -> None:
    """Two upright triangles, pink inside behind pale tufts."""
    tip_x, tip_y, base_x = rng.uniform(0.55, 0.75), rng.uniform(-1.12, -0.95), rng.uniform(0.12, 0.2)
    inner, outer = (tip_x - 0.22, tip_y + 0.2), (tip_x + 0.1, tip_y + 0.22)
    ear = curve((base_x, -0.5), inner, (tip_x, tip_y), outer, (wide, -0.1), (0.45, -0.1))
    paint_part(face, both(ear), fur * 0.95, shadow=0.2)
    canvas = face.window(-1, tip_y, 1, -0.2)
    hollow = (ear - (tip_x - 0.08, -0.42)) * (0.62, 0.74) + (tip_x - 0.1, -0.42)
    skin = mix(colour(PINK), coat.dark, rng.uniform(0, 0.4))
    canvas.paint(0.9 * canvas.mask(both(hollow)), skin * (0.65 + 0.4 * ramp(-0.4, tip_y, canvas.y)))
    lock = np.arange(4)[:, None]
    root, bend = (base_x + 0.06, -0.4) + lock * (0.07, 0), (base_x + 0.1, -0.6) + lock * (0.05, 0)
    tip = (tip_x - 0.2, tip_y) + lock * (0.07, 0) + rng.uniform(0.25, 0.4, (4, 1)) * (0, 1)
    tufts = stroke(root, bend, tip, 0.07)
    canvas.paint(0.75 * canvas.mask(tufts, tufts * (-1, 1)), mix(coat.base, coat.pale, 0.7))


def paint_cat_muzzle(face: Canvas, rng: np.random.Generator, coat: Coat) -> None:
    """A small triangular nose over a mouth like a rounded w."""
    top, half = rng.uniform(0.2, 0.26), rng.uniform(0.085, 0.115)
    bottom = top + rng.uniform(0.1, 0.13)
    skin = colour(PINK) if rng.random() < 0.6 else mix(coat.dark, colour("#5a3a36"), 0.6)
    canvas = face.window(-0.4, top, 0.4, bottom + 0.3)
    canvas.paint(0.3 * canvas.blob(0, bottom + 0.17, 0.16, 0.05), colour(INK))
    lip = stroke((0, bottom + 0.07), (0.05, bottom + 0.16), (0.19, bottom + 0.1), 0.035)
    cleft = stroke((0, bottom), (0, bottom + 0.05), (0, bottom + 0.1), 0.035)
    canvas.paint(0.75 * canvas.mask(both(lip), cleft), mix(coat.dark, colour(INK), 0.5))
    sides = ((half * 0.8, top - 0.005), (half, top + 0.03), (half * 0.4, bottom - 0.03))
    paint_nose(face, symmetric((0, top), *sides, (0, bottom)), skin)


def paint_whiskers(face: Canvas, rng: np.random.Generator) -> None:
    """Four long thin hairs to each side."""
    canvas = face.window(-1.15, 0.05, 1.15, 0.85)
    side, row = np.repeat((-1, 1), 4), np.tile(np.arange(4), 2)
    x, y = side * rng.uniform(0.2, 0.26, 8), 0.34 + 0.05 * row
    reach, drop = side * rng.uniform(0.55, 0.8, 8), 0.09 * row - 0.16 + rng.normal(0, 0.04, 8)
    bend, end = np.stack([x + reach / 2, y + drop - 0.05], 1), np.stack([x + reach, y + drop + 0.08], 1)
    canvas.paint(0.75 * canvas.mask(stroke(np.stack([x, y], 1), bend, end, 0.022)), colour("#fbf8f2"))


# Dogs


def paint_dog(canvas: Canvas, rng: np.random.Generator) -> None:
    """A dog: hanging or pricked ears, round dark eyes, a long broad muzzle with a big nose."""
    coat = Coat.choose(rng, DOG_COATS, ("solid", "patches", "mask", "blaze"))
    fur = dog_fur(canvas, coat, rng) * strands(canvas, rng)
    pricked = rng.random() < 0.4
    wide, jaw, chin = rng.uniform(0.56, 0.68), rng.uniform(0.4, 0.5), rng.uniform(0.72, 0.8)
    paint_shoulders(canvas, rng, fur, coat)
    if pricked:
        paint_pricked_ears(canvas, rng, fur, coat)
    skull = ((0, -0.8), (0.3, -0.75), (wide * 0.92, -0.45), (wide, -0.08))
    jaws = ((wide * 0.9, 0.25), (jaw, 0.52), (jaw * 0.6, chin - 0.04), (0, chin))
    eye_x, eye_y = rng.uniform(0.27, 0.33), rng.uniform(-0.24, -0.14)
    # A domed skull, the ridge of the nose, the muzzle's bulk, brows over hollows for the eyes.
    dome = 1 - (canvas.x / (wide + 0.1)) ** 2 - (canvas.y / 0.9) ** 2
    relief = 0.65 * np.sqrt(np.maximum(0.03, dome)) + 0.12 * canvas.blob(0, 0, 0.16, 0.35)
    relief += 0.42 * canvas.blob(0, 0.36, jaw * 0.8, 0.34) + 0.06 * canvas.twin_blobs(eye_x, eye_y - 0.18, 0.14, 0.08)
    relief -= 0.09 * canvas.twin_blobs(eye_x, eye_y, 0.17, 0.13)
    paint_part(canvas, tufted(symmetric(*skull, *jaws), coat.shag, rng), fur * canvas.shade(relief))
    if not pricked:
        paint_hanging_ears(canvas, rng, fur, coat, wide)
    paint_dog_muzzle(canvas, rng, coat, jaw)
    size = rng.uniform(0.115, 0.145)
    pupil = size * rng.uniform(0.58, 0.72)
    tilt, point, iris = rng.uniform(-0.25, 0.1), rng.uniform(0, 0.25), colour(pick(rng, DOG_EYES))
    openness = rng.uniform(0.74, 0.94)
    paint_eyes(canvas, Eyes(eye_x, eye_y, size, size * openness, tilt, point, iris, (pupil, pupil)))


def paint_pricked_ears(face: Canvas, rng: np.random.Generator, fur: Colour, coat: Coat) -> None:
    """Ears that stand up, dusky inside: a shepherd's or a husky's."""
    tip_x, tip_y = rng.uniform(0.48, 0.66), rng.uniform(-1.12, -1.0)
    inner, outer = (tip_x - 0.2, tip_y + 0.2), (tip_x + 0.07, tip_y + 0.3)
    ear = curve((0.16, -0.6), inner, (tip_x, tip_y), outer, (0.6, -0.3), (0.35, -0.3))
    paint_part(face, both(ear), fur * 0.95, shadow=0.2)
    canvas = face.window(-0.9, tip_y, 0.9, -0.3)
    hollow = (ear - (tip_x - 0.08, -0.5)) * (0.55, 0.7) + (tip_x - 0.1, -0.52)
    canvas.paint(0.8 * canvas.mask(both(hollow)), mix(coat.dark, colour("#8a5f52"), 0.5))


def paint_hanging_ears(canvas: Canvas, rng: np.random.Generator, fur: Colour, coat: Coat, wide: float) -> None:
    """Ears that fold at the top of the head and hang beside it: a terrier's, a retriever's or a hound's."""
    tip_y, out, lap = rng.uniform(-0.1, 0.62), wide + rng.uniform(0.14, 0.3), rng.uniform(0, 0.12)
    root = ((wide * 0.55, -0.72), (wide + 0.08, -0.66))
    flap = ((out, -0.3), (out + 0.02, tip_y - 0.15), (out - 0.13, tip_y), (wide - 0.02 - lap, tip_y - 0.25))
    ear = tufted(curve(*root, *flap, (wide * 0.8 - lap / 2, -0.4)), coat.shag, rng)
    darker = 0.0 if coat.pattern == "patches" else rng.uniform(0.15, 0.6)
    fold = 0.3 * canvas.twin_blobs((wide + out) / 2 - 0.02, (tip_y - 0.5) / 2, 0.2, 0.6)
    paint_part(canvas, both(ear), mix(fur, coat.dark, darker) * canvas.shade(fold))


def paint_dog_muzzle(face: Canvas, rng: np.random.Generator, coat: Coat, jaw: float) -> None:
    """A broad nose at the end of a long muzzle; below it the lips, and sometimes the tongue."""
    top, half = rng.uniform(0.1, 0.18), rng.uniform(0.16, 0.21)
    bottom = top + half * rng.uniform(1.05, 1.25)
    corner, lip = jaw * 0.75, bottom + 0.1
    canvas = face.window(-0.5, top, 0.5, 1.1)
    if rng.random() < 0.4:
        paint_tongue(canvas, rng, corner, lip)
    canvas.paint(0.3 * canvas.twin_blobs(corner * 0.5, lip + 0.12, corner * 0.5, 0.06), colour(INK))
    line = mix(coat.dark, colour(INK), 0.7)
    smile = stroke((0, lip - 0.02), (corner * 0.45, lip + 0.17), (corner, lip + 0.06), 0.05)
    cleft = stroke((0, bottom - 0.02), (0, bottom + 0.05), (0, lip + 0.03), 0.04)
    canvas.paint(0.85 * canvas.mask(both(smile), cleft), line)
    pores = np.array([(0.17, bottom + 0.01), (0.24, bottom), (0.18, bottom + 0.06), (0.25, bottom + 0.05)])
    dots = pores[:, None] + ellipse(0, 0, 0.012, 0.012, 8)
    canvas.paint(0.4 * canvas.mask(dots, dots * (-1, 1)), line)
    skin = colour("#5d3a33" if coat.pattern != "mask" and rng.random() < 0.25 else "#2a2322")
    sides = ((half * 0.7, top), (half, top + half * 0.35), (half * 0.6, bottom - 0.05), (0.04, bottom))
    paint_nose(face, symmetric((0, top), *sides, (0, bottom)), skin)


def paint_tongue(canvas: Canvas, rng: np.random.Generator, corner: float, lip: float) -> None:
    """An open mouth below the lip's line, and the tongue that hangs from it."""
    tip = rng.uniform(0.82, 1.0)
    mouth = symmetric((0, lip), (corner * 0.7, lip + 0.06), (corner * 0.5, lip + 0.24), (0, lip + 0.3))
    canvas.paint(canvas.mask(mouth), colour("#3a1719"))
    tongue = symmetric((0, lip + 0.06), (0.13, lip + 0.1), (0.15, tip - 0.1), (0.08, tip), (0, tip + 0.01))
    canvas.paint(canvas.mask(tongue), colour("#de7f86") * (0.75 + 0.35 * ramp(lip, tip, canvas.y)))
    canvas.paint(0.4 * canvas.mask(stroke((0, lip + 0.08), (0, lip + 0.2), (0, tip - 0.06), 0.03)), colour("#9c4650"))
