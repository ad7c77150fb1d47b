"""BeamView in a page without a kernel: a small book of its own, built as the real one is, opened in a browser.

Its first widget has paths of all lengths, its second texts as hostile as they can be; its third and fourth are one
widget shown twice, whose paths are of one length.
"""

import re

import numpy as np
import pytest

from bookformer.widgets import BeamView

RANDOM = np.random.default_rng(157)
WORDS = [" the", "a", " cat", "dog", "模型", " everlasting", "\n", "sat"]
HOSTILE = "</SCRIPT><img src=x onerror=window.hacked=1>"


def filled(branches, depth, ends):
    tree, level = {}, [()]
    for _ in range(depth):
        for path in level:
            p = np.sort(RANDOM.dirichlet([0.8] * (branches + 2)))[: -branches - 1 : -1]
            tree[path] = [(WORDS[RANDOM.integers(len(WORDS))], float(np.log(x).round(4))) for x in p]
        level = [(*path, n) for path in level for n in range(branches) if RANDOM.random() >= ends]
    return tree


LONG, EVEN = filled(4, 4, 0.3), filled(2, 3, 0)
PROMPT = "O Romeo,\twherefore\nart"
HOSTILE_TREE = {(): [(HOSTILE, -0.5), ("\u202e", -1.5)], (0,): [("", -0.1)], (1,): [(HOSTILE * 3, -0.2)]}
CODES = [
    "from bookformer.widgets import BeamView",
    f"BeamView({PROMPT!r}, {LONG!r}, width=3, label='Romeo')",
    f"BeamView({HOSTILE!r}, {HOSTILE_TREE!r}, label={HOSTILE!r})",
    f"import IPython.display\nsame = BeamView('x', {EVEN!r})\nIPython.display.display(same, same)",
]
READY = (".beam .beam-ends tbody tr", 12)


def widget(page, n=0):
    return page.locator(".beam").nth(n)


def slider(page, name, n=0):
    return widget(page, n).get_by_role("slider", name=name, exact=True)


def move(page, name, value, n=0):
    slider(page, name, n).evaluate(
        "(input, to) => { input.value = to; input.dispatchEvent(new Event('input')) }", str(value)
    )


def cells(page, table, n=0):
    """The rows of a table, its heading first."""
    rows = widget(page, n).get_by_role("table", name=table).locator("tr")
    return rows.evaluate_all("all => all.map(row => [...row.cells].map(cell => cell.textContent))")


def status(page, n=0):
    return widget(page, n).get_by_role("status").inner_text()


def verdict(page, n=0):
    return widget(page, n).locator(".beam-verdict").inner_text()


def steps(page, n=0):
    return int(slider(page, "Step", n).get_attribute("max"))


@pytest.mark.parametrize("power", [0, 0.3, 1])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_the_search_is_that_of_python(page, width, power):
    made = BeamView(PROMPT, LONG)
    settings = {"width": width, "length_power": power}
    move(page, "Width", width)
    move(page, "Length power", power)
    assert verdict(page) == made.sentence(**settings)
    ends = cells(page, "Where the searches end")
    paths = made.paths(**settings)
    assert [row[0] for row in ends[1:]] == [
        f"beam of width {width}",
        "greedy (width 1)",
        f"best path of {leaves(LONG)}",
    ]
    assert [(row[1], float(row[2].replace("−", "-"))) for row in ends[1:]] == [
        (text, pytest.approx(total, abs=5.1e-4)) for text, total in paths.values()
    ]
    assert len(ends[0]) == 3 + (power > 0)
    for step in range(1, steps(page) + 1):
        move(page, "Step", step)
        assert cells(page, "The hypotheses of this step") == [list(row[1:]) for row in made.table(step, **settings)]
        kept = sum(row[-1].startswith("kept") for row in made.table(step, **settings)[1:])
        marked = widget(page).locator("tr").evaluate_all("all => all.findIndex(row => row.className === 'last')")
        assert marked == kept
    with pytest.raises(ValueError, match="there is no step"):
        made.table(steps(page) + 1, **settings)


def leaves(tree):
    return sum((*path, n) not in tree for path, pairs in tree.items() for n in range(len(pairs)))


def test_a_width_and_a_power_change_what_is_found():
    """Or the tests above would say little."""
    made = BeamView(PROMPT, LONG)
    assert len({made.paths(width=width)["beam"] for width in (1, 2, 3, 4)}) > 1
    assert len({made.paths(length_power=power)["best"] for power in (0, 0.3, 1)}) > 1
    lost = {re.search(r"at step \d|finds", made.sentence(width=width)).group() for width in (1, 2, 3, 4)}
    assert lost == {"at step 2", "at step 3", "finds"}


