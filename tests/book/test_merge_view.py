"""MergeView in a page without a kernel: what the script merges is what the library merges, step by step.

Its first widget has a vocabulary that a small text trained, one by hand in which two merges make one token, and one of
no merges; its second has names and texts as hostile as they can be, and every kind of byte in its merges.
"""

import random
import re
import unicodedata

import pytest
import regex

from bookformer.bpe import PIECES, BPETokenizer
from bookformer.widgets.merge_view import merge_steps, token_text

HOSTILE_SHOWN = "</SCRIPT><img src=x onerror=window.hacked=1>⇥语言↵\"'&amp;⟨202E⟩"
HOSTILE = "</SCRIPT><img src=x onerror=window.hacked=1>\t语言\n\"'&amp;\u202e"
TRAINED = (
    "The cat sat on the mat, and the other cat said that they'd met there: it's the 12th of 2024, isn't it?\n"
    "\tif the cat  sat:\n    the mat, the mat 你好, 我们在这里, 你们在那里。我们在这里! café caf\u0065\u0301 🙂🙂🙃 "
)
BPE = BPETokenizer.train(TRAINED * 2, 340)
TWICE = [(b"b", b"c"), (b"a", b"bc"), (b"abc", b"d"), (b"a", b"b"), (b"ab", b"c"), (b"a", b"a")]
BYTES = [(b" ", b" "), (b" ", b"\n"), *((bytes([b]), bytes([255 - b])) for b in range(255) if b != 223)]
BYTES += [(BYTES[-1][0] + BYTES[-1][1], b"\xad"), (b"\xef", b"\xbb"), (b"\xef\xbb", b"\xbf")]  # and U+FEFF
TEXTS = ["the cat sat", HOSTILE, "x" * 60, " \t a\nb"]
CODE = f"""
from bookformer.bpe import BPETokenizer
from bookformer.widgets import MergeView
BPE = BPETokenizer.train({TRAINED!r} * 2, 340)
"""
SHOW = f"MergeView({{'trained': BPE.merges, 'by hand': {TWICE!r}, 'none': []}}, {TEXTS!r})"
FREE = f"MergeView({{{HOSTILE!r}: {BYTES!r}}}, [{HOSTILE!r}], label={HOSTILE!r})"
KINDS = {"L": regex.compile(r"\p{L}"), "N": regex.compile(r"\p{N}"), "S": regex.compile(r"\s")}
HARD = [
    "",
    "a",
    " ",
    "你",
    "\u0301",
    "🙂",
    "the cat sat on the other mat",
    "They'd said it's isn't I'm we've you'll THEY'D 'tis ''s",
    "the   cat    sat  ",
    "\n\n\tif the:\n        cat\t\n  ",
    "我们在这里, 你好。那里 the 猫",
    "🙂🙃 👩\u200d💻 🇨🇳🏽 🙂the",
    "cafe\u0301 e\u0301\u0301 Å ﬁ \u0301the \u0c95\u0ccd\u0cb7",
    "12th of 2024, 3.14, ½ Ⅳ ٣ 一二三 x2",
    "\ufeffthe\u0085 \u0085cat\u00a0\u00a0the\u3000 \u2028the \u200b\u00ad\u180e the\x1c\x1fthe",
    "aaaaa aa baaab",
    "שלום the العربية \u202ethe",
    "𝒜the 𠀀 \U0010ffff \ue000",
    HOSTILE,
    '<b>the</b> &lt; & "cat" \\n ${1} `x`',
    "a" * 200,
    "🙂" * 200,
]
CODES = [CODE, SHOW, FREE]
READY = (".merge-status", 2)


def widget(page, n=0):
    return page.locator(".merge").nth(n)


def status(page, n=0):
    return widget(page, n).locator(".merge-status").inner_text()


def counts(page, n=0):
    return widget(page, n).locator(".merge-counts").inner_text()


def typed(page, text, n=0):
    widget(page, n).locator("textarea").fill(text)


