"""Transformer encoders with CAST in place of self-attention."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sturdy.functional import CASTClusters
from sturdy.nn.cast import CASTAttention, check_tokens, find_padding, refuse_pair_masks
from sturdy.nn.cast_norms import MaskedBatchNorm, ScaleNorm

_Activation: TypeAlias = Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, _Activation] = {"gelu": F.gelu, "relu": F.relu}
_NORMS = ("layer", "scale", "batch")


class CASTEncoderLayer(nn.Module):
    """A Transformer's encoder layer with CAST in place of self-attention; replaces ``nn.TransformerEncoderLayer``.

    ``x + cast(norm1(x))``, then ``x + linear2(activation(linear1(norm2(x))))``, with dropout as there. Parameters have
    the names of ``nn.TransformerEncoderLayer``, whose state dict loads: surrogates and gate keep what they have. It
    works inside ``nn.TransformerEncoder(layer, n, enable_nested_tensor=False)``.

    Args:
        d_model, nhead, dim_feedforward, dropout, bias, layer_norm_eps, device, dtype: As in
            ``nn.TransformerEncoderLayer``; ``dropout`` does not act on attention weights.
        num_clusters, cluster_size, method: As in :class:`sturdy.nn.CASTAttention`.
        activation: ``"gelu"``, ``"relu"`` or a function.
        norm: ``"layer"``, ``"scale"`` (:class:`sturdy.nn.ScaleNorm`) or ``"batch"``
            (:class:`sturdy.nn.MaskedBatchNorm`, whose statistics leave padding out).
        norm_first: Normalise before both branches, or after each sum.
        attention_dropout: Of attention weights within clusters.
        **attn_kw: The other options of :class:`sturdy.nn.CASTAttention`.

    Shape:
        ``(B, N, d)`` or ``(N, d)`` to the same; batch first alone.

    Raises:
        ValueError: an option is out of range.

    Source: van Engelenhoven, Strisciuglio, Talavera, *CAST*, 2024; the block around attention is this library's choice.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        num_clusters: int,
        cluster_size: int | None = None,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | _Activation = "gelu",
        norm: str = "layer",
        norm_first: bool = True,
        method: str = "topk",
        *,
        attention_dropout: float = 0.0,
        bias: bool = True,
        layer_norm_eps: float = 1e-5,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **attn_kw: Any,
    ) -> None:
        super().__init__()
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        own = {"method": method, "dropout": attention_dropout, "bias": bias, **attn_kw}
        self.self_attn = CASTAttention(d_model, nhead, num_clusters, cluster_size, **own, **where)
        self.linear1 = nn.Linear(d_model, dim_feedforward, bias=bias, **where)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(dim_feedforward, d_model, bias=bias, **where)
        self.norm1 = _make_norm(norm, d_model, layer_norm_eps, bias, where)
        self.norm2 = _make_norm(norm, d_model, layer_norm_eps, bias, where)
        self.dropout1 = nn.Dropout(dropout)
        self.dropout2 = nn.Dropout(dropout)
        self.norm_first = norm_first
        self.activation = _find_activation(activation)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        clusters: CASTClusters | None = None,
        return_clusters: bool = False,
    ) -> Tensor | tuple[Tensor, CASTClusters | None]:
        """Apply the layer.

        Args:
            src: ``(B, N, d)`` or ``(N, d)``.
            src_mask, is_causal: Not possible: NotImplementedError.
            src_key_padding_mask: ``(B, N)`` or ``(N,)``: True, or -inf, where there is no token. What ``src`` holds
                there reaches no token and no gradient; what comes out there has no meaning and is finite.
            clusters, return_clusters: As in :class:`sturdy.nn.CASTAttention`.

        Raises:
            As :class:`sturdy.nn.CASTAttention`.
        """
        refuse_pair_masks("CASTEncoderLayer", src_mask, is_causal)
        check_tokens("CASTEncoderLayer", src, self.self_attn.embed_dim, self.self_attn.in_proj_weight)
        padding = find_padding("CASTEncoderLayer", src, src_key_padding_mask, None)
        x = src if src.dim() == 3 else src.unsqueeze(0)
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(2), 0)
        normed = normalise(self.norm1, x, padding) if self.norm_first else x
        attended, found = self.self_attn(normed, key_padding_mask=padding, clusters=clusters, return_clusters=True)
        x = x + self.dropout1(attended)
        if self.norm_first:
            x = x + self._feed_forward(normalise(self.norm2, x, padding))
        else:
            x = normalise(self.norm1, x, padding)
            x = normalise(self.norm2, x + self._feed_forward(x), padding)
        out = x if src.dim() == 3 else x.squeeze(0)
        return (out, found) if return_clusters else out

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))

    @classmethod
    def from_transformer_layer(
        cls, layer: nn.TransformerEncoderLayer, num_clusters: int, cluster_size: int | None = None, **options: Any
    ) -> CASTEncoderLayer:
        """A layer that shares everything of ``layer`` but for its attention, whose projections it shares.

        Args:
            layer: An ``nn.TransformerEncoderLayer`` itself, with ``batch_first``.
            num_clusters, cluster_size: As for the class.
            **options: ``attention_dropout``, by default that of ``layer``, ``method`` and the others of
                :class:`sturdy.nn.CASTAttention`.

        Raises:
            TypeError: ``layer`` is of another class, or an option is not known. ValueError: it is not batch first.
        """
        if type(layer) is not nn.TransformerEncoderLayer:
            kind = type(layer).__name__
            raise TypeError(f"{cls.__name__}.from_transformer_layer: needs an nn.TransformerEncoderLayer, got {kind}")
        if "attention_dropout" in options:
            options["dropout"] = options.pop("attention_dropout")
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.self_attn = CASTAttention.from_multihead_attention(layer.self_attn, num_clusters, cluster_size, **options)
        for name in ("linear1", "dropout", "linear2", "norm1", "norm2", "dropout1", "dropout2"):
            setattr(new, name, getattr(layer, name))
        new.norm_first = layer.norm_first
        new.activation = layer.activation
        new.training = layer.training
        return new

    def extra_repr(self) -> str:
        """The options that the layer's modules do not show."""
        name = getattr(self.activation, "__name__", type(self.activation).__name__)
        return f"norm_first={self.norm_first}, activation={name}"


