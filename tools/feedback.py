"""Fine-tune the book's own model on demonstrations and comparisons, by PPO, GRPO and DPO, with five seeds.

    python tools/feedback.py

Who judges is a rule, so that what is learnt from a learnt reward can be measured by what was meant. It writes
feedback.json, the recorded run that the chapter Learning from human feedback reads, into lib/bookformer/runs/.
"""

import copy
import dataclasses
import json
import platform
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bookformer import checkpoints
from bookformer.bpe import END_OF_TEXT
from bookformer.config import TrainConfig
from bookformer.data import CORPORA, HELD_OUT, clean, join_documents, load_valences, load_works
from bookformer.generate import generate
from bookformer.heads import LanguageModel, RewardModel, ValueModel
from bookformer.ngram import NGramModel
from bookformer.preferences import (
    Texts,
    comparisons,
    demonstration_loss,
    demonstrations,
    log_probabilities,
    pair_accuracy,
    preference_loss,
    reward_loss,
    text_log_probabilities,
)
from bookformer.rlhf import FeedbackConfig, Round, grpo, ppo
from bookformer.train import Batch, Record, fit
from bookformer.weights import RUNS, load_pretrained
from pretrain import library_hash

SEEDS = range(5)
PROMPT, LENGTH = 8, 24  # tokens
N_WORDS = 100  # of the lexicon, those that the training works have most often
DEMONSTRATIONS = 480
GROUP, GROUPS, HELD_GROUPS = 4, 700, 300  # texts on a prompt, and prompts to train and to test the reward model
LEAST = 1.0  # points between two texts that are compared
REWARD_BLOCKS = 2  # of the body's six
MEASURED = 256  # texts that a policy is judged by
SHOWN = TrainConfig(steps=30, batch_size=32, learning_rate=3e-4, weight_decay=0.0)
JUDGED = TrainConfig(steps=1, batch_size=16, learning_rate=2e-3, weight_decay=0.01, warmup_fraction=0.1)
LEARNT = TrainConfig(
    steps=120, batch_size=16, learning_rate=3e-4, weight_decay=0.0, warmup_fraction=0.1, final_fraction=0.3
)
PREFERRED = TrainConfig(steps=60, batch_size=16, learning_rate=2e-4, weight_decay=0.0, warmup_fraction=0.1)
FEEDBACK = FeedbackConfig(texts=32, length=LENGTH, epochs=2)
DPO_PAIRS = 960


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to learn from the comparisons."""

    method: str  # ppo, grpo or dpo
    beta: float
    learning_rate: float


VARIANTS = {
    "PPO, beta 0.4": Variant("ppo", 0.4, 3e-4),
    "PPO, beta 0.15": Variant("ppo", 0.15, 3e-4),
    "PPO, beta 0.15, rate 0.0007": Variant("ppo", 0.15, 7e-4),
    "PPO, beta 0": Variant("ppo", 0.0, 7e-4),
    "GRPO": Variant("grpo", 0.35, 3e-4),
    "DPO": Variant("dpo", 0.1, 2e-4),
}


class World:
    """What all seeds share: the pretrained model, passages of the works, and the rule that judges."""

    def __init__(self) -> None:
        self.model, self.tokenizer = load_pretrained("shakespeare-3m")
        works = {name: clean(text) for name, text in load_works().items()}
        train, held = (
            self.joined([text for name, text in works.items() if (name in HELD_OUT) == out]) for out in (False, True)
        )
        self.counts = NGramModel(4).fit(train.tolist(), vocabulary=range(self.tokenizer.vocab_size))
        said = Counter(w for name, text in works.items() if name not in HELD_OUT for w in words(text))
        valences = load_valences()
        often = sorted((w for w in valences if said[w]), key=lambda w: -said[w])[:N_WORDS]
        self.valence = {word: valences[word].mean for word in often}
        self.train, self.held = self.passages(train), self.passages(held)  # (N, T) each
        known = set(map(tuple, self.train[:, :PROMPT].tolist()))
        self.held = self.held[[tuple(prompt) not in known for prompt in self.held[:, :PROMPT].tolist()]]
        self.limit = self.nats(self.held).quantile(0.95).item()

    def joined(self, texts: list[str]) -> Tensor:
        end = self.tokenizer.special[END_OF_TEXT]
        return join_documents([self.tokenizer.encode(text) for text in texts], end)

    def passages(self, ids: Tensor) -> Tensor:
        """What begins with a line, and ends in no other work: (N, T)."""
        (line_end,) = self.tokenizer.encode("\n")
        found = ids.unfold(0, PROMPT + LENGTH + 1, 1)
        found = found[found[:, 0] == line_end][:, 1:]
        return found[(found != self.tokenizer.special[END_OF_TEXT]).all(dim=1)]

    def nats(self, ids: Tensor) -> Tensor:
        """How surprised the counts are by each answer (B,)."""
        return torch.tensor([-self.counts.token_log_probabilities(row)[PROMPT:].sum() for row in ids.tolist()])

    def points(self, ids: Tensor) -> Tensor:
        """The valence of each answer's words (B,), less its size for each time that a word comes again."""
        found = []
        for row in ids.tolist():
            said = Counter(words(self.tokenizer.decode(row[PROMPT:], errors="replace")))
            found.append(sum(v - (said[w] - 1) * abs(v) for w, v in self.valence.items() if w in said))
        return torch.tensor(found, dtype=torch.float64)

    def gold(self, ids: Tensor) -> Tensor:
        """Valence, less a point for each nat beyond what 95 of 100 real passages have (B,)."""
        return self.points(ids) - (self.nats(ids) - self.limit).clamp(min=0)


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall("[a-z]+", text.lower())


