"""Settings for a CPU, each in a separate process, because they apply to a whole process."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import jax, jax.numpy as jnp
from memtx.training.cpu import keep_pages

if sys.argv[1] == "kept":
    keep_pages()

@jax.jit
def step(x):  # a buffer of 144 MiB, and dots that threads pack factors for
    y = x @ x.T
    return (y @ x) / 6144

x = jnp.ones((6144, 64))
count = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
for _ in range(12):
    x = step(x).block_until_ready()
    count.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(sorted(after - before for before, after in zip(count, count[1:]))[6])
"""


def faults(how: str) -> int:
    """Page faults of the median step: the heap may grow in a few."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=300)
    return int(done.stdout)


@pytest.mark.thorough
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's malloc")
def test_a_steps_pages_are_kept_from_one_to_the_next():
    kept = faults("kept")
    assert kept < 1_000
    assert faults("given back") > 10 * max(kept, 5)  # the buffer is 72 faults even where all pages are huge


@pytest.mark.thorough
def test_a_matrix_memory_is_evaluated_with_the_usual_flags_of_xla():
    """With jaxlib 0.10 and two cores this waited forever, see `schedule_in_order`."""
    args = ["eval", "--config=lm:memory=gated_deltanet,size=tiny", "--config.data.corpus=books", "--segments=2"]
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-m", "memtx.cli", *args], env=env, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
