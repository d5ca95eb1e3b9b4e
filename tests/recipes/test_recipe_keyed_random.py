"""Random numbers keyed per image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from sturdy.recipes.keyed_random import KeyedRandom, mix_key

MASK = (1 << 64) - 1


def splitmix64(state: int, count: int) -> list[int]:
    """The published generator, in Python integers."""
    outputs = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        outputs.append(z ^ (z >> 31))
    return outputs


def test_streams_are_splitmix64() -> None:
    random = KeyedRandom(torch.tensor([0, 1, 7, 2**40]), mix_key(3, "x"))
    states = [int(key) & MASK for key in random._keys]
    first, second = random.uniform(5, dtype=torch.float64), random.uniform(2, 3)
    for row, state in enumerate(states):
        bits = splitmix64(state, 11)
        assert first[row].tolist() == [(b >> 11) / 2**53 for b in bits[:5]]
        assert second[row].flatten().tolist() == [(b >> 40) / 2**24 for b in bits[5:]]


def test_splitmix64_gives_the_published_numbers() -> None:
    # The first outputs for seed 1234567, as listed with the generator's reference code.
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=12), st.integers(0, 2**62))
def test_a_stream_does_not_depend_on_its_batch(indices: list[int], key: int) -> None:
    together = KeyedRandom(torch.tensor(indices), key)
    together = (together.uniform(3), together.normal(4), together.poisson(torch.full((len(indices), 6), 30.0)))
    for row, index in enumerate(indices):
        alone = KeyedRandom(torch.tensor([index]), key)
        alone = (alone.uniform(3), alone.normal(4), alone.poisson(torch.full((1, 6), 30.0)))
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a[row], b[0])


def test_numbers_after_poisson_do_not_depend_on_the_batch() -> None:
    # Rejection needs another number of rounds in a larger batch.
    means = torch.full((50, 20), 40.0)
    together, alone = KeyedRandom(torch.arange(50), 1), KeyedRandom(torch.arange(1), 1)
    together.poisson(means)
    alone.poisson(means[:1])
    assert torch.equal(together.uniform(4)[0], alone.uniform(4)[0])


def test_keys_change_everything() -> None:
    draws = [
        KeyedRandom(torch.arange(4), key).uniform(64)
        for key in (mix_key(0, "a", 1), mix_key(0, "a", 2), mix_key(0, "b", 1), mix_key(1, "a", 1))
    ]
    flat = torch.cat(draws).numpy()  # 16 streams
    correlation = np.corrcoef(flat)[~np.eye(16, dtype=bool)]
    assert np.abs(correlation).max() < 5 / math.sqrt(64)
    assert mix_key(1, 2) != mix_key(2, 1)


def test_uniform_and_normal_follow_their_distributions() -> None:
    random = KeyedRandom(torch.arange(100), 5)
    assert scipy.stats.kstest(random.uniform(500).flatten().numpy(), "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(random.normal(500).flatten().numpy(), "norm").pvalue > 1e-3
    counts = torch.bincount(random.integers(9, 500).flatten(), minlength=9).numpy()
    assert len(counts) == 9 and scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("mean", [0.02, 0.7, 5.0, 9.99, 10.0, 13.0, 80.0, 500.0])
def test_poisson_counts(mean: float) -> None:
    draws = KeyedRandom(torch.arange(200), mix_key("poisson")).poisson(torch.full((200, 200), mean)).numpy().flatten()
    assert np.array_equal(draws, np.round(draws)) and draws.min() >= 0
    law = scipy.stats.poisson(mean)
    edges = np.unique(law.ppf(np.linspace(0.005, 0.995, 40)))  # bins that each expect enough draws
    observed = np.histogram(draws, np.concatenate([[-1], edges, [np.inf]]) + 0.5)[0]
    expected = np.diff(np.concatenate([[0.0], law.cdf(edges), [1.0]])) * draws.size
    keep = expected > 5
    observed = np.append(observed[keep], observed[~keep].sum())
    expected = np.append(expected[keep], expected[~keep].sum())
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    assert scipy.stats.chisquare(observed, expected, sum_check=False).pvalue > 1e-4


def test_poisson_of_zero_is_zero() -> None:
    assert not KeyedRandom(torch.arange(3), 0).poisson(torch.zeros(3, 100)).any()
