"""Train any memory on a synthetic task, at any size.

    memtx train --config=configs/task.py:task=mqar,memory=full,size=tiny --workdir=runs/mqar
    memtx data --config=configs/task.py:task=babilong          shows an example

task    algorithmic | associative | babilong | compositional | copying | forgetting | induction | mad | mqar | mqar_b | needle |
        ngram | object_collision | passkey | phonebook | ruler          memory, size    as in configs/lm.py

A train step reads whole examples, in as many segments as they need. RMT and ARMT write after each segment. Settings of the task
are keys too: --config.data.task.pairs=8. A longer example also needs --config.train.segments=N. Without it the state is carried
from step to step.
"""

from memtx.memory import MEMORIES
from memtx.runs.configure import get_config as default_config
from memtx.runs.configure import parse_arg, task_class
from memtx.runs.presets import preset

SEGMENT = 128  # the most tokens of a call, except that a task made of blocks reads one block per call

STUDIES = {  # tasks that need other settings than their defaults
    "mqar_b": {  # zoology's second protocol (the first is `mqar` at each length and number of pairs)
        "name": "mqar",
        "task": {
            "mix": ((64, 4, 100), (128, 8, 20), (256, 16, 20), (256, 32, 20), (256, 64, 20)),
            "filler": "zoology",
        },
    },
    "associative": {  # starts with few keys, because a model needs hundreds of steps to tell two keys apart
        "task": {"pairs": 5, "vary": False},
        "curriculum": (
            (1000, {"pairs": 2, "alphabet": 2}),
            (200, {"pairs": 2, "alphabet": 4}),
            (600, {"pairs": 3, "alphabet": 6}),
            (1000, {"pairs": 5, "alphabet": 10}),
        ),
        "train": {"steps": 3500, "batch": 128},
        "optim": {"lr": 2e-3, "b2": 0.999, "warmup": 50, "weight_decay": 1e-3, "schedule": "constant"},
    },
    "mad": {"examples": 12_800},
}


def get_config(arg: str = ""):
    """Return the ConfigDict for `arg`, "key=value,..." with the keys above."""
    choice = parse_arg(arg, task="mqar", memory="window", size="tiny")
    study = STUDIES.get(choice.task, {})
    name = study.get("name", choice.task)
    cls = task_class(name)
    settings = study.get("task", {})
    task = cls(cls.Config(**settings))
    segment = task.block or min(task.length, SEGMENT)
    memory = MEMORIES.find(choice.memory)
    by_segments = MEMORIES[memory].site == "body"
    return default_config(
        model=preset(memory, choice.size) | {"scan": False},
        memory={memory: {"segment": segment}} if by_segments else {},
        data={
            "corpus": f"task:{name}",
            "segment": segment,
            "task": settings,
            "curriculum": study.get("curriculum", ()),
            "examples": study.get("examples", 0),
        },
        train={"steps": 3000, "batch": 64, "segments": -(-task.length // segment), **study.get("train", {})},
        optim={"lr": 1e-3, **study.get("optim", {})},
        eval={"every": 500, "batch": 64, "sample_tokens": 0},
    )
