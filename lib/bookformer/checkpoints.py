"""Weights in files: safetensors, with what they belong to written inside, whole or not at all.

Chapters: all that keep a model. The format, safetensors, holds numbers and text, and can run nothing.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

KIND = "weights 1"  # of the file, with the version of its format


def save(path: str | Path, model: nn.Module) -> None:
    """Write a model's weights and its configuration as one file.

    Raises:
        FloatingPointError: a weight is not finite.
    """
    require_finite(model)
    write(Path(path), KIND, model.state_dict(), {"settings": settings(model)})


def load(path: str | Path, model: nn.Module) -> None:
    """Put the weights that `save` wrote into a model of the same configuration.

    Raises:
        ValueError: the file is damaged, or of another model. The model is as it was then.
    """
    tensors, about = read(Path(path), KIND)
    require_same(path, about["settings"], settings(model))
    require_same(path, shapes(tensors), shapes(model.state_dict()))
    model.load_state_dict(tensors)


def write(path: Path, kind: str, tensors: dict[str, Tensor], about: dict) -> None:
    """Write tensors, and a dictionary about them, beside the old file; then put the new one in its place at once."""
    tensors = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    text = _json(about)
    write_file(
        path, safetensors.torch.save(tensors, {"kind": kind, "about": text, "sha256": _digest_of_file(text, tensors)})
    )


def write_file(path: Path, content: bytes) -> None:
    """Write a file beside the old one; then put it in its place at once."""
    fresh = path.with_name(f"{path.name}.new")  # one name, so that what a killed run leaves is overwritten by the next
    try:
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def read(path: Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """What `write` wrote.

    Raises:
        ValueError: it is cut off, changed, or of another kind. The file stays as it is.
    """
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged, and was left as it is: {error}") from None
    told = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    if told.get("kind") != kind:
        raise ValueError(f"{path} is not of the kind {kind!r}, but {told.get('kind')!r}")
    if told.get("sha256") != _digest_of_file(told.get("about", ""), tensors):
        raise ValueError(f"{path} is damaged, and was left as it is: its content is not what was written")
    return tensors, json.loads(told["about"])


def require_finite(model: nn.Module) -> None:
    """Raise a FloatingPointError if a weight is not finite: such a model is never written over a good one."""
    for name, p in model.named_parameters():
        if not p.isfinite().all():
            raise FloatingPointError(f"{name} is not finite any more: the model is not saved")


def require_same(path: str | Path, theirs: dict, ours: dict) -> None:
    """Raise a ValueError that names the first value in which a file differs from what is here."""
    ours = json.loads(_json(ours))  # as it comes back from a file
    for name in sorted(theirs.keys() | ours.keys()):
        there, here = theirs.get(name, "missing"), ours.get(name, "missing")
        if there != here:
            raise ValueError(f"{path} is of another model or run: {name} is {there} there, and {here} here")


def settings(model: nn.Module) -> dict:
    """A model's configuration, if it has one."""
    config = getattr(model, "config", None)
    return dataclasses.asdict(config) if dataclasses.is_dataclass(config) else {}


def shapes(tensors: dict[str, Tensor]) -> dict[str, str]:
    """The shape and type of each tensor, in words."""
    return {name: f"{tuple(t.shape)} {t.dtype}" for name, t in tensors.items()}


def digest(*parts: str | Tensor) -> str:
    """The sha256 of texts and tensors."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part.cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def _digest_of_file(about: str, tensors: dict[str, Tensor]) -> str:
    return digest(about, *(part for name in sorted(tensors) for part in (name, tensors[name])))


def _json(value: object) -> str:
    return json.dumps(value, default=lambda number: number.item())  # NumPy's numbers
