"""Answer questions by a span of a text with a pretrained encoder (SQuAD).

    memtx train --config=configs/answer.py:path=FOLDER --workdir=runs/answers

path       a folder with train.jsonl, valid.jsonl and test.jsonl, lines {"context": "...", "question": "...", "answer": "..."}
           | one file (also .csv or .tsv), which is split by context into 90, 5 and 5 %
backbone   minilm | a Hugging Face folder of a BERT | a hub name
tokens     the most tokens of a question and its context. Longer contexts are read in windows
"""

from memtx.errors import UserError
from memtx.models.settings import model_group
from memtx.pretrained.load import settings
from memtx.runs.configure import get_config as default_config
from memtx.runs.configure import parse_arg


def get_config(arg: str = ""):
    """Return the ConfigDict for `arg`, "key=value,..." with the keys above."""
    choice = parse_arg(arg, path="", backbone="minilm", tokens="384")
    if not choice.tokens.isdecimal() or not int(choice.tokens):
        raise UserError(f"tokens must be a number above 0, not {choice.tokens}")
    tokens = int(choice.tokens)
    return default_config(
        model=model_group(settings(choice.backbone, output="span", dropout=0.1)),
        data={
            "corpus": "task:spans",
            "task": {"path": choice.path, "tokenizer": f"pretrained:{choice.backbone}", "tokens": tokens},
            "segment": tokens,
        },
        train={"steps": 1000, "batch": 8, "segments": 1},
        optim={"lr": 5e-5, "warmup": 50, "weight_decay": 0.01, "schedule": "linear", "final_lr": 0.0},
        eval={"every": 250, "batch": 8, "examples": 64},
    )
