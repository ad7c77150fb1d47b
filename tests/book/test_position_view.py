"""PositionView in a page without a kernel: a small book of its own, built as the real one is, opened in a browser.

Its first widget has a random scheme that depends on the distance alone, one that does not, and one of rounding noise;
its second has no mask, and names and tokens as hostile as they can be.
"""

import re

import pytest
import torch

from bookformer.tokenizers import visible

HOSTILE = "</SCRIPT><img src=x onerror=window.hacked=1>"
P = 32
CODE = f"""
import torch
from bookformer.widgets import PositionView
P = {P}
generator = torch.Generator().manual_seed(0)
i = torch.arange(P)
learned = torch.randn(P, P, generator=generator)
distance = torch.randn(2 * P - 1, generator=generator)[i[:, None] - i + P - 1]
noise = 2 + 1e-6 * torch.randn(P, P, generator=generator)
scores = torch.stack([learned, distance, noise])
"""
SHOW = "PositionView(scores, ['learned', 'relative', 'none'], query_token='bank', key_token='river', query=12, key=5)"
FREE = (
    f"PositionView(scores[:2], [{HOSTILE!r}, '模型'], query_token={HOSTILE!r}, key_token='\\u202e', "
    "others='</script>', query=3, key=9, causal=False)"
)
CODES = [CODE, SHOW, FREE]
READY = (".pos-status", 2)


@pytest.fixture(scope="module")
def scores():
    """Name -> (P, P), drawn as CODE draws them."""
    generator = torch.Generator().manual_seed(0)
    i = torch.arange(P)
    learned = torch.randn(P, P, generator=generator)
    return {"learned": learned, "relative": torch.randn(2 * P - 1, generator=generator)[i[:, None] - i + P - 1]}


def status(page, n=0):
    return page.locator(".pos-status").nth(n).inner_text()


def handle(page, who, n=0):
    return page.locator(f".pos-handle.pos-{who}").nth(n)


def at(page, n=0):
    """Where the two stand, as the sliders say it."""
    return tuple(int(handle(page, who, n).get_attribute("aria-valuenow")) for who in ("query", "key"))


def panels(page, n=0):
    """Name -> (score, words) of each panel."""
    found = page.locator(".pos").nth(n).locator(".pos-panel").all()
    return {
        panel.locator(".pos-name").inner_text(): tuple(
            panel.locator(part).inner_text() for part in (".pos-score", ".pos-told")
        )
        for panel in found
    }


def shown(text):
    return float(text.replace("−", "-"))


def curve(page, kind, n):
    """The y of each point of a path in panel n."""
    path = page.locator(".pos-panel").nth(n).locator(f"path.{kind}").get_attribute("d")
    return [float(y) for y in re.findall(r" ([\d.]+)", path)]


def place(page, i, lane="key"):
    """The middle of place i of the first row, in the page: its upper half is the query's, its lower half the key's."""
    box = page.locator(".pos-row").first.bounding_box()
    return box["x"] + (i + 0.5) * box["width"] / P, box["y"] + (45 if lane == "query" else 55)


def drag(page, start, end):
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move((start[0] + end[0]) / 2, end[1], steps=3)
    page.mouse.move(*end, steps=3)
    page.mouse.up()


def middle(locator):
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_hostile_names_and_tokens_are_text(page):
    widget = page.locator(".pos").nth(1)
    assert widget.locator(".pos-name").all_inner_texts() == [visible(HOSTILE), "模型"]
    assert widget.locator(".pos-token").all_inner_texts() == [visible(HOSTILE), "⟨202E⟩"]
    assert widget.locator(".pos-note").inner_text().endswith("Every other place holds “</script>”.")
    assert status(page, 1).startswith(f"Query “{visible(HOSTILE)}” at 3, key “⟨202E⟩” at 9, 6 places ahead: ")
    assert page.locator(".pos img, .pos script, img[src=x]").count() == 0


