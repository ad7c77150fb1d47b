"""Learning from a reward: a language model writes, a reward judges, and what was judged better becomes likelier.

Chapter: Learning from human feedback. Papers: Schulman et al. 2017 (PPO); Ouyang et al. 2022 (PPO for language models,
with a penalty for leaving the reference); Shao et al. 2024 (GRPO).
Shapes: N prompts, P positions of a prompt, B texts, T positions of prompt and answer, G texts in a group. As in
`preferences`, what stands at index t of (B, T - 1) is about writing the token at position t + 1.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor, nn

from bookformer.advantages import (
    generalised_advantages,
    group_advantages,
    grpo_loss,
    kl_k1,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from bookformer.config import TrainConfig
from bookformer.generate import generate
from bookformer.heads import LanguageModel, ValueModel
from bookformer.preferences import Texts, log_probabilities
from bookformer.train import Batch, fit

Reward = Callable[[Tensor, Tensor], Tensor]  # of ids (B, T) and real (B, T), as in `Texts`, to (B,)


@dataclass(frozen=True, kw_only=True)
class FeedbackConfig:
    """How a policy writes, is judged and learns; `TrainConfig` says the rest.

    Raises:
        ValueError: a count is not a positive whole number, the texts do not split into groups, or a number is outside
            its range.
    """

    texts: int = 64  # written in a round
    length: int = 24  # the most tokens that each is written on by
    epochs: int = 2  # how often a round's texts are learnt from
    group: int = 4  # GRPO: texts on each prompt, which are compared with each other
    temperature: float = 1.0  # of writing, and of every log-probability
    clip: float = 0.2  # a token whose ratio is beyond 1 - clip or 1 + clip is pushed no farther
    beta: float = 0.1  # what a nat of KL from the reference costs, in units of the reward; 0 for nothing
    max_kl: float | None = None  # nats a text, above which training stops; None for never
    gamma: float = 1.0  # PPO: what a reward is worth one token later
    lam: float = 0.95  # PPO: how far ahead rewards are trusted more than values
    value_clip: float = 0.2  # PPO: how far a value moves in a round before its loss is held back, in units of reward
    value_weight: float = 0.5  # PPO: of the value's loss beside the policy's

    def __post_init__(self) -> None:
        for name in ("texts", "length", "epochs", "group"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("clip", "value_clip"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be above 0 and below 1, got {getattr(self, name)}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        for name in ("beta", "value_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        for name in ("temperature", "max_kl") if self.max_kl is not None else ("temperature",):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")


@dataclass(frozen=True)
class Round:
    """What one round was: its texts, as they were written before it changed the policy, and what they taught."""

    number: int  # from 1
    reward: float  # mean of the texts, without the penalty
    kl: float  # from the reference: nats a text, estimated by k1
    entropy: float  # of the policy: nats a token, estimated by minus the mean log-probability of what it wrote
    length: float  # mean number of tokens written
    clip_share: float  # of the tokens: held back by the clip, mean over the steps of the round


def ppo(
    policy: LanguageModel,
    value: ValueModel,
    reference: LanguageModel,
    reward: Reward,
    prompts: Tensor,
    config: FeedbackConfig,
    train: TrainConfig,
    *,
    stop: int | None = None,
    progress: bool = True,
) -> Iterator[Round]:
    """Proximal policy optimisation; yield a record after each round.

    A round: texts are written on prompts drawn at random, and judged; each token has minus beta times its `kl_k1`, the
    last one the reward too; advantages are generalised and whitened; `epochs` times the texts are shuffled and learnt
    from in batches. A step is one of `train.fit`, without dropout, for with it the ratio would not begin at 1.

    Args:
        policy: a decoder; it is changed in place.
        value: it is changed in place. Its body may be the policy's own, or one apart.
        reference: what the policy began as, a copy of it: frozen, and not changed.
        reward: of ids (B, T) and real (B, T), to one number for each text (B,), such as a `heads.RewardModel`. Called
            without gradients, and in evaluation mode if it is a module.
        prompts: (N, P).
        config: how to write, judge and learn.
        train: `batch_size` of the texts are learnt from in a step; `steps` must make whole rounds.
        stop: a token that ends a text.
        progress: as in `train.fit`.

    Raises:
        ValueError: at the call: what was given does not fit together. Later: the rewards of a round are of the wrong
            shape, not finite, or all equal, be it because every text earns the most there is; training stops, and
            the policy stays as it is then.
        RuntimeError: the KL of a round is above `max_kl`; training stops, and the policy stays as it is then.
        FloatingPointError: as `train.fit`.
    """
    return _Learning(policy, value, reference, reward, prompts, config, train, stop).rounds(progress)


def grpo(
    policy: LanguageModel,
    reference: LanguageModel,
    reward: Reward,
    prompts: Tensor,
    config: FeedbackConfig,
    train: TrainConfig,
    *,
    stop: int | None = None,
    progress: bool = True,
) -> Iterator[Round]:
    """Group-relative policy optimisation: as `ppo`, without a value model.

    `group` texts are written on each prompt, and a text is better or worse than the others on it. The penalty, beta
    times `kl_k3`, stands in the loss. Arguments, records and errors are those of `ppo`.

    Raises:
        ValueError: a group of one, or texts that do not split into groups; or as `ppo`.
        RuntimeError: as `ppo`.
        FloatingPointError: as `train.fit`.
    """
    if config.group < 2 or config.texts % config.group:
        raise ValueError(
            f"a text is compared with others on its prompt: group ({config.group}) must be at least 2, and texts "
            f"({config.texts}) a multiple of it"
        )
    return _Learning(policy, None, reference, reward, prompts, config, train, stop).rounds(progress)


def sample(
    policy: LanguageModel,
    prompts: Tensor,
    length: int,
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    stop: int | None = None,
) -> tuple[Texts, Tensor]:
    """Write on from prompts, with the key-value cache; and how likely each token was when it was drawn.

    There is no top-k and no top-p: they change the distribution that is drawn from.

    Args:
        policy: a decoder, in evaluation mode meanwhile.
        prompts: (B, P), all of one length.
        length: the most tokens that each is written on by.
        generator: where the randomness comes from.
        temperature: above 0.
        stop: a token that ends a text; it is written, and what follows it in `ids` is not.

    Returns:
        The texts, T at most P + `length`, and the log-probability (B, T - 1) of each token.

    Raises:
        ValueError: the temperature is not above 0; or as `generate`.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}: at 0 nothing is drawn")
    ids = generate(policy, prompts, length, temperature=temperature, generator=generator, stop=stop)  # (B, T)
    start = prompts.size(1)
    stops = torch.zeros_like(ids[:, start:]) if stop is None else (ids[:, start:] == stop).long()
    goes_on = stops.cumsum(dim=1) - stops == 0  # (B, T - P): no stop came before
    real = torch.cat([torch.ones_like(prompts, dtype=torch.bool), goes_on], dim=1)  # (B, T)
    written = real[:, 1:].clone()  # (B, T - 1)
    written[:, : start - 1] = False
    with _evaluating(policy), torch.no_grad():
        log_p = log_probabilities(policy, ids, temperature=temperature)
    return Texts(ids, real, written), log_p


