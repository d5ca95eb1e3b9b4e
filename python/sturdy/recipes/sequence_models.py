"""Classifiers of sequences: an encoder with CAST, and the same with attention among all tokens (a Transformer)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sturdy.nn import CASTEncoderLayer, MaskedBatchNorm, ScaleNorm
from sturdy.recipes.errors import UsageError
from sturdy.recipes.settings import Settings
from sturdy.recipes.tokens import PADDING

GREY_LEVELS = 256


class SelfAttention(nn.Module):
    """Attention among all tokens by torch's ``scaled_dot_product_attention``; named and started as CAST's projections.

    Args:
        width: Length of a token.
        heads: Divides it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """``(B, N, width)`` to the same; ``padding`` ``(B, N)``, True where there is no token."""
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(2, (3, self.heads, -1))
        q, k, v = projected.permute(2, 0, 3, 1, 4)
        allowed = None if padding is None else ~padding[:, None, None]
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, allowed).transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """What :class:`sturdy.nn.CASTEncoderLayer` is, with attention among all tokens.

    Args:
        width, heads, ff_width, dropout, norm, norm_first: As ``d_model``, ``nhead``, ``dim_feedforward`` ... there.
    """

    def __init__(
        self, width: int, heads: int, ff_width: int, *, dropout: float, norm: str, norm_first: bool = True
    ) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.linear1 = nn.Linear(width, ff_width)
        self.linear2 = nn.Linear(ff_width, width)
        self.norm1, self.norm2 = make_norm(norm, width), make_norm(norm, width)
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """``(B, N, width)`` to the same; ``padding`` ``(B, N)``, True where there is no token."""
        if self.norm_first:
            x = x + self.dropout(self.self_attn(normalise(self.norm1, x, padding), padding))
            return x + self._feed_forward(normalise(self.norm2, x, padding))
        x = normalise(self.norm1, x + self.dropout(self.self_attn(x, padding)), padding)
        return normalise(self.norm2, x + self._feed_forward(x), padding)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(F.gelu(self.linear1(x)))))


