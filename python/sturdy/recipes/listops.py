"""ListOps: nested lists of digits under MIN, MAX, MED and SM, to be evaluated; ten classes.

The distribution is that of the Long Range Arena (Tay et al., 2021) after Nangia and Bowman, "ListOps: A diagnostic
dataset for latent tree learning", 2018. Trees are drawn from the root: at the greatest depth always a digit, else a
digit with probability 0.75 and an operator with 2 to 10 arguments otherwise; trees whose number of tokens is not
strictly between two bounds are drawn again, and none occurs twice. The value of ``MED`` is the integer part of the
median, that of ``SM`` the last digit of the sum.

All trees of a block are drawn together, level by level, in arrays; blocks have random numbers of their own. So the
examples depend on the seed and the bounds alone, not on how blocks were shared out among processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

OPERATORS = ("MIN", "MAX", "MED", "SM")
CLOSE = "]"
SYMBOLS = (*(str(digit) for digit in range(10)), *(f"[{name}" for name in OPERATORS), CLOSE)
PADDING = 0
VOCABULARY = 1 + len(SYMBOLS)  # the symbols are numbered from 1, 0 is padding

_FIRST_OPERATOR = 1 + SYMBOLS.index("[MIN")
_CLOSE = 1 + SYMBOLS.index(CLOSE)
_NUMBER = {symbol: 1 + i for i, symbol in enumerate(SYMBOLS)}

P_DIGIT = 0.75
LEAST_ARGUMENTS, MOST_ARGUMENTS = 2, 10
MAX_DEPTH = 10

BLOCK = 250  # examples that are drawn with the same random numbers
_DRAWS = 4000  # trees drawn at once

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Expressions:
    """Expressions, one after another.

    Attributes:
        tokens: uint8, numbers of symbols from 1, all expressions joined.
        offsets: ``(N + 1,)`` int64; expression i is ``tokens[offsets[i]:offsets[i + 1]]``.
        labels: ``(N,)`` uint8, values from 0 to 9.
    """

    tokens: Tokens
    offsets: Ints
    labels: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Tokens:
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    def take(self, first: int, last: int) -> Expressions:
        """Expressions ``first`` to ``last``, the latter not included."""
        begin, end = self.offsets[first], self.offsets[last]
        return Expressions(self.tokens[begin:end], self.offsets[first : last + 1] - begin, self.labels[first:last])


def encode(text: str) -> Tokens:
    """Numbers of the symbols of an expression such as ``[MAX 1 [MIN 7 3 ] 2 ]``; ValueError for another symbol."""
    try:
        return np.array([_NUMBER[word] for word in text.split()], dtype=np.uint8)
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} is not a symbol of ListOps ({' '.join(SYMBOLS)})") from None


def decode(tokens: Iterable[int]) -> str:
    """The inverse of :func:`encode`; padding is left out."""
    return " ".join(SYMBOLS[token - 1] for token in tokens if token != PADDING)


def apply_operator(name: str, values: Sequence[int]) -> int:
    """The value of one operator for digits, from 0 to 9."""
    if name == "MIN":
        return min(values)
    if name == "MAX":
        return max(values)
    if name == "SM":
        return sum(values) % 10
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) // 2


def evaluate(tokens: Iterable[int]) -> int:
    """The value of an expression, token by token; ValueError if it is not one."""
    stack: list[tuple[str, list[int]]] = [("", [])]
    for token in tokens:
        if token == PADDING:
            continue
        if token < _FIRST_OPERATOR:
            stack[-1][1].append(token - 1)
        elif token < _CLOSE:
            stack.append((OPERATORS[token - _FIRST_OPERATOR], []))
        else:
            name, values = stack.pop()
            if not name or not values:
                raise ValueError("a bracket closes nothing" if not name else f"{name} has no argument")
            stack[-1][1].append(apply_operator(name, values))
    if len(stack) != 1 or len(stack[0][1]) != 1:
        raise ValueError("not one whole expression")
    return stack[0][1][0]


# ---- drawing ---------------------------------------------------------------------------------------------------------


@dataclass
class _Level:
    """The nodes of one depth, those of one parent beside each other and parents in the order of their own level."""

    tree: Ints  # the tree of each node
    kind: Ints  # the token of a digit or of an operator
    arguments: Ints  # 0 for a digit


def generate_block(seed: int, block: int, min_length: int, max_length: int, max_depth: int = MAX_DEPTH) -> Expressions:
    """``BLOCK`` expressions with more than ``min_length`` and fewer than ``max_length`` tokens.

    Args:
        seed: Of the data set.
        block: Number of the block; decides the random numbers together with the seed.
        min_length, max_length: Bounds of the number of tokens, neither included.
        max_depth: Depth at which there are digits alone; the root has depth 1.
    """
    random = np.random.Generator(np.random.Philox(key=[seed, block]))
    parts: list[Expressions] = []
    found = 0
    while found < BLOCK:
        parts.append(_draw(random, min_length, max_length, max_depth))
        found += len(parts[-1])
    return join(parts).take(0, BLOCK)


def join(parts: Sequence[Expressions]) -> Expressions:
    """Several sets of expressions as one, in their order."""
    ends = np.cumsum([0] + [len(part.tokens) for part in parts])
    offsets = [part.offsets[:-1] + end for part, end in zip(parts, ends[:-1], strict=True)]
    return Expressions(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([*offsets, ends[-1:]]),
        np.concatenate([part.labels for part in parts]),
    )


def unique(expressions: Expressions, known: set[bytes]) -> Expressions:
    """The expressions that are not in ``known``, each once; they are added to it."""
    kept = []
    for i in range(len(expressions)):
        digest = hashlib.blake2b(expressions[i].tobytes(), digest_size=16).digest()
        if digest not in known:
            known.add(digest)
            kept.append(i)
    if len(kept) == len(expressions):
        return expressions
    return join([expressions.take(i, i + 1) for i in kept]) if kept else expressions.take(0, 0)


def _draw(random: np.random.Generator, min_length: int, max_length: int, max_depth: int) -> Expressions:
    """Those of ``_DRAWS`` trees that have a permitted length, perhaps none."""
    levels, length = _grow(random, max_length, max_depth)
    keep = (length > min_length) & (length < max_length)
    levels = [_of_trees(level, keep) for level in levels]
    levels = [level for level in levels if len(level.tree)]
    if not levels:
        return Expressions(np.zeros(0, np.uint8), np.zeros(1, np.int64), np.zeros(0, np.uint8))
    lengths, values = _fold(levels)
    offsets = np.concatenate([[0], np.cumsum(lengths[0])])
    tokens = np.empty(offsets[-1], dtype=np.uint8)
    place = offsets[:-1]
    for depth, level in enumerate(levels):
        is_operator = level.arguments > 0
        tokens[place] = level.kind
        tokens[place[is_operator] + lengths[depth][is_operator] - 1] = _CLOSE
        if depth + 1 < len(levels):
            # A child begins after its parent's first token and its elder siblings.
            first = _first_children(level)
            before = np.cumsum(lengths[depth + 1]) - lengths[depth + 1]
            counts = level.arguments[is_operator]
            place = np.repeat(place[is_operator] + 1 - before[first], counts) + before
    return Expressions(tokens, offsets, values[0].astype(np.uint8))


def _grow(random: np.random.Generator, max_length: int, max_depth: int) -> tuple[list[_Level], Ints]:
    """Trees from the root down, and their lengths; those that have become too long are left unfinished."""
    length = np.zeros(_DRAWS, dtype=np.int64)
    tree = np.arange(_DRAWS, dtype=np.int64)
    levels: list[_Level] = []
    for depth in range(1, max_depth + 1):
        count = len(tree)
        is_digit = np.ones(count, bool) if depth == max_depth else random.random(count) < P_DIGIT
        digit = random.integers(0, 10, count)
        operator = random.integers(0, len(OPERATORS), count)
        arguments = np.where(is_digit, 0, random.integers(LEAST_ARGUMENTS, MOST_ARGUMENTS + 1, count))
        kind = np.where(is_digit, 1 + digit, _FIRST_OPERATOR + operator)
        levels.append(_Level(tree, kind, arguments))
        # Each argument is at least one token more.
        length += np.bincount(tree, np.where(is_digit, 1, 2), _DRAWS).astype(np.int64)
        arguments = np.where((length + np.bincount(tree, arguments, _DRAWS) < max_length)[tree], arguments, 0)
        given_up = (arguments == 0) & ~is_digit
        length[tree[given_up]] = max_length
        tree = np.repeat(tree, arguments)
        if not len(tree):
            break
    return levels, length


def _of_trees(level: _Level, keep: npt.NDArray[np.bool_]) -> _Level:
    chosen = keep[level.tree]
    return _Level(level.tree[chosen], level.kind[chosen], level.arguments[chosen])


def _first_children(level: _Level) -> Ints:
    """Of each operator of a level: the place of its first argument in the next level."""
    counts = level.arguments[level.arguments > 0]
    return np.cumsum(counts) - counts


def _fold(levels: list[_Level]) -> tuple[list[Ints], list[Ints]]:
    """Numbers of tokens and values of all nodes, from the leaves up."""
    lengths: list[Ints] = []
    values: list[Ints] = []
    for level in reversed(levels):
        length = np.ones(len(level.tree), dtype=np.int64)
        value = level.kind - 1
        is_operator = level.arguments > 0
        if is_operator.any():
            first = _first_children(level)
            counts = level.arguments[is_operator]
            below_length, below = lengths[0], values[0]
            length[is_operator] = 2 + np.add.reduceat(below_length, first)
            # The arguments of each operator in ascending order: parents do not mix, for they weigh more than digits.
            parent = np.repeat(np.arange(len(counts)), counts)
            ordered = np.sort(16 * parent + below) % 16
            results = (
                ordered[first],
                ordered[first + counts - 1],
                (ordered[first + (counts - 1) // 2] + ordered[first + counts // 2]) // 2,
                np.add.reduceat(below, first) % 10,
            )
            value[is_operator] = np.choose(level.kind[is_operator] - _FIRST_OPERATOR, results)
        lengths.insert(0, length)
        values.insert(0, value)
    return lengths, values


# ---- what can be reached without composing ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Floors:
    """Accuracies of guesses that look at little of an expression; found on some examples, measured on others.

    Attributes:
        majority: Always the most frequent class.
        root: The most frequent class of each operator at the root.
        one_level: The most frequent class of each operator at the root together with its value for the digits that are
            its own arguments, and how many of these there are.
    """

    majority: float
    root: float
    one_level: float


def floors(train: Expressions, test: Expressions) -> Floors:
    """Fit the guesses on ``train`` and measure them on ``test``."""
    of_train, of_test = _root_features(train), _root_features(test)
    nothing = np.zeros(len(train), np.int64), np.zeros(len(test), np.int64)
    accuracies = []
    guess = np.zeros(len(test), np.int64)
    for a, b in (nothing, (of_train[0], of_test[0]), (of_train[1], of_test[1])):
        guess = _lookup(a, train.labels, b, guess)
        accuracies.append(float((guess == test.labels).mean()))
    return Floors(*accuracies)


def _lookup(key: Ints, labels: npt.NDArray[np.uint8], asked: Ints, otherwise: Ints) -> Ints:
    """The most frequent label of each key, ``otherwise`` where a key was never seen."""
    table = np.zeros((int(max(key.max(), asked.max(initial=0))) + 1, 10), np.int64)
    np.add.at(table, (key, labels), 1)
    return np.where(table[asked].sum(1) > 0, table[asked].argmax(1), otherwise)


def _root_features(expressions: Expressions) -> tuple[Ints, Ints]:
    """Two keys per expression: the root's symbol, and that with the value and the number of its own digits."""
    roots = np.empty(len(expressions), np.int64)
    keys = np.empty(len(expressions), np.int64)
    for i in range(len(expressions)):
        tokens = expressions[i]
        depth = np.cumsum((tokens >= _FIRST_OPERATOR) & (tokens < _CLOSE)) - np.cumsum(tokens == _CLOSE)
        digits = (tokens[(depth == 1) & (tokens < _FIRST_OPERATOR)] - 1).tolist()
        root = int(tokens[0])
        value = apply_operator(OPERATORS[root - _FIRST_OPERATOR], digits) if root >= _FIRST_OPERATOR and digits else 0
        roots[i] = root
        keys[i] = (root * 10 + value) * (MOST_ARGUMENTS + 1) + len(digits)
    return roots, keys
