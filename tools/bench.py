"""Measure the library beside others, in one process, and write book/benchmarks.md: `make bench`, never in CI.

    python tools/bench.py               everything, and the page
    python tools/bench.py loss steps    some of: loss, steps, writing, lengths, loading, int8; and the page
    python tools/bench.py page          the page alone, from what was recorded

A time is processor time of one thread. What is compared runs in turns, and which goes first changes with every pair.
What was measured is kept in book/benchmarks.json, and the page is made from it.
"""

import argparse
import dataclasses
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import benchpage
from bookformer import weights
from bookformer.config import ModelConfig, TrainConfig
from bookformer.data import HELD_OUT, batches, checked_path, clean, load_works
from bookformer.generate import generate
from bookformer.heads import LanguageModel
from bookformer.int8 import in_int8
from bookformer.layers import Stack
from bookformer.metrics import bootstrap_interval, held_out_losses
from bookformer.tokenizers import CharTokenizer
from bookformer.train import fit

RECORD = Path(__file__).parents[1] / "book" / "benchmarks.json"
PAIRS = 10
SEEDS = (0, 1, 2)
HELD = "tempest"
CONTEXT = 64

# nanoGPT's recipe for a processor without a graphics card: config/train_shakespeare_char.py with the options that its
# README gives (block_size=64, batch_size=12, n_layer=4, n_head=4, n_embd=128, max_iters=lr_decay_iters=2000, dropout=0)
NANOGPT_MODEL = {"d_model": 128, "n_heads": 4, "n_layers": 4, "bias": False}
NANOGPT_TRAIN = TrainConfig(
    steps=2000,
    batch_size=12,
    learning_rate=1e-3,
    warmup_fraction=0.05,  # warmup_iters=100
    final_fraction=0.1,  # min_lr=1e-4
    weight_decay=0.1,
    beta2=0.99,
    clip=1.0,
)
OURS_MODEL = {"d_model": 64, "n_heads": 4, "n_layers": 3, "bias": False, "positions": "rotary", "norm": "rms"}
OURS_TRAIN = TrainConfig(steps=450, batch_size=16, optimizer="muon", learning_rate=2e-2, final_fraction=0.0)


def seconds(work: Callable[[], object]) -> float:
    """Processor time that some work takes."""
    gc.collect()
    begun = time.process_time()
    work()
    return time.process_time() - begun


def pairs(ours: Callable[[], object], theirs: Callable[[], object], count: int = PAIRS) -> dict:
    """Both timed in turns, after one run of each that does not count."""
    ours()
    theirs()
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(count):
        turn = [("ours", ours), ("theirs", theirs)]
        for name, work in turn if number % 2 else turn[::-1]:
            times[name].append(seconds(work))
    return times


# --- time to loss --------------------------------------------------------------------------------------------------


def texts() -> tuple[str, str]:
    """About as much as nanoGPT's: the first eight works that are not held out, and one play that is."""
    works = {name: clean(text) for name, text in load_works().items()}
    return "\n\n".join([text for name, text in works.items() if name not in HELD_OUT][:8]), works[HELD]


def train(model: dict, config: TrainConfig, seed: int, ids: Tensor, held: Tensor, vocab_size: int) -> dict:
    """One run: what its steps took, and the loss on the whole held-out play after the last one."""
    config = dataclasses.replace(config, seed=seed)
    torch.manual_seed(seed)
    made = LanguageModel(ModelConfig(vocab_size=vocab_size, context_length=CONTEXT, **model))

    def draw(generator: torch.Generator):
        return batches(ids, context_length=CONTEXT, batch_size=config.batch_size, generator=generator)

    took = seconds(lambda: list(fit(made, draw, config, progress=False)))
    loss = held_out_losses(made, held, CONTEXT).mean().item()
    parameters = sum(p.numel() for p in made.parameters())
    return {"seed": seed, "seconds": took, "held_out": loss, "parameters": parameters}


def measure_loss() -> dict:
    """nanoGPT's recipe and ours, by turns, each with three seeds."""
    text, held_text = texts()
    tokenizer = CharTokenizer(text + held_text)
    ids, held = torch.tensor(tokenizer.encode(text)), torch.tensor(tokenizer.encode(held_text))
    found: dict = {"characters": len(text), "held_out_characters": len(held_text), "vocab_size": tokenizer.vocab_size}
    recipes = {"nanogpt": (NANOGPT_MODEL, NANOGPT_TRAIN), "ours": (OURS_MODEL, OURS_TRAIN)}
    for name, (model, config) in recipes.items():
        found[name] = {"model": model, "train": dataclasses.asdict(config), "runs": []}
    for seed in SEEDS:
        for name, (model, config) in recipes.items():
            found[name]["runs"].append(train(model, config, seed, ids, held, tokenizer.vocab_size))
            print(name, found[name]["runs"][-1], flush=True)
    return found


