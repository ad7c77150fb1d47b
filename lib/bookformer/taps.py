"""Give what a forward pass computes a name, so that it can be looked at or replaced.

Chapter: Positions, first; then wherever a model is looked into. The idea of named activations on the one forward path
is that of TransformerLens (Nanda 2022).
"""

from collections.abc import Callable, Mapping, MutableMapping

from torch import Tensor

Edit = Callable[[Tensor], Tensor]


class Taps:
    """One pass through a model: each activation that has a name goes through here.

    Args:
        trace: where activations are put, by name; not detached, so gradients flow. None: they are not kept.
        edits: for some names, what to make of the activation: a function that gives a tensor of the same shape.
        prefix: what stands before each name.
    """

    def __init__(
        self,
        trace: MutableMapping[str, Tensor] | None = None,
        edits: Mapping[str, Edit] | None = None,
        prefix: str = "",
    ) -> None:
        self.trace, self.edits, self.prefix = trace, edits or {}, prefix
        self._names: list[str] = []  # of all activations met

    def inside(self, part: str) -> "Taps":
        """The same taps for a part of the model: `part` and a dot stand before its names."""
        if self.trace is None and not self.edits:
            return self
        taps = Taps(self.trace, self.edits, f"{self.prefix}{part}.")
        taps._names = self._names
        return taps

    def wants(self, name: str) -> bool:
        """Whether anybody looks at this activation, so that it must be computed."""
        return self.trace is not None or self.prefix + name in self.edits

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """Note an activation, and return it, or what its edit makes of it.

        Raises:
            ValueError: the edit changes the shape.
        """
        if self.trace is None and not self.edits:
            return x
        name = self.prefix + name
        self._names.append(name)
        if name in self.edits:
            shape = tuple(x.shape)
            x = self.edits[name](x)
            if tuple(x.shape) != shape:
                raise ValueError(f"the edit of {name} makes shape {tuple(x.shape)} of {shape}")
        if self.trace is not None:
            self.trace[name] = x
        return x

    def finish(self) -> None:
        """After the pass: every edit must have met its activation.

        Raises:
            ValueError: one did not; the message lists the names that there are.
        """
        missed = sorted(set(self.edits) - set(self._names))
        if missed:
            raise ValueError(f"there is no activation {', '.join(missed)}; there are {', '.join(self._names)}")


NO_TAPS = Taps()