def test_the_status_tells_the_step(page):
    made = BeamView(PROMPT, LONG, width=3)

    def best(step):
        row = made.table(step)[1]
        return f"The best is “{row[1]}”, sum {row[3]}."

    last = steps(page)
    assert status(page) == f"Step 1 of {last}: the prompt is extended; of 4 the best 3 are kept. {best(1)}"
    seen = set()
    for step in range(2, last + 1):
        move(page, "Step", step)
        before = [row[-1] for row in made.table(step - 1)[1:]]
        live, ended = before.count("kept"), before.count("kept, ended")
        who = "1 hypothesis is" if live == 1 else f"{live} hypotheses are"
        had = f" and {ended} had ended" if ended else ""
        count = len(made.table(step)) - 1
        assert (
            status(page) == f"Step {step} of {last}: {who} extended{had}; of {count} the best 3 are kept. {best(step)}"
        )
        seen.add(had)
    assert len(seen) > 1
    move(page, "Width", 1, 2)
    assert "the prompt is extended; of 2 the best 1 is kept." in status(page, 2)


def boxes(page, n=0):
    """For each token of the picture: its place, its words, and how it is drawn."""
    return (
        widget(page, n)
        .locator(".beam-node")
        .evaluate_all(
            "all => all.map(g => { const box = g.querySelector('rect').getBoundingClientRect();"
            " return { node: Number(g.dataset.node), x: box.x, y: box.y, right: box.right, bottom: box.bottom,"
            " words: [...g.querySelectorAll('text')].map(t => t.textContent),"
            " fate: g.getAttribute('class').split(' ')[1],"
            " inside: [...g.querySelectorAll('text')].every(t => t.getBoundingClientRect().right <= box.right + 1) } })"
        )
    )


def drawn_by_hand(made, step, width):
    """What the picture should hold, from the table: the text of each hypothesis, and its fate."""
    rows = [[row for row in made.table(at, width=width)[1:]] for at in range(1, step + 1)]
    fates = {row[1]: "past" for at in rows[:-1] for row in at if row[-1].startswith("kept")}
    fates |= {row[1]: "dropped" for row in rows[-1]}
    kept = [row[1] for row in rows[-1] if row[-1].startswith("kept")]
    return {text: "kept" if any(k.startswith(text) for k in kept) else fate for text, fate in fates.items()}


DISTINCT = {path: [(f"{chr(97 + n)}{len(path)}", p) for n, (_, p) in enumerate(pairs)] for path, pairs in EVEN.items()}


def texts_of(tree):
    """The text of each node, level by level, with tokens told apart by their place."""
    made = BeamView("x", tree)
    texts = []
    for token, parent in zip(made.tokens, made.parents, strict=True):
        texts.append((texts[parent] if parent >= 0 else "") + token)
    return made, texts


@pytest.mark.parametrize("width", [1, 2])
def test_the_picture_shows_what_was_kept_and_all_of_this_step(page, width):
    made, texts = texts_of(DISTINCT)
    move(page, "Width", width, 2)
    for step in (1, 2, 3):
        move(page, "Step", step, 2)
        found = {texts[box["node"]]: box["fate"] for box in boxes(page, 2)}
        assert found == drawn_by_hand(made, step, width)
    links = widget(page, 2).locator(".beam-link").evaluate_all("all => all.map(link => link.getAttribute('class'))")
    assert sorted(links) == sorted(f"beam-link {fate}" for fate in found.values())


def test_the_picture_is_a_tree(page):
    made = BeamView(PROMPT, LONG)
    for step in range(1, steps(page) + 1):
        move(page, "Step", step)
        found = {box["node"]: box for box in boxes(page)}
        for node, box in found.items():
            assert box["inside"]
            parent = made.parents[node]
            if parent >= 0:
                assert found[parent]["right"] < box["x"]
            column = [other for other in found.values() if other["x"] == box["x"] and other["node"] != node]
            assert all(other["bottom"] <= box["y"] + 0.5 or other["y"] >= box["bottom"] - 0.5 for other in column)
    assert len({box["x"] for box in found.values()}) == 4


def test_a_star_stands_on_the_best_path(page):
    move(page, "Width", 4)
    move(page, "Step", 4)
    made = BeamView(PROMPT, LONG)
    best = made.paths(width=4)["best"][0]
    starred = [box for box in boxes(page) if box["words"][0].startswith("★")]
    tokens = "".join(made.tokens[box["node"]] for box in sorted(starred, key=lambda box: box["x"]))
    assert tokens == best if made.sentence(width=4).endswith("finds the best path.") else best.startswith(tokens)
    assert starred


def test_a_token_has_its_log_probability_where_there_is_room(page):
    made = BeamView(PROMPT, LONG)
    logs = np.frombuffer(made.packed, "<f4")
    for box in boxes(page):
        word, number = box["words"]
        assert number == f"−{-logs[box['node']]:.3f}"
        whole = made.tokens[box["node"]]
        assert whole.startswith(word.strip("★").rstrip("…"))
        assert word.endswith("…") or word.strip("★") == whole


def test_the_arrows_step(page):
    back, on = (widget(page).get_by_role("button", name=name) for name in ("One step back", "One step on"))
    assert (back.get_attribute("aria-disabled"), on.get_attribute("aria-disabled")) == ("true", "false")
    back.evaluate("button => button.click()")  # though it is disabled
    assert status(page).startswith("Step 1 of 4")
    for step in (2, 3, 4, 4):
        on.evaluate("button => button.click()")
        assert status(page).startswith(f"Step {step} of 4")
    assert (back.get_attribute("aria-disabled"), on.get_attribute("aria-disabled")) == ("false", "true")
    back.click()
    assert status(page).startswith("Step 3 of 4")


