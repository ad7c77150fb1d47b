"""LabelView in a page without a kernel: a small book of its own, built as the real one is, opened in a browser.

Its first widget has eight pairs and three features; its second is labelled already, with texts and names as hostile as
they can be; its third and fourth are one widget shown twice, whose pairs differ in length.
"""

import json
import re

import numpy as np
import pytest

from bookformer.tokenizers import visible
from bookformer.widgets import LabelView
from bookformer.widgets.label_view import fit

HOSTILE = "</SCRIPT><img src=x onerror=window.hacked=1>"
RANDOM = np.random.default_rng(0)
PAIRS = [(f"one {n}", f"other {n}") for n in range(8)]
FEATURES = (RANDOM.normal(size=(8, 2, 3)) * [1, 30, 0.1]).round(2).tolist()
NAMES = ["length", "kind words", "log-probability"]
WEIRD = [(HOSTILE, "\u202e"), ("", " 模型\n\tb")]
LONG = [("short", "x" * 300), ("two\nlines", "word " * 60)]
CODES = [
    "from bookformer.widgets import LabelView",
    f"LabelView({PAIRS!r}, {FEATURES!r}, {NAMES!r}, question='Which is kinder?', label='Lines')",
    f"LabelView({WEIRD!r}, [[[1], [0]], [[0], [2]]], [{HOSTILE!r}], choices=[0, 1], penalty=0.1, label={HOSTILE!r})",
    "import IPython.display\n"
    f"same = LabelView({LONG!r}, [[[1, 2], [0, 2]], [[0, 1], [2, 2]]], ['a', 'b'], choices=[1])\n"
    "IPython.display.display(same, same)",
]
READY = (".lab tbody tr", 3 + 1 + 2 + 2)
CHOICES = [0, 1, 1, 0, 1, 0, 0, 1]


def same(choices):
    """The first widget as it stands in Python after these choices."""
    return LabelView(PAIRS, FEATURES, NAMES, choices=choices)


def widget(page, n=0):
    return page.locator(".lab").nth(n)


def status(page, n=0):
    return widget(page, n).get_by_role("status").inner_text()


def asked(page, n=0):
    return widget(page, n).locator(".lab-asked").inner_text()


def texts(page, n=0):
    return widget(page, n).locator("button.lab-text")


def press(page, name, n=0):
    widget(page, n).get_by_role("button", name=name, exact=True).evaluate("button => button.click()")  # disabled or not


def label(page, choices, n=0):
    for choice in choices:
        texts(page, n).nth(choice).click()


def rows(page, n=0):
    cells = "all => all.map(row => [0, 2, 3].map(i => row.cells[i].textContent))"
    return [tuple(row) for row in widget(page, n).locator("tbody tr").evaluate_all(cells)]


def shows(page, choices, n=0):
    """Whether the page says what Python does of these choices."""
    made = same(choices)
    return status(page, n) == made.sentence() and rows(page, n) == made.table()[1:]


def test_it_opens_without_a_choice(page):
    assert asked(page) == "Pair 1 of 8: Which is kinder?"
    assert texts(page).all_inner_texts() == ["Text 1\none 0", "Text 2\nother 0"]
    assert status(page) == "No choice yet: all weights are 0, and the model has no guess."
    assert rows(page) == [(name, "0.00", "") for name in NAMES]


def test_after_each_choice_all_is_that_of_python(page):
    for k, choice in enumerate(CHOICES):
        texts(page).nth(choice).click()
        assert shows(page, CHOICES[: k + 1])
        if k < 7:
            assert asked(page) == f"Pair {k + 2} of 8: Which is kinder?"
            assert texts(page).all_inner_texts() == [f"Text 1\none {k + 1}", f"Text 2\nother {k + 1}"]
    assert re.search(r"Of 7 guesses so far \d were right. Fitted to all 8, the model agrees with \d.$", status(page))


