"""Train a pretrained or new encoder to predict hidden tokens of a text (masked-LM).

    memtx train --config=configs/masked.py:backbone=minilm,data=books --workdir=runs/masked

backbone   minilm | a Hugging Face folder of a BERT | a hub name | "" (a new encoder that reads bytes)
size       of a new encoder: micro | tiny | small | base | 1b
memory     none (each segment is a separate text) | rmt_encoder (memory tokens carry information between segments)
segment    tokens of a segment                      data       pycode | books | speeches | textdir:PATH | tfds:NAME
"""

from memtx.errors import UserError, check_known
from memtx.models.settings import model_group
from memtx.pretrained.load import settings
from memtx.runs.configure import get_config as default_config
from memtx.runs.configure import parse_arg
from memtx.runs.presets import preset


def get_config(arg: str = ""):
    """Return the ConfigDict for `arg`, "key=value,..." with the keys above."""
    choice = parse_arg(arg, backbone="", size="tiny", memory="none", segment="128", data="books")
    check_known(choice.memory, ["none", "rmt_encoder"], "memory")
    if not choice.segment.isdecimal() or not int(choice.segment):
        raise UserError(f"segment must be a number above 0, not {choice.segment}")
    segment, around = int(choice.segment), "" if choice.memory == "none" else choice.memory
    return default_config(
        model=_model(choice.backbone, choice.size, around),
        memory={around: {"segment": segment, "memory": 16}} if around else {},
        data={
            "corpus": choice.data,
            "tokenizer": f"pretrained:{choice.backbone}" if choice.backbone else "bytes",
            "segment": segment,
            "mask": 0.15,
        },
        train={"steps": 1000, "batch": 8, "segments": 2},
        optim={"lr": 5e-5 if choice.backbone else 3e-3, "weight_decay": 0.01, "schedule": "linear", "final_lr": 0.0},
        eval={"every": 250, "batch": 8, "segments": 32, "sample_tokens": 0},
    )


def _model(backbone: str, size: str, around: str) -> dict:
    if not backbone:
        return preset(around or "bidirectional", size) | {"output": "masked_lm"}
    model = settings(backbone, output="masked_lm", body=around, dropout=0.1)
    return model_group(model)
