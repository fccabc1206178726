"""Images with their labels on a single sheet: arrays in, PNG out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from finetune.errors import printable
from finetune.results.run_folder import replacing

_TEXT = 14  # pixels under each image


def write_contact_sheet(
    images: Sequence[np.ndarray], labels: Sequence[str], path: Path, *, columns: int = 8, side: int = 112
) -> None:
    """Writes images in rows, each with its label below.

    Args:
        images: Shape `(height, width, 1 or 3)` each; the least value of all is drawn black, the greatest white.
        labels: Text for each image.
        path: The PNG file.
        columns: Images in a row.
        side: Pixels of the longer side of each image.
    """
    # One scale for all images, so that a dark image stays darker than a bright one.
    low, high = min(image.min() for image in images), max(image.max() for image in images)
    lines = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 8) + 8, lines * (side + _TEXT + 8) + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, top = 8 + number % columns * (side + 8), 8 + number // columns * (side + _TEXT + 8)
        # `or 1`: all values are equal, and the sheet is black.
        values = np.rint((image - low) / (high - low or 1) * 255).astype(np.uint8)
        picture = Image.fromarray(np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values)
        scale = side / max(picture.size)
        picture = picture.resize(
            # NEAREST shows the pixels as they are; others would smooth the images of 8x8 that people come to look at.
            (round(picture.width * scale), round(picture.height * scale)),
            Image.Resampling.NEAREST,
        )
        sheet.paste(picture, (left, top))
        # Cut to what fits: a letter of Pillow's own font is 6 pixels wide.
        draw.text((left, top + side), printable(label)[: side // 6], fill="black")
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
