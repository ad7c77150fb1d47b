"""Writing with a model: one token after another, each fed back in; and weighing answers that are given.

Chapters: The Transformer (greedy), GPT, Prompting (answers). Papers: Fan et al. 2018 (top-k); Holtzman et al. 2020
(top-p, and why the likeliest text is not the best); Wu et al. 2016 (beams compared by their length); Brown et al. 2020
(answers compared by their likelihood).
Shapes: B batch, T positions, V tokens, W hypotheses of a beam, N prompts, A answers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bookformer.attention import KVCache
from bookformer.heads import LanguageModel


def next_token_probabilities(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """The distribution that the next token is drawn from.

    The logits are divided by the temperature; then the `top_k` likeliest tokens stay; of these the likeliest, until
    together they have a probability of `top_p`. What stays is scaled so that it sums to 1. Of equally likely tokens
    those with the lower ids stay.

    Args:
        logits: (..., V); minus infinity for a token that must not come.
        temperature: below 1 the likely tokens gain, above 1 the unlikely.
        top_k: how many tokens stay; all when None.
        top_p: how much probability stays; all of it when 1.

    Returns:
        Probabilities (..., V), 0 for tokens that do not stay.

    Raises:
        ValueError: the temperature is 0 or below, `top_k` is outside 1 to V, `top_p` is not above 0 and at most 1, or
            the logits have no distribution.
    """
    _check_choice(temperature, top_k, top_p, logits.size(-1))
    likeliest = logits.amax(dim=-1, keepdim=True)  # (..., 1)
    if not likeliest.isfinite().all():
        raise ValueError("the logits hold nan or infinity, or nothing but minus infinity: they have no distribution")
    probabilities = ((logits - likeliest) / temperature).softmax(
        dim=-1
    )  # (..., V); a low temperature overflows nothing
    if top_k is None and top_p == 1:
        return probabilities
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)  # (..., V)
    if top_k is not None:
        ordered[..., top_k:] = 0
        ordered /= ordered.sum(dim=-1, keepdim=True)
    if top_p < 1:
        likelier = ordered.double().cumsum(dim=-1) - ordered  # (..., V), what those before it have together
        ordered[likelier >= top_p] = 0
        ordered /= ordered.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, ids, ordered)


@torch.no_grad()
def generate(
    model: LanguageModel,
    ids: Tensor,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    stop: int | None = None,
    source: Tensor | None = None,
    source_real: Tensor | None = None,
    use_cache: bool = True,
) -> Tensor:
    """A prompt, written on by a model.

    Args:
        model: a decoder, or an encoder-decoder with a `source`. It is in evaluation mode meanwhile.
        ids: the prompt (B, T), T at least 1.
        length: the most new tokens. A model with a bounded context writes no farther than its end.
        temperature: as in `next_token_probabilities`; and 0 takes the likeliest token each time.
        top_k: as there.
        top_p: as there.
        generator: where the randomness comes from; needed unless `temperature` is 0.
        stop: a token that ends a row. What the row has after it is that token again.
        source: for an encoder-decoder, what it reads (B, S).
        source_real: bool (B, S), False where the source is padding.
        use_cache: whether to keep the keys and values of what is written; without, all is computed again for each
            token, and the text is the same.

    Returns:
        The prompt and what was written (B, T + at most `length`); shorter if all rows have ended.

    Raises:
        ValueError: there is no prompt, it and `length` do not fit the context, the temperature is negative, `top_k`
            or `top_p` is out of range, or randomness is asked for without a generator.
    """
    _check_prompt(model, ids, length)
    _check_choice(temperature or 1.0, top_k, top_p, model.config.vocab_size)  # 0 divides nothing
    if temperature and generator is None:
        raise ValueError(f"a temperature of {temperature} draws at random: give a generator, or 0 for the likeliest")
    was_training = model.training
    model.eval()
    try:
        rest = _read(model, source, source_real)
        cache = model.new_cache() if use_cache else None
        new = ids
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for _ in range(length):
            logits = _last(model, new if use_cache else ids, cache, rest)  # (B, V)
            if temperature:
                chances = next_token_probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
                new = torch.multinomial(chances, 1, generator=generator)  # (B, 1)
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


@torch.no_grad()
def beam_search(
    model: LanguageModel,
    ids: Tensor,
    length: int,
    *,
    width: int,
    stop: int | None = None,
    length_power: float = 0.0,
    source: Tensor | None = None,
    source_real: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The likeliest continuations that a search finds which keeps the best few at each step.

    With a width of 1 it is greedy; with room for every continuation it is exhaustive.

    Args:
        model: a decoder, or an encoder-decoder with a `source`. It is in evaluation mode meanwhile.
        ids: one prompt (1, T), T at least 1.
        length: the most new tokens.
        width: W, how many hypotheses are kept.
        stop: a token that ends a hypothesis, which then waits among the best until a better one takes its place.
        length_power: hypotheses are compared by their log-probability divided by their number of new tokens to this
            power; 0 compares log-probabilities, which favours what ends early.
        source: for an encoder-decoder, what it reads (1, S).
        source_real: bool (1, S), False where the source is padding.

    Returns:
        The hypotheses (at most W, T + at most `length`), the best first, an ended one filled up with `stop`; and the
        log-probability of what each has after the prompt, its `stop` included.

    Raises:
        ValueError: there is not one prompt or not one source, the prompt and `length` do not fit the context, or the
            width is below 1.
    """
    _check_prompt(model, ids, length)
    if len(ids) != 1 or width < 1:
        raise ValueError(
            f"a beam needs one prompt (1, T) and a width of at least 1, got {tuple(ids.shape)} and {width}"
        )
    if source is not None and len(source) != 1:
        raise ValueError(f"a beam reads one source (1, S), got {tuple(source.shape)}")
    mark = -1 if stop is None else stop
    was_training = model.training
    model.eval()
    try:
        rest = _read(model, source, source_real)
        cache, new, start = model.new_cache(), ids, ids.size(1)
        total = torch.zeros(1, dtype=torch.float64, device=ids.device)  # (W,), log-probability so far
        for _ in range(length):
            logits = _last(model, new, cache, {name: x.expand(len(new), *x.shape[1:]) for name, x in rest.items()})
            gain = logits.double().log_softmax(-1)  # (W, V)
            ended = (ids[:, start:] == mark).any(dim=1)  # (W,)
            if ended.any():  # what has ended goes on as it is, at no cost
                gain[ended] = float("-inf")
                gain[ended, stop] = 0.0
            sums = (total[:, None] + gain).flatten()  # (W V,)
            new_tokens = (ids[:, start:] != mark).sum(dim=1) + 1  # (W,), the one to come or the stop included
            rank = sums / new_tokens.repeat_interleave(gain.size(1)) ** length_power
            best = rank.sort(descending=True, stable=True).indices[: min(width, int(sums.isfinite().sum()))]  # (W,)
            rows, new = best // gain.size(1), (best % gain.size(1))[:, None]  # (W,), (W, 1)
            total, ids = sums[best], torch.cat([ids[rows], new], dim=1)
            if (ids[:, start:] == mark).any(dim=1).all():
                break
            for one in cache:
                one.select(rows)
    finally:
        model.train(was_training)
    return ids, total