def tokens(page, n=0):
    """(id, what is shown, its bytes) of each box."""
    boxes = widget(page, n).locator("li").evaluate_all(
        "boxes => boxes.map((box) => [box.querySelector('.merge-id').textContent, "
        "box.querySelector('.merge-token').textContent, box.title])"
    )  # fmt: skip
    return [(int(i), text, bytes.fromhex(title.removeprefix("bytes "))) for i, text, title in boxes]


def slide(page, step, n=0):
    widget(page, n).locator("input[type=range]").evaluate(
        "(slider, step) => { slider.value = step; slider.dispatchEvent(new Event('input')); }", step
    )


def steps(page, n=0):
    return int(widget(page, n).locator("input[type=range]").get_attribute("max"))


def names(bpe, text):
    """What the boxes should hold at the end."""
    return [(i, token_text(bpe.tokens[i]), bpe.tokens[i]) for i in bpe.encode(text)]


@pytest.mark.parametrize(("n", "place", "merges"), [(0, 0, BPE.merges), (0, 1, TWICE), (0, 2, []), (1, 0, BYTES)])
def test_the_last_step_is_what_the_tokenizer_makes(page, n, place, merges):
    widget(page, n).locator("select").select_option(str(place))
    bpe = BPETokenizer(merges)
    for text in HARD:
        typed(page, text, n)
        assert tokens(page, n) == names(bpe, text), ascii(text)


def test_each_step_is_what_python_makes(page):
    for text in HARD[4:14]:
        typed(page, text)
        wanted = merge_steps(BPE.merges, text)
        assert steps(page) == len(wanted) - 1
        for step in range(len(wanted)):
            slide(page, step)
            assert [token for _, _, token in tokens(page)] == wanted[step], (step, ascii(text))


def test_random_texts_of_every_kind_of_character(page):
    letters = random.Random(0)
    for _ in range(40):
        drawn = (chr(letters.randrange(1, 0xD800)) for _ in range(40))
        known = "".join(char for char in drawn if unicodedata.category(char) != "Cn")
        kinds = [TRAINED, "".join(HARD), known]
        text = "".join(letters.choices(letters.choice(kinds), k=letters.randrange(200))).replace("\r", "")
        typed(page, text)
        assert [i for i, _, _ in tokens(page)] == BPE.encode(text), ascii(text)


def test_the_script_cuts_at_the_same_kinds_of_characters(page):
    """Letters, numbers and white space over all of Unicode. Newly assigned characters may be unknown to one of both."""
    script = page.evaluate(
        r"""() => Array.from({ length: 0x110000 }, (_, c) => { const char = String.fromCodePoint(c);
          return /\p{L}/u.test(char) ? "L" : /\p{N}/u.test(char) ? "N" : /\p{White_Space}/u.test(char) ? "S" : "-";
        }).join("")"""
    )
    library = "".join(
        next((name for name, kind in KINDS.items() if kind.match(char)), "-") for char in map(chr, range(0x110000))
    )
    other = [c for c in range(0x110000) if script[c] != library[c]]
    assert all("-" in (script[c], library[c]) and "S" not in (script[c], library[c]) for c in other), other[:5]
    assert not [c for c in other if unicodedata.category(chr(c)) != "Cn"], other[:5]


def test_the_merge_just_done_is_told_in_words(page):
    typed(page, "the the other them")
    wanted = merge_steps(BPE.merges, "the the other them")
    before = wanted[0]
    for step, after in enumerate(wanted[1:], 1):
        slide(page, step)
        found = re.match(
            rf"Step {step} of {len(wanted) - 1}, merge (\d+): (.+) \+ (.+) → (.+), (\d+) places?\. (\d+) tokens? now\.",
            status(page),
        )
        rank, left, right, made, places, left_over = found.groups()
        pair = BPE.merges[int(rank)]
        assert [token_text(part) for part in (*pair, pair[0] + pair[1])] == [left, right, made]
        assert int(places) == len(before) - len(after)
        assert int(left_over) == len(after)
        outlined = widget(page).locator("li.made .merge-token").all_inner_texts()
        assert outlined == [made] * int(places)
        assert status(page).endswith(" No other merge fits.") == (step == len(wanted) - 1)
        before = after


