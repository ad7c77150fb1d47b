"""AttentionView in a page without a kernel: a small book of its own, built as the real one is, opened in a browser.

Its tokens are as hostile as tokens can be; its widget has layers, heads, more keys than queries, and Chinese.
"""

import re

import pytest

from bookformer.tokenizers import visible

HOSTILE = "</SCRIPT><img src=x onerror=window.hacked=1>"
CODE = f"""
import torch
import ipywidgets
from bookformer.widgets import AttentionView
queries = ["<script>", '"', " the", "\\n"]
keys = ["语言", "模型", {HOSTILE!r}, "</script>", "\\u202e"]
weights = (3 * torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))).softmax(-1)
view = AttentionView(weights, queries, keys, layer_names=["early", {HOSTILE!r}])
slider = ipywidgets.IntSlider(max=2, description="head")
ipywidgets.jslink((slider, "value"), (view, "head"))
ipywidgets.VBox([slider, view])
"""
EXACT = 'AttentionView(weights[:1, :1], queries, keys, exact=True, view="lines", query=1)'
WIDE = "AttentionView(torch.eye(300)[None, None].expand(1, 12, 300, 300), ['x'] * 300, head='all')"
CODES = [CODE, EXACT, WIDE]
READY = (".attn-status", 3)


def status(page, n=0):
    return page.locator(".attn-status").nth(n).inner_text()


def picture(page):
    return page.locator(".attn-map canvas").first.evaluate("canvas => canvas.toDataURL()")


def test_hostile_tokens_are_text(page):
    shown = page.locator(".attn").first.locator(".attn-token").all_inner_texts()
    assert shown[:9] == ["语言", "模型", visible(HOSTILE), "</script>", "⟨202E⟩", "<script>", '"', "␣the", "↵"]
    assert page.locator(".attn img, .attn script").count() == 0
    assert page.locator("img[src=x]").count() == 0
    assert HOSTILE in page.get_by_label("Layer").inner_text()


def test_the_status_tells_the_row_in_words(page):
    assert status(page).startswith("Query “<script>” (0) attends to “")
    assert sum(map(float, re.findall(r"\d\.\d\d\b", status(page)))) == pytest.approx(1, abs=0.03)


def test_exact_weights_are_told_to_four_decimals(page):
    numbers = re.findall(r"\d\.\d+", status(page, 1))
    assert {len(number) for number in numbers} == {6}
    assert sum(map(float, numbers)) == pytest.approx(1, abs=3e-4)


def test_arrow_keys_choose_query_and_key(page):
    figure = page.locator(".attn-figure").first
    figure.focus()
    before = picture(page)
    figure.press("ArrowDown")
    assert status(page).startswith('Query “"” (1) attends to')
    assert picture(page) != before
    figure.press("ArrowRight")
    figure.press("ArrowRight")
    assert status(page).startswith('Query “"” (1) gives key “模型” (1) a weight of')
    figure.press("Escape")
    assert "attends to" in status(page)
    figure.press("End")
    assert status(page).startswith("Query “↵” (3)")
    figure.press("ArrowDown")  # there is nothing below
    assert status(page).startswith("Query “↵” (3)")
    figure.press("Home")
    assert status(page).startswith("Query “<script>” (0)")


def test_keys_with_a_modifier_are_left_to_the_browser(page):
    figure = page.locator(".attn-figure").first
    figure.focus()
    figure.press("Control+ArrowDown")
    assert "(0) attends to" in status(page)


def test_the_mouse_previews_and_a_click_chooses(page):
    canvas = page.locator(".attn-map canvas").first
    box = canvas.bounding_box()
    cell = box["height"] / 4
    canvas.hover(position={"x": 1.5 * cell, "y": 2.5 * cell})
    assert status(page).startswith("Query “␣the” (2) gives key “模型” (1)")
    page.mouse.move(0, 0)
    assert status(page).startswith("Query “<script>” (0) attends to")
    canvas.click(position={"x": 1.5 * cell, "y": 2.5 * cell})
    page.mouse.move(0, 0)
    assert status(page).startswith("Query “␣the” (2) gives key “模型” (1)")
    canvas.click(position={"x": 1.5 * cell, "y": 2.5 * cell})  # a second click lets go of the key
    page.mouse.move(0, 0)
    assert status(page).startswith("Query “␣the” (2) attends to")
    page.locator(".attn-token[data-query='3']").first.click()
    page.mouse.move(0, 0)
    assert status(page).startswith("Query “↵” (3) attends to")


def test_layer_and_head_change_the_picture(page):
    pictures = [picture(page)]
    page.get_by_label("Layer").select_option(HOSTILE)
    pictures.append(picture(page))
    for head in ("1", "2", "mean"):
        page.get_by_label("Head").first.select_option(head)
        pictures.append(picture(page))
    assert len(set(pictures)) == 5


def test_the_linked_slider_chooses_the_head(page):
    before = picture(page)
    handle = page.locator(".noUi-handle").first
    handle.focus()
    handle.press("ArrowRight")
    assert page.get_by_label("Head").first.input_value() == "1"
    assert picture(page) != before


def test_all_heads_stand_side_by_side_and_one_can_be_chosen(page):
    page.get_by_label("Head").first.select_option("all")
    heads = page.locator(".attn").first.get_by_role("button", name="alone")
    assert heads.count() == 3
    assert status(page).startswith("All heads of this layer")
    assert len({canvas.evaluate("c => c.toDataURL()") for canvas in heads.locator("canvas").all()}) == 3
    heads.nth(2).focus()
    heads.nth(2).press("Enter")
    assert page.get_by_label("Head").first.input_value() == "2"
    assert page.evaluate("document.querySelector('.attn').contains(document.activeElement)")


def test_lines_join_queries_and_keys(page):
    widget = page.locator(".attn").first
    widget.get_by_role("button", name="Lines").click()
    assert widget.locator("svg line.on").count() > 0
    heavy = [float(line.get_attribute("stroke-opacity")) for line in widget.locator("svg line.on").all()]
    faint = [float(line.get_attribute("stroke-opacity")) for line in widget.locator("svg line:not(.on)").all()]
    assert min(heavy) > max(faint)
    ends = {line.get_attribute("y1") for line in widget.locator("svg line.on").all()}
    widget.locator(".attn-token[data-query='2']").click()
    assert {line.get_attribute("y1") for line in widget.locator("svg line.on").all()} != ends
    assert status(page).startswith("Query “␣the” (2)")


def test_many_large_heads_are_drawn(page):
    assert page.locator(".attn").nth(2).get_by_role("button", name="alone").count() == 12


def test_it_is_labelled_for_screen_readers(page):
    figure = page.locator(".attn-figure").first
    assert "Arrow up and down choose a query" in figure.get_attribute("aria-label")
    assert page.locator(".attn-status").first.get_attribute("role") == "status"
    assert page.get_by_role("button", name="Heatmap").first.get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_theme(opened, theme):
    page = opened(theme=theme, width=375).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    light = page.locator(".attn-status").first.evaluate("node => getComputedStyle(node).color").replace(" ", "")
    shade = sum(int(c) for c in light.removeprefix("rgb(").rstrip(")").split(",")[:3])
    assert (shade < 300) == (theme == "light")
