"""How many floating point operations our ops make, for ``torch.utils.flop_counter``.

As torch counts its own: a multiplication and an addition for every term of the products that dominate, nothing for
what is done per element. A family adds a function under :func:`flop_formula` for each of its ops.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from math import prod
from types import ModuleType
from typing import Any

import torch

from sturdy import _registration

_COUNTER = "torch.utils.flop_counter"
# From the arguments by their names in the op's schema, every tensor replaced by its shape, and the shape of the result.
_Formula = Callable[[dict[str, Any], Any], int]
_formulas: dict[str, _Formula] = {}
_namespaces: list[str] = []


def flop_formula(name: str) -> Callable[[_Formula], _Formula]:
    """Mark ``formula(arguments, result)`` as that of the op ``name``, in every namespace which has it."""

    def mark(formula: _Formula) -> _Formula:
        _formulas[name] = formula
        return formula

    return mark


# ---- formulas --------------------------------------------------------------------------------------------------------


@flop_formula("push_pull_conv2d")
def _push_pull_conv2d(arguments: dict[str, Any], result: Any) -> int:
    out_shape, _ = result
    return _convolution(out_shape, arguments["weight"])


@flop_formula("push_pull_conv2d_backward")
def _push_pull_conv2d_backward(arguments: dict[str, Any], result: Any) -> int:
    # One product for each of the two large gradients, and the convolution once more where it was not kept.
    wanted = [arguments[name] for name in ("need_input", "need_weight", "need_inhibition")]
    again = arguments["push"] is None and any(wanted)
    return _convolution(arguments["grad_out"], arguments["weight"]) * (wanted[0] + wanted[1] + again)


@flop_formula("cast_affinity")
def _cast_affinity(arguments: dict[str, Any], result: Any) -> int:
    # Queries and keys of every token with every surrogate token.
    batch, heads, tokens, dim = arguments["q"]
    return 4 * batch * heads * tokens * arguments["surrogates"][1] * dim


@flop_formula("cast_cluster")
def _cast_cluster(arguments: dict[str, Any], result: Any) -> int:
    return 0


@flop_formula("cast_attention")
def _cast_attention(arguments: dict[str, Any], result: Any) -> int:
    # Two products each: within clusters, of slots for the summaries, and of tokens with clusters for their mixture.
    return 4 * _cast_terms(arguments)


@flop_formula("cast_attention_backward")
def _cast_attention_backward(arguments: dict[str, Any], result: Any) -> int:
    # Of each pair of products the first once more, and two for each.
    return 10 * _cast_terms(arguments)


def _cast_terms(arguments: dict[str, Any]) -> int:
    batch, heads, tokens, dim = arguments["q"]
    clusters, slots = arguments["index"][1:]
    return batch * heads * dim * (clusters * slots * (slots + 1) + tokens * clusters)


def _convolution(out_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    return 2 * prod(out_shape) * prod(weight_shape[1:])


# ---- registration ----------------------------------------------------------------------------------------------------


@_registration.op_family
def _register(namespace: str) -> None:
    _namespaces.append(namespace)
    if _COUNTER in sys.modules:
        _tell(sys.modules[_COUNTER], namespace)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    """Tells torch's counter of our formulas as soon as a program imports it.

    Importing it ourselves would cost every program, counting or not, the import of Triton: a quarter of a second.
    """

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_tell(module: ModuleType) -> None:
            run(module)
            for namespace in _namespaces:
                _tell(module, namespace)

        spec.loader.exec_module = run_and_tell  # type: ignore[method-assign]
        return spec


def _tell(counter: ModuleType, namespace: str) -> None:
    for name, formula in _formulas.items():
        packet = getattr(getattr(torch.ops, namespace), name, None)
        if packet is not None and packet not in counter.flop_registry:
            counter.register_flop_formula(packet)(_by_name(packet, formula))


def _by_name(packet: Any, formula: _Formula) -> Callable[..., int]:
    parameters = packet.default._schema.arguments
    names = [parameter.name for parameter in parameters]
    defaults = {parameter.name: parameter.default_value for parameter in parameters if parameter.has_default_value()}

    def count(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return formula({**defaults, **dict(zip(names, args, strict=False)), **kwargs}, out_shape)

    return count
