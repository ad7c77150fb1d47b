"""A query knows its place, and the tokens before it in the order, and never its own token."""

import pytest
import torch
from torch.testing import assert_close

from bookformer.attention import causal_mask
from bookformer.config import ModelConfig
from bookformer.objectives import permutation_masks
from bookformer.twostream import TwoStream

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
T = 6
SCHEMES = ["learned", "sinusoidal", "relative", "rotary"]


def make(positions="rotary", **changes):
    torch.manual_seed(0)
    config = {"vocab_size": 11, "context_length": 8, "d_model": 16, "n_heads": 2, "kind": "encoder"}
    model = TwoStream(ModelConfig(**config | {"positions": positions} | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


IDS = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
ORDER = torch.tensor([[0, 4, 2, 5, 1, 3], [3, 0, 1, 5, 4, 2]])


def influences(model, order):
    """Whether the logits at place i change with the token at place j: (B, T, T) bool."""
    masks = permutation_masks(order)
    before, changed = model(IDS, *masks), torch.zeros(2, T, T, dtype=torch.bool)
    for j in range(T):
        other = IDS.clone()
        other[:, j] = 9
        changed[:, :, j] = (model(other, *masks) - before).abs().amax(-1) > 1e-6
    return changed


@pytest.mark.parametrize("positions", SCHEMES)
def test_a_query_sees_exactly_the_tokens_before_it_in_the_order(positions):
    changed = influences(make(positions), ORDER)
    for row, order in enumerate(ORDER.tolist()):
        for turn, place in enumerate(order):
            seen = set(changed[row, place].nonzero().flatten().tolist())
            assert seen == (set(order[:turn]) if turn else {place})


def test_in_the_order_of_writing_it_sees_what_a_causal_model_sees():
    order = torch.arange(T).repeat(2, 1)
    content, _ = permutation_masks(order)
    assert torch.equal(content[0, 0], causal_mask(T))
    changed = influences(make(), order)[0]
    assert torch.equal(changed[1:], causal_mask(T).roll(1, dims=0)[1:])  # place t sees those before t


def test_places_are_kept():
    """Two queries that see the same tokens expect different ones, because they stand elsewhere."""
    order = torch.tensor([[0, 1, 2, 3, 4, 5]] * 2)
    content, query = permutation_masks(order)
    query = query.clone()
    query[:, :, 5] = query[:, :, 4]
    for positions in SCHEMES:
        logits = make(positions)(IDS, content, query)
        assert (logits[:, 5] - logits[:, 4]).abs().max() > 1e-2
    assert_close(*(make("none")(IDS, content, query)[:, place] for place in (4, 5)), **CLOSE)


@pytest.mark.parametrize("positions", SCHEMES)
def test_both_streams_by_hand(positions):
    """Block by block, with the queries asking the content through the same weights."""
    model = make(positions)
    content, query = permutation_masks(ORDER)
    body, scheme = model.body, model.body.positions
    h, g = body.tokens(IDS), model.query.expand(2, T, -1)
    where = scheme.add(torch.arange(T))
    h, g = (h, g) if where is None else (h + where, g + where)
    for block in body.stack.blocks:
        normed, attn = block.attn_norm(h), block.attn
        q, k, v = (attn._split(part(normed), 2) for part in (attn.q, attn.k, attn.v))
        asked = scheme.rotate(attn._split(attn.q(block.attn_norm(g)), 2), 0)
        q, k, bias = scheme.rotate(q, 0), scheme.rotate(k, 0), scheme.bias(T, T)

        def attend(q, mask, k=k, v=v, bias=bias, attn=attn):
            scores = q @ k.transpose(-2, -1) / 8**0.5 + (0 if bias is None else bias)
            return attn.out((scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2))

        h, g = h + attend(q, content), g + attend(asked, query)
        h, g = h + block.ff(block.ff_norm(h)), g + block.ff(block.ff_norm(g))
    assert_close(model(IDS, content, query), body.stack.norm(g) @ body.tokens.weight.T, **CLOSE)


def test_masks_for_one_text_or_for_all():
    model, order = make(), ORDER[:1].repeat(2, 1)
    content, query = permutation_masks(order)
    assert_close(model(IDS, content[0, 0], query[0, 0]), model(IDS, content, query), **CLOSE)


def test_the_query_is_trained():
    model = make()
    model(IDS, *permutation_masks(ORDER)).square().sum().backward()
    assert model.query.grad.abs().min() > 0


@pytest.mark.parametrize(
    "changes", [{"kind": "decoder"}, {"tie_embeddings": False}, {"scale_embeddings": True}, {"n_segments": 2}]
)
def test_a_configuration_that_is_not_for_two_streams(changes):
    with pytest.raises(ValueError, match="two streams want kind 'encoder'"):
        make(**changes)


def test_what_does_not_fit():
    model, (content, query) = make(), permutation_masks(ORDER)
    with pytest.raises(ValueError, match=r"ids must be \(B, T\), T from 1 to 8; got \(1, 9\)"):
        model(torch.ones(1, 9, dtype=torch.long), content, query)
    with pytest.raises(ValueError, match="ids run from 0 to 10, got 6 to 11"):
        model(IDS + 5, content, query)
    with pytest.raises(ValueError, match=r"the content mask must be bool .*, got torch.float32 \(2, 1, 6, 6\)"):
        model(IDS, content.float(), query)
    with pytest.raises(ValueError, match=r"the query mask must be bool .*, got torch.bool \(2, 1, 5, 5\)"):
        model(IDS, content, query[..., :5, :5])
    with pytest.raises(ValueError, match="the masks differ in shape"):
        model(IDS, content, query[0, 0])
    with pytest.raises(ValueError, match="hides every key"):
        model(IDS, content, query & False)
