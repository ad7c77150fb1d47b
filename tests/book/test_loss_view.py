"""LossView in a page without a kernel: a small book of its own, built as the real one is, opened in a browser.

Its first widget has three models, one of which predicted nothing at first and guessed nothing; its second has names,
tokens and guesses as hostile as they can be; its third has one model, 600 tokens and bits.
"""

import math
import re

import numpy as np
import pytest

from bookformer.tokenizers import visible

RANDOM = np.random.default_rng(0)
TEXT = "To be, or not to be:\nthat is the question. " * 4
N = len(TEXT)
LOSSES = {name: RANDOM.gamma(1.5, scale, N).tolist() for name, scale in [("n-gram", 1.5), ("RNN", 1), ("LSTM", 0.8)]}
LOSSES["n-gram"][:2] = [math.nan] * 2
LOSSES["LSTM"][8] = 30.0  # beyond the scale


def guesses_of(n, loss):
    p = math.exp(-loss)
    return [("é", 0.4 * (1 - p)), (TEXT[n], p), ("<b>", 0.35 * (1 - p)), ("\t", 0.2 * (1 - p))][: 1 + n % 4]


GUESSES = {name: [guesses_of(n, loss) for n, loss in enumerate(LOSSES[name])] for name in ("RNN", "LSTM")}
GUESSES["LSTM"][3] = []
HOSTILE = "</SCRIPT><img src=x onerror=window.hacked=1>"
WORDS = [HOSTILE, "\u202e", "", " 模型", "\r\n", "\t", "x\n\ny"]
CODES = [
    "from bookformer.widgets import LossView\nnan = float('nan')",
    f"LossView({TEXT!r}, {LOSSES!r}, {GUESSES!r}, label='A line of Hamlet')",
    f"LossView({WORDS!r}, {{{HOSTILE!r}: [1, 2, 3, 4, 5, 6, 7]}}, "
    f"{{{HOSTILE!r}: [[('</script>', 0.4), ({HOSTILE!r}, {math.exp(-1)})], *[[]] * 6]}}, label={HOSTILE!r})",
    "LossView('word ' * 120, {'one': [n / 100 for n in range(600)]}, unit='bits')",
]
READY = (".loss-status", 3)


def widget(page, n=0):
    return page.locator(".loss-view").nth(n)


def token(page, i, n=0):
    return widget(page, n).locator(".loss-text > [role=option]").nth(i)


def said(page, n=0):
    """The lines about the token under the mouse, or the chosen one."""
    return [line.strip() for line in widget(page, n).locator(".loss-status > span").all_inner_texts()]


def mean(page, n=0):
    return widget(page, n).locator(".loss-mean").inner_text()


def choose(page, *, model=None, other=None):
    for label, name in (("Model", model), ("compared with", other)):
        if name is not None:
            widget(page).get_by_label(label).select_option(label=name)


COLOURS = """view => [...view.querySelectorAll('.loss-text > span')].map(span => {
  const style = getComputedStyle(span);
  return [style.backgroundColor, style.color, style.backgroundImage].map((c, i) =>
    i === 2 ? c : c.match(/[\\d.]+/g).map(Number));
})"""


def colours(page, n=0):
    """Ground (rgb, or rgba where there is none), ink and picture of every token."""
    return widget(page, n).evaluate(COLOURS)


def luminance(rgb):
    parts = [c / 255 for c in rgb[:3]]
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def scale(page, n=0):
    """The first three words below the coloured bar, as numbers."""
    words = widget(page, n).locator(".loss-ticks > span").all_inner_texts()[:3]
    return [float(re.search(r"[+−]?[\d.]+", word).group().replace("−", "-")) for word in words]


def shown_guesses(page, which=0):
    """(word, probability, length of its bar, whether it is marked as what came) of each row."""
    rows = widget(page).locator(".loss-guesses").nth(which).locator("li").all()
    found = []
    for row in rows:
        track = row.locator(".loss-track")
        part = track.locator("span").bounding_box()["width"] / track.bounding_box()["width"]
        word, p = row.locator(".loss-word").inner_text(), row.locator(".loss-chance").inner_text()
        found.append((word, float(p.replace("✓", "")), part, "hit" in row.get_attribute("class") and "✓" in p))
    return found


def given_guesses(name, n):
    return sorted(GUESSES[name][n], key=lambda pair: -pair[1])


