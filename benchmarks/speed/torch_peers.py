"""PyPI packages of the same mechanisms, at the shape of `small`. This is the torch worker of peers.py.

Each function builds its package's model and returns (model, loss). `loss` reads the segments of a step, an array of tokens [B,
segments * segment + 1], with the state that the last step left. It uses the package's wrapper if there is one. Gradients pass
through the state between the segments of a step if the package lets them. Parts that do not belong to the mechanism
(hyper-connections, GRU gates for residuals) are off. Fast attention is on if a package has it.
"""

import contextlib
import importlib.metadata
import io
import tempfile
from functools import partial

import torch
import torch.nn.functional as F
from torch_step import HEAD_DIM, HEADS, LAYERS, VOCAB, WIDTH, arguments, tokens, train

ENTRIES = 16_384  # entries of the external memory before the first step
SHAPE = {"num_tokens": VOCAB, "dim": WIDTH, "depth": LAYERS, "heads": HEADS}
HEAD = {"dim_head": HEAD_DIM}


def by_segment(args, text):
    """Yield the inputs and targets of each segment."""
    for start in range(0, args.segments * args.segment, args.segment):
        part = text[:, start : start + args.segment + 1]
        yield part[:, :-1], part[:, 1:]


def memorizing(args):
    import faiss
    from memorizing_transformers_pytorch import MemorizingTransformer

    faiss.omp_set_num_threads(args.threads)
    model = MemorizingTransformer(
        **SHAPE,
        **HEAD,
        memorizing_layers=(LAYERS,),
        num_retrieved_memories=32,
        max_knn_memories=4 * ENTRIES,  # the package empties its index when it is full
        xl_max_memories=args.segment,
        pad_id=-1,
        knn_memories_directory=tempfile.mkdtemp(),
    )
    memories, xl = model.create_knn_memories(batch_size=args.batch), None

    def loss(text):
        nonlocal xl
        total = 0
        for x, y in by_segment(args, text):
            value, xl = model(x, memories, xl_memories=xl, labels=y)
            total = total + value / args.segments
        return total

    with torch.no_grad():
        while memories[0].db_offsets[0] < ENTRIES:
            loss(tokens(args, args.segments * args.segment))
    return model, loss


def titans_mac(args, tokens_per_write: int):
    from titans_pytorch import MemoryAsContextTransformer

    model = MemoryAsContextTransformer(
        **SHAPE,
        **HEAD,
        segment_len=64,
        num_persist_mem_tokens=4,
        neural_memory_segment_len=tokens_per_write,  # tokens of one gradient
        neural_memory_batch_size=64,  # tokens whose gradients use the same weights
        num_residual_streams=1,
        neural_memory_kwargs={
            **HEAD,
            "heads": HEADS,
            "qk_rmsnorm": True,
            # with the default of 1 and 64 tokens per write, the loss is NaN at the second step
            "default_step_transform_max_lr": 0.1 * tokens_per_write / 64,
            "default_model_kwargs": {"depth": 2, "expansion_factor": 2.0},
        },
    )
    for p in model.parameters():
        p.data = p.data.contiguous()  # some parameters are views of one tensor, on which fused AdamW crashes
    return model, lambda text: model(text, return_loss=True)


def compressive(args):
    from compressive_transformer_pytorch import CompressiveTransformer

    model = CompressiveTransformer(
        **SHAPE,
        seq_len=args.segment,
        mem_len=args.segment,
        cmem_len=args.segment // 4,
        cmem_ratio=4,
        gru_gated_residual=False,
    )
    memories = None

    def loss(text):
        nonlocal memories
        total = 0
        for x, y in by_segment(args, text):
            logits, memories, auxiliary = model(x, memories=memories)
            total = total + (F.cross_entropy(logits.transpose(1, 2), y) + auxiliary.sum()) / args.segments
        return total

    return model, loss


def infini(args):
    from infini_transformer_pytorch import InfiniTransformer, detach_memories_

    model = InfiniTransformer(**SHAPE, **HEAD, use_mem_delta_rule=True)
    memories = None

    def loss(text):
        nonlocal memories
        if memories:
            detach_memories_(memories)
        total = 0
        for x, y in by_segment(args, text):
            logits, _, memories = model(x, past_memories=memories, return_new_memories=True)
            total = total + F.cross_entropy(logits.transpose(1, 2), y) / args.segments
        return total

    return model, loss


def rmt(args):
    from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer, RecurrentMemoryTransformerWrapper

    inner = RecurrentMemoryTransformer(
        **SHAPE,
        **HEAD,
        num_memory_tokens=16,
        seq_len=args.segment,
        use_flash_attn=True,
        abs_pos_emb=False,
        rotary_pos_emb=True,
        use_xl_memories=False,  # the package's wrapper never passes them on
        num_residual_streams=1,
    )
    model, memories = RecurrentMemoryTransformerWrapper(inner), None

    def loss(text):
        nonlocal memories
        value, memories = model(text, memories, return_loss=True)
        memories = memories.detach()
        return value

    return model, loss


def block_recurrent(args):
    from block_recurrent_transformer_pytorch import BlockRecurrentTransformer

    model = BlockRecurrentTransformer(
        **SHAPE,
        **HEAD,
        max_seq_len=args.segments * args.segment,
        block_width=args.segment,
        num_state_vectors=args.segment,
        recurrent_layers=(LAYERS,),
        use_flash_attn=True,
    )
    memories, states = [], []

    def loss(text):
        nonlocal memories, states
        value, memories, states = model(text, return_loss=True, xl_memories=memories, states=states)
        return value

    return model, loss


def product_key(args):
    from product_key_memory.transformer import Transformer

    keys = {"heads": HEADS, "num_keys": 128, "topk": 32, "dim_head": HEAD_DIM // 2}
    with contextlib.redirect_stdout(io.StringIO()):
        model = Transformer(**SHAPE, **HEAD, seq_len=args.segment, pkm_layers=(LAYERS // 2 + 1,), pkm_kwargs=keys)
    return model, lambda text: sum(model(torch.cat([x, y[:, -1:]], 1)) for x, y in by_segment(args, text)) / args.segments


PEERS = {
    "memorizing": (memorizing, "memorizing-transformers-pytorch"),
    **{f"titans_mac@{n}": (partial(titans_mac, tokens_per_write=n), "titans-pytorch") for n in (1, 4, 64)},
    "compressive": (compressive, "compressive-transformer-pytorch"),
    "infini": (infini, "infini-transformer-pytorch"),
    "rmt": (rmt, "recurrent-memory-transformer-pytorch"),
    "block_recurrent": (block_recurrent, "block-recurrent-transformer-pytorch"),
    "product_key": (product_key, "product-key-memory"),
}


def main():
    args = arguments(list(PEERS))
    make, package = PEERS[args.model]
    model, loss = make(args)
    train(args, model, loss, importlib.metadata.version(package))


if __name__ == "__main__":
    main()
