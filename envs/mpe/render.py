"""Pictures of the particle tasks, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BACKGROUND = (250, 250, 247)
ARENA = (205, 205, 200)
INK = (40, 40, 40)
COLOURS = {
    "forest": (197, 225, 190),
    "obstacle": (120, 124, 130),
    "landmark": (45, 45, 48),
    "food": (240, 180, 30),
    "prey": (60, 160, 75),
    "agent": (205, 60, 60),
}
SHADES = ((205, 60, 60), (225, 120, 40), (150, 60, 150))  # the controlled agents, in order
ORDER = ("forest", "obstacle", "landmark", "food", "prey", "agent")  # painted in this order
VIEW = 1.15  # half the width shown, in world units, widened in steps when an agent is farther away
WIDEN = 1.35
SMOOTHING = 2  # drawn this much larger, then reduced
TICK_SECONDS = 0.25  # a velocity line ends where its agent would be after this time


def draw_frame(
    *,
    entities: Sequence[str],
    radii: Sequence[float],
    positions: Sequence[Sequence[float]],
    velocities: Sequence[Sequence[float]],
    caption: str,
    size: int,
) -> np.ndarray:
    """RGB uint8 [size, size, 3]: M entities with their types, radii and positions [M, 2], and the velocities [A, 2] of
    the first A of them. Up is the positive y axis; the outlined square is the arena from -1 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    view = VIEW
    farthest = max(abs(x) + radius for position, radius in zip(positions, radii, strict=True) for x in position)
    while view < farthest and view < 1e6:
        view *= WIDEN
    pixels = size * SMOOTHING
    band = round(0.07 * pixels)  # of the caption, on top
    scale = (pixels - band) / (2.0 * view)
    left, middle = pixels / 2.0, band + (pixels - band) / 2.0

    def pixel(x: float, y: float) -> tuple[float, float]:
        return left + scale * x, middle - scale * y

    def disc(x: float, y: float, radius: float) -> list[tuple[float, float]]:
        (u, v), half = pixel(x, y), max(radius * scale, 2.0)
        return [(u - half, v - half), (u + half, v + half)]

    image = Image.new("RGB", (pixels, pixels), BACKGROUND)
    pen = ImageDraw.Draw(image)
    thin, thick = max(pixels // 400, 1), max(pixels // 160, 1)
    pen.rectangle([pixel(-1.0, 1.0), pixel(1.0, -1.0)], outline=ARENA, width=thin)
    for index in sorted(range(len(entities)), key=lambda entity: ORDER.index(entities[entity])):
        name, (x, y) = entities[index], positions[index]
        colour = SHADES[index % len(SHADES)] if name == "agent" else COLOURS[name]
        outline = None if name == "forest" else INK
        pen.ellipse(disc(x, y, radii[index]), fill=colour, outline=outline, width=thin)
        if index < len(velocities):
            velocity = velocities[index]
            tip = pixel(x + TICK_SECONDS * velocity[0], y + TICK_SECONDS * velocity[1])
            pen.line([pixel(x, y), tip], fill=INK, width=thick)
    pen.rectangle([(0, 0), (pixels, band)], fill=BACKGROUND)
    font = ImageFont.load_default(size=0.62 * band)
    pen.text((band // 3, band // 2), caption, fill=INK, font=font, anchor="lm")
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), dtype=np.uint8)
