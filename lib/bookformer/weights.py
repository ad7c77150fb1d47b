"""Pretrained models, with their tokenizers.

Chapters: The pretraining pipeline makes them; those after it stand on them. Each comes inside the package as half-
precision
weights (NAME.safetensors) and as the run that made them (NAME.json): command, configuration, seed, data, curve, cost
and held-out loss. `tools/pretrain.py` wrote both.
"""

import hashlib
import json
from pathlib import Path

import safetensors
import safetensors.torch

from bookformer.bpe import BPETokenizer
from bookformer.config import ModelConfig
from bookformer.heads import LanguageModel

MODELS = Path(__file__).with_name("models")


def pretrained_names() -> list[str]:
    """The models that there are, the smallest first."""
    return sorted((path.stem for path in MODELS.glob("*.safetensors")), key=lambda name: _weights(name).stat().st_size)


def load_run(name: str) -> dict:
    """The recorded run that made a model: what was asked for, what came of it, and every step's loss.

    Raises:
        ValueError: there is no such model.
    """
    if name not in pretrained_names():
        raise ValueError(f"there is no pretrained model {name!r}; there is {', '.join(pretrained_names())}")
    return json.loads(MODELS.joinpath(f"{name}.json").read_text(encoding="utf-8"))


def load_pretrained(name: str) -> tuple[LanguageModel, BPETokenizer]:
    """A model in single precision, ready to predict (in evaluation mode), and the tokenizer that it was trained with.

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
