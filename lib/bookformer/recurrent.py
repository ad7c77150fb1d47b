"""Language models that came before the Transformer: a window of words, and a state that is carried along.

Chapter: Neural language models. Papers: Bengio et al. 2003 (feed-forward), Elman 1990 and Mikolov et al. 2010
(recurrent), Hochreiter and Schmidhuber 1997 and Gers et al. 2000 (LSTM).
Shapes: B batch, T positions, V vocabulary, D width of a token's vector, N width of the hidden layer or state.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, ...]  # of an RNN (hidden,), of an LSTM (hidden, cell); each (L, B, N)
KINDS = {"rnn": nn.RNN, "lstm": nn.LSTM}


class FeedForwardLM(nn.Module):
    """The last `window` tokens, each as a vector, side by side through one hidden layer.

    Bengio et al. 2003, without their optional connections from the vectors straight to the output.

    Args:
        vocab_size: V, number of distinct tokens.
        window: how many tokens the prediction rests on. What lies farther back can't change it.
        d_model: D, width of a token's vector.
        d_hidden: N, width of the hidden layer.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, vocab_size: int, window: int, d_model: int, d_hidden: int) -> None:
        super().__init__()
        _require_sizes(vocab_size=vocab_size, window=window, d_model=d_model, d_hidden=d_hidden)
        self.window = window
        self.tokens = nn.Embedding(vocab_size + 1, d_model)  # the last one stands for "before the text"
        self.hidden = nn.Linear(window * d_model, d_hidden)
        self.out = nn.Linear(d_hidden, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """From ids (B, T) to logits of the token after each (B, T, V).

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        before = self.out.out_features
        _require_ids(ids, before)
        padded = F.pad(ids, (self.window - 1, 0), value=before)  # (B, window - 1 + T)
        x = self.tokens(padded).unfold(1, self.window, 1)  # (B, T, D, window)
        return self.out(self.hidden(x.transpose(2, 3).flatten(2)).tanh())  # (B, T, V)


class RecurrentLM(nn.Module):
    """A state that each token changes, and from which the next token is predicted: nothing bounds how far back it goes.

    Args:
        vocab_size: V, number of distinct tokens.
        d_model: D, width of a token's vector.
        d_hidden: N, width of the state.
        kind: "rnn" or "lstm".
        n_layers: L, how many are stacked.

    Raises:
        ValueError: a size is below 1, or there is no such kind.
    """

    def __init__(self, vocab_size: int, d_model: int, d_hidden: int, *, kind: str = "lstm", n_layers: int = 1) -> None:
        super().__init__()
        _require_sizes(vocab_size=vocab_size, d_model=d_model, d_hidden=d_hidden, n_layers=n_layers)
        if kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}; got {kind!r}")
        self.kind = kind
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.cells = KINDS[kind](d_model, d_hidden, n_layers, batch_first=True)
        self.out = nn.Linear(d_hidden, vocab_size)

    def forward(self, ids: Tensor | None = None, *, embeddings: Tensor | None = None) -> Tensor:
        """From ids (B, T), or vectors (B, T, D) in their place, to logits of the token after each (B, T, V).

        The state begins at zero.

        Raises:
            ValueError: an id is outside the vocabulary, or neither or both of the two are given.
        """
        return self.step(ids, embeddings=embeddings)[0]

    def step(
        self, ids: Tensor | None = None, state: State | None = None, *, embeddings: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The same from a state on; returns the logits (B, T, V) and the state after the last token."""
        if (ids is None) == (embeddings is None):
            raise ValueError("give either ids or embeddings")
        if embeddings is None:
            _require_ids(ids, self.tokens.num_embeddings)
            embeddings = self.tokens(ids)  # (B, T, D)
        given = state if state is None or self.kind == "lstm" else state[0]
        hidden, after = self.cells(embeddings, given)  # (B, T, N)
        return self.out(hidden), after if self.kind == "lstm" else (after,)


def _require_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _require_ids(ids: Tensor, vocab_size: int) -> None:
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(f"ids must be (B, T), none of them 0; got shape {tuple(ids.shape)}")
    low, high = (int(x) for x in torch.aminmax(ids))
    if low < 0 or high >= vocab_size:
        raise ValueError(f"ids run from {low} to {high}: they must be within 0 to {vocab_size - 1}")