def test_the_numbers_are_those_that_were_given(page, scores):
    said = status(page)
    assert said.startswith("Query “bank” at 12, key “river” at 5, 7 places back: learned ")
    for name, table in scores.items():
        text, words = panels(page)[name]
        assert len(text.split(".")[1]) == 2
        assert shown(text) == pytest.approx(table[12, 5].item(), abs=0.005 + 1e-6)
        assert f"{name} {text} (" in said
        band = table.diagonal(-7)
        if name == "learned":
            low, high = map(shown, re.fullmatch(r"between (\S+) and (\S+) at this distance, .*", words).groups())
            assert [low, high] == pytest.approx([band.min().item(), band.max().item()], abs=0.005 + 1e-6)
        else:
            assert words == "same at every place"


def test_the_whole_curve_is_drawn_to_scale(page, scores):
    row = scores["learned"][12, :13]
    drawn = torch.tensor(curve(page, "pos-curve", 0))
    assert len(drawn) == 13  # the mask hides the rest
    assert torch.corrcoef(torch.stack([drawn, row]))[0, 1].item() < -0.9999  # y grows downwards


def test_the_band_has_no_width_where_the_distance_is_all(page):
    for n, wide in enumerate([True, False, False]):
        ends = curve(page, "pos-band", n)
        width = [low - high for low, high in zip(ends[:13], ends[:12:-1], strict=True)]
        assert (max(width) > 10) == wide
        assert min(width) >= 0


def test_rounding_noise_is_no_difference_and_is_not_blown_up(page):
    assert panels(page)["none"] == ("2.00", "same at every place")
    assert max(curve(page, "pos-curve", 2)) - min(curve(page, "pos-curve", 2)) < 0.1


def test_moving_both_changes_what_depends_on_more_than_the_distance(page, scores):
    before = panels(page)
    page.get_by_label("Move both one place to the right").first.click()
    assert at(page) == (13, 6)
    assert panels(page)["relative"] == before["relative"]
    assert panels(page)["learned"][0] != before["learned"][0]
    assert panels(page)["learned"][1] == before["learned"][1]  # the band is that of the distance
    assert shown(panels(page)["learned"][0]) == pytest.approx(scores["learned"][13, 6].item(), abs=0.006)
    page.get_by_label("Move both one place to the left").first.click()
    assert panels(page) == before


def test_moving_one_changes_both_schemes(page):
    before = panels(page)
    handle(page, "key").press("ArrowRight")
    assert all(panels(page)[name][0] != before[name][0] for name in ("learned", "relative"))


def test_arrow_keys_move_one_and_with_shift_both(page):
    query, key = handle(page, "query"), handle(page, "key")
    query.press("ArrowRight")
    assert at(page) == (13, 5)
    query.press("ArrowDown")
    key.press("ArrowUp")
    assert at(page) == (12, 6)
    key.press("Shift+ArrowLeft")
    assert at(page) == (11, 5)
    key.press("Shift+End")  # the pair stops with its query
    assert at(page) == (31, 25)
    query.press("Shift+Home")  # and with its key
    assert at(page) == (6, 0)
    key.press("ArrowLeft")  # there is nothing further left
    query.press("Control+ArrowRight")  # left to the browser
    assert at(page) == (6, 0)
    assert status(page).startswith("Query “bank” at 6, key “river” at 0, 6 places back: ")
    query.press("Home")
    assert "at 0, the same place: " in status(page)


def test_the_button_keeps_the_distance(page):
    button = page.get_by_role("button", name="Keep the distance").first
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    handle(page, "query").press("ArrowRight")
    assert at(page) == (13, 6)
    drag(page, middle(handle(page, "key")), place(page, 16))
    assert at(page)[0] - at(page)[1] == 7
    button.click()
    handle(page, "query").press("Home")
    assert at(page)[0] == 0


def test_a_token_can_be_dragged(page):
    x, y = middle(handle(page, "query"))
    step = place(page, 1)[0] - place(page, 0)[0]
    drag(page, (x, y), (x + 9 * step, y + 200))
    assert at(page) == (21, 5)
    page.mouse.move(*place(page, 2))  # let go: it stays
    assert at(page) == (21, 5)
    drag(page, middle(handle(page, "key")), place(page, P + 5))
    assert at(page) == (21, 31)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Place of the key token “river”"


