"""PictureView in a page without a kernel: a small book of its own, built as the real one is, opened in a browser.

Its first widget has three pictures of 8 x 12 pixels in patches of 4, two layers and three heads; its second one picture
of 64 patches, exact numbers, one layer, one head and words as hostile as they can be; its third and fourth are one
widget shown twice.
"""

import re

import numpy as np
import pytest

from bookformer.tokenizers import visible
from bookformer.widgets import PictureView

HOSTILE = "</SCRIPT><img src=x onerror=window.hacked=1>"
WORDS = [
    ["a", " seven", ",", "end"],
    ["two", "\n"],
    ["many", " words", " stand", " here", " in", " one", " long", " line"],
]
WEIRD = [HOSTILE, "\u202e", "", "模型"]
RANDOM = np.random.default_rng(0)


def weights(layers, heads, words, patches):
    """What words give to patches, and to three words, which are left out."""
    powers = np.exp(2 * RANDOM.normal(size=(layers, heads, words, patches + 3)))
    return (powers / powers.sum(-1, keepdims=True))[..., :patches].round(4).tolist()


PICTURES, FINE = RANDOM.random((3, 8, 12)).round(3).tolist(), RANDOM.random((1, 16, 16)).round(3).tolist()
MANY, FEW = [weights(2, 3, len(caption), 6) for caption in WORDS], [weights(1, 1, 4, 64)]
CODES = [
    f"from bookformer.widgets import PictureView\nthree = ({PICTURES!r}, {WORDS!r}, {MANY!r})",
    "PictureView(*three, patch=4, word=1, layer=1, head=2, label='Captions')",
    f"PictureView({FINE!r}, [{WEIRD!r}], {FEW!r}, patch=2, label={HOSTILE!r}, exact=True)",
    "import IPython.display\nsame = PictureView(*three, patch=4)\nIPython.display.display(same, same)",
]
READY = (".pic tbody tr", 7 * 4)


@pytest.fixture(scope="module")
def made():
    """The first two widgets as they stand in Python."""
    return (
        PictureView(PICTURES, WORDS, MANY, patch=4, word=1, layer=1, head=2),
        PictureView(FINE, [WEIRD], FEW, patch=2, exact=True),
    )


def widget(page, n=0):
    return page.locator(".pic").nth(n)


def status(page, n=0):
    return widget(page, n).get_by_role("status").inner_text()


def words(page, n=0):
    return widget(page, n).locator(".pic-word")


def turn(page, times=1, n=0):
    name = "Next picture" if times > 0 else "Picture before"
    for _ in range(abs(times)):
        widget(page, n).get_by_role("button", name=name).evaluate("button => button.click()")  # at the end too


def select(page, name, to, n=0):
    widget(page, n).get_by_role("combobox", name=name).select_option(str(to))


def rows(page, n=0):
    cells = "all => all.map(row => [row.cells[0].textContent, row.cells[2].textContent])"
    return [tuple(row) for row in widget(page, n).locator("tbody tr").evaluate_all(cells)]


def boxes(page, part, n=0):
    """Where each shape of a kind stands on the picture, and how thick its line is: x, y, width, height, stroke."""
    read = "all => all.map(r => [...['x', 'y', 'width', 'height', 'stroke-width'].map(a => Number(r.getAttribute(a)))])"
    return np.array(widget(page, n).locator(f".{part}").evaluate_all(read)).reshape(-1, 5)