# --- the same model elsewhere --------------------------------------------------------------------------------------


def to_gpt2(ours: LanguageModel) -> GPT2LMHeadModel:
    """The same model in `transformers`: learned positions, norms before the parts, GELU by its tanh formula."""
    c = ours.config
    sizes = {"vocab_size": c.vocab_size, "n_positions": c.context_length, "n_embd": c.d_model, "n_layer": c.n_layers}
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None}
    theirs = GPT2LMHeadModel(GPT2Config(n_head=c.n_heads, n_inner=c.ff_width, **sizes, **none)).eval()
    state = ours.state_dict()
    found = {"wte.weight": state["body.tokens.weight"], "wpe.weight": state["body.positions.table.weight"]}
    for kind in ("weight", "bias"):
        found[f"ln_f.{kind}"] = state[f"body.stack.norm.{kind}"]
        for i in range(c.n_layers):
            us = f"body.stack.blocks.{i}"
            found[f"h.{i}.ln_1.{kind}"] = state[f"{us}.attn_norm.{kind}"]
            found[f"h.{i}.ln_2.{kind}"] = state[f"{us}.ff_norm.{kind}"]
            joined = torch.cat([state[f"{us}.attn.{name}.{kind}"] for name in "qkv"])
            found[f"h.{i}.attn.c_attn.{kind}"] = joined.t()  # GPT-2 keeps its matrices the other way round
            for mine, other in (("attn.out", "attn.c_proj"), ("ff.up", "mlp.c_fc"), ("ff.down", "mlp.c_proj")):
                found[f"h.{i}.{other}.{kind}"] = state[f"{us}.{mine}.{kind}"].t()
    theirs.transformer.load_state_dict(found)
    return theirs


