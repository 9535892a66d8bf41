"""A pretrained model with a memory at some of its layers, which begins as nothing and is trained alone.

    memtx train --config=configs/pretrained.py:memory=memorizing,layers=20 --workdir=runs/memorizing

backbone   smollm2 | a Hugging Face folder | a .gguf file | a name of the hub
memory     a name of `memtx list`: in place of attention where that is its site, else added beside it, around the body or over
           the logits; none: the backbone as it is
layers     which ones have it, counted from 0: 20 or 10+20; "": where its paper has it
attention  of the other layers: own | window | sink | full            context  tokens that it sees
train      memory: the parameters that the backbone does not have, or all
data       pycode | books | speeches | textdir:PATH | tfds:NAME
"""

from memtx.config import get_config as default_config
from memtx.config import parse_arg
from memtx.runs.presets import on_pretrained


def get_config(arg: str = ""):
    choice = parse_arg(
        arg, backbone="smollm2", memory="none", layers="", attention="own", context="512", train="memory", data="books"
    )
    model, memory, new = on_pretrained(choice.backbone, choice.memory, choice.layers, choice.attention, choice.context)
    alone = choice.train == "memory" and bool(new)
    return default_config(
        model=model,
        memory=memory,
        data={"corpus": choice.data, "tokenizer": f"pretrained:{choice.backbone}", "segment": 512},
        train={"steps": 200, "batch": 1, "segments": 2},
        optim={"lr": 1e-2 if alone else 1e-5, "warmup": 10, "weight_decay": 0.0, "train": new if alone else ""},
        eval={"every": 0, "batch": 1, "segments": 32, "sample_tokens": 60},
    )
