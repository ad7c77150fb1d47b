"""AttentionView driven in a real JupyterLab with a kernel: keys and clicks in the browser, values in Python."""

import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from playwright.sync_api import expect

MAKE = r"""import numpy as np
from bookformer.widgets import AttentionView
from ipywidgets import IntSlider, VBox, jslink
weights = np.random.default_rng(0).dirichlet(np.ones(4), size=(2, 3, 4))
view = AttentionView(weights, [" the", "<script>", "语言", "\n"])
slider = IntSlider(max=3)
jslink((slider, "value"), (view, "query"))
VBox([slider, view])"""
ASK = 'print("query", view.query, "head", view.head)'
COLOURS = """(node) => {  // of a node's text, and of what lies behind it
  const text = getComputedStyle(node).color;
  while (getComputedStyle(node).backgroundColor === "rgba(0, 0, 0, 0)") node = node.parentElement;
  return [text, getComputedStyle(node).backgroundColor];
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of the notebook in a JupyterLab of its own, which knows no settings of the user's."""
    home = tmp_path_factory.mktemp("lab")
    cells = [nbformat.v4.new_code_cell(source) for source in (MAKE, ASK)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), home / "view.ipynb")
    (home / "config/labconfig").mkdir(parents=True)
    quiet = '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}'  # no news, no updates
    (home / "config/labconfig/page_config.json").write_text(quiet)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    env |= {"JUPYTER_CONFIG_DIR": f"{home}/config", "JUPYTER_DATA_DIR": f"{home}/data"}
    env |= {"HOME": str(home), "USERPROFILE": str(home)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port, token = free.getsockname()[1], secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--notebook-dir={home}"]
    command += ["--allow-root"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    with open(home / "log", "w") as log, subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/api", server, home / "log")
            yield f"http://127.0.0.1:{port}/lab/tree/view.ipynb?token={token}"
        finally:
            server.terminate()  # it ends its kernels first
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()


def wait_for(url, server, log):
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(300):
        with contextlib.suppress(OSError):
            return direct.open(url, timeout=5).close()
        assert server.poll() is None, log.read_text()
        time.sleep(0.2)
    pytest.fail(log.read_text())


@pytest.fixture(scope="module")
def notebook(lab, browser):
    """The page with every cell run, and a list of what went wrong: errors, and requests that leave this machine."""
    with contextlib.closing(browser.new_page()) as page:
        wrong = []
        page.on("pageerror", lambda error: wrong.append(f"{error}\n{error.stack}"))
        page.on("websocket", lambda opened: "://127.0.0.1:" in opened.url or wrong.append(opened.url))
        elsewhere = re.compile(r"https?://(?!127\.0\.0\.1:)")
        page.route(elsewhere, lambda route: (wrong.append(route.request.url), route.abort()))
        page.add_locator_handler(page.locator(".jp-Dialog"), lambda: page.keyboard.press("Enter"))
        page.goto(lab)
        ready = page.locator("#jp-main-statusbar").get_by_text(re.compile(r"^Python .*\| Idle$"))
        expect(ready).to_be_visible(timeout=60_000)
        menu(page, "Run", "Run All Cells")
        expect(page.locator(".attn")).to_be_visible(timeout=60_000)
        expect(page.locator(".jp-OutputArea-output").last).to_have_text("query 0 head 0\n")
        yield page, wrong


@pytest.fixture
def page(notebook):
    """The page with head 0 as a heatmap, query 0 and no key marked."""
    page, wrong = notebook
    choose(page, head=0, view="Heatmap")
    press(page, "Home", "Query “␣the” (0)")
    press(page, "Escape", "attends to")
    yield page
    assert wrong == []


def menu(page, *names):
    for name in names:
        page.locator("[class$=-itemLabel]").filter(has_text=re.compile(f"^{name}$")).click()


def choose(page, head, view):
    page.get_by_role("combobox", name="Head").select_option(str(head))
    page.get_by_role("button", name=view).click()


def press(page, key, sentence):
    page.locator(".attn-figure").press(key)
    expect(page.locator(".attn-status")).to_contain_text(sentence)


def test_tokens_are_shown_as_text(page):
    for token in ("␣the", "<script>", "语言", "↵"):
        expect(page.locator(".attn-figure").get_by_text(token, exact=True).first).to_be_visible()
    expect(page.locator(".attn script")).to_have_count(0)


def test_arrow_keys_choose_a_token_and_leave_the_cells_alone(page):
    press(page, "ArrowDown", "Query “<script>” (1)")
    press(page, "ArrowRight", "key “␣the” (0)")
    press(page, "ArrowDown", "Query “语言” (2)")
    expect(page.locator(".jp-Notebook .jp-Cell").first).to_contain_class("jp-mod-active")


def test_another_head_is_another_picture_and_lines_are_lines(page):
    before = page.locator(".attn-map canvas").evaluate("(node) => node.toDataURL()")
    for head, compared in ((2, "!=="), (0, "===")):
        choose(page, head, "Heatmap")
        drawn = f"(before) => document.querySelector('.attn-map canvas').toDataURL() {compared} before"
        page.wait_for_function(drawn, arg=before)
    choose(page, head, "Lines")
    expect(page.locator(".attn svg line")).not_to_have_count(0)


def test_the_slider_and_the_query_move_together(page):
    page.locator(".noUi-handle").press("ArrowRight")
    expect(page.locator(".attn-status")).to_contain_text("Query “<script>” (1)")
    press(page, "ArrowDown", "Query “语言” (2)")
    expect(page.locator(".widget-readout")).to_have_text("2")


def test_the_kernel_knows_what_was_chosen(page):
    choose(page, 1, "Heatmap")
    press(page, "ArrowDown", "Query “<script>” (1)")
    cell = page.locator(".jp-Notebook .jp-Cell").nth(1)
    for _ in range(10):  # a message to a widget may arrive after the request to run a cell
        cell.locator(".cm-content").press("Control+Enter")
        expect(cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\d"))
    expect(cell.locator(".jp-OutputArea-output")).to_have_text("query 1 head 1\n")


def test_text_stands_out_in_both_themes(page):
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        menu(page, "Settings", "Theme", theme)
        expect(page.locator("body")).to_have_attribute("data-jp-theme-name", theme)
        text, back = [sum(map(int, re.findall(r"\d+", c)[:3])) for c in page.locator(".attn-status").evaluate(COLOURS)]
        assert abs(text - back) > 400  # of 765
