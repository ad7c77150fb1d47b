"""NGramView in a page without a kernel: what the script computes is what the library computes, to the printed digits.

Its texts are as hostile as texts can be; one of them is long enough to have three discounts at every order.
"""

import re

import numpy as np
import pytest

from bookformer.ngram import NGramModel
from bookformer.tokenizers import visible

HOSTILE = "</SCRIPT><img src=x onerror=window.hacked=1>\t语言\n\"'&amp;\u202e"
RANDOM = np.random.default_rng(0)
CHAIN = RANDOM.dirichlet(np.full(12, 0.25), (12, 12))


def ordinary():
    letters = [0, 1]
    for _ in range(6000):
        letters.append(RANDOM.choice(12, p=CHAIN[letters[-2], letters[-1]]))
    return "".join("abcdefghij ."[i] for i in letters)


LONG = ordinary()
SEEN = LONG[1000:1003]
TEXTS = {0: (LONG, 4, SEEN), 1: (HOSTILE * 3, 3, "<"), 2: ("aab", 2, ""), 3: ("banana", 1, "")}
CODE = "from bookformer.widgets import NGramView\n"
CODES = [f"{CODE}NGramView({text!r}, {order}, context={start!r})" for text, order, start in TEXTS.values()]
READY = (".ngram-status", 4)


def widget(page, n=0):
    return page.locator(".ngram").nth(n)


def status(page, n=0):
    return widget(page, n).locator(".ngram-status").inner_text()


def typed(page, text, n=0):
    widget(page, n).get_by_role("textbox", name="Context").fill(text)
    return widget(page, n)


def told(label):
    """The character, its probability and its shares, from "Write “a” 0.5000 = 0.4000 (order 2) + ..."."""
    char, p, parts = re.fullmatch(r"Write “(.+)” (\d\.\d{4}) = (.*)", label, re.S).groups()
    return char, p, re.findall(r"(\d\.\d{4}) \((order \d|uniform)\)", parts)


@pytest.mark.parametrize("n", TEXTS)
@pytest.mark.parametrize("context", ["", "a", "ab", "abc", "dabc", "aaaaaa", "j. j", SEEN, "ba", "</SC", "\t语"])
def test_the_numbers_are_the_library_s(page, n, context):
    text, order, _ = TEXTS[n]
    if set(context) - set(text):
        context = text[-3:]
    model = NGramModel(order).fit(text)
    p, levels = model.probabilities(context), model.levels(context)
    here = typed(page, context, n)
    labels = [button.get_attribute("aria-label") for button in here.locator("li button").all()]
    assert len(labels) == min(8, model.vocab_size)
    best = np.argsort(-p, kind="stable")[: len(labels)]
    found = {}
    for label, shown in zip(labels, here.locator(".ngram-p").all_inner_texts(), strict=True):
        char, number, parts = told(label)
        assert number == shown
        found[char] = number, parts
    assert sorted(float(number) for number, _ in found.values()) == pytest.approx(sorted(p[best]), abs=5.1e-5)
    for char, (number, parts) in found.items():
        i = [visible(token) for token in model.vocabulary].index(char)
        assert number == f"{p[i]:.4f}"
        names = [f"order {level.order}" if level.order else "uniform" for level in levels]
        assert parts == [(f"{level.shares[i]:.4f}", name) for level, name in zip(levels, names, strict=True)]
    rows = [row.locator("th, td").all_inner_texts() for row in here.locator("tbody tr").all()]
    for row, level in zip(rows, levels, strict=True):
        if level.order == 0:
            assert row[0] == "uniform"
            continue
        assert row == [
            str(level.order),
            "".join(visible(token) for token in level.context) or "–",
            f"{level.counts.sum():,}",
            str((level.counts > 0).sum()),
            " ".join(f"{d:.3f}" for d in level.discounts),
            f"{level.passed_on:.4f}",
        ]


