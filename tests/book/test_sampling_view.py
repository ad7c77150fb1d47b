"""SamplingView in a page without a kernel: a small book of its own, built as the real one is, opened in a browser.

Its first widget has 300 tokens and two contexts; its second has texts as hostile as they can be; its third and fourth
are one widget shown twice, whose tokens are equally likely.
"""

import math
import re
from itertools import pairwise

import numpy as np
import pytest

from bookformer.tokenizers import visible
from bookformer.widgets import SamplingView

RANDOM = np.random.default_rng(0)
V = 300
LOGITS = (RANDOM.normal(size=(2, V)) * [[1.5], [4]]).round(2)  # rounded: some are equal
LOGITS[1, ::7] = -math.inf
LOGITS = LOGITS.tolist()
TOKENS = [f" w{n}" for n in range(V)]
CONTEXTS = ["To be,\tor not\nto be", "x" * 300 + " – O Romeo,"]
HOSTILE = "</SCRIPT><img src=x onerror=window.hacked=1>"
WORDS = [HOSTILE, "\u202e", "", " 模型", "\r\n"]
CODES = [
    "from bookformer.widgets import SamplingView\ninf = float('inf')",
    f"SamplingView({CONTEXTS!r}, {LOGITS!r}, {TOKENS!r}, temperature=0.8, top_k=40, top_p=0.9, label='After a line')",
    f"SamplingView([{HOSTILE!r}], [[0, -1, -inf, -1, -2]], {WORDS!r}, label={HOSTILE!r}, seed=2**32 - 1)",
    "import IPython.display\nsame = SamplingView(['a', 'b'], [[0] * 40] * 2, ['t'] * 40)\n"
    "IPython.display.display(same, same)",
]
READY = (".samp tbody tr", 17 + 5 + 17 + 17)


def same(*, seed=0, **settings):
    """The first widget as it stands in Python."""
    return SamplingView(CONTEXTS, LOGITS, TOKENS, seed=seed, **settings)


def widget(page, n=0):
    return page.locator(".samp").nth(n)


def status(page, n=0):
    return widget(page, n).get_by_role("status").inner_text()


def slider(page, name, n=0):
    return widget(page, n).get_by_role("slider", name=name)


def move(page, name, place, n=0):
    """Put a slider at a place, counted from its left end, or from its right end if negative."""
    slider(page, name, n).evaluate(
        "(input, at) => { input.value = at < 0 ? Number(input.max) + 1 + at : at;"
        " input.dispatchEvent(new Event('input')) }",
        place,
    )


def settings(page, n=0):
    """What the sliders say, as keywords."""
    heat, k, p = widget(page, n).locator(".samp-value").all_inner_texts()
    size = V if n == 0 else 5 if n == 1 else 40
    return {
        "temperature": float(heat.split()[0]),
        "top_k": size if k == "all" else int(k),
        "top_p": float(p.split()[0]),
    }


def press(page, name, n=0):
    widget(page, n).get_by_role("button", name=name, exact=True).click()


def rows(page, n=0):
    """The words of each row: token, before, after, how often drawn."""
    cells = "all => all.map(row => [...row.cells].filter(c => c.className !== 'samp-bars').map(c => c.textContent))"
    return widget(page, n).locator("tbody tr").evaluate_all(cells)


def drawn(page, n=0):
    return [int(row[3].replace(",", "")) for row in rows(page, n)]


def mulberry32(seed):
    while True:
        seed = (seed + 0x6D2B79F5) % 2**32
        t = (seed ^ seed >> 15) * (seed | 1) % 2**32
        t = (t + (t ^ t >> 7) * (t | 61)) % 2**32 ^ t
        yield (t ^ t >> 14) / 2**32


def expected_draws(probabilities, draws, seed=0):
    """How often each token is drawn, by id."""
    order = np.argsort(-probabilities, kind="stable")
    ends, random = probabilities[order].cumsum(), mulberry32(seed)
    ranks = [min(int(np.searchsorted(ends, next(random), side="right")), len(ends) - 1) for _ in range(draws)]
    return np.bincount(order[ranks], minlength=len(ends))


