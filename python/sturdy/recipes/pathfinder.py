"""Pathfinder: are the two discs at the ends of one dashed contour, or on two contours?

Images after Linsley et al., "Learning long-range spatial dependencies with horizontal gated recurrent units", 2018,
with the parameters of the Long Range Arena (Tay et al., 2021): its Pathfinder has 32 pixels, its Path-X 128, both with
contours of 14 dashes. The rules are the authors'; the code is not, and images differ from theirs.

Two contours grow in turn, dash by dash: the next dash begins on a circle around a pivot beyond the last one, at a place
that is free and does not turn too sharply. Shorter contours are added as distractors. One disc lies at the beginning of
a contour, the other at its end (label 1) or at the end of the other contour (label 0).

Dashes lie on whole pixels and have one of finitely many directions. So each is drawn once, in a stamp; so is its
neighbourhood, in which no other dash may lie. Each image has random numbers of its own, by seed and number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

BLOCK = 50  # images that one process makes at a time
HARD = 14  # dashes of the two contours

_ANTIALIAS = 2
_DASH_RETRIES = 2
_DISTRACTOR_RETRIES = 4
_OVERLAP = 1.8  # sum of two neighbourhoods, each up to 1, from which on dashes are too close
_LEAST_WEIGHT = 1e-4
_FIRST_DIRECTIONS = 360  # whole degrees
_LEAST_FREE = 0.01  # part of the image that must be free for another distractor

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Point = tuple[int, int]  # row and column


@dataclass(frozen=True)
class Parameters:
    """How images of one size are drawn; lengths in pixels.

    Attributes:
        border: Width that stays free at the edge.
        dash: Length of a dash.
        thickness: Of a dash; twice it is a whole number.
        margins: Half the gap between dashes, one of which is drawn for each image.
        seed_distance: Between the beginnings of the two contours.
        marker_radius: Of the discs.
        continuity: How strongly contours keep their direction.
        distractor_dashes: In all.
        contour_contrast: Brightness of all contours.
        dash_contrast: That of the two contours, relative to the others.
    """

    border: int
    dash: int
    thickness: float
    margins: tuple[int, ...]
    seed_distance: int
    marker_radius: float
    continuity: float
    distractor_dashes: int
    contour_contrast: float
    dash_contrast: float


PARAMETERS = {
    32: Parameters(1, 2, 0.5, (1,), 7, 1.5, 1.0, 20, 2.0, 0.75),
    128: Parameters(1, 5, 1.5, (2, 3), 20, 3.0, 1.8, 35, 0.9, 1.0),
}


@dataclass(frozen=True)
class Dash:
    """One dash: where it begins and ends (row, column), and its direction in radians, from rightwards to downwards."""

    tail: Point
    head: Point
    direction: float


@dataclass(frozen=True)
class Construction:
    """How an image came about.

    Attributes:
        label: 1 if both markers are on one contour.
        contours: The dashes of the two contours.
        distractors: Those of the others.
        markers: The middles of the discs.
        on: The contour of each marker, 0 or 1.
    """

    label: int
    contours: tuple[tuple[Dash, ...], tuple[Dash, ...]]
    distractors: tuple[tuple[Dash, ...], ...]
    markers: tuple[Point, Point]
    on: tuple[int, int]


def generate_block(
    seed: int, block: int, size: int, dashes: int = HARD
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """``BLOCK`` images ``(BLOCK, size, size)`` uint8 and their labels ``(BLOCK,)`` uint8.

    Args:
        seed: Of the data set.
        block: Number of the block.
        size: 32 or 128 pixels.
        dashes: Of each of the two contours: 6, 9 and 14 are called easy, intermediate and hard.
    """
    images = np.empty((BLOCK, size, size), np.uint8)
    labels = np.empty(BLOCK, np.uint8)
    for i in range(BLOCK):
        images[i], construction = generate_image(seed, block * BLOCK + i, size, dashes)
        labels[i] = construction.label
    return images, labels


def generate_image(seed: int, number: int, size: int, dashes: int = HARD) -> tuple[npt.NDArray[np.uint8], Construction]:
    """Image ``number`` of a data set, ``(size, size)`` uint8, and its construction."""
    if size not in PARAMETERS:
        raise ValueError(f"Pathfinder has images of {', '.join(map(str, PARAMETERS))} pixels, not {size}")
    random = np.random.Generator(np.random.Philox(key=[seed, number]))
    parameters = PARAMETERS[size]
    label = int(random.random() < 0.5)
    margin = parameters.margins[int(random.integers(len(parameters.margins)))]
    while True:
        drawn = _Drawing(size, margin, random).draw(label, dashes)
        if drawn is not None:
            return drawn


# ---- stamps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stamps:
    """Dashes of every direction: first the whole degrees, then those from a pivot to each place of the ring.

    A first dash is drawn from its tail on, the others from their heads back; that end lies in the middle of the stamp.

    Attributes:
        reach: Pixels from the middle of a stamp to its edge.
        far: The same for ``wide``.
        directions: ``(S,)`` radians, from tail to head.
        other_end: ``(S, 2)``: offset from the middle to the dash's other end.
        to_next: ``(S, 2)``: offset from the pivot of a dash to that of the next one.
        lines: ``(S, 2 reach + 1, 2 reach + 1)`` brightness up to 1.
        zones: The same shape: neighbourhoods up to 1.
        wide: ``(S, 2 far + 1, 2 far + 1)``: ``zones`` dilated by a disc, where weights of places look.
        shapes: Offsets of the pixels of each zone, ``(K, 2)``.
        ring: ``(R, 2)``: offsets from a pivot to where heads may lie.
        preference: ``(S, R)``: for each direction so far, how much each place of the ring agrees with it.
    """

    reach: int
    far: int
    directions: Doubles
    other_end: Ints
    to_next: Ints
    lines: Floats
    zones: Floats
    wide: Floats
    shapes: list[Ints]
    ring: Ints
    preference: Doubles


def _moved(direction: float, distance: float) -> Point:
    """An offset of that length, rounded up to whole pixels."""
    row, column = distance * np.sin(direction), distance * np.cos(direction)
    # Without the allowance cos 90 degrees would be a pixel.
    return int(np.ceil(row - 1e-9)), int(np.ceil(column - 1e-9))


def _disc(radius: int) -> Ints:
    """Offsets of the pixels of a disc, ``(K, 2)``."""
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.argwhere(rows**2 + columns**2 <= radius**2) - radius


def _dilate(images: Floats, offsets: Ints) -> Floats:
    """The greatest value among the pixels at these offsets, over the last two axes; 0 beyond the edge."""
    reach = int(np.abs(offsets).max(initial=0))
    height, width = images.shape[-2:]
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(reach, reach)] * 2)
    result = np.zeros_like(images)
    for row, column in offsets:
        top, left = reach + row, reach + column
        np.maximum(result, padded[..., top : top + height, left : left + width], out=result)
    return result


@lru_cache(maxsize=8)
def _stamps(size: int, margin: int) -> _Stamps:
    from PIL import Image, ImageDraw

    parameters = PARAMETERS[size]
    length, scale = parameters.dash, _ANTIALIAS
    # The circle, one sample for each pixel of its length; of several in one pixel the first counts.
    radius = length + margin
    angles = np.linspace(0, 2 * np.pi, int(np.ceil(2 * np.pi * radius)), endpoint=False)
    circle = np.stack([np.sin(angles), np.cos(angles)], 1) * radius
    ring, first = np.unique(np.floor(circle + 1e-9).astype(np.int64), axis=0, return_index=True)
    degrees = np.deg2rad(np.arange(float(_FIRST_DIRECTIONS)))
    directions = np.concatenate([degrees, angles[first]])
    drawn = np.concatenate([degrees, angles[first] + np.pi])  # as seen from the middle of the stamp
    reach = length + int(np.ceil(parameters.thickness)) + margin
    side, middle = 2 * reach + 1, reach * scale
    lines = np.zeros((len(directions), side, side), np.float32)
    zones = np.zeros_like(lines)
    near = _disc(margin * scale)
    for i, direction in enumerate(drawn):
        row, column = _moved(direction, length * scale)
        fine = Image.new("L", (2 * middle + 1, 2 * middle + 1))
        width = round(parameters.thickness * scale)
        ImageDraw.Draw(fine).line([(middle, middle), (middle + column, middle + row)], fill=255, width=width)
        zone = Image.fromarray(_dilate(np.asarray(fine, np.float32), near).astype(np.uint8))
        for stamp, picture in ((lines, fine), (zones, zone)):
            stamp[i] = np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS), np.float32) / 255
    padded = np.pad(zones, ((0, 0), (margin, margin), (margin, margin)))
    turn = np.abs((directions[:, None] - angles[first] + np.pi) % (2 * np.pi) - np.pi)
    return _Stamps(
        reach=reach,
        far=reach + margin,
        directions=directions,
        other_end=np.array([_moved(direction, length) for direction in drawn]),
        to_next=np.array([_moved(direction, length + 2 * margin) for direction in directions]),
        lines=lines,
        zones=zones,
        wide=_dilate(padded, _disc(margin)),
        shapes=[np.argwhere(zone > 0.5) - reach for zone in zones],
        ring=ring,
        preference=np.cos(np.minimum(parameters.continuity * turn, np.pi / 2)) ** 2,
    )


@lru_cache(maxsize=8)
def _marker(radius: float) -> Floats:
    """A disc of brightness up to 1, antialiased."""
    from PIL import Image, ImageDraw

    reach, scale = int(np.ceil(radius)) + 1, 8
    side = 2 * reach + 1
    near, far = (side / 2 - radius) * scale, (side / 2 + radius) * scale - 1
    fine = Image.new("L", (side * scale, side * scale))
    ImageDraw.Draw(fine).ellipse((near, near, far, far), fill=255)
    return np.asarray(fine.resize((side, side), Image.Resampling.LANCZOS), np.float32) / np.float32(255)


# ---- drawing ---------------------------------------------------------------------------------------------------------


class _Ground:
    """What is occupied, with a rim around the image so that no stamp leaves it.

    Args:
        size: Of the image.
        border: Width at its edge that is occupied from the start, like all of the rim.
        margin: Radius of the disc by which what is occupied is dilated for the weights of places.
        stamps: What is put here.
    """

    def __init__(self, size: int, border: int, margin: int, stamps: _Stamps) -> None:
        self.stamps = stamps
        self.rim = stamps.far
        full = size + 2 * self.rim
        self.occupied = np.ones((full, full), np.float32)
        inner = slice(self.rim + border, full - self.rim - border)
        self.occupied[inner, inner] = 0
        self.dilated = np.ones_like(self.occupied)
        inner = slice(self.rim + border + margin, full - self.rim - border - margin)
        self.dilated[inner, inner] = 0

    def copy(self) -> _Ground:
        """One to try something on."""
        twin = object.__new__(_Ground)
        twin.stamps, twin.rim = self.stamps, self.rim
        twin.occupied, twin.dilated = self.occupied.copy(), self.dilated.copy()
        return twin

    def fits(self, stamp: int, place: Point) -> bool:
        """True if the neighbourhood of a dash overlaps no other's by much."""
        patch = _patch(self.occupied, place, self.rim, self.stamps.reach)
        return bool((patch + self.stamps.zones[stamp]).max() < _OVERLAP)

    def add(self, stamp: int, place: Point) -> None:
        """Occupy the neighbourhood of a dash."""
        for image, stamps, reach in (
            (self.occupied, self.stamps.zones, self.stamps.reach),
            (self.dilated, self.stamps.wide, self.stamps.far),
        ):
            patch = _patch(image, place, self.rim, reach)
            np.maximum(patch, stamps[stamp], out=patch)

    def free(self, stamp: int) -> npt.NDArray[np.bool_]:
        """``(size, size)``: where the tail of a dash can be so that nothing in its neighbourhood is occupied."""
        size = len(self.occupied) - 2 * self.rim
        occupied = self.occupied > 0.5
        taken = np.zeros((size, size), bool)
        for row, column in self.stamps.shapes[stamp] + self.rim:
            taken |= occupied[row : row + size, column : column + size]
        return ~taken


