"""From what `bench.py` recorded to book/benchmarks.md: no number of that page is typed."""
# ruff: noqa: E501  a paragraph of the page is one line

import math
import random
import statistics

HEAD = """# Benchmarks

The library is made to be read. This page shows what that costs in time, beside other libraries and another recipe. It is made by a tool:

```
make bench                              # everything; not part of the tests
python tools/bench.py loss steps page   # some sections
```

Times are processor time of one thread, so that other programs disturb little. What is compared holds the same weights and runs in turns, in one process; which goes first changes with each pair. An interval is where the median of the pairs lies in 95% of 2,000 draws with repetition. Times depend on the machine: compare within a table, not between machines.
"""


def median_interval(values: list[float], level: float = 0.95, resamples: int = 2000) -> tuple[float, float]:
    """Between which bounds the median lies when as many values are drawn again, with repetition (Efron 1979).

    Raises:
        ValueError: there are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values, got {len(values)}")
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(resamples))
    cut = round(resamples * (1 - level) / 2)
    return medians[cut], medians[-1 - cut]


def against(times: dict, above: str, below: str) -> str:
    """The ratio of what was timed in pairs: its median, and the interval."""
    ratios = [a / b for a, b in zip(times[above], times[below], strict=True)]
    low, high = median_interval(ratios)
    return f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"


def table(head: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def milliseconds(times: list[float], parts: int) -> str:
    """The median time of one part, in thousandths of a second."""
    return f"{1000 * statistics.median(times) / parts:.2f}"


def machine(section: dict) -> str:
    """What measured a section."""
    a = section["about"]
    return f"\nMeasured in {a['seconds']:,} seconds on: {a['processor']}, torch {a['torch']}, transformers {a['transformers']}.\n"


def loss(found: dict) -> str:
    """Time to loss."""
    theirs, ours = found["nanogpt"], found["ours"]
    pairs = list(zip(theirs["runs"], ours["runs"], strict=True))
    share = [b["seconds"] / a["seconds"] for a, b in pairs]
    all_there = all(b["held_out"] <= a["held_out"] for a, b in pairs)
    rows = [
        [
            a["seed"],
            f"{a['held_out']:.4f}",
            f"{b['held_out']:.4f}",
            f"{a['seconds']:.1f}",
            f"{b['seconds']:.1f}",
            f"{s:.3f}",
        ]
        for (a, b), s in zip(pairs, share, strict=True)
    ]

    def recipe(name: str, one: dict) -> list:
        model, config = one["model"], one["train"]
        positions, norm = model.get("positions", "learned"), model.get("norm", "layer")
        sizes = f"{model['n_layers']} layers, {model['n_heads']} heads, d_model {model['d_model']}, {positions} positions, {norm} norm"
        rate = f"{config['optimizer']}, {config['learning_rate']:g}, down to {config['final_fraction']:g} of it"
        work = f"{config['steps']:,} steps of {config['batch_size']} × 64"
        return [name, sizes, f"{one['runs'][0]['parameters']:,}", rate, work]

    recipes = table(
        ["recipe", "model", "parameters", "optimiser, learning rate", "training"],
        [recipe("nanoGPT's", theirs), recipe("ours", ours)],
    )
    results = table(
        ["seed", "nanoGPT's loss", "our loss", "nanoGPT's seconds", "our seconds", "ours / nanoGPT's"], rows
    )
    return f"""
## Time to loss