class SequenceClassifier(nn.Module):
    """Symbols or grey images to logits, through encoder layers with CAST or attention among all tokens.

    A symbol, or a pixel in the order of reading, becomes a token: an embedding, a projection if the embedding has
    another width, and a learned position. Padding takes no part in anything.

    Args:
        settings: Of the run: sizes, kind of attention, normalisation, pooling.
        num_classes: Length of the output.
        length: Most tokens of a sequence, or pixels of an image.
        vocabulary: Number of symbols with that for padding; 0 for images.

    The weights that both kinds have start from the same values.
    """

    def __init__(self, settings: Settings, *, num_classes: int, length: int, vocabulary: int = 0) -> None:
        super().__init__()
        width = settings.width
        embed_width = settings.embed_width or width
        self.vocabulary = vocabulary
        self.pixels = settings.pixels
        self.pooling = settings.pooling
        self.length = length
        if vocabulary:
            self.embedding: nn.Module = nn.Embedding(vocabulary, embed_width, padding_idx=PADDING)
        elif self.pixels == "token":
            self.embedding = nn.Embedding(GREY_LEVELS, embed_width)
        else:
            self.embedding = nn.Linear(1, embed_width)
        self.project = nn.Linear(embed_width, width) if embed_width != width else nn.Identity()
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.start = nn.Parameter(torch.randn(width) * 0.02) if self.pooling == "cls" else None
        self.dropout = nn.Dropout(settings.dropout)
        common: dict[str, Any] = {"dropout": settings.dropout, "norm": settings.norm, "norm_first": settings.norm_first}
        plain = [TransformerLayer(width, settings.heads, settings.ff_width, **common) for _ in range(settings.depth)]
        self.norm = make_norm(settings.norm, width) if settings.norm_first else None
        self.head = nn.Linear(width, num_classes)
        self.clusters: list[Any] | None = None
        self.layers = nn.ModuleList(plain)
        if settings.model == "cast":
            self._check_capacity(settings, length)
            self.layers = nn.ModuleList(_with_cast(layer, settings, common) for layer in plain)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, num_classes)``.

        Args:
            x: ``(B, N)`` int64, symbols from 1 and 0 for padding; or images ``(B, 1, H, W)`` in [0, 1].
        """
        padding = x == PADDING if self.vocabulary else None
        if padding is not None and not bool(padding.any()):
            padding = None
        tokens = self.dropout(self._embed(x))
        if self.start is not None:
            tokens = torch.cat([self.start.expand(len(tokens), 1, -1), tokens], 1)
            padding = None if padding is None else F.pad(padding, (1, 0))
        for layer in self.layers:
            if isinstance(layer, CASTEncoderLayer):
                tokens, found = layer(tokens, src_key_padding_mask=padding, return_clusters=True)
                if self.clusters is not None:
                    self.clusters.append(found)
            else:
                tokens = layer(tokens, padding)
        if self.norm is not None:
            tokens = normalise(self.norm, tokens, padding)
        return self.head(self._pool(tokens, padding))

    def _embed(self, x: Tensor) -> Tensor:
        if self.vocabulary:
            embedded = self.embedding(x)
        elif self.pixels == "token":
            embedded = self.embedding((x.flatten(1) * (GREY_LEVELS - 1)).round().long().clamp(0, GREY_LEVELS - 1))
        else:
            embedded = self.embedding(x.flatten(1)[..., None] * 2 - 1)
        if embedded.shape[1] > self.length:
            raise UsageError(f"a network for {self.length} tokens got {embedded.shape[1]}")
        return self.project(embedded) + self.positions[: embedded.shape[1]]

    def _pool(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
        if self.start is not None:
            return tokens[:, 0]
        if padding is None:
            return tokens.mean(1)
        return tokens.masked_fill(padding[..., None], 0).sum(1) / (~padding).sum(1, keepdim=True)

    @contextmanager
    def watch_clusters(self) -> Iterator[list[Any]]:
        """Within this, each pass appends the clusters of every layer with CAST, None where it attended fully."""
        self.clusters = []
        try:
            yield self.clusters
        finally:
            self.clusters = None

    @staticmethod
    def _check_capacity(settings: Settings, length: int) -> None:
        places = settings.clusters * settings.cluster_size
        tokens = length + (settings.pooling == "cls")
        if settings.clustering == "sa_topk" and 0 < places < tokens:
            raise UsageError(
                f"with --clustering sa_topk each token is in one cluster, but {settings.clusters} clusters of "
                f"{settings.cluster_size} have no room for {tokens} tokens; give a greater --cluster-size, or 0 for as "
                "much as is needed"
            )


def _with_cast(layer: TransformerLayer, settings: Settings, common: dict[str, Any]) -> CASTEncoderLayer:
    """A layer with CAST that starts from the weights of ``layer``."""
    made = CASTEncoderLayer(
        settings.width,
        settings.heads,
        settings.clusters,
        settings.cluster_size or None,
        settings.ff_width,
        method=settings.clustering,
        backend=settings.backend,
        **common,
    )
    own = made.state_dict()
    made.load_state_dict({**own, **{name: value for name, value in layer.state_dict().items() if name in own}})
    return made


def make_norm(kind: str, width: int) -> nn.Module:
    """The normalisation called ``layer``, ``scale`` or ``batch``."""
    if kind == "layer":
        return nn.LayerNorm(width)
    return ScaleNorm() if kind == "scale" else MaskedBatchNorm(width)


def normalise(norm: nn.Module, x: Tensor, padding: Tensor | None) -> Tensor:
    """Apply a normalisation, of which one kind wants to know of padding."""
    return norm(x, padding) if isinstance(norm, MaskedBatchNorm) else norm(x)
