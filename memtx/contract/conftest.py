"""Parametrisation of the checks: `case` is a mechanism with tiny settings, `golden` has its expected outputs."""

import pytest

from memtx.contract.environment import limit_memory, prepare


def pytest_configure(config):
    """Set up JAX before a test imports it."""
    prepare(config)


def pytest_runtest_logfinish():
    """Keep the memory of a long session small."""
    limit_memory()


def pytest_generate_tests(metafunc):
    """Parametrise the tests that take a `case` or a `golden`."""
    from memtx.contract.case import cases
    from memtx.contract.golden import find

    option = metafunc.config.getoption
    if "case" in metafunc.fixturenames:
        # With --dist loadgroup the tests of a mechanism share a process, which compiles its programs once.
        group = [pytest.param(case, id=case.id, marks=pytest.mark.xdist_group(case.name)) for case in cases(option("memory"))]
        metafunc.parametrize("case", group)
    if "golden" in metafunc.fixturenames:
        found = find(option("golden"), option("memory"), metafunc.config.rootpath)
        first = {str(golden).partition("-")[0]: golden for golden in reversed(found)}.values()  # of each mechanism
        slow = {golden: () if golden in first else pytest.mark.thorough for golden in found}
        metafunc.parametrize("golden", [pytest.param(golden, id=str(golden), marks=marks) for golden, marks in slow.items()])
