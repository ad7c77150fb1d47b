"""The built book in a real browser, from a server and from a folder: complete, quiet, and asking nothing of anybody."""

import re

import pytest

import notebooks

PROSE = [f"book/{n}" for n in ("index", "articles", "notation", "glossary", "ledger", "benchmarks", "references")]
CHAPTERS = {f"notebooks/{path.stem}": path for path in sorted((notebooks.ROOT / "notebooks").glob("*.ipynb"))}
PAGES = [*PROSE, *CHAPTERS]
CHAPTER = "notebooks/04-attention"  # whose widgets are tried here


def views(notebook):
    """How many widgets of this library a notebook shows, each as often as it shows it."""
    state = notebook.metadata.get("widgets", {}).get(notebooks.STATE, {}).get("state", {})

    def ours(name):
        children = re.findall(r"IPY_MODEL_(\w+)", str(state[name]["state"].get("children", "")))
        return ("_esm" in state[name]["state"]) + sum(ours(child) for child in children)

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.data[notebooks.VIEW]["model_id"] for output in outputs if notebooks.VIEW in output.get("data", {})]
    return sum(ours(name) for name in shown)


WIDGETS = {page: views(notebooks.read(path)) for page, path in CHAPTERS.items()}


@pytest.fixture(params=["http", "file"])
def base(request, html, served):
    return served(html) if request.param == "http" else f"file://{html}"


def test_every_page_is_here(html):
    built = {str(path.relative_to(html).with_suffix("")) for path in html.rglob("*.html")}
    built = {page for page in built if not page.startswith("_static/")}
    assert built == {*PAGES, "index", "search", "genindex"}


def test_the_widgets_of_a_chapter_are_counted():
    assert WIDGETS[CHAPTER] == 2


@pytest.mark.parametrize("page", [*PAGES, "search"])
def test_a_page_asks_no_other_host_does_not_complain_and_shows_its_mathematics(base, open_page, page):
    watched = open_page(f"{base}/{page}.html", widgets=WIDGETS.get(page, 0))
    watched.page.wait_for_load_state("networkidle")
    assert watched.elsewhere() == []
    assert watched.complaints == []
    assert len(watched.asked) > 5
    assert watched.page.locator(".cell_output [role=status]").count() == WIDGETS.get(page, 0)
    watched.page.wait_for_function("!document.querySelector('.math:not(:has(mjx-container svg))')")
    assert watched.page.locator("mjx-merror, mjx-container [data-mjx-error]").count() == 0
    if page in CHAPTERS:
        assert watched.page.locator("mjx-container").count() > 5
        watched.page.evaluate(
            "document.querySelectorAll('article :is(pre, code, .jupyter-widgets)').forEach((x) => x.remove())"
        )
        text = watched.page.locator("article").inner_text()
        assert "$" not in text
        assert "\\" not in text


@pytest.mark.parametrize("page", CHAPTERS)
def test_every_figure_is_there_and_has_a_text(html, page):
    images = re.findall(r"<img[^>]*_images[^>]*>", (html / f"{page}.html").read_text())
    outputs = [output for cell in notebooks.read(CHAPTERS[page]).cells for output in cell.get("outputs", [])]
    assert len(images) == sum("image/png" in output.get("data", {}) for output in outputs)
    assert images
    assert all(re.search(r'alt="[^"]{40,}"', image) for image in images)


def picture(page, n):
    return page.locator(".attn-map canvas").nth(n).evaluate("canvas => canvas.toDataURL()")


def test_the_slider_and_the_widget_move_together(base, open_page):
    page = open_page(f"{base}/{CHAPTER}.html", widgets=WIDGETS[CHAPTER]).page
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
    page = open_page(f"{base}/{CHAPTER}.html", widgets=WIDGETS[CHAPTER]).page
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


def test_a_context_can_be_typed_and_its_probabilities_follow(html, open_page):
    name = "notebooks/01-n-grams"
    page = open_page(f"file://{html}/{name}.html", widgets=WIDGETS[name]).page
    status = page.locator(".ngram-status")
    assert status.inner_text().startswith("After “et␣z”: “w” 0.6124 = 0.4773 (order 5)")  # as the table below has it
    page.get_by_role("textbox", name="Context").fill("the qu")
    assert status.inner_text().startswith("After “e␣qu”: “e” 0.")
    page.locator(".ngram button").first.click()
    assert page.get_by_role("textbox", name="Context").input_value() == "the que"
    assert re.match(
        r"“.” 0\.\d{4} = 0\.\d{4} \(order 5\)", status.inner_text()
    )  # of the likeliest, which has the focus