def test_hostile_names_tokens_and_guesses_are_text(page):
    assert mean(page, 1).startswith(f"{visible(HOSTILE)}: mean loss 4.000 nats")
    assert said(page, 1)[0] == f"Token 1 of 7: “{visible(HOSTILE)}”."
    assert token(page, 0, 1).inner_text() == HOSTILE
    assert widget(page, 1).locator(".loss-word").all_inner_texts() == ["</script>", visible(HOSTILE)]
    assert widget(page, 1).get_by_role("listbox").get_attribute("aria-label") == HOSTILE
    assert page.locator(".loss-view img, .loss-view script, .loss-view b").count() == 0


def test_what_has_no_shape_of_its_own_gets_one(page):
    shown = [HOSTILE, "⟨202E⟩", "∅", " 模型", "␍↵", "⇥", "x↵\n↵\ny"]
    assert widget(page, 1).locator(".loss-text > span").evaluate_all("all => all.map(s => s.textContent)") == shown


def test_the_text_runs_and_its_line_ends_break_the_line(page):
    assert widget(page).locator(".loss-text").evaluate("node => node.textContent") == TEXT.replace("\n", "↵\n")
    tops = [token(page, i).bounding_box()["y"] for i in (0, 19, 21, 22)]
    assert tops[0] == tops[1] < tops[2] == tops[3]
    assert token(page, 20).evaluate("span => span.getClientRects().length") == 1  # nothing of it on the next line
    room = token(page, 2).bounding_box()
    assert room["width"] == token(page, 3).bounding_box()["width"] > 5  # a space is as wide as a letter here


def test_the_higher_the_loss_the_brighter_the_token(page):
    choose(page, model="RNN")
    losses, top = np.array(LOSSES["RNN"]), scale(page)[2]
    assert scale(page) == [0, top / 2, top]
    bright = np.array([luminance(ground) for ground, _, _ in colours(page)])
    order = np.argsort(losses.clip(0, top))
    assert (np.diff(bright[order]) >= -0.002).all()  # whole numbers of red, green and blue
    assert bright[order[0]] < 0.05
    assert bright[losses >= 0.97 * top].min() > 0.7
    assert len(set(bright.tolist())) > 100


def test_all_models_share_one_scale_whose_end_is_told(page):
    everything = np.array([*LOSSES.values()])
    known = everything[np.isfinite(everything)]
    ends = []
    for name in LOSSES:
        choose(page, model=name)
        ends.append(scale(page)[2])
        assert "≥" in widget(page).locator(".loss-ticks").inner_text()
    assert len(set(ends)) == 1
    most = np.quantile(known, 0.98, method="inverted_cdf")
    assert most <= ends[0] < most + 0.5
    assert ends[0] < known.max()
    choose(page, model="LSTM")
    ground = colours(page)
    assert LOSSES["LSTM"][8] > ends[0]
    assert ground[8][0] == [254, 232, 56]
    assert scale(page, 1) == [0, 3.5, 7]
    assert "≥" not in widget(page, 1).locator(".loss-legend").inner_text()


def test_a_token_without_a_prediction_is_hatched(page):
    ground = colours(page)
    for n in range(N):
        none = n < 2
        assert (ground[n][0] == [0, 0, 0, 0]) == none
        assert ("gradient" in ground[n][2]) == none
    assert "no prediction" in widget(page).locator(".loss-legend").inner_text()
    choose(page, model="RNN")
    assert "no prediction" not in widget(page).locator(".loss-legend").inner_text()


@pytest.mark.parametrize("name", list(LOSSES))
def test_the_mean_is_that_of_the_losses_given(page, name):
    choose(page, model=name)
    known = [loss for loss in LOSSES[name] if not math.isnan(loss)]
    nats = np.mean(known)
    assert mean(page) == (
        f"{name}: mean loss {nats:.3f} nats ({nats / math.log(2):.3f} bits) over {len(known)} tokens."
    )


def test_the_unit_is_that_asked_for(page):
    nats = np.mean([n / 100 for n in range(600)])
    assert mean(page, 2) == f"one: mean loss {nats:.3f} nats ({nats / math.log(2):.3f} bits) over 600 tokens."
    assert scale(page, 2)[2] == pytest.approx(6 / math.log(2), rel=0.1)
    assert widget(page, 2).locator(".loss-legend").inner_text().startswith("Loss in bits")
    token(page, 300, 2).click()
    assert said(page, 2)[1] == f"one: probability {math.exp(-3):.3f}, loss {3 / math.log(2):.3f} bits."
    assert widget(page, 2).locator("select, li").count() == 0
    assert widget(page).locator(".loss-legend").inner_text().startswith("Loss in nats")


