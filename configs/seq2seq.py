"""Targets written after sources: translation, summaries, answers, by an encoder-decoder that is pretrained or new.

    memtx train --config=configs/seq2seq.py:path=FILE,backbone=t5-small --workdir=runs/seq2seq

path       a .jsonl file, lines {"source": "...", "target": "..."}, or .csv or .tsv with a line of names; or a folder with
           train.jsonl, valid.jsonl and test.jsonl. One file is split by source, 90/5/5
backbone   a Hugging Face folder of a T5 | a name of the hub; "": a new one, with bytes for tokens
size       of a new one: micro | tiny | small | base | 1b
source     tokens of a source, at most                      target     of a target, its end included
memory     around the encoder: none, a source is read at once | rmt_encoder, segment by segment
segment    tokens of such a segment

What is longer is an error; to cut it: --config.data.task.source_tokens=512 --config.data.task.target_tokens=128.
"""

from memtx.config import get_config as default_config
from memtx.config import model_group, parse_arg
from memtx.errors import UserError, check_known
from memtx.pretrained.load import settings
from memtx.runs.presets import encoder_decoder


def get_config(arg: str = ""):
    choice = parse_arg(arg, path="", backbone="", size="tiny", source="512", target="128", memory="none", segment="128")
    check_known(choice.memory, ["none", "rmt_encoder"], "memory")
    numbers = (choice.source, choice.target, choice.segment)
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise UserError(f"source, target and segment should be numbers above 0, not {', '.join(numbers)}")
    source, target, segment = map(int, numbers)
    around = "" if choice.memory == "none" else choice.memory
    memory = {"full": {"capacity": target}, "cross": {"capacity": source}}
    if around:
        memory[around] = {"segment": segment, "memory": 16}
    return default_config(
        model=_model(choice.backbone, choice.size) | {"encoder_body": around, "dropout": 0.1},
        memory=memory,
        data={
            "corpus": "task:pairs",
            "task": {"path": choice.path, "tokenizer": f"pretrained:{choice.backbone}" if choice.backbone else "bytes"},
            "segment": target,
        },
        train={"steps": 1000, "batch": 8, "segments": 1},
        optim={"lr": 3e-4 if choice.backbone else 1e-3, "weight_decay": 0.01, "schedule": "linear", "final_lr": 0.0},
        eval={"every": 250, "batch": 8, "examples": 16, "generate": 16, "sample_tokens": 0},
    )


def _model(backbone: str, size: str) -> dict:
    if not backbone:
        return encoder_decoder(size)
    model = settings(backbone)
    if not model.encoder:
        raise UserError(f"{backbone} has no encoder, so it reads no source: give a T5, or train it with configs/pretrained.py")
    return model_group(model)