def test_tokens_can_be_moved_and_schemes_of_distance_do_not_mind(html, open_page):
    name = "notebooks/06-positions"
    page = open_page(f"file://{html}/{name}.html", widgets=WIDGETS[name]).page
    status = page.locator(".pos-status")

    def told():
        return dict(re.findall(r"(learned|sinusoidal|relative|rotary|alibi|none) ([−-]?\d+\.\d+)", status.inner_text()))

    before = told()
    assert len(before) == 6
    page.get_by_role("slider").first.focus()
    page.keyboard.press("Shift+ArrowRight")
    assert status.inner_text().startswith("Query “h” at 13, key “t” at 12, 1 place back")
    changed = {scheme for scheme, score in told().items() if score != before[scheme]}
    assert changed == {"learned", "sinusoidal"}
    page.keyboard.press("ArrowRight")
    assert status.inner_text().startswith("Query “h” at 14, key “t” at 12, 2 places back")
    assert {"relative", "rotary", "alibi"} <= {s for s, score in told().items() if score != before[s]}


def test_heads_of_the_trained_model_can_be_read_one_by_one(html, open_page):
    name = "notebooks/05-multi-head-attention"
    page = open_page(f"file://{html}/{name}.html", widgets=WIDGETS[name]).page
    heads = page.get_by_role("button", name="alone")
    assert heads.count() == 4
    heads.nth(1).click()
    assert page.get_by_label("Head").input_value() == "1"
    assert page.locator(".attn-status").inner_text().startswith("Query “t” (12) attends to “")


def test_the_table_of_the_primer_says_what_follows(html, open_page):
    name = "notebooks/00-primer"
    page = open_page(f"file://{html}/{name}.html", widgets=WIDGETS[name]).page
    assert page.locator(".attn-status").inner_text().startswith("Query “q” (17) attends to “u” (21) 0.98")
    page.get_by_label("Layer").select_option("after 10 steps")
    assert "“u” (21) 0.98" not in page.locator(".attn-status").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_legible_and_no_wider_than_the_screen(html, open_page, page, theme):
    address, phone = f"file://{html}/{page}.html", {"width": 375, "height": 900}
    opened = open_page(address, theme=theme, width=1280, widgets=WIDGETS.get(page, 0)).page
    assert opened.evaluate("document.documentElement.dataset.theme") == theme
    assert opened.evaluate("document.documentElement.scrollWidth") <= 1280
    cut = "[...document.querySelectorAll('.cell_output div.output pre')].filter(e => e.scrollWidth > e.clientWidth + 1)"
    assert opened.evaluate(f"{cut}.map(e => e.textContent)") == []  # printed sentences break
    for place in ["article", "article [role=status]", "article blockquote"]:
        for element in opened.locator(place).all()[:4]:
            assert contrast(element) >= 4.5, place
    opened.set_viewport_size(phone)
    opened.wait_for_function("document.documentElement.scrollWidth <= 375")


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


@pytest.mark.parametrize("page", CHAPTERS)
def test_colab_and_download_stand_on_the_chapter(html, page):
    text = (html / f"{page}.html").read_text()
    colab = r"https://colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/main/"
    assert re.search(rf'href="{colab}{page}\.ipynb"', text)
    assert f'href="../_sources/{page}.ipynb"' in text
    assert (html / "_sources" / f"{page}.ipynb").read_bytes() == CHAPTERS[page].read_bytes()


def test_search_finds_a_word_of_the_chapter(base, open_page):
    page = open_page(f"{base}/search.html?q=jacobian").page
    page.wait_for_selector("ul.search li a", timeout=10_000)
    assert "Attention" in page.locator("ul.search").inner_text()


def test_on_paper_solutions_stand_open(html, open_page):
    page = open_page(f"file://{html}/{CHAPTER}.html", widgets=WIDGETS[CHAPTER]).page
    solution = page.get_by_text("18 is one fifth of 10")
    assert not solution.is_visible()
    page.emulate_media(media="print")
    assert solution.is_visible()