def test_a_click_on_a_place_moves_the_token_of_that_side(page):
    page.mouse.click(*place(page, 20, "query"))
    assert at(page) == (20, 5)
    page.mouse.click(*place(page, 17, "key"))
    assert at(page) == (20, 17)


def test_a_click_in_a_panel_moves_the_key(page):
    plot = page.locator(".pos-panel svg").first
    x, y = (float(plot.locator("circle").get_attribute(name)) for name in ("cx", "cy"))
    wide = (plot.bounding_box()["width"] - 46) / P
    plot.click(position={"x": x + 4 * wide, "y": y})
    assert at(page) == (12, 9)


def test_a_key_after_the_query_is_hidden_by_the_mask(page):
    handle(page, "key").press("End")
    assert status(page) == "Query “bank” at 12, key “river” at 31, 19 places ahead: hidden by the mask."
    assert set(panels(page).values()) == {("—", "hidden by the mask")}
    assert page.locator(".pos").first.locator("circle").count() == 0
    assert page.locator(".pos").first.locator(".pos-cell.hid").count() == P - 13


def test_the_band_leaves_out_what_the_mask_hides(page, scores):
    """With a mask, no band for a key ahead; without one, the keys ahead have their own."""
    ahead = scores["learned"].diagonal(6)
    low, high = map(shown, re.match(r"between (\S+) and (\S+) at", panels(page, 1)[visible(HOSTILE)][1]).groups())
    assert [low, high] == pytest.approx([ahead.min().item(), ahead.max().item()], abs=0.005 + 1e-6)
    assert page.locator(".pos").nth(1).locator(".pos-cell.hid").count() == 0
    ends = [shown(text) for text in page.locator(".pos-panel").first.locator(".pos-tick.end").all_text_contents()]
    used = scores["learned"][torch.ones(P, P).tril().bool()]
    assert scores["learned"].min().item() < used.min().item() - 0.1  # the lowest of all is hidden
    assert ends == pytest.approx([used.min().item(), used.max().item()], abs=0.005 + 1e-6)


def test_a_distance_that_one_pair_has_is_called_so(page):
    handle(page, "key").press("Home")
    handle(page, "query").press("End")
    assert {words for _, words in panels(page).values()} == {"no other two places are this far apart"}
    for side in ("left", "right"):
        assert page.get_by_label(f"Move both one place to the {side}").first.get_attribute("aria-disabled") == "true"


def test_it_is_labelled_for_screen_readers(page):
    key = handle(page, "key")
    wanted = {"role": "slider", "aria-valuemin": "0", "aria-valuemax": "31", "aria-valuenow": "5", "tabindex": "0"}
    assert {name: key.get_attribute(name) for name in wanted} == wanted
    assert key.get_attribute("aria-valuetext") == "5, 7 places back"
    assert key.get_attribute("aria-label") == "Place of the key token “river”"
    assert key.get_attribute("data-lm-suppress-shortcuts") == "true"
    assert page.locator(".pos-status").first.get_attribute("role") == "status"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_theme(opened, theme):
    page = opened(theme=theme, width=375).page
    for who in ("query", "key"):
        for edge in ("Home", "End"):
            handle(page, who).press(edge)
            box = handle(page, who).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 375
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for part in (".pos-status", ".pos-score"):
        colour = page.locator(part).first.evaluate("node => getComputedStyle(node).color").replace(" ", "")
        shade = sum(int(c) for c in colour.removeprefix("rgb(").rstrip(")").split(",")[:3])
        assert (shade < 300) == (theme == "light")


def test_it_follows_the_width_of_the_window(page):
    page.set_viewport_size({"width": 500, "height": 900})
    page.wait_for_function("document.querySelector('.pos-row svg').getAttribute('width') < 500")
    assert page.evaluate("document.documentElement.scrollWidth") <= 500
    page.mouse.click(*place(page, 20, "query"))
    assert at(page) == (20, 5)
