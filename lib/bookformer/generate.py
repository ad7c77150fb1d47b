"""Writing with a model: one token after another, each fed back in.

Chapters: The Transformer (greedy), GPT. Paper: Holtzman et al. 2020 (why the likeliest text is not the best).
"""

import torch
from torch import Tensor

from bookformer.heads import LanguageModel


@torch.no_grad()
def generate(
    model: LanguageModel,
    ids: Tensor,
    length: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    stop: int | None = None,
    source: Tensor | None = None,
    source_real: Tensor | None = None,
) -> Tensor:
    """A prompt, written on by a model with a key-value cache.

    Args:
        model: a decoder, or an encoder-decoder with a `source`. It is in evaluation mode meanwhile.
        ids: the prompt (B, T), T at least 1.
        length: the most new tokens. A model with a bounded context writes no farther than its end.
        temperature: the logits are divided by it before a token is drawn; 0 takes the likeliest token each time.
        generator: where the randomness comes from; needed unless `temperature` is 0.
        stop: a token that ends a row. What the row has after it is that token again.
        source: for an encoder-decoder, what it reads (B, S).
        source_real: bool (B, S), False where the source is padding.

    Returns:
        The prompt and what was written (B, T + at most `length`); shorter if all rows have ended.

    Raises:
        ValueError: there is no prompt, it and `length` do not fit the context, the temperature is negative, or
            randomness is asked for without a generator.
    """
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(f"the prompt must be ids (B, T), none of them 0; got shape {tuple(ids.shape)}")
    limit = model.config.context_length
    if length < 1 or ids.size(1) + length - 1 > limit:
        raise ValueError(f"a prompt of {ids.size(1)} tokens and {length} more do not fit context_length ({limit})")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
    if temperature and generator is None:
        raise ValueError(f"a temperature of {temperature} draws at random: give a generator, or 0 for the likeliest")
    was_training = model.training
    model.eval()
    try:
        rest = _read(model, source, source_real)
        cache, new = model.new_cache(), ids
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for _ in range(length):
            logits = model(new, cache=cache, **rest)[:, -1]  # (B, V)
            if temperature:
                new = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)  # (B, 1)
            else:
                new = logits.argmax(-1, keepdim=True)
            if stop is not None:
                new = torch.where(ended[:, None], stop, new)
                ended |= new[:, 0] == stop
            ids = torch.cat([ids, new], dim=1)
            if ended.all():
                break
    finally:
        model.train(was_training)
    return ids


def _read(model: LanguageModel, source: Tensor | None, source_real: Tensor | None) -> dict[str, Tensor]:
    if source is None:
        return {}
    mask = None if source_real is None else source_real[:, None, None, :]  # (B, 1, 1, S)
    memory = model.body.encode(source, mask)  # once, not at every token
    return {"memory": memory} if mask is None else {"memory": memory, "memory_mask": mask}
