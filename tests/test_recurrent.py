"""Models without attention: what a window can't see changes nothing, and a state goes on where it stopped."""

import pytest
import torch
from torch import nn

from bookformer.recurrent import FeedForwardLM, RecurrentLM

IDS = torch.arange(24).view(2, 12) % 7


def models():
    torch.manual_seed(0)
    return FeedForwardLM(7, 3, 4, 5), RecurrentLM(7, 4, 5, kind="rnn"), RecurrentLM(7, 4, 5, n_layers=2)


def test_every_position_has_a_logit_for_each_token():
    for model in models():
        assert model(IDS).shape == (2, 12, 7)


def test_nothing_later_is_seen():
    changed = IDS.clone()
    changed[:, 8] = (changed[:, 8] + 1) % 7
    for model in models():
        before, after = model(IDS), model(changed)
        assert torch.equal(before[:, :8], after[:, :8])
        assert not torch.allclose(before[:, 8], after[:, 8])


def test_a_window_sees_its_last_tokens_and_no_more():
    window, *recurrent = models()
    changed = IDS.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 7
    different = (window(IDS) != window(changed)).any(-1)[0]  # (T,)
    assert different.tolist() == [True] * 3 + [False] * 9
    for model in recurrent:
        assert (model(IDS) != model(changed)).any(-1).all()


def test_the_feed_forward_model_by_hand():
    model = models()[0]
    table = model.tokens.weight
    x = torch.cat([table[7], table[IDS[0, 0]], table[IDS[0, 1]]])  # before the text, then two tokens, oldest first
    torch.testing.assert_close(model(IDS)[0, 1], model.out(torch.tanh(model.hidden(x))))


@pytest.mark.parametrize("kind", ["rnn", "lstm"])
def test_a_state_goes_on_where_it_stopped(kind):
    torch.manual_seed(1)
    model = RecurrentLM(7, 4, 5, kind=kind, n_layers=2)
    first, state = model.step(IDS[:, :5])
    assert [tuple(part.shape) for part in state] == [(2, 2, 5)] * (1 if kind == "rnn" else 2)
    rest, _ = model.step(IDS[:, 5:], state)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), model(IDS))


def test_the_kinds_are_torchs():
    assert isinstance(RecurrentLM(7, 4, 5, kind="rnn").cells, nn.RNN)
    assert isinstance(RecurrentLM(7, 4, 5).cells, nn.LSTM)


def test_vectors_may_stand_in_the_ids_place():
    model = models()[2]
    vectors = model.tokens(IDS).detach().requires_grad_()
    out = model(embeddings=vectors)
    assert torch.equal(out, model(IDS))
    out[:, -1].sum().backward()
    assert (vectors.grad.norm(dim=-1) > 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RecurrentLM(7, 4, 0), "d_hidden must be at least 1, got 0"),
        (lambda: FeedForwardLM(7, 0, 4, 5), "window must be at least 1, got 0"),
        (lambda: RecurrentLM(7, 4, 5, kind="gru"), "kind is one of rnn, lstm; got 'gru'"),
        (lambda: RecurrentLM(7, 4, 5)(), "give either ids or embeddings"),
        (lambda: RecurrentLM(7, 4, 5)(IDS, embeddings=torch.zeros(2, 12, 4)), "give either ids or embeddings"),
        (lambda: RecurrentLM(6, 4, 5)(IDS), "ids run from 0 to 6: they must be within 0 to 5"),
        (lambda: FeedForwardLM(6, 3, 4, 5)(IDS), "ids run from 0 to 6: they must be within 0 to 5"),
        (lambda: FeedForwardLM(7, 3, 4, 5)(IDS[0]), r"ids must be \(B, T\), none of them 0; got shape \(12,\)"),
        (lambda: RecurrentLM(7, 4, 5)(IDS[:, :0]), r"got shape \(2, 0\)"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
