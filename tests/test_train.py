"""Training: steps by hand, an interruption that leaves no trace, files whole or not there, several processes."""

import errno
import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys

import nbformat
import pytest
import torch
import torch.nn.functional as F
from nbclient import NotebookClient
from torch import nn
from torch.testing import assert_close

from bookformer import checkpoints, data
from bookformer.config import ModelConfig, TrainConfig
from bookformer.heads import LanguageModel
from bookformer.muon import Muon
from bookformer.train import BETAS, fit, next_token_loss, schedule

IDS = torch.randint(11, (200,), generator=torch.Generator().manual_seed(0))


class Tiny(nn.Module):
    """The smallest model with a matrix, a vector, dropout and a configuration."""

    def __init__(self, d_model=8, dropout=0.0):
        super().__init__()
        self.config = ModelConfig(vocab_size=11, context_length=5, d_model=d_model)
        self.table, self.dropout, self.out = nn.Embedding(11, d_model), nn.Dropout(dropout), nn.Linear(d_model, 11)

    def forward(self, ids):
        return self.out(self.dropout(self.table(ids)))


def tiny(**options):
    torch.manual_seed(0)
    return Tiny(**options)


def stream(generator, ids=IDS, batch_size=4):
    return data.batches(ids, context_length=5, batch_size=batch_size, generator=generator)


def config(**changes):
    return TrainConfig(**{"steps": 12, "batch_size": 4, "learning_rate": 0.01, "checkpoint_every": 5} | changes)


def weights(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_equal(model, expected):
    assert all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())


# --- one step ------------------------------------------------------------------------------------------------------


def test_the_schedule_by_hand():
    run = config(steps=10, learning_rate=0.8, warmup_fraction=0.2, final_fraction=0.25)
    assert schedule(1, run) == pytest.approx(0.4)
    assert schedule(2, run) == pytest.approx(0.8)
    assert schedule(4, run) == pytest.approx(0.2 + 0.6 * (1 + math.sqrt(0.5)) / 2)  # a quarter of half a turn
    assert schedule(6, run) == pytest.approx(0.5)  # halfway between 0.8 and 0.2
    assert schedule(10, run) == pytest.approx(0.2)
    constant = config(steps=10, learning_rate=0.8, warmup_fraction=0, final_fraction=1)
    assert {schedule(step, constant) for step in range(1, 11)} == {0.8}
    assert schedule(1, config(steps=1, learning_rate=0.8, warmup_fraction=1)) == 0.8


@pytest.mark.parametrize("step", [0, 11])
def test_there_is_no_such_step(step):
    with pytest.raises(ValueError, match=f"there is no step {step}: they run from 1 to 10"):
        schedule(step, config(steps=10))


@pytest.mark.parametrize(("clip", "beta2"), [(None, 0.95), (0.5, 0.95), (None, 0.8)])
def test_two_steps_by_hand(clip, beta2):
    """AdamW as its paper writes it, in plain arithmetic, on a matrix that decays and a vector that does not."""
    run = config(steps=2, batch_size=1, learning_rate=0.1, warmup_fraction=0, weight_decay=0.2, clip=clip, beta2=beta2)
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
        model.bias.fill_(0.5)
    x = torch.tensor([[3.0, 1.0]])
    records = list(fit(model, lambda g: itertools.repeat((x,)), run, loss=lambda m, b: m(b[0]).square().sum()))
    p, m, v, norms, losses = [1.0, -2.0, 0.5], [0.0] * 3, [0.0] * 3, [], []
    for t in (1, 2):
        y = 3 * p[0] + p[1] + p[2]
        g = [2 * y * 3, 2 * y * 1, 2 * y]
        losses.append(y * y)
        norms.append(math.sqrt(sum(x * x for x in g)))
        g = [x * min(1, clip / norms[-1]) if clip else x for x in g]
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        v = [beta2 * a + (1 - beta2) * b * b for a, b in zip(v, g, strict=True)]
        rate = schedule(t, run)
        p = [a * (1 - rate * decay) for a, decay in zip(p, [0.2, 0.2, 0.0], strict=True)]
        hat = [(a / (1 - 0.9**t), b / (1 - beta2**t)) for a, b in zip(m, v, strict=True)]
        p = [a - rate * mh / (math.sqrt(vh) + 1e-8) for a, (mh, vh) in zip(p, hat, strict=True)]
    assert_close(torch.cat([model.weight.detach().flatten(), model.bias.detach()]), torch.tensor(p))
    assert [r.step for r in records] == [1, 2]
    assert [r.loss for r in records] == pytest.approx(losses, rel=1e-5)
    assert [r.gradient_norm for r in records] == pytest.approx(norms, rel=1e-5)
    assert [r.learning_rate for r in records] == [schedule(1, run), schedule(2, run)]