def test_the_guess_is_hidden_until_the_choice(page):
    """What the page holds before a choice says nothing of the pair that is asked about, only of those before."""
    label(page, CHOICES[:4])
    made = same(CHOICES[:5])
    guess = made.guesses()[4]
    attributes = "[...view.querySelectorAll('*')].flatMap(node => [...node.attributes]).map(one => one.value).join(' ')"
    held = widget(page).evaluate(f"view => view.textContent + {attributes}")
    for number in (f"{guess:.2f}", f"{1 - guess:.2f}"):
        assert number not in re.sub(r"0\.\d\d: (right|wrong)", "", held)
    texts(page).nth(CHOICES[4]).click()
    for_it = 1 - guess if CHOICES[4] else guess
    assert f"the model had given it {for_it:.2f}: {'right' if for_it > 0.5 else 'wrong'}." in status(page)


def test_all_labelled_the_last_pair_stays_and_is_no_question(page):
    label(page, CHOICES)
    assert asked(page) == "All pairs are labelled, 8 of 8. This is the last."
    assert texts(page).all_inner_texts() == ["Text 1\none 7", "Text 2, preferred\nother 7"]
    assert texts(page).evaluate_all("all => all.map(b => b.ariaDisabled)") == ["true", "true"]
    texts(page).nth(0).evaluate("button => button.click()")
    texts(page).nth(1).press("1")
    assert shows(page, CHOICES)
    press(page, "Undo")
    assert shows(page, CHOICES[:7])


def test_a_state_that_the_page_stores_is_fitted(page):
    made, other = (
        LabelView(WEIRD, [[[1], [0]], [[0], [2]]], [HOSTILE], choices=[0, 1], penalty=penalty) for penalty in (0.1, 1)
    )
    assert asked(page, 1) == "All pairs are labelled, 2 of 2. This is the last."
    assert status(page, 1) == made.sentence()
    assert rows(page, 1) == made.table()[1:]
    assert made.table() != other.table()


def test_undo_takes_one_back_and_start_again_all(page):
    undo, again = (widget(page).get_by_role("button", name=name) for name in ("Undo", "Start again"))
    assert (undo.get_attribute("aria-disabled"), again.get_attribute("aria-disabled")) == ("true", "true")
    press(page, "Undo")
    label(page, CHOICES[:3])
    assert (undo.get_attribute("aria-disabled"), again.get_attribute("aria-disabled")) == ("false", "false")
    press(page, "Undo")
    assert shows(page, CHOICES[:2])
    assert asked(page).startswith("Pair 3 of 8")
    label(page, [1 - CHOICES[2]])
    assert shows(page, [*CHOICES[:2], 1 - CHOICES[2]])
    press(page, "Start again")
    assert shows(page, [])
    assert asked(page).startswith("Pair 1 of 8")
    press(page, "Undo", 1)  # after the last pair too
    assert asked(page, 1) == "Pair 2 of 2: Which text is better?"


def test_keys_choose(page):
    texts(page).nth(0).focus()
    for k, (key, choice) in enumerate((("1", 0), ("2", 1), ("ArrowRight", 1), ("ArrowLeft", 0), ("2", 1))):
        page.keyboard.press(key)
        assert shows(page, CHOICES[: k + 1])
        assert choice == CHOICES[k]
    for key in ("Control+ArrowLeft", "Shift+ArrowRight", "Alt+1", "3", "ArrowUp"):  # left to the browser
        page.keyboard.press(key)
    assert shows(page, CHOICES[:5])
    page.keyboard.press("Enter")  # the focus is still on the first text
    assert shows(page, CHOICES[:6])
    page.keyboard.down("1")
    page.keyboard.down("1")  # held down: one choice
    page.keyboard.up("1")
    assert shows(page, CHOICES[:7])
    named = "document.activeElement.textContent"
    page.keyboard.press("Tab")
    assert page.evaluate(named).startswith("Text 2")
    page.keyboard.press("Tab")
    assert page.evaluate(named) == "Undo"
    page.keyboard.press("Enter")
    assert shows(page, CHOICES[:6])
    page.keyboard.press("Tab")
    assert page.evaluate(named) == "Start again"
    page.keyboard.press("2")
    assert shows(page, [*CHOICES[:6], 1])


