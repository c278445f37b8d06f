"""Counter-based draws: published test vectors, and the same numbers for an image however it is trained on."""

from __future__ import annotations

import math
import zlib

import pytest
import torch

from raygan.models.distributed import Share
from raygan.models.draws import Batches, Draws, SerialDraws, philox
from raygan.models.latents import seeded

CPU = torch.device("cpu")

#: Of the authors' library Random123, file kat_vectors: counter, key and result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def draws(share: Share = Share(), size: int = 6, seed: int = 3, every: int = 1, **changes: dict[str, int]) -> Draws:  # noqa: B008
    counts = {"normals": {"latents": 10}, "uniforms": {"mix": 1, "change": 7}, **changes}
    return Draws(Batches(seed, size, share, CPU, torch.float32), "test", **counts, every=every)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_integers_are_the_published_ones(counter, key, result):
    found = philox([torch.tensor([word]) for word in words(counter)], tuple(words(key)))
    assert [int(word) for word in found] == words(result)


def test_ranks_draw_what_one_process_draws():
    whole = [draws().of(batch) for batch in range(3)]
    for world in (2, 5):
        for batch, wanted in enumerate(whole):
            parts = [draws(Share(rank, world)).of(batch) for rank in range(world)]
            for purpose, values in wanted.items():
                torch.testing.assert_close(torch.cat([part[purpose] for part in parts]), values, rtol=1e-6, atol=0)


def test_an_interruption_changes_no_bit():
    whole = draws(size=700)
    ahead = [whole.of(batch) for batch in range(5)]
    for batch in (1, 4, 2):
        again = draws(size=700).of(batch)
        assert all(torch.equal(again[purpose], values) for purpose, values in ahead[batch].items())


def test_images_purposes_seeds_and_names_have_numbers_of_their_own():
    one = draws()
    other = Draws(
        Batches(3, 6, Share(), CPU, torch.float32), "other", normals={"latents": 10}, uniforms={"mix": 1, "change": 7}
    )
    drawn = [one.of(0), one.of(1), draws(seed=4).of(0), other.of(0)]
    changes = torch.cat([each["change"] for each in drawn])
    assert len(changes.unique()) == changes.numel()
    latents = torch.cat([each["latents"] for each in drawn])
    assert len(latents.unique()) == latents.numel()


def test_more_numbers_for_a_purpose_change_no_others():
    few, many = draws().of(2), draws(uniforms={"new": 3, "mix": 1, "change": 9}).of(2)
    assert torch.equal(few["latents"], many["latents"])
    assert torch.equal(few["change"], many["change"][:, :7])


def test_batches_that_do_not_ask_cost_no_images():
    assert torch.equal(draws(every=5).of(14)["latents"], draws().of(2)["latents"])


def test_images_beyond_32_bits_have_numbers_of_their_own():
    one = draws(size=2**16)
    near, far = one.of(0)["mix"], one.of(2**16)["mix"]
    assert not torch.equal(near, far)


def test_numbers_have_their_distributions():
    drawn = Draws(
        Batches(0, 50_000, Share(), CPU, torch.float64), "test", normals={"normal": 4}, uniforms={"uniform": 4}
    ).of(0)
    normal, uniform = drawn["normal"], drawn["uniform"]
    assert uniform.min() >= 0
    assert uniform.max() < 1
    # Kolmogorov and Smirnov's distance of 200,000 numbers is below 0.0044 in 999 of 1,000 cases.
    line = torch.linspace(0, 1, 200_000, dtype=torch.float64)
    assert (uniform.flatten().sort().values - line).abs().max() < 0.0044
    assert (torch.special.ndtr(normal).flatten().sort().values - line).abs().max() < 0.0044
    assert (torch.corrcoef(normal.T) - torch.eye(4)).abs().max() < 0.02


def test_numbers_are_pinned_to_the_integers():
    """Image 2 * 6 + 4 by hand: a later version must draw what an earlier one began with."""
    image, found = 16, draws().of(2)

    def by_hand(purpose: str, block: int) -> list[int]:
        counter = [block, image, 0, zlib.crc32(f"test {purpose}".encode())]
        return [int(word) for word in philox([torch.tensor([word]) for word in counter], (3, 0))]

    change = [word // 256 / 2**24 for block in (0, 1) for word in by_hand("change", block)]
    assert found["change"][4].tolist() == change[:7]
    one, two, three, four = by_hand("latents", 0)
    radii = [math.sqrt(-2 * math.log((word + 1) / 2**32)) for word in (one, three)]
    angles = [2 * math.pi * word / 2**32 for word in (two, four)]
    normal = [r * wave(angle) for wave in (math.cos, math.sin) for r, angle in zip(radii, angles, strict=True)]
    assert found["latents"][4, :4].tolist() == pytest.approx(normal, rel=1e-6)


def test_serial_draws_are_torchs_in_a_row():
    """What trainings drew before there were counter-based draws."""
    batches = Batches(3, 6, Share(1, 2), CPU, torch.float32)
    serial = SerialDraws(batches, {"critic": {"latents": 8, "mix": 1, "change": 7}, "mirror": {"flip": 1}}, {"latents"})
    found, random = serial.of(9), seeded(3, 9, "critic")
    assert torch.equal(found["latents"], torch.randn(6, 8, generator=random)[3:])
    assert torch.equal(found["mix"].flatten(), torch.rand(6, 1, 1, 1, generator=random).flatten()[3:])
    assert torch.equal(found["change"], torch.rand(6, 7, generator=random)[3:])
    assert torch.equal(found["flip"][:, 0], torch.rand(6, generator=seeded(3, 9, "mirror"))[3:])
