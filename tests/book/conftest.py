"""A real browser, and pages that note what they ask for and complain of."""

import contextlib
import functools
import http.server
import shutil
import threading
from urllib.parse import urlparse

import nbformat
import pytest
from playwright.sync_api import sync_playwright

import environment
import notebooks

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=environment.find_browser(), args=FLAGS)
        yield browser
        browser.close()


class Watched:
    """A page, the addresses that it asked for, and its complaints."""

    def __init__(self, page):
        self.page, self.asked, self.complaints = page, [], []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)

    def elsewhere(self):
        """What was asked of any other host."""
        return [url for url in self.asked if urlparse(url).scheme in ("http", "https", "ws", "wss", "about")
                and urlparse(url).hostname != "127.0.0.1"]  # fmt: skip


@pytest.fixture
def open_page(browser):
    """A function that opens an address in a fresh page and waits until its widgets stand."""
    with contextlib.ExitStack() as stack:

        def open_page(url, *, theme="light", width=1280, height=900, widgets=0):
            context = stack.enter_context(
                contextlib.closing(browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme))
            )
            watched = Watched(context.new_page())
            watched.page.goto(url, wait_until="load")
            if widgets:
                found = "document.querySelectorAll('.cell_output [role=status]').length"  # each of ours has one
                watched.page.wait_for_function(f"{found} >= {widgets}")
            return watched

        yield open_page


@pytest.fixture(scope="session")
def served():
    """A function that serves a folder over http on this machine and returns its address."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    def serve(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def small_book(root, build, tmp_path_factory):
    """A function that makes a book of one page from a list of code cells, as the real one is built; its address."""

    def small_book(codes):
        folder = tmp_path_factory.mktemp("small")
        for name in ("tools", "book/assets"):
            shutil.copytree(root / name, folder / name)
        for name in ("_config.yml", "book/references.bib"):
            shutil.copy(root / name, folder / name)
        (folder / "_toc.yml").write_text("format: jb-book\nroot: notebooks/page\n")
        cells = [nbformat.v4.new_markdown_cell("# Page"), *map(nbformat.v4.new_code_cell, codes)]
        notebooks.write(notebooks.run(nbformat.v4.new_notebook(cells=cells), folder), folder / "notebooks/page.ipynb")
        return f"file://{build(folder)}/notebooks/page.html"

    return small_book


@pytest.fixture(scope="module")
def page_of(small_book, request):
    """The address of a page with the cells that a test file calls CODES."""
    return small_book(request.module.CODES)


@pytest.fixture
def opened(open_page, page_of, request):
    """A function that opens this page and waits until what READY selects is there as often as it says."""
    selector, times = request.module.READY

    def opened(**how):
        watched = open_page(page_of, **how)
        watched.page.wait_for_function(f"document.querySelectorAll({selector!r}).length >= {times}")
        return watched

    return opened


@pytest.fixture
def page(opened):
    """This page, which runs nothing that came as text, complains of nothing and asks no other host."""
    watched = opened()
    yield watched.page
    assert watched.page.evaluate("window.hacked") is None
    assert watched.complaints == []
    assert watched.elsewhere() == []


@pytest.fixture(scope="session")
def html(build, root):
    """The built book."""
    return build(root)
