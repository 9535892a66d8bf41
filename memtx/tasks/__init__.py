"""Tasks: `data.corpus="task:NAME"` selects one, and `data.task` has its settings.

Each file defines one task. The contract is in base.py.

All tasks are synthetic except `labelled`, `pairs`, `spans` and `turns`, which read the user's files.
"""

from memtx.tasks.algorithmic import Algorithmic
from memtx.tasks.associative import Associative
from memtx.tasks.babilong import Babilong
from memtx.tasks.base import Example, Task
from memtx.tasks.compositional import Compositional
from memtx.tasks.copying import Copying
from memtx.tasks.forgetting import Forgetting
from memtx.tasks.induction import Induction
from memtx.tasks.labelled import Labelled
from memtx.tasks.mad import Mad
from memtx.tasks.mqar import MQAR
from memtx.tasks.needle import Needle
from memtx.tasks.ngram import Ngram
from memtx.tasks.object_collision import ObjectCollision
from memtx.tasks.pairs import Pairs
from memtx.tasks.passkey import Passkey
from memtx.tasks.phonebook import Phonebook
from memtx.tasks.ruler import Ruler
from memtx.tasks.spans import Spans
from memtx.tasks.turns import Turns

TASKS: dict[str, type[Task]] = {
    "algorithmic": Algorithmic,
    "associative": Associative,
    "babilong": Babilong,
    "compositional": Compositional,
    "copying": Copying,
    "forgetting": Forgetting,
    "induction": Induction,
    "labelled": Labelled,
    "mad": Mad,
    "mqar": MQAR,
    "needle": Needle,
    "ngram": Ngram,
    "object_collision": ObjectCollision,
    "pairs": Pairs,
    "passkey": Passkey,
    "phonebook": Phonebook,
    "ruler": Ruler,
    "spans": Spans,
    "turns": Turns,
}

__all__ = ["TASKS", "Example", "Task"]