def test_keys_choose_nothing_outside_the_widget(page):
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("1")
    page.keyboard.press("ArrowRight")
    assert shows(page, [])


def test_the_script_fits_as_python_does(page, root):
    """To 1e-6, on choices that follow hidden weights, on such that all agree, and on none."""
    script = (root / "lib/bookformer/widgets/label_view.js").read_text() + "\nexport { fit };"
    random = np.random.default_rng(1)
    cases = []
    for choices, size, penalty in ((0, 3, 1), (1, 1, 0.01), (5, 2, 1), (40, 4, 0.1), (100, 12, 100), (100, 12, 0.01)):
        differences = random.normal(size=(choices, size)) * random.choice([0.1, 1, 20])
        noisy = random.uniform(size=choices) > 1 / (1 + np.exp(-differences @ random.normal(size=size)))
        cases += [(differences.tolist(), made.astype(int).tolist(), penalty, size)
                  for made in (noisy, np.zeros(choices), differences.sum(axis=1) < 0)]  # fmt: skip
    cases.append(([[-57, -8], [7, -17], [164, -172]], [0, 0, 0], 0.01, 2))  # where whole steps jump to and fro
    found = page.evaluate(
        "async ([script, cases]) => {"
        " const { fit } = await import(URL.createObjectURL(new Blob([script], { type: 'text/javascript' })));"
        " return cases.map((one) => fit(...one)); }",
        [script, json.loads(json.dumps(cases))],
    )
    for (differences, choices, penalty, size), weights in zip(cases, found, strict=True):
        expected = fit(np.reshape(differences, (len(choices), size)), choices, penalty)
        assert weights == pytest.approx(expected.tolist(), abs=1e-6, rel=1e-9)
    assert np.abs(found[-2]).max() > 1


def test_the_bars_are_as_long_as_the_weights(page):
    ends = []
    for k in range(9):
        weights = same(CHOICES[:k]).weights()
        low, zero, high = (text.replace("−", "-") for text in widget(page).locator(".lab-axis span").all_inner_texts())
        end = float(high)
        assert (float(low), zero) == (-end, "0")
        assert end == min(x for x in (0.5, 1, 2, 5) if x >= np.abs(weights).max())
        ends.append(end)
        read = (
            "all => all.map(t => { const [a, b] = [t, t.lastChild].map(n => n.getBoundingClientRect());"
            " return [(b.left - a.left) / a.width, (b.right - a.left) / a.width] })"
        )
        spans = np.array(widget(page).locator(".lab-track").evaluate_all(read))
        expected = [sorted((0.5, 0.5 + weight / end / 2)) for weight in weights]
        assert spans == pytest.approx(np.array(expected), abs=0.01)
        label(page, CHOICES[k : k + 1])
    assert len(set(ends)) > 1
    assert same(CHOICES).weights().min() < -0.1 < 0.1 < same(CHOICES).weights().max()


def test_all_that_shows_one_widget_changes_with_it(page):
    """So a kernel's change would be seen."""
    assert "Pair 1: the second text was preferred." in status(page, 2)
    label(page, [0], 3)
    assert status(page, 2) == status(page, 3)
    assert status(page, 2).startswith("Pair 2: the first text was preferred.")
    assert rows(page, 2) == rows(page, 3)
    press(page, "Start again", 2)
    assert asked(page, 3) == "Pair 1 of 2: Which text is better?"