class CASTEncoder(nn.Module):
    """A stack of encoder layers with CAST; replaces ``nn.TransformerEncoder``.

    Args:
        layer: Copied ``num_layers`` times, with what its parameters hold, as ``nn.TransformerEncoder`` does.
        num_layers: At least 1.
        norm: Applied last, or None.
        enable_nested_tensor: Must be False: CAST takes padded tensors and a mask.
        share_clusters: Let all layers use the clusters of the first one, which saves the choice of the others; their
            queries, keys and mixing weights stay their own.

    Shape:
        ``(B, N, d)`` or ``(N, d)`` to the same.

    Raises:
        TypeError: ``layer`` is no :class:`sturdy.nn.CASTEncoderLayer`. ValueError: ``num_layers`` is below 1.
        NotImplementedError: ``enable_nested_tensor`` is True.
    """

    def __init__(
        self,
        layer: CASTEncoderLayer,
        num_layers: int,
        norm: nn.Module | None = None,
        enable_nested_tensor: bool = False,
        *,
        share_clusters: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(layer, CASTEncoderLayer):
            raise TypeError(f"CASTEncoder: layer must be a CASTEncoderLayer, got {type(layer).__name__}")
        if num_layers < 1:
            raise ValueError(f"CASTEncoder: num_layers must be at least 1, got {num_layers}")
        if enable_nested_tensor:
            raise NotImplementedError("CASTEncoder: nested tensors are not possible; pass padded ones and a mask")
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        self.num_layers = num_layers
        self.norm = norm
        self.share_clusters = share_clusters

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
        *,
        return_clusters: bool = False,
    ) -> Tensor | tuple[Tensor, list[CASTClusters | None]]:
        """Apply all layers in turn.

        Args:
            src, src_key_padding_mask: As in :class:`sturdy.nn.CASTEncoderLayer`.
            mask, is_causal: Not possible: NotImplementedError.
            return_clusters: Return the clusters of each layer as well, None where there was ordinary attention.

        Raises:
            As :class:`sturdy.nn.CASTAttention`.
        """
        refuse_pair_masks("CASTEncoder", mask, bool(is_causal))
        first = self.layers[0]
        assert isinstance(first, CASTEncoderLayer)
        check_tokens("CASTEncoder", src, first.self_attn.embed_dim, first.self_attn.in_proj_weight)
        padding = find_padding("CASTEncoder", src, src_key_padding_mask, None)
        x, shared = src, None
        of_layers: list[CASTClusters | None] = []
        for layer in self.layers:
            x, clusters = layer(x, src_key_padding_mask=padding, clusters=shared, return_clusters=True)
            of_layers.append(clusters)
            if self.share_clusters:
                shared = clusters
        if self.norm is not None:
            x = normalise(self.norm, x, padding)
        return (x, of_layers) if return_clusters else x

    def extra_repr(self) -> str:
        """The options."""
        return "share_clusters=True" if self.share_clusters else ""


def normalise(norm: nn.Module, x: Tensor, padding: Tensor | None) -> Tensor:
    """Apply a normalisation, which may be one that wants to know of padding."""
    out: Tensor = norm(x, padding) if isinstance(norm, MaskedBatchNorm) else norm(x)
    return out


def _make_norm(norm: str, d_model: int, eps: float, bias: bool, where: dict[str, Any]) -> nn.Module:
    if norm == "layer":
        return nn.LayerNorm(d_model, eps=eps, bias=bias, **where)
    if norm == "scale":
        return ScaleNorm(**where)
    if norm == "batch":
        return MaskedBatchNorm(d_model, **where)
    raise ValueError(f"CASTEncoderLayer: norm must be one of {', '.join(map(repr, _NORMS))}, got {norm!r}")


def _find_activation(activation: str | _Activation) -> _Activation:
    if not isinstance(activation, str):
        return activation
    if activation not in _ACTIVATIONS:
        known = ", ".join(map(repr, _ACTIVATIONS))
        raise ValueError(f"CASTEncoderLayer: activation must be one of {known} or a function, got {activation!r}")
    return _ACTIVATIONS[activation]
