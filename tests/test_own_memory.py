"""The contract catches a mechanism in a user's file that breaks it. tests/test_docs.py runs it on one that passes."""

import subprocess
import sys
from pathlib import Path

import pytest

from memtx.contract import case
from tests.test_docs import FILES

LEAKY = '''

class Leaky(MyMemory):
    """Sees the end of its call."""

    def __call__(self, x_BTD, state, seg, *, key=None):
        y, state = super().__call__(x_BTD, state, seg)
        return jnp.broadcast_to(y[:, -1:], y.shape), state
'''


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "my_memory.py"
    path.write_text(FILES["my_memory.py"] + LEAKY)
    return path


def contract_of(file: Path, name: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "--pyargs", "memtx.contract", f"--memory={file}:{name}", *options]
    return subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=False)


@pytest.mark.thorough
def test_one_that_sees_the_future_or_depends_on_calls_is_caught(file):
    done = contract_of(file, "Leaky", "-k", "c2_cuts or c3", "--tb=no")
    assert done.returncode == 1
    failed = [line.split("::")[1].split("[")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert set(failed) == {"test_c2_cuts_do_not_matter", "test_c3_the_past_does_not_see_the_future"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.py:X", "no file"),
        ("{file}:Missing", "no class Missing"),
        ("{file}:Sums", "no class Sums that is a memtx.core.Memory"),
    ],
)
def test_mistakes_are_named(file, given, message):
    with pytest.raises(pytest.UsageError, match=message):
        case.load(given.format(file=file))
