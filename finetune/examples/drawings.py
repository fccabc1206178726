"""Drawings of OpenMoji as PNG files in a folder for each class: `finetune fetch drawings` writes them."""

from pathlib import Path

SIZE = 160  # pixels, those of the network in the recipe
# Code points of Unicode, by what they show: ranges with both ends.
CLASSES = {
    "animal": [(0x1F400, 0x1F43D), (0x1F54A, 0x1F54A), (0x1F577, 0x1F577), (0x1F980, 0x1F9AD)],
    "face": [(0x1F600, 0x1F637), (0x1F641, 0x1F644), (0x1F910, 0x1F917), (0x1F920, 0x1F925)],
    "food": [(0x1F32D, 0x1F32F), (0x1F345, 0x1F37F), (0x1F950, 0x1F96F), (0x1F9C0, 0x1F9CB)],
    "plant": [(0x1F331, 0x1F335), (0x1F337, 0x1F344), (0x1F490, 0x1F490), (0x1F940, 0x1F940)],
    "vehicle": [(0x1F680, 0x1F68E), (0x1F690, 0x1F6A4), (0x1F6E5, 0x1F6E5), (0x1F6F3, 0x1F6F6), (0x1F6F8, 0x1F6FC)],
}


def write_drawings(font: Path, out: Path) -> None:
    """Draws the characters of each class, black outlines filled with colours on white.

    Args:
        font: A font with the layers of colour that FreeType draws (`COLR` of version 0).
        out: The folder to write to: `out/animal/1F400.png` and so on.
    """
    from PIL import Image, ImageDraw, ImageFont

    letters = ImageFont.truetype(str(font), round(0.78 * SIZE))  # the widest drawings fill the image
    for name, ranges in CLASSES.items():
        (out / name).mkdir()
        for code in (code for first, last in ranges for code in range(first, last + 1)):
            image = Image.new("RGB", (SIZE, SIZE), "white")
            place = (SIZE // 2, SIZE // 2)
            ImageDraw.Draw(image).text(place, chr(code), "black", letters, "mm", embedded_color=True)
            image.save(out / name / f"{code:X}.png")