def test_pointing_at_a_token_tells_its_numbers_under_every_model(page):
    for how, n in [("hover", 12), ("click", 30)]:
        getattr(token(page, n), how)()
        assert said(page)[0] == f"Token {n + 1} of {N}: “{visible(TEXT[n])}”."
        for line, (name, losses) in zip(said(page)[1:], LOSSES.items(), strict=True):
            p = math.exp(-losses[n])
            assert line == f"{name}: probability {p:.3f}, loss {losses[n]:.3f} nats."
    token(page, 40).hover()
    assert said(page)[0].startswith("Token 41 ")
    page.mouse.move(0, 0)
    assert said(page)[0].startswith("Token 31 ")  # back at the one that was clicked


def test_small_probabilities_and_missing_ones_are_told(page):
    assert said(page)[1] == "n-gram: no prediction."  # of the first token, which is told at first
    assert said(page)[0] == f"Token 1 of {N}: “T”."
    token(page, 8).click()
    assert said(page)[3] == "LSTM: probability below 1e-6, loss 30.000 nats."
    small = next(n for n in range(N) if 8 < LOSSES["n-gram"][n] < 13)
    token(page, small).click()
    p = float(re.search(r"probability (0\.0000*[1-9])\d*, ", said(page)[1]).group(1))
    assert p == pytest.approx(math.exp(-LOSSES["n-gram"][small]), rel=0.5)


@pytest.mark.parametrize("name", ["RNN", "LSTM"])
def test_the_guesses_are_those_given(page, name):
    choose(page, model=name)
    for n in (0, 5, 7, 20):
        token(page, n).click()
        rows, given = shown_guesses(page), given_guesses(name, n)
        assert [row[0] for row in rows] == [visible(word) for word, _ in given]
        assert [row[1] for row in rows] == pytest.approx([p for _, p in given], abs=0.0005 + 1 / 65535)
        assert [row[2] for row in rows] == pytest.approx([p for _, p in given], abs=0.02)
        assert [row[3] for row in rows] == [word == TEXT[n] for word, _ in given]
        assert widget(page).locator(".loss-guesses").first.inner_text().startswith(f"{name} expected:")
    assert {len(given_guesses(name, n)) for n in (0, 5, 7, 20)} == {1, 2, 4}


def test_who_guessed_nothing_is_said_to(page):
    token(page, 3).click()
    told = widget(page).locator(".loss-guesses").first
    assert told.inner_text() == "n-gram: no guesses are given."
    choose(page, model="LSTM")
    assert told.inner_text().strip() == "LSTM expected nothing here."
    choose(page, model="RNN")
    assert told.inner_text().startswith("RNN expected:")


def test_the_difference_of_two_models(page):
    choose(page, model="LSTM", other="n-gram")
    token(page, 30).click()
    apart = np.array(LOSSES["LSTM"]) - np.array(LOSSES["n-gram"])
    known = apart[np.isfinite(apart)]
    sign = "−" if known.mean() < 0 else "+"
    nats = abs(known.mean())
    assert mean(page) == (
        f"LSTM − n-gram: mean difference {sign}{nats:.3f} nats ({sign}{nats / math.log(2):.3f} bits) over {N - 2} "
        f"tokens. LSTM is less surprised at {(known < 0).sum()}, more at {(known > 0).sum()}."
    )
    low, zero, top = scale(page)
    assert (low, zero) == (-top, 0)
    assert widget(page).locator(".loss-legend").inner_text().startswith("Difference in nats")
    ground = np.array([ground[:3] for ground, _, _ in colours(page)])
    assert colours(page)[0][0] == [0, 0, 0, 0]  # one of them predicted nothing
    redder = (ground[:, 0] - ground[:, 2])[2:]  # red less blue
    assert (redder[apart[2:] > 0.1 * top] > 0).all()
    assert (redder[apart[2:] < -0.1 * top] < 0).all()
    assert (apart[2:] < -0.1 * top).sum() > 20 < (apart[2:] > 0.1 * top).sum()
    assert luminance(ground[2 + np.abs(apart[2:]).argmin()]) > 0.8
    assert widget(page).locator(".loss-ticks").inner_text().split("\n")[-3:] == [
        "less surprised", "alike", "more surprised",
    ]  # fmt: skip
    assert [row[0] for row in shown_guesses(page)] == [visible(word) for word, _ in given_guesses("LSTM", 30)]
    assert widget(page).locator(".loss-guesses").nth(1).inner_text() == "n-gram: no guesses are given."
    choose(page, other="nothing")
    assert mean(page).startswith("LSTM: mean loss ")
    assert widget(page).locator(".loss-guesses").nth(1).inner_text() == ""


