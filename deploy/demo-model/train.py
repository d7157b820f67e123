#!/usr/bin/env python3
"""Makes the demo model: its tokenizer, its weights, its configuration. See README.md.

The text comes from corpus.py and the seed. The same versions on the same kind of CPU with the same
number of threads give the same weights; elsewhere sums are rounded in another order and the weights
differ, while the measured accuracy stays about the same.
"""

import argparse
import itertools
import json
import math
import os
import sys
import time
from dataclasses import replace

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from torch.nn import functional as F

import corpus
from model import Model, Shape

HERE = os.path.dirname(os.path.abspath(__file__))

# Words with one leading space or sign, single digits, runs of signs, line ends, spaces.
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZER_DOCUMENTS = 20000
POOL_DOCUMENTS = 4096
ROW_TOKENS = 160  # Longer than any document.
LEFT_OVER_MAX = 8  # Documents that wait for the next batch before this one is taken as full.
IGNORED_EVAL = {"story"}  # Several answers are right: evaluate.py checks it.


def train_tokenizer(shape, seed):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        AddedToken(text, special=True, normalized=False) for text in (corpus.BEGIN, corpus.END)
    ]
    trainer = BpeTrainer(
        vocab_size=shape.vocab,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = itertools.islice(corpus.training_documents(seed), TOKENIZER_DOCUMENTS)
    tokenizer.train_from_iterator((prompt + answer for prompt, answer in documents), trainer)
    begin = tokenizer.token_to_id(corpus.BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{corpus.BEGIN} $A",
        pair=f"{corpus.BEGIN} $A {corpus.BEGIN}:1 $B:1",
        special_tokens=[(corpus.BEGIN, begin)],
    )
    return tokenizer


def encode(tokenizer, documents):
    """[(ids, prompt length)]"""
    prompts = tokenizer.encode_batch([prompt for prompt, _ in documents])
    answers = tokenizer.encode_batch(
        [a + corpus.END for _, a in documents], add_special_tokens=False
    )
    return [(p.ids + a.ids, len(p.ids)) for p, a in zip(prompts, answers)]


def encoded_documents(tokenizer, seed):
    documents = corpus.training_documents(seed)
    while True:
        yield from encode(tokenizer, list(itertools.islice(documents, POOL_DOCUMENTS)))


def packed(source, row_count):
    """Endless lists of row_count rows; a row is a list of documents of ROW_TOKENS tokens at most."""
    left_over = []
    while True:
        rows, free = [[] for _ in range(row_count)], [ROW_TOKENS] * row_count
        waiting = []
        for document in itertools.chain(left_over, source):
            length = len(document[0])
            row = next((row for row in range(row_count) if free[row] >= length), None)
            if row is not None:
                rows[row].append(document)
                free[row] -= length
            else:
                waiting.append(document)
            if len(waiting) == LEFT_OVER_MAX:
                break
        left_over = waiting
        yield rows


def to_tensors(rows):
    """ids, positions and mask for Model(), and which tokens are of answers: the loss is theirs."""
    size = (len(rows), max(sum(len(ids) for ids, _ in row) for row in rows))
    ids, positions = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    text, answer = torch.full(size, -1), torch.zeros(size, dtype=torch.bool)
    for row, documents in enumerate(rows):
        start = 0
        for index, (tokens, prompt_length) in enumerate(documents):
            end = start + len(tokens)
            ids[row, start:end] = torch.tensor(tokens)
            positions[row, start:end] = torch.arange(len(tokens))
            text[row, start:end] = index
            answer[row, start + prompt_length : end] = True
            start = end
    same_text = text.unsqueeze(1) == text.unsqueeze(2)
    mask = torch.tril(same_text).unsqueeze(1)
    return ids, positions, mask, answer


class Muon:
    """Momentum whose matrix updates are made orthogonal (Jordan et al. 2024, "Muon")."""

    def __init__(self, parameters, momentum=0.95):
        self.momentum = momentum
        shapes = {}
        for parameter in parameters:
            shapes.setdefault(parameter.shape, []).append(parameter)
        self.groups = [(group, torch.zeros(len(group), *shape)) for shape, group in shapes.items()]

    @staticmethod
    def orthogonal(matrices):
        """Newton-Schulz iteration of degree five; singular values end between about 0.7 and 1.2."""
        tall = matrices.shape[-2] > matrices.shape[-1]
        x = matrices.mT if tall else matrices
        x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
        for _ in range(5):
            square = x @ x.mT
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        return x.mT if tall else x

    @torch.no_grad()
    def step(self, rate):
        for group, velocity in self.groups:
            gradient = torch.stack([parameter.grad for parameter in group])
            velocity.lerp_(gradient, 1 - self.momentum)
            update = self.orthogonal(gradient.lerp(velocity, self.momentum))
            scale = rate * max(1.0, velocity.shape[-2] / velocity.shape[-1]) ** 0.5
            for parameter, change in zip(group, update):
                parameter.mul_(1 - 0.01 * rate).add_(change, alpha=-scale)


def rate_at(step, steps):
    """Warm up over 50 steps, hold for half of the run, then fall linearly to a hundredth."""
    if step < 50:
        return (step + 1) / 50
    return min(1.0, max(0.01, (steps - step) / (0.5 * steps)))


@torch.no_grad()
def accuracy(model, tokenizer, count, seed):
    """Share of held-out questions per family whose whole answer is the most likely one."""
    result = {}
    for family in corpus.FAMILIES:
        if family.__name__ in IGNORED_EVAL:
            continue
        questions = corpus.held_out_questions(family, count, seed)
        documents = [
            (corpus.prompt_of(question), " " + answers[0]) for question, answers in questions
        ]
        rows = [[document] for document in encode(tokenizer, documents)]
        ids, positions, mask, answer = to_tensors(rows)
        right = model(ids, positions, mask)[:, :-1].argmax(-1) == ids[:, 1:]
        result[family.__name__] = (right | ~answer[:, 1:]).all(-1).float().mean().item()
    return result


def loss_of(model, ids, positions, mask, answer):
    chosen = answer[:, 1:]
    return F.cross_entropy(model(ids, positions, mask)[:, :-1][chosen], ids[:, 1:][chosen])


def optimizers(model):
    """Muon for the matrices of the layers, Adam for the rest."""
    muon = Muon([p for p in model.layers.parameters() if p.ndim == 2])
    others = [p for p in model.layers.parameters() if p.ndim == 1] + [
        model.norm,
        model.embedding.weight,
    ]
    return muon, torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)


