"""Draw what photographs lack, to train an autoencoder on: flat saturated colors, lines, text.

    python recipes/draw_images.py FOLDER

Writes 43 PNG files of 768 x 768 pixels, the same ones every time. An autoencoder that has seen
photographs only falls apart on a plain blue; tiny-kl and tiny-kl-16 are trained on these too.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE = 768
SENTENCE = (
    "latent noise mean variance sample the of and photograph Blue 2048 x = f(z); return"
    ' {"key": 0.5} # width'
)
WORDS = SENTENCE.split()
Color = tuple[int, int, int]


def draw_color(rng: random.Random) -> Color:
    """Half of them anywhere in the cube of colors, half on its faces, edges and corners."""
    is_saturated = rng.random() < 0.5
    parts = [
        rng.choice((0, 255, rng.randrange(256))) if is_saturated else rng.randrange(256)
        for _ in range(3)
    ]
    return parts[0], parts[1], parts[2]


def flat(rng: random.Random) -> Image.Image:
    """A mosaic of 1 to 144 squares of one color each."""
    number = rng.choice((1, 2, 2, 3, 3, 4, 4, 6, 12))
    mosaic = Image.new("RGB", (number, number))
    mosaic.putdata([draw_color(rng) for _ in range(number * number)])
    return mosaic.resize((SIZE, SIZE), Image.Resampling.NEAREST)


def tints(rng: random.Random) -> Image.Image:
    """A mosaic of up to 9 pale colors: near white, with one or two channels at the top."""
    number = rng.choice((1, 2, 3))
    mosaic = Image.new("RGB", (number, number))
    pale = [rng.choice((255, rng.randrange(150, 256))) for _ in range(3 * number * number)]
    mosaic.putdata(list(zip(pale[::3], pale[1::3], pale[2::3], strict=True)))
    return mosaic.resize((SIZE, SIZE), Image.Resampling.NEAREST)


def gradient(rng: random.Random) -> Image.Image:
    """Smooth ramps between the colors of a coarse grid."""
    number = rng.choice((2, 3, 4, 8))
    grid = Image.new("RGB", (number, number))
    grid.putdata([draw_color(rng) for _ in range(number * number)])
    return grid.resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def shapes(rng: random.Random) -> Image.Image:
    """Overlapping ellipses, rectangles and triangles on a flat ground."""
    image, pen = _sheet(draw_color(rng))
    for _ in range(rng.randrange(10, 60)):
        left, top = rng.randrange(-100, SIZE), rng.randrange(-100, SIZE)
        right, bottom = left + rng.randrange(20, 360), top + rng.randrange(20, 360)
        color = draw_color(rng)
        kind = rng.choice(("ellipse", "rectangle", "triangle"))
        if kind == "ellipse":
            pen.ellipse((left, top, right, bottom), color)
        elif kind == "rectangle":
            pen.rectangle((left, top, right, bottom), color)
        else:
            pen.polygon([(left, bottom), (right, bottom), (rng.randrange(left, right), top)], color)
    return image


def lines(rng: random.Random) -> Image.Image:
    """Line art: strokes, circles and hatching of one or a few colors on paper."""
    paper, inks = rng.choice(
        (((255, 255, 255), [(0, 0, 0)]), (draw_color(rng), [draw_color(rng) for _ in range(3)]))
    )
    image, pen = _sheet(paper)
    width = rng.choice((2, 3, 5, 8))
    for _ in range(rng.randrange(20, 90)):
        x, y, reach = rng.randrange(SIZE), rng.randrange(SIZE), rng.randrange(20, 260)
        ink = rng.choice(inks)
        kind = rng.choice(("stroke", "circle", "hatching"))
        if kind == "stroke":
            points = [
                (x + rng.randint(-reach, reach), y + rng.randint(-reach, reach))
                for _ in range(rng.randrange(2, 6))
            ]
            pen.line(points, ink, width, joint="curve")
        elif kind == "circle":
            pen.ellipse((x - reach, y - reach, x + reach, y + reach), outline=ink, width=width)
        else:
            for step in range(0, reach, 4 * width):
                pen.line((x + step, y, x + step + reach // 2, y + reach), ink, width)
    return image


def text(rng: random.Random) -> Image.Image:
    """A page of text in one size and two colors."""
    paper, ink = rng.choice(
        (
            ((255, 255, 255), (0, 0, 0)),
            ((20, 22, 30), (230, 230, 230)),
            (draw_color(rng), draw_color(rng)),
        )
    )
    image, pen = _sheet(paper)
    _write(pen, rng, (20, 20, SIZE - 20, SIZE - 20), rng.choice((16, 24, 36, 60, 110)), ink)
    return image


def screenshot(rng: random.Random) -> Image.Image:
    """Windows with a title bar, a side bar, buttons, text and a bar chart."""
    image, pen = _sheet(draw_color(rng))
    for _ in range(rng.randrange(2, 5)):
        left, top = rng.randrange(0, 400), rng.randrange(0, 400)
        right, bottom = left + rng.randrange(280, 500), top + rng.randrange(240, 460)
        is_dark, accent = rng.random() < 0.4, draw_color(rng)
        ground, ink = (
            ((30, 32, 40), (220, 222, 230)) if is_dark else ((250, 250, 252), (20, 20, 24))
        )
        pen.rectangle((left, top, right, bottom), ground, (128, 128, 128), 2)
        pen.rectangle((left, top, right, top + 34), accent)
        for place, button in enumerate(((255, 95, 86), (255, 189, 46), (39, 201, 63))):
            pen.ellipse((left + 10 + 26 * place, top + 9, left + 26 + 26 * place, top + 25), button)
        pen.rectangle(
            (left + 2, top + 34, left + 90, bottom - 2),
            tuple((part + accent[0]) // 2 for part in ground),
        )
        _write(
            pen,
            rng,
            (left + 104, top + 46, right - 10, (top + bottom) // 2),
            rng.choice((14, 18, 26)),
            ink,
        )
        for place in range(6):
            x, height = left + 110 + 26 * place, rng.randrange(
                10, max(11, (bottom - top) // 2 - 30)
            )
            pen.rectangle((x, bottom - 12 - height, x + 18, bottom - 12), draw_color(rng))
    return image


def _sheet(color: Color) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIZE, SIZE), color)
    return image, ImageDraw.Draw(image)


def _write(
    pen: ImageDraw.ImageDraw,
    rng: random.Random,
    box: tuple[int, int, int, int],
    size: int,
    ink: Color,
) -> None:
    """Words in lines until the box (left, top, right, bottom) is full."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = box
    x, y = left, top
    while y + size <= bottom:
        word = rng.choice(WORDS)
        end = x + pen.textlength(word, font)
        if end > right:
            x, y = left, y + size * 4 // 3
            if end - x > right - left:
                continue
        else:
            pen.text((x, y), word, ink, font)
            x = int(end) + size // 3


COUNTS: dict[Callable[[random.Random], Image.Image], int] = {
    flat: 24,
    tints: 12,
    gradient: 3,
    shapes: 1,
    lines: 1,
    text: 1,
    screenshot: 1,
}
"""Images of each kind. More text would cost photographs: its large errors outweigh theirs."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for draw, count in COUNTS.items():
        for number in range(count):
            image = draw(random.Random(f"{draw.__name__} {number}"))
            image.save(folder / f"{draw.__name__}-{number:02d}.png")


if __name__ == "__main__":
    main()
