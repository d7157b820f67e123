#!/usr/bin/env python3
"""Writes testdata/checkpoints: small Llama checkpoints, random weights, and what they must compute.

Each folder is a checkpoint in the Hugging Face layout plus the results of transformers' own
LlamaForCausalLM, loaded from these very files, weights raised from the stored type to f32, eager
attention, on a CPU:

  expected.json  prompt, which of its rows are stored, shapes, greedy continuation, rounding noise
  logits.f32     (rows, vocab_size)              little-endian f32
  hidden.f32     (layers + 1, rows, hidden_size) little-endian f32; index 0 is the embedding, index
                 i the residual stream after layer i; the final norm is not applied

With other versions of torch or another CPU the last bits of the results differ; the weights do not.
"""

import argparse
import json
import math
import os
import re
import shutil
from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AttentionInterface, AttentionMaskInterface, LlamaForCausalLM
from transformers.masking_utils import eager_mask
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.utils import logging

HERE = os.path.dirname(os.path.abspath(__file__))
STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
KV_BF16 = "eager_with_bf16_kv_memory"
GREEDY_TOKENS = 24
DIFFERENT_MIN = 8  # Tokens in a greedy continuation: a text that repeats itself proves little.
MARGIN_MIN = 0.02  # Between the best and the second logit, so that rounding cannot choose.
PROMPTS_TRIED = 400


@dataclass(frozen=True)
class Case:
    name: str
    about: str
    dtype: str
    hidden: int = 64
    ffn: int = 128
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    vocab: int = 256
    positions: int = 512
    tied: bool = False
    bias: bool = False
    eps: float = 1e-5
    shards: int = 1
    prompt: int = 48
    eos: object = 2
    # The fields of config.json that differ between the generations of the format.
    config: dict = field(default_factory=dict)


def older(dtype, **more):
    """What transformers 4 wrote."""
    return {"torch_dtype": dtype, "transformers_version": "4.45.0", "pretraining_tp": 1, **more}


def newer(dtype, **rope):
    """What transformers 5 writes."""
    rope = {"rope_theta": 10000.0, "rope_type": "default"} | rope
    return {"dtype": dtype, "transformers_version": "5.0.0", "rope_parameters": rope}


LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}

CASES = [
    Case(
        "mha-f32-untied", "every head has its own KV head; the few fields of the first Llama's config.json",
        "float32", hidden=32, ffn=80, layers=3, kv_heads=4, head_dim=8, eps=1e-6,
        config={"torch_dtype": "float32", "transformers_version": "4.28.0"},
    ),
    Case(
        "gqa4-bf16-tied", "four heads on a KV head, head shared with the embedding",
        "bfloat16", ffn=160, heads=8, head_dim=8, tied=True, prompt=70,
        config=newer("bfloat16") | {"head_dim": 8},
    ),
    Case(
        "gqa2-f16-untied", "two heads on a KV head, f16, several eos ids",
        "float16", eos=[2, 3, 7], config=older("float16", rope_theta=10000.0, rope_scaling=None),
    ),
    Case(
        "mqa-bf16-tied", "one KV head for all heads",
        "bfloat16", kv_heads=1, tied=True, config=newer("bfloat16", rope_theta=500000.0),
    ),
    Case(
        "llama3-rope-new", "llama3 RoPE scaling in rope_parameters, prompt past the original length",
        "bfloat16", ffn=96, tied=True, prompt=300, eos=[2, 3],
        config=newer("bfloat16", **LLAMA3, factor=8.0, original_max_position_embeddings=64) | {"head_dim": 16},
    ),
    Case(
        "llama3-rope-old", "llama3 RoPE scaling in rope_theta and rope_scaling",
        "bfloat16", ffn=96, heads=2, kv_heads=1, head_dim=32, prompt=100, eos=[2, 5],
        config=older("bfloat16", rope_theta=500000.0,
                     rope_scaling=LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 64}),
    ),
    Case(
        "linear-rope-old", "linear RoPE scaling, named by the oldest field, type",
        "float16", ffn=96, prompt=100,
        config=older("float16", rope_theta=10000, rope_scaling={"type": "linear", "factor": 4.0}),
    ),
    Case(
        "linear-rope-new", "linear RoPE scaling in rope_parameters",
        "bfloat16", hidden=32, ffn=64, head_dim=8, prompt=64,
        config=newer("bfloat16", rope_type="linear", factor=2.5) | {"head_dim": 8},
    ),
    Case(
        "head-dim-override", "heads * head_dim is not hidden_size",
        "bfloat16", hidden=48, ffn=96, head_dim=32, config=newer("bfloat16") | {"head_dim": 32},
    ),
    Case(
        "biases-f32", "biases on the attention and MLP projections",
        "float32", hidden=32, ffn=96, head_dim=8, bias=True, prompt=64,
        config=older("float32", rope_theta=10000.0, rope_scaling=None),
    ),
    Case(
        "sharded-bf16", "three files and an index; a layer lies in two of them",
        "bfloat16", hidden=48, ffn=96, layers=4, head_dim=12, shards=3,
        config=older("bfloat16", rope_theta=10000.0, rope_scaling=None),
    ),
    Case(
        "odd-sizes", "sizes that are no multiples of 16",
        "bfloat16", hidden=72, ffn=100, heads=6, kv_heads=3, head_dim=12, vocab=251, prompt=61,
        config=newer("bfloat16") | {"head_dim": 12},
    ),
    Case(
        "deep8", "eight layers, to be split over up to eight stages",
        "bfloat16", hidden=32, ffn=64, layers=8, head_dim=8, prompt=40, eos=[2, 9],
        config=newer("bfloat16") | {"head_dim": 8},
    ),
]  # fmt: skip