def test_the_loss_is_the_mean_cross_entropy():
    model, (inputs, targets) = tiny(), next(stream(torch.Generator()))
    by_hand = -model(inputs).log_softmax(-1).gather(-1, targets[..., None]).mean()
    assert_close(next_token_loss(model, (inputs, targets)), by_hand)


def test_it_learns_and_every_batch_comes_from_the_seed():
    counting = torch.arange(200) % 11
    first, again, other = (
        [r.loss for r in fit(tiny(), lambda g: stream(g, counting), config(steps=150, seed=seed))] for seed in (0, 0, 1)
    )
    assert first[-1] < 0.5 < 2 < first[0]
    assert first == again
    assert first[0] != other[0]


# --- what is asked for, and what is left alone ---------------------------------------------------------------------


def test_the_callers_randomness_and_the_models_mode_stay_as_they_were():
    model = tiny(dropout=0.5).eval()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    for record in fit(model, stream, config(validate_every=5), validate=lambda m: torch.rand(()).item()):
        assert torch.equal(state, torch.get_rng_state()), record
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_dropout_follows_the_seed_and_not_the_caller():
    def losses(global_seed, seed):
        model = tiny(dropout=0.5)
        torch.manual_seed(global_seed)
        same = [next(stream(torch.Generator().manual_seed(0)))] * 3  # so that only dropout differs
        return [r.loss for r in fit(model, lambda g: iter(same), config(steps=3, learning_rate=1e-12, seed=seed))]

    assert losses(1, 0) == losses(2, 0) != losses(1, 1)
    assert len(set(losses(1, 0))) == 3  # another draw in each step


def test_it_trains_within_no_grad_too_and_validates_without_gradients_in_evaluation_mode():
    seen = []

    def validate(model):
        seen.append((model.training, torch.is_grad_enabled()))
        return 1.0

    model = tiny()
    before = weights(model)
    with torch.no_grad():
        records = list(fit(model, stream, config(validate_every=5), validate=validate))
    assert seen == [(False, False)] * 3
    assert [r.step for r in records if r.held_out is not None] == [5, 10, 12]
    assert not torch.equal(model.table.weight, before["table.weight"])


def test_frozen_weights_stay():
    model = tiny()
    model.table.requires_grad_(False)
    before = weights(model)
    list(fit(model, stream, config()))
    assert torch.equal(model.table.weight, before["table.weight"])
    assert not torch.equal(model.out.weight, before["out.weight"])


def test_early_stopping_puts_the_best_weights_back():
    held_out, seen = iter([3.0, 2.0, 2.5, 2.0, 9.0]), []

    def validate(model):
        seen.append(weights(model))
        return next(held_out)

    model = tiny()
    records = list(fit(model, stream, config(steps=50, validate_every=2, patience=2), validate=validate))
    assert len(records) == 8  # the best after step 4; neither 6 nor 8 is better
    assert_equal(model, seen[1])
    assert not torch.equal(seen[1]["out.weight"], seen[3]["out.weight"])


# --- going on ------------------------------------------------------------------------------------------------------

OPTIONS = {"patience": 3, "validate_every": 3}


def held_out(model):
    return next_token_loss(model, next(stream(torch.Generator().manual_seed(5)))).item()


