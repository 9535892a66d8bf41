"""Combinators of runs."""

import pytest

from memtx.errors import UserError
from memtx.sweep import chain, product, sample, zip_

SEEDS, RATES = {"seed": [0, 1]}, {"lr": [0.1, 0.2]}


def test_product_is_every_combination_the_last_fastest():
    expected = [{"seed": s, "lr": r} for s in (0, 1) for r in (0.1, 0.2)]
    assert list(product(SEEDS, RATES)) == expected
    assert list(product(SEEDS | RATES)) == expected
    assert list(product([{"lr": 0.1, "warmup": 5}], SEEDS)) == [{"lr": 0.1, "warmup": 5, "seed": s} for s in (0, 1)]


def test_zip_goes_in_step():
    assert list(zip_(SEEDS, RATES)) == [{"seed": 0, "lr": 0.1}, {"seed": 1, "lr": 0.2}]
    with pytest.raises(UserError, match="the numbers must be equal"):
        zip_(SEEDS, {"lr": [0.1]})


def test_chain_is_one_after_the_other_and_all_nest():
    assert list(chain(SEEDS, zip_(RATES))) == [{"seed": 0}, {"seed": 1}, {"lr": 0.1}, {"lr": 0.2}]
    assert len(list(product(chain(SEEDS, [{"seed": 7}]), RATES))) == 6


def test_sample_is_of_the_product_without_repeats_and_the_same_for_a_seed():
    whole = list(product({"a": range(10), "b": range(10)}))
    drawn = list(sample(20, {"a": range(10), "b": range(10)}))
    assert len({(run["a"], run["b"]) for run in drawn}) == 20
    assert all(run in whole for run in drawn)
    assert drawn == list(sample(20, whole))
    assert drawn != list(sample(20, whole, seed=1))
    with pytest.raises(UserError, match="only 2"):
        sample(3, SEEDS)


def test_mistakes_are_said():
    with pytest.raises(UserError, match="seed is set by two parts"):
        list(product(SEEDS, SEEDS))
    with pytest.raises(UserError, match="must be a list"):
        list(product({"memory": "xl"}))
