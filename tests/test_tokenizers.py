"""Encoding loses nothing, or only what it says; what is unknown is named."""

import random
import unicodedata

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from bookformer.tokenizers import CharTokenizer, WordPieceTokenizer, visible


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


LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789.,!?-'你好世界\u0307")
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *LETTERS,
    *(f"##{c}" for c in LETTERS),
    "un",
    "##aff",
    "##able",
    "the",
]
HOSTILE = [
    "",
    "   ",
    "The UNAFFABLE unaffable thé café",
    "don't -- stop!?",
    "你好世界abc你",
    "tab\tline\nend\r\x00\ufffd\u200bx\u00ad\u3000y",
    "a" * 100,
    "a" * 101,
    "İstanbul ẞ ﬁ Ａ",
    "x☃y z€ $5 ^`",
    "\u4e00\u3400\uf900\U00020000",
]


def reference(lowercase):
    """The package `tokenizers` with BERT's parts; the special tokens of a model's input left out."""
    made = tokenizers.Tokenizer(
        models.WordPiece({t: i for i, t in enumerate(VOCABULARY)}, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return made


@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_gives_the_references_ids(lowercase):
    ours, theirs = WordPieceTokenizer(VOCABULARY, lowercase=lowercase), reference(lowercase)
    draw = random.Random(0)
    old = unicodedata.ucd_3_2_0  # the reference's tables of punctuation are old: take what has not changed since
    assigned = [
        c for c in map(chr, range(0x2B820)) if old.category(c) == unicodedata.category(c) not in ("Cs", "Cn", "Co")
    ]
    pools = [assigned, list("abc ,.'É你\t\u0301ABC")]
    texts = HOSTILE + ["".join(draw.choice(draw.choice(pools)) for _ in range(8)) for _ in range(3000)]
    for text in texts:
        assert ours.encode(text) == theirs.encode(text).ids, ascii(text)


def test_wordpiece_takes_the_longest_piece_first():
    tokenizer = WordPieceTokenizer(VOCABULARY)
    assert [tokenizer.tokens[i] for i in tokenizer.encode("Unaffable, the")] == ["un", "##aff", "##able", ",", "the"]
    assert tokenizer.decode(tokenizer.encode("Unaffable, thé")) == "unaffable , the"


def test_a_word_that_cant_be_spelled_is_unknown_as_a_whole():
    tokenizer = WordPieceTokenizer(["[UNK]", "un", "##a"])
    assert tokenizer.encode("una unb") == [1, 2, 0]


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [(["[UNK]", "a", "a"], "'a' stands in the vocabulary twice"), (["a"], r"of 1 tokens has no '\[UNK\]'")],
)
def test_a_wordpiece_vocabulary_that_makes_no_sense(vocabulary, message):
    with pytest.raises(ValueError, match=message):
        WordPieceTokenizer(vocabulary)


def test_wordpiece_names_an_unknown_id():
    with pytest.raises(ValueError, match="id 2 at index 0 is outside 0 to 1"):
        WordPieceTokenizer(["[UNK]", "a"]).decode([2])