def test_it_opens_as_it_was_made(page):
    assert settings(page) == {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
    assert status(page) == same(temperature=0.8, top_k=40, top_p=0.9).sentence()
    assert settings(page, 1) == {"temperature": 1, "top_k": 5, "top_p": 1}
    assert widget(page, 1).locator(".samp-value").all_inner_texts() == ["1", "all", "1 (all)"]


@pytest.mark.parametrize("context", [0, 1])
@pytest.mark.parametrize(
    ("heat", "k", "p"),
    [(21, -1, -1), (0, -1, -1), (1, -1, -1), (-1, -1, -1), (21, 0, -1), (21, 4, -1), (21, -1, 0), (21, -1, 60),
     (25, 20, 79), (15, 30, 94), (-1, -2, 98)],
)  # fmt: skip
def test_the_numbers_are_those_of_python(page, context, heat, k, p):
    widget(page).get_by_role("combobox").select_option(str(context))
    for name, place in (("Temperature", heat), ("top-k", k), ("top-p", p)):
        move(page, name, place)
    found = settings(page)
    assert found["temperature"] == [0, *(round(10 ** (i / 20 - 1), 2) for i in range(30)), 3][heat]
    assert found["top_p"] == pytest.approx((p % 100 + 1) / 100)
    assert found["top_k"] == {0: 1, -1: V}.get(k, found["top_k"])
    made = same(temperature=found["temperature"], top_k=None if k == -1 else found["top_k"], top_p=found["top_p"])
    assert status(page) == made.sentence(context)
    assert [tuple(row[:3]) for row in rows(page)] == made.table(context)[1:]


def test_of_equals_the_lowest_ids_are_kept(page):
    move(page, "top-k", 10, 2)
    assert settings(page, 2)["top_k"] == 11
    assert [row[2] for row in rows(page, 2)] == [f"{1 / 11:.3f}"] * 11 + ["cut"] * 6
    move(page, "top-k", -1, 2)
    move(page, "top-p", 9, 2)  # 0.1 of 40 tokens
    assert [row[2] for row in rows(page, 2)] == ["0.250"] * 4 + ["cut"] * 13
    names = [row[0] for row in rows(page)]
    order = np.argsort(-np.float32(LOGITS[0]), kind="stable")[:16]
    assert names == [*(f"␣w{i}" for i in order), "284 others"]


def test_what_can_not_come_is_told_from_what_is_cut(page):
    move(page, "top-k", 1, 1)
    assert [(row[0], row[2]) for row in rows(page, 1)] == [
        (visible(HOSTILE), "0.731"), ("⟨202E⟩", "0.269"), ("␣模型", "cut"), ("␍↵", "cut"), ("∅", "never"),
    ]  # fmt: skip
    classes = widget(page, 1).locator("tbody tr").evaluate_all("all => all.map(row => row.className)")
    assert classes == ["", "", "cut", "cut", "cut"]
    struck = (
        widget(page, 1)
        .locator(".samp-token")
        .evaluate_all("all => all.map(token => getComputedStyle(token).textDecorationLine)")
    )
    assert struck == ["none", "none", "line-through", "line-through", "line-through"]


def lengths(page, part, n=0):
    """How far each bar of a kind reaches, as a share of its track."""
    return (
        widget(page, n)
        .locator(f".samp-{part}")
        .evaluate_all(
            "all => all.map(bar => bar.getBoundingClientRect().width / bar.parentNode.getBoundingClientRect().width)"
        )
    )


def scale(page, n=0):
    return [float(word) for word in widget(page, n).locator(".samp-axis").all_inner_texts()]


@pytest.mark.parametrize(("heat", "p"), [(15, -1), (21, 89), (-1, -1)])
def test_the_bars_are_as_long_as_the_probabilities(page, heat, p):
    move(page, "Temperature", heat)
    move(page, "top-p", p)
    zero, end = scale(page)
    made = same(**settings(page))
    order = np.argsort(-np.float32(LOGITS[0]), kind="stable")[:16]
    before, after = (x[order] for x in (made.probabilities(temperature=1, top_k=V, top_p=1), made.probabilities()))
    assert zero == 0
    assert max(before.max(), after.max()) <= end
    assert end in (0.05, 0.1, 0.2, 0.5, 1)
    for part, probabilities in (("before", before), ("after", after)):
        wide = np.array(lengths(page, part))
        assert wide == pytest.approx(probabilities / end, abs=0.012)  # an outline is two pixels at least
        assert wide.max() > 0.2


def test_the_scale_is_the_smallest_that_has_room(page):
    ends = []
    for heat in (0, 1, 18, 21, 31):
        move(page, "Temperature", heat, 0)
        ends.append(scale(page)[1])
    most = [same(temperature=t, top_k=40, top_p=0.9).probabilities().max() for t in (0, 0.1, 0.71, 1, 3)]
    most = np.maximum(most, same().probabilities().max())  # before
    assert ends == [min(x for x in (0.05, 0.1, 0.2, 0.5, 1) if x >= p) for p in most]
    assert len(set(ends)) > 1


def test_the_draws_are_those_of_the_seed(page):
    made = same(temperature=0.8, top_k=40, top_p=0.9)
    order = np.argsort(-np.float32(LOGITS[0]), kind="stable")
    assert all(row[3] == "" for row in rows(page))
    done = 0
    for press_, n in (("Draw 1", 1), ("Draw 1", 1), ("Draw 100", 100), ("Draw 100", 100)):
        press(page, press_)
        done += n
        counts = expected_draws(made.probabilities(), done)[order]
        assert drawn(page) == [*counts[:16], counts[16:].sum()]
        last = order[np.flatnonzero(counts != expected_draws(made.probabilities(), done - 1)[order])[0]]
        told = "One token is drawn:" if done == 1 else f"{done} tokens are drawn, the last is"
        assert status(page) == f"{made.sentence()} {told} “␣w{last}”."
    assert drawn(page)[16] > 0
    press(page, "Draw 100", 1)
    counts = expected_draws(
        np.exp([0, -1, -math.inf, -1, -2]) / np.exp([0, -1, -math.inf, -1, -2]).sum(), 100, 2**32 - 1
    )
    assert drawn(page, 1) == [*counts[[0, 1, 3, 4]], 0]


def test_the_draws_follow_the_probabilities(page):
    """Chi-square over the 40 equally likely tokens' rows: 16 of them and the rest."""
    for _ in range(30):
        press(page, "Draw 100", 2)
    counts, expected = np.array(drawn(page, 2)), np.array([75] * 16 + [24 * 75])
    assert counts.sum() == 3000
    assert ((counts - expected) ** 2 / expected).sum() < 39.3  # one in a thousand is above, with 16 degrees of freedom


def test_after_a_change_the_same_numbers_draw_again(page):
    press(page, "Draw 100")
    move(page, "Temperature", -1)
    made, order = same(temperature=3, top_k=40, top_p=0.9), np.argsort(-np.float32(LOGITS[0]), kind="stable")
    counts = expected_draws(made.probabilities(), 100)[order]
    assert drawn(page) == [*counts[:16], counts[16:].sum()]
    move(page, "Temperature", 0)
    assert drawn(page) == [100] + [0] * 16


def test_a_diamond_marks_the_share_of_many_draws(page):
    press(page, "Draw 1")
    assert widget(page).locator(".samp-share").count() == 0
    press(page, "Draw 100")
    counts, (_, end) = drawn(page), scale(page)
    places = (
        widget(page)
        .locator(".samp-share")
        .evaluate_all(
            "all => all.map(mark => { const [a, b] = [mark, mark.parentNode].map(n => n.getBoundingClientRect());"
            " return ((a.left + a.right) / 2 - b.left) / b.width })"
        )
    )
    assert places == pytest.approx([count / 101 / end for count in counts[:16] if count], abs=0.01)
    assert max(places) <= 1


def test_there_is_a_most_that_can_be_drawn(page):
    """The tenth thousand is reached by pressing once, as a kernel could have set what stood there before."""
    for _ in range(100):
        widget(page, 1).get_by_role("button", name="Draw 100").evaluate("button => button.click()")
    assert sum(drawn(page, 1)) == 10_000
    assert "10,000 tokens are drawn" in status(page, 1)
    assert widget(page, 1).get_by_role("button", name="Draw 1", exact=True).get_attribute("aria-disabled") == "true"
    press(page, "Reset", 1)
    assert widget(page, 1).get_by_role("button", name="Draw 1", exact=True).get_attribute("aria-disabled") == "false"


def test_reset_shows_what_the_model_said(page):
    press(page, "Draw 100")
    press(page, "Reset")
    assert settings(page) == {"temperature": 1, "top_k": V, "top_p": 1}
    assert status(page) == same().sentence()
    assert all(row[3] == "" and row[1] == row[2] for row in rows(page))


def test_all_that_shows_one_widget_changes_with_it(page):
    """So a kernel's change would be seen."""
    move(page, "Temperature", 0, 2)
    press(page, "Draw 1", 3)
    widget(page, 3).get_by_role("combobox").select_option("1")
    assert rows(page, 2) == rows(page, 3)
    assert status(page, 2) == status(page, 3)
    assert status(page, 2).startswith("Temperature 0: 1 of 40 tokens is left.")
    assert widget(page, 2).locator(".samp-context").inner_text() == "b▁"
    assert widget(page, 2).get_by_role("combobox").input_value() == "1"


def test_the_context_is_shown_as_it_runs(page):
    text = widget(page).locator(".samp-context")
    assert text.evaluate("node => node.textContent") == "To be,⇥or not↵\nto be▁"
    widget(page).get_by_role("combobox").select_option("1")
    assert text.inner_text() == f"…{'x' * 229} – O Romeo,▁"
    options = widget(page).locator("option").all_inner_texts()
    assert options == ["1: To be,⇥or not↵to be", f"2: …{'x' * 29} – O Romeo,"]
    assert not widget(page, 1).get_by_role("combobox").is_visible()  # there is one context


def test_hostile_texts_are_text(page):
    assert widget(page, 1).locator(".samp-context").inner_text() == f"{HOSTILE}▁"
    assert rows(page, 1)[0][0] == visible(HOSTILE)
    press(page, "Draw 1", 1)
    assert widget(page, 1).get_attribute("aria-label") == HOSTILE
    assert page.locator(".samp img, .samp script").count() == 0


def test_it_is_worked_by_keyboard(page):
    widget(page).get_by_role("combobox").focus()
    named = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
    for name in ("Temperature", "top-k", "top-p", "Draw 1", "Draw 100", "Reset"):
        page.keyboard.press("Tab")
        assert page.evaluate(named) == name
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert sum(drawn(page)) == 100
    assert page.evaluate(named) == "Draw 100"
    slider(page, "Temperature").focus()
    heats = []
    for key in ("Home", "ArrowRight", "ArrowRight", "End", "ArrowLeft"):
        page.keyboard.press(key)
        heats.append(slider(page, "Temperature").get_attribute("aria-valuetext"))
    assert heats == ["0 (greedy)", "0.1", "0.11", "3", "2.82"]
    slider(page, "top-k").focus()
    page.keyboard.press("Home")
    ks = [1]
    while ks[-1] < V:
        page.keyboard.press("ArrowRight")
        told = slider(page, "top-k").get_attribute("aria-valuetext")
        ks.append(V if told == "all" else int(told))
    assert ks[:15] == list(range(1, 16))
    assert all(1 <= b - a <= 1 + 0.1 * a for a, b in pairwise(ks))


def test_it_is_labelled_for_screen_readers(page):
    assert widget(page).get_attribute("role") == "group"
    assert widget(page).get_attribute("aria-label") == "After a line"
    assert widget(page).get_attribute("data-lm-suppress-shortcuts") == "true"
    assert widget(page).locator("[role=status]").count() == 1
    assert widget(page).get_by_role("table", name="After a line").count() == 1
    assert widget(page).get_by_role("columnheader").all_inner_texts() == ["token", "before", "after", "drawn"]
    assert widget(page).get_by_role("rowheader").count() == 17
    assert widget(page).get_by_role("combobox", name="Context").count() == 1
    assert slider(page, "top-k").get_attribute("aria-valuetext") == "40"
    hidden = (
        widget(page).locator("tbody .samp-bars").evaluate_all("all => all.every(cell => cell.ariaHidden === 'true')")
    )
    assert hidden


def luminance(rgb):
    parts = [c / 255 for c in rgb[:3]]
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_can_be_read_in_both_themes(opened, theme):
    page = opened(theme=theme).page
    press(page, "Draw 100")

    def colour(part, name):
        found = widget(page).locator(part).first.evaluate(f"node => getComputedStyle(node).{name}")
        return [float(number) for number in re.findall(r"[\d.]+", found)]

    outside = "node => { while (getComputedStyle(node).backgroundColor === 'rgba(0, 0, 0, 0)') node = node.parentNode; "
    ground = (
        widget(page)
        .locator("td")
        .first.evaluate(f"{outside} return getComputedStyle(node).backgroundColor.match(/\\d+/g).map(Number) }}")
    )
    assert (luminance(ground) > 0.5) == (theme == "light")
    for part in (".samp-status", ".samp-note", ".samp-context", ".samp-token", ".samp-value", "tbody td:last-child",
                 "thead th", ".samp-others", "button", "select"):  # fmt: skip
        assert contrast(ground, colour(part, "color")) >= 4.5, part
    for part, name in ((".samp-after", "backgroundColor"), (".samp-before", "borderTopColor"),
                       (".samp-share", "backgroundColor")):  # fmt: skip
        assert contrast(ground, colour(part, name)) >= 3, part


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(opened, theme):
    page = opened(theme=theme, width=375).page
    for n in (0, 1, 2):
        press(page, "Draw 100", n)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert widget(page, n).evaluate(
            "view => [...view.querySelectorAll('*')].every(e => e.getBoundingClientRect().right <= 375)"
        )
        assert widget(page, n).locator(".samp-track").first.bounding_box()["width"] > 60
        cut = (
            widget(page, n)
            .locator("tbody td:not(.samp-bars)")
            .evaluate_all("all => all.filter(cell => cell.scrollWidth > cell.clientWidth + 1).length")
        )
        assert cut == 0


def test_what_stands_below_stays_in_its_place(opened):
    for width in (1280, 375):
        page = opened(width=width).page
        tops = []
        for heat, p in ((0, -1), (1, 49), (18, 94), (-1, -1)):
            move(page, "Temperature", heat)
            move(page, "top-p", p)
            tops.append(widget(page).locator(".samp-table").bounding_box()["y"])
        press(page, "Draw 100")
        tops.append(widget(page).locator(".samp-table").bounding_box()["y"])
        assert max(tops) - min(tops) < 1
