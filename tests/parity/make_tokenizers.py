#!/usr/bin/env python3
"""Writes the tokenizers of testdata/tokenizers and what Hugging Face tokenizers makes of them.

Each folder gets a small tokenizer.json, trained on text that this script makes up, and an
expected.json with texts, their token ids and the texts of ids. The output depends on nothing but
this script and the version of the library, which VERSION names.

    pip install tokenizers==0.23.3
    tests/parity/make_tokenizers.py
"""

import json
import pathlib
import random

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

VERSION = "0.23.3"
SEED = 20240607
OUT = pathlib.Path(__file__).parent / "testdata" / "tokenizers"

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# A pattern that tells upper from lower case, as the newest vocabularies have it.
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

FOREIGN = [
    "Größe über Straße",
    "déjà vu café",
    "Привет мир, как дела",
    "日本語のテキストです",
    "你好世界,今天天气很好",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "🙂🚀👩‍👩‍👧 🇩🇪",
]


def made_up_text(rng):
    """Lines of invented words, numbers, code and greetings, always the same for one seed."""
    syllables = [a + b for a in "b d f g k l m n p r s t st tr th sh".split() for b in "a e i o u".split()]
    words = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 3))) for _ in range(300)]
    words += "the of and to in is it that was for on are with they I'm don't we've you'll".split()
    lines = []
    for _ in range(1500):
        line = [rng.choice(words[: rng.randint(5, len(words))]) for _ in range(rng.randint(2, 9))]
        if rng.random() < 0.3:
            line.insert(rng.randrange(len(line)), str(rng.randint(0, 99999)))
        if rng.random() < 0.2:
            line[0] = line[0].capitalize()
        if rng.random() < 0.1:
            line.append(rng.choice(FOREIGN))
        lines.append(" ".join(line) + rng.choice([".", "!", "?", ",", "", "\n", "  x = (a + b);\n\n"]))
    return lines


TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\r\n\r\n",
    "\t\t x\t",
    "Hello, world!",
    "hello",
    " hello",
    "  hello  ",
    "the and of the",
    "I'm you're we've they'll don't he'd it's",
    "I'M YOU'RE WE'VE THEY'LL DON'T HE'D IT'S",
    "'s't're've'm'll'd ''' 'x",
    "a'\u017f b'K",
    "0 1 12 123 1234 12345 1234567890",
    "3.14159 -2,718 1e10 0xFF ½ ² ٣٤٥ Ⅷ ๓",
    "x=1;y=22;z=333",
    "a  b   c    d",
    "a \n b \n\n c\r\n\r\n\r\nd   \n",
    "trailing space \n  \n   ",
    "no\u00a0break\u2003em\u3000ideographic\u180emongolian\u200bzero",
    "line\u2028separator\u2029paragraph\u0085next",
    "日本語のテキストと漢字カタカナ",
    "你好,世界!今天是2024年6月7日。",
    "안녕하세요 세계",
    "مرحبا بالعالم ١٢٣",
    "שלום עולם",
    "नमस्ते दुनिया क्षि",
    "สวัสดีชาวโลก",
    "Привет, мир! Ёлка",
    "Größe Straße ŒUVRE ﬁn ǅ",
    "e\u0301 \u00e9 E\u0301\u0323 \u1e69 s\u0323\u0307 s\u0307\u0323",
    "A\u030a \u212b \u2126 \u1100\u1161\u11a8 \uac01 \u0958",
    "q\u0307\u0323 \u0344 \u0390 \u1f82 \ufb1d",
    "x" + "\u0301\u0323" * 20 + "y",
    "x" + "\u0316\u0301" * 40 + "y",
    "👩‍👩‍👧‍👦 family",
    "🙂🙃🚀 🇩🇪🇫🇷 👍🏽",
    "☃ ❤️ 1️⃣ ©®™",
    "\U0001d400\U0001d401 \U00020000\U0002a6d6 \U0010fffd",
    "\u0001\u0002\u001f\u007f\u0080\u009f",
    "nul\u0000inside",
    "\ufeffbyte order mark \ufffd\ufffe",
    "zero\u200dwidth\u200cjoiners\u2060",
    "<s>",
    "<s> and </s> inside<s></s>",
    "<|begin_of_text|>text<|eot_id|>",
    "<|eot_id|><|eot_id|> <|eot_id|>",
    "<|endoftext|>",
    "a <|endoftext|> b<|endoftext|>c",
    "<|endoftext <|end|> |>",
    "pre <mask> post  <mask>\n<mask>x",
    "left\t <left>  x <right>  y",
    "one word wordy sword word, word",
    "caf\u00e9 cafe\u0301 cafe",
    "foo foobar foobarbaz barfoo",
    "func(a, b) { return a[0] + b->c; } // done",
    "https://example.com/a?b=c&d=e#f",
    "snake_case camelCase PascalCase SCREAMING_CASE",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...---***///\\\\\\",
    "$100 €50 £20 ¥3000 50% #tag @name",
    "tab\tnew\nline\rreturn\u000bvertical\u000cform",
    "sentence one.Sentence two.  Sentence three.\n\nNew paragraph",
]


def trained(pre_tokenizer, corpus, vocab_size, alphabet=True, unk=None, fuse_unk=False):
    tokenizer = Tokenizer(models.BPE(unk_token=unk, fuse_unk=fuse_unk))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[unk] if unk else [],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet else [],
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def split_then_bytes(*patterns):
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence(steps + [byte_level])


