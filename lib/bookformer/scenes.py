"""Pictures of two digits that people wrote, and a caption for each: "a seven left of a two".

Chapter: Pictures as prompts. The digits are those of Alpaydin and Kaynak 1998, as scikit-learn's package has them.
Shapes: M pictures of digits; B scenes, H rows and W columns of pixels, N patches.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bookformer.data import checked_path

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("left of", "above")
SIDE = 8  # of a digit's picture, in pixels


def load_digits() -> tuple[Tensor, Tensor]:
    """Digits that people wrote, as scikit-learn's package has them: pictures (1797, 8, 8) from 0 to 1, and labels.

    They are the test side of a set by Alpaydin and Kaynak (1998), in its order. Written by 13 people; which of them
    wrote which is not said.

    Raises:
        ValueError: the file is not the one that the book was written with.
        ModuleNotFoundError: the package is not installed; the message is the pip command.
    """
    table = np.loadtxt(checked_path("digits", "digits.csv.gz"), delimiter=",", dtype=np.float32)  # (1797, 65)
    return torch.from_numpy(table[:, :-1]).view(-1, SIDE, SIDE) / 16, torch.from_numpy(table[:, -1]).long()


def varied(
    pictures: Tensor,
    times: int,
    generator: torch.Generator,
    *,
    turn: float = 0.15,
    stretch: float = 0.1,
    shift: float = 0.3,
) -> Tensor:
    """Each picture of a digit (M, 8, 8) drawn again `times` times, a little otherwise: (times * M, 8, 8).

    Labels go with them as `labels.repeat(times)`. What is new is interpolated from the pixels that are there.

    Args:
        pictures: from 0 to 1.
        times: how often.
        generator: where the randomness comes from.
        turn: by how many radians a picture is turned at most, to either side.
        stretch: by which share of its height and of its width it grows or shrinks at most.
        shift: by how many pixels it is moved at most, along each side.

    Raises:
        ValueError: there is nothing to draw, or the pictures have another shape.
    """
    if times < 1 or pictures.shape[1:] != (SIDE, SIDE) or not len(pictures):
        raise ValueError(f"there must be pictures (M, {SIDE}, {SIDE}) and times, got {tuple(pictures.shape)}, {times}")
    x = pictures.repeat(times, 1, 1)[:, None]  # (times * M, 1, 8, 8)
    drawn = torch.rand(5, len(x), generator=generator) * 2 - 1
    angle, wide, high = drawn[0] * turn, 1 + drawn[1] * stretch, 1 + drawn[2] * stretch
    right, down = drawn[3:] * shift * 2 / SIDE  # a picture is 2 wide to grid_sample
    rows = torch.stack([angle.cos() * wide, -angle.sin() * high, right, angle.sin() * wide, angle.cos() * high, down])
    grid = F.affine_grid(rows.T.reshape(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)[:, 0].clamp(0, 1)


class Scenes(NamedTuple):
    """Pictures of two digits each. The first digit is the one to the left, or the one above."""

    pictures: Tensor  # (B, H, W), from 0 to 1
    digits: Tensor  # (B, 2), which digits they are
    relations: Tensor  # (B,): 0 for "left of", 1 for "above"
    corners: Tensor  # (B, 2, 2): row and column of each digit's first pixel
    images: Tensor  # (B, 2): which picture each digit is, by its place among those given

    def captions(self) -> list[str]:
        """Such as "a seven left of a two"."""
        rows = zip(self.digits.tolist(), self.relations.tolist(), strict=True)
        return [f"a {DIGITS[a]} {RELATIONS[r]} a {DIGITS[b]}" for (a, b), r in rows]


def make_scenes(
    pictures: Tensor,
    labels: Tensor,
    n: int,
    generator: torch.Generator,
    *,
    pairs: Collection[tuple[int, int]],
    size: int = 24,
    step: int = 4,
) -> Scenes:
    """Scenes drawn at random: which two digits, which pictures of them, which relation, and where they stand.

    A digit stands left of another if its column is at least 8 pixels smaller, and by at least 4 more than their rows
    differ; "above" is the same turned. Both relations and all places that fit are equally likely.

    Args:
        pictures: (M, 8, 8), of digits.
        labels: (M,), which digit each is.
        n: B, how many scenes.
        generator: where the randomness comes from.
        pairs: the first and the second digit; all pairs are equally likely.
        size: the side of a scene, in pixels.
        step: digits stand at multiples of it, in rows and in columns.

    Raises:
        ValueError: pictures and labels do not fit each other, there is no scene or no pair to draw, a digit of a pair
            has no picture, or the size has no place for two digits.
    """
    if pictures.shape[1:] != (SIDE, SIDE) or labels.shape != pictures.shape[:1]:
        raise ValueError(
            f"digits must be (M, {SIDE}, {SIDE}) with M labels, got {tuple(pictures.shape)} and {tuple(labels.shape)}"
        )
    by_digit = [(labels == digit).nonzero()[:, 0] for digit in range(len(DIGITS))]
    wanted = sorted({digit for pair in pairs for digit in pair})
    if n < 1 or not wanted:
        raise ValueError(f"there must be a scene to draw and a pair to draw from, got {n} and {len(pairs)}")
    for digit in wanted:
        if not 0 <= digit < len(DIGITS) or not len(by_digit[digit]):
            raise ValueError(f"there is no picture of a digit {digit} among {len(labels)}")
    places = _places(size, step)
    digits = torch.tensor(sorted(pairs))[torch.randint(len(pairs), (n,), generator=generator)]  # (B, 2)
    chance = torch.rand(n, 2, generator=generator)
    images = torch.empty(n, 2, dtype=torch.long)
    for digit in wanted:
        here = digits == digit
        images[here] = by_digit[digit][(chance[here] * len(by_digit[digit])).long()]
    relations = torch.randint(2, (n,), generator=generator)
    at = torch.randint(len(places), (n,), generator=generator)
    corners = torch.where(relations[:, None, None] == 0, places[at], places[at].flip(-1))  # (B, 2, 2)
    scenes = torch.zeros(n, size, size)
    rows, columns = (corners[..., i, None] + torch.arange(SIDE) for i in (0, 1))  # (B, 2, SIDE) each
    which = torch.arange(n)[:, None, None, None]
    scenes[which, rows[..., :, None], columns[..., None, :]] = pictures[images]
    return Scenes(scenes, digits, relations, corners, images)


def patches_of(scenes: Scenes, patch: int) -> Tensor:
    """Which patches belong to each digit: bool (B, 2, N), True where the middle of a patch lies in the digit's square.

    Raises:
        ValueError: patches of this size do not divide the pictures.
    """
    height, width = scenes.pictures.shape[1:]
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"patches of {patch} by {patch} pixels do not divide pictures of {height} by {width}")
    inside = []
    for axis, count in enumerate((height // patch, width // patch)):
        middles = torch.arange(count) * patch + (patch - 1) / 2  # (count,)
        first = scenes.corners[..., axis, None]  # (B, 2, 1)
        inside.append((middles >= first) & (middles < first + SIDE))  # (B, 2, count)
    return (inside[0][..., :, None] & inside[1][..., None, :]).flatten(2)


def _places(size: int, step: int) -> Tensor:
    """Where two digits can stand, the first left of the second: (n, 2, 2), each one's row and column."""
    if step < 1 or size < 2 * SIDE:
        raise ValueError(f"a scene of {size} pixels with a step of {step} has no place for two digits of {SIDE} pixels")
    along = torch.arange(0, size - SIDE + 1, step)
    places = torch.cartesian_prod(along, along, along, along).view(-1, 2, 2)
    down, right = (places[:, 1] - places[:, 0]).unbind(-1)
    return places[(right >= SIDE) & (right - down.abs() >= SIDE // 2)]
