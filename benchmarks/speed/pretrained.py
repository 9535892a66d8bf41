"""Speed of SmolLM2-135M in prefill (512 tokens) and greedy decoding (64 more), as ratios to Hugging Face's torch model.

    python benchmarks/speed/pretrained.py --torch_python=PATH [--rounds=3]      2 cores: about 5 minutes

PATH is a Python with torch and transformers. memtx reads and writes as `memtx generate` does, with full attention over the
text. torch runs `generate` of LlamaForCausalLM in float32 with its cache. Weights do not change the work, so torch's are
random. Workers take turns, each in a separate process with all cores. A figure is the median of its clean samples.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from clock import DISTURBED, report, timed

PROMPT, DRAWN, SAMPLES = 512, 64, 3
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", default="")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", choices=["memtx", "torch"])
    args = parser.parse_args()
    if args.worker:
        WORKERS[args.worker]()
    elif args.torch_python:
        compare(args.torch_python, args.rounds)
    else:
        parser.error("--torch_python=PATH is missing: a Python with torch and transformers")


def compare(torch_python: str, rounds: int) -> None:
    """Run both workers in turn, print the ratios and store them in results/pretrained.json."""
    found = {"memtx": [], "torch": []}
    for _ in range(rounds):
        for name, python in (("memtx", sys.executable), ("torch", torch_python)):
            out = subprocess.run([python, __file__, f"--worker={name}"], check=True, capture_output=True, text=True).stdout
            found[name].append(json.loads(out.splitlines()[-1]))
    table = {}
    for part, tokens in (("prefill", PROMPT), ("decode", DRAWN)):
        rates = {name: [tokens / median(one[part]) for one in runs] for name, runs in found.items()}
        ratios = [a / b for a, b in zip(rates["memtx"], rates["torch"], strict=True)]
        table[part] = {name: statistics.median(values) for name, values in rates.items()}
        table[part] |= {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        print(f"{part:8} tokens/s: {table[part]}")
    clean = [sample["others"] < DISTURBED for runs in found.values() for one in runs for part in PARTS for sample in one[part]]
    print(f"{sum(clean)} of {len(clean)} samples clean")
    result = {"cores": os.cpu_count(), "clean": sum(clean), "samples": len(clean), "table": table, "runs": found}
    (HERE / "results" / "pretrained.json").write_text(json.dumps(result, indent=1) + "\n")


def median(samples: list[dict]) -> float:
    """Return the median seconds of the undisturbed samples, or of all samples if all were disturbed."""
    clean = [sample["seconds"] for sample in samples if sample["others"] < DISTURBED]
    return statistics.median(clean or [sample["seconds"] for sample in samples])


def memtx_worker() -> None:
    """Time memtx and print the samples as JSON."""
    from memtx.training.cpu import keep_pages

    keep_pages()
    import jax
    import numpy as np

    import memtx
    from memtx.generate.writer import Writer, read

    model = memtx.load("smollm2", context=PROMPT + DRAWN)
    size = model.lm.model.vocab_size
    ids = np.random.default_rng(0).integers(0, size, PROMPT)
    every_V, none_V = np.ones(size, bool), np.zeros(size, bool)

    def prefill():
        jax.block_until_ready(read(model.lm, model.params, [ids], model.lm.init_state(1), PROMPT))

    def decode():
        for left in range(DRAWN, 0, -16):
            writer.write(min(left, 16), memtx.GREEDY, 0, every_V, none_V)

    result = {"prefill": [], "decode": []}
    prefill()
    for sample in range(-1, SAMPLES):  # the first sample compiles and is dropped
        writer = Writer(model.lm, model.params, [ids], chunk=PROMPT)
        jax.block_until_ready(writer.state)
        one = {"prefill": timed(prefill), "decode": timed(decode)}
        for part in PARTS if sample >= 0 else ():
            result[part].append(one[part])
    report(**result)


def torch_worker() -> None:
    """Time the torch model and print the samples as JSON."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 1e5, "max_position_embeddings": 8192}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True)).eval()
    ids = torch.randint(0, sizes["vocab_size"], (1, PROMPT))
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}

    def prefill():
        model(ids, use_cache=True, logits_to_keep=1)

    def write(count):
        model.generate(ids, max_new_tokens=count, **settings)

    result = {"prefill": [], "decode": []}
    with torch.inference_mode():
        write(4)
        for _ in range(SAMPLES):
            result["prefill"].append(timed(prefill))
            first, all_of_them = timed(lambda: write(1)), timed(lambda: write(1 + DRAWN))
            seconds = all_of_them["seconds"] - first["seconds"]
            result["decode"].append({"seconds": seconds, "others": max(first["others"], all_of_them["others"])})
    report(**result)


PARTS = ("prefill", "decode")
WORKERS = {"memtx": memtx_worker, "torch": torch_worker}

if __name__ == "__main__":
    main()
