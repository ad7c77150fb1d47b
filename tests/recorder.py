"""What nbval does not compare: while it runs a notebook, its widgets and its processor time are noted here.

So that a chapter is run once in a whole test run, and not once more for its widgets.
"""

import base64
from typing import NamedTuple

import nbformat
import nbval.plugin
import numpy as np
import psutil
from nbclient import NotebookClient

import notebooks


class Run(NamedTuple):
    """One whole run of a notebook."""

    states: dict  # what each widget's model holds, by its number in the order in which they were made
    seconds: float  # processor time of its kernel


RUNS: dict[str, Run] = {}  # by the notebook's path; only notebooks whose cells were all run


class RecordingKernel(nbval.plugin.RunningKernel):
    """A kernel whose messages about widgets are also given to nbclient, which knows what they mean."""

    def __init__(self, *arguments, **options):
        self.client = NotebookClient(nbformat.v4.new_notebook())
        self.cells = 0
        super().__init__(*arguments, **options)

    def execute_cell_input(self, *arguments, **options):
        self.cells += 1
        return super().execute_cell_input(*arguments, **options)

    def get_message(self, stream, timeout=None):
        message = super().get_message(stream, timeout)
        if message["msg_type"].startswith("comm_"):
            self.client.handle_comm_msg([], message, 0)
        return message

    def stop(self):
        null = self.km._launch_args["stderr"]  # which nbval opens and forgets
        super().stop()
        null.close()

    def recorded(self):
        times = psutil.Process(self.km.provisioner.pid).cpu_times()
        self.client.set_widgets_metadata()
        return Run(states(notebooks.name_models(self.client.nb)), sum(times[:4]))  # its own, and its children's


def record(patch):
    """From now on, note what nbval runs. `patch` is a pytest.MonkeyPatch."""
    teardown = nbval.plugin.IPyNbFile.teardown

    def recording_teardown(file):
        kernel = file.kernel
        if kernel is not None and kernel.is_alive() and kernel.cells == code_cells(file.nb):
            RUNS[str(file.path)] = kernel.recorded()
        teardown(file)

    patch.setattr(nbval.plugin, "RunningKernel", RecordingKernel)
    patch.setattr(nbval.plugin.IPyNbFile, "teardown", recording_teardown)


def code_cells(notebook):
    return sum(cell.cell_type == "code" for cell in notebook.cells)


def states(notebook):
    """What a notebook stores of its widgets."""
    return notebook.metadata.get("widgets", {}).get(notebooks.STATE, {}).get("state", {})


def loose(notebook):
    """The models shown by cells whose outputs depend on training, which another processor's rounding changes."""
    cells = [c for c in notebook.cells if "nbval-ignore-output" in c.metadata.get("tags", [])]
    shown = [output.get("data", {}).get(notebooks.VIEW) for cell in cells for output in cell.get("outputs", [])]
    return {view["model_id"] for view in shown if view}


def differences(stored, again, loose=()):
    """In what two runs' widgets differ. Bytes may differ by rounding if the trait `exact` tells what they are.

    Of the models named in `loose` only the names of traits and bytes are compared: the page's checks hold the rest.

    Of a LossView's guesses only the presence is compared: rounding decides which of two nearly equal ones is the
    fifth. The widget has refused any that contradict its losses, and those are compared.
    """
    if list(stored) != list(again):
        yield f"models {list(stored)} are {list(again)} when run again"
        return
    for key, model in stored.items():
        if key in loose:
            if (
                again[key]["state"].keys() != model["state"].keys()
                or buffers(again[key]).keys() != buffers(model).keys()
            ):
                yield f"model {key}: its traits have other names when run again"
            continue
        if again[key]["state"] != model["state"]:
            yield f"model {key}: its traits are others when run again"
            continue
        ours, theirs = buffers(model), buffers(again[key])
        if ours.keys() != theirs.keys():
            yield f"model {key}: {sorted(ours)} are {sorted(theirs)} when run again"
            continue
        for name in ours:
            if name != "guesses" and not close(ours[name], theirs[name], model["state"].get("exact")):
                yield f"model {key}: {name} differs when run again"


def buffers(model):
    return {"/".join(b["path"]): base64.b64decode(b["data"]) for b in model.get("buffers", [])}


def close(ours, theirs, exact):
    """Whether two buffers are the same: float32 if `exact`, 8-bit numbers if it is False, anything if it is None."""
    if exact is None or len(ours) != len(theirs):
        return ours == theirs
    ours, theirs = (np.frombuffer(data, "<f4" if exact else np.uint8).astype(float) for data in (ours, theirs))
    room = np.ptp(ours) / 255 + 1e-6 * np.abs(ours).max() if exact else 1
    return bool(np.abs(ours - theirs).max(initial=0) <= room)