def run(path, model, **changes):
    return fit(model, stream, config(**OPTIONS | changes), validate=held_out, checkpoint=path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


@pytest.mark.parametrize("stop", [1, 4, 5, 6, 11, 12])
def test_an_interrupted_run_goes_on_as_if_there_had_been_no_interruption(path, stop):
    whole = tiny(dropout=0.5)
    expected = list(run(None, whole))
    list(itertools.islice(run(path, tiny(dropout=0.5)), stop))
    torch.manual_seed(99)
    again = Tiny(dropout=0.5)  # with other first weights
    if not path.exists():  # before the first checkpoint the run starts anew
        again = tiny(dropout=0.5)
    torch.rand(3)
    records = list(run(path, again))
    assert records == expected[stop // 5 * 5 if stop < 12 else 12 :]
    assert_equal(again, weights(whole))


def test_a_finished_run_is_not_trained_again(path):
    first = tiny()
    list(run(path, first))
    before = path.read_bytes()
    second = Tiny()
    assert list(run(path, second)) == []
    assert_equal(second, weights(first))
    assert path.read_bytes() == before


def test_a_run_that_was_stopped_early_stays_stopped(path):
    calls = itertools.count(1)

    def worse(model):
        return next(calls)

    run = config(steps=50, validate_every=2, patience=2, checkpoint_every=50)
    first = tiny()
    assert len(list(fit(first, stream, run, validate=worse, checkpoint=path))) == 6
    second = Tiny()
    assert list(fit(second, stream, run, validate=worse, checkpoint=path)) == []
    assert_equal(second, weights(first))


def test_how_often_it_is_saved_may_change(path):
    list(itertools.islice(run(path, tiny()), 5))
    assert [r.step for r in run(path, Tiny(), checkpoint_every=1)] == list(range(6, 13))


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ({"d_model": 16}, {}, "d_model is 8 there, and 16 here"),
        ({}, {"learning_rate": 0.02}, "learning_rate is 0.01 there, and 0.02 here"),
        ({}, {"steps": 20}, "steps is 12 there, and 20 here"),
        ({}, {"seed": 1}, "seed is 0 there, and 1 here"),
        ({}, {"clip": None}, "clip is 1.0 there, and None here"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(path, model, changes, message):
    list(run(path, tiny()))
    file, other = path.read_bytes(), tiny(**model)
    before = weights(other)
    with pytest.raises(ValueError, match=f"run.safetensors is of another model or run: {message}"):
        run(path, other, **changes)
    assert_equal(other, before)
    assert path.read_bytes() == file


def test_a_checkpoint_of_other_weights_or_data_is_refused(path):
    list(run(path, tiny()))
    other = tiny()
    other.out = nn.Linear(8, 11, bias=False)
    with pytest.raises(ValueError, match="trained parameters is 187 there, and 176 here"):
        run(path, other)
    other = tiny()
    other.table = nn.Embedding(8, 11)
    with pytest.raises(ValueError, match=r"table.weight is \(11, 8\) torch.float32 there, and \(8, 11\) torch"):
        run(path, other)
    other = tiny()
    other.register_buffer("seen", torch.zeros(2))
    with pytest.raises(ValueError, match=r"seen is missing there, and \(2,\) torch.float32 here"):
        run(path, other)
    with pytest.raises(ValueError, match="is of another run: it saw another batch in step 12"):
        fit(tiny(), lambda g: stream(g, IDS.flip(0)), config(**OPTIONS), validate=held_out, checkpoint=path)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_checkpoint_that_is_cut_off_is_refused_and_left_alone(path, kept):
    list(run(path, tiny()))
    path.write_bytes(path.read_bytes()[:kept])
    file = path.read_bytes()
    with pytest.raises(ValueError, match=r"run\.safetensors is damaged, and was left as it is"):
        run(path, tiny())
    assert path.read_bytes() == file


@pytest.mark.parametrize("where", [b'\\"step\\": 12', b""])
def test_a_checkpoint_in_which_one_byte_changed_is_refused(path, where):
    list(run(path, tiny()))
    content = bytearray(path.read_bytes())
    assert content.count(where) == 1 or not where
    content[content.index(where) + len(where) - 1 if where else -5] ^= 1  # another step, or another weight
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged, and was left as it is: its content is not what was written"):
        run(path, tiny())


def test_another_kind_of_file_is_refused(path):
    checkpoints.save(path, tiny())
    with pytest.raises(ValueError, match="is not of the kind 'training run 1', but 'weights 1'"):
        run(path, tiny())


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_whole(path, monkeypatch, what):
    list(itertools.islice(run(path, tiny()), 5))
    file = path.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, what, full)
        with pytest.raises(OSError, match="No space left on device"):
            list(run(path, tiny()))
    assert path.read_bytes() == file
    assert list(path.parent.iterdir()) == [path]
    assert [r.step for r in run(path, tiny())] == list(range(6, 13))


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[1])
from test_train import fit, run, tiny
calls = []
def fsync(descriptor):
    calls.append(descriptor)
    if len(calls) == 2:  # in the middle of the second checkpoint
        os.truncate(descriptor, 1000)
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
from pathlib import Path
list(run(Path(sys.argv[2]), tiny(dropout=0.5)))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_kill_while_saving_leaves_the_old_file_whole_and_nothing_piles_up(path, root):
    done = subprocess.run([sys.executable, "-c", KILLED, root / "tests", path], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(path.parent.iterdir())) == 2  # the old file, and what was begun
    whole, again = tiny(dropout=0.5), Tiny(dropout=0.5)
    expected = list(run(None, whole))
    assert list(run(path, again)) == expected[5:]
    assert_equal(again, weights(whole))
    assert list(path.parent.iterdir()) == [path]


def test_weights_alone_are_saved_and_loaded(path):
    model, other = tiny(), Tiny()
    checkpoints.save(path, model)
    checkpoints.load(path, other)
    assert_equal(other, weights(model))
    with pytest.raises(ValueError, match="d_model is 8 there, and 16 here"):
        checkpoints.load(path, tiny(d_model=16))
    other.out = nn.Linear(8, 12)
    with pytest.raises(ValueError, match=r"out.bias is \(11,\) torch.float32 there, and \(12,\) torch.float32 here"):
        checkpoints.load(path, other)


def test_tied_weights_and_any_type_come_back(path):
    model, other = tiny().to(torch.bfloat16), Tiny().to(torch.bfloat16)
    for one in (model, other):
        one.out.weight = one.table.weight
        one.register_buffer("count", torch.tensor(3 if one is model else 0))
    checkpoints.save(path, model)
    checkpoints.load(path, other)
    assert_equal(other, weights(model))
    assert other.out.weight is other.table.weight


def test_a_model_that_is_no_longer_finite_is_not_saved(path):
    model = tiny()
    checkpoints.save(path, model)
    file = path.read_bytes()
    with torch.no_grad():
        model.table.weight[0, 0] = math.inf
    with pytest.raises(FloatingPointError, match=r"table\.weight is not finite any more"):
        checkpoints.save(path, model)
    assert path.read_bytes() == file


# --- what goes wrong -----------------------------------------------------------------------------------------------


def spoilt(at, value):
    """A loss that is spoilt in one step: by a value, or, as `"gradient"`, by a gradient that is not finite."""
    calls = itertools.count(1)

    def loss(model, batch):
        good = next_token_loss(model, batch)
        if next(calls) != at:
            return good
        return good + (model.out.bias[0] * 0).sqrt() if value == "gradient" else good * value

    return loss


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "the loss of step 7 is nan"),
        (math.inf, "the loss of step 7 is inf"),
        ("gradient", "the norm of the gradient of step 7 is nan"),
    ],
)
def test_a_loss_that_is_not_finite_stops_training_before_it_touches_the_weights(path, value, message):
    model, expected = tiny(), tiny()
    list(itertools.islice(fit(expected, stream, config()), 6))
    with pytest.raises(FloatingPointError, match=f"{message}: .* weights of step 6; the checkpoint of step 5 is .*run"):
        list(fit(model, stream, config(), loss=spoilt(7, value), checkpoint=path))
    assert_equal(model, weights(expected))
    assert [r.step for r in fit(tiny(), stream, config(), checkpoint=path)] == list(range(6, 13))


