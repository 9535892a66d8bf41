"""Classify labelled documents with a pretrained encoder that reads them segment by segment.

    memtx train --config=configs/classify.py:path=FOLDER,classes=2 --workdir=runs/classify

path       a folder with train.jsonl, valid.jsonl and test.jsonl, lines {"text": "...", "label": "..."} | one file (also .csv
           or .tsv), which is split by text into 90, 5 and 5 %
classes    the number of labels; "": as many as the backbone's own head has, and 2 if it has none
backbone   minilm | a Hugging Face folder | a hub name
memory     rmt_encoder (memory tokens carry information between segments) | none (the model reads only the first segment)
segment    tokens of a segment                       tokens     the most tokens of a document
"""

from memtx.errors import UserError, check_known
from memtx.models.settings import model_group
from memtx.pretrained.load import settings
from memtx.runs.configure import get_config as default_config
from memtx.runs.configure import parse_arg


def get_config(arg: str = ""):
    """Return the ConfigDict for `arg`, "key=value,..." with the keys above."""
    choice = parse_arg(arg, path="", classes="", backbone="minilm", memory="rmt_encoder", segment="512", tokens="8192")
    check_known(choice.memory, ["none", "rmt_encoder"], "memory")
    own = settings(choice.backbone)
    numbers = (choice.classes or str(own.classes), choice.segment, choice.tokens)
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise UserError(f"classes, segment and tokens must be numbers above 0, not {', '.join(numbers)}")
    classes, segment, tokens = map(int, numbers)
    body = {"none": "", "rmt_encoder": "rmt_encoder"}[choice.memory]
    tokens = tokens if body else segment
    pool = own.pool if own.output == "classes" or own.pool != "cls" else "mean"
    pool = "document" if body else pool  # "document": the mean over all calls
    model = settings(choice.backbone, output="classes", classes=classes, pool=pool, body=body, dropout=0.1)
    return default_config(
        model=model_group(model),
        memory={"rmt_encoder": {"segment": segment, "memory": 16}} if body else {},
        data={
            "corpus": "task:labelled",
            "task": {"path": choice.path, "tokenizer": f"pretrained:{choice.backbone}", "tokens": tokens},
            "segment": segment,
        },
        train={"steps": 500, "batch": 4, "segments": min(4, -(-tokens // segment))},
        optim={"lr": 5e-5, "warmup": 50, "weight_decay": 0.01, "schedule": "linear", "final_lr": 0.0},
        eval={"every": 100, "batch": 4, "examples": 16},
    )
