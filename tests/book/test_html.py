"""The built book in a real browser, from a server and from a folder: complete, quiet, and asking nothing of anybody."""

import re

import pytest

PAGES = ["book/index", "book/articles", "book/notation", "book/glossary", "book/references", "notebooks/04-attention"]
CHAPTER = "notebooks/04-attention"


@pytest.fixture(params=["http", "file"])
def base(request, html, served):
    return served(html) if request.param == "http" else f"file://{html}"


def test_every_page_is_here(html):
    built = {str(path.relative_to(html).with_suffix("")) for path in html.rglob("*.html")}
    built = {page for page in built if not page.startswith("_static/")}
    assert built - set(PAGES) == {"index", "search", "genindex"}


@pytest.mark.parametrize("page", [*PAGES, "search"])
def test_a_page_asks_no_other_host_and_does_not_complain(base, open_page, page):
    watched = open_page(f"{base}/{page}.html", widgets=2 if page == CHAPTER else 0)
    watched.page.wait_for_load_state("networkidle")
    assert watched.elsewhere() == []
    assert watched.complaints == []
    assert len(watched.asked) > 5


def test_mathematics_is_rendered(base, open_page):
    page = open_page(f"{base}/{CHAPTER}.html", widgets=2).page
    page.wait_for_selector("mjx-container svg", state="attached")
    assert page.locator("mjx-container").count() > 50
    assert page.locator("mjx-merror, mjx-container [data-mjx-error]").count() == 0
    page.evaluate("document.querySelectorAll('article pre, article code').forEach((node) => node.remove())")
    text = page.locator("article").inner_text()
    assert "$" not in text
    assert "\\" not in text


def test_every_figure_has_a_text(html):
    text = (html / f"{CHAPTER}.html").read_text()
    images = re.findall(r"<img[^>]*_images[^>]*>", text)
    assert len(images) == 5
    assert all(re.search(r'alt="[^"]{40,}"', image) for image in images)


def picture(page, n):
    return page.locator(".attn-map canvas").nth(n).evaluate("canvas => canvas.toDataURL()")


def test_the_slider_and_the_widget_move_together(base, open_page):
    page = open_page(f"{base}/{CHAPTER}.html", widgets=2).page
    status = page.locator(".attn-status").first
    assert "Query “↑” (2) attends to “↑” (1) 0.96" in status.inner_text()
    before = picture(page, 0)
    handle = page.locator(".noUi-handle").first
    handle.focus()
    handle.press("ArrowRight")
    assert "Query “↖” (3) attends to" in status.inner_text()
    assert picture(page, 0) != before
    figure = page.locator(".attn-figure").first
    figure.focus()
    figure.press("ArrowDown")
    assert "Query “←” (4) attends to “←” (2) 0.98" in status.inner_text()
    assert page.locator(".widget-readout").first.inner_text() == "4"


def test_the_moments_of_training_can_be_chosen_and_a_click_reads_a_cell(base, open_page):
    page = open_page(f"{base}/{CHAPTER}.html", widgets=2).page
    trained = picture(page, 1)
    page.get_by_label("Layer").select_option("after 0 steps")
    assert picture(page, 1) != trained
    page.get_by_label("Layer").select_option("after 1000 steps")
    assert picture(page, 1) == trained
    canvas = page.locator(".attn-map canvas").nth(1)
    canvas.click(position={"x": 3, "y": 3})
    page.mouse.move(0, 0)
    assert page.locator(".attn-status").nth(1).inner_text() == "Query “T” (0) gives key “T” (0) a weight of 1.00."
    assert picture(page, 1) != trained


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_legible_and_no_wider_than_the_screen(html, open_page, page, theme, width):
    watched = open_page(f"file://{html}/{page}.html", theme=theme, width=width, widgets=2 if page == CHAPTER else 0)
    assert watched.page.evaluate("document.documentElement.dataset.theme") == theme
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    for place in ["article", "article .attn-status", "article blockquote"]:
        for element in watched.page.locator(place).all()[:2]:
            assert contrast(element) >= 4.5, place


def contrast(element):
    """The contrast of an element's text to the ground that shows behind it, as WCAG counts it."""
    colours = element.evaluate(
        """node => {
          const paint = (colour) => {
            const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            pen.fillStyle = colour;
            pen.fillRect(0, 0, 1, 1);
            return [...pen.getImageData(0, 0, 1, 1).data];
          };
          let ground = node;
          while (ground && paint(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
          return [getComputedStyle(node).color, getComputedStyle(ground ?? document.body).backgroundColor].map(paint);
        }"""
    )
    dark, light = sorted(luminance(colour) for colour in colours)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    parts = [c / 255 for c in colour[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colab_and_download_stand_on_the_chapter(html, root):
    text = (html / f"{CHAPTER}.html").read_text()
    assert re.search(
        r'href="https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/main/notebooks/04-attention\.ipynb"',
        text,
    )
    assert f'href="../_sources/{CHAPTER}.ipynb"' in text
    stored = (root / f"{CHAPTER}.ipynb").read_bytes()
    assert (html / "_sources" / f"{CHAPTER}.ipynb").read_bytes() == stored


def test_search_finds_a_word_of_the_chapter(base, open_page):
    page = open_page(f"{base}/search.html?q=jacobian").page
    page.wait_for_selector("ul.search li a", timeout=10_000)
    assert "Attention" in page.locator("ul.search").inner_text()


def test_on_paper_solutions_stand_open(html, open_page):
    page = open_page(f"file://{html}/{CHAPTER}.html", widgets=2).page
    solution = page.get_by_text("18 is one fifth of 10")
    assert not solution.is_visible()
    page.emulate_media(media="print")
    assert solution.is_visible()
