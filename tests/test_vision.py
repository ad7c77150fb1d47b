"""Patches against PyTorch's unfold, their vectors by hand, a picture's prompt against one pass over everything."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from bookformer.attention import KVCache
from bookformer.config import ModelConfig, TrainConfig
from bookformer.generate import beam_search, generate
from bookformer.heads import LanguageModel
from bookformer.objectives import IGNORED
from bookformer.scenes import DIGITS
from bookformer.tokenizers import WordPieceTokenizer
from bookformer.train import fit
from bookformer.vision import (
    PatchEmbedding,
    PictureEncoder,
    PicturePrompt,
    attention_to_patches,
    caption_ids,
    caption_loss,
    from_patches,
    to_patches,
)

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
IDS = torch.tensor([[1, 4, 2, 6], [1, 3, 5, 2]])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def shake(model):
    """Make every number matter: no zeros, no ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def reader(**changes):
    settings = {"vocab_size": 9, "context_length": 16, "d_model": 8, "n_heads": 2, "n_layers": 2} | changes
    eyes = PatchEmbedding((1, 4, 6), 2, settings["d_model"])
    return shake(PicturePrompt(LanguageModel(ModelConfig(**settings)), eyes))


def some(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


# Patches


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 2, 2), (3, 2, 6, 4)])
def test_patches_are_those_of_unfold(shape):
    pictures = some(*shape)
    assert torch.equal(to_patches(pictures, 2), F.unfold(pictures, 2, stride=2).transpose(1, 2))


def test_patches_by_hand():
    picture = torch.arange(16.0).view(1, 4, 4) / 16
    assert (16 * to_patches(picture, 2)).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_a_grey_picture_is_one_of_one_channel():
    pictures = some(2, 4, 6)
    assert torch.equal(to_patches(pictures, 2), to_patches(pictures[:, None], 2))


@pytest.mark.parametrize(("shape", "patch"), [((2, 6, 4), 2), ((1, 4, 8), 4), ((3, 3, 3), 3), ((1, 3, 2), 1)])
def test_patches_can_be_put_together_again(shape, patch):
    pictures = some(*shape)
    assert torch.equal(from_patches(to_patches(pictures, patch), patch, shape[2] // patch), pictures)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (some(4, 4), r"must be \(B, H, W\) or \(B, C, H, W\), none of them 0; got \(4, 4\)"),
        (some(1, 1, 1, 4, 4), r"got \(1, 1, 1, 4, 4\)"),
        (some(0, 4, 4), r"got \(0, 4, 4\)"),
        (torch.full((1, 4, 4), 255, dtype=torch.uint8), r"must be floating point, from 0 to 1; got torch.uint8"),
        (torch.full((1, 4, 4), 16.0), r"must lie between 0 and 1; they hold 16 to 16"),
        (some(1, 4, 4) - 1, r"they hold -0\.\d+ to -0\.\d+"),
        (torch.full((1, 4, 4), float("nan")), r"they hold nan to nan"),
        (some(1, 4, 5), r"patches of 2 by 2 pixels do not divide pictures of 4 by 5"),
        (some(1, 5, 4), r"patches of 2 by 2 pixels do not divide pictures of 5 by 4"),
    ],
)
def test_a_bad_picture_is_refused(pictures, message):
    with pytest.raises(ValueError, match=message):
        to_patches(pictures, 2)


def test_one_nan_among_good_pixels_is_refused():
    pictures = some(2, 4, 4)
    pictures[1, 2, 3] = float("nan")
    with pytest.raises(ValueError, match="between 0 and 1"):
        to_patches(pictures, 2)


def test_patches_have_a_size():
    with pytest.raises(ValueError, match="patches of 0 by 0"):
        to_patches(some(1, 4, 4), 0)


@pytest.mark.parametrize(("shape", "columns"), [((1, 5, 4), 2), ((1, 4, 3), 2), ((1, 4, 4), 0)])
def test_patches_that_fill_no_rows_are_refused(shape, columns):
    with pytest.raises(ValueError, match=rf"{shape[1]} patches of {shape[2]} numbers do not make rows of {columns}"):
        from_patches(some(*shape), 2, columns)


# Vectors