def test_hostile_texts_are_text(page):
    words = widget(page, 1).locator(".lab-words")
    assert words.evaluate_all("all => all.map(w => w.textContent)") == ["∅", " 模型↵\n⇥b"]
    press(page, "Start again", 1)
    assert words.all_inner_texts() == [HOSTILE, "⟨202E⟩"]
    assert rows(page, 1)[0][0] == "".join(c if c == " " else visible(c) for c in HOSTILE)
    assert widget(page, 1).get_attribute("aria-label") == HOSTILE
    assert page.locator(".lab img, .lab script").count() == 0


def test_it_is_labelled_for_screen_readers(page):
    assert widget(page).get_attribute("role") == "group"
    assert widget(page).get_attribute("aria-label") == "Lines"
    assert widget(page).get_attribute("data-lm-suppress-shortcuts") == "true"
    assert widget(page).locator("[role=status]").count() == 1
    assert widget(page).get_by_role("table", name="Lines").count() == 1
    assert widget(page).get_by_role("columnheader").all_inner_texts() == ["feature", "weight", "last pair"]
    assert widget(page).get_by_role("rowheader").all_inner_texts() == NAMES
    assert widget(page).get_by_role("button", name="Text 1 one 0").count() == 1
    hidden = (
        widget(page).locator("tbody .lab-bars").evaluate_all("all => all.every(cell => cell.ariaHidden === 'true')")
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
    label(page, CHOICES)

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
    for part in (".lab-asked", ".lab-role", ".lab-words", ".lab-status", ".lab-note", ".lab-name", ".lab-axis span",
                 "tbody td:last-child", "thead th", ".lab-bar button"):  # fmt: skip
        assert contrast(ground, colour(part, "color")) >= 4.5, part
    for part in (".lab-more", ".lab-less", ".lab-zero"):
        assert contrast(ground, colour(part, "backgroundColor")) >= 3, part
    frame = widget(page).locator(".chosen").evaluate("node => getComputedStyle(node).boxShadow")
    assert contrast(ground, [float(number) for number in re.findall(r"[\d.]+", frame)]) >= 3


def test_the_texts_stand_side_by_side(opened):
    for width, beside in ((1280, True), (375, False)):
        page = opened(width=width).page
        one, other = (texts(page).nth(n).bounding_box() for n in (0, 1))
        assert (one["y"] == other["y"]) == beside
        assert (one["x"] == other["x"]) != beside


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(opened, theme):
    page = opened(theme=theme, width=375).page
    for n, choices in ((0, CHOICES), (1, []), (2, [])):
        label(page, choices, n)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert widget(page, n).evaluate(
            "view => [...view.querySelectorAll('*')].every(e => e.getBoundingClientRect().right <= 375)"
        )
        assert widget(page, n).locator(".lab-track").first.bounding_box()["width"] > 60
        cut = (
            widget(page, n)
            .locator(":is(th, td):not(.lab-bars), .lab-name")
            .evaluate_all("all => all.filter(cell => cell.scrollWidth > cell.clientWidth + 1).length")
        )
        assert cut == 0


def test_what_stands_below_stays_in_its_place(opened):
    for width in (1280, 375):
        page = opened(width=width).page
        for n, choices in ((0, CHOICES), (2, [0])):
            table = widget(page, n).locator(".lab-table")
            tops = [table.evaluate("node => node.getBoundingClientRect().top + window.scrollY")]
            for choice in choices:
                label(page, [choice], n)
                tops.append(table.evaluate("node => node.getBoundingClientRect().top + window.scrollY"))
            press(page, "Start again", n)
            tops.append(table.evaluate("node => node.getBoundingClientRect().top + window.scrollY"))
            assert max(tops) - min(tops) < 1


def test_it_follows_the_width_of_the_window(page):
    height = widget(page, 2).locator(".lab-pair").bounding_box()["height"]
    page.set_viewport_size({"width": 400, "height": 900})
    page.wait_for_function(f"document.querySelectorAll('.lab-pair')[2].offsetHeight > {height}")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_function(f"document.querySelectorAll('.lab-pair')[2].offsetHeight <= {height}")
