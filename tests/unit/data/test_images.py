"""Decoding and crops."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from drifting_core.data import images


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, form: str = "jpeg") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def center_crop_arr(pil_image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    """The definition: openai/guided-diffusion, image_datasets.py."""
    while min(*pil_image.size) >= 2 * image_size:
        pil_image = pil_image.resize(tuple(x // 2 for x in pil_image.size), resample=Image.Resampling.BOX)
    scale = image_size / min(*pil_image.size)
    pil_image = pil_image.resize(tuple(round(x * scale) for x in pil_image.size), resample=Image.Resampling.BICUBIC)
    arr = np.array(pil_image)
    crop_y = (arr.shape[0] - image_size) // 2
    crop_x = (arr.shape[1] - image_size) // 2
    return arr[crop_y : crop_y + image_size, crop_x : crop_x + image_size]


SIZES = [
    (32, 32), (31, 40), (33, 33), (64, 64), (63, 64), (65, 64), (64, 200), (127, 129), (128, 128), (129, 300),
    (500, 375), (375, 500), (255, 257), (20, 90), (90, 20), (47, 46), (333, 32), (32, 333), (96, 97), (400, 401),
]  # fmt: skip


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_centre_crop_is_the_definition_bit_for_bit(width: int, height: int) -> None:
    image = picture(width, height)
    assert np.array_equal(np.asarray(images.centre_crop(image, 32)), center_crop_arr(image, 32))


def test_a_picture_of_the_right_size_is_left_as_it_is() -> None:
    image = picture(32, 32)
    assert np.array_equal(np.asarray(images.centre_crop(image, 32)), np.asarray(image))


@pytest.mark.parametrize(("mode", "form"), [("RGB", "png"), ("CMYK", "jpeg"), ("L", "jpeg"), ("P", "gif"), ("RGBA", "png")])
def test_decoding_goes_by_content_and_gives_rgb(mode: str, form: str) -> None:
    decoded = images.decode_rgb(encoded(picture(40, 30).convert(mode), form), "n02105855_2933.JPEG")
    assert decoded.mode == "RGB"
    assert decoded.size == (40, 30)


@pytest.mark.parametrize("form", ["jpeg", "png"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_a_truncated_image_is_refused_by_name(form: str, share: float) -> None:
    content = encoded(picture(64, 64), form)
    with pytest.raises(images.BrokenImage, match="n01440764_18.JPEG") as caught:
        images.decode_rgb(content[: int(len(content) * share)], "n01440764_18.JPEG")
    assert caught.value.name == "n01440764_18.JPEG"


def test_bytes_that_are_no_image_are_refused_by_name() -> None:
    with pytest.raises(images.BrokenImage, match="x.JPEG"):
        images.decode_rgb(b"not an image" * 50, "x.JPEG")


UNIFORMS = st.lists(st.floats(0, 1, exclude_max=True), min_size=images.CROP_UNIFORMS, max_size=images.CROP_UNIFORMS)


@given(UNIFORMS, st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=200, deadline=None)
def test_random_boxes_lie_inside_and_keep_their_promises(uniforms: list[float], width: int, height: int) -> None:
    left, top, box_width, box_height = images._random_box((width, height), uniforms, (0.2, 1.0), (3 / 4, 4 / 3))
    assert left >= 0
    assert top >= 0
    assert box_width >= 1
    assert box_height >= 1
    assert left + box_width <= width
    assert top + box_height <= height
    if min(width, height) >= 100 and max(width, height) / min(width, height) < 1.3:
        assert box_width * box_height >= 0.19 * width * height
        assert 0.73 < box_width / box_height < 1.37


def test_random_crops_are_functions_of_their_uniforms() -> None:
    image, uniforms = picture(50, 40), list(np.random.default_rng(1).random(images.CROP_UNIFORMS))
    first = np.asarray(images.random_resized_crop(image, 32, uniforms, (0.2, 1.0)))
    assert np.array_equal(first, np.asarray(images.random_resized_crop(image, 32, uniforms, (0.2, 1.0))))
    mirrored = [*uniforms[:-1], (uniforms[-1] + 0.5) % 1]
    assert np.array_equal(first[:, ::-1], np.asarray(images.random_resized_crop(image, 32, mirrored, (0.2, 1.0))))


def test_a_shape_that_never_fits_falls_back_to_the_centre() -> None:
    """A 300x10 picture has no crop of its whole area and aspect 3/4 to 4/3: 13x10 in the middle remains."""
    uniforms = [0.999] * images.CROP_UNIFORMS
    assert images._random_box((300, 10), uniforms, (1.0, 1.0), (3 / 4, 4 / 3)) == (143, 0, 13, 10)
    assert images._random_box((10, 300), uniforms, (1.0, 1.0), (3 / 4, 4 / 3)) == (0, 143, 10, 13)


def test_the_number_of_uniforms_is_checked() -> None:
    with pytest.raises(ValueError, match="uniforms"):
        images.random_resized_crop(picture(8, 8), 4, [0.5] * 4, (0.2, 1.0))


def test_order_survives_the_thread_pool() -> None:
    rows = list(range(100, 0, -1))
    assert list(images.in_order(rows, lambda row: row * row, threads=4, ahead=7)) == [(row, row * row) for row in rows]


def test_a_broken_image_among_many_is_named() -> None:
    class Memory:
        def __init__(self) -> None:
            self.names = ["a.JPEG", "b.JPEG", "c.JPEG"]

        def read(self, row: int) -> bytes:
            return encoded(picture(32, 32)) if row != 1 else b""

    assert images.centre_crops(Memory(), [0, 2], 32, threads=2).shape == (2, 3, 32, 32)
    with pytest.raises(images.BrokenImage, match="b.JPEG"):
        images.centre_crops(Memory(), [0, 1, 2], 32, threads=2)