def template(tokenizer, before, after):
    names = before + after
    return processors.TemplateProcessing(
        single=" ".join(before + ["$A"] + after),
        pair=" ".join(before + ["$A"] + after + before + ["$B:1"] + after),
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in names],
    )


def make_gpt2(corpus):
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False), corpus, 600)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def make_gpt2_prefix_space(corpus):
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=True), corpus, 400)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens(["foobar", "foo"])
    tokenizer.post_processor = template(tokenizer, ["<s>"], ["</s>"])
    return tokenizer


def make_llama3(corpus):
    tokenizer = trained(split_then_bytes(LLAMA3), corpus, 700)
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    tokenizer.add_special_tokens(names + [f"<|reserved_special_token_{i}|>" for i in range(12)])
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template(tokenizer, ["<|begin_of_text|>"], [])]
    )
    # Without these merges some words are tokens only because of ignore_merges.
    fields = json.loads(tokenizer.to_str())
    fields["model"]["ignore_merges"] = True
    merges = fields["model"]["merges"]
    fields["model"]["merges"] = [m for i, m in enumerate(merges) if i < 200 or i % 5 != 0]
    return Tokenizer.from_str(json.dumps(fields))


def make_qwen2(corpus):
    tokenizer = trained(split_then_bytes(QWEN2), corpus, 600)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def make_cased(corpus):
    numbers, kana = r"\p{N}{1,3}", r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
    tokenizer = trained(split_then_bytes(numbers, kana, CASED), corpus, 600)
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = template(tokenizer, ["<s>"], [])
    return tokenizer


def make_added(corpus):
    """Added tokens of every kind, normalized and not."""
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False), corpus, 350)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC()])
    tokenizer.add_special_tokens(
        [
            "<s>",
            "</s>",
            AddedToken("<mask>", lstrip=True, rstrip=True, special=True),
            AddedToken("<left>", lstrip=True, special=True),
            AddedToken("<right>", rstrip=True, special=True),
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken("word", single_word=True),
            AddedToken("foo"),
            AddedToken("foobar"),
            AddedToken("foobarbaz", single_word=True),
            AddedToken("caf\u00e9", normalized=True),
            AddedToken("cafe\u0301", normalized=False),
            AddedToken("日本", single_word=True, normalized=False),
            AddedToken("世界", lstrip=True, rstrip=True),
            AddedToken("  "),
        ]
    )
    tokenizer.post_processor = template(tokenizer, ["<s>", "<s>"], ["</s>"])
    return tokenizer


def make_digits_removed(corpus):
    """Digits one by one, white space dropped, and bytes that no token stands for."""
    steps = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split(Regex(r"\S+"), "removed", invert=True),
        pre_tokenizers.Split("_", "removed"),
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True),
    ]
    few = [line for line in corpus if line.isascii()]
    tokenizer = trained(
        pre_tokenizers.Sequence(steps), few, 320, alphabet=False, unk="<unk>", fuse_unk=True
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel()])
    return tokenizer


def make_no_unknown(corpus):
    """Bytes that no token stands for vanish; runs of digits stay together."""
    steps = [
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    few = [line for line in corpus if line.isascii()]
    return trained(pre_tokenizers.Sequence(steps), few, 300, alphabet=False)


def case_of(tokenizer, text):
    tokenizer.encode_special_tokens = False
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    ids_special = tokenizer.encode(text, add_special_tokens=True).ids
    tokenizer.encode_special_tokens = True
    ids_plain = tokenizer.encode(text, add_special_tokens=False).ids
    return {
        "text": text,
        "ids": ids,
        "ids_special": ids_special,
        "ids_plain": ids_plain,
        "decoded": tokenizer.decode(ids_special, skip_special_tokens=False),
        "decoded_skip": tokenizer.decode(ids_special, skip_special_tokens=True),
    }


def stream_of(tokenizer, rng):
    """Ids in no sensible order, so that most bytes are no UTF-8."""
    ids = [rng.randrange(tokenizer.get_vocab_size()) for _ in range(rng.randint(1, 24))]
    return {
        "ids": ids,
        "decoded": tokenizer.decode(ids, skip_special_tokens=False),
        "decoded_skip": tokenizer.decode(ids, skip_special_tokens=True),
    }


def write(name, tokenizer, rng, merges_as_text):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    fields = json.loads(tokenizer.to_str())
    if merges_as_text:
        fields["model"]["merges"] = [" ".join(merge) for merge in fields["model"]["merges"]]
    text = json.dumps(fields, ensure_ascii=merges_as_text, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    again = Tokenizer.from_str(text)
    expected = {
        "cases": [case_of(again, t) for t in TEXTS],
        "streams": [stream_of(again, rng) for _ in range(24)],
    }
    lines = [f'"{key}":[\n' + ",\n".join(json.dumps(e) for e in value) + "\n]" for key, value in expected.items()]
    (folder / "expected.json").write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


def main():
    if tokenizers.__version__ != VERSION:
        raise SystemExit(f"needs tokenizers {VERSION}, found {tokenizers.__version__}")
    rng = random.Random(SEED)
    corpus = made_up_text(rng)
    makers = [
        make_gpt2,
        make_gpt2_prefix_space,
        make_llama3,
        make_qwen2,
        make_cased,
        make_added,
        make_digits_removed,
        make_no_unknown,
    ]
    for i, maker in enumerate(makers):
        name = maker.__name__.removeprefix("make_")
        write(name, maker(corpus), rng, merges_as_text=i % 3 == 0)


if __name__ == "__main__":
    main()
