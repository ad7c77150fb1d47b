"""Ask SmolLM2 about film reviews with 0 to 8 examples in its prompt, in two forms, with several draws and orders.

    python tools/prompting.py

Interrupted, the same command goes on where it stopped. It writes prompting.json, the recorded run that the chapter
Prompting reads, into lib/bookformer/runs/.
"""

import dataclasses
import itertools
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bookformer import checkpoints
from bookformer.bpe import BPETokenizer
from bookformer.data import CORPORA, load_rated
from bookformer.generate import answer_log_likelihoods
from bookformer.heads import LanguageModel
from bookformer.splits import draw_labelled
from bookformer.weights import RUNS, load_smollm2

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".pretrain"  # what an interrupted run goes on from
SEED, TESTS, POOL = 0, 160, 400  # sentences asked about, and sentences that examples are drawn from
SHOTS, DRAWS, ORDERS = (0, 1, 2, 4, 8), 5, 8
TEMPLATES = {  # an example, and the answer's two words; a question is the example without its answer
    "label": ["Review: {text}\nSentiment:{answer}\n\n", [" negative", " positive"]],
    "it was": ["{text} It was{answer}.\n", [" terrible", " great"]],
}
BLANKS = ["N/A", "", "[MASK]"]  # in place of a sentence: what is answered then is the prompt's own leaning


@dataclasses.dataclass(frozen=True)
class Setting:
    """One prompt, with which every sentence is asked."""

    template: str
    shots: int
    draw: int  # which examples
    order: int  # 0: as they were drawn; then further orders of the same

    def examples(self, labels: list[int]) -> list[int]:
        """Which sentences of the pool stand in it: half of each class, or one of any."""
        g = torch.Generator().manual_seed(100 * self.shots + self.draw)
        if self.shots < 2:
            return torch.randint(len(labels), (self.shots,), generator=g).tolist()
        drawn = draw_labelled(labels, self.shots, 2, g)
        orders = [torch.randperm(self.shots, generator=g).tolist() for _ in range(self.order + 1)]
        return [drawn[i] for i in orders[-1]]


def settings() -> Iterator[Setting]:
    """All that are tried, in this order."""
    for template, shots in itertools.product(TEMPLATES, SHOTS):
        for draw in range(DRAWS if shots else 1):
            yield Setting(template, shots, draw, 0)
    for order in range(1, ORDERS):
        yield Setting("label", 4, 0, order)


def sentences() -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Clear sentences of film reviews, as texts and labels: those to ask about, and those for examples."""
    rated = {row.text: int(row.rating > 0) for row in load_rated("films") if abs(row.rating) >= 1}
    rows = [(text, label) for text, label in sorted(rated.items()) if 4 <= len(text.split()) <= 20]
    g = torch.Generator().manual_seed(SEED)
    drawn = draw_labelled([label for _, label in rows], TESTS + POOL, 2, g)  # all bad ones, then all good ones
    bad, good = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    turns = [i for pair in zip(bad, good, strict=True) for i in pair]
    return [rows[i] for i in turns[:TESTS]], [rows[i] for i in turns[TESTS:]]


def prompts(setting: Setting, texts: list[str], pool: list[tuple[str, int]]) -> list[str]:
    """The whole prompt for each text: examples with their answers, and the text without."""
    form, words = TEMPLATES[setting.template]
    chosen = [pool[i] for i in setting.examples([label for _, label in pool])]
    before = "".join(form.format(text=text, answer=words[label]) for text, label in chosen)
    return [before + form.split("{answer}")[0].format(text=text) for text in texts]


def ask(
    model: LanguageModel, tokenizer: BPETokenizer, setting: Setting, texts: list[str], pool: list[tuple[str, int]]
) -> torch.Tensor:
    """How likely each answer is after each text's prompt (N, 2). A line end stands first, as a place for the sink."""
    ids = [tokenizer.encode("\n" + prompt) for prompt in prompts(setting, texts, pool)]
    return answer_log_likelihoods(model, ids, [tokenizer.encode(word) for word in TEMPLATES[setting.template][1]])


def measure(
    model: LanguageModel, tokenizer: BPETokenizer, setting: Setting, texts: list[str], pool: list[tuple[str, int]]
) -> dict:
    """One row of the record."""
    found = ask(model, tokenizer, setting, [*texts, *BLANKS], pool)  # (N + 3, 2)
    margins = [round(x, 4) for x in (found[:, 1] - found[:, 0]).tolist()]
    return (
        dataclasses.asdict(setting)
        | {
            "examples": setting.examples([label for _, label in pool]),
            "margins": margins[: len(texts)],  # log p of the good answer less log p of the bad one
            "blank_margins": margins[len(texts) :],
            "answers_together": round(found[: len(texts)].exp().sum(dim=1).mean().item(), 4),
        }
    )


def library_hash() -> str:
    """The sha256 of the library's modules."""
    return checkpoints.digest(*(path.read_text() for path in sorted(RUNS.parent.glob("*.py"))))


def data_of(tests: list[tuple[str, int]], pool: list[tuple[str, int]]) -> dict:
    """What was asked about."""
    return {
        "package": CORPORA["rated"].package,
        "licence": CORPORA["rated"].licence,
        "model": CORPORA["smollm2"].package,
        "sentences": len(tests),
        "sha256": checkpoints.digest(*(f"{label} {text}" for text, label in tests)),
        "pool": len(pool),
        "pool_sha256": checkpoints.digest(*(f"{label} {text}" for text, label in pool)),
    }


def main() -> None:
    """Ask all, or what is left, and write the record."""
    torch.set_num_threads(1)
    tests, pool = sentences()
    WORK.mkdir(exist_ok=True)
    log = WORK / "prompting.jsonl"
    if not log.exists():
        about = {"library": library_hash(), "torch": torch.__version__.split("+")[0], "data": data_of(tests, pool)}
        log.write_text(json.dumps(about) + "\n")
    about, *rows = map(json.loads, log.read_text().splitlines())
    if about["data"] != data_of(tests, pool):
        raise SystemExit(f"{log} is of other sentences: remove it to begin anew")
    model, tokenizer = load_smollm2()
    with log.open("a") as file:
        for setting in list(settings())[len(rows) :]:
            begun = time.process_time()
            row = measure(model, tokenizer, setting, [text for text, _ in tests], pool)
            rows.append(row | {"cpu_seconds": round(time.process_time() - begun, 2)})
            print(json.dumps(rows[-1]), file=file, flush=True)
    seconds = round(sum(row.pop("cpu_seconds") for row in rows), 1)
    record = {
        "command": "python tools/prompting.py",
        "seed": SEED,
        **about,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, threads used: 1",
        "cpu_seconds": seconds,
        "templates": TEMPLATES,
        "blanks": BLANKS,
        "settings": rows,
    }
    RUNS.mkdir(exist_ok=True)
    lines = [f' "{key}": {json.dumps(value)}' for key, value in record.items() if key != "settings"]
    lines.append(' "settings": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n ]")
    (RUNS / "prompting.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
