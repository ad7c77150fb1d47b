"""What BeamView takes, refuses, sends and finds. How it behaves in a page is tested in tests/book."""

import itertools
import math

import numpy as np
import pytest
import torch
import traitlets

from bookformer.config import ModelConfig
from bookformer.generate import beam_search
from bookformer.heads import LanguageModel
from bookformer.widgets import BeamView


def logs(*pairs):
    return [(token, math.log(p)) for token, p in pairs]


# Greedy takes a (0.6), then c: 0.6 * 0.4 = 0.24. The best is b, then e: 0.4 * 0.9 = 0.36.
TREE = {
    (): logs((" a", 0.6), ("b", 0.4)),
    (0,): logs(("c", 0.4), ("d", 0.35)),
    (1,): logs(("e", 0.9), ("\n", 0.1)),
}
# A short path of 0.3, and a long one of 0.5 * 0.5 * 0.8 = 0.2; their scores at power 1 are -1.204 and -0.536.
ENDING = {(): logs(("x", 0.5), (".", 0.3)), (0,): logs(("y", 0.5), (".", 0.1)), (0, 0): logs(("z", 0.8), ("w", 0.2))}


def view(tree=TREE, **rest):
    return BeamView("Say: ", tree, **rest)


def test_the_tree_travels_level_by_level():
    made = view()
    assert made.tokens == ["␣a", "b", "c", "d", "e", "↵"]
    assert made.parents == [-1, -1, 0, 0, 1, 1]
    assert np.exp(np.frombuffer(made.packed, "<f4")) == pytest.approx([0.6, 0.4, 0.4, 0.35, 0.9, 0.1])
    assert (made.exact, made.prompt, made.width, made.step, made.length_power) == (True, "Say: ", 2, 1, 0)


def test_greedy_misses_by_hand_what_a_beam_of_two_finds():
    paths = view().paths()
    assert {name: text for name, (text, _) in paths.items()} == {"beam": "be", "greedy": "␣ac", "best": "be"}
    sums = [total for _, total in paths.values()]
    assert sums == pytest.approx([math.log(0.36), math.log(0.24), math.log(0.36)], abs=1e-6)
    assert view().sentence() == "A beam of width 2 finds the best path."
    assert view(width=1).sentence() == "A beam of width 1 does not find the best path: it drops “b” at step 1."
    assert view(width=1).paths() == view().paths(width=1)
    assert view().paths(width=1)["beam"] == paths["greedy"]


def test_the_table_is_the_search_as_text():
    rows = [
        ("step", "hypothesis", "log p", "sum", "fate"),
        ("1", "␣a", "−0.511", "−0.511", "kept"),
        ("1", "b", "−0.916", "−0.916", "kept"),
        ("2", "be", "−0.105", "−1.022", "kept, ended"),
        ("2", "␣ac", "−0.916", "−1.427", "kept, ended"),
        ("2", "␣ad", "−1.050", "−1.561", "dropped, ended"),
        ("2", "b↵", "−2.303", "−3.219", "dropped, ended"),
    ]
    assert view().table() == rows
    assert view().table(2) == [rows[0], *rows[3:]]
    assert [row[1] for row in view().table(2, width=1)] == ["hypothesis", "␣ac", "␣ad"]


def test_what_has_ended_waits_among_the_others():
    made = view(ENDING)
    assert made.table(2)[1:] == [
        ("2", ".", "–", "−1.204", "kept, ended"), ("2", "xy", "−0.693", "−1.386", "kept"),
        ("2", "x.", "−2.303", "−2.996", "dropped, ended"),
    ]  # fmt: skip
    assert [row[1] for row in made.table(3)[1:]] == [".", "xyz", "xyw"]
    assert len(made.table()) == 1 + 2 + 3 + 3
    assert made.paths()["greedy"][0] == "xyz"