def write(policy: LanguageModel, prompts: Tensor, generator: torch.Generator) -> Tensor:
    """Prompts, each written on (B, T)."""
    return torch.cat([generate(policy, some, LENGTH, generator=generator) for some in prompts.split(256)])


def shuffled(tensors: tuple[Tensor, ...], batch_size: int) -> Callable[[torch.Generator], Iterator[Batch]]:
    """Batches of rows, all of them before any comes again."""

    def draw(generator: torch.Generator) -> Iterator[Batch]:
        while True:
            order = torch.randperm(len(tensors[0]), generator=generator)
            for rows in order[: len(order) // batch_size * batch_size].view(-1, batch_size):
                yield tuple(t[rows] for t in tensors)

    return draw


def show(world: World, model: LanguageModel, seed: int) -> Iterator[Record]:
    """Supervised fine-tuning on the best of some real passages, step by step."""
    generator = torch.Generator().manual_seed(seed)
    some = world.train[torch.randperm(len(world.train), generator=generator)[: 20 * DEMONSTRATIONS]]
    best = some[world.gold(some).argsort(descending=True, stable=True)[:DEMONSTRATIONS]]
    texts = demonstrations(best[:, :PROMPT].tolist(), best[:, PROMPT:].tolist())
    config = dataclasses.replace(SHOWN, seed=seed)
    data = shuffled((texts.ids, texts.written), config.batch_size)
    return fit(model, data, config, loss=demonstration_loss, progress=False)


def compared(
    world: World, policy: LanguageModel, passages: Tensor, n: int, seed: int
) -> tuple[Texts, Texts, Tensor, Tensor]:
    """Pairs of answers to the same prompt: those chosen and those rejected, and the gold of each (B,)."""
    generator = torch.Generator().manual_seed(seed)
    prompts = passages[torch.randperm(len(passages), generator=generator)[:n], :PROMPT]
    texts = write(policy, prompts.repeat_interleave(GROUP, dim=0), generator)  # (n G, T)
    gold = world.gold(texts).view(n, GROUP)
    texts, (i, j) = texts.view(n, GROUP, -1), torch.triu_indices(GROUP, GROUP, 1)
    one, other, gold_one, gold_other = (t.flatten(0, 1) for t in (texts[:, i], texts[:, j], gold[:, i], gold[:, j]))
    kept = (gold_one - gold_other).abs() >= LEAST
    one, other, gold_one, gold_other = one[kept], other[kept], gold_one[kept], gold_other[kept]
    first = torch.rand(len(one), generator=generator) < (gold_one - gold_other).sigmoid()
    chosen, rejected = torch.where(first[:, None], one, other), torch.where(first[:, None], other, one)
    rows = [t.tolist() for t in (one[:, :PROMPT], chosen[:, PROMPT:], rejected[:, PROMPT:])]
    return *comparisons(*rows), torch.where(first, gold_one, gold_other), torch.where(first, gold_other, gold_one)


def judge(policy: LanguageModel, chosen: Texts, rejected: Texts, seed: int) -> RewardModel:
    """A reward model on the lower blocks of a policy's body, trained on each pair once."""
    torch.manual_seed(seed)
    body = copy.deepcopy(policy.body)
    body.stack.blocks = body.stack.blocks[:REWARD_BLOCKS]
    model, data = RewardModel(body), (chosen.ids, chosen.real, rejected.ids, rejected.real)
    config = dataclasses.replace(JUDGED, steps=len(chosen.ids) // JUDGED.batch_size, seed=seed)
    draw = shuffled(data, config.batch_size)
    for _ in fit(model, draw, config, loss=reward_loss, progress=False):
        pass
    return model.eval()


@torch.no_grad()
def rewards(model: RewardModel, ids: Tensor) -> Tensor:
    """What a reward model gives (B,)."""
    return torch.cat([model(some) for some in ids.split(256)])


class Standing:
    """Where a seed stands before it learns from a reward: its reference, comparisons and reward model."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.seed = world, seed
        self.reference = copy.deepcopy(world.model)
        self.losses = [record.loss for record in show(world, self.reference, seed)]
        self.reference.eval()
        self.chosen, self.rejected, *gold = compared(world, self.reference, world.train, GROUPS, seed)
        self.reward = judge(self.reference, self.chosen, self.rejected, seed)
        given = rewards(self.reward, torch.cat([self.chosen.ids, self.rejected.ids]))
        self.mean, self.spread, self.gold = given.mean(), given.std(), torch.cat(gold).mean()
        self.told: list[dict] = []

    def proxy(self, ids: Tensor, real: Tensor) -> Tensor:
        """The reward in spreads, while the rule looks on."""
        found = (self.reward(ids, real) - self.mean) / self.spread
        self.told.append({"gold": self.world.gold(ids).mean().item(), "nats": self.world.nats(ids).mean().item()})
        return found

    def learn(self, variant: Variant, policy: LanguageModel) -> Iterator[Round]:
        """PPO or GRPO, round by round."""
        self.told = []
        feedback = dataclasses.replace(FEEDBACK, beta=variant.beta)
        train = dataclasses.replace(LEARNT, learning_rate=variant.learning_rate, seed=self.seed)
        prompts = self.world.train[:, :PROMPT]
        if variant.method == "grpo":
            return grpo(policy, self.reference, self.proxy, prompts, feedback, train, progress=False)
        torch.manual_seed(self.seed)
        value = ValueModel(copy.deepcopy(self.reward.score.body))
        return ppo(policy, value, self.reference, self.proxy, prompts, feedback, train, progress=False)

    def prefer(self, variant: Variant, policy: LanguageModel) -> Iterator:
        """DPO, step by step."""
        columns = []
        for texts in (self.chosen, self.rejected):
            ids, written = texts.ids[:DPO_PAIRS], texts.written[:DPO_PAIRS]
            with torch.no_grad():
                columns += [ids, written, text_log_probabilities(self.reference, ids, written)]
        train = dataclasses.replace(PREFERRED, learning_rate=variant.learning_rate, seed=self.seed)
        loss = partial(preference_loss, beta=variant.beta)
        return fit(policy, shuffled(tuple(columns), train.batch_size), train, loss=loss, progress=False)

    @torch.no_grad()
    def judged(self, policy: LanguageModel) -> dict:
        """A policy by what it writes on prompts of the held-out plays."""
        generator = torch.Generator().manual_seed(1000 + self.seed)
        chosen = torch.randperm(len(self.world.held), generator=generator)[:MEASURED]
        ids = write(policy, self.world.held[chosen, :PROMPT], generator)
        own, base = (log_probabilities(m, ids)[:, PROMPT - 1 :] for m in (policy, self.reference))
        found = {
            "gold": self.world.gold(ids).mean().item(),
            "points": self.world.points(ids).mean().item(),
            "proxy": ((rewards(self.reward, ids) - self.mean) / self.spread).mean().item(),
            "kl": (own - base).sum(dim=1).mean().item(),
            "nats_a_token": self.world.nats(ids).mean().item() / LENGTH,
            "reference_nats_a_token": -base.mean().item(),
        }
        return {name: round(value, 4) for name, value in found.items()}


def start(world: World, seed: int) -> tuple[Standing, dict]:
    """A seed up to its reward model, and how good that one is on prompts of the held-out plays."""
    standing = Standing(world, seed)
    *held, gold_chosen, gold_rejected = compared(world, standing.reference, world.held, HELD_GROUPS, seed)
    chosen, rejected = (rewards(standing.reward, texts.ids) for texts in held)
    found = {
        "demonstration_losses": [round(loss, 4) for loss in standing.losses],
        "pairs": len(standing.chosen.ids),
        "held_out_pairs": len(chosen),
        "held_out_accuracy": round(pair_accuracy(chosen, rejected), 4),
        "rule_accuracy": round(pair_accuracy(gold_chosen, gold_rejected), 4),
        "spread": round(standing.spread.item(), 4),
        "compared_gold": round(standing.gold.item(), 4),
        "pretrained": standing.judged(world.model),
        "reference": standing.judged(standing.reference),
    }
    return standing, found


def measure(standing: Standing, variant: Variant) -> dict:
    """Learn in one way, and say what came of it."""
    policy, begun = copy.deepcopy(standing.reference), time.process_time()
    found: dict = {}
    if variant.method == "dpo":
        found["losses"] = [round(record.loss, 4) for record in standing.prefer(variant, policy)]
    else:
        told = [{"reward": r.reward, "kl": r.kl} for r in standing.learn(variant, policy)]
        found["rounds"] = [
            {name: round(value, 4) for name, value in {**one, **rule}.items()}
            for one, rule in zip(told, standing.told, strict=True)
        ]
    return {"seed": standing.seed, "cpu_seconds": round(time.process_time() - begun, 1), **found} | {
        "after": standing.judged(policy)
    }


def data_of(world: World) -> dict:
    """What was learnt from and measured on."""
    return {
        "packages": [CORPORA[name].package for name in ("shakespeare", "rated")],
        "words": world.valence,
        "limit_nats": round(world.limit, 4),
        "training_passages": len(world.train),
        "training_sha256": checkpoints.digest(world.train),
        "held_out_passages": len(world.held),
        "held_out_sha256": checkpoints.digest(world.held),
    }


def recipe() -> dict:
    """All numbers that were chosen."""
    return {
        "prompt": PROMPT,
        "length": LENGTH,
        "demonstrations": DEMONSTRATIONS,
        "group": GROUP,
        "groups": GROUPS,
        "held_out_groups": HELD_GROUPS,
        "least_points": LEAST,
        "reward_blocks": REWARD_BLOCKS,
        "dpo_pairs": DPO_PAIRS,
        "measured_texts": MEASURED,
        "feedback": dataclasses.asdict(FEEDBACK),
        "training": {
            "demonstrations": dataclasses.asdict(SHOWN),
            "reward": dataclasses.asdict(JUDGED),
            "ppo and grpo": dataclasses.asdict(LEARNT),
            "dpo": dataclasses.asdict(PREFERRED),
        },
    }


def main(seeds: Sequence[int] = SEEDS, path: Path = RUNS / "feedback.json") -> None:
    """Every way of learning with every seed; the record is written after each seed, and finished seeds stay."""
    torch.set_num_threads(1)
    world = World()
    settings = json.loads(json.dumps({"command": "python tools/feedback.py", **recipe(), "data": data_of(world)}))
    variants = {name: dataclasses.asdict(variant) for name, variant in VARIANTS.items()}
    record = json.loads(path.read_text()) if path.exists() else {}
    if {name: record.get(name) for name in settings} != settings or kinds(record) != variants:
        record = {**settings, "starts": [], "variants": {name: {**v, "runs": []} for name, v in variants.items()}}
    record |= {
        "library": library_hash(),
        "torch": torch.__version__.split("+")[0],
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, threads used: 1",
    }
    for seed in seeds:
        if seed in (begun["seed"] for begun in record["starts"]):
            continue
        standing, found = start(world, seed)
        runs = {name: measure(standing, variant) for name, variant in VARIANTS.items()}
        record["starts"].append({"seed": seed, **found})
        for name, run in runs.items():
            record["variants"][name]["runs"].append(run)
            print(seed, name, run["after"], run["cpu_seconds"], flush=True)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")


def kinds(record: dict) -> dict:
    """The ways of learning in a record, without what came of them."""
    return {name: {k: x for k, x in v.items() if k != "runs"} for name, v in record.get("variants", {}).items()}


if __name__ == "__main__":
    main()
