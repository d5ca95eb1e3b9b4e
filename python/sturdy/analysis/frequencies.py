"""The frequencies of an image: which belong together, how far out they are, and images without some of them.

Maps over frequencies are ``(H, W)`` with frequency 0 at ``(H // 2, W // 2)``, as ``torch.fft.fftshift`` puts it. A
*cell* is a place in such a map. The spectrum of a real image is the same, up to conjugation, at a cell and at its
mirror image through frequency 0: only both together can be taken from an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sturdy._errors import ShapeError
from sturdy.functional import spectrum_waves, wave_add


def mirror_cells(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Mirror images of cells through frequency 0.

    Args:
        cells: ``(..., 2)``, int64: row and column in a map with frequency 0 in the middle.
        size: Height and width of the map.

    Returns:
        The same shape; a cell of frequency 0 or of half the sampling rate may be its own mirror image.
    """
    extent = torch.tensor(size, device=cells.device)
    return (2 * (extent // 2) - cells) % extent


def radius_map(height: int, width: int) -> Tensor:
    """Distance of each cell from frequency 0, in cycles per ``max(height, width)`` pixels.

    On square images these are cycles per image. On others a circle is a circle of frequencies, too: the same number of
    cycles per pixel in every direction.

    Returns:
        ``(height, width)`` float64.

    Raises:
        ShapeError: a size is below 1.
    """
    if height < 1 or width < 1:
        raise ShapeError(f"radius_map: height and width must be 1 or more, got {height} x {width}")
    longer = max(height, width)
    rows = (torch.arange(height, dtype=torch.float64) - height // 2) * longer / height
    columns = (torch.arange(width, dtype=torch.float64) - width // 2) * longer / width
    return torch.hypot(rows[:, None], columns)


def removal_order(height: int, width: int) -> Tensor:
    """Levels by which :func:`compute_dfm` tries frequencies: low ones first, a cell and its mirror image together.

    Returns:
        ``(height, width)`` int64: the highest level, at frequency 0, goes first, and 1 last. Frequencies at the same
        radius go one after another, by row and column.

    Raises:
        ShapeError: a size is below 1.

    Source: the map that comes with the code of DFM-X tries frequencies in nearly this order. It is for 32 x 32 pixels,
    and 90 of its cells have another level than their mirror images.
    """
    radius = radius_map(height, width).flatten()
    first = _representatives(height, width).flatten()
    own = (first == torch.arange(height * width)).nonzero().flatten()  # in order, so that a stable sort keeps it
    # Rounded, for radii that are equal but for the last bit.
    order = own[torch.argsort((radius[own] * 1e6).round(), stable=True)]
    levels = torch.empty(height * width, dtype=torch.int64)
    levels[order] = torch.arange(len(order), 0, -1)
    return levels[first].reshape(height, width)


def patches(height: int, width: int, patch: int) -> Tensor:
    """Groups of neighbouring frequencies, each with its mirror image.

    Args:
        height, width: Size of the map.
        patch: Side of a group in cells; 1 for single frequencies.

    Returns:
        ``(height, width)`` int64: the number of the group of each cell, from 0 without gaps.
    """
    first = _representatives(height, width)
    rows, columns = first // width, first % width
    groups = (rows - height // 2).div(patch, rounding_mode="floor") * (2 * width + 1)
    groups = groups + (columns - width // 2).div(patch, rounding_mode="floor")
    return groups.unique(return_inverse=True)[1]


def _representatives(height: int, width: int) -> Tensor:
    """For each cell which of the two, it or its mirror image, comes first: an index ``row * width + column``."""
    cells = torch.cartesian_prod(torch.arange(height), torch.arange(width)).reshape(height, width, 2)
    mirrored = mirror_cells(cells, (height, width))
    return torch.minimum(cells[..., 0] * width + cells[..., 1], mirrored[..., 0] * width + mirrored[..., 1])


class FrequencyRemover:
    """Images from which frequencies can be taken one after another, at the cost of one pass over the images each.

    Every image is transformed once, at the start. To take away a frequency and its mirror image is then to subtract a
    plane wave, whose amplitude and phase the spectrum tells. That equals masking the spectrum with 0 there.

    A cell without its mirror image may be taken, too, as a mask that is not symmetric would do. Images are real, so
    that half of the wave goes: such a mask acts by the mean of itself and its mirror image.

    Args:
        images: ``(N, C, H, W)``, float32 or float64. They are not changed.

    Raises:
        ShapeError: not four dimensions. TypeError: another dtype.

    Attributes:
        images: ``(N, C, H, W)``: without all that was removed.
        kept: ``(H, W)`` bool, on the CPU: cells that were not removed.

    Source: the search of Wang et al., *DFM-X: Augmentation by leveraging prior knowledge of shortcut learning*, ICCV
    workshops 2023, which transforms every image there and back for each frequency that it tries.
    """

    def __init__(self, images: Tensor) -> None:
        if images.dim() != 4 or 0 in images.shape[1:]:
            raise ShapeError(f"FrequencyRemover: images must be (N, C, H, W), got shape {tuple(images.shape)}")
        if images.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"FrequencyRemover: images must be float32 or float64, got {images.dtype}")
        self.images = images.detach()
        self.size = (int(images.shape[2]), int(images.shape[3]))
        self.kept = torch.ones(self.size, dtype=torch.bool)
        spectrum = torch.fft.rfft2(self.images)
        # One frequency of all images lies side by side in memory, as that is what is asked for each time.
        by_frequency = spectrum.flatten(2).flatten(0, 1).t().contiguous()
        self._spectrum = by_frequency.reshape(*spectrum.shape[2:], *spectrum.shape[:2]).permute(2, 3, 0, 1)
        self._candidate: tuple[Tensor, Tensor] | None = None

    def without(self, cells: Tensor) -> Tensor:
        """The images without these cells, too; what was removed before has no part in it.

        Args:
            cells: ``(K, 2)``, int64: row and column in a map with frequency 0 in the middle; no cell twice.

        Returns:
            ``(N, C, H, W)``, a new tensor, or ``images`` itself if nothing is left to remove.
        """
        fresh = self._fresh(cells)
        if len(fresh) == 0:
            self._candidate = None
            return self.images
        bins, shares = self._shares(fresh)
        frequency, amplitude, phase = spectrum_waves(self._spectrum, bins, self.size)
        amplitude = amplitude * -shares.to(amplitude.device)
        self._candidate = None  # whose memory, still in the cache, the next one can have whole
        taken = wave_add(self.images, frequency, amplitude, phase)
        self._candidate = (cells.clone(), taken)
        return taken

    def remove(self, cells: Tensor) -> None:
        """Take these cells from ``images``; after :meth:`without` with the same cells that costs nothing."""
        fresh = self._fresh(cells)
        known = self._candidate
        if known is not None and torch.equal(known[0], cells):
            self.images = known[1]
        elif len(fresh):
            self.images = self.without(cells)
        self._candidate = None
        self.kept[fresh[:, 0], fresh[:, 1]] = False

    def _shares(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Bins ``(K, 2)`` of the waves that cells have a share in, and the shares ``(K,)``: half a wave for each cell.

        In plain numbers, as there are two cells as a rule, and tensors would take longer than the images.
        """
        height, width = self.size
        shares: dict[tuple[int, int], float] = {}
        for row, column in cells.tolist():
            k, m = row - height // 2, column - width // 2
            bin, mirror = (k % height, m % width), (-k % height, -m % width)
            first = min(bin, mirror)
            shares[first] = shares.get(first, 0.0) + (1.0 if bin == mirror else 0.5)
        return torch.tensor(list(shares)), torch.tensor(list(shares.values()), dtype=torch.float64)

    def _fresh(self, cells: Tensor) -> Tensor:
        """Those of the cells that are still there."""
        if cells.dim() != 2 or cells.shape[1] != 2:
            raise ShapeError(f"FrequencyRemover: cells must be (K, 2), got shape {tuple(cells.shape)}")
        if cells.dtype != torch.int64:
            raise TypeError(f"FrequencyRemover: cells must be int64, got {cells.dtype}")
        cells = cells.cpu()
        height, width = self.size
        if not all(0 <= row < height and 0 <= column < width for row, column in cells.tolist()):
            raise IndexError(f"FrequencyRemover: a cell lies outside the {height} x {width} frequencies")
        return cells[self.kept[cells[:, 0], cells[:, 1]]]
