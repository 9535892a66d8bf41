"""The contract that every mechanism passes, as a test suite that is installed with memtx.

    pytest --pyargs memtx.contract --memory=my_memory.py:MyMemory [--golden=my_golden.py:GOLDEN] [--devices=8]

| check | promise |
|---|---|
| C1 | outputs and gradients match an independent float64 implementation (needs `--golden`) |
| C2 | cutting a text into calls differently does not change the result |
| C3 | no token sees a later token |
| C4 | streams do not influence each other, and a reset stream is as fresh as a new one |
| C5 | an empty memory contributes exactly nothing |
| C6 | truncated backpropagation stops exactly at the boundary |
| C7 | a state can be saved, restored and continued |
| C8 | shapes and dtypes never change, including in bfloat16 |
| C9 | eight devices compute the same as one, without communication (needs `--devices=8`) |
| C10 | the declared bytes are the bytes in use |

Each check has a control that must fail. A few checks also run through a whole language model. The result of a mechanism that is
not causal depends on one call only. C2 and C3 then check that its output depends on the whole call.
"""