def to_llama(ours: LanguageModel) -> LlamaForCausalLM:
    """The same model in `transformers`: rotary positions, RMS norm, SwiGLU, no biases, tied tables."""
    c = ours.config
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size, hidden_size=c.d_model, num_hidden_layers=c.n_layers, intermediate_size=c.ff_width,
            num_attention_heads=c.n_heads, num_key_value_heads=c.kv_heads, max_position_embeddings=c.context_length,
            rms_norm_eps=c.norm_eps, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
            rope_parameters={"rope_type": "default", "rope_theta": c.rotary_base},
        )
    ).eval()  # fmt: skip
    state = ours.state_dict()
    found = {"embed_tokens.weight": state["body.tokens.weight"], "norm.weight": state["body.stack.norm.weight"]}
    parts = {
        "attn_norm": "input_layernorm", "ff_norm": "post_attention_layernorm", "attn.v": "self_attn.v_proj",
        "attn.out": "self_attn.o_proj", "ff.gate": "mlp.gate_proj", "ff.up": "mlp.up_proj", "ff.down": "mlp.down_proj",
    }  # fmt: skip
    for i in range(c.n_layers):
        us, them = f"body.stack.blocks.{i}", f"layers.{i}"
        found |= {f"{them}.{other}.weight": state[f"{us}.{mine}.weight"] for mine, other in parts.items()}
        for name in "qk":  # Llama turns number i with number i + K / 2; we turn neighbours
            rows = state[f"{us}.attn.{name}.weight"].unflatten(0, (-1, c.d_head // 2, 2))
            found[f"{them}.self_attn.{name}_proj.weight"] = rows.transpose(1, 2).flatten(0, 2)
    theirs.model.load_state_dict(found)
    return theirs


def to_torch(ours: Stack, config: ModelConfig) -> nn.TransformerEncoder:
    """The same stack of encoder blocks in PyTorch, norms before the parts."""
    layer = nn.TransformerEncoderLayer(
        config.d_model, config.n_heads, config.ff_width, dropout=0.0, activation="gelu", batch_first=True,
        norm_first=True,
    )  # fmt: skip
    norm = nn.LayerNorm(config.d_model)
    theirs = nn.TransformerEncoder(layer, config.n_layers, norm, enable_nested_tensor=False)
    theirs.norm.load_state_dict(ours.norm.state_dict())
    for mine, other in zip(ours.blocks, theirs.layers, strict=True):
        for kind in ("weight", "bias"):
            joined = torch.cat([getattr(part, kind) for part in (mine.attn.q, mine.attn.k, mine.attn.v)])
            getattr(other.self_attn, f"in_proj_{kind}").data = joined.detach()
        other.self_attn.out_proj.load_state_dict(mine.attn.out.state_dict())
        parts = ((other.norm1, mine.attn_norm), (other.norm2, mine.ff_norm))
        for to, part in (*parts, (other.linear1, mine.ff.up), (other.linear2, mine.ff.down)):
            to.load_state_dict(part.state_dict())
    return theirs


# --- training steps ------------------------------------------------------------------------------------------------

SMALL = {"d_model": 128, "n_heads": 4, "n_layers": 4, "context_length": 64}
LARGER = {"d_model": 256, "n_heads": 8, "n_layers": 6, "context_length": 128}
GPT2_LIKE = {"activation": "gelu_tanh"}
LLAMA_LIKE = {"positions": "rotary", "norm": "rms", "activation": "swiglu", "bias": False}
STEPS = {  # name: configuration, rows in a batch, steps timed together
    "GPT-2": (SMALL | GPT2_LIKE, 12, 10),
    "GPT-2, larger": (LARGER | GPT2_LIKE, 8, 2),
    "Llama": (SMALL | LLAMA_LIKE, 12, 10),
    "Llama, larger": (LARGER | LLAMA_LIKE, 8, 2),
    "TransformerEncoder": (SMALL | {"kind": "encoder", "activation": "gelu"}, 12, 10),
}


def stepper(model: nn.Module, loss: Callable[[], Tensor], steps: int) -> Callable[[], None]:
    """Some training steps: the loss, its gradient, and AdamW."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)

    def work() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    return work


def measure_steps() -> dict:
    """Training steps of our models and of the same models elsewhere, on the same batch."""
    text, _ = texts()
    tokenizer = CharTokenizer(text)
    ids, found = torch.tensor(tokenizer.encode(text)), {}
    for name, (sizes, rows, steps) in STEPS.items():
        torch.manual_seed(0)
        config = ModelConfig(vocab_size=tokenizer.vocab_size, **sizes)
        generator, t = torch.Generator().manual_seed(0), config.context_length
        x, y = next(batches(ids, context_length=t, batch_size=rows, generator=generator))
        if config.kind == "encoder":
            ours, vectors = Stack(config, causal=False), torch.randn(rows, t, config.d_model)
            theirs = to_torch(ours, config)
            losses = [lambda m=m, v=vectors: m(v).square().mean() for m in (ours, theirs)]
            apart = (ours(vectors) - theirs(vectors)).abs().max().item()
        else:
            ours = LanguageModel(config)
            theirs = to_gpt2(ours) if config.positions == "learned" else to_llama(ours)
            apart = (ours(x) - theirs(x).logits).abs().max().item()
            losses = [
                lambda x=x, y=y, m=ours: F.cross_entropy(m(x).flatten(0, 1), y.flatten()),
                lambda x=x, y=y, m=theirs: F.cross_entropy(m(x, use_cache=False).logits.flatten(0, 1), y.flatten()),
            ]
        times = pairs(stepper(ours, losses[0], steps), stepper(theirs, losses[1], steps))
        parameters = sum(p.numel() for p in ours.parameters())
        found[name] = {"sizes": sizes, "rows": rows, "steps": steps, "parameters": parameters, "apart": apart, **times}
        print(name, benchpage.against(times, "ours", "theirs"), flush=True)
    return found


# --- writing -------------------------------------------------------------------------------------------------------

PROMPT = "The old man looked at the sea, and said"
WRITTEN = 64


def written_by(theirs: nn.Module, ids: Tensor, length: int) -> Tensor:
    """What a model of `transformers` writes: the likeliest token each time, with its cache."""
    settings = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "pad_token_id": 0}
    return theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)


def measure_writing() -> dict:
    """The likeliest text, written with a cache: SmolLM2, and two small models that nobody trained."""
    model, tokenizer = weights.load_smollm2()
    cases = {"SmolLM2, 135 M parameters": (model, to_llama, torch.tensor([tokenizer.encode(PROMPT)]), WRITTEN)}
    for name, like, to in (("GPT-2, small", GPT2_LIKE, to_gpt2), ("Llama, small", LLAMA_LIKE, to_llama)):
        torch.manual_seed(0)
        sizes = SMALL | like | {"context_length": 256}
        small = LanguageModel(ModelConfig(vocab_size=77, **sizes)).eval()
        cases[name] = (small, to, torch.arange(16)[None], 200)
    found = {}
    for name, (ours, to, ids, length) in cases.items():
        theirs = to(ours)
        same = torch.equal(generate(ours, ids, length, temperature=0), written_by(theirs, ids, length))
        times = pairs(
            lambda ours=ours, ids=ids, length=length: generate(ours, ids, length, temperature=0),
            lambda theirs=theirs, ids=ids, length=length: written_by(theirs, ids, length),
        )
        found[name] = {"prompt": ids.size(1), "tokens": length, "same_text": same, **times}
        print(name, benchpage.against(times, "theirs", "ours"), flush=True)
        del theirs
    return found


LENGTHS = (64, 256, 1024)


def memory(name: str) -> int:
    """What Linux says of this process: VmRSS, the memory it has now, or VmHWM, the most it had; in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@torch.no_grad()
def peak(length: int, cached: bool) -> dict:
    """In a process of its own: what the next token takes after so many, and by how much the process grew for it."""
    torch.set_num_threads(1)
    model, _ = weights.load_smollm2()
    ids = torch.arange(1000, 1000 + length)[None]
    Path("/proc/self/clear_refs").write_text("5")  # forget the most it had
    before, cache = memory("VmRSS"), None
    if cached:
        cache = model.new_cache()
        for part in ids[:, :-1].split(64, dim=1):  # in pieces, so that the peak is that of writing, not of reading
            model(part, cache=cache, last=True)
        took = seconds(lambda: model(ids[:, -1:], cache=cache, last=True))
    else:
        took = seconds(lambda: model(ids, last=True))
    c = model.config
    size = 2 * c.n_layers * c.kv_heads * c.d_head * length * 4 if cached else 0
    grown = memory("VmHWM") - before
    return {"length": length, "cached": cached, "seconds": took, "grown_bytes": grown, "cache_bytes": size}


def measure_lengths() -> dict:
    """The next token of SmolLM2 after texts of several lengths, with and without a cache; median of three processes."""
    rows = []
    for length in LENGTHS:
        for cached in (True, False):
            command = [sys.executable, __file__, "peak", str(length), str(int(cached))]
            runs = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(3)]
            middle = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "grown_bytes")}
            rows.append(runs[0] | middle)
            print(rows[-1], flush=True)
    return {"rows": rows}


