"""Say a claim in words, and make it fail loudly when it is false.

Used by every chapter. Imports nothing from this package.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Margin:
    """A comparison that remembers by how much it holds, in the units of what was measured.

    True when `room` is positive: how far the measured value is from the place where the claim would turn false.
    """

    room: float
    words: str

    def __bool__(self) -> bool:
        return self.room > 0


def above(value: float, bound: float) -> Margin:
    """Whether a measured value is greater than a bound, and by how much."""
    return Margin(float(value) - float(bound), f"{float(value):.4g} against at least {float(bound):.4g}")


def below(value: float, bound: float) -> Margin:
    """Whether a measured value is less than a bound, and by how much."""
    return Margin(float(bound) - float(value), f"{float(value):.4g} against at most {float(bound):.4g}")


def check(claim: str, holds: bool | Margin, **measured: object) -> None:
    """Print the claim if it holds.

    A claim about a trained model is given as `above(...)` or `below(...)`, so that `make seeds` can tell how
    many standard deviations it is from failing.

    Args:
        claim: one sentence, the same on every machine: no measured digits in it.
        holds: whether the measurement supports it; an array or tensor of one truth value will do.
        **measured: the numbers behind it, shown only on failure.

    Raises:
        AssertionError: the claim is false; the message carries the numbers.
        TypeError: `holds` is neither true nor false, such as a number or a tuple.
    """
    holds = holds.item() if hasattr(holds, "item") else holds
    if not isinstance(holds, bool | Margin):
        raise TypeError(f"{claim}: {holds!r} is neither true nor false")
    if not holds:
        numbers = [holds.words] if isinstance(holds, Margin) else []
        numbers += [f"{name} = {value}" for name, value in measured.items()]
        raise AssertionError(f"{claim}: not so ({', '.join(numbers)})")
    print(f"Checked: {claim}.")