def test_a_length_power_favours_what_is_longer():
    made = view(ENDING)
    assert made.paths()["beam"] == made.paths()["best"] == (".", pytest.approx(math.log(0.3), abs=1e-6))
    assert made.paths(length_power=1)["best"] == ("xyz", pytest.approx(math.log(0.2), abs=1e-6))
    assert view(ENDING, length_power=1).table(3) == made.table(3, length_power=1)
    assert made.table(3, length_power=1)[:3] == [
        ("step", "hypothesis", "log p", "sum", "score", "fate"),
        ("3", "xyz", "−0.223", "−1.609", "−0.536", "kept, ended"),
        ("3", "xyw", "−1.609", "−2.996", "−0.999", "kept, ended"),
    ]


def test_where_the_best_path_is_lost_is_told():
    tree = dict(TREE) | {(0,): logs(("c", 0.7), ("d", 0.3)), (1,): logs(("e", 0.5), ("f", 0.5)),
                         (1, 1): logs(("g", 1)), (0, 0): logs(("h", 0.2)), (0, 1): logs(("i", 0.2)),
                         (1, 0): logs(("j", 0.2))}  # fmt: skip
    # sums after two steps: ac 0.42, be 0.2, bf 0.2, ad 0.18; bfg 0.2 is the best path
    assert view(tree).sentence() == "A beam of width 2 does not find the best path: it drops “bf” at step 2."
    assert view(tree).paths()["best"][0] == "bfg"


def test_of_equals_the_first_stay():
    tree = {(): logs(("a", 0.25), ("b", 0.25), ("c", 0.25), ("d", 0.25))}
    assert [row[1] for row in view(tree, width=3).table()[1:4]] == ["a", "b", "c"]
    assert view(tree).paths()["best"][0] == "a"


