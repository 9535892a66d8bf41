"""Tasks: `data.corpus="task:NAME"`, with settings in `data.task`. One generator per file; base.py is the contract.

All are synthetic but `labelled` and `pairs`, which read files of yours.
"""

from memtx.data.tasks.algorithmic import Algorithmic
from memtx.data.tasks.associative import Associative
from memtx.data.tasks.babilong import Babilong
from memtx.data.tasks.base import Example, Task
from memtx.data.tasks.compositional import Compositional
from memtx.data.tasks.copying import Copying
from memtx.data.tasks.forgetting import Forgetting
from memtx.data.tasks.induction import Induction
from memtx.data.tasks.labelled import Labelled
from memtx.data.tasks.mad import Mad
from memtx.data.tasks.mqar import MQAR
from memtx.data.tasks.needle import Needle
from memtx.data.tasks.ngram import Ngram
from memtx.data.tasks.object_collision import ObjectCollision
from memtx.data.tasks.pairs import Pairs
from memtx.data.tasks.passkey import Passkey
from memtx.data.tasks.phonebook import Phonebook
from memtx.data.tasks.ruler import Ruler

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
}

__all__ = ["TASKS", "Example", "Task"]