def test_without_a_checkpoint_the_message_says_so():
    with pytest.raises(FloatingPointError, match=r"the loss of step 1 is nan: .* no checkpoint was kept"):
        list(fit(tiny(), stream, config(), loss=spoilt(1, math.nan)))


def test_a_held_out_loss_that_is_not_finite_stops_training(path):
    run = fit(tiny(), stream, config(validate_every=6), validate=lambda model: math.nan, checkpoint=path)
    with pytest.raises(
        FloatingPointError, match=r"the held-out loss of step 6 is nan: .* of step 6; the checkpoint of step 5"
    ):
        list(run)


def frozen():
    return tiny().requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "batches", "changes", "message"),
    [
        (tiny, stream, {"patience": 2}, r"patience \(2\) counts validations: give validate too"),
        (frozen, stream, {}, "Tiny has no parameter that can be trained"),
        (tiny, lambda g: stream(g, IDS[:8]), {}, r"batch_size \(4\) is larger than the data: 8 tokens hold only 3"),
    ],
)
def test_what_does_not_fit_together_is_refused_at_the_call(model, batches, changes, message):
    with pytest.raises(ValueError, match=message):
        fit(model(), batches, config(**changes))


def test_a_checkpoint_needs_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere to keep the checkpoint in"):
        fit(tiny(), stream, config(), checkpoint=tmp_path / "nowhere" / "run.safetensors")


def test_a_batch_has_as_many_rows_as_configured():
    with pytest.raises(ValueError, match=r"a batch of shape \(3, 5\) does not have batch_size \(4\) rows"):
        list(fit(tiny(), lambda g: stream(g, batch_size=3), config()))


