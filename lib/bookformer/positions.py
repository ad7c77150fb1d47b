"""How a model is told where each token stands: six schemes with one interface.

Chapter: Positions. Papers: Vaswani et al. 2017 (sinusoidal); Gehring et al. 2017 (learned); Shaw et al. 2018 and
Raffel et al. 2020 (relative bias, the latter's buckets); Su et al. 2021 (rotary); Press et al. 2022 (ALiBi);
Haviv et al. 2022 (none).
Shapes: B batch, T query positions, S key positions, D model width, H heads, K head width.
"""

import math

import torch
from torch import Tensor, nn

from bookformer.config import ModelConfig


def sinusoids(length: int, d_model: int, base: float = 10_000.0) -> Tensor:
    """Sines and cosines of falling frequency: (length, D) in float64.

    Columns 2i and 2i + 1 hold the sine and the cosine of position / base^(2i / D), for 0 <= i < D / 2.

    Raises:
        ValueError: the length is below 1, or D is not a positive even number.
    """
    if length < 1 or d_model < 2 or d_model % 2:
        raise ValueError(f"sinusoids need a length of at least 1 and an even width, got {length} and {d_model}")
    angles = turning(length, d_model, base)  # (length, D / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(start_dim=1)


def turning(length: int, width: int, base: float = 10_000.0) -> Tensor:
    """By which angle each pair of numbers has turned at each position: (length, width / 2) in float64."""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)  # (width / 2,)
    return torch.arange(length, dtype=torch.float64)[:, None] * frequencies


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of neighbouring numbers, (0, 1), (2, 3) and so on, by its angle.

    Args:
        x: (..., T, K).
        angles: (T, K / 2).

    Raises:
        ValueError: the sizes disagree.
    """
    if x.shape[-2:] != (angles.size(0), 2 * angles.size(1)):
        raise ValueError(f"angles {tuple(angles.shape)} do not fit the pairs of x {tuple(x.shape)}")
    turns = torch.stack([angles.cos(), angles.sin()], dim=-1)  # (T, K / 2, 2)
    return _turn(x.contiguous(), turns.to(torch.promote_types(x.dtype, torch.float32)))


def _turn(x: Tensor, turns: Tensor) -> Tensor:
    """A pair is a complex number, and is turned by multiplying it by another, of length 1.

    Args:
        x: (..., T, K).
        turns: (T, K / 2, 2), the cosine and the sine of each angle.
    """
    if x.dtype in (torch.float16, torch.bfloat16):  # PyTorch has no complex numbers of half precision for all devices
        return _turn(x.float(), turns.float()).to(x.dtype)
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))  # (..., T, K / 2)
    return torch.view_as_real(pairs * torch.view_as_complex(turns)).flatten(-2)


def alibi_slopes(n_heads: int) -> Tensor:
    """How fast each head's scores fall with distance: (H,), from 2^(-8/H) down to 2^-8 in equal ratios.

    Where H is no power of two, the slopes of the next smaller power come first, then every second one of the next
    larger, as in the authors' code.
    """
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    slopes += [2 ** (-4 * (h + 1) / power) for h in range(0, 2 * (n_heads - power), 2)]
    return torch.tensor(slopes)


def relative_bucket(distance: Tensor, *, causal: bool, buckets: int = 32, furthest: int = 128) -> Tensor:
    """Which bias a distance shares with others: half of the buckets hold one distance each, the others wider ranges.

    Args:
        distance: query position minus key position, any shape.
        causal: whether only distances of 0 and more occur; otherwise half of the buckets are for keys that come later.
        buckets: how many there are.
        furthest: from this distance on, all share the last one.

    Returns:
        Bucket numbers, of the same shape. Source: Raffel et al. 2020, and their code.

    Raises:
        ValueError: `furthest` is among the distances that have a bucket each.
    """
    buckets = buckets if causal else buckets // 2
    exact = buckets // 2
    if furthest <= exact:
        raise ValueError(f"furthest ({furthest}) must be above the {exact} distances that have a bucket each")
    if causal:
        offset, distance = torch.zeros_like(distance), distance.clamp(min=0)
    else:
        offset, distance = (distance < 0) * buckets, distance.abs()
    ratio = (distance.clamp(min=1) / exact).log() / math.log(furthest / exact)
    wide = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, wide)


def distances(t: int, s: int, device: torch.device | None = None) -> Tensor:
    """Query position minus key position, the queries being the last T of S positions: (T, S)."""
    return torch.arange(s - t, s, device=device)[:, None] - torch.arange(s, device=device)


class NoPositions(nn.Module):
    """None at all. A causal mask still tells a model how much came before. The other schemes fill in one of these."""

    def __init__(self, config: ModelConfig, *, causal: bool) -> None:
        super().__init__()

    def add(self, places: Tensor) -> Tensor | None:
        """What is added to the token embeddings at these places (T,) or (B, T): (..., T, D), or None."""
        return None

    def rotate(self, x: Tensor, start: int) -> Tensor:
        """Queries or keys (B, heads, T, K) from position `start` on, as this scheme turns them."""
        return x

    def bias(self, t: int, s: int) -> Tensor | None:
        """What is added to the scores of the last T of S positions: (H, T, S), or None."""
        return None


class Learned(NoPositions):
    """A learned vector for each position, added to the embeddings. Beyond training it has nothing to say."""

    def __init__(self, config: ModelConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.table = nn.Embedding(config.context_length, config.d_model)

    def add(self, places: Tensor) -> Tensor:
        return self.table(places)  # (..., T, D)


class Sinusoidal(NoPositions):
    """Fixed sines and cosines, added to the embeddings."""

    def __init__(self, config: ModelConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.register_buffer("table", sinusoids(config.context_length, config.d_model).float(), persistent=False)

    def add(self, places: Tensor) -> Tensor:
        return self.table[places]  # (..., T, D)


class RelativeBias(NoPositions):
    """A learned number for each head and range of distances, added to the scores; all blocks share them."""

    BUCKETS = 32

    def __init__(self, config: ModelConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.causal, self.furthest = causal, config.relative_distance
        self.table = nn.Embedding(self.BUCKETS, config.n_heads)

    def bias(self, t: int, s: int) -> Tensor:
        apart = distances(t, s, self.table.weight.device)
        bucket = relative_bucket(apart, causal=self.causal, buckets=self.BUCKETS, furthest=self.furthest)
        return self.table(bucket).permute(2, 0, 1)  # (T, S, H) -> (H, T, S)


class Rotary(NoPositions):
    """Queries and keys turned by an angle that grows with the position, so that their product knows the distance.

    Neighbouring numbers make a pair, as in the paper. Llama's published code pairs number i with number i + K / 2: its
    weights must be put in our order when they are read.
    """

    def __init__(self, config: ModelConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        angles = turning(config.context_length, config.d_head, config.rotary_base)  # (context_length, K / 2)
        turns = torch.stack([angles.cos(), angles.sin()], dim=-1).float()  # (context_length, K / 2, 2)
        self.register_buffer("turns", turns, persistent=False)

    @property
    def cos(self) -> Tensor:
        """The cosines (context_length, K / 2)."""
        return self.turns[..., 0]

    @property
    def sin(self) -> Tensor:
        """The sines (context_length, K / 2)."""
        return self.turns[..., 1]

    def rotate(self, x: Tensor, start: int) -> Tensor:
        return _turn(x, self.turns[start : start + x.size(-2)])


class ALiBi(NoPositions):
    """Scores that fall with distance, faster in some heads than in others; nothing is learned. For decoders alone."""

    def __init__(self, config: ModelConfig, *, causal: bool) -> None:
        super().__init__(config, causal=causal)
        self.register_buffer("slopes", alibi_slopes(config.n_heads), persistent=False)

    def bias(self, t: int, s: int) -> Tensor:
        return -self.slopes[:, None, None] * distances(t, s, self.slopes.device)  # (H, T, S); later keys are hidden


SCHEMES = {
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "relative": RelativeBias,
    "rotary": Rotary,
    "alibi": ALiBi,
    "none": NoPositions,
}