def test_the_bars_are_as_long_as_the_shares(page):
    here = typed(page, SEEN)
    model = NGramModel(4).fit(TEXTS[0][0])
    p, levels = model.probabilities(SEEN), model.levels(SEEN)
    for button in here.locator("li button").all():
        i = int(button.get_attribute("data-id"))
        widths = [
            float(part.evaluate("n => parseFloat(n.style.width)"))
            for part in button.locator(".ngram-track > span").all()
        ]
        assert widths == pytest.approx([100 * level.shares[i] / p.max() for level in levels], abs=1e-3)


def test_three_discounts_are_put_to_use(page):
    typed(page, SEEN)
    cells = widget(page).locator("tbody td:nth-child(5)").all_inner_texts()
    assert len(set(cells[0].split())) == 3


def test_the_status_tells_the_likeliest_as_a_sum(page):
    typed(page, SEEN)
    assert re.match(
        rf"After “{re.escape(visible(SEEN))}”: “.” [0-9.]+ = [0-9.]+ \(order 4\) \+ .* \(uniform\)\.$", status(page)
    )
    assert widget(page).locator(".ngram-status").get_attribute("role") == "status"


def test_a_context_never_seen_is_said_to_be_so(page):
    model = NGramModel(4).fit(TEXTS[0][0])
    never = next(c for c in (f"{a}{b}{c}" for a in "abcdefghij" for b in "abcdefghij" for c in "abcdefghij")
                 if not model.levels(c)[0].counts.any())  # fmt: skip
    typed(page, never)
    assert f"“{never}” was never seen; the longest context that was is “" in status(page)


def test_an_unknown_character_is_named_and_nothing_breaks(page):
    here = typed(page, "ab<é")
    assert status(page).startswith("The model has never seen the character “<”: it knows ␣ . a b")
    assert here.locator("li").count() == 0
    typed(page, "\u202e")
    assert "the character “⟨202E⟩”" in status(page)
    typed(page, "ab")
    assert status(page).startswith("After “ab”: ")
    assert here.locator("li").count() == 8


def test_a_capital_letter_is_read_as_its_small_one(page):
    typed(page, SEEN)
    before = status(page)
    typed(page, SEEN.upper())
    assert status(page) == before


def test_a_choice_is_written_by_mouse_and_by_keyboard(page):
    here = typed(page, SEEN)
    box = here.get_by_role("textbox")
    char = here.locator(".ngram-char").nth(1).inner_text()
    here.locator("li button").nth(1).click()
    assert box.input_value() == SEEN + char.replace("␣", " ")
    box.focus()
    page.keyboard.press("Tab")
    assert status(page).startswith("“" + here.locator(".ngram-char").first.inner_text() + "” ")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert len(box.input_value()) == 6
    assert page.evaluate("document.activeElement.closest('.ngram li') !== null")


def test_hostile_text_is_text(page):
    here = typed(page, "<", 1)
    assert here.locator("img, script").count() == 0
    assert page.locator("img[src=x]").count() == 0
    shown = set(here.locator(".ngram-char").all_inner_texts())
    assert {"i", "/"} <= shown
    typed(page, "\t", 1)
    assert here.locator(".ngram-char").first.inner_text() == "语"


def test_colours_are_those_of_the_key(page):
    typed(page, SEEN)
    key = widget(page).locator(".ngram-key").evaluate_all("nodes => nodes.map((n) => n.style.background)")
    bar = widget(page).locator("li").first.locator(".ngram-track > span")
    assert bar.evaluate_all("nodes => nodes.map((n) => n.style.background)") == key
    assert len(set(key)) == 5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_theme(opened, theme):
    page = opened(theme=theme, width=375).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for part in (".ngram-status", ".ngram input", ".ngram li button", ".ngram td", ".ngram-note"):
        ink = page.locator(part).first.evaluate("node => getComputedStyle(node).color").replace(" ", "")
        shade = sum(int(c) for c in ink.removeprefix("rgba(").removeprefix("rgb(").rstrip(")").split(",")[:3])
        assert (shade < 330) == (theme == "light"), part