def test_a_patch_has_its_pixels_its_row_and_its_column():
    eyes = shake(PatchEmbedding((1, 4, 6), 2, 5))
    pictures = some(2, 4, 6)
    vectors = eyes(pictures)
    assert vectors.shape == (2, 6, 5)
    for row in range(2):
        for column in range(3):
            pixels = pictures[1, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
            by_hand = eyes.pixels.weight @ pixels + eyes.pixels.bias
            by_hand = by_hand + eyes.rows.weight[row] + eyes.columns.weight[column]
            assert_close(vectors[1, 3 * row + column], by_hand, **CLOSE)


@pytest.mark.parametrize("shape", [(1, 6, 4), (1, 3, 4, 6), (1, 4, 8)])
def test_eyes_refuse_pictures_of_another_size(shape):
    with pytest.raises(ValueError, match=r"reads pictures of \(C, H, W\) = \(1, 4, 6\), got \(\d, \d, \d\)"):
        PatchEmbedding((1, 4, 6), 2, 5)(some(*shape))


def test_eyes_refuse_patches_that_do_not_divide():
    with pytest.raises(ValueError, match="patches of 4 by 4 pixels do not divide pictures of 4 by 6"):
        PatchEmbedding((1, 4, 6), 4, 5)


def encoder(**changes):
    settings = {"kind": "encoder", "vocab_size": 1, "context_length": 6, "d_model": 4, "n_heads": 2} | changes
    return PictureEncoder((1, 4, 6), 2, ModelConfig(**settings), 8)


def test_in_an_encoder_each_patch_sees_all_others():
    eyes, pictures = shake(encoder()), some(1, 4, 6)
    changed = pictures.clone()
    changed[0, 3, 5] = 1 - changed[0, 3, 5]  # of the last patch
    before, after = eyes(pictures), eyes(changed)
    assert before.shape == (1, 6, 8)
    assert ((before - after).abs().amax(-1) > 1e-6).all()


def test_without_an_encoder_a_patch_sees_itself():
    eyes, pictures = shake(PatchEmbedding((1, 4, 6), 2, 5)), some(1, 4, 6)
    changed = pictures.clone()
    changed[0, 3, 5] = 1 - changed[0, 3, 5]
    assert ((eyes(pictures) - eyes(changed)).abs().amax(-1) > 1e-6).tolist() == [[False] * 5 + [True]]


def test_an_encoder_is_one_and_has_room():
    with pytest.raises(ValueError, match="is of kind 'decoder'"):
        encoder(kind="decoder")
    with pytest.raises(ValueError, match=r"6 patches are more than context_length \(5\)"):
        encoder(context_length=5)


# Before the text


def test_the_patches_stand_before_the_text():
    model, pictures = reader(), some(2, 4, 6)
    logits = model(IDS, pictures)
    words = model.model.body.tokens.weight[IDS]
    everything = model.model(embeddings=torch.cat([model.eyes(pictures), words], dim=1))
    assert_close(logits, everything[:, 6:], **CLOSE)
    assert logits.shape == (2, 4, 9)
    assert_close(model(IDS, vectors=model.eyes(pictures)), logits, **CLOSE)
    assert_close(model(IDS, pictures, last=True), logits[:, -1:], **CLOSE)


def test_every_pixel_reaches_the_first_word_and_no_patch_sees_the_text():
    model, pictures = reader(), some(1, 4, 6).requires_grad_()
    model(IDS[:1], pictures)[0, 0].square().sum().backward()
    assert (pictures.grad.abs() > 0).all()
    first, second = {}, {}
    with torch.no_grad():
        model(IDS[:1], pictures, trace=first)
        model(IDS[1:], pictures, trace=second)
    assert_close(first["final"][:, :6], second["final"][:, :6], **CLOSE)
    assert not torch.allclose(first["final"][:, 7:], second["final"][:, 7:])


def test_a_picture_prompt_is_for_a_decoder_with_room():
    eyes = PatchEmbedding((1, 4, 6), 2, 8)
    small = {"vocab_size": 9, "d_model": 8, "n_heads": 2}
    with pytest.raises(ValueError, match="kind 'encoder'"):
        PicturePrompt(LanguageModel(ModelConfig(kind="encoder", context_length=16, **small)), eyes)
    with pytest.raises(ValueError, match=r"6 patches leave no room for a text in context_length \(6\)"):
        PicturePrompt(LanguageModel(ModelConfig(context_length=6, **small)), eyes)
    model = PicturePrompt(LanguageModel(ModelConfig(context_length=9, **small)), eyes)
    with pytest.raises(ValueError, match=r"10 positions are more than context_length \(9\)"):
        model(IDS, some(2, 4, 6))


def test_eyes_of_another_width_are_refused():
    model = PicturePrompt(reader().model, PatchEmbedding((1, 4, 6), 2, 7))
    with pytest.raises(ValueError, match=r"embeddings must be \(B, P, 8\) of torch.float32, got \(2, 6, 7\)"):
        model(IDS, some(2, 4, 6))


def test_pictures_or_vectors_and_as_many_as_texts():
    model = reader()
    for call in (model, lambda ids, *rest, **more: model.about(*rest, **more)):
        with pytest.raises(ValueError, match="either pictures or the vectors"):
            call(IDS)
        with pytest.raises(ValueError, match="either pictures or the vectors"):
            call(IDS, some(2, 4, 6), vectors=some(2, 6, 8))
    with pytest.raises(ValueError, match="3 rows of embeddings do not fit 2 rows of ids"):
        model(IDS, some(3, 4, 6))


# Writing


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_writing_with_the_cache_is_writing_without(positions, monkeypatch):
    model, pictures = reader(positions=positions), some(2, 4, 6)
    seen, calls = model.about(pictures), []
    append = KVCache.append
    monkeypatch.setattr(KVCache, "append", lambda self, k, v: calls.append(k.size(-2)) or append(self, k, v))
    written = generate(seen, IDS, 5, temperature=0)
    assert calls[::2] == [10, 1, 1, 1, 1]  # patches and prompt, then one token after the other
    assert torch.equal(written, generate(seen, IDS, 5, temperature=0, use_cache=False))
    by_hand = IDS
    for _ in range(5):
        by_hand = torch.cat([by_hand, model(by_hand, pictures)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, by_hand)


def test_each_row_has_its_own_picture():
    model, pictures = reader(), some(8, 4, 6)
    ids = torch.ones(8, 1, dtype=torch.long)
    written = generate(model.about(pictures), ids, 4, temperature=0)
    assert len(set(map(tuple, written.tolist()))) > 1
    for row in range(8):
        alone = generate(model.about(pictures[row : row + 1]), ids[:1], 4, temperature=0)
        assert torch.equal(written[row : row + 1], alone)


def test_a_beam_of_one_is_greedy_about_a_picture_too():
    model = reader()
    seen = model.about(some(1, 4, 6))
    found, _ = beam_search(seen, IDS[:1], 4, width=1)
    assert torch.equal(found, generate(seen, IDS[:1], 4, temperature=0))


def test_the_patches_take_their_part_of_the_context():
    seen = reader().about(some(2, 4, 6))
    assert seen.config.context_length == 10
    assert generate(seen, IDS, 7, temperature=0).shape == (2, 11)
    with pytest.raises(ValueError, match=r"a prompt of 4 tokens and 8 more do not fit context_length \(10\)"):
        generate(seen, IDS, 8, temperature=0)
    with pytest.raises(ValueError, match=r"16 vectors leave no room for a text in context_length \(16\)"):
        reader().about(vectors=some(2, 16, 8))


def test_the_eyes_look_once_without_gradients_in_evaluation_mode():
    model = reader(dropout=0.5).train()
    model.eyes.register_forward_hook(lambda eyes, *_: seen_in.append(eyes.training))
    seen_in = []
    seen = model.about(some(2, 4, 6))
    generate(seen, IDS, 3, temperature=0)
    assert seen_in == [False]
    assert model.training
    assert model.eyes.training
    assert not seen.vectors.requires_grad


# Attention


def test_attention_to_patches_is_that_of_the_pass_itself():
    model, pictures = reader(), some(2, 4, 6)
    found = attention_to_patches(model, pictures, IDS)
    assert found.shape == (2, 2, 2, 4, 6)
    trace = {}
    with torch.no_grad():
        model(IDS, pictures, trace=trace)
    assert_close(found[1, 1, 0, 2], trace["blocks.1.attn.weights"][1, 0, 8, :6])
    sums = found.sum(-1)
    assert ((sums > 0) & (sums < 1)).all()


def test_looking_leaves_the_mode_and_does_not_drop_out():
    model, pictures = reader(dropout=0.5).train(), some(2, 4, 6)
    assert torch.equal(attention_to_patches(model, pictures, IDS), attention_to_patches(model, pictures, IDS))
    assert model.training


# Captions


def words():
    return WordPieceTokenizer(["[CLS]", "[SEP]", "[UNK]", "a", *DIGITS, "left", "of", "above"])


def test_caption_ids_by_hand():
    inputs, targets = caption_ids(["a seven left of a two", "a one above a nine"], words(), begin=0, end=1)
    assert inputs.tolist() == [[0, 3, 11, 14, 15, 3, 6], [0, 3, 5, 16, 3, 13, 1]]
    assert targets.tolist() == [[3, 11, 14, 15, 3, 6, 1], [3, 5, 16, 3, 13, 1, IGNORED]]


def test_the_loss_is_of_the_words_alone():
    model, pictures = reader(), some(2, 4, 6)
    targets = torch.tensor([[4, 2, 6, 1], [3, 5, 1, IGNORED]])
    log_p = model(IDS, pictures).log_softmax(-1)
    by_hand = -torch.stack([log_p[i, t, targets[i, t]] for i in range(2) for t in range(4) if (i, t) != (1, 3)]).mean()
    assert_close(caption_loss(model, (pictures, IDS, targets)), by_hand)


def test_a_frozen_language_model_lets_gradients_through_and_stays():
    model = reader(positions="none")
    model.model.requires_grad_(False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    batch = (some(2, 4, 6), IDS, torch.tensor([[4, 2, 6, 1], [3, 5, 1, IGNORED]]))
    config = TrainConfig(steps=30, batch_size=2, learning_rate=1e-2)
    records = list(fit(model, lambda _: iter([batch] * 30), config, loss=caption_loss, progress=False))
    assert records[-1].loss < records[0].loss
    moved = {name.split(".")[0] for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == {"eyes"}
