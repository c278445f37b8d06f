"""Random numbers of each image: a function of the seed, the image's number and what they are for.

`Draws` computes them with Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a
generator without a state: it encrypts a counter, here the image's number. A rank computes the numbers of its own images
only, on its own device, so their cost shrinks with the number of ranks and nothing is copied. Whole numbers are the
same everywhere; normals are computed in float64, so float32 ones are the same up to rounding.

`SerialDraws` are those of trainings that began before `Draws`, which they keep: numbers in a row from torch's generator
on the CPU, drawn for the whole global batch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from raygan.models.distributed import Share
from raygan.models.hardware import to_device
from raygan.models.latents import seeded

#: "philox": `Draws`; "serial": `SerialDraws`.
Kind = Literal["philox", "serial"]

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF
_ROUNDS = 10

#: Encrypted counters at once: enough to make up for the calls of a hundred kernels, few enough for a core's cache. A
#: GPU is done with many more before the host has made those calls.
_AT_ONCE, _AT_ONCE_ON_GPU = 2**14, 2**19


@dataclass(frozen=True)
class Batches:
    """Whose numbers are drawn, and where.

    Attributes:
        seed: at least 0, below 2**32.
        size: images in a global batch, which are numbered through all batches.
        share: the rank's share of a batch.
        device: where the numbers are used.
        dtype: float32 or float64.
    """

    seed: int
    size: int
    share: Share
    device: torch.device
    dtype: torch.dtype


class ImageDraws(Protocol):
    """Random numbers of a rank's images."""

    def of(self, batch: int) -> dict[str, Tensor]:
        """The numbers of global batch `batch`, by purpose: (n, count) for the rank's n images."""


class Draws:
    """Counter-based random numbers of a rank's images, drawn for several batches at once."""

    def __init__(
        self, batches: Batches, name: str, *, normals: Mapping[str, int], uniforms: Mapping[str, int], every: int = 1
    ):
        """Lay out the counters.

        Args:
            batches: whose numbers are drawn.
            name: what these numbers are for. Others have other numbers for the same images.
            normals: how many standard normal numbers each image gets, by purpose.
            uniforms: how many numbers in [0, 1), by purpose.
            every: batches between two that need numbers.
        """
        self._to, self._every, self._normals, self._counts = batches, every, normals, {**normals, **uniforms}
        blocks = {purpose: -(-count // 4) for purpose, count in self._counts.items()}
        self._blocks = list(blocks.values())
        # A purpose has counters of its own, so that another purpose, or more numbers for it, changes no others.
        streams = [zlib.crc32(f"{name} {purpose}".encode()) for purpose, count in blocks.items() for _ in range(count)]
        numbers = [number for count in blocks.values() for number in range(count)]
        self._streams, self._numbers = (torch.tensor(values, device=batches.device) for values in (streams, numbers))
        rows = range(batches.size)[batches.share.rows(batches.size)]
        self._rows = torch.arange(rows.start, rows.stop, device=batches.device)
        at_once = _AT_ONCE_ON_GPU if batches.device.type == "cuda" else _AT_ONCE
        self._ahead = max(1, at_once // max(1, len(rows) * len(numbers)))
        self._starts = torch.arange(self._ahead, device=batches.device)[:, None] * batches.size
        self._part: int | None = None
        self._drawn: dict[str, Tensor] = {}

    def of(self, batch: int) -> dict[str, Tensor]:
        """The numbers of global batch `batch`, by purpose: (n, count) for the rank's n images."""
        part, place = divmod(batch // self._every, self._ahead)
        if part != self._part:
            # Parts begin at the same batches however a training was interrupted, so even rounding is the same.
            self._part, self._drawn = part, self._draw(part * self._ahead * self._to.size)
        return {purpose: values[place] for purpose, values in self._drawn.items()}

    def _draw(self, first: int) -> dict[str, Tensor]:
        """By purpose (batches, n, count), for batches in a row, the first of which starts with image `first`."""
        images = (self._starts + (self._rows + first)).flatten()[:, None]
        counters = torch.broadcast_tensors(self._numbers, images & _WORD, images >> 32, self._streams)
        words = torch.stack(philox(counters, (self._to.seed, 0)), -1)
        drawn = {}
        for (purpose, count), part in zip(self._counts.items(), words.split(self._blocks, 1), strict=True):
            values = _normal(part) if purpose in self._normals else _uniform(part)
            values = values.reshape(self._ahead, len(self._rows), -1)[..., :count]
            drawn[purpose] = values.to(self._to.dtype).contiguous()
        return drawn


class SerialDraws:
    """Random numbers of a rank's images, out of one sequence for each global batch, drawn on the CPU."""

    def __init__(self, batches: Batches, sequences: Mapping[str, Mapping[str, int]], normals: Collection[str] = ()):
        """Take note of the order.

        Args:
            batches: whose numbers are drawn.
            sequences: for each sequence by name, its purposes in order and how many numbers each image gets.
            normals: the purposes whose numbers are standard normal; those of others are in [0, 1).
        """
        self._to, self._sequences, self._normals = batches, sequences, normals

    def of(self, batch: int) -> dict[str, Tensor]:
        """The numbers of global batch `batch`, by purpose: (n, count) for the rank's n images."""
        drawn = {}
        for name, purposes in self._sequences.items():
            random = seeded(self._to.seed, batch, name)
            for purpose, count in purposes.items():
                draw = torch.randn if purpose in self._normals else torch.rand
                drawn[purpose] = self._own(draw(self._to.size, count, generator=random))
        return drawn

    def _own(self, values: Tensor) -> Tensor:
        return to_device(values[self._to.share.rows(self._to.size)], self._to.device).to(self._to.dtype)


def philox(counters: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10.

    Args:
        counters: four tensors of 32-bit words, as int64, of the same shape.
        key: two 32-bit words.

    Returns:
        Four tensors of random 32-bit words, as int64, of that shape.
    """
    first, second, third, fourth = counters
    key_0, key_1 = key
    for _ in range(_ROUNDS):
        # int64 keeps all 64 bits of a product, of which the highest becomes a sign; the mask drops its copies.
        product_0, product_1 = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        first = (product_1 >> 32).bitwise_and_(_WORD).bitwise_xor_(second).bitwise_xor_(key_0)
        third = (product_0 >> 32).bitwise_and_(_WORD).bitwise_xor_(fourth).bitwise_xor_(key_1)
        second, fourth = product_1.bitwise_and_(_WORD), product_0.bitwise_and_(_WORD)
        key_0, key_1 = (key_0 + _KEY_STEPS[0]) & _WORD, (key_1 + _KEY_STEPS[1]) & _WORD
    return [first, second, third, fourth]


def _uniform(words: Tensor) -> Tensor:
    """Float64 in [0, 1), from 24 bits of each word: exact in float32, which must not round up to 1."""
    return (words >> 8).double().mul_(2.0**-24)


def _normal(words: Tensor) -> Tensor:
    """Standard normal float64 from words (..., 4), by the transformation of Box and Muller 1958."""
    radius = (words[..., ::2] + 1).double().mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = words[..., 1::2].double().mul_(2 * math.pi * 2.0**-32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], -1)