def test_batches_that_end_too_early():
    with pytest.raises(ValueError, match="the batches end after 2 of 12 steps"):
        list(fit(tiny(), lambda g: itertools.islice(stream(g), 2), config()))


def test_a_loss_is_one_number():
    rows = fit(tiny(), stream, config(), loss=lambda m, b: F.cross_entropy(m(b[0]).mT, b[1], reduction="none"))
    with pytest.raises(ValueError, match=r"the loss must be one number, got shape \(4, 5\)"):
        list(rows)


# --- the bar -------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_at_a_terminal_a_bar_is_drawn_and_gone(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    list(fit(tiny(), stream, config()))
    drawn = sys.stderr.getvalue()
    assert "0/12" in drawn
    assert drawn.split("\r")[-2].isspace()  # the line is blank
    assert drawn.endswith("\r")


@pytest.mark.parametrize(("file", "progress"), [(io.StringIO, True), (Terminal, False)])
def test_where_nobody_watches_or_nobody_asks_there_is_no_bar(monkeypatch, file, progress):
    monkeypatch.setattr(sys, "stderr", file())
    list(fit(tiny(), stream, config(), progress=progress))
    assert sys.stderr.getvalue() == ""


CELL = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_train import config, fit, stream, tiny
for record in fit(tiny(), stream, config()):
    pass
"""


def test_a_notebook_run_by_a_tool_holds_no_trace_of_a_bar_and_a_watched_one_shows_it(root):
    cell = CELL.format(tests=str(root / "tests"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for _ in range(2)])
    client = NotebookClient(notebook, timeout=120)
    with client.setup_kernel():
        assert client.execute_cell(notebook.cells[0], 0).outputs == []
        assert client.widget_state == {}
        client.kc.allow_stdin = True  # as a front end does
        client.execute_cell(notebook.cells[1], 1)
        models = {state["_model_name"] for state in client.widget_state.values()}
    assert "FloatProgressModel" in models


# --- Muon ----------------------------------------------------------------------------------------------------------


def small():
    """A model with blocks, and a matrix outside them: the table of tokens."""
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(vocab_size=11, context_length=5, d_model=8, n_heads=2, dropout=0.2))


def muon(path, model, **changes):
    changes = OPTIONS | {"optimizer": "muon"} | changes
    return fit(model, stream, config(**changes), validate=held_out, checkpoint=path)


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_all_others():
    run = config(steps=1, optimizer="muon", weight_decay=0.3, warmup_fraction=0, clip=None)
    ours, expected = small().eval(), small().eval()
    same = [next(stream(torch.Generator().manual_seed(0)))]
    list(fit(ours, lambda g: iter(same), run, loss=lambda m, b: next_token_loss(m.eval(), b)))
    next_token_loss(expected, same[0]).backward()
    groups = {"muon": [], "matrices": [], "vectors": []}
    for name, p in expected.named_parameters():
        groups["vectors" if p.dim() < 2 else "muon" if "blocks" in name else "matrices"].append(p)
    assert [len(group) for group in groups.values()] == [12, 2, 22]  # the matrices outside: tokens and positions
    for optimizer in (
        Muon(groups["muon"], run.learning_rate, weight_decay=0.3),
        torch.optim.AdamW(groups["matrices"], lr=run.learning_rate, betas=BETAS, weight_decay=0.3),
        torch.optim.AdamW(groups["vectors"], lr=run.learning_rate, betas=BETAS, weight_decay=0.0),
    ):
        for group in optimizer.param_groups:
            group["lr"] = schedule(1, run)
        optimizer.step()
    for (name, found), p in zip(ours.named_parameters(), expected.parameters(), strict=True):
        assert_close(found, p, msg=name)


@pytest.mark.parametrize("stop", [4, 5, 11])
def test_an_interrupted_run_with_muon_goes_on_too(path, stop):
    whole, again = small(), small()
    expected = list(muon(None, whole))
    list(itertools.islice(muon(path, small()), stop))
    assert list(muon(path, again)) == expected[stop // 5 * 5 :]
    assert_equal(again, weights(whole))


def test_a_model_all_of_whose_weights_are_in_its_blocks():
    model = small().body.stack
    x = torch.randn(4, 5, 8)
    first = weights(model)
    list(fit(model, lambda g: itertools.repeat((x,)), config(optimizer="muon", steps=2), loss=lambda m, b: m(*b).std()))
    assert all(not torch.equal(t, first[name]) for name, t in model.state_dict().items() if "weight" in name)


def test_muon_wants_blocks():
    with pytest.raises(ValueError, match="Muon moves the matrices in a Stack, and Tiny has none to train"):
        fit(tiny(), stream, config(optimizer="muon"))
    model = small()
    model.body.stack.requires_grad_(False)
    with pytest.raises(ValueError, match="Muon moves the matrices in a Stack, and LanguageModel has none to train"):
        fit(model, stream, config(optimizer="muon"))


def test_a_run_goes_on_with_the_optimiser_that_it_began_with(path):
    list(muon(path, small()))
    with pytest.raises(ValueError, match="optimizer is muon there, and adamw here"):
        muon(path, small(), optimizer="adamw")
    with pytest.raises(ValueError, match=r"beta2 is 0.95 there, and 0.9 here"):
        muon(path, small(), beta2=0.9)


# --- several processes ---------------------------------------------------------------------------------------------

SCRIPT = """
import itertools, json, math, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from test_train import OPTIONS, checkpoints, config, fit, held_out, run, stream, tiny
folder, rank = Path(sys.argv[2]), int(os.environ.get("RANK", 0))
written, write = [], checkpoints.write
checkpoints.write = lambda *parts: (written.append(parts), write(*parts))
model = tiny()
records = list(itertools.islice(run(folder / "run.safetensors", tiny(), checkpoint_every=4), 6))[:4]  # interrupted
records += run(folder / "run.safetensors", model, checkpoint_every=4)
told = {"records": [vars(record) for record in records]}
told["written"] = len(written)
told["weights"] = checkpoints.digest(*model.state_dict().values())
told["dropped"] = []

