"""What the transforms share: which inputs are images, where random numbers come from, parameters to replay."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from sturdy._errors import ShapeError

# draw(*shape) gives (N or 1, *shape) float64 numbers in [0, 1), another set at each call.
Draw = Callable[..., Tensor]


class Transform(nn.Module):
    """A random change of images, of each image in a batch by itself; the base of the transforms of this package.

    Works as those of ``torchvision.transforms.v2`` do, which it does not need: call it with images, or with whole
    samples (several arguments, tuples, dictionaries), and it changes the images and hands on the rest, boxes, masks
    and labels included. Images are ``tv_tensors.Image`` and ``Video`` where the sample has any, else its first tensor.
    ``make_params`` draws, ``transform`` applies; both may be called by themselves.

    **Random numbers.** All parameters are computed from uniform float64 numbers, drawn by one routine, one call of
    ``torch.rand`` for each kind of parameter in the order that the class names. They are drawn on the device of the
    generator, without one on the CPU from torch's global generator, and then copied: with the same seed images on any
    device get the same parameters. With a generator the global one is left alone. Nothing waits for the device.

    Args:
        p: Probability that an image is changed.
        same_on_batch: Draw one set of parameters for all images of a batch.
        generator: Where random numbers come from, on the CPU or on the device of the images. A copy in each worker of
            a ``DataLoader`` draws the same numbers there; without one they draw different ones.
        validate: Look at the values of the images first: they must be finite and in [0, 1]. Waits for the device.
        dtype: Of the result for uint8 images; float32 by default.

    Shape:
        ``(C, H, W)`` or ``(N, C, H, W)``; uint8, which stands for value / 255, or floating point, as a rule in [0, 1].
        The result has the same shape, device and memory format, and the dtype of a floating input.

    Raises:
        ShapeError: an image has another number of dimensions or no pixels; a ``ValueError`` and a ``RuntimeError``.
        ValueError: ``p`` is outside of [0, 1], the generator on a device that is neither the CPU nor that of the
            images, or ``validate`` found something.
        TypeError: an image is complex, or of an integer type other than uint8, or there is none.
    """

    def __init__(
        self,
        *,
        p: float = 1.0,
        same_on_batch: bool = False,
        generator: torch.Generator | None = None,
        validate: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"{self._name()}: p must be in [0, 1], got {p}")
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"{self._name()}: dtype must be a floating point one, got {dtype}")
        self.p = float(p)
        self.same_on_batch = bool(same_on_batch)
        self.generator = generator
        self.validate = bool(validate)
        self.dtype = dtype or torch.float32

    # ---- to be written by each transform ----

    def sample(self, draw: Draw, image: Tensor) -> dict[str, Tensor]:
        """Parameters for images like ``image`` from uniform random numbers.

        Args:
            draw: ``draw(*shape)`` gives ``(N, *shape)`` float64 numbers in [0, 1), or ``(1, *shape)`` for one set of
                parameters for all images.
            image: ``(N, C, H, W)`` or ``(C, H, W)``; only its sizes count.
        """
        raise NotImplementedError

    def transform(self, image: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        """Change images as ``params`` say; no randomness is left here."""
        raise NotImplementedError

    # ---- calls ----

    def forward(
        self,
        *inputs: Any,
        params: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Change the images among the inputs.

        Args:
            *inputs: Images, or samples with images in them.
            params: What :meth:`make_params` gave, to repeat it.
            generator: In place of the transform's own, for this call.

        Returns:
            The inputs with their images changed: one value for one, a tuple for several.
        """
        flat, structure = tree_flatten(inputs if len(inputs) != 1 else inputs[0])
        places = self._places(flat)
        images = {place: self._checked(flat[place]) for place in places}
        if params is None:
            params = self._make_params(list(images.values()), inputs, generator)
        for place, image in images.items():
            flat[place] = _like(self.transform(image, params), flat[place])
        return tree_unflatten(flat, structure)

    def make_params(self, inputs: Sequence[Any], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw parameters for the first of the given images, which must serve the others as well."""
        places = self._places(inputs)
        return self._make_params([self._checked(inputs[place]) for place in places], tuple(inputs), generator)

    def _make_params(
        self, images: Sequence[Tensor], inputs: tuple[Any, ...], generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        return self.sample(self._draws(images[0], generator), images[0])

    def extra_repr(self) -> str:
        """What all transforms have, where it is not the default."""
        parts = [f"p={self.p:g}"]
        if self.same_on_batch:
            parts.append("same_on_batch=True")
        return ", ".join(parts)

    # ---- helpers ----

    @classmethod
    def _name(cls) -> str:
        return cls.__name__

    def _places(self, flat: Sequence[Any]) -> list[int]:
        """Which of the inputs are images."""
        images, others = _tv_types()
        explicit = [i for i, value in enumerate(flat) if isinstance(value, images)]
        if explicit:
            return explicit
        for i, value in enumerate(flat):
            if isinstance(value, Tensor) and not isinstance(value, others):
                return [i]
        kinds = ", ".join(sorted({type(value).__name__ for value in flat})) or "nothing"
        raise TypeError(
            f"{self._name()}: needs an image as a tensor, got {kinds}; for PIL images and arrays put "
            "torchvision.transforms.v2.ToImage() before"
        )

    def _checked(self, value: Tensor) -> Tensor:
        """The image as a plain tensor."""
        image = value.as_subclass(Tensor)
        name = self._name()
        if image.is_complex():
            raise TypeError(f"{name}: the image must be real, got {image.dtype}")
        if not image.is_floating_point() and image.dtype != torch.uint8:
            raise TypeError(f"{name}: convert the image to float in [0, 1] or to uint8 first, got {image.dtype}")
        if image.dim() not in (3, 4) or image.shape[-1] < 1 or image.shape[-2] < 1:
            raise ShapeError(
                f"{name}: the image must be (N, C, H, W) or (C, H, W) with H and W at least 1, "
                f"got shape {tuple(image.shape)}"
            )
        if self.validate and image.is_floating_point() and image.numel():
            low, high = (float(bound) for bound in torch.aminmax(image.detach()))
            if not (low >= 0 and high <= 1):  # a NaN is in both bounds
                raise ValueError(f"{name}: values must be finite and in [0, 1], got {low:g} to {high:g}")
        return image

    def _draws(self, image: Tensor, generator: torch.Generator | None) -> Draw:
        source = self.generator if generator is None else generator
        device = torch.device("cpu") if source is None else source.device
        same_index = device.index is None or image.device.index is None or device.index == image.device.index
        if device.type != "cpu" and not (device.type == image.device.type and same_index):
            raise ValueError(
                f"{self._name()}: the generator is on {device}, the images are on {image.device}; "
                "a generator must be on the CPU or where the images are"
            )
        count = 1 if self.same_on_batch or image.dim() == 3 else image.shape[0]

        def draw(*shape: int) -> Tensor:
            return torch.rand((count, *shape), generator=source, dtype=torch.float64, device=device)

        return draw

    def _as_float(self, image: Tensor) -> Tensor:
        return image.to(self.dtype) / 255 if image.dtype == torch.uint8 else image


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on ``device``, or the tensor itself if it is there; the host does not wait."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _tv_types() -> tuple[tuple[type, ...], tuple[type, ...]]:
    """Torchvision's types of images, and of all its tensors; there are no such objects before it is imported."""
    module = sys.modules.get("torchvision.tv_tensors")
    if module is None:
        return (), ()
    return (module.Image, module.Video), (module.TVTensor,)


def _like(result: Tensor, original: Tensor) -> Tensor:
    """``result`` as the subclass of Tensor that the original is."""
    if isinstance(original, _tv_types()[1]):
        wrapped: Tensor = sys.modules["torchvision.tv_tensors"].wrap(result, like=original)
        return wrapped
    return result