def test_one_place_and_many_places(page):
    widget(page).locator("select").select_option("1")
    typed(page, "bc")
    assert status(page) == "Step 1 of 1, merge 0: b + c → bc, 1 place. 1 token now. No other merge fits."
    typed(page, "bc bcbc")
    assert "merge 0: b + c → bc, 3 places. 4 tokens now." in status(page)
    typed(page, "aaa")
    assert "merge 5: a + a → aa, 1 place. 2 tokens now." in status(page)


def test_a_token_made_in_two_ways_has_one_id(page):
    widget(page).locator("select").select_option("1")
    typed(page, "abc abcd")
    assert [i for i, _, _ in tokens(page)] == BPETokenizer(TWICE).encode("abc abcd")
    typed(page, "aa")
    assert [i for i, _, _ in tokens(page)] == [256 + 4]  # six merges, one of which makes nothing new


def test_the_counts(page):
    text = "我们在这里 🙂e\u0301"
    typed(page, text)
    n = len(BPE.encode(text))
    assert counts(page) == f"9 characters, {len(text.encode())} bytes, {n} tokens now, {n / 9:.2f} tokens per character"
    slide(page, 0)
    size = len(text.encode())
    assert counts(page) == f"9 characters, {size} bytes, {size} tokens now, {size / 9:.2f} tokens per character"
    assert status(page) == f"Step 0 of {steps(page)}: each byte is a token."
    typed(page, "a")
    assert counts(page) == "1 character, 1 byte, 1 token now, 1.00 tokens per character"


def test_part_of_a_character_is_shown_in_hex(page):
    typed(page, "猫 你")
    slide(page, 0)
    assert [text for _, text, _ in tokens(page)] == ["⟨E7⟩", "⟨8C⟩", "⟨AB⟩", "␣", "⟨E4⟩", "⟨BD⟩", "⟨A0⟩"]
    assert [i for i, _, _ in tokens(page)] == BPETokenizer([]).encode("猫 你")


def test_a_text_with_no_merge_and_no_text(page):
    typed(page, "")
    assert status(page) == "There is no text, and no token."
    assert counts(page) == "0 characters, 0 bytes, 0 tokens now"
    assert widget(page).locator("input[type=range]").is_disabled()
    widget(page).get_by_role("button", name="Play").click(force=True)
    assert widget(page).get_by_role("button", name="Play").count() == 1  # nothing to play
    typed(page, "Q")
    assert status(page) == "Step 0 of 0: each byte is a token. No other merge fits."


def test_a_long_text_is_cut_and_said_to_be(page):
    typed(page, "🙂" * 230)
    assert status(page).startswith("The text has 230 characters: only the first 200 are merged. Step ")
    assert counts(page).startswith("200 characters, 800 bytes, ")
    assert tokens(page) == names(BPE, "🙂" * 200)
    typed(page, "🙂" * 200)
    assert status(page).startswith("Step ")


def test_the_slider_and_the_buttons_step(page):
    typed(page, "the cat sat")
    last = steps(page)
    slider = widget(page).locator("input[type=range]")
    slider.focus()
    page.keyboard.press("Home")
    assert status(page).startswith("Step 0 of ")
    page.keyboard.press("ArrowRight")
    assert status(page).startswith("Step 1 of ")
    assert slider.get_attribute("aria-valuetext") == f"1 of {last}"
    on, back = (widget(page).get_by_role("button", name=f"One merge {way}") for way in ("on", "back"))
    on.click()
    assert status(page).startswith("Step 2 of ")
    back.click()
    back.click()
    assert back.get_attribute("aria-disabled") == "true"
    back.click(force=True)  # there is nothing before
    assert status(page).startswith("Step 0 of ")
    on.focus()
    for _ in range(last + 2):
        page.keyboard.press("Enter")
    assert status(page).startswith(f"Step {last} of {last}, ")
    assert on.get_attribute("aria-disabled") == "true"


def test_a_new_text_is_merged_to_its_end(page):
    slide(page, 1)
    typed(page, "the other cat")
    assert status(page).startswith(f"Step {steps(page)} of {steps(page)}, ")
    slide(page, 1)
    widget(page).locator("select").select_option("2")
    assert status(page).startswith("Step 0 of 0: ")


