"""From a file's bytes to a square crop: decoding by content, ADM's centre crop, seeded random crops.

Sources: the centre crop of openai/guided-diffusion (image_datasets.py, center_crop_arr), which all ImageNet-256 numbers
are measured with; torchvision's RandomResizedCrop for the random one. Pixels come from Pillow.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from drifting_core.data import draws
from drifting_core.faults import Fault

# The transforms before the encoder, in order, as artifacts record them.
CENTRE_CROP_TRANSFORMS = (
    "decode by content, convert to RGB",
    "halve with BOX while the short side is at least 2 x {size}",
    "resize the short side to {size} with BICUBIC",
    "centre crop {size} x {size}",
    "x / 127.5 - 1",
)
RANDOM_CROP_TRANSFORMS = (
    CENTRE_CROP_TRANSFORMS[0],
    "random crop of area {scale[0]} to {scale[1]} and aspect 3/4 to 4/3, seeded per image and view",
    "resize to {size} x {size} with BICUBIC",
    "mirror half of the crops",
    CENTRE_CROP_TRANSFORMS[-1],
)
CROP_SCALE = (0.2, 1.0)  # area of a random crop, relative to the image
Made = TypeVar("Made")

_TRIES = 10
CROP_UNIFORMS = 4 * _TRIES + 1  # area, aspect, top and left of each try, then the flip


class BrokenImage(Fault):
    """An image that cannot be decoded whole; it is listed as a reject or stops the job, never replaced."""

    def __init__(self, name: str, problem: object) -> None:
        super().__init__(f"{name}: not a readable image: {problem}; replace it, or allow for it with data.max_rejects")
        self.name = name


class Reader(Protocol):
    """What crops are made from: archives.ImageReader, or anything with as much."""

    names: list[str]

    def read(self, row: int) -> bytes: ...


def transforms(size: int, *, random_crops: bool = False) -> list[str]:
    steps = RANDOM_CROP_TRANSFORMS if random_crops else CENTRE_CROP_TRANSFORMS
    return [step.format(size=size, scale=CROP_SCALE) for step in steps]


def decode_rgb(content: bytes, name: str) -> Image.Image:
    """The whole image as RGB, whatever its format is (ImageNet has a PNG and CMYK files named .JPEG).

    Raises BrokenImage, which names the image, when it is truncated or no image.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BrokenImage(name, error) from error


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop: (size, size). Halving first keeps BICUBIC from having to shrink by more than two."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_resized_crop(
    image: Image.Image,
    size: int,
    uniforms: Sequence[float],
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image.Image:
    """A crop of random area and aspect, resized to (size, size) with antialiased BICUBIC, mirrored half of the time.

    `uniforms`: CROP_UNIFORMS numbers in [0, 1), which alone decide. `scale`: area relative to the image; `ratio`: width
    over height, log-uniform. After ten tries that do not fit, the largest centred crop within `ratio`, as torchvision.
    """
    if len(uniforms) != CROP_UNIFORMS:
        raise ValueError(f"random_resized_crop: {len(uniforms)} uniforms, expected {CROP_UNIFORMS}")
    left, top, width, height = _random_box(image.size, uniforms, scale, ratio)
    # Cropped first, so that the filter sees no pixel outside the crop.
    crop = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if uniforms[-1] < 0.5 else crop


def _random_box(
    whole: tuple[int, int], uniforms: Sequence[float], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Left, top, width and height of the crop."""
    full_width, full_height = whole
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(_TRIES):
        area, aspect, top, left = uniforms[4 * attempt : 4 * attempt + 4]
        target = full_width * full_height * (scale[0] + (scale[1] - scale[0]) * area)
        shape = math.exp(log_low + (log_high - log_low) * aspect)
        width, height = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < width <= full_width and 0 < height <= full_height:
            return int(left * (full_width - width + 1)), int(top * (full_height - height + 1)), width, height
    width, height = full_width, full_height
    if full_width / full_height < ratio[0]:
        height = round(width / ratio[0])
    elif full_width / full_height > ratio[1]:
        width = round(height * ratio[1])
    return (full_width - width) // 2, (full_height - height) // 2, width, height


def crop_views(image: Image.Image, size: int, row: int, views: int, seed: int) -> NDArray[np.uint8]:
    """Random crops uint8 (views, 3, size, size) of the image of this row: a function of (seed, row, view)."""
    owners = torch.arange(row * views, (row + 1) * views)
    uniforms = draws.uniform_rows(draws.key(seed, "crop view"), owners, CROP_UNIFORMS).tolist()
    return np.stack([pixels(random_resized_crop(image, size, of_view, CROP_SCALE)) for of_view in uniforms])


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 (3, H, W)."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def centre_crops(reader: Reader, rows: Sequence[int], size: int, threads: int = 1) -> NDArray[np.uint8]:
    """The centre crops of these rows: uint8 (N, 3, size, size). Raises BrokenImage for the first unreadable one."""
    found = np.empty((len(rows), 3, size, size), np.uint8)
    for place, (_, crop) in enumerate(in_order(rows, lambda row: centre_crop_of(reader, row, size), threads)):
        found[place] = crop
    return found


def centre_crop_of(reader: Reader, row: int, size: int) -> NDArray[np.uint8]:
    return pixels(centre_crop(decode_rgb(reader.read(row), reader.names[row]), size))


def in_order(rows: Sequence[int], make: Callable[[int], Made], threads: int, ahead: int = 256) -> Iterator[tuple[int, Made]]:
    """(row, make(row)) in the order of `rows`, made by a thread pool up to `ahead` rows early (Pillow frees the lock).

    A caller that computes between two items (the tokenizer) overlaps with the decoding.
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:
        waiting = [pool.submit(make, int(row)) for row in rows[:ahead]]
        for place, row in enumerate(rows):
            item = waiting[place].result()
            waiting[place] = None  # type: ignore[call-overload]  # lets go of the result
            if place + ahead < len(rows):
                waiting.append(pool.submit(make, int(rows[place + ahead])))
            yield int(row), item