[nanoGPT](https://github.com/karpathy/nanoGPT)'s README gives a recipe for a computer without a graphics card, and claims a loss of 1.88 for it on its own split. Here that recipe, as a configuration of our library, and a recipe of ours are trained by the same loop on the same text: {found["characters"]:,} characters of Shakespeare, characters as tokens ({found["vocab_size"]} of them), windows of 64. A whole play is held out, The Tempest, of {found["held_out_characters"]:,} characters. The loss is that on the whole play, after the last step; the time is that of all steps. Both have a fixed number of steps, and no run is stopped by looking at the held-out loss.

{recipes}
{results}
{"With every seed" if all_there else "Not with every seed"}, our recipe ends at or below the loss of nanoGPT's. It takes {statistics.median(share):.3f} of its time (median of {len(share)} seeds, {min(share):.3f} to {max(share):.3f}).

Where it comes from: a smaller model, which makes more steps in a second; rotary positions; and Muon ([Jordan et al. 2024](https://kellerjordan.github.io/posts/muon/)) in single precision for the matrices of the blocks. Our number of steps, sizes and learning rate were chosen in about twenty short runs with seed 0 on this split, so its loss there is a little flattered; the other two seeds were not looked at.
{machine(found)}"""


def steps(found: dict) -> str:
    """Training steps."""
    rows = []
    for name, case in found.items():
        if name != "about":
            sizes = case["sizes"]
            shape = (
                f"{sizes['n_layers']} layers, d_model {sizes['d_model']}, {case['rows']} × {sizes['context_length']}"
            )
            ms = [milliseconds(case[who], case["steps"]) for who in ("ours", "theirs")]
            rows.append(
                [
                    name,
                    shape,
                    f"{case['parameters']:,}",
                    f"{case['apart']:.0e}" if case["apart"] else "0",
                    *ms,
                    against(case, "ours", "theirs"),
                ]
            )
    head = ["as", "sizes", "parameters", "outputs apart by", "our ms", "their ms", "our time / theirs"]
    return f"""
## A training step

The loss, its gradient and AdamW, on one batch. GPT-2 and Llama are those of `transformers`, with its default attention; `TransformerEncoder` is PyTorch's, a stack without embeddings. Below 1, ours takes less time.

{table(head, rows)}{machine(found)}"""


def writing(found: dict) -> str:
    """Writing with a cache."""
    rows = []
    for name, case in found.items():
        if name != "about":
            speeds = [f"{case['tokens'] / statistics.median(case[who]):.1f}" for who in ("ours", "theirs")]
            same = "yes" if case["same_text"] else "no"
            rows.append([name, case["prompt"], case["tokens"], same, *speeds, against(case, "theirs", "ours")])
    head = ["model", "prompt", "tokens written", "same text", "our tokens a second", "theirs", "our speed / theirs"]
    return f"""
## Writing

The likeliest token each time, with a key-value cache: our `generate` beside that of `transformers`. Above 1, ours is faster.

{table(head, rows)}{machine(found)}"""


def lengths(found: dict) -> str:
    """The next token by length."""
    rows = {(row["length"], row["cached"]): row for row in found["rows"]}
    mb = lambda count: f"{count / 1e6:.1f}"  # noqa: E731
    lines = [
        [
            f"{n:,}",
            *(f"{1000 * rows[n, cached]['seconds']:,.0f}" for cached in (True, False)),
            f"{rows[n, False]['seconds'] / rows[n, True]['seconds']:.0f}",
            mb(rows[n, True]["cache_bytes"]),
            *(mb(rows[n, cached]["grown_bytes"]) for cached in (True, False)),
        ]
        for n in sorted({n for n, _ in rows})
    ]
    head = [
        "tokens before",
        "ms, cached",
        "ms, not cached",
        "times slower",
        "cache, MB",
        "grown by MB, cached",
        "not cached",
    ]
    return f"""
## What a cache saves

One more token of SmolLM2 after texts of several lengths. With the cache only the new position is computed; without, all are. The cache's size follows from the model: 2 × layers × key heads × head width × 4 bytes for each token; up to twice of it is reserved. Memory is by how much a process that had loaded the model grew at most, reading the text in pieces of 64 and all intermediate results included (Linux; the median of three processes). The model itself takes 538 MB.

{table(head, lines)}{machine(found)}"""


def loading(found: dict) -> str:
    """Loading times."""
    rows = [[name, f"{value:.2f}"] for name, value in found.items() if name != "about"]
    return f"""
## Loading

Every file is compared with its checksum. SmolLM2's GGUF file is converted once, and kept in the user's cache directory; the time of writing it there is not counted.

{table(["model", "seconds"], rows)}{machine(found)}"""


def int8(found: dict) -> str:
    """Weights of eight bits."""
    percent = lambda nats: f"{100 * math.expm1(nats):+.2f}%"  # noqa: E731
    speeds = [f"{found['written'] / statistics.median(found[who]):.1f}" for who in ("theirs", "ours")]
    low, high = found["interval"]
    change = f"{percent(found['change'])} ({percent(low)} to {percent(high)})"
    gain = statistics.median(a / b for a, b in zip(found["theirs"], found["ours"], strict=True))
    kept = gain >= 1.5 and math.expm1(found["change"]) <= 0.01
    rows = [
        ["single precision", speeds[0], "1", "0"],
        ["eight bits", speeds[1], against(found, "theirs", "ours"), change],
    ]
    head = ["weights", "tokens a second", "speed / single precision", "change of perplexity"]
    return f"""
## Eight bits

SmolLM2 as `bookformer.int8.in_int8` makes it: matrices in whole numbers of eight bits, a scale for each row, multiplied with vectors in bfloat16 by PyTorch's own product. Perplexity is on {found["measured_on"]:,} tokens of The Tempest in windows of 256, its interval over these windows. To be kept in the library, it had to write at least 1.5 times as fast at a perplexity at most 1% higher. Here {"it does" if kept else "it does not"}.

{table(head, rows)}{machine(found)}"""


SECTIONS = {"loss": loss, "steps": steps, "writing": writing, "lengths": lengths, "loading": loading, "int8": int8}


def page(record: dict) -> str:
    """The whole page, of the sections that were measured."""
    return HEAD + "".join(make(record[name]) for name, make in SECTIONS.items() if name in record)
