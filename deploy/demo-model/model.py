"""The Llama architecture in plain torch, sized for the demo, with Hugging Face names on export."""

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    vocab: int = 512
    hidden: int = 128
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    ffn: int = 384
    positions: int = 512
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


def rope_tables(shape, length):
    """cos, sin: (length, head_dim). RoPE as in RoFormer, on the pairs (i, i + head_dim / 2)."""
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angle = torch.outer(torch.arange(length, dtype=torch.float32), shape.rope_theta**-half)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-high, low], dim=-1) * sin


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.q_width = shape.heads * shape.head_dim
        self.kv_width = shape.kv_heads * shape.head_dim
        self.attention_norm = nn.Parameter(torch.ones(shape.hidden))
        self.ffn_norm = nn.Parameter(torch.ones(shape.hidden))
        # One matrix each for q|k|v and gate|up is faster to train; export() cuts them apart.
        self.qkv = nn.Linear(shape.hidden, self.q_width + 2 * self.kv_width, bias=False)
        self.out = nn.Linear(self.q_width, shape.hidden, bias=False)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x, cos, sin, mask):
        shape = self.shape
        batch, length, _ = x.shape
        normed = F.rms_norm(x, (shape.hidden,), self.attention_norm, shape.norm_eps)
        mixed = self.qkv(normed).view(batch, length, -1, shape.head_dim).transpose(1, 2)
        q, k, v = mixed.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        seen = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, enable_gqa=True
        )
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, -1))
        normed = F.rms_norm(x, (shape.hidden,), self.ffn_norm, shape.norm_eps)
        gate, up = self.gate_up(normed).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        cos, sin = rope_tables(shape, shape.positions)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.reset()

    def reset(self):
        nn.init.normal_(self.embedding.weight, std=0.05)
        for name, matrix in self.layers.named_parameters():
            if matrix.ndim == 2:
                ends_branch = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(
                    matrix, std=(0.25 if ends_branch else 1.0) * matrix.shape[1] ** -0.5
                )

    def forward(self, ids, positions=None, mask=None):
        """Logits. Without positions and mask every row of `ids` is one text; with them, several."""
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        if positions is not None:
            cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        x = F.rms_norm(x, (self.shape.hidden,), self.norm, self.shape.norm_eps)
        return F.linear(x, self.embedding.weight)

    def grow(self):
        """Twice the layers, for now the same function: after each layer one that adds nothing."""
        layers = []
        for layer in self.layers:
            silent = copy.deepcopy(layer)
            nn.init.zeros_(silent.out.weight)
            nn.init.zeros_(silent.down.weight)
            layers += [layer, silent]
        self.layers = nn.ModuleList(layers)
        self.shape = replace(self.shape, layers=len(layers))

    def export(self, dtype):
        """The weights as Hugging Face names them, rounded to `dtype`."""
        tensors = {
            "model.embed_tokens.weight": self.embedding.weight,
            "model.norm.weight": self.norm,
        }
        for index, layer in enumerate(self.layers):
            at = f"model.layers.{index}."
            q, k, v = layer.qkv.weight.split([layer.q_width, layer.kv_width, layer.kv_width])
            gate, up = layer.gate_up.weight.chunk(2)
            tensors |= {
                at + "input_layernorm.weight": layer.attention_norm,
                at + "self_attn.q_proj.weight": q,
                at + "self_attn.k_proj.weight": k,
                at + "self_attn.v_proj.weight": v,
                at + "self_attn.o_proj.weight": layer.out.weight,
                at + "post_attention_layernorm.weight": layer.ffn_norm,
                at + "mlp.gate_proj.weight": gate,
                at + "mlp.up_proj.weight": up,
                at + "mlp.down_proj.weight": layer.down.weight,
            }
        return {name: t.detach().to(dtype).clone().contiguous() for name, t in tensors.items()}