def dropping(model, batch):
    told["dropped"].append(torch.nn.functional.dropout(torch.ones(30)).tolist())
    return model(batch[0]).square().mean()

list(fit(tiny(), stream, config(steps=2), loss=dropping))

def loss(model, batch):  # spoilt in one process only
    return model(batch[0]).square().mean() * (math.nan if rank == 1 else 1)

for name, attempt in {
    "nan": lambda: list(fit(tiny(), stream, config(), loss=loss)),
    "rows": lambda: fit(tiny(), stream, config(batch_size=5)),
}.items():
    try:
        attempt()
    except (FloatingPointError, ValueError) as error:
        told[name] = str(error)
(folder / f"{rank}.json").write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def processes(tmp_path_factory, root):
    """The folder in which two processes that torchrun started worked, and what each of them tells."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, folder / "script.py", root / "tests", folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, *(json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))


def test_two_processes_train_as_one_does(processes):
    _, first, second = processes
    alone = list(run(None, tiny()))
    assert len(alone) == 12
    for one, two, three in zip(alone, first["records"], second["records"], strict=True):
        assert two == three
        assert (two["step"], two["learning_rate"]) == (one.step, one.learning_rate)
        assert two["loss"] == pytest.approx(one.loss, abs=1e-5)
        assert two["gradient_norm"] == pytest.approx(one.gradient_norm, abs=1e-5)
        assert two["held_out"] == (one.held_out and pytest.approx(one.held_out, abs=1e-5))
    assert first["weights"] == second["weights"]


def test_two_processes_write_one_checkpoint_that_knows_how_many_they_were(processes):
    folder, first, second = processes
    assert (first["written"], second["written"]) == (3, 0)  # steps 4, 8 and 12
    assert sorted(p.name for p in folder.iterdir()) == ["0.json", "1.json", "run.safetensors", "script.py"]
    with pytest.raises(ValueError, match="processes is 2 there, and 1 here"):
        run(folder / "run.safetensors", tiny(), checkpoint_every=4)
    tensors, about = checkpoints.read(folder / "run.safetensors", "training run 1")
    assert about["step"] == 12
    assert checkpoints.digest(*(tensors[f"best.{name}"] for name in tiny().state_dict())) == first["weights"]


def test_all_processes_stop_when_one_fails(processes):
    _, first, second = processes
    assert first["nan"] == second["nan"]
    assert first["nan"].startswith("the loss of step 1 is nan")


def test_a_batch_splits_into_the_processes(processes):
    _, first, second = processes
    assert first["rows"] == second["rows"] == "batch_size (5) must be a multiple of the number of processes (2)"


def test_each_process_drops_other_numbers(processes):
    _, first, second = processes
    assert len({tuple(dropped) for dropped in first["dropped"] + second["dropped"]}) == 4
