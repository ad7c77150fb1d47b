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
view = AttentionView(np.random.default_rng(0).dirichlet([1] * 4, (2, 3, 4)), [" the", "<script>", "语言", "\n"])
slider = IntSlider(max=3)
jslink((slider, "value"), (view, "query"))
VBox([slider, view])"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of the notebook in a JupyterLab of its own, which knows no settings of the user's."""
    home = tmp_path_factory.mktemp("lab")
    cells = [nbformat.v4.new_code_cell(source) for source in (MAKE, 'print("query", view.query, "head", view.head)')]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), home / "view.ipynb")
    (home / "labconfig").mkdir()
    quiet = '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}'  # no news, no updates
    (home / "labconfig/page_config.json").write_text(quiet)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    env |= dict.fromkeys(["HOME", "USERPROFILE", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"], str(home))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port, token = free.getsockname()[1], secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--notebook-dir={home}"]
    command += ["--allow-root"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with open(home / "log", "w") as log, subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log) as server:
        try:
            for _ in range(300):
                with contextlib.suppress(OSError):
                    direct.open(f"http://127.0.0.1:{port}/api", timeout=5).close()
                    break
                assert server.poll() is None, (home / "log").read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/lab/tree/view.ipynb?token={token}"
        finally:
            server.terminate()  # it ends its kernels first
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()


@pytest.fixture(scope="module")
def notebook(lab, browser):
    """The page with every cell run, and a list of what went wrong: errors, and requests that leave this machine."""
    with contextlib.closing(browser.new_page()) as page:
        wrong = []
        page.on("pageerror", lambda error: wrong.append(f"{error}\n{error.stack}"))
        page.on("websocket", lambda opened: "://127.0.0.1:" in opened.url or wrong.append(opened.url))
        page.route(re.compile(r"https?://(?!127\.0\.0\.1:)"), lambda r: (wrong.append(r.request.url), r.abort()))
        page.add_locator_handler(page.locator(".jp-Dialog"), lambda: page.keyboard.press("Enter"))
        page.goto(lab)
        expect(page.locator("#jp-main-statusbar")).to_contain_text(re.compile(r"Python .*\| Idle"), timeout=60_000)
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


def test_keys_choose_a_token_and_leave_the_cells_alone(page):
    press(page, "ArrowDown", "Query “<script>” (1)")
    press(page, "ArrowRight", "key “␣the” (0)")
    press(page, "b", "key “␣the” (0)")  # which would make a new cell
    expect(page.locator(".jp-Notebook .jp-Cell").first).to_contain_class("jp-mod-active")


def test_another_head_is_another_picture_and_lines_are_lines(page):
    before = page.locator(".attn-map canvas").evaluate("(node) => node.toDataURL()")
    choose(page, 2, "Heatmap")
    page.wait_for_function("(before) => document.querySelector('.attn-map canvas').toDataURL() !== before", arg=before)
    choose(page, 2, "Lines")
    expect(page.locator(".attn svg line")).not_to_have_count(0)


def test_the_slider_the_picture_and_the_kernel_agree(page):
    choose(page, 1, "Heatmap")
    page.locator(".noUi-handle").press("ArrowRight")
    expect(page.locator(".attn-status")).to_contain_text("Query “<script>” (1)")
    press(page, "ArrowDown", "Query “语言” (2)")
    cell = page.locator(".jp-Notebook .jp-Cell").nth(1)
    for _ in range(10):  # a message to a widget may arrive after the request to run a cell
        cell.locator(".cm-content").press("Control+Enter")
        expect(cell.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\d"))
    expect(cell.locator(".jp-OutputArea-output")).to_have_text("query 2 head 1\n")


def test_the_text_follows_the_dark_theme(page):
    menu(page, "Settings", "Theme", "JupyterLab Dark")
    expect(page.locator(".attn-status")).to_have_css("color", "rgb(255, 255, 255)")
    expect(page.locator(".attn")).to_have_css("background-color", "rgba(0, 0, 0, 0)")  # no ground of its own
