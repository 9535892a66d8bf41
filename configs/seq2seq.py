"""Write targets for sources (translations, summaries, answers) with a pretrained or new encoder-decoder.

    memtx train --config=configs/seq2seq.py:path=FILE,backbone=t5-small --workdir=runs/seq2seq

path       a .jsonl file, lines {"source": "...", "target": "..."}, or a .csv or .tsv file with a header, each split by source
           into 90, 5 and 5 % | a folder with train.jsonl, valid.jsonl and test.jsonl
backbone   a Hugging Face folder of a T5 | a hub name | "" (a new model)
size       of a new model: micro | tiny | small | base | 1b
tokenizer  of a new model: bytes | bpe:SIZE, trained on the sources and targets | pretrained:NAME
source     the most tokens of a source                      target     the most tokens of a target, with its end token
memory     around the encoder: none (it reads a source in one call) | rmt_encoder (it reads segment by segment)
segment    tokens of such a segment

Longer texts are an error. To cut them: --config.data.task.source_tokens=512 --config.data.task.target_tokens=128
"""

from memtx.errors import UserError, check_known
from memtx.models.settings import model_group
from memtx.pretrained.load import settings
from memtx.runs.configure import get_config as default_config
from memtx.runs.configure import parse_arg
from memtx.runs.presets import encoder_decoder


def get_config(arg: str = ""):
    """Return the ConfigDict for `arg`, "key=value,..." with the keys above."""
    keys = {"path": "", "backbone": "", "size": "tiny", "tokenizer": "bytes"}
    choice = parse_arg(arg, **keys, source="512", target="128", memory="none", segment="128")
    check_known(choice.memory, ["none", "rmt_encoder"], "memory")
    numbers = (choice.source, choice.target, choice.segment)
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise UserError(f"source, target and segment must be numbers above 0, not {', '.join(numbers)}")
    source, target, segment = map(int, numbers)
    tokenizer = f"pretrained:{choice.backbone}" if choice.backbone else choice.tokenizer
    around = "" if choice.memory == "none" else choice.memory
    memory = {"full": {"capacity": target}, "cross": {"capacity": source}}
    if around:
        memory[around] = {"segment": segment, "memory": 16}
    return default_config(
        model=_model(choice.backbone, choice.size) | {"encoder_body": around, "dropout": 0.1},
        memory=memory,
        data={
            "corpus": "task:pairs",
            "task": {"path": choice.path, "tokenizer": tokenizer},
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
        raise UserError(f"{backbone} has no encoder, so it reads no source: use a T5, or train it with configs/pretrained.py")
    return model_group(model)
