"""How networks with CAST cluster tokens: how many clusters each token is in, and which."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sturdy.recipes.loader import Loader

EXAMPLES = 128  # whose clusters are counted after each epoch


def memberships(model: nn.Module, loader: Loader) -> list[dict[str, float]]:
    """For each layer the parts of all tokens that are in no cluster, in one, and in several.

    Layers that attended fully are left out, so the list is empty for a Transformer.

    Args:
        model: A :class:`sturdy.recipes.sequence_models.SequenceClassifier`; it is in evaluation mode afterwards.
        loader: Of examples whose padding is symbol 0.
    """
    from sturdy.recipes.sequence_models import SequenceClassifier

    if not isinstance(model, SequenceClassifier):
        return []
    totals: dict[int, Tensor] = {}
    model.eval()
    with torch.inference_mode():
        for batch in loader.in_order():
            with model.watch_clusters() as found:
                model(batch.images)
            present = valid_tokens(model, batch.images)
            for layer, clusters in enumerate(found):
                if clusters is not None:
                    inside = counts(clusters.index, present.shape[1])
                    kinds = torch.stack([inside == 0, inside == 1, inside > 1])
                    totals[layer] = totals.get(layer, 0) + (kinds & present).sum((1, 2)).double()
    parts = [(layer, (total / total.sum()).tolist()) for layer, total in sorted(totals.items())]
    names = ("none", "one", "several")
    return [{"layer": layer, **dict(zip(names, map(_rounded, part), strict=True))} for layer, part in parts]


def _rounded(value: float) -> float:
    return round(value, 6)


def valid_tokens(model: Any, images: Tensor) -> Tensor:
    """``(B, N)``: where there is a token, with the one that is put before the others for the pooling ``cls``."""
    present = images != 0 if not images.is_floating_point() else torch.ones_like(images.flatten(1), dtype=torch.bool)
    return nn.functional.pad(present, (1, 0), value=True) if model.pooling == "cls" else present


def counts(index: Tensor, length: int) -> Tensor:
    """``(B, N)``: in how many clusters each token is.

    Args:
        index: ``(B, C, kappa)``: tokens of the clusters, -1 for none.
        length: N.
    """
    return member_map(index, length).sum(1)


def member_map(index: Tensor, length: int) -> Tensor:
    """``(B, C, N)`` int64: 1 where a token is in a cluster."""
    batch, clusters, _ = index.shape
    # Empty slots count for one more token, which is dropped.
    place = torch.where(index < 0, length, index.long())
    members = torch.zeros(batch, clusters, length + 1, dtype=torch.int64, device=index.device)
    return members.scatter_(2, place, 1)[..., :length]