def measure_loading() -> dict:
    """How long models take to load, the files being in memory; median of three."""
    path = checked_path("smollm2", weights.SMOLLM2_FILE)

    def by_transformers() -> None:
        LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)

    transformers.utils.logging.disable_progress_bar()
    weights.load_smollm2()  # so that it is converted
    cases = {
        "SmolLM2, converted before": (weights.load_smollm2, 3),
        "SmolLM2, from its GGUF (the first time)": (weights._convert, 3),
        "SmolLM2, from its GGUF, by transformers": (by_transformers, 1),
        "MiniLM": (weights.load_minilm, 3),
        "the book's own model": (lambda: weights.load_pretrained("shakespeare-3m"), 3),
    }
    return {name: statistics.median(seconds(work) for _ in range(times)) for name, (work, times) in cases.items()}


# --- eight bits ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def losses(model: nn.Module, windows: Tensor) -> Tensor:
    """The mean loss in each of some windows (n, T + 1) of a text: (n,)."""
    return torch.stack([F.cross_entropy(model(window[None, :-1])[0], window[1:]) for window in windows])


def measure_int8() -> dict:
    """SmolLM2 with weights of eight bits: how fast it writes, and what that costs in perplexity."""
    model, tokenizer = weights.load_smollm2()
    small = in_int8(model)
    prompt = torch.tensor([tokenizer.encode(PROMPT)])
    times = pairs(
        lambda: generate(small, prompt, WRITTEN, temperature=0),
        lambda: generate(model, prompt, WRITTEN, temperature=0),
    )
    windows = torch.tensor(tokenizer.encode(texts()[1]))[: 32 * 257].view(32, 257)
    before = losses(model, windows)
    change = losses(small, windows) - before  # (32,)
    interval = bootstrap_interval(change, torch.Generator().manual_seed(0))
    found = {"nats": before.mean().item(), "change": change.mean().item(), "interval": interval}
    print(found, benchpage.against(times, "theirs", "ours"), flush=True)
    return {"written": WRITTEN, "measured_on": 32 * 256, **times, **found}


MEASURES = {
    "loss": measure_loss,
    "steps": measure_steps,
    "writing": measure_writing,
    "lengths": measure_lengths,
    "loading": measure_loading,
    "int8": measure_int8,
}


def about() -> dict:
    """Where it was measured, in words that name no machine."""
    return {
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


def main() -> None:
    """Measure what is asked for, and write the page."""
    if sys.argv[1:2] == ["peak"]:
        print(json.dumps(peak(int(sys.argv[2]), sys.argv[3] == "1")))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=", ".join([*MEASURES, "page"]))
    torch.set_num_threads(1)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    sections = parser.parse_args().sections or list(MEASURES)
    if unknown := sorted(set(sections) - {*MEASURES, "page"}):
        sys.exit(f"there is no section {', '.join(unknown)}; there is {', '.join([*MEASURES, 'page'])}")
    for section in sections:
        if section != "page":
            begun = sum(os.times()[:4])  # of this process and its children
            record[section] = MEASURES[section]() | {"about": about()}
            record[section]["about"]["seconds"] = round(sum(os.times()[:4]) - begun)
            RECORD.write_text(json.dumps({name: record[name] for name in MEASURES if name in record}, indent=1) + "\n")
    RECORD.with_suffix(".md").write_text(benchpage.page(record), encoding="utf-8")


if __name__ == "__main__":
    main()
