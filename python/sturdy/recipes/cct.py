"""Compact convolutional transformers: convolutions make the tokens, attention pools what the transformer makes of them.

Source: Hassani et al., *Escaping the big data paradigm with compact transformers*, 2021 (arXiv 2104.05704). Parameters
have the names and shapes of the authors' code, so that their weights load.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sturdy.recipes.errors import UsageError

ATTENTION_DROPOUT = 0.1
STOCHASTIC_DEPTH = 0.1  # of the last block; the first one is never left out


class CCT(nn.Module):
    """A compact convolutional transformer: ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``.

    Args:
        in_channels: Channels of the input.
        num_classes: Length of the output.
        image_size: Side of the images, which are square; the learned positions are for this size only.
        layers: Transformer blocks.
        heads: Attention heads of each.
        mlp_ratio: Width of their hidden layer, as a multiple of ``dim``.
        dim: Length of a token.
        kernel_size: Of the convolutions that make the tokens.
        convolutions: How many; each is followed by a max-pooling with stride 2.

    Attributes:
        first_conv: Qualified name of the convolution that reads the images.
    """

    first_conv = "tokenizer.conv_layers.0.0"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        *,
        layers: int,
        heads: int,
        mlp_ratio: int,
        dim: int,
        kernel_size: int,
        convolutions: int,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.tokenizer = _Tokenizer(in_channels, dim, kernel_size, convolutions)
        side = self.tokenizer.side(image_size)
        self.classifier = _Classifier(side * side, num_classes, layers, heads, mlp_ratio, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to logits ``(N, num_classes)``.

        Raises:
            UsageError: the images are of another size than the network was made for.
        """
        if x.shape[2:] != (self.image_size, self.image_size):
            height, width = x.shape[2:]
            raise UsageError(
                f"a cct for images of {self.image_size} x {self.image_size} pixels got {height} x {width}; "
                "it needs square images, all of one size"
            )
        return self.classifier(self.tokenizer(x))


class _Tokenizer(nn.Module):
    """Images ``(N, C, H, W)`` to tokens ``(N, side(H) * side(W), dim)``."""

    def __init__(self, in_channels: int, dim: int, kernel_size: int, convolutions: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = max(1, kernel_size // 2 - 1)
        self.padding = max(1, kernel_size // 2)
        channels = [in_channels, *[64] * (convolutions - 1), dim]
        self.conv_layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, kernel_size, self.stride, self.padding, bias=False),
                    nn.ReLU(),
                    nn.MaxPool2d(3, 2, 1),
                )
                for before, after in itertools.pairwise(channels)
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def side(self, size: int) -> int:
        """Tokens along a side of so many pixels."""
        for _ in self.conv_layers:
            size = (size + 2 * self.padding - self.kernel_size) // self.stride + 1
            size = (size - 1) // 2 + 1
        return size

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_layers(x).flatten(2).transpose(1, 2)


class _Classifier(nn.Module):
    """Tokens ``(N, T, dim)`` to logits ``(N, num_classes)``."""

    def __init__(self, tokens: int, num_classes: int, layers: int, heads: int, mlp_ratio: int, dim: int) -> None:
        super().__init__()
        self.attention_pool = nn.Linear(dim, 1)
        self.positional_emb = nn.Parameter(torch.empty(1, tokens, dim))
        nn.init.trunc_normal_(self.positional_emb, std=0.2)
        rates = [STOCHASTIC_DEPTH * i / max(1, layers - 1) for i in range(layers)]
        self.blocks = nn.ModuleList(_Block(dim, heads, mlp_ratio * dim, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positional_emb
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        weight = self.attention_pool(x).softmax(dim=1)  # (N, T, 1)
        return self.fc((weight.transpose(1, 2) @ x).squeeze(1))


class _Block(nn.Module):
    """Attention and two linear layers, each added to its input; the authors normalise the sum after the attention."""

    def __init__(self, dim: int, heads: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.pre_norm = nn.LayerNorm(dim)
        self.self_attn = _Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self._drop(self.self_attn(self.pre_norm(x))))
        return x + self._drop(self.linear2(F.gelu(self.linear1(x))))

    def _drop(self, x: Tensor) -> Tensor:
        """In training, leave a branch out for some images and scale it up for the others (stochastic depth)."""
        if not self.training or self.drop_rate == 0:
            return x
        kept = torch.rand((len(x), 1, 1), device=x.device) >= self.drop_rate
        return x * (kept.to(x.dtype) / (1 - self.drop_rate))


class _Attention(nn.Module):
    """Multi-head self-attention over ``(N, T, dim)``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, T, .)
        dropout = ATTENTION_DROPOUT if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.proj(y.transpose(1, 2).flatten(2))
