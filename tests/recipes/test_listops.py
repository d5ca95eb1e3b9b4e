"""ListOps: values of expressions, the distribution, and files that do not depend on who drew them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recipe_support import Result, assert_one_line_error

from sturdy.recipes import generated, listops
from sturdy.recipes.errors import RecipeError
from sturdy.recipes.tokens import from_expressions

Sturdy = Callable[..., Result]

BY_HAND = [
    ("7", 7),
    ("[MIN 4 2 9 ]", 2),
    ("[MAX 4 2 9 ]", 9),
    ("[MED 4 2 9 ]", 4),
    ("[SM 4 2 9 ]", 5),
    ("[MED 1 2 ]", 1),  # the integer part of 1.5
    ("[MED 2 4 ]", 3),
    ("[MED 9 0 0 9 ]", 4),
    ("[MED 5 5 5 5 5 ]", 5),
    ("[MED 8 1 7 2 ]", 4),
    ("[SM 9 9 9 9 9 9 9 9 9 9 ]", 0),
    ("[SM 0 0 ]", 0),
    ("[MIN [MAX 3 8 ] 9 ]", 8),
    ("[MAX 1 [MIN 7 3 ] 2 ]", 3),
    ("[SM [SM 7 8 ] [SM 9 9 ] 1 ]", 4),
    ("[MED [MIN 6 1 ] [MAX 6 1 ] [SM 6 1 ] ]", 6),
    ("[MIN 9 [MAX 9 [SM 5 5 ] ] 9 ]", 9),
    ("[MAX [MED 1 [SM 9 8 ] 3 ] [MIN 4 5 ] ]", 4),
    ("[SM [MAX 0 [MIN 9 [MED 3 4 ] ] ] 8 [MIN 2 2 ] ]", 3),
    ("[MIN [MIN [MIN [MIN 8 7 ] 9 ] 9 ] [MAX 0 6 ] 5 ]", 5),
    ("[MED [MAX 2 9 ] 0 [MED 0 9 ] 5 [SM 5 6 7 ] 1 ]", 4),
]


@pytest.mark.parametrize(("text", "value"), BY_HAND)
def test_values(text: str, value: int) -> None:
    tokens = listops.encode(text)
    assert listops.evaluate(tokens.tolist()) == value
    assert listops.evaluate([*tokens.tolist(), listops.PADDING, listops.PADDING]) == value
    assert listops.decode(tokens) == text


@pytest.mark.parametrize("text", ["", "1 2", "[MIN ]", "[MIN 1", "1 ]", "]"])
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError):
        listops.evaluate(listops.encode(text).tolist())


def test_symbols() -> None:
    assert listops.VOCABULARY == 16 and len(set(listops.SYMBOLS)) == 15
    with pytest.raises(ValueError, match="MEAN"):
        listops.encode("[MEAN 1 2 ]")


@pytest.fixture(scope="module")
def drawn() -> listops.Expressions:
    """4000 expressions with the lengths of the Long Range Arena."""
    return listops.join([listops.generate_block(0, block, 500, 2000) for block in range(16)])


def test_lengths_values_and_frequencies(drawn: listops.Expressions) -> None:
    lengths = np.diff(drawn.offsets)
    assert lengths.min() > 500 and lengths.max() < 2000
    assert 920 <= np.median(lengths) <= 980 and 1000 <= lengths.mean() <= 1070  # 950 and 1035 in 24 000 others
    for i in range(0, len(drawn), 40):
        assert listops.evaluate(drawn[i].tolist()) == drawn.labels[i]
    frequency = np.bincount(drawn.labels, minlength=10) / len(drawn)
    # Four standard errors of these 4000 around the published 17 % and 7 to 9 %, each known to a point.
    for digit in range(10):
        low, high = (0.165, 0.175) if digit in (0, 9) else (0.065, 0.095)
        assert low - 0.024 <= frequency[digit] <= high + 0.02
    assert len(listops.unique(drawn, set())) == len(drawn)


def test_operators_arguments_and_depths(drawn: listops.Expressions) -> None:
    some = drawn.take(0, 500)
    opening = (some.tokens >= listops.encode("[MIN")[0]) & (some.tokens < listops.encode("]")[0])
    closing = some.tokens == listops.encode("]")[0]
    operators = np.bincount(some.tokens[opening])[11:]
    assert abs(operators / operators.sum() - 0.25).max() < 0.02
    depth = np.cumsum(opening.astype(int) - closing)
    assert depth.min() == 0 and depth.max() == 9  # at depth 10 there are digits alone
    assert (depth[some.offsets[1:] - 1] == 0).all() and opening[some.offsets[:-1]].all()
    digits = np.bincount(some.tokens[~opening & ~closing] - 1)
    assert abs(digits / digits.sum() - 0.1).max() < 0.005
    arguments = _arguments(some[0].tolist())
    for i in range(1, 100):
        arguments += _arguments(some[i].tolist())
    counts = np.bincount(arguments, minlength=11)
    assert counts[:2].sum() == 0 and len(counts) == 11
    # Uniform on 2 to 10, but for the choice of trees by their length, which prefers some.
    assert abs(counts[2:] / counts.sum() - 1 / 9).max() < 0.05


def _arguments(tokens: list[int]) -> list[int]:
    found, open_counts = [], [0]
    for token in tokens:
        if listops.SYMBOLS[token - 1].startswith("["):
            open_counts[-1] += 1
            open_counts.append(0)
        elif listops.SYMBOLS[token - 1] == "]":
            found.append(open_counts.pop())
        else:
            open_counts[-1] += 1
    return found


def test_the_distribution_is_that_of_recursion() -> None:
    """Trees drawn one by one, as the definition says, have the same lengths and classes and are kept as often."""
    source = random.Random(5)

    def tree(depth: int) -> list[int]:
        if depth >= 10 or source.random() < 0.75:
            return [1 + source.randrange(10)]
        tokens = [11 + source.randrange(4)]
        for _ in range(source.randint(2, 10)):
            tokens += tree(depth + 1)
        return [*tokens, 15]

    tokens = [tree(1) for _ in range(12000)]
    kept = [t for t in tokens if 10 < len(t) < 60]
    values = np.bincount([listops.evaluate(t) for t in kept], minlength=10) / len(kept)
    lengths = np.array([len(t) for t in kept])
    drawn = listops.join([listops.generate_block(2, block, 10, 60) for block in range(24)])
    ours = np.bincount(drawn.labels, minlength=10) / len(drawn)
    assert abs(values - ours).max() < 4 * np.sqrt(0.2 * 0.8 * (1 / len(kept) + 1 / len(drawn)))
    quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]
    assert abs(np.quantile(lengths, quantiles) - np.quantile(np.diff(drawn.offsets), quantiles)).max() <= 3
    shorter = (lengths < 30).mean(), (np.diff(drawn.offsets) < 30).mean()
    assert shorter[0] == pytest.approx(shorter[1], abs=4 * np.sqrt(0.25 * (1 / len(kept) + 1 / len(drawn))))


def test_floors() -> None:
    """On expressions of one level the last guess is always right once it was seen, and the first ones are counts."""
    texts = ["[MIN 3 5 ]", "[MIN 3 6 ]", "[MAX 3 5 ]", "[MAX 7 1 ]", "[MAX 5 0 ]", "[MIN 2 3 ]"]
    tokens = [listops.encode(text) for text in texts]
    labels = np.array([listops.evaluate(t.tolist()) for t in tokens], np.uint8)
    offsets = np.cumsum([0, *map(len, tokens)])
    all_of_them = listops.Expressions(np.concatenate(tokens), offsets, labels)
    found = listops.floors(all_of_them, all_of_them)
    assert labels.tolist() == [3, 3, 5, 7, 5, 2]
    assert found.majority == pytest.approx(2 / 6) and found.root == pytest.approx(4 / 6) and found.one_level == 1
    unseen = listops.encode("[SM 1 1 ]")
    other = listops.Expressions(unseen, np.array([0, len(unseen)]), np.array([3], np.uint8))
    assert listops.floors(all_of_them, other).one_level == 1  # falls back to the most frequent class, which is 3


def test_floors_of_the_arena(drawn: listops.Expressions) -> None:
    found = listops.floors(drawn.take(0, 3000), drawn.take(3000, 4000))
    assert 0.13 <= found.majority <= 0.21  # 16.9 % in the long run
    assert 0.31 <= found.root <= 0.41  # 36.0 %
    assert 0.42 <= found.one_level <= 0.54


def test_same_seed_same_file(tmp_path: Path) -> None:
    options = {"min_length": 20, "max_length": 60}
    count = 10 * listops.BLOCK + 7
    one = generated.listops_file(tmp_path / "one", count, **options)
    many = generated.listops_file(tmp_path / "many", count, processes=3, **options)
    other = generated.listops_file(tmp_path / "one", count, seed=1, **options)
    assert one.read_bytes() == many.read_bytes() and one.read_bytes() != other.read_bytes()
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == [many.name]
    expressions = generated.read_listops(one)
    assert len(expressions) == count and len({expressions[i].tobytes() for i in range(count)}) == count
    split = from_expressions(expressions)
    symbols = split.batch(split.labels.new_tensor([3, 5]))
    for row, i in zip(symbols, (3, 5), strict=True):
        assert row[: len(expressions[i])].tolist() == expressions[i].tolist()
        assert (row[len(expressions[i]) :] == 0).all()


def test_drawing_goes_on_after_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"min_length": 20, "max_length": 60}
    whole = generated.listops_file(tmp_path / "whole", 1000, **options)
    draw, blocks = listops.generate_block, []

    def stop(seed: int, block: int, *lengths: int) -> listops.Expressions:
        blocks.append(block)
        if len(blocks) == 3:
            raise KeyboardInterrupt
        return draw(seed, block, *lengths)

    monkeypatch.setattr(listops, "generate_block", stop)
    with pytest.raises(KeyboardInterrupt):
        generated.listops_file(tmp_path / "parts", 1000, **options)
    assert not (tmp_path / "parts" / whole.name).exists()
    assert generated.listops_file(tmp_path / "parts", 1000, **options).read_bytes() == whole.read_bytes()
    assert blocks == [0, 1, 2, 2, 3, *blocks[5:]]  # those that were done are not drawn again


def test_more_are_drawn_where_some_are_equal(tmp_path: Path) -> None:
    """Of expressions with 4 tokens there are 400, and more are asked for than a block has different ones."""
    path = generated.listops_file(tmp_path, 300, min_length=3, max_length=5)
    expressions = generated.read_listops(path)
    assert len({expressions[i].tobytes() for i in range(300)}) == 300
    with pytest.raises(RecipeError, match="there are not 500 different"):
        generated.listops_file(tmp_path, 500, min_length=3, max_length=5)


def test_damaged_file(sturdy: Sturdy, tmp_path: Path) -> None:
    path = generated.listops_file(tmp_path, 12, min_length=20, max_length=60)
    path.write_bytes(path.read_bytes()[:-40])
    words = ["--train-examples", 8, "--test-examples", 2, "--batch-size", 4, "--min-length", 20, "--max-length", 60]
    result = sturdy("train", "cast", "--task", "listops", "--data-dir", tmp_path, "--out", tmp_path / "run", *words)
    assert_one_line_error(result, path.name, "truncated or damaged", "delete it", status=1)
