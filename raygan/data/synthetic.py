"""Cat and dog faces drawn from a seed, so that a first training needs no download.

One random generator, started by label and seed, decides pose, coat, shape and backdrop. A face is painted back to front
on a `Canvas` in the head's own coordinates: x to the right, y down, the origin between the eyes, ear tips near y = -1,
the chin near 0.75. Each part is a mask, drawn from smooth outlines and filled with color or fur.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFilter

LABELS = ("cat", "dog")

#: Masks are drawn this many times larger and averaged down, which smooths their edges.
OVERSAMPLING = 3

#: `draw_folder` gives each of its seeds this many faces that no other seed has.
FACES_PER_SEED = 1_000_000

Field = npt.NDArray[np.float32]  # a number per pixel, (S, S)
Color = npt.NDArray[np.float32]  # red, green, blue, 0 to 1, (3, 1, 1), or per pixel, (3, S, S)
Outline = npt.NDArray[np.float64]  # corners of a closed shape in head coordinates, (n, 2)
Point = tuple[float, float]

#: Coats: fur, dark markings, pale markings.
COATS = (
    ("#d98e4a", "#a3541c", "#f6e2c6"),
    ("#37332f", "#191715", "#8b847e"),
    ("#8d929c", "#50555f", "#dde0e4"),
    ("#ece6dd", "#c2b6a7", "#faf7f2"),
    ("#8a6545", "#402a1c", "#dcc5a6"),
    ("#d2a562", "#8a5c28", "#f4e2be"),
)
PATTERNS = {"cat": ("solid", "tabby", "tabby", "patch"), "dog": ("solid", "solid", "patch")}
EYES = {"cat": ("#b6c240", "#d9a62e", "#6fa85a", "#5f9fc9"), "dog": ("#5a3318", "#6e4320", "#3b2415", "#8a5a26")}
BACKDROPS = ("#8fb59a", "#b3c8dd", "#dcc09a", "#7fa0bd", "#cfa29a", "#6c8a5c", "#e8e0d0", "#8a78a0", "#5b6674")
INK, PINK, WHITE = "#1d1512", "#e39a96", "#ffffff"
DOG_NOSES = ("#2a2322", "#2a2322", "#5d3a33")


def draw_face(label: str, seed: int, size: int = 96) -> Image.Image:
    """A front-facing animal that fills its frame, as aligned face crops do.

    Args:
        label: one of `LABELS`.
        seed: 0 or more. The same label, seed and size give the same pixels; the same label and seed, the same animal.
        size: side in px, 2 or more.

    Returns:
        An RGB image.

    Raises:
        ValueError: the label is unknown.
    """
    if label not in LABELS:
        raise ValueError(f"label: {label!r} is unknown; choose one of {', '.join(LABELS)}")
    rng = np.random.default_rng([LABELS.index(label), seed])
    canvas = Canvas.posed(size, rng)
    near, far = rgb(rng.choice(BACKDROPS)), rgb(rng.choice(BACKDROPS))
    backdrop = mix(near, far, ramp(-0.6, 0.6, canvas.noise(rng, 3, 3)))
    canvas.paint(np.ones_like(canvas.x), backdrop * rng.uniform(0.5, 1.05) * (1 + 0.2 * canvas.noise(rng, 5, 5)))
    (paint_cat if label == "cat" else paint_dog)(canvas, rng)
    return canvas.photo(rng)


def draw_folder(folder: Path, per_label: int, seed: int = 0, size: int = 96) -> None:
    """Draw faces of every label as `folder/<label>/<label>-00000.png` and so on.

    Files are written atomically and replace existing ones. A larger folder of the same seed starts with the same faces.

    Args:
        folder: created if missing.
        per_label: faces of each label.
        seed: 0 or more; other seeds draw other animals.
        size: side in px.
    """
    for label in LABELS:
        room = folder / label
        room.mkdir(parents=True, exist_ok=True)
        for index in range(per_label):
            part = room / f".{label}-{index:05d}.part"
            # Fur and grain compress no better at higher levels.
            draw_face(label, seed * FACES_PER_SEED + index, size).save(part, format="PNG", compress_level=1)
            os.replace(part, room / f"{label}-{index:05d}.png")


@dataclass(frozen=True)
class Canvas:
    """Pixels under a posed head.

    Attributes:
        pixels: (3, S, S), 0 to 1, painted in place.
        x, y: head coordinates of every pixel.
        turn: (2, 2): points, as rows, times this matrix are offsets in px from the origin.
        origin: the head's (0, 0), in px.
    """

    pixels: Color
    x: Field
    y: Field
    turn: npt.NDArray[np.float64]
    origin: npt.NDArray[np.float64]

    @staticmethod
    def posed(size: int, rng: np.random.Generator) -> Canvas:
        """A black canvas with its head near the middle and almost upright."""
        tilt, scale = rng.normal(0, 0.12), size / 2 * rng.uniform(0.9, 1.12)
        turn = scale * np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        origin = size / 2 * rng.normal((1, 1.1), 0.06)
        offsets = np.stack(np.meshgrid(*(np.arange(size) + 0.5 - origin[:, None])), -1)
        x, y = np.moveaxis(offsets @ np.linalg.inv(turn), -1, 0).astype(np.float32)
        return Canvas(np.zeros((3, size, size), np.float32), x, y, turn, origin)

    def mask(self, *outlines: Outline, blur: float = 0) -> Field:
        """How much of each pixel the outlines cover together, 0 to 1. blur: in head units."""
        size = len(self.x)
        drawing = Image.new("L", (size * OVERSAMPLING, size * OVERSAMPLING))
        pen = ImageDraw.Draw(drawing)
        for outline in outlines:
            # Pillow counts from the middle of the first pixel, hence the half.
            corners = (outline @ self.turn + self.origin) * OVERSAMPLING - 0.5
            pen.polygon(corners.ravel().tolist(), fill=255)
        radius = blur * float(np.hypot(*self.turn[0]))
        return np.asarray(drawing.reduce(OVERSAMPLING).filter(ImageFilter.BoxBlur(radius))) * np.float32(1 / 255)

    def noise(self, rng: np.random.Generator, across: int, down: int) -> Field:
        """Smooth noise, about -1 to 1, with this many hills and dales to a side."""
        grid = Image.fromarray(rng.normal(0, 0.6, (down, across)).astype(np.float32))
        return np.asarray(grid.resize(self.x.shape, Image.Resampling.BICUBIC))

    def paint(self, where: Field, color: Color | str) -> None:
        """Blend a color into the pixels. where: opacity, 0 to 1."""
        self.pixels[:] = mix(self.pixels, rgb(color) if isinstance(color, str) else color, where)

    def paint_fur(self, fur: Color, *outlines: Outline) -> None:
        """A furry part of the body, darker towards its rim, over its own soft shadow."""
        around = self.mask(*outlines, blur=0.16)
        self.paint(0.3 * around, INK)
        self.paint(self.mask(*outlines), fur * (0.7 + 0.3 * ramp(0.3, 1, around)))

    def photo(self, rng: np.random.Generator) -> Image.Image:
        """The finished picture, in uneven light and with a camera's grain."""
        right, down = rng.normal(0, 0.12, 2)
        tint = 1 + rng.normal(0, 0.02, (3, 1, 1)) + rng.normal(0, 0.06)
        finished = 255 * self.pixels * tint * (1 + right * self.x + down * self.y)
        finished += 3 * rng.standard_normal(self.x.shape)
        return Image.fromarray((finished + 0.5).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def ellipse(x: float, y: float, width: float, height: float) -> Outline:
    """An ellipse about (x, y) with these half axes."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack([x + width * np.cos(angle), y + height * np.sin(angle)], 1)


def curve(*points: Point) -> Outline:
    """The smooth closed shape through the points: a Catmull-Rom spline."""
    before, here, after, beyond = (np.roll(np.array(points), 1 - shift, 0) for shift in range(4))
    t = (np.arange(6) / 6)[:, None, None]
    bend, twist = 2 * before - 5 * here + 4 * after - beyond, 3 * (here - after) + beyond - before
    between: Outline = here + 0.5 * t * (after - before + t * (bend + t * twist))  # (steps, points, 2)
    return between.transpose(1, 0, 2).reshape(-1, 2)


def symmetric(*points: Point) -> Outline:
    """The smooth closed shape whose right half passes through the points, from top to bottom."""
    return curve(*points, *[(-x, y) for x, y in reversed(points) if x > 0])


def both(outline: Outline) -> tuple[Outline, Outline]:
    """The shape, and its mirror image on the other side of the face."""
    return outline, outline * (-1, 1)


def rgb(name: str) -> Color:
    """The color of a hexadecimal name."""
    return (np.array(ImageColor.getrgb(name)) / 255).astype(np.float32).reshape(3, 1, 1)


def ramp(start: float, end: float, field: Field) -> Field:
    """0 where the field is below `start`, 1 where it is above `end`, smooth in between."""
    t: Field = ((field - start) / (end - start)).clip(0, 1)
    return t * t * (3 - 2 * t)


def mix(first: Color, second: Color, share: Field | float) -> Color:
    """The first color at share 0, the second at share 1."""
    mixed: Color = first + (second - first) * share
    return mixed


def fur_of(label: str, canvas: Canvas, rng: np.random.Generator) -> tuple[Color, Color]:
    """An animal's fur at every pixel, and the color of its dark markings."""
    tint = rng.uniform(0.85, 1.1, (3, 1, 1)).astype(np.float32) ** 0.5
    base, dark, pale = (rgb(name) * tint for name in rng.choice(COATS))
    pattern, x, y = rng.choice(PATTERNS[label]), canvas.x, canvas.y
    fur = mix(base, pale, 0.5 * ramp(1, 0, np.hypot(x / 0.6, (y - 0.45) / 0.5)))
    if pattern == "tabby":
        away = np.hypot(x, y - 0.25)
        stripes = np.cos(rng.uniform(16, 22) * np.where(y < -0.2, x, away) + 0.8 * canvas.noise(rng, 5, 5))
        fur = mix(fur, dark, 0.7 * ramp(0.1, 0.7, stripes) * ramp(0.35, 0.55, away))
    elif pattern == "patch":
        near = np.hypot((rng.choice((-1, 1)) * x - 0.5) / 0.42, (y + 0.3) / 0.6) + 0.2 * canvas.noise(rng, 6, 6)
        fur = mix(rgb(WHITE) * 0.95, base, ramp(1.05, 0.95, near))
    light = 0.95 - 0.25 * np.hypot(x - rng.uniform(-0.7, 0.7), y + rng.uniform(0, 0.8))
    return fur * (light + 0.12 * canvas.noise(rng, 48, 24)), dark


def paint_eyes(canvas: Canvas, x: float, y: float, size: float, iris: str, pupil: float) -> None:
    """Two eyes that look at the viewer: dark lids, an iris, a pupil as wide as told, and a reflected window."""
    canvas.paint(canvas.mask(*both(ellipse(x, y, size * 1.18, size * 1.05))), INK)
    canvas.paint(canvas.mask(*both(ellipse(x, y, size, size * 0.88))), iris)
    canvas.paint(canvas.mask(*both(ellipse(x, y, pupil, size * 0.85))), INK)
    sparks = (ellipse(side * x + 0.3 * size, y - 0.3 * size, 0.24 * size, 0.22 * size) for side in (-1, 1))
    canvas.paint(canvas.mask(*sparks), WHITE)


def paint_mouth(canvas: Canvas, nose: float, half: float, skin: Color, corner: Point, dark: Color) -> None:
    """A nose about (0, nose), `half` as wide as told, over lips that bend to a corner of the mouth and its mirror."""
    bottom = nose + 0.6 * half
    x, y = corner
    lips = both(curve((0, y - 0.06), (0.45 * x, y + 0.03), corner, (0.45 * x, y + 0.07)))
    canvas.paint(0.8 * canvas.mask(*lips, ellipse(0, (bottom + y) / 2, 0.02, 0.09)), mix(dark, rgb(INK), 0.6))
    canvas.paint(canvas.mask(symmetric((0, nose - 0.5 * half), (half, nose - 0.3 * half), (0, bottom))), skin)
    canvas.paint(0.5 * canvas.mask(ellipse(0, nose - 0.2 * half, 0.4 * half, 0.12 * half)), WHITE)


def paint_cat(canvas: Canvas, rng: np.random.Generator) -> None:
    """Ears that stand up, large eyes with slit pupils, a small nose on a short muzzle, whiskers."""
    fur, dark = fur_of("cat", canvas, rng)
    wide, chin = rng.uniform(0.72, 0.88), rng.uniform(0.64, 0.78)
    canvas.paint_fur(fur * 0.8, ellipse(0, 1.3, 1.1, 0.9))
    tip = rng.uniform(0.5, 0.8), rng.uniform(-1.15, -0.9)
    ear = curve((0.15, -0.5), (tip[0] - 0.2, tip[1] + 0.2), tip, (tip[0] + 0.09, tip[1] + 0.24), (wide, -0.1))
    canvas.paint_fur(fur * 0.95, *both(ear))
    canvas.paint(0.9 * canvas.mask(*both((ear - tip) * (0.6, 0.72) + tip + (-0.03, 0.14))), mix(rgb(PINK), dark, 0.3))
    skull = ((0, -0.57), (0.3, -0.55), (0.62, -0.36), (wide, 0.1), (wide * 0.85, 0.42), (0.42, chin - 0.1), (0, chin))
    canvas.paint_fur(fur, symmetric(*skull))
    nose = rng.uniform(0.24, 0.32)
    skin = rgb(PINK) if rng.random() < 0.6 else mix(dark, rgb("#5a3a36"), 0.6)
    paint_mouth(canvas, nose, rng.uniform(0.085, 0.12), skin, (0.2, nose + 0.19), dark)
    size, apart, height = rng.uniform(0.15, 0.2), rng.uniform(0.32, 0.4), rng.uniform(-0.12, 0.02)
    paint_eyes(canvas, apart, height, size, rng.choice(EYES["cat"]), size * rng.uniform(0.2, 0.75))
    for row in range(3):
        drop = 0.12 * row - 0.12 + rng.normal(0, 0.03)
        whisker = curve((0.24, 0.36 + 0.05 * row), (0.6, 0.35 + drop), (0.95, 0.42 + drop), (0.6, 0.37 + drop))
        canvas.paint(0.75 * canvas.mask(*both(whisker)), "#fbf8f2")


def paint_dog(canvas: Canvas, rng: np.random.Generator) -> None:
    """Ears that hang, round dark eyes, a long broad muzzle with a big nose."""
    fur, dark = fur_of("dog", canvas, rng)
    wide, jaw, chin = rng.uniform(0.54, 0.7), rng.uniform(0.38, 0.5), rng.uniform(0.7, 0.82)
    canvas.paint_fur(fur * 0.8, ellipse(0, 1.3, 1.1, 0.9))
    upper = ((0, -0.8), (0.3, -0.75), (wide * 0.92, -0.45), (wide, -0.08), (wide * 0.9, 0.25))
    canvas.paint_fur(fur, symmetric(*upper, (jaw, 0.52), (jaw * 0.6, chin - 0.04), (0, chin)))
    out, end = wide + rng.uniform(0.12, 0.32), rng.uniform(-0.1, 0.65)
    flap = ((out, -0.3), (out + 0.02, end - 0.15), (out - 0.13, end), (wide - 0.08, end - 0.25), (wide * 0.75, -0.4))
    ear_fur = mix(fur, dark, rng.uniform(0, 0.7))
    canvas.paint_fur(ear_fur, *both(curve((wide * 0.55, -0.72), (wide + 0.08, -0.66), *flap)))
    nose, half = rng.uniform(0.2, 0.3), rng.uniform(0.16, 0.22)
    paint_mouth(canvas, nose, half, rgb(rng.choice(DOG_NOSES)), (0.75 * jaw, nose + 0.3), dark)
    size, apart, height = rng.uniform(0.11, 0.15), rng.uniform(0.26, 0.34), rng.uniform(-0.25, -0.12)
    paint_eyes(canvas, apart, height, size, rng.choice(EYES["dog"]), size * 0.65)
