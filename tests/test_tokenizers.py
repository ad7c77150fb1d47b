"""Encoding loses nothing, and what is unknown is named."""

import pytest

from bookformer.tokenizers import CharTokenizer, visible


@pytest.mark.parametrize("text", ["attention", "你好，世界", "a\nb\tc  d", "", "🙂"])
def test_decode_is_the_inverse_of_encode(text):
    tokenizer = CharTokenizer("atenion你好，世界\nbc\td 🙂")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_follow_code_points_whatever_the_order_of_the_text():
    assert CharTokenizer("cab").encode("abc") == [0, 1, 2]
    assert CharTokenizer("abcabc").vocab_size == 3


def test_an_empty_text_has_no_vocabulary():
    with pytest.raises(ValueError, match="the text is empty"):
        CharTokenizer("")


def test_an_unknown_character_is_named_with_its_place():
    with pytest.raises(ValueError, match=r"character 'z' at index 2 is not among the 2 characters"):
        CharTokenizer("ab").encode("abz")


@pytest.mark.parametrize("wrong", [-1, 2])
def test_an_unknown_id_is_named_with_its_place(wrong):
    with pytest.raises(ValueError, match=rf"id {wrong} at index 1 is outside 0 to 1"):
        CharTokenizer("ab").decode([0, wrong])


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" the", "␣the"), ("\n", "↵"), ("\t", "⇥"), ("", "∅"), ("语言", "语言"), ("\x00", "⟨0⟩"), ("\u202e", "⟨202E⟩")],
)
def test_what_has_no_shape_is_made_visible(token, shown):
    assert visible(token) == shown