@torch.no_grad()
def answer_log_likelihoods(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, batch_size: int = 16
) -> Tensor:
    """How likely each answer is after each prompt: the sum of its tokens' log-probabilities.

    What all prompts begin with, such as the same few examples, is read once: its keys and values serve every prompt.

    Args:
        model: a decoder. It is in evaluation mode meanwhile.
        prompts: N rows of token ids.
        answers: A rows of token ids; each is asked about after every prompt.
        batch_size: how many texts are read at once.

    Returns:
        (N, A) float64, in nats.

    Raises:
        ValueError: there is no prompt or no answer, one of them is empty, the longest of each do not fit the context,
            or `batch_size` is below 1.
    """
    _check_answers(prompts, answers, model.config.context_length, batch_size)
    first, shortest = prompts[0], min(map(len, prompts))
    shared = next((i for i in range(shortest - 1) if any(p[i] != first[i] for p in prompts)), shortest - 1)
    asked: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # what is read after it: for which prompts and answers
    for i, prompt in enumerate(prompts):
        for j, answer in enumerate(answers):
            asked.setdefault((*prompt[shared:], *answer[:-1]), []).append((i, j))
    rows = sorted(asked, key=len, reverse=True)  # alike in length side by side, so that little is filled up
    found = torch.zeros(len(prompts), len(answers), dtype=torch.float64)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        cache = model.new_cache()
        if shared:
            model(torch.tensor([first[:shared]], device=device), cache=cache, last=True)
        for at in range(0, len(rows), batch_size):
            some = rows[at : at + batch_size]
            if shared:  # one copy of what is shared for each row
                copies = torch.zeros(len(some), dtype=torch.long, device=device)
                for one in cache:
                    one.select(copies)
            ids = torch.zeros(len(some), len(some[0]), dtype=torch.long, device=device)  # (B, T)
            for x, row in zip(ids, some, strict=True):
                x[: len(row)] = torch.tensor(row)  # what fills it up stands after the text, where nothing sees it
            logits = model(ids, cache=cache)  # (B, T, V)
            for one in cache:
                one.length = shared  # forget the rows, keep what is shared
            for said, row in zip(logits, some, strict=True):
                for i, j in asked[row]:
                    begin = len(prompts[i]) - shared - 1  # its last token predicts the answer's first
                    log_p = said[begin : begin + len(answers[j])].double().log_softmax(-1)  # (answer, V)
                    tokens = torch.tensor(answers[j], device=device)
                    found[i, j] = log_p.gather(-1, tokens[:, None]).sum().item()
    finally:
        model.train(was_training)
    return found