def config_json(case):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": case.eos,
        "hidden_act": "silu",
        "hidden_size": case.hidden,
        "initializer_range": 0.02,
        "intermediate_size": case.ffn,
        "max_position_embeddings": case.positions,
        "model_type": "llama",
        "num_attention_heads": case.heads,
        "num_hidden_layers": case.layers,
        "rms_norm_eps": case.eps,
        "tie_word_embeddings": case.tied,
        "use_cache": True,
        "vocab_size": case.vocab,
    }
    if case.name != "mha-f32-untied":
        config |= {
            "num_key_value_heads": case.kv_heads,
            "attention_bias": case.bias,
            "mlp_bias": case.bias,
        }
    return config | case.config


def random_weights(case, seed):
    """Scaled so that attention is uneven and the logits have a standard deviation near three."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows, columns, gain):
        return torch.randn(rows, columns, generator=generator) * (gain / math.sqrt(columns))

    def norm():
        return 1.0 + 0.2 * torch.randn(case.hidden, generator=generator)

    q, kv = case.heads * case.head_dim, case.kv_heads * case.head_dim
    # A tied head would only repeat the last token if the embedding outweighed what the layers add.
    embedding_gain, branch_gain = (1.5, 2.0) if case.tied else (3.0, 0.8)
    weights = {"model.embed_tokens.weight": matrix(case.vocab, case.hidden, embedding_gain)}
    for index in range(case.layers):
        at = f"model.layers.{index}."
        weights[at + "input_layernorm.weight"] = norm()
        weights[at + "post_attention_layernorm.weight"] = norm()
        for name, rows, columns, gain in (
            ("self_attn.q_proj", q, case.hidden, 1.3),
            ("self_attn.k_proj", kv, case.hidden, 1.3),
            ("self_attn.v_proj", kv, case.hidden, 1.0),
            ("self_attn.o_proj", case.hidden, q, branch_gain),
            ("mlp.gate_proj", case.ffn, case.hidden, 1.0),
            ("mlp.up_proj", case.ffn, case.hidden, 1.0),
            ("mlp.down_proj", case.hidden, case.ffn, branch_gain),
        ):
            weights[f"{at}{name}.weight"] = matrix(rows, columns, gain)
            if case.bias:
                weights[f"{at}{name}.bias"] = 0.2 * torch.randn(rows, generator=generator)
    weights["model.norm.weight"] = norm()
    if not case.tied:
        weights["lm_head.weight"] = matrix(case.vocab, case.hidden, 3.0)
    return {name: tensor.to(STORED[case.dtype]) for name, tensor in weights.items()}


def write_json(folder, name, value):
    # Lists of plain values on one line: a prompt of 300 ids is not 300 lines.
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", collapsed, json.dumps(value, indent=2))
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(text + "\n")


def collapsed(match):
    return "[" + re.sub(r"\s*\n\s*", " ", match[1]) + "]"


def write_weights(folder, case, weights):
    if case.shards == 1:
        save_file(weights, os.path.join(folder, "model.safetensors"), {"format": "pt"})
        return
    names = list(weights)
    size = math.ceil(len(names) / case.shards)
    where = {}
    for shard in range(case.shards):
        part = names[shard * size : (shard + 1) * size]
        file = f"model-{shard + 1:05}-of-{case.shards:05}.safetensors"
        save_file(
            {name: weights[name] for name in part}, os.path.join(folder, file), {"format": "pt"}
        )
        where |= {name: file for name in part}
    total = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    write_json(folder, "model.safetensors.index.json", index)


def write_checkpoint(folder, case, seed):
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    write_json(folder, "config.json", config_json(case))
    write_json(folder, "generation_config.json", {"bos_token_id": 1, "eos_token_id": case.eos})
    write_weights(folder, case, random_weights(case, seed))


@torch.no_grad()
def greedy(model, prompt):
    """(token ids, least margin between the best and the second logit)."""
    ids, margins = list(prompt), []
    for _ in range(GREEDY_TOKENS):
        best = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
        if margins[-1] < MARGIN_MIN:
            break
    return ids[len(prompt) :], min(margins)


def choose_prompt(model, case, seed):
    """A prompt with a clear greedy continuation of which no token ends the text."""
    eos = case.eos if isinstance(case.eos, list) else [case.eos]
    rng = np.random.default_rng(seed)
    for _ in range(PROMPTS_TRIED):
        prompt = [1] + rng.integers(10, case.vocab, case.prompt - 1).tolist()
        tokens, margin = greedy(model, prompt)
        various = len(set(tokens)) >= DIFFERENT_MIN
        if margin >= MARGIN_MIN and various and not set(tokens) & set(eos):
            return prompt, tokens, margin
    raise RuntimeError(f"{case.name}: no prompt with a clear continuation")


@torch.no_grad()
def forward(model, prompt):
    """logits (tokens, vocab), residual stream (layers + 1, tokens, hidden)."""
    stream = []

    def keep(_module, _inputs, output):
        stream.append(output[0] if isinstance(output, tuple) else output)

    modules = [model.model.embed_tokens, *model.model.layers]
    hooks = [module.register_forward_hook(keep) for module in modules]
    logits = model(torch.tensor([prompt]), use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    return logits, torch.cat(stream)


def kv_bf16_attention(module, query, key, value, mask, **more):
    key, value = (tensor.to(torch.bfloat16).float() for tensor in (key, value))
    return eager_attention_forward(module, query, key, value, mask, **more)


def register_kv_bf16():
    AttentionInterface.register(KV_BF16, kv_bf16_attention)
    AttentionMaskInterface.register(KV_BF16, eager_mask)


def rows_to_store(count):
    """The first rows, where a RoPE or mask mistake shows little, and later ones, where it shows."""
    spread = [round(count * part / 6) for part in range(1, 6)]
    return sorted({0, 1, 2, *spread, count - 2, count - 1})


def write_expected(folder, model, about, prompt, extra):
    """expected.json, logits.f32 and hidden.f32 of one prompt, for `model` with eager attention."""
    config, rows = model.config, rows_to_store(len(prompt))
    logits, stream = forward(model, prompt)
    model.set_attn_implementation("sdpa")
    other_logits, other_stream = forward(model, prompt)
    model.set_attn_implementation(KV_BF16)
    kv_logits, kv_stream = forward(model, prompt)
    model.set_attn_implementation("eager")

    def change(values, others):
        return (values - others)[..., rows, :].abs().max().item()

    logits[rows].numpy().astype("<f4").tofile(os.path.join(folder, "logits.f32"))
    stream[:, rows].numpy().astype("<f4").tofile(os.path.join(folder, "hidden.f32"))
    expected = {
        "about": about,
        "layer_count": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "prompt": prompt,
        "rows": rows,
        **extra,
        "logits_abs_max": logits[rows].abs().max().item(),
        "hidden_abs_max": stream[:, rows].abs().max().item(),
        "change": {
            "note": "greatest change of a stored value: attention summed in another order (order); "
                    "keys after RoPE and values rounded to bf16 (kv_bf16)",
            "order_logits": change(logits, other_logits), "order_hidden": change(stream, other_stream),
            "kv_bf16_logits": change(logits, kv_logits), "kv_bf16_hidden": change(stream, kv_stream),
        },
    }  # fmt: skip
    # Twenty times the noise of f32 summation; for bf16 KV memory four times what its rounding does.
    expected["tolerance"] = {
        "kv_f32_logits": 2e-4, "kv_f32_hidden": 2e-4,
        "kv_bf16_logits": 4 * expected["change"]["kv_bf16_logits"],
        "kv_bf16_hidden": 4 * expected["change"]["kv_bf16_hidden"],
    }  # fmt: skip
    write_json(folder, "expected.json", expected)


def load(folder):
    return LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def make(case, root):
    folder = os.path.join(root, case.name)
    seed = 1000 + CASES.index(case)
    write_checkpoint(folder, case, seed)
    model = load(folder)
    prompt, tokens, margin = choose_prompt(model, case, seed)
    extra = {"stored_dtype": case.dtype, "greedy": tokens, "greedy_margin": margin}
    write_expected(folder, model, case.about, prompt, extra)
    size = sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))
    print(
        f"{case.name:18} {size / 1024:6.0f} KiB  prompt {len(prompt):3}  greedy margin {margin:.3f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", default=os.path.join(HERE, "testdata", "checkpoints"), help="folder to write"
    )
    parser.add_argument("cases", nargs="*", help="names of cases; all if none is named")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    register_kv_bf16()
    logging.disable_progress_bar()
    for case in CASES:
        if not arguments.cases or case.name in arguments.cases:
            make(case, arguments.out)


if __name__ == "__main__":
    main()