def test_the_length_power_is_offered_where_it_matters(page):
    assert slider(page, "Length power").is_visible()
    assert not slider(page, "Length power", 2).is_visible()  # all paths are of one length
    assert cells(page, "The hypotheses of this step")[0] == ["hypothesis", "log p", "sum", "fate"]
    move(page, "Length power", 0.5)
    assert cells(page, "The hypotheses of this step")[0] == ["hypothesis", "log p", "sum", "score", "fate"]
    assert cells(page, "Where the searches end")[0] == ["at the end", "path", "sum", "score"]
    assert slider(page, "Length power").get_attribute("aria-valuetext") == "0.5"


def test_all_that_shows_one_widget_changes_with_it(page):
    """So a kernel's change would be seen."""
    move(page, "Width", 1, 2)
    move(page, "Step", 2, 3)
    for n in (2, 3):
        assert status(page, n).startswith("Step 2 of 3: 1 hypothesis is extended; of 2 the best 1 is kept.")
    assert boxes(page, 2)[0]["words"] == boxes(page, 3)[0]["words"]


def test_hostile_texts_are_text(page):
    assert widget(page, 1).locator(".beam-prompt").inner_text() == f"{HOSTILE}▁"
    assert cells(page, "The hypotheses of this step", 1)[1][0] == HOSTILE.replace(" ", "␣")
    move(page, "Step", 2, 1)
    assert cells(page, "The hypotheses of this step", 1)[2][0] == f"⟨202E⟩{HOSTILE.replace(' ', '␣') * 3}"
    assert widget(page, 1).get_attribute("aria-label") == HOSTILE
    assert page.locator(".beam img, .beam script").count() == 0
    assert widget(page).locator(".beam-prompt").evaluate("p => p.textContent") == "O Romeo,⇥wherefore↵\nart▁"


def test_it_is_worked_by_keyboard(page):
    named = "document.activeElement.getAttribute('aria-label')"
    slider(page, "Width").focus()
    for name in ("Step", "Length power", "One step back", "One step on"):
        page.keyboard.press("Tab")
        assert page.evaluate(named) == name
    page.keyboard.press("Enter")
    assert status(page).startswith("Step 2 of 4")
    assert page.evaluate(named) == "One step on"
    slider(page, "Width").focus()
    told = []
    for key in ("Home", "ArrowRight", "End", "ArrowRight"):
        page.keyboard.press(key)
        told.append(slider(page, "Width").get_attribute("aria-valuetext"))
    assert told == ["1", "2", "4", "4"]


def test_it_is_labelled_for_screen_readers(page):
    assert widget(page).get_attribute("role") == "group"
    assert widget(page).get_attribute("aria-label") == "Romeo"
    assert widget(page).get_attribute("data-lm-suppress-shortcuts") == "true"
    assert widget(page).locator("[role=status]").count() == 1
    assert widget(page).locator(".beam-verdict").get_attribute("aria-live") == "polite"
    assert widget(page).locator("svg").get_attribute("aria-hidden") == "true"
    assert widget(page).get_by_role("columnheader").count() == 4 + 3
    assert widget(page).get_by_role("rowheader").count() == 4 + 3
    assert slider(page, "Step").get_attribute("aria-valuetext") == "1 of 4"


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
    move(page, "Step", 2)

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
    for part in (".beam-status", ".beam-note", ".beam-prompt", ".beam-verdict", ".beam-value", "tbody td", "tbody th",
                 "thead th", "button"):  # fmt: skip
        assert contrast(ground, colour(part, "color")) >= 4.5, part
    kept = colour(".beam-node.kept rect", "fill")
    assert contrast(kept, colour(".beam-node.kept text", "fill")) >= 4.5
    assert contrast(ground, kept) >= 3
    assert contrast(ground, colour(".beam-node.dropped text", "fill")) >= 4.5
    assert contrast(ground, colour(".beam-node.dropped rect", "stroke")) >= 3


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(opened, theme):
    page = opened(theme=theme, width=375).page
    move(page, "Length power", 0.5)
    for n, step in ((0, 4), (1, 2), (2, 3)):
        move(page, "Step", step, n)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert widget(page, n).evaluate(
            "view => [...view.querySelectorAll('*')].every(e => e.getBoundingClientRect().right <= 375)"
        )
        assert all(box["inside"] and box["right"] <= 375 for box in boxes(page, n))
        assert all(box["words"][0] for box in boxes(page, n))


def test_the_picture_follows_the_room(opened):
    page = opened().page
    wide = boxes(page)[0]["right"] - boxes(page)[0]["x"]
    page.set_viewport_size({"width": 375, "height": 900})
    page.wait_for_function(f"document.querySelector('.beam-node rect').getBoundingClientRect().width < {wide / 1.5}")
    assert widget(page).evaluate("view => view.getBoundingClientRect().right <= 375")
