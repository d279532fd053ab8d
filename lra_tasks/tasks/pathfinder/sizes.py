"""Sizes of Pathfinder's pictures, discs and snakes."""

RADII = {32: 1.5, 64: 2.5, 128: 3.0, 256: 5.0}  # side of a picture → radius of its discs, in pixels
SIZES = tuple(RADII)
CONTOUR_LENGTHS = (6, 9, 14)
LEVELS = 256
