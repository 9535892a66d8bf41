"""The contract, on every mechanism: what makes it done. Each equality has a control that shows the test can fail.

C1 parity with independent float64 numpy   C2 cuts do not matter   C3 causality          C4 rows are isolated
C5 an empty memory reads nothing           C6 exact truncation     C7 save and restore   C8 bfloat16
C9 eight devices == one                    C10 declared bytes      and the same once through a whole language model

What is not causal (an encoder's attention) is a function of one call: where C2 and C3 cut a text, or hide what comes after,
it is tested to depend on just that. case.py has what the tests are written with.
"""
