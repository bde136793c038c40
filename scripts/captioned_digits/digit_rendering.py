"""Handwritten digits drawn anew: with a stroke of one width, in one colour, on one background.

How wide a stroke is depends on the writer, and so much that thinning or thickening all of them by as much would leave
the widths of thin and thick overlapping. So the strokes are reduced to their skeletons first: the union, over all
erosions of the image, of what an opening takes away from it (Lantuéjoul, 1978), on a grid twice as fine.
"""

import torch
from torch import Tensor
from torch.nn import functional

from scripts.captioned_digits.attributes import BACKGROUNDS, COLOURS

SIZE = 32
INK = 110  # of 255: from there on a pixel belongs to the stroke

# Growing the skeleton in this many steps makes strokes of about 1.5 and 3.5 pixels, in the order of the labels.
STEPS = (1, 3)

CHUNK = 256  # images at once: what they take stays in the processor's cache


def draw(pixels: Tensor, colour: Tensor, thickness: Tensor, background: Tensor) -> Tensor:
    """Draw digits.

    Args:
        pixels: grey digits, uint8 (N, 1, 28, 28).
        colour: labels int64 (N,), as in ``attributes.VALUES``; so are the other two.
        thickness: likewise.
        background: likewise.

    Returns:
        uint8 (N, 3, 32, 32): exactly the colour inside the stroke, exactly the background away from it, and mixtures
        of the two, in halves and quarters, at its edge.
    """
    inks, grounds = torch.tensor(list(COLOURS.values())), torch.tensor(list(BACKGROUNDS.values()))
    drawn = torch.empty(len(pixels), 3, SIZE, SIZE, dtype=torch.uint8)
    for first in range(0, len(pixels), CHUNK):
        chosen = slice(first, first + CHUNK)
        share = coverage(pixels[chosen], thickness[chosen])
        ink, ground = (t[:, :, None, None].float() for t in (inks[colour[chosen]], grounds[background[chosen]]))
        drawn[chosen] = (ground + (ink - ground) * share).round().to(torch.uint8)
    return drawn


def coverage(pixels: Tensor, thickness: Tensor) -> Tensor:
    """How much of each pixel the redrawn stroke covers: float32 (N, 1, 32, 32) in [0, 1]; arguments as of ``draw``."""
    margin = (SIZE - pixels.shape[-1]) // 2
    padded = functional.pad(pixels.float(), [margin] * 4)
    stroke = skeleton(functional.interpolate(padded, scale_factor=2, mode="bilinear")[:, 0] >= INK)
    wide = thickness.bool()
    for step in range(max(STEPS)):
        # squares and crosses by turns make an octagon, the roundest there is
        grown = _grown(stroke, square=step % 2 == 0)
        growing = step < torch.where(wide, STEPS[1], STEPS[0])
        stroke = torch.where(growing[:, None, None], grown, stroke)
    return functional.avg_pool2d(stroke[:, None].float(), 2)


def skeleton(shapes: Tensor) -> Tensor:
    """The middle lines of shapes, bool (N, H, W), nearly everywhere connected where the shapes are."""
    lines = torch.zeros_like(shapes)
    while shapes.any():
        eroded = ~_grown(~shapes, square=False)
        lines |= shapes & ~_grown(eroded, square=True)
        shapes = eroded
    return lines


def _grown(shapes: Tensor, square: bool) -> Tensor:
    """Every pixel and its neighbours: all eight of a square, or four of a cross.

    Rows and images are taken as one long line, which is fastest: the margin keeps strokes from reaching their ends.
    """
    line, width = shapes.flatten(), shapes.shape[-1]
    grown = _spread(line, line, width)
    return _spread(grown, grown.clone() if square else line, 1).view_as(shapes)


def _spread(grown: Tensor, line: Tensor, by: int) -> Tensor:
    grown = grown.clone()
    grown[by:] |= line[:-by]
    grown[:-by] |= line[by:]
    return grown
