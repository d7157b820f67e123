#!/usr/bin/env python3
"""Writes what transformers makes of the demo model in deploy/demo-model/checkpoint:

testdata/demo_greedy.json  greedy continuations of held-out prompts, f32, up to the end of the text
testdata/demo_tokens.json  token ids of texts and the texts decoded from them
testdata/demo/             logits and residual stream of one prompt, as in make_checkpoints.py
"""

import os
import sys

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

import make_checkpoints as parity

HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, "..", "..", "deploy", "demo-model")
sys.path.insert(0, DEMO)

import corpus

NEW_TOKENS_MAX = 48
MARGIN_MIN = 1e-3
LOGITS_PROMPT_TOKENS = 64
PROMPTS_PER_FAMILY = {
    "plus": 5, "minus": 4, "gain": 2, "lose": 2, "compare": 2, "sort": 2, "even_or_odd": 1, "count_up": 2,
    "count_down": 2, "spell": 2, "backwards": 2, "letter_count": 1, "plural": 1, "repeat": 1, "day": 1,
    "opposite": 1, "story": 2,
}  # fmt: skip

# Bytes of every UTF-8 length, contractions, digits, runs of spaces and of line ends, special tokens.
TEXTS = [
    "", " ", "  ", "a", " a", "A", "7", "42", " 42", "Question: What is 27 plus 45? Answer:",
    "Question: Spell the word planet backwards. Answer: t, e, n, a, l, p.",
    "Once upon a time there was a girl called Anna.", "It's Tom's; they'll go, WE'VE gone, I'D say so.",
    "one\ntwo\r\nthree\n\n\nfour", "tabs\tand   spaces   ", " \n \n  x", "trailing space ", "\n", "\r\n\r\n",
    "3.14159 and 1,000,000", "caf\u00e9 na\u00efve \u00fcber", "cafe\u0301 with a combining accent",
    "\u4f60\u597d\uff0c\u4e16\u754c", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u0645\u0631\u062d\u0628\u0627", "\u0928\u092e\u0938\u094d\u0924\u0947", "\U0001f642 \U0001f469\u200d\U0001f680!",
    "\u00a0no-break\u3000wide space", "\u0661\u0662\u0663 \u00b2\u00bd \u2167", "#!$%&()*+,-./:;<=>?@[]^_`{|}~",
    "x=1;y=2", "don't 'squote'", "a\u2028b", "\u0001\u007f", "<|begin|>", "<|end|>",
    "before<|end|>after <|begin|> twice <|end|><|end|>", "<|end", "|end|>", "word" * 40,
]  # fmt: skip


def tokens_expected(tokenizer):
    cases = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = tokenizer.decode(
            plain, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        cases.append({"text": text, "ids": ids, "ids_without_begin": plain, "decoded": decoded})
    return cases


@torch.no_grad()
def greedy(model, prompt, eos):
    """(token ids with the eos, least margin between the best and the second logit)."""
    ids, margin = list(prompt), float("inf")
    while len(ids) - len(prompt) < NEW_TOKENS_MAX and (len(ids) == len(prompt) or ids[-1] != eos):
        best = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
    return ids[len(prompt) :], margin


def greedy_expected(model, tokenizer):
    cases = []
    families = {family.__name__: family for family in corpus.FAMILIES}
    for name, count in PROMPTS_PER_FAMILY.items():
        for question, _ in corpus.held_out_questions(families[name], count, seed=11):
            prompt = corpus.prompt_of(question)
            ids = tokenizer(prompt)["input_ids"]
            tokens, margin = greedy(model, ids, tokenizer.eos_token_id)
            if margin < MARGIN_MIN:
                print(f"left out, margin {margin:.2g}: {prompt}")
                continue
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            finish = "eos" if tokens[-1] == tokenizer.eos_token_id else "length"
            cases.append(
                {"family": name, "prompt": prompt, "prompt_ids": ids, "ids": tokens, "text": text,
                 "finish": finish, "margin": margin}
            )  # fmt: skip
    return cases


def main():
    torch.set_num_threads(1)
    parity.register_kv_bf16()
    logging.disable_progress_bar()
    checkpoint, out = os.path.join(DEMO, "checkpoint"), os.path.join(HERE, "testdata")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = parity.load(checkpoint)

    tokens = tokens_expected(tokenizer)
    parity.write_json(out, "demo_tokens.json", {"cases": tokens})
    cases = greedy_expected(model, tokenizer)
    about = {
        "new_tokens_max": NEW_TOKENS_MAX,
        "margin_min": MARGIN_MIN,
        "eos_id": tokenizer.eos_token_id,
    }
    parity.write_json(out, "demo_greedy.json", {**about, "cases": cases})

    story = next(case for case in cases if case["family"] == "story")
    prompt = (story["prompt_ids"] + story["ids"])[:LOGITS_PROMPT_TOKENS]
    folder = os.path.join(out, "demo")
    os.makedirs(folder, exist_ok=True)
    parity.write_expected(folder, model, "the demo model", prompt, {"stored_dtype": "bfloat16"})
    print(f"{len(cases)} greedy cases, {len(tokens)} token cases, a prompt of {len(prompt)} tokens")


if __name__ == "__main__":
    main()
