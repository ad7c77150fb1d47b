"""Byte-pair encoding: exact both ways on any bytes, GPT-2's ids with GPT-2's merges, and `tokenizers`' merges."""

import json
import random
import unicodedata

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from bookformer import weights
from bookformer.bpe import END_OF_TEXT, BPETokenizer, printable_bytes
from bookformer.data import load_gpt2_vocabulary, load_reviews, load_works

HOSTILE = [
    "",
    " ",
    "Hello world",
    "  two  spaces and\tone tab\n\n\nthree line ends \n ",
    "It's we've I'd you'll they're I'm can't DON'T 'tis ''s",
    "don’t — “quoted” … ½ ² Ⅷ ٣",
    "你好，世界。今天天气不错！",
    "日本語 한국어 ไทย عربى עברית",
    "🙂👩‍👩‍👧‍👦🇨🇳 e\u0301 é \u200b\u00a0\u3000x",
    "\u0000\u0001\u007f\u0085\u2028\ufeff\uffff",
    "x=1;y='s'\\n{}[]<>|~`@#$%^&*()_+-=/?.,:;\"",
    "<|endoftext|>",
    "1234567890 3.14 1,000,000 0x1F",
    "a" * 500,
    "antidisestablishmentarianism" * 20,
    "\r\n\r \v\f",
]


@pytest.fixture(scope="module")
def gpt2():
    return BPETokenizer.from_vocabulary(*load_gpt2_vocabulary())


@pytest.fixture(scope="module")
def reference():
    """The package `tokenizers` with GPT-2's vocabulary, and no special token among the text."""
    vocabulary, merges = load_gpt2_vocabulary()
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


@pytest.mark.parametrize("text", HOSTILE)
def test_gpt2_gives_the_references_ids(text, gpt2, reference):
    assert gpt2.encode(text) == reference.encode(text).ids


def test_gpt2_gives_the_references_ids_on_random_unicode(gpt2, reference):
    """10,000 strings of all assigned characters, mixed with the ones that rules are about."""
    draw = random.Random(0)
    assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cs", "Cn")]
    near = list(" \n\t'sdmtrevl aA1½é你" + "\u0301\u3000\u00a0")
    for _ in range(10_000):
        pools = draw.choice([(assigned,), (near,), (near, assigned)])
        text = "".join(draw.choice(draw.choice(pools)) for _ in range(draw.randint(0, 12)))
        assert gpt2.encode(text) == reference.encode(text).ids, ascii(text)


def test_gpt2s_published_ids(gpt2):
    assert gpt2.vocab_size == 50_257
    assert gpt2.special == {END_OF_TEXT: 50_256}
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.decode([15496, 995]) == "Hello world"


def small(text="the cat sat on the mat, the cat sat 你好你好", vocab_size=275):
    return BPETokenizer.train(text, vocab_size, [END_OF_TEXT])


def test_any_bytes_come_back_as_they_were(gpt2):
    draw = random.Random(1)
    for tokenizer in (small(), gpt2):
        for _ in range(2000):
            content = draw.randbytes(draw.randint(0, 40))
            assert tokenizer.decode_bytes(tokenizer.encode(content)) == content
        for text in HOSTILE:
            assert tokenizer.decode(tokenizer.encode(text)) == text
            assert tokenizer.encode(text.encode()) == tokenizer.encode(text)