def _last(model: LanguageModel, ids: Tensor, cache: Sequence[KVCache] | None, rest: dict[str, Tensor]) -> Tensor:
    """The logits after the last position (B, V)."""
    with torch.inference_mode():  # what PyTorch notes for gradients, even where none is wanted, takes time
        return model(ids, cache=cache, last=True, **rest)[:, -1]


def _read(model: LanguageModel, source: Tensor | None, source_real: Tensor | None) -> dict[str, Tensor]:
    if source is None:
        return {}
    mask = None if source_real is None else source_real[:, None, None, :]  # (B, 1, 1, S)
    memory = model.body.encode(source, mask)  # once, not at every token
    return {"memory": memory} if mask is None else {"memory": memory, "memory_mask": mask}


def _check_prompt(model: LanguageModel, ids: Tensor, length: int) -> None:
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(f"the prompt must be ids (B, T), none of them 0; got shape {tuple(ids.shape)}")
    limit = model.config.context_length
    if length < 1 or ids.size(1) + length - 1 > limit:
        raise ValueError(f"a prompt of {ids.size(1)} tokens and {length} more do not fit context_length ({limit})")


def _check_answers(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], limit: int, size: int) -> None:
    for name, rows in (("prompt", prompts), ("answer", answers)):
        if not len(rows):
            raise ValueError(f"there is no {name}: give at least one")
        for i, row in enumerate(rows):
            if not len(row):
                raise ValueError(f"{name} {i} is empty: it needs at least one token")
    prompt, answer = max(map(len, prompts)), max(map(len, answers))
    if prompt + answer - 1 > limit:
        raise ValueError(f"a prompt of {prompt} tokens and an answer of {answer} do not fit context_length ({limit})")
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")


def _check_choice(temperature: float, top_k: int | None, top_p: float, vocab_size: int) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}: it divides the logits")
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise ValueError(f"top_k must be from 1 to the {vocab_size} tokens of the vocabulary, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