def train(model, tokenizer, arguments):
    muon, adam = optimizers(model)
    source = packed(encoded_documents(tokenizer, arguments.seed), arguments.rows)
    began, seen, mean = time.monotonic(), 0, None
    for step in range(arguments.steps):
        if step == arguments.grow_at:
            model.grow()
            muon, adam = optimizers(model)
        batch = to_tensors(next(source))
        loss = loss_of(model, *batch)
        loss.backward()
        rate = rate_at(step, arguments.steps)
        adam.param_groups[0]["lr"] = arguments.adam_rate * rate
        torch.nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], 1.0)
        adam.step()
        muon.step(arguments.muon_rate * rate)
        model.zero_grad()
        seen += batch[0].numel()
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if not math.isfinite(mean):
            sys.exit(f"train.py: the loss is {mean} at step {step}")
        if (step + 1) % 50 == 0:
            times = f"seconds {time.monotonic() - began:.0f} cpu {time.process_time():.0f}"
            print(f"step {step + 1} loss {mean:.4f} tokens {seen} {times}", flush=True)
        if (step + 1) % arguments.check_every == 0:
            shares = accuracy(model, tokenizer, 40, arguments.seed)
            print(" ".join(f"{name} {share:.2f}" for name, share in shares.items()), flush=True)
            write_checkpoint(arguments.out, model, tokenizer)


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def write_checkpoint(folder, model, tokenizer):
    os.makedirs(folder, exist_ok=True)
    shape = model.shape
    begin, end = (tokenizer.token_to_id(text) for text in (corpus.BEGIN, corpus.END))
    save_file(
        model.export(torch.bfloat16), os.path.join(folder, "model.safetensors"), {"format": "pt"}
    )
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": begin,
        "dtype": "bfloat16",
        "eos_token_id": end,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": shape.vocab,
    }
    tokenizer_config = {
        "add_bos_token": True,
        "bos_token": corpus.BEGIN,
        "clean_up_tokenization_spaces": False,
        "eos_token": corpus.END,
        "model_max_length": shape.positions,
        "pad_token": corpus.END,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation_config = {
        "bos_token_id": begin,
        "do_sample": False,
        "eos_token_id": end,
        "max_new_tokens": 160,
    }
    write_json(folder, "config.json", config)
    write_json(folder, "tokenizer_config.json", tokenizer_config)
    write_json(folder, "generation_config.json", generation_config)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", default=os.path.join(HERE, "checkpoint"), help="folder to write")
    parser.add_argument("--seed", type=int, default=1, help="of the text and of the first weights")
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps")
    parser.add_argument("--grow-at", type=int, default=2600, help="step that doubles the layers")
    parser.add_argument(
        "--rows", type=int, default=8, help=f"rows of {ROW_TOKENS} tokens in a step"
    )
    parser.add_argument(
        "--muon-rate", type=float, default=0.006, help="top learning rate of the matrices"
    )
    parser.add_argument(
        "--adam-rate", type=float, default=0.0015, help="top learning rate of the rest"
    )
    parser.add_argument(
        "--check-every", type=int, default=500, help="steps between accuracy checks"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    final = Shape()
    tokenizer = train_tokenizer(final, arguments.seed)
    # Half the layers learn the easy part in half the time; grow() then doubles them.
    model = Model(replace(final, layers=final.layers // 2))
    train(model, tokenizer, arguments)
    assert model.shape == final
    write_checkpoint(arguments.out, model, tokenizer)


if __name__ == "__main__":
    main()