@pytest.mark.parametrize(
    "text", [load_works()["sonnets"], "\n".join(t for t, _ in load_reviews()[:1500]), "aaaa aaa aa abababab " * 3]
)
def test_trained_merges_are_those_of_the_reference(text):
    """Ties, too: the pair with the lower ids goes first."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = 600 if len(text) > 1000 else 262
    made.train_from_iterator([text], trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    ours = BPETokenizer.train(text, size)
    assert ours.vocab_size == size
    shown = printable_bytes()
    written = [["".join(shown[b] for b in part) for part in merge] for merge in ours.merges]
    assert written == json.loads(made.to_str())["model"]["merges"]
    assert ours.encode(text) == made.encode(text).ids


def test_merges_by_hand():
    tokenizer = BPETokenizer.train("low low low lower", 259)
    assert tokenizer.merges == [(b"l", b"o"), (b"lo", b"w"), (b" ", b"low")]
    assert [tokenizer.tokens[i] for i in tokenizer.encode("low lower slow")] == [
        b"low",
        b" low",
        b"e",
        b"r",
        b" ",
        b"s",
        b"low",
    ]


def test_the_earlier_merge_goes_first_wherever_it_stands():
    tokenizer = BPETokenizer([(b"b", b"c"), (b"a", b"b"), (b"a", b"bc")])
    assert [tokenizer.tokens[i] for i in tokenizer.encode("abcab")] == [b"abc", b"ab"]


def test_two_merges_may_make_one_token():
    tokenizer = BPETokenizer([(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"a", b"bc")])
    assert tokenizer.vocab_size == 256 + 3
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"


def test_no_text_becomes_a_special_token():
    tokenizer = small()
    end = tokenizer.special[END_OF_TEXT]
    assert end == 274
    assert end not in tokenizer.encode(f"a{END_OF_TEXT}b")
    assert tokenizer.decode([end]) == END_OF_TEXT


def test_a_file_is_read_by_us_and_by_the_package(tmp_path):
    tokenizer = small()
    tokenizer.save(tmp_path / "t.json")
    again = BPETokenizer.load(tmp_path / "t.json")
    assert (again.merges, again.special, again.tokens) == (tokenizer.merges, tokenizer.special, tokenizer.tokens)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json"))
    text = "the cat 你好\n sat"
    assert theirs.encode(text).ids == tokenizer.encode(text)
    assert theirs.decode(theirs.encode(text).ids) == text
    assert theirs.token_to_id(END_OF_TEXT) == tokenizer.special[END_OF_TEXT]


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "t.json"
    small().save(path)
    whole = path.read_bytes()
    for end in (0, 10, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"t\.json is cut short, or is no tokenizer"):
            BPETokenizer.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(type="Unigram"), "another kind of tokenizer: 'Unigram'"),
        (lambda c: c["pre_tokenizer"].update(add_prefix_space=True), "another kind of tokenizer: 'BPE'"),
        (lambda c: c["model"]["merges"].pop(), "the merges do not fit the vocabulary"),
        (lambda c: c["model"]["merges"].reverse(), "no merge before it makes|do not fit the vocabulary"),
        (lambda c: c["model"]["vocab"].update(zz=5), "'zz' is no byte, no merge makes it"),
        (lambda c: c["model"]["vocab"].update(a=65, b=64), "'a' should be id 64, and is id 65"),
        (lambda c: c["model"]["vocab"].pop("a"), "merge 0 joins b'a' and b't', but no merge before it makes b'a'"),
        (lambda c: c["model"]["merges"].append(["你", "a"]), "'你' is no token of bytes"),
    ],
)
def test_merges_that_do_not_fit_their_vocabulary_are_refused(change, message, tmp_path):
    path = tmp_path / "t.json"
    small().save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        BPETokenizer.load(path)


@pytest.fixture(scope="module")
def smollm2():
    return weights.load_smollm2()[1]


def test_smollm2s_ids_are_those_of_the_package_tokenizers_from_our_file(smollm2, tmp_path):
    """Special tokens first, digits apart, and a vocabulary that lacks some bytes."""
    smollm2.save(tmp_path / "t.json")
    reference = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json"))
    again = BPETokenizer.load(tmp_path / "t.json")
    assert smollm2.vocab_size == reference.get_vocab_size() == 49_152
    assert (smollm2.special["<|endoftext|>"], smollm2.special["<|im_end|>"], len(smollm2.special)) == (0, 2, 17)
    unwritable = set(map(chr, smollm2.without)) | {"\U0010ffff"}
    for text in [t for t in HOSTILE if not unwritable & set(t)] + ["a  1 b", "12345 ½ ²", "x²y 2024-11-25"]:
        ids = smollm2.encode(text)
        assert again.encode(text) == ids
        assert smollm2.decode(ids) == text
        if "<|" not in text:  # theirs finds special tokens in a text, ours takes them for text
            assert reference.encode(text).ids == ids
    assert smollm2.encode("1234") == [smollm2.encode(d)[0] for d in "1234"]


def test_a_byte_without_a_token_is_named(smollm2):
    assert 4 in smollm2.without
    with pytest.raises(ValueError, match=r"byte 0x04 of b' \\x04' has no token in this vocabulary"):
        smollm2.encode("a \x04")
    with pytest.raises(ValueError, match=r"byte 0x61 of b' ca' has no token"):
        BPETokenizer([(b"b", b"c")], without=b"a").encode("bc ca")


def test_special_tokens_before_the_text_or_after_it_move_all_other_ids_alike():
    merges = [(b"a", b"b"), (b"ab", b"c")]
    last, first = (BPETokenizer(merges, ["<x>", "<y>"], special_first=way) for way in (False, True))
    assert (first.special, last.special) == ({"<x>": 0, "<y>": 1}, {"<x>": 258, "<y>": 259})
    assert first.encode("abc c") == [i + 2 for i in last.encode("abc c")]
    for tokenizer in (first, last):
        assert tokenizer.decode([*tokenizer.encode("abc "), tokenizer.special["<y>"]]) == "abc <y>"


def test_digits_apart_are_cut_before_all_else():
    merges = [(b" ", b"1"), (b"1", b"2"), (b" ", b" ")]
    together, apart = (BPETokenizer(merges, digits_apart=way) for way in (False, True))
    spell = lambda tokenizer, text: [tokenizer.tokens[i] for i in tokenizer.encode(text)]  # noqa: E731
    assert spell(together, "12  12") == [b"12", b" ", b" 1", b"2"]
    assert spell(apart, "12  12") == [b"1", b"2", b"  ", b"1", b"2"]


def test_bytes_that_are_no_text_are_named():
    tokenizer = small("a b", 258)
    half = tokenizer.encode("你")[:2]
    with pytest.raises(ValueError, match=r"not UTF-8: b'\\xe4\\xbd' at byte 0 of 2 \(unexpected end of data\)"):
        tokenizer.decode(half)
    assert tokenizer.decode(half, errors="replace") == "\ufffd"
    with pytest.raises(ValueError, match=r"b'\\xff' at byte 1 of 2 \(invalid start byte\)"):
        tokenizer.decode(tokenizer.encode(b"a\xff"))


@pytest.mark.parametrize("wrong", [-1, 258])
def test_an_id_outside_the_vocabulary_is_named(wrong):
    with pytest.raises(ValueError, match=rf"id {wrong} at index 1 is outside 0 to 257"):
        small("a b", 258).decode([0, wrong])


def test_half_a_surrogate_pair_is_named():
    with pytest.raises(ValueError, match=r"'\\udcff' at index 2 is half of a surrogate pair"):
        small().encode("ab\udcff")


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("", 300, "the text is empty"),
        ("abc", 257, r"vocab_size \(257\) leaves no room for a merge beside 256 bytes and 1 special tokens"),
        ("abc", 300, r"the text has 2 merges and no more: vocab_size \(300\) can be 259 at most"),
    ],
)
def test_training_that_makes_no_sense(text, size, message):
    with pytest.raises(ValueError, match=message):
        BPETokenizer.train(text, size, [END_OF_TEXT])


@pytest.mark.parametrize(
    ("merges", "special", "message"),
    [
        ([(b"ab", b"c")], (), "merge 0 joins b'ab' and b'c', but no merge before it makes b'ab'"),
        ([(b"a", b"b"), (b"a", b"b")], (), "merge 1 joins b'a' and b'b', as merge 0 does"),
        ([], ("x", "x"), "special token 'x' needs a name that no other has"),
        ([], ("",), "special token '' needs a name"),
    ],
)
def test_merges_and_names_that_make_no_sense(merges, special, message):
    with pytest.raises(ValueError, match=message):
        BPETokenizer(merges, special)


def test_the_printable_bytes_are_256_characters_that_can_be_seen():
    shown = printable_bytes()
    assert sorted(shown) == list(range(256))
    assert len(set(shown.values())) == 256
    assert all(char.isprintable() and not char.isspace() for char in shown.values())
    assert (shown[ord(" ")], shown[ord("\n")], shown[ord("a")]) == ("Ġ", "Ċ", "a")