def test_a_model_is_not_compared_with_itself(page):
    choose(page, model="RNN", other="LSTM")
    options = widget(page).get_by_label("compared with").locator("option")
    assert [option.is_disabled() for option in options.all()] == [False, False, True, False]
    before = mean(page)
    choose(page, model="LSTM")  # the two change places
    assert mean(page).startswith("LSTM − RNN: mean difference ")
    first, second = (re.search(r"difference (\S)(\S+)", text).groups() for text in (before, mean(page)))
    assert first[0] != second[0]
    assert first[1] == second[1]


def test_the_keyboard_moves_from_token_to_token(page):
    widget(page).get_by_label("compared with").focus()
    page.keyboard.press("Tab")
    at = "document.activeElement.getAttribute('aria-label')"
    assert page.evaluate(at) == "T"
    for key, n in [("ArrowLeft", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("End", N - 1), ("ArrowRight", N - 1),
                   ("ArrowLeft", N - 2), ("Home", 0), ("ArrowDown", 21), ("ArrowUp", 0), ("ArrowUp", 0)]:  # fmt: skip
        page.keyboard.press(key)
        assert said(page)[0] == f"Token {n + 1} of {N}: “{visible(TEXT[n])}”."
        assert page.evaluate(at) == visible(TEXT[n])
    page.keyboard.press("Control+ArrowRight")  # left to the browser
    assert said(page)[0].startswith("Token 1 of")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    assert not page.evaluate("document.querySelector('.loss-view').contains(document.activeElement)")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(at) == "o"


def test_the_keyboard_brings_the_token_into_sight(page):
    token(page, 0, 2).click()
    page.keyboard.press("End")
    frame, last = widget(page, 2).locator(".loss-text").bounding_box(), token(page, 599, 2).bounding_box()
    assert frame["y"] <= last["y"]
    assert last["y"] + last["height"] <= frame["y"] + frame["height"] + 1


def test_it_is_labelled_for_screen_readers(page):
    text = widget(page).get_by_role("listbox")
    assert text.get_attribute("aria-label") == "A line of Hamlet"
    token(page, 4).click()
    options = widget(page).locator(".loss-text > [role=option]")
    assert options.evaluate_all("all => all.filter(o => o.ariaSelected === 'true').length") == 1
    assert options.evaluate_all("all => all.filter(o => o.tabIndex === 0).length") == 1
    assert token(page, 4).get_attribute("aria-selected") == "true"
    assert widget(page).get_attribute("data-lm-suppress-shortcuts") == "true"
    assert widget(page).locator(".loss-status").get_attribute("role") == "status"
    assert widget(page).locator(".loss-mean").get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_token_can_be_read(opened, theme):
    page = opened(theme=theme).page
    outside = "node => { while (getComputedStyle(node).backgroundColor === 'rgba(0, 0, 0, 0)') node = node.parentNode; "
    ground = widget(page).evaluate(
        f"{outside} return getComputedStyle(node).backgroundColor.match(/\\d+/g).map(Number) }}"
    )
    assert (luminance(ground) > 0.5) == (theme == "light")
    for other in ("nothing", "LSTM"):
        choose(page, model="n-gram", other=other)
        for shade, ink, _ in colours(page):
            assert contrast(ground if len(shade) == 4 else shade, ink) >= 4.5
    for part in (".loss-mean", ".loss-status > span", ".loss-chance", ".loss-ticks > span", "select"):
        choose(page, model="RNN", other="nothing")
        node = widget(page).locator(part).first
        ink = node.evaluate("node => getComputedStyle(node).color.match(/[\\d.]+/g).map(Number)")
        assert contrast(ground, ink) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(opened, theme):
    page = opened(theme=theme, width=375).page
    choose(page, model="RNN", other="LSTM")
    for n, i in [(0, 30), (1, 0), (2, 599)]:
        token(page, i, n).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert widget(page, n).evaluate(
            "view => [...view.querySelectorAll('*')].every(e => e.getBoundingClientRect().right <= 375)"
        )
        text = widget(page, n).locator(".loss-text")
        assert text.evaluate("node => node.scrollWidth <= node.clientWidth")
    assert widget(page, 2).locator(".loss-text").bounding_box()["height"] < 420  # it scrolls, and the numbers stay near