def marked(page, n=0):
    """The patch with a dashed frame, counted row by row, or None."""
    found, cell = boxes(page, "pic-mark.dashed", n), boxes(page, "pic-grid", n)[0, 2]
    columns = round(widget(page, n).locator("svg").bounding_box()["width"] / cell)
    return int(found[0, 1] // cell) * columns + int(found[0, 0] // cell) if len(found) else None


def over(page, patch, columns, n=0):
    """The middle of a patch, in the page."""
    box, cell = widget(page, n).locator("svg").bounding_box(), boxes(page, "pic-grid", n)[0, 2]
    return box["x"] + (patch % columns + 0.5) * cell, box["y"] + (patch // columns + 0.5) * cell


def test_it_opens_as_it_was_made(page, made):
    for n, view in enumerate(made):
        assert status(page, n) == view.sentence()
        assert rows(page, n) == view.table()[1:]
    assert words(page).all_inner_texts() == ["a", "␣seven", ",", "end"]
    assert words(page).evaluate_all("all => all.map(w => w.ariaSelected)") == ["false", "true", "false", "false"]
    assert widget(page).locator(".pic-page").inner_text() == "Picture 1 of 3"


def test_every_number_is_that_of_python(page, made):
    seen = set()
    for picture, caption in enumerate(WORDS):
        turn(page, 1 if picture else 0)
        for layer in (0, 1):
            select(page, "Layer", layer)
            for head in (0, 1, 2, "mean"):
                select(page, "Head", head)
                for word in range(len(caption)):
                    words(page).nth(word).click()
                    expected = made[0].sentence(picture, word, layer=layer, head=head)
                    assert status(page) == expected
                    assert rows(page) == made[0].table(picture, word, layer=layer, head=head)[1:]
                    seen.add(expected)
    assert len(seen) == 14 * 2 * 4


def test_exact_numbers_are_those_of_python(page, made):
    for word in range(4):
        words(page, 1).nth(word).click()
        assert status(page, 1) == made[1].sentence(0, word)
        assert rows(page, 1) == made[1].table(0, word)[1:]
        assert re.search(r"with 0\.\d{4} of its attention", status(page, 1))


def test_the_pixels_are_those_of_the_picture(page):
    read = (
        "c => [c.width, c.height, c.offsetWidth, c.offsetHeight, getComputedStyle(c).imageRendering,"
        " [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]"
    )
    for picture in range(3):
        width, height, wide, high, rendering, data = widget(page).locator("canvas").evaluate(read)
        assert (width, height, rendering) == (12, 8, "pixelated")
        assert wide / width == high / height == 30  # a whole number: each pixel is as large as all others
        found = np.array(data).reshape(8, 12, 4)
        assert np.abs(found[..., :3] - 255 * np.array(PICTURES[picture])[..., None]).max() <= 0.5 + 1e-9
        assert (found[..., 3] == 255).all()
        turn(page)


def test_an_outline_is_as_thick_as_the_attention(page, made):
    """The thickest is that of the largest weight of any word of the picture, in this layer and head."""
    top = max(made[0].attention(word=word).max() for word in range(4))
    for word in range(4):
        words(page).nth(word).click()
        given = made[0].attention(word=word).ravel()
        found, cell = boxes(page, "pic-outline"), 120
        patches = (found[:, 1] // cell * 3 + found[:, 0] // cell).astype(int)
        assert patches.tolist() == [i for i in range(6) if 7 * given[i] / top >= 0.5]
        assert found[:, 4] == pytest.approx(7 * given[patches] / top)
        half = found[:, 4] / 2
        assert found[:, 0] - half == pytest.approx(patches % 3 * cell + 0.5)  # inside its patch
        assert found[:, 0] + found[:, 2] + half == pytest.approx((patches % 3 + 1) * cell - 0.5)
        assert found[:, 1] - half == pytest.approx(patches // 3 * cell + 0.5)
        assert found[:, 1] + found[:, 3] + half == pytest.approx((patches // 3 + 1) * cell - 0.5)
        edges = boxes(page, "pic-edge")
        assert edges[:, 4] == pytest.approx(found[:, 4] + 2)


def test_the_largest_shares_are_printed_on_their_patches(page, made):
    for n, columns, view in ((0, 3, made[0]), (1, 8, made[1])):
        for word in range(4):
            words(page, n).nth(word).click()
            given = view.attention(word=word).ravel()
            order = [i for i in np.argsort(-given, kind="stable")[:3] if given[i] >= 0.005]
            assert widget(page, n).locator(".pic-number").all_text_contents() == [f"{given[i]:.2f}" for i in order]
            tags, cell = boxes(page, "pic-tag", n), boxes(page, "pic-grid", n)[0, 2]
            assert [int(y // cell) * columns + int(x // cell) for x, y, *_ in tags] == order
            assert ((tags[:, 0] + tags[:, 2]) // cell == tags[:, 0] // cell).all()  # and stay on it


def test_the_bar_of_a_word_is_what_the_patches_get(page, made):
    read = "all => all.map(b => b.firstChild.getBoundingClientRect().width / b.clientWidth)"
    shares = widget(page).locator(".pic-share").evaluate_all(read)
    told = [float(re.search(r"together get ([\d.]+);", made[0].sentence(word=word)).group(1)) for word in range(4)]
    assert shares == pytest.approx(told, abs=0.03)
    assert words(page).evaluate_all("all => all.map(w => w.ariaLabel)") == [
        f"{visible(word)}, {share:.2f} to patches" for word, share in zip(WORDS[0], told, strict=True)
    ]
    assert max(shares) - min(shares) > 0.1


def test_the_bars_of_the_table_are_as_long_as_the_shares(page):
    read = "all => all.map(t => t.firstChild.getBoundingClientRect().width / t.getBoundingClientRect().width)"
    shares = widget(page).locator(".pic-track").evaluate_all(read)
    assert shares == pytest.approx([float(share) for _, share in rows(page)], abs=0.01)
    assert sum(shares) == pytest.approx(1, abs=0.02)


def test_words_are_chosen_by_keyboard(page, made):
    words(page).nth(1).focus()
    for key, word in (("ArrowRight", 2), ("End", 3), ("ArrowRight", 3), ("ArrowLeft", 2), ("Home", 0),
                      ("ArrowLeft", 0)):  # fmt: skip
        page.keyboard.press(key)
        assert status(page) == made[0].sentence(word=word)
        assert page.evaluate("[...document.activeElement.parentNode.children].indexOf(document.activeElement)") == word
    page.keyboard.press("Control+ArrowRight")  # left to the browser
    assert status(page) == made[0].sentence(word=0)
    assert words(page).evaluate_all("all => all.map(w => w.tabIndex)") == [0, -1, -1, -1]


def test_every_part_is_reached_by_the_tab_key(page):
    widget(page).get_by_role("button", name="Picture before").focus()
    named = (
        "document.activeElement.getAttribute('aria-label') ?? document.activeElement.parentNode.firstChild.textContent"
    )
    found = []
    for _ in range(5):
        page.keyboard.press("Tab")
        found.append(page.evaluate(named).split(",")[0].strip())
    assert found == ["Next picture", "Layer", "Head", "␣seven", "Picture 1"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("m")  # the head called mean
    assert "mean over the heads" in status(page)


def test_pictures_are_turned_by_the_buttons(page, made):
    before, after = (widget(page).get_by_role("button", name=name) for name in ("Picture before", "Next picture"))
    assert (before.get_attribute("aria-disabled"), after.get_attribute("aria-disabled")) == ("true", "false")
    words(page).nth(3).click()
    after.focus()
    page.keyboard.press("Enter")  # to a caption of two words
    assert status(page) == made[0].sentence(1, 1)
    assert words(page).all_inner_texts() == ["two", "↵"]
    turn(page)
    turn(page)  # there is no fourth
    assert widget(page).locator(".pic-page").inner_text() == "Picture 3 of 3"
    assert (before.get_attribute("aria-disabled"), after.get_attribute("aria-disabled")) == ("false", "true")
    assert words(page).count() == 8
    turn(page, -2)
    assert status(page) == made[0].sentence(0, 1)


def test_what_is_one_alone_is_no_choice(page):
    assert widget(page, 1).get_by_role("button").count() == 0
    assert widget(page, 1).get_by_role("combobox").count() == 0
    assert widget(page).get_by_role("combobox").count() == 2
    options = widget(page).get_by_role("combobox", name="Head").locator("option").all_inner_texts()
    assert options == ["mean", "0", "1", "2"]


def told_about(page, made, patch, columns=3, n=0):
    view = made[n]
    share = view.attention(word=view.word).ravel()[patch]
    number = f"{share:.4f}" if n else f"{share:.2f}"
    where = f"row {patch // columns + 1}, column {patch % columns + 1}"
    return view.sentence().split(": ")[0] + f": the patch in {where} gets {number} of its attention."


def test_a_patch_is_told_under_the_mouse_and_kept_by_a_click(page, made):
    for patch in (5, 2):
        page.mouse.move(*over(page, patch, 3))
        assert status(page) == told_about(page, made, patch)
        assert marked(page) == patch
    page.mouse.move(5, 5)
    assert status(page) == made[0].sentence()
    assert marked(page) is None
    page.mouse.click(*over(page, 4, 3))
    page.mouse.move(5, 5)
    assert status(page) == told_about(page, made, 4)
    page.mouse.click(*over(page, 4, 3))  # a second one lets go
    page.mouse.move(5, 5)
    assert status(page) == made[0].sentence()


def test_a_patch_is_marked_by_keyboard(page, made):
    figure = widget(page, 1).locator(".pic-figure")
    figure.focus()
    largest = int(made[1].attention().argmax())
    page.keyboard.press("ArrowLeft")
    assert marked(page, 1) == largest
    assert status(page, 1) == told_about(page, made, largest, 8, 1)
    for key, patch in (("Home", 0), ("ArrowLeft", 0), ("ArrowDown", 8), ("ArrowRight", 9), ("ArrowUp", 1), ("End", 63),
                       ("ArrowDown", 63), ("Shift+ArrowUp", 63)):  # fmt: skip
        page.keyboard.press(key)
        assert status(page, 1) == told_about(page, made, patch, 8, 1)
        assert marked(page, 1) == patch
    words(page, 1).nth(2).click()
    assert marked(page, 1) == 63  # it stays when another word is chosen
    figure.focus()
    page.keyboard.press("Escape")
    assert status(page, 1) == made[1].sentence(0, 2)


def test_all_that_shows_one_widget_changes_with_it(page, made):
    """So a kernel's change would be seen."""
    turn(page, 1, 2)
    select(page, "Layer", 1, 3)
    select(page, "Head", 1, 2)
    words(page, 3).nth(1).click()
    for n in (2, 3):
        assert status(page, n) == made[0].sentence(1, 1, layer=1, head=1)
        assert widget(page, n).get_by_role("combobox", name="Head").input_value() == "1"
        assert widget(page, n).locator(".pic-page").inner_text() == "Picture 2 of 3"
    assert boxes(page, "pic-outline", 2).tolist() == boxes(page, "pic-outline", 3).tolist()


def test_hostile_words_are_text(page):
    assert words(page, 1).all_inner_texts() == [visible(HOSTILE), "⟨202E⟩", "∅", "模型"]
    assert f"“{visible(HOSTILE)}”" in status(page, 1)
    assert widget(page, 1).get_attribute("aria-label") == HOSTILE
    assert page.locator(".pic img, .pic script").count() == 0


def test_it_is_labelled_for_screen_readers(page):
    assert widget(page).get_attribute("role") == "group"
    assert widget(page).get_attribute("aria-label") == "Captions"
    assert widget(page).get_attribute("data-lm-suppress-shortcuts") == "true"
    assert widget(page).locator("[role=status]").count() == 1
    assert widget(page).locator(".pic-words").get_by_role("option").count() == 4
    assert widget(page).get_by_role("listbox", name="Words of the caption").count() == 1
    assert widget(page).get_by_role("table", name="Captions").count() == 1
    assert widget(page).get_by_role("rowheader").count() == 7
    assert widget(page).get_by_role("columnheader").all_inner_texts() == ["patch", "share"]
    figure = widget(page).get_by_role("application")
    assert figure.get_attribute("aria-label").startswith("Picture 1, 2 rows and 3 columns of patches. Arrow keys")
    turn(page)
    assert figure.get_attribute("aria-label").startswith("Picture 2, ")
    hidden = widget(page).locator("canvas, svg").evaluate_all("all => all.map(one => one.ariaHidden)")
    assert hidden == ["true", "true"]


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
    page.mouse.move(*over(page, 4, 3))

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
    for part in (".pic-status", ".pic-note", ".pic-name", ".pic-page", "tbody th", "tbody td:last-child", "thead th",
                 "button", "select"):  # fmt: skip
        assert contrast(ground, colour(part, "color")) >= 4.5, part
    for part in (".pic-track > span", ".pic-share > span"):
        assert contrast(ground, colour(part, "backgroundColor")) >= 3, part
    assert contrast(colour(".pic-tag", "fill"), colour(".pic-number", "fill")) >= 4.5
    pairs = ((".pic-outline", ".pic-edge"), (".pic-mark.dashed", ".pic-mark"))
    for inner, edge in pairs:  # one of the two is seen on any grey
        for grey in range(256):
            both = [contrast([grey] * 3, colour(part, "stroke")) for part in (inner, edge)] if grey % 51 == 0 else [9]
            assert max(both) >= 3, (inner, grey)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone(opened, theme):
    page = opened(theme=theme, width=375).page
    for n in (0, 1, 2):
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        assert widget(page, n).evaluate(
            "view => [...view.querySelectorAll('*')].every(e => e.getBoundingClientRect().right <= 375)"
        )
        wide = widget(page, n).locator("canvas").evaluate("c => c.offsetWidth / c.width")
        assert wide == int(wide) >= 15
        assert widget(page, n).locator(".pic-track").first.bounding_box()["width"] >= 60
    targets = (
        widget(page)
        .locator("button, select, .pic-word")
        .evaluate_all("all => all.map(e => Math.min(e.offsetWidth, e.offsetHeight))")
    )
    assert min(targets) >= 24


def test_it_follows_the_width_of_the_window(page):
    page.set_viewport_size({"width": 330, "height": 900})
    page.wait_for_function("document.querySelector('.pic canvas').offsetWidth < 330")
    assert page.evaluate("document.documentElement.scrollWidth") <= 330
    page.mouse.move(*over(page, 5, 3))
    assert "row 2, column 3 gets" in status(page)


def test_what_stands_below_stays_in_its_place(opened):
    for width in (1280, 375):
        page = opened(width=width).page
        note = widget(page).locator(".pic-note")
        tops = []
        for word in range(4):
            words(page).nth(word).click()
            select(page, "Head", "mean" if word % 2 else 0)
            tops.append(note.bounding_box()["y"])
            widget(page).locator(".pic-figure").focus()
            page.keyboard.press("Home")
            tops.append(note.bounding_box()["y"])
            page.keyboard.press("Escape")
        assert max(tops) - min(tops) < 1
