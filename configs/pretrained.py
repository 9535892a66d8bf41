"""Add a memory to some layers of a pretrained model. It changes nothing at first, and is trained alone.

    memtx train --config=configs/pretrained.py:memory=memorizing,layers=20 --workdir=runs/memorizing

backbone   smollm2 | a Hugging Face folder | a .gguf file | a hub name
memory     a name of `memtx list` | none (the backbone is unchanged). It replaces attention if that is its site. Else it is
           added beside attention or the MLP, around the body or over the logits
layers     the layers with the memory, counted from 0: 20 or 10+20 | "" (the layers of its paper)
attention  of the other layers: own | window | sink | full            context  tokens that this attention sees
train      memory (only the parameters that the backbone does not have) | all
data       pycode | books | speeches | textdir:PATH | tfds:NAME | task:turns (set data.task.path, see memtx.tasks.turns)
"""

from memtx.runs.configure import get_config as default_config
from memtx.runs.configure import parse_arg
from memtx.runs.presets import on_pretrained


def get_config(arg: str = ""):
    """Return the ConfigDict for `arg`, "key=value,..." with the keys above."""
    choice = parse_arg(
        arg, backbone="smollm2", memory="none", layers="", attention="own", context="512", train="memory", data="books"
    )
    model, memory, new = on_pretrained(choice.backbone, choice.memory, choice.layers, choice.attention, choice.context)
    alone = choice.train == "memory" and bool(new)
    tokenizer = {"tokenizer": f"pretrained:{choice.backbone}"}
    return default_config(
        model=model,
        memory=memory,
        data={"corpus": choice.data, "segment": 512} | ({"task": tokenizer} if choice.data == "task:turns" else tokenizer),
        train={"steps": 200, "batch": 1, "segments": 2},
        optim={"lr": 1e-2 if alone else 1e-5, "warmup": 10, "weight_decay": 0.0, "train": new if alone else ""},
        eval={"every": 0, "batch": 1, "segments": 32, "sample_tokens": 60},
    )