def _patch(image: Floats, place: Point, rim: int, reach: int) -> Floats:
    top, left = place[0] + rim - reach, place[1] + rim - reach
    return image[top : top + 2 * reach + 1, left : left + 2 * reach + 1]


@dataclass
class _Contour:
    """A contour as it grows: its dashes, their stamps and where these lie, and the pivot of the last one."""

    dashes: list[Dash]
    stamps: list[tuple[int, Point]]
    pivot: Point


class _Drawing:
    """One attempt at an image.

    Args:
        size: Of the image in pixels.
        margin: Half the gap between dashes.
        random: Of this image.
    """

    def __init__(self, size: int, margin: int, random: np.random.Generator) -> None:
        self.size = size
        self.parameters = PARAMETERS[size]
        self.margin = margin
        self.random = random
        self.stamps = _stamps(size, margin)

    def draw(self, label: int, dashes: int) -> tuple[npt.NDArray[np.uint8], Construction] | None:
        """An image and its construction; None if the contours found no place."""
        ground = _Ground(self.size, self.parameters.border, self.margin, self.stamps)
        contours = self._targets(ground, dashes)
        if contours is None:
            return None
        distractors = self._distractors(ground, dashes // 3)
        at = int(self.random.random() < 0.5)
        on = (at, at if label else 1 - at)
        markers = (contours[on[0]].dashes[0].tail, contours[on[1]].dashes[-1].head)
        image = self._render(contours, distractors, markers)
        first, second = (tuple(contour.dashes) for contour in contours)
        others = tuple(tuple(contour.dashes) for contour in distractors)
        return image, Construction(label, (first, second), others, markers, on)

    def _targets(self, ground: _Ground, dashes: int) -> list[_Contour] | None:
        """The two contours, which are added to ``ground``, or None."""
        begun = self._first_dashes(ground)
        if begun is None:
            return None
        # Each contour sees all dashes but its own last one, which its next dash may come near.
        views = [ground.copy(), ground.copy()]
        for i in range(2):
            views[1 - i].add(*begun[i].stamps[-1])
        for _ in range(dashes - 1):
            for i in range(2):
                last = begun[i].stamps[-1]
                if not self._extend(begun[i], views[i]):
                    return None
                views[i].add(*last)
                views[1 - i].add(*begun[i].stamps[-1])
        for contour in begun:
            for stamp in contour.stamps:
                ground.add(*stamp)
        return begun

    def _first_dashes(self, ground: _Ground) -> list[_Contour] | None:
        """Both contours with one dash each; ``ground`` stays as it is."""
        distance = self.parameters.seed_distance
        stamp = self._any_direction()
        band = 2 * distance
        free = np.zeros((self.size, self.size), bool)
        free[band : self.size - band, band : self.size - band] = True
        tail = self._any_place(free)  # nothing but the edge is occupied yet, and that is far away
        if tail is None:
            return None
        first = self._begin(stamp, tail)
        taken = ground.copy()
        taken.add(stamp, tail)
        for _ in range(_DASH_RETRIES + 1):
            stamp = self._any_direction()
            step = _moved(2 * np.pi * self.random.random(), distance)
            second = self._begin(stamp, (tail[0] + step[0], tail[1] + step[1]))
            if self._is_inside(second.dashes[0]) and taken.fits(*second.stamps[0]):
                return [first, second]
        return None

    def _distractors(self, ground: _Ground, dashes: int) -> list[_Contour]:
        """Short contours, which are added to ``ground``."""
        found: list[_Contour] = []
        for _ in range(self.parameters.distractor_dashes // dashes if dashes else 0):
            for _ in range(_DISTRACTOR_RETRIES + 1):
                stamp = self._any_direction()
                free = ground.free(stamp)
                if free.mean() < _LEAST_FREE:
                    return found
                tail = self._any_place(free)
                contour = None if tail is None else self._distractor(ground.copy(), self._begin(stamp, tail), dashes)
                if contour is not None:
                    for placed in contour.stamps:
                        ground.add(*placed)
                    found.append(contour)
                    break
        return found

    def _distractor(self, ground: _Ground, contour: _Contour, dashes: int) -> _Contour | None:
        if not self._is_inside(contour.dashes[0]):
            return None
        for _ in range(dashes - 1):
            last = contour.stamps[-1]
            if not self._extend(contour, ground):
                return None
            ground.add(*last)
        return contour

    def _extend(self, contour: _Contour, ground: _Ground) -> bool:
        """Add a dash to a contour, but not to ``ground``; False if there is no place."""
        stamps, size = self.stamps, self.size
        before = contour.stamps[-1][0]
        step = stamps.to_next[before]
        pivot = (contour.pivot[0] + int(step[0]), contour.pivot[1] + int(step[1]))
        rows, columns = (stamps.ring + pivot).T
        inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
        rows, columns = np.where(inside, rows, 0), np.where(inside, columns, 0)
        weights = inside * stamps.preference[before] * (1 - ground.dilated[rows + ground.rim, columns + ground.rim])
        upto = weights.cumsum()
        if upto[-1] < _LEAST_WEIGHT:
            return False
        for _ in range(_DASH_RETRIES + 1):
            # The sum may be rounded up to the last total, where there is no place any more.
            i = min(int(upto.searchsorted(self.random.random() * upto[-1], side="right")), len(upto) - 1)
            stamp, head = _FIRST_DIRECTIONS + i, (int(rows[i]), int(columns[i]))
            if ground.fits(stamp, head):
                end = stamps.other_end[stamp]
                dash = Dash((head[0] + int(end[0]), head[1] + int(end[1])), head, float(stamps.directions[stamp]))
                if self._is_inside(dash):
                    contour.dashes.append(dash)
                    contour.stamps.append((stamp, head))
                    contour.pivot = pivot
                    return True
        return False

    def _begin(self, stamp: int, tail: Point) -> _Contour:
        """A contour of one dash."""
        end = self.stamps.other_end[stamp]
        head = (tail[0] + int(end[0]), tail[1] + int(end[1]))
        direction = float(self.stamps.directions[stamp])
        back = _moved(direction + np.pi, self.parameters.dash + self.margin)
        return _Contour([Dash(tail, head, direction)], [(stamp, tail)], (head[0] + back[0], head[1] + back[1]))

    def _any_direction(self) -> int:
        return int(self.random.integers(_FIRST_DIRECTIONS))

    def _any_place(self, free: npt.NDArray[np.bool_]) -> Point | None:
        places = np.flatnonzero(free)
        if not len(places):
            return None
        row, column = divmod(int(places[int(self.random.integers(len(places)))]), self.size)
        return row, column

    def _is_inside(self, dash: Dash) -> bool:
        return all(0 <= coordinate < self.size for coordinate in (*dash.tail, *dash.head))

    def _render(
        self, contours: list[_Contour], distractors: list[_Contour], markers: tuple[Point, Point]
    ) -> npt.NDArray[np.uint8]:
        parameters, stamps, rim = self.parameters, self.stamps, self.stamps.far + int(self.parameters.marker_radius) + 2
        image = np.zeros((self.size + 2 * rim, self.size + 2 * rim), np.float32)
        bright = parameters.contour_contrast
        drawn = [(placed, bright * parameters.dash_contrast) for contour in contours for placed in contour.stamps]
        drawn += [(placed, bright) for contour in distractors for placed in contour.stamps]
        for (stamp, place), contrast in drawn:
            patch = _patch(image, place, rim, stamps.reach)
            np.maximum(patch, contrast * stamps.lines[stamp], out=patch)
        disc = _marker(parameters.marker_radius)
        for place in markers:
            patch = _patch(image, place, rim, len(disc) // 2)
            np.maximum(patch, disc, out=patch)
        image = image[rim:-rim, rim:-rim]
        low, high = float(image.min()), float(image.max())
        return np.round((image - low) * (255 / (high - low))).astype(np.uint8)
