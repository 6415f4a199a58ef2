"""Pictures drawn with Pillow, each with what there is to say about it."""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

COLOURS = {"red": "#c0392b", "blue": "#2471a3", "green": "#1e8449", "yellow": "#d4ac0d", "purple": "#7d3c98"}
SHAPES = ("circle", "square", "triangle")
PLACES = ("on the left", "in the middle", "on the right")
SENTENCE = "the mill by the river opens at nine and closes when the last cart of grain has gone home before dark"
BARS = ("north", "south", "east", "west", "centre")


@dataclass(frozen=True)
class Scene:
    """Three shapes side by side."""

    image: Image.Image
    shapes: tuple[tuple[str, str], ...]
    """Colour and shape, from left to right."""

    @property
    def caption(self) -> str:
        """One sentence."""
        parts = [f"a {colour} {shape} {place}" for (colour, shape), place in self.described()]
        return f"The picture shows {', '.join(parts[:-1])} and {parts[-1]}."

    def described(self) -> list[tuple[tuple[str, str], str]]:
        """Each shape with its place."""
        named = PLACES if len(self.shapes) == 3 else PLACES[::2]
        return list(zip(self.shapes, named, strict=True))


def draw_scene(random: Random, width: int, height: int) -> Scene:
    """Two or three shapes on a plain ground."""
    image = Image.new("RGB", (width, height), random.choice(["#f4ecd8", "#e8f0f7", "#eeeeee"]))
    draw = ImageDraw.Draw(image)
    count = random.choice([2, 3])
    shapes = tuple((random.choice(list(COLOURS)), random.choice(SHAPES)) for _ in range(count))
    for number, (colour, shape) in enumerate(shapes):
        centre = (width * (2 * number + 1) / (2 * count), height / 2)
        radius = min(width / (2 * count), height / 2) * random.uniform(0.5, 0.8)
        _draw_shape(draw, shape, COLOURS[colour], centre, radius)
    return Scene(image, shapes)


def draw_bars(random: Random, width: int, height: int) -> tuple[Image.Image, dict[str, int]]:
    """A bar chart with its values written over the bars."""
    values = {name: random.randint(1, 20) for name in random.sample(BARS, random.randint(2, 4))}
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(10, height // 20))
    step, bottom = width / len(values), height * 0.85
    for number, (name, value) in enumerate(values.items()):
        left, top = step * (number + 0.25), bottom - bottom * 0.85 * value / 20
        draw.rectangle([left, top, left + step / 2, bottom], fill=list(COLOURS.values())[number])
        draw.text((left, top), str(value), "black", font, anchor="lb")
        draw.text((left, bottom + 2), name, "black", font)
    return image, values


def draw_page(random: Random, width: int, height: int, lines: int) -> tuple[Image.Image, list[str]]:
    """A page of text, and its lines."""
    image = Image.new("RGB", (width, height), "#fbfaf5")
    draw = ImageDraw.Draw(image)
    step = height / (lines + 1)
    font = ImageFont.load_default(max(9, min(int(step * 0.6), width // 22)))
    texts = [" ".join(random.sample(SENTENCE.split(), 5)) for _ in range(lines)]
    for number, text in enumerate(texts):
        draw.text((width * 0.05, step * (number + 0.5)), text, "#222222", font)
    return image, texts


def draw_cycle(names: list[str], size: int) -> Image.Image:
    """Labelled boxes in a ring, each with a line to the next."""
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size // 16)
    angles = [2 * math.pi * number / len(names) - math.pi / 2 for number in range(len(names))]
    points = [(size * (0.5 + 0.34 * math.cos(angle)), size * (0.5 + 0.34 * math.sin(angle))) for angle in angles]
    for number, point in enumerate(points):
        draw.line([point, points[(number + 1) % len(points)]], "#444444", 3)
    for name, (x, y) in zip(names, points, strict=True):
        draw.rectangle([x - size / 7, y - size / 18, x + size / 7, y + size / 18], "white", "#444444", 2)
        draw.text((x, y), name, "black", font, anchor="mm")
    return image


def draw_triangle(degrees: int, width: int, height: int) -> Image.Image:
    """A triangle ABC with the angle at A written in."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(18)
    length = min(width, height) * 0.7
    a, b = (width * 0.12, height * 0.85), (width * 0.12 + length, height * 0.85)
    turn = math.radians(degrees)
    c = (a[0] + length * math.cos(turn), a[1] - length * math.sin(turn))
    draw.polygon([a, b, c], outline="black", width=2)
    for name, (x, y), anchor in (("A", a, "rt"), ("B", b, "lt"), ("C", c, "mb")):
        draw.text((x, y), name, "black", font, anchor=anchor)
    draw.text((a[0] + 24, a[1] - 6), f"{degrees}°", "black", font, anchor="lb")
    return image


def encode(image: Image.Image, suffix: str) -> bytes:
    """The bytes of an image file; suffix as in a file name."""
    buffer = io.BytesIO()
    format = {".jpg": "JPEG", ".png": "PNG", ".gif": "GIF"}[suffix]
    image.save(buffer, format)
    return buffer.getvalue()


def save(image: Image.Image, path: Path) -> None:
    """Write an image file in the format of its suffix, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(image, path.suffix))


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, colour: str, centre: tuple[float, float], radius: float) -> None:
    x, y = centre
    box = [x - radius, y - radius, x + radius, y + radius]
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.polygon([(x - radius, y + radius), (x + radius, y + radius), (x, y - radius)], fill=colour)