def test_an_example_is_chosen(page):
    assert widget(page).locator("textarea").input_value() == TEXTS[0]
    examples = widget(page).get_by_role("group", name="Examples").get_by_role("button")
    assert examples.all_inner_texts() == ["the cat sat", HOSTILE_SHOWN, "x" * 60, "␣⇥ a↵b"]
    for n, text in enumerate(TEXTS):
        examples.nth(n).click()
        assert widget(page).locator("textarea").input_value() == text
        assert tokens(page) == names(BPE, text)


def test_it_plays_from_the_start_and_stops_at_the_end(page):
    typed(page, "the other")
    last = steps(page)
    assert last > 1
    widget(page).get_by_role("button", name="Play").click()
    assert status(page).startswith(f"Step 0 of {last}")
    assert widget(page).get_by_role("button", name="Pause").count() == 1
    page.wait_for_function(
        "n => document.querySelector('.merge-status').textContent.startsWith(`Step ${n} `)", arg=last
    )
    assert widget(page).get_by_role("button", name="Play").count() == 1


def test_it_can_be_paused_and_typing_stops_it(page):
    typed(page, "the other cat sat")
    widget(page).get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('.merge-status').textContent.startsWith('Step 1 ')")
    widget(page).get_by_role("button", name="Pause").click()
    page.wait_for_timeout(900)
    assert status(page).startswith("Step 1 ")
    widget(page).get_by_role("button", name="Play").click()  # goes on from there
    assert status(page).startswith("Step 1 ")
    typed(page, "the other cat")
    page.wait_for_timeout(900)
    assert status(page).startswith(f"Step {steps(page)} ")


def test_a_gap_stands_where_the_text_is_cut(page):
    text = "the cat's  mat 12!"
    typed(page, text)
    slide(page, 0)
    starts, at = [], 0
    for piece in PIECES.findall(text):
        starts.append(at)
        at += len(piece)
    cut = widget(page).locator("li").evaluate_all("boxes => boxes.map((box) => box.classList.contains('cut'))")
    assert [i for i, c in enumerate(cut) if c] == starts[1:]


def test_hostile_text_is_text(page):
    assert widget(page, 1).locator("option").all_text_contents() == [HOSTILE]
    assert widget(page, 1).locator(".merge-box > span").text_content() == HOSTILE
    typed(page, HOSTILE)
    slide(page, 3)
    assert page.locator(".merge img, .merge script, img[src=x]").count() == 0
    assert b"".join(token for _, _, token in tokens(page)).decode() == HOSTILE
    widget(page).locator("textarea").evaluate(
        "box => { box.value = 'a\\ud83d'; box.dispatchEvent(new Event('input')); }"
    )  # half an emoji
    assert [token for _, _, token in tokens(page)] == [b"a", b"\xef", b"\xbf", b"\xbd"]


def test_it_is_labelled_for_screen_readers(page):
    assert widget(page).get_by_role("textbox", name="Text").count() == 1
    assert widget(page).get_by_role("combobox", name="Vocabulary").count() == 1
    assert widget(page).get_by_role("slider", name="Merges done").count() == 1
    assert widget(page).get_by_role("list", name="Tokens and their ids").count() == 1
    assert widget(page).locator(".merge-status").get_attribute("role") == "status"
    assert widget(page).get_attribute("data-lm-suppress-shortcuts") == "true"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_theme(opened, theme):
    page = opened(theme=theme, width=375).page
    for n in (0, 1):
        for text in ("x" * 150, "the other cat", "\t" * 150, HOSTILE):
            typed(page, text, n)
            assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for part in (".merge-status", ".merge-token", ".merge-id", ".merge-counts", ".merge textarea", ".merge-note"):
        ink = page.locator(part).first.evaluate("node => getComputedStyle(node).color").replace(" ", "")
        shade = sum(int(c) for c in ink.removeprefix("rgba(").removeprefix("rgb(").rstrip(")").split(",")[:3])
        assert (shade < 330) == (theme == "light"), part
