"""The recorder notes what nbval's kernels did, and sees every spoilt byte and trait."""

import base64
import copy

import nbformat
import numpy as np
import pytest
import recorder
from nbval.plugin import IPyNbFile

import notebooks

CELLS = [
    """
import anywidget, numpy as np, traitlets
from bookformer.widgets import AttentionView
class Counts(anywidget.AnyWidget):
    packed = traitlets.Bytes().tag(sync=True)
    name = traitlets.Unicode().tag(sync=True)
weights = np.full((1, 1, 2, 2), 0.5)
""",
    "view = AttentionView(weights, ['a', 'b'])\nexact = AttentionView(weights.astype('f4'), ['a', 'b'], exact=True)",
    "counts = Counts(packed=bytes([7, 8]), name='a')\ncounts.name, view.query = 'b', 1\nsum(range(3 * 10**7))",
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A small notebook with widgets, as `make notebooks` stores it."""
    folder = tmp_path_factory.mktemp("small")
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    notebook = notebooks.run(nbformat.v4.new_notebook(cells=cells), folder)
    notebooks.write(notebook, folder / "small.ipynb")
    return folder / "small.ipynb"


@pytest.mark.last
def test_what_is_marked_as_last_runs_last(request):
    marked = [item.get_closest_marker("last") is not None for item in request.session.items]
    assert marked == sorted(marked)


def run_with_nbval(request, path, cells=None):
    file = IPyNbFile.from_parent(request.session, path=path)
    file.setup()
    for cell in list(file.collect())[:cells]:
        cell.runtest()
    file.teardown()


def test_what_nbval_ran_is_what_is_stored(request, path):
    run_with_nbval(request, path)
    stored, again = recorder.states(notebooks.read(path)), recorder.RUNS.pop(str(path))
    assert len([model for model in stored.values() if "packed" in recorder.buffers(model)]) == 3
    assert stored == again.states
    assert 0.5 < again.seconds < 60


def test_half_a_run_is_not_recorded(request, path):
    run_with_nbval(request, path, cells=2)
    assert str(path) not in recorder.RUNS


def spoil(states, which, change):
    """A copy of the states in which the n-th model with bytes has other bytes."""
    states = copy.deepcopy(states)
    buffer = [model["buffers"][0] for model in states.values() if "packed" in recorder.buffers(model)][which]
    buffer["data"] = base64.b64encode(change(base64.b64decode(buffer["data"]))).decode()
    return states


def shift(by, kind):
    def change(data):
        numbers = np.frombuffer(data, kind).copy()
        numbers[-1] += by
        return numbers.tobytes()

    return change


VIEW, EXACT, COUNTS = range(3)


@pytest.mark.parametrize(
    ("which", "change"),
    [
        (VIEW, shift(2, np.uint8)),
        (VIEW, lambda data: data[:-1]),
        (EXACT, shift(0.001, "<f4")),
        (EXACT, shift(np.nan, "<f4")),
        (EXACT, lambda data: data[:-4]),
        (COUNTS, shift(1, np.uint8)),
    ],
)
def test_spoilt_bytes_are_seen(path, which, change):
    stored = recorder.states(notebooks.read(path))
    (found,) = recorder.differences(stored, spoil(stored, which, change))
    assert found.endswith("packed differs when run again")


@pytest.mark.parametrize(("which", "change"), [(VIEW, shift(1, np.uint8)), (EXACT, shift(1e-7, "<f4"))])
def test_rounding_is_not_a_difference(path, which, change):
    stored = recorder.states(notebooks.read(path))
    spoilt = spoil(stored, which, change)
    assert spoilt != stored
    assert list(recorder.differences(stored, spoilt)) == []


def test_spoilt_traits_and_lost_models_and_lost_bytes_are_seen(path):
    stored = recorder.states(notebooks.read(path))
    again = copy.deepcopy(stored)
    next(model for model in again.values() if "query_tokens" in model["state"])["state"]["query"] = 0
    assert [
        found.endswith("its traits are others when run again") for found in recorder.differences(stored, again)
    ] == [True]
    again = copy.deepcopy(stored)
    again.popitem()
    assert [found.startswith("models [") for found in recorder.differences(stored, again)] == [True]
    assert list(recorder.differences(stored, {}))
    assert list(recorder.differences({}, stored))
    again = copy.deepcopy(stored)
    next(model for model in again.values() if "buffers" in model).pop("buffers")
    assert [found.endswith("are [] when run again") for found in recorder.differences(stored, again)] == [True]


def test_guesses_are_missed_and_not_compared():
    def model(guesses, packed=b"\0\0\0\0"):
        parts = {"packed": packed} | guesses
        bytes_of = [{"path": [name], "data": base64.b64encode(data).decode()} for name, data in parts.items()]
        return {"m": {"state": {"exact": True}, "buffers": bytes_of}}

    stored = model({"guesses": b"abc"})
    assert list(recorder.differences(stored, model({"guesses": b"abcd"}))) == []
    assert list(recorder.differences(stored, model({}))) != []
    assert list(recorder.differences(stored, model({"guesses": b"abc"}, b"\0\0\x80\x3f"))) != []


def test_a_model_that_a_tagged_cell_shows_may_have_other_bytes_and_not_other_traits():
    stored = {"m": {"state": {"exact": True}, "buffers": []}}
    other = {"m": {"state": {"exact": False}, "buffers": []}}
    assert list(recorder.differences(stored, other))
    assert list(recorder.differences(stored, other, {"m"})) == []
    assert list(recorder.differences(stored, {"m": {"state": {}, "buffers": []}}, {"m"}))
    assert list(recorder.differences(stored, {}, {"m"}))


def test_only_tagged_cells_show_such_models():
    cell = nbformat.v4.new_code_cell(
        outputs=[nbformat.v4.new_output("display_data", {notebooks.VIEW: {"model_id": "a"}})]
    )
    notebook = nbformat.v4.new_notebook(cells=[cell])
    assert recorder.loose(notebook) == set()
    cell.metadata["tags"] = ["nbval-ignore-output"]
    assert recorder.loose(notebook) == {"a"}
