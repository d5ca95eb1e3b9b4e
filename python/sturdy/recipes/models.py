"""The networks, each for any number of input channels and classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sturdy.recipes.cct import CCT
from sturdy.recipes.settings import Settings

TINY_IMAGE = 16  # up to this side the small CNN keeps the resolution of its first layer
SMALL_IMAGE = 64  # up to this side a ResNet gets the CIFAR stem, unless told otherwise

# Compact convolutional transformers: layers / size of the kernels x number of convolutions that make tokens.
_CCT: dict[str, dict[str, int]] = {
    "cct_7_3x1": {"layers": 7, "heads": 4, "mlp_ratio": 2, "dim": 256, "kernel_size": 3, "convolutions": 1},
    "cct_14_7x2": {"layers": 14, "heads": 6, "mlp_ratio": 3, "dim": 384, "kernel_size": 7, "convolutions": 2},
}


class SmallCNN(nn.Module):
    """Three convolutions for images of 8 to 64 pixels: ``(N, in_channels, H, W)`` to ``(N, num_classes)``.

    Args:
        in_channels: Channels of the input.
        num_classes: Length of the output.
        pool_stem: Halve the resolution after the first layer as well, for images above 16 pixels.
        width: Channels of the first layer; the next have twice and four times as many.
    """

    def __init__(self, in_channels: int, num_classes: int, *, pool_stem: bool = False, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool_stem = nn.MaxPool2d(2) if pool_stem else nn.Identity()
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, H, W)`` to logits ``(N, num_classes)``."""
        x = self.pool_stem(self.relu(self.bn1(self.conv1(x))))
        x = self.maxpool(self.relu(self.bn2(self.conv2(x))))
        x = self.relu(self.bn3(self.conv3(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _resnet(build: Callable[..., nn.Module], in_channels: int, num_classes: int, stem: str) -> nn.Module:
    """A ResNet of torchvision with one of the first layers of ``RESNET_STEMS``."""
    model = build(num_classes=num_classes)
    if stem == "imagenet" and in_channels == 3:
        return model
    if stem == "imagenet":
        conv = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    else:
        stride = 2 if stem == "tinyimagenet" else 1
        conv = nn.Conv2d(in_channels, 64, kernel_size=3, stride=stride, padding=1, bias=False)
        model.maxpool = nn.Identity()
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does for its own
    model.conv1 = conv
    return model


def build_model(
    settings: Settings, *, in_channels: int, num_classes: int, image_size: int, length: int = 0, vocabulary: int = 0
) -> nn.Module:
    """The network of a run with freshly initialised weights, which depend on ``settings.seed`` alone.

    A network with PushPull starts from the weights of the same network without it; so does one with normalisations
    for auxiliary images, which ``ace`` and ``jsd`` with AFA need where there is batch normalisation. One with CAST
    starts from those of the Transformer.

    Args:
        settings: Of the run.
        in_channels, num_classes, image_size: Of the images; see :attr:`sturdy.recipes.data.DataSet.sizes`.
        length, vocabulary: For a network of sequences: most tokens, and number of symbols or 0 for images.
    """
    torch.manual_seed(settings.seed)
    if settings.reads_sequences:
        from sturdy.recipes.sequence_models import SequenceClassifier

        return SequenceClassifier(
            settings, num_classes=num_classes, length=length or image_size**2, vocabulary=vocabulary
        )
    if settings.model == "small-cnn":
        model: nn.Module = SmallCNN(in_channels, num_classes, pool_stem=image_size > TINY_IMAGE)
    elif settings.model in _CCT:
        model = CCT(in_channels, num_classes, image_size, **_CCT[settings.model])
    else:
        from torchvision.models import resnet18, resnet50

        stem = settings.resnet_stem
        if stem == "auto":
            stem = "cifar" if image_size <= SMALL_IMAGE else "imagenet"
        build = {"resnet18": resnet18, "resnet50": resnet50}[settings.model]
        model = _resnet(build, in_channels, num_classes, stem)
    # Layer normalisation has no statistics to keep apart: a transformer serves both kinds of images with the same.
    if settings.has_auxiliary_view and not isinstance(model, CCT):
        from sturdy.nn import convert_dual_bn

        has_stages = hasattr(model, "layer4")
        model = convert_dual_bn(model, ("a", "a", "a", None) if settings.ibn and has_stages else None)
    if settings.stem == "pushpull":
        import sturdy

        model = sturdy.convert_first_conv(
            model,
            layer=getattr(model, "first_conv", "conv1"),
            avg_kernel_size=settings.avg_kernel_size,
            inhibition=settings.inhibition,
            trainable_inhibition=settings.trainable_inhibition,
        )
    return model
