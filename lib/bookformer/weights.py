"""Pretrained models, with their tokenizers: the book's own, and real ones from installed packages.

Chapters: The pretraining pipeline makes the book's own; BERT and GPT look into the real ones. The book's own lie in
this package as half-precision weights (NAME.safetensors), each with the run that made it (NAME.json): command,
configuration, seed, data, curve, cost and held-out loss; `tools/pretrain.py` wrote both. The real ones are read into
the same `Transformer`: MiniLM (Wang et al. 2020; Reimers and Gurevych 2019) and SmolLM2 (Ben Allal et al. 2025).
"""

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import platformdirs
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bookformer.bpe import BPETokenizer, missing_bytes
from bookformer.checkpoints import write_file
from bookformer.config import ModelConfig
from bookformer.data import checked_path, digest_of, load_files
from bookformer.heads import LanguageModel
from bookformer.positions import SCHEMES
from bookformer.tokenizers import WordPieceTokenizer
from bookformer.transformer import Transformer

M = TypeVar("M", bound=nn.Module)
MODELS = Path(__file__).with_name("models")
RUNS = Path(__file__).with_name("runs")  # experiments with them, recorded
MINILM = ModelConfig(
    kind="encoder",
    vocab_size=30_522,
    context_length=512,
    d_model=384,
    n_heads=12,
    n_layers=6,
    d_ff=1536,
    norm_place="post",
    norm_eps=1e-12,
    n_segments=2,
    norm_embeddings=True,
)
SMOLLM2 = ModelConfig(
    vocab_size=49_152,
    context_length=8192,
    d_model=576,
    n_heads=9,
    n_kv_heads=3,
    n_layers=30,
    d_ff=1536,
    positions="rotary",
    rotary_base=100_000.0,
    norm="rms",
    activation="swiglu",
    bias=False,
)
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def pretrained_names() -> list[str]:
    """The book's own models, the smallest first."""
    return sorted((path.stem for path in MODELS.glob("*.safetensors")), key=lambda name: _weights(name).stat().st_size)


def load_run(name: str) -> dict:
    """The recorded run that made one of the book's models: what was asked for, what came of it, every step's loss.

    Raises:
        ValueError: there is no such model.
    """
    if name not in pretrained_names():
        raise ValueError(f"there is no pretrained model {name!r}; there is {', '.join(pretrained_names())}")
    return json.loads(MODELS.joinpath(f"{name}.json").read_text(encoding="utf-8"))


def load_record(name: str) -> dict:
    """An experiment that is too long for a page, as the tool of the same name wrote it down: what was done, with what
    data, and what came of it.

    Raises:
        ValueError: there is no such record.
    """
    names = sorted(path.stem for path in RUNS.glob("*.json"))
    if name not in names:
        raise ValueError(f"there is no recorded run {name!r}; there is {', '.join(names)}")
    return json.loads(RUNS.joinpath(f"{name}.json").read_text(encoding="utf-8"))


def load_pretrained(name: str) -> tuple[LanguageModel, BPETokenizer]:
    """One of the book's models in single precision, in evaluation mode, and the tokenizer that it was trained with.

    Raises:
        ValueError: there is no such model, or its files are damaged or do not belong together.
    """
    run = load_run(name)
    content = _checked(f"{name}.safetensors", run["weights_sha256"])
    tokenizer_file = run["tokenizer"]
    _checked(tokenizer_file, run["tokenizer_sha256"])
    model = LanguageModel(ModelConfig(**run["model"]))
    model.load_state_dict({key: t.float() for key, t in safetensors.torch.load(content).items()})
    return model.eval(), BPETokenizer.load(MODELS / tokenizer_file)


def load_minilm() -> tuple[Transformer, WordPieceTokenizer]:
    """MiniLM-L6, an encoder of BERT's kind with 22.6 M parameters, trained to make vectors of English sentences.

    The package has no head for masked words, and the layer that BERT puts on [CLS] is left out: sentence vectors are
    means over a text's positions (Reimers and Gurevych 2019).

    Returns:
        The model in single precision, in evaluation mode, and its WordPiece tokenizer; the ids of [CLS], [SEP] and the
        others are in the tokenizer's `special`.

    Raises:
        ValueError: a file of the package is damaged or of another model.
        ModuleNotFoundError: the package is not installed; the message is the pip command.
    """
    tensors = safetensors.torch.load_file(checked_path("minilm", "model.safetensors"))
    model = fill(lambda: Transformer(MINILM), tensors, minilm_names(), "model.safetensors")
    return model, WordPieceTokenizer(load_files("minilm", "vocab.txt")["vocab.txt"].splitlines())