def test_a_beam_is_that_of_beam_search_in_a_whole_vocabulary():
    """With the b likeliest tokens of each path, a beam of b or less finds what it finds among all 11."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(vocab_size=11, context_length=16, d_model=16, n_heads=2, tie_embeddings=False))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(5)
    model.eval()
    stop, branches, depth, prompt = 9, 4, 4, torch.tensor([[1, 2]])
    tree, level = {}, {(): prompt}
    with torch.no_grad():
        for _ in range(depth):
            below = {}
            for path, ids in level.items():
                top = model(ids)[0, -1].log_softmax(-1).topk(branches)
                tree[path] = [(f"{i} ", p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
                below |= {(*path, n): torch.cat([ids, i.view(1, 1)], dim=1) for n, i in enumerate(top.indices)
                          if i != stop}  # fmt: skip
            level = below
    made = BeamView("1 2", tree)
    found = set()
    for width, power in itertools.product(range(1, branches + 1), (0, 0.5, 1)):
        ids, sums = beam_search(model, prompt, depth, width=width, stop=stop, length_power=power)
        text, total = made.paths(width=width, length_power=power)["beam"]
        expected = ids[0, 2:].tolist()
        expected = expected[: expected.index(stop) + 1] if stop in expected else expected
        assert text == "".join(f"{i}␣" for i in expected)
        assert total == pytest.approx(float(sums[0]), abs=1e-4)
        found.add(text)
    assert len(found) > 2


def test_the_best_path_is_the_best_of_all():
    random = np.random.default_rng(0)
    for _ in range(20):
        tree, sums, level = {}, {(): 0.0}, [()]
        for _ in range(3):
            for path in level:
                p = np.sort(random.dirichlet([1, 1, 1, 1]))[:0:-1]
                tree[path] = [(f"{i}", float(np.log(x))) for i, x in enumerate(p)]
                sums |= {(*path, i): sums[path] + float(np.log(x)) for i, x in enumerate(p)}
            level = [(*path, i) for path in level for i in range(3)]
        best = max(level, key=sums.get)
        assert view(tree).paths()["best"][0] == "".join(map(str, best))
        found = view(tree).paths()["beam"][0] == "".join(map(str, best))
        assert view(tree).sentence().startswith("A beam of width 2 finds" if found else "A beam of width 2 does not")


def test_roundings_of_zero_are_taken():
    made = view({(): [("a", 1e-6)], (0,): [("b", np.float32(-0.0))]}, width=1)
    assert np.frombuffer(made.packed, "<f4").tolist() == [0, 0]
    assert made.table()[1] == ("1", "a", "0.000", "0.000", "kept")


def test_the_most_is_taken():
    level, tree = [()], {}
    for _ in range(4):
        tree |= {path: logs(*[(c, 0.2) for c in "abcde"]) for path in level}
        level = [(*path, i) for path in level for i in range(5)]
    made = view(tree, width=5)
    assert len(made.tokens) == 780
    deep = {(0,) * n: logs(("a", 0.5)) for n in range(5)}
    assert len(view(deep, width=1).table()) == 6
    tree |= {(0, 0, 0, i): logs(*[(c, 0.2) for c in "abcde"]) for i in range(5)}
    with pytest.raises(ValueError, match="more than 800 tokens: take fewer branches or steps"):
        view(tree)


def test_the_repr_is_the_same_every_time():
    assert repr(view()) == "BeamView(tokens=6, width=2)"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, r"must be a dict that holds at \(\) the tokens after the prompt"),
        ({(): []}, r"must be a dict that holds at \(\)"),
        ({(0,): logs(("a", 0.5))}, r"must be a dict that holds at \(\)"),
        ([("a", -1)], "must be a dict"),
        (TREE | {(2,): logs(("a", 0.5))}, r"does not lead to the path \(2,\): there is no such token"),
        (TREE | {(0, 0, 1): []}, r"does not lead to the path \(0, 0, 1\)"),
        (TREE | {0: logs(("a", 0.5))}, "does not lead to the path 0"),
        ({(): logs(*[(c, 0.1) for c in "abcdef"])}, r"6 tokens after the path \(\): give at most 5"),
        ({(0,) * n: logs(("a", 0.5)) for n in range(6)}, r"\(0, 0, 0, 0, 0\) goes on: .* at most 5 steps deep"),
        ({(): [("a", -1.0), "b"]}, r"after the path \(\) stands 'b': give pairs"),
        ({(): [(7, -1.0)]}, r"stands \(7, -1.0\): give pairs of a token, as a string"),
        ({(): [("a", -1.0, 3)]}, "give pairs"),
        ({(): [("a", 0.5)]}, r"after the path \(\) are not log-probabilities, .*: \[0.5\]"),
        ({(): [("a", float("nan"))]}, "are not log-probabilities"),
        ({(): [("a", -1.0), ("b", -math.inf)]}, "are not log-probabilities, finite"),
        ({(): [("a", -0.1), ("b", -0.2)]}, r"of at most 1 together: \[-0.1, -0.2\]"),
        ({(): [("a", -2.0), ("b", -1.0)]}, r"likeliest first, got \[-2.0, -1.0\]"),
    ],
)
def test_what_is_no_tree_is_refused(tree, message):
    with pytest.raises(ValueError, match=message):
        view(tree)


def test_a_prompt_is_a_text():
    with pytest.raises(ValueError, match=r"the prompt is \[1, 2\]: give it as a string"):
        BeamView([1, 2], TREE)


@pytest.mark.parametrize(("name", "value", "message"), [
    ("width", 0, "width must be from 1 to 2, the most tokens that a path has, got 0"),
    ("width", 3, "got 3"),
    ("length_power", -0.1, "length_power must be from 0 to 1, got -0.1"),
    ("length_power", 1.1, "got 1.1"),
    ("length_power", math.nan, "got nan"),
])  # fmt: skip
def test_settings_outside_their_range_are_refused_everywhere(name, value, message):
    with pytest.raises(ValueError, match=message):
        view(**{name: value})
    made = view()
    with pytest.raises(ValueError, match=message):
        setattr(made, name, value)
    for method in (made.table, made.paths, made.sentence):
        with pytest.raises(ValueError, match=message):
            method(**{name: value})


@pytest.mark.parametrize("step", [0, 6])
def test_a_kernel_sets_a_step_that_there_may_be(step):
    made = view()
    made.step = 5
    with pytest.raises(ValueError, match=f"step must be from 1 to 5, got {step}"):
        made.step = step


@pytest.mark.parametrize("step", [0, 3])
def test_there_is_no_table_of_what_is_not_there(step):
    with pytest.raises(ValueError, match=f"there is no step {step}: a beam of width 2 makes steps 1 to 2"):
        view().table(step)


def test_a_width_is_a_whole_number():
    with pytest.raises(traitlets.TraitError):
        view().width = 1.5
