"""Time a train step in PyTorch: float32, AdamW with clipping, over random tokens. Prints one line of JSON."""

import argparse
import os
from collections.abc import Callable

import torch
from clock import report, timed
from torch import nn

VOCAB, WIDTH, LAYERS, HEADS, HEAD_DIM, FF = 264, 256, 4, 4, 64, 704


def arguments(models: list[str]) -> argparse.Namespace:
    """Parse the flags of a torch worker and set its threads and seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=models[0], choices=models)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--segment", type=int, default=512)
    parser.add_argument("--segments", type=int, default=1, help="segments of a step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return args


def tokens(args: argparse.Namespace, length: int) -> torch.Tensor:
    """Return random tokens, [B, length + 1]. Targets are the inputs shifted by one."""
    return torch.randint(VOCAB, (args.batch, length + 1))


def train(args: argparse.Namespace, model: nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], version: str) -> None:
    """Train on `loss`, a function of [B, segments * segment + 1] tokens, and print the samples."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    last = []

    def step():
        optimizer.zero_grad(set_to_none=True)
        value = loss(tokens(args, args.segments * args.segment))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last[:] = [value.item()]

    for _ in range(args.warmup):
        step()
    samples = [timed(step) for _ in range(args.steps)]
    params = sum(p.numel() for p in model.parameters())
    report(model=args.model, samples=samples, loss=last[0], params=params, version=version, torch=torch.__version__)