def load_smollm2(context_length: int = 2048) -> tuple[LanguageModel, BPETokenizer]:
    """SmolLM2-135M-Instruct, a language model of Llama's kind with 134.5 M parameters, trained to follow instructions.

    The package has it in GGUF, with four bits for most weights. The first call writes it in single precision
    (538 MB) into the user's cache directory, or into the folder that BOOKFORMER_CACHE names, where later calls find
    it; if nothing can be written there, each call converts again.

    Args:
        context_length: the most positions that a text may have; the model was trained for 8,192.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        ValueError: the package's file is damaged or of another model, or the context is longer than the model's.
        ModuleNotFoundError: the package, or the package `gguf` which reads it, is not installed; the message is the
            pip command.
    """
    if not 1 <= context_length <= SMOLLM2.context_length:
        raise ValueError(f"SmolLM2 knows 1 to {SMOLLM2.context_length} positions, got {context_length}")
    digest = digest_of("smollm2", SMOLLM2_FILE)
    folder = Path(os.environ.get("BOOKFORMER_CACHE") or platformdirs.user_cache_dir("bookformer"))
    path = folder / f"smollm2-135m-{digest[:8]}.safetensors"
    found = _kept(path)
    if found is None:
        found = _convert()
        with contextlib.suppress(OSError):  # no room, or no right to write: it works without
            _keep(path, *found)
    tensors, tokenizer = found
    settings = {**vars(SMOLLM2), "context_length": context_length}
    return fill(lambda: LanguageModel(ModelConfig(**settings)), tensors, smollm2_names(), path.name), tokenizer


def fill(make: Callable[[], M], tensors: Mapping[str, Tensor], names: Mapping[str, str], file: str) -> M:
    """A model, in evaluation mode, that takes its weights from a file's tensors without drawing any before.

    Args:
        make: builds the model.
        tensors: the file's, by the names that the file gives them.
        names: for each name in the model's state, that of the file.
        file: what to call the file in an error.

    Raises:
        ValueError: a tensor is missing, or has another shape than the model needs; the message names it.
    """
    with torch.device("meta"):  # shapes, and no numbers
        model = make()
    wanted = model.state_dict()
    for ours, theirs in names.items():
        if theirs not in tensors:
            raise ValueError(f"{file} has no tensor {theirs!r}")
        if tensors[theirs].shape != wanted[ours].shape:
            raise ValueError(
                f"{file}: {theirs!r} has shape {tuple(tensors[theirs].shape)}, not {tuple(wanted[ours].shape)}"
            )
    model.load_state_dict({ours: tensors[theirs] for ours, theirs in names.items()}, assign=True)
    body = getattr(model, "body", model)
    if body.config.positions != "learned":  # what a scheme computes, and no file holds
        body.positions = SCHEMES[body.config.positions](body.config, causal=body.config.kind != "encoder")
    return model.eval()


def minilm_names() -> dict[str, str]:
    """What each of MiniLM's weights is called here, and what its file calls it (as BERT's files all do)."""
    kinds = ("weight", "bias")
    names = {
        "tokens.weight": "embeddings.word_embeddings.weight",
        "positions.table.weight": "embeddings.position_embeddings.weight",
        "segments.weight": "embeddings.token_type_embeddings.weight",
    }
    names |= {f"embed_norm.{kind}": f"embeddings.LayerNorm.{kind}" for kind in kinds}
    parts = {
        "attn.q": "attention.self.query",
        "attn.k": "attention.self.key",
        "attn.v": "attention.self.value",
        "attn.out": "attention.output.dense",
        "attn_norm": "attention.output.LayerNorm",
        "ff.up": "intermediate.dense",
        "ff.down": "output.dense",
        "ff_norm": "output.LayerNorm",
    }
    return names | {
        f"stack.blocks.{i}.{ours}.{kind}": f"encoder.layer.{i}.{theirs}.{kind}"
        for i in range(MINILM.n_layers)
        for ours, theirs in parts.items()
        for kind in kinds
    }


