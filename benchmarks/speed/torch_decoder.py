"""A plain PyTorch decoder of the shape of `small`, and its train step. run.py compares memtx with it.

RMSNorm, rotary positions, fused causal attention (scaled_dot_product_attention), SwiGLU, tied embeddings, float32, AdamW
with clipping. It runs in another Python environment (see run.py).
"""

import torch
import torch.nn.functional as F
from clock import matmul_rates, report
from torch import nn
from torch_step import FF, HEADS, LAYERS, VOCAB, WIDTH, arguments, train


def rotary(length: int, head_dim: int):
    """Return the cosines and sines of rotary positions, each [length, head_dim]."""
    angle = torch.arange(length)[:, None] * 10_000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    return torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)


def rotate(x, cos, sin):
    """Apply rotary positions to x, [..., length, head_dim]."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class Block(nn.Module):
    """A Transformer block: attention and SwiGLU, each with a norm before it and a residual connection."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-6), nn.RMSNorm(WIDTH, eps=1e-6)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 2 * FF, bias=False), nn.Linear(FF, WIDTH, bias=False)

    def forward(self, x, cos, sin):
        batch, time, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, time, WIDTH))
        gate, h = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * h)


class Decoder(nn.Module):
    """Token ids [B, length] to logits [B, length, VOCAB]."""

    def __init__(self, length: int):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        nn.init.normal_(self.embed.weight, std=WIDTH**-0.5)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-6)
        cos, sin = rotary(length, WIDTH // HEADS)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, token):
        x = self.embed(token) * WIDTH**0.5
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.linear(self.norm(x), self.embed.weight)


def square(n: int):
    """Return a function that multiplies two n x n matrices."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    return lambda: torch.mm(a, b)


def main():
    args = arguments(["torch", "matmul"])
    if args.model == "matmul":
        return report(model="torch matmul", rates=matmul_rates(square))
    model = Decoder(args.segment)

    def loss(text):
        return F.cross_entropy(model(text[:, :-1]).reshape(-1, VOCAB), text[:, 1:].reshape(-1))

    return train(args, model, loss, torch.__version__)


if __name__ == "__main__":
    main()
