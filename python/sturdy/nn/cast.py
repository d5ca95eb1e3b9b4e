"""CAST self-attention as a module."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sturdy import _registration
from sturdy._errors import ShapeError
from sturdy.functional import CASTClusters, cast_attention
from sturdy.functional import cast as _functional
from sturdy.functional._arguments import autocast_enabled

_GREATEST_CUDA_HEAD = 128


class CASTAttention(nn.Module):
    """Self-attention within clusters of tokens, with a summary of every other cluster; replaces self-attention.

    Tokens are gathered into clusters by their similarity to learned surrogate tokens. The cost of a token is set by
    ``cluster_size`` and ``num_clusters`` and not by the length of the sequence; see
    :func:`sturdy.functional.cast_attention`.

    ``in_proj_weight``, ``in_proj_bias``, ``out_proj.weight`` and ``out_proj.bias`` are those of
    ``nn.MultiheadAttention``, whose state dict loads: ``surrogates`` and the gate then keep what they have.

    Args:
        embed_dim: Width d of tokens; a multiple of ``num_heads``.
        num_heads: Heads h, each of ``e = d / h`` values.
        num_clusters: Clusters C, and surrogate tokens.
        cluster_size: Tokens of a cluster; None: the length of the sequence over C, rounded up, at each call.
        method: ``"topk"``: each cluster takes its best tokens, so that a token may be in none or in several;
            ``"sa_topk"``: each token is in one cluster.
        dropout: Probability with which attention weights within clusters become 0 in training; 0 to 1, without 1.
        bias: Of the projections.
        scale: Factor of the products of queries and keys; None means ``1 / sqrt(e)``.
        tau_q, tau_k, tau_g: Temperatures of the mixing weights, summaries and affinity; None means ``sqrt(e)``,
            ``sqrt(e)`` and ``sqrt(d)``.
        full_attention_below: Sequences of at most so many tokens get ordinary attention. None: up to ``cluster_size``
            tokens, where Top-K is just that, and fewer tokens than clusters. 0: never.
        backend: ``"auto"``, ``"cuda"``, ``"cpu"`` or ``"reference"``, as for the function.
        device, dtype: Of the parameters.

    Attributes:
        surrogates: ``(C, d)``, started from N(0, 1); head by head along d.
        gate: ``nn.Linear(d, 1)``, started from 0: each token's logit between being looked for as a query or as a key.

    Shape:
        ``(B, N, d)`` or ``(N, d)`` to the same. Any N, no divisibility is asked for.

    Raises:
        ValueError: an option is out of range.

    Note:
        There is no order of tokens in a summary, so that causal and other masks of pairs are not possible. Attention
        weights are not returned.

    Source: van Engelenhoven, Strisciuglio, Talavera, *CAST: Clustering self-attention using surrogate tokens for
    efficient transformers*, 2024.
    """

    batch_first = True  # read by nn.TransformerEncoder, as the next one
    _qkv_same_embed_dim = True

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_clusters: int,
        cluster_size: int | None = None,
        *,
        method: str = "topk",
        dropout: float = 0.0,
        bias: bool = True,
        scale: float | None = None,
        tau_q: float | None = None,
        tau_k: float | None = None,
        tau_g: float | None = None,
        full_attention_below: int | None = None,
        backend: str = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(embed_dim, num_heads, num_clusters, cluster_size, full_attention_below)
        _check_choices(method, backend, embed_dim // num_heads)
        _check_numbers(dropout, {"scale": scale, "tau_q": tau_q, "tau_k": tau_k, "tau_g": tau_g})
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.num_clusters = num_clusters
        self.cluster_size = cluster_size
        self.method = method
        self.dropout = dropout
        self.scale = scale
        self.tau_q = tau_q
        self.tau_k = tau_k
        self.tau_g = tau_g
        self.full_attention_below = full_attention_below
        self.backend = backend
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_proj_weight = nn.Parameter(torch.empty((3 * embed_dim, embed_dim), **factory))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * embed_dim, **factory)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **factory)
        self.surrogates = nn.Parameter(torch.empty((num_clusters, embed_dim), **factory))
        self.gate = nn.Linear(embed_dim, 1, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters: projections as Xavier has them, surrogates from N(0, 1); biases and the gate are 0."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        for bias in (self.in_proj_bias, self.out_proj.bias):
            if bias is not None:
                nn.init.zeros_(bias)
        nn.init.normal_(self.surrogates)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(
        self,
        x: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        lengths: Tensor | None = None,
        clusters: CASTClusters | None = None,
        return_clusters: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor | tuple[Tensor, CASTClusters | None]:
        """Apply the layer.

        Args:
            x: ``(B, N, d)`` or ``(N, d)``, the dtype and device of the parameters (any floating dtype under autocast).
            key_padding_mask: ``(B, N)`` or ``(N,)``: True where there is no token, or floating point with 0 and -inf.
                What ``x`` holds there does not matter; the result there is the bias of ``out_proj``.
            lengths: ``(B,)``, integers: the same for sequences padded at their end. Not both.
            clusters: Use these in place of the layer's own choice, and never ordinary attention.
            return_clusters: Return the clusters as well, None where there was ordinary attention.
            attn_mask, is_causal: Not possible; for a clear word to who exchanges layers.

        Returns:
            As ``x`` came; or that and the clusters.

        Raises:
            ValueError: shapes disagree, a mask holds other numbers, or there are both ``key_padding_mask`` and
                ``lengths``. TypeError: a dtype is not possible. RuntimeError: devices differ, or ``backend`` does not
                fit them. NotImplementedError: there is an ``attn_mask``, or ``is_causal``.
        """
        refuse_pair_masks("CASTAttention", attn_mask, is_causal)
        check_tokens("CASTAttention", x, self.embed_dim, self.in_proj_weight)
        reference = _functional._uses_reference("CASTAttention", self.backend, x)
        padding = find_padding("CASTAttention", x, key_padding_mask, lengths)
        tokens = x if x.dim() == 3 else x.unsqueeze(0)
        if padding is not None:
            # A gradient of 0 times an infinity in padding would be NaN in those of the projections.
            tokens = tokens.masked_fill(padding.unsqueeze(2), 0)
        batch, length, _ = tokens.shape
        projected = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        projected = projected.view(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = (part.transpose(1, 2) for part in projected.unbind(2))
        if clusters is None and self._attends_fully(length):
            mixed = self._full_attention(q, k, v, padding, reference)
        else:
            mixed, clusters = self._clustered_attention(q, k, v, self._gate(tokens), padding, clusters)
        out = self.out_proj(mixed.transpose(1, 2).reshape(batch, length, self.embed_dim))
        out = out if x.dim() == 3 else out.squeeze(0)
        return (out, clusters) if return_clusters else out

    def _attends_fully(self, length: int) -> bool:
        if self.full_attention_below is not None:
            return length <= self.full_attention_below
        return length < self.num_clusters or (self.cluster_size is not None and length <= self.cluster_size)

    def _gate(self, tokens: Tensor) -> Tensor:
        """(B, N), in the dtype of the parameters also under autocast: softmaxes follow."""
        if not autocast_enabled(tokens.device.type):
            return self.gate(tokens).squeeze(2)
        with torch.autocast(tokens.device.type, enabled=False):
            return self.gate(tokens.to(self.gate.weight.dtype)).squeeze(2)

    def _clustered_attention(
        self, q: Tensor, k: Tensor, v: Tensor, phi: Tensor, padding: Tensor | None, clusters: CASTClusters | None
    ) -> tuple[Tensor, CASTClusters]:
        surrogates = self.surrogates.view(self.num_clusters, self.num_heads, self.head_dim).transpose(0, 1)
        found = cast_attention(
            *(q, k, v, surrogates, phi, self.cluster_size),
            method=self.method,
            key_padding_mask=padding,
            clusters=clusters,
            scale=self.scale,
            tau_q=self.tau_q,
            tau_k=self.tau_k,
            tau_g=self.tau_g,
            dropout=self.dropout if self.training else 0.0,
            backend=self.backend,
            return_clusters=True,
        )
        assert isinstance(found, tuple)
        return found

    def _full_attention(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, reference: bool) -> Tensor:
        allowed = None
        if padding is not None:
            # Some of torch's kernels make NaN of a row without any key: padding alone attends to itself instead.
            allowed = (~padding | padding.all(1, keepdim=True))[:, None, None]
        dropout = self.dropout if self.training else 0.0
        # The others of torch's kernels cannot be differentiated twice.
        kernel = sdpa_kernel(SDPBackend.MATH) if reference else contextlib.nullcontext()
        with kernel:
            out = F.scaled_dot_product_attention(q, k, v, allowed, dropout, scale=self.scale)
        if padding is not None:
            out = out.masked_fill(padding[:, None, :, None], 0)
        if torch.is_grad_enabled():
            # Zero gradients rather than none for what took no part, as distributed training wants them.
            unused = self.surrogates.sum() + self.gate.weight.sum() + self.gate.bias.sum()
            out = out + (unused * 0).to(out.dtype)
        return out

    @classmethod
    def from_multihead_attention(
        cls, mha: nn.MultiheadAttention, num_clusters: int, cluster_size: int | None = None, **options: Any
    ) -> CASTAttention:
        """A layer that shares the projections of ``mha``, has its dropout, and new surrogates and gate.

        Args:
            mha: With ``batch_first``, keys and values of its own width, and no added key or zeros.
            num_clusters, cluster_size, **options: As for the class.

        Raises:
            TypeError: ``mha`` is of another class. ValueError: it does what this layer does not.
        """
        _check_source(mha)
        own: dict[str, Any] = {"dropout": mha.dropout, **options}
        where: dict[str, Any] = {"device": mha.in_proj_weight.device, "dtype": mha.in_proj_weight.dtype}
        bias = mha.in_proj_bias is not None
        layer = cls(mha.embed_dim, mha.num_heads, num_clusters, cluster_size, bias=bias, **where, **own)
        layer.in_proj_weight, layer.in_proj_bias = mha.in_proj_weight, mha.in_proj_bias
        layer.out_proj.weight, layer.out_proj.bias = mha.out_proj.weight, mha.out_proj.bias
        layer.train(mha.training)
        return layer

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        own = {f"{prefix}{name}": tensor for name, tensor in self._new_parameters().items()}
        if f"{prefix}in_proj_weight" in state_dict and not any(name in state_dict for name in own):
            state_dict.update(own)  # of an nn.MultiheadAttention, which has none of them
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _new_parameters(self) -> dict[str, nn.Parameter]:
        """What nn.MultiheadAttention does not have."""
        return {name: found for name, found in self.named_parameters() if not name.startswith(("in_proj", "out_proj"))}

    def extra_repr(self) -> str:
        """Sizes, and the options that are not at their defaults."""
        shown = [f"{self.embed_dim}, {self.num_heads}, num_clusters={self.num_clusters}"]
        shown.append(f"cluster_size={self.cluster_size}, method={self.method!r}")
        for name in ("scale", "tau_q", "tau_k", "tau_g", "full_attention_below"):
            if getattr(self, name) is not None:
                shown.append(f"{name}={getattr(self, name):g}")
        if self.dropout:
            shown.append(f"dropout={self.dropout:g}")
        if self.in_proj_bias is None:
            shown.append("bias=False")
        if self.backend != "auto":
            shown.append(f"backend={self.backend!r}")
        return ", ".join(shown)


def keep_clusters() -> Any:
    """Let activation checkpointing keep the clusters of the first pass, in place of choosing them once more.

    For ``torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False, context_fn=sturdy.nn.keep_clusters)``. What
    is kept is 4 bytes for each slot. Without it recomputation chooses again, and from the same numbers the same
    clusters; this is for regions in which something before the layer is not repeatable.
    """
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    namespace = getattr(torch.ops, _registration._namespace)
    return create_selective_checkpoint_contexts([namespace.cast_cluster.default])


# ---- arguments -------------------------------------------------------------------------------------------------------


def _check_sizes(
    embed_dim: int, num_heads: int, num_clusters: int, cluster_size: int | None, full_attention_below: int | None
) -> None:
    if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads != 0:
        raise ValueError(
            f"CASTAttention: embed_dim must be a multiple of num_heads and both at least 1, got {embed_dim} and "
            f"{num_heads}"
        )
    if num_clusters < 1:
        raise ValueError(f"CASTAttention: num_clusters must be at least 1, got {num_clusters}")
    if cluster_size is not None and cluster_size < 1:
        raise ValueError(f"CASTAttention: cluster_size must be at least 1, got {cluster_size}")
    if full_attention_below is not None and full_attention_below < 0:
        raise ValueError(f"CASTAttention: full_attention_below must be at least 0, got {full_attention_below}")


def _check_choices(method: str, backend: str, head_dim: int) -> None:
    choices = (("method", method, _functional.METHODS), ("backend", backend, _functional.BACKENDS))
    for name, value, known in choices:
        if value not in known:
            raise ValueError(f"CASTAttention: {name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    if backend == "cuda" and head_dim > _GREATEST_CUDA_HEAD:
        raise ValueError(
            f"CASTAttention: embed_dim / num_heads must be at most {_GREATEST_CUDA_HEAD} with backend='cuda', "
            f"got {head_dim}"
        )


def _check_numbers(dropout: float, positive: Mapping[str, float | None]) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"CASTAttention: dropout must be at least 0 and less than 1, got {dropout}")
    for name, value in positive.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"CASTAttention: {name} must be greater than 0 and finite, got {value}")


def _check_source(mha: nn.MultiheadAttention) -> None:
    op = "CASTAttention.from_multihead_attention"
    if not isinstance(mha, nn.MultiheadAttention):
        raise TypeError(f"{op}: needs an nn.MultiheadAttention, got {type(mha).__name__}")
    if not mha.batch_first:
        raise ValueError(f"{op}: needs batch_first=True: this layer takes (batch, tokens, features) alone")
    if not mha._qkv_same_embed_dim:
        raise ValueError(f"{op}: keys and values must have the width of queries, got {mha.kdim} and {mha.vdim}")
    if mha.bias_k is not None or mha.add_zero_attn:
        raise ValueError(f"{op}: add_bias_kv and add_zero_attn are not possible here")


def refuse_pair_masks(op: str, mask: Tensor | None, is_causal: bool) -> None:
    """Refuse a mask of pairs of tokens, and causality."""
    if mask is not None or is_causal:
        what = "a mask of pairs of tokens" if mask is not None else "is_causal"
        raise NotImplementedError(
            f"{op}: {what} is not possible: summaries are not causal, they mix tokens of all positions. Padding goes "
            "into key_padding_mask"
        )


def check_tokens(op: str, x: Tensor, embed_dim: int, weight: Tensor) -> None:
    """Refuse tokens of another shape, dtype or device than the layer's parameters have."""
    if x.is_nested:
        raise TypeError(f"{op}: x must not be a nested tensor: pass a padded one with key_padding_mask or lengths")
    if x.dim() not in (2, 3) or x.shape[-1] != embed_dim:
        raise ShapeError(
            f"{op}: x must be (B, N, {embed_dim}) or (N, {embed_dim}) for embed_dim={embed_dim}, got shape "
            f"{tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise TypeError(f"{op}: x must be floating point, got {x.dtype}")
    if x.device != weight.device:
        raise RuntimeError(f"{op}: x is on {x.device}, the layer's parameters are on {weight.device}")
    if x.dtype != weight.dtype and not autocast_enabled(x.device.type):
        raise TypeError(f"{op}: x must have the dtype of the layer's parameters, {weight.dtype}, got {x.dtype}")


def find_padding(op: str, x: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """``(B, N)`` bool for ``(B, N, d)`` or ``(N, d)``, True where there is no token, however it was said."""
    if mask is not None and mask.device != x.device:
        raise RuntimeError(f"{op}: key_padding_mask is on {mask.device}, x is on {x.device}")
    if x.dim() == 2:
        if mask is not None and mask.dim() == 1:
            mask = mask.unsqueeze(0)
        if lengths is not None and lengths.dim() == 0:
            lengths = lengths.unsqueeze(0)
    batch, tokens = (1, x.shape[0]) if x.dim() == 2 else x.shape[:2]
    return _functional._padding(op, batch, tokens, x.device, mask, lengths)