def smollm2_names() -> dict[str, str]:
    """What each of SmolLM2's weights is called here, and what its GGUF file calls it."""
    names = {"body.tokens.weight": "token_embd.weight", "body.stack.norm.weight": "output_norm.weight"}
    parts = {
        "attn.q": "attn_q",
        "attn.k": "attn_k",
        "attn.v": "attn_v",
        "attn.out": "attn_output",
        "attn_norm": "attn_norm",
        "ff.gate": "ffn_gate",
        "ff.up": "ffn_up",
        "ff.down": "ffn_down",
        "ff_norm": "ffn_norm",
    }
    return names | {
        f"body.stack.blocks.{i}.{ours}.weight": f"blk.{i}.{theirs}.weight"
        for i in range(SMOLLM2.n_layers)
        for ours, theirs in parts.items()
    }


def read_gguf(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """A GGUF file's tensors in single precision, and what it says about them.

    GGUF keeps the rows of queries and keys as Llama's first code had them, so that rotary positions turn neighbouring
    numbers, as ours do.

    Raises:
        ValueError: the file is cut short, or is none.
        ModuleNotFoundError: the package `gguf` is not installed; the message is the pip command.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("to read a GGUF file, run `pip install gguf`") from error
    try:
        reader = gguf.GGUFReader(path)
        about = {name: field.contents() for name, field in reader.fields.items()}
        arrays = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{Path(path).name} is cut short, or is no GGUF file: {error!r}") from None
    return {name: torch.tensor(array) for name, array in arrays.items()}, about  # copied: some are the file itself


def _convert() -> tuple[dict[str, Tensor], BPETokenizer]:
    """SmolLM2's tensors, by the names of its file, and its tokenizer, from the package."""
    tensors, about = read_gguf(checked_path("smollm2", SMOLLM2_FILE))
    tokens, kinds = about["tokenizer.ggml.tokens"], about["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind != 1]  # 1: a token of text
    merges = [merge.split(" ") for merge in about["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    how = {"special_first": True, "digits_apart": True, "without": missing_bytes(vocabulary)}
    return tensors, BPETokenizer.from_vocabulary(vocabulary, merges, special, **how)


def _keep(path: Path, tensors: dict[str, Tensor], tokenizer: BPETokenizer) -> None:
    """Write what was converted, the weights last: where they are, the tokenizer is too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path.with_suffix(".json"))
    write_file(path, _aligned(safetensors.torch.save(tensors, {"crc32": _crc32(tensors)})))


def _aligned(content: bytes) -> bytes:
    """A safetensors file whose numbers begin at a multiple of 64 bytes, as processors like to read them.

    Its head is text, with the text's length before it in eight bytes, and may end in spaces.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    spaces = -end % 64
    return (end - 8 + spaces).to_bytes(8, "little") + content[8:end] + b" " * spaces + content[end:]


def _kept(path: Path) -> tuple[dict[str, Tensor], BPETokenizer] | None:
    """What `_keep` wrote; None if it is not there, or is not what was written."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get("crc32")
        tensors = safetensors.torch.load_file(path)
        tokenizer = BPETokenizer.load(path.with_suffix(".json"))
    except (OSError, ValueError, safetensors.SafetensorError):
        return None
    return (tensors, tokenizer) if _crc32(tensors) == expected else None


def _crc32(tensors: Mapping[str, Tensor]) -> str:
    """A checksum against damage, three times as fast as sha256; it has to be computed at every load."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].numpy(), zlib.crc32(name.encode(), found))
    return f"{found:08x}"


def _weights(name: str) -> Path:
    return MODELS / f"{name}.safetensors"


def _checked(file: str, digest: str) -> bytes:
    content = (MODELS / file).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ValueError(
            f"{file} is not the file that the recorded run wrote: its sha256 is {found}, not {digest}; install the "
            "library again"
        )
    return content