class _Actor(nn.Module):
    """Policy and value model as one module, so that `fit` trains both."""

    def __init__(self, policy: LanguageModel, value: ValueModel | None, temperature: float) -> None:
        super().__init__()
        self.policy, self.value, self.temperature = policy, value, temperature

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """From token ids (B, T) to log-probabilities and values, each (B, T - 1)."""
        values = None if self.value is None else self.value(ids[:, :-1])
        return log_probabilities(self.policy, ids, temperature=self.temperature), values


class _Learning:
    """A run of PPO, or, without a value model, of GRPO."""

    def __init__(
        self,
        policy: LanguageModel,
        value: ValueModel | None,
        reference: LanguageModel,
        reward: Reward,
        prompts: Tensor,
        config: FeedbackConfig,
        train: TrainConfig,
        stop: int | None,
    ) -> None:
        self.policy, self.value, self.reference, self.reward = policy, value, reference, reward
        self.prompts, self.config, self.train, self.stop = prompts, config, train, stop
        self.steps = config.epochs * config.texts // train.batch_size  # in a round
        self.number, self.told, self.held = 0, {}, []  # told: of the round; held: the clip's share in each step
        if config.texts % train.batch_size or train.steps % self.steps:
            raise ValueError(
                f"texts ({config.texts}) must be a multiple of batch_size ({train.batch_size}), and steps "
                f"({train.steps}) of the {config.epochs} x {config.texts} / {train.batch_size} in a round"
            )
        if prompts.dim() != 2 or not prompts.numel():
            raise ValueError(f"prompts must be ids (N, P), none of them 0; got shape {tuple(prompts.shape)}")
        self.actor = _Actor(policy, value, config.temperature)
        ours = set(self.actor.parameters())
        for name, part in (("reference", reference), ("reward", reward)):
            if isinstance(part, nn.Module) and any(p in ours for p in part.parameters()):
                raise ValueError(f"the {name} would change with the policy: give it weights of its own (copy.deepcopy)")

    def rounds(self, progress: bool) -> Iterator[Round]:
        return self._rounds(fit(self.actor, self.batches, self.train, loss=self.loss, progress=progress))

    def _rounds(self, steps: Iterator) -> Iterator[Round]:
        # `fit` leaves the actor as it was made; what it is made of was in modes of its own
        with _evaluating(self.policy, self.value), contextlib.closing(steps):
            for done in steps:
                if done.step % self.steps == 0:
                    yield Round(self.number, **self.told, clip_share=sum(self.held) / len(self.held))

    def batches(self, generator: torch.Generator) -> Iterator[Batch]:
        """Rounds without end, each written by the policy as it then is."""
        while True:
            written = self.write(generator)
            for _ in range(self.config.epochs):
                for rows in torch.randperm(self.config.texts, generator=generator).split(self.train.batch_size):
                    yield tuple(t[rows] for t in written)

    @torch.no_grad()
    def write(self, generator: torch.Generator) -> Batch:
        """Write and judge the texts of a round, and say what there is to learn from them."""
        c, device = self.config, next(self.policy.parameters()).device
        self.number, self.held = self.number + 1, []
        group = 1 if self.value is not None else c.group
        drawn = torch.randint(len(self.prompts), (c.texts // group,), generator=generator).repeat_interleave(group)
        seed = int(torch.randint(2**31, (), generator=generator))  # what is drawn from on a GPU needs one that is there
        (ids, real, written), log_p = sample(
            self.policy,
            self.prompts[drawn].to(device),
            c.length,
            generator=torch.Generator(device).manual_seed(seed),
            temperature=c.temperature,
            stop=self.stop,
        )
        with _evaluating(self.reference, self.value, self.reward):
            reference_log_p = log_probabilities(self.reference, ids, temperature=c.temperature)  # (B, T - 1)
            scores = self.judge(ids, real)  # (B,)
            values = None if self.value is None else self.value(ids[:, :-1])  # (B, T - 1)
        kl = kl_k1(log_p, reference_log_p)
        now = {"reward": scores.mean().item(), "kl": kl.masked_fill(~written, 0.0).sum(dim=1).mean().item()}
        if c.max_kl is not None and not now["kl"] <= c.max_kl:
            before = "; the round before had {kl:.4g} and {reward:.4g}".format(**self.told) if self.told else ""
            raise RuntimeError(
                f"in round {self.number} the policy is {now['kl']:.4g} nats a text from its reference, above max_kl "
                f"({c.max_kl}), with a mean reward of {now['reward']:.4g}{before}: training stopped"
            )
        now |= {"entropy": -log_p[written].mean().item(), "length": written.sum(dim=1).double().mean().item()}
        self.told = now
        if values is None:
            return ids, written, log_p, group_advantages(scores, group), reference_log_p
        rewards = token_rewards(scores, kl, written, beta=c.beta)
        advantages, returns = generalised_advantages(rewards, values, written, gamma=c.gamma, lam=c.lam)
        return ids, written, log_p, whiten(advantages, written), values, returns

    def judge(self, ids: Tensor, real: Tensor) -> Tensor:
        scores = self.reward(ids, real)  # (B,)
        where = f"in round {self.number}"
        if not isinstance(scores, Tensor) or scores.shape != ids.shape[:1]:
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(f"a reward is one number for each of {len(ids)} texts, got {got} {where}")
        if not scores.isfinite().all():
            at = int((~scores.isfinite()).nonzero()[0])
            raise ValueError(f"the reward of text {at} {where} is {scores[at].item()}: training stopped")
        if (scores == scores[0]).all():
            raise ValueError(
                f"all {len(ids)} rewards {where} are {scores[0].item()}: a constant teaches nothing; training stopped"
            )
        return scores.to(ids.device, torch.float32)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """What a step makes smaller."""
        c = self.config
        model.eval()  # `fit` has put it into training mode; dropout would change the log-probabilities
        ids, written, old_log_p, advantages, *rest = batch
        log_p, values = model(ids)  # (B, T - 1) each
        if self.value is None:
            (reference_log_p,) = rest
            loss, held = grpo_loss(log_p, old_log_p, reference_log_p, advantages, written, clip=c.clip, beta=c.beta)
        else:
            old_values, returns = rest
            loss, held = policy_loss(log_p, old_log_p, advantages, written, clip=c.clip)
            loss = loss + c.value_weight * value_loss(values, old_values, returns, written, clip=c.value_clip)
        self.held.append(held.item())
        return loss


@contextlib.contextmanager
def _evaluating(*parts: object) -> Iterator[None]:
    """Modules in evaluation mode meanwhile; what is no module is left alone."""
    modes = [(part, part.training) for part in parts if isinstance(part, nn.Module)]
    try:
        for part, _ in modes:
            part.eval()
        yield
    finally:
        for part, training in modes:
            part.train(training)
