"""Do tensors become the right pictures, and prompts usable file names?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ldm import images


def test_all_256_values_survive_the_round_trip():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, -1, -1, 3)
    pixels = images.from_uint8(values)
    assert pixels.shape == (2, 3, 16, 16)
    assert (pixels.min().item(), pixels.max().item()) == (-1.0, 1.0)
    assert torch.equal(images.to_uint8(pixels), values)


def test_a_round_trip_through_pictures_keeps_rows_columns_and_channels_apart():
    pixels = torch.zeros(1, 3, 4, 6)
    pixels[0, 2, 1, 5] = 1.0
    (picture,) = images.to_pil(pixels)
    assert picture.size == (6, 4)
    assert picture.getpixel((5, 1)) == (128, 128, 255)
    assert torch.allclose(images.from_pil([picture]), pixels, atol=1 / 254)  # half a step


def test_values_outside_are_clamped_and_nan_is_an_error():
    assert images.to_uint8(torch.tensor([-9.0, 9.0, 0.5]).reshape(3, 1, 1)).flatten().tolist() == [
        0,
        255,
        191,
    ]
    with pytest.raises(ValueError, match="NaN"):
        images.to_uint8(torch.full((3, 1, 1), float("nan")))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\)"):
        images.to_pil(torch.zeros(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"\(8, 8\).*\(9, 8\)"):
        images.from_pil([Image.new("RGB", (9, 8)), Image.new("RGB", (8, 8))])


def test_transparency_is_laid_over_white():
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    flat = images.flattened(picture)
    assert [flat.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    grey = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert np.asarray(images.flattened(grey))[0, :, 0].tolist() == [0, 100, 255]


def test_small_pictures_are_enlarged_by_a_whole_factor_without_new_colours():
    picture = Image.fromarray(np.eye(32, dtype=np.uint8)[..., None].repeat(3, 2) * 200)
    sheet = images.grid([picture])
    inside = np.asarray(sheet)[8:136, 8:136]
    assert inside.shape == (128, 128, 3)
    np.testing.assert_array_equal(inside[::4, ::4], np.asarray(picture))
    np.testing.assert_array_equal(inside[3::4, 3::4], np.asarray(picture))


def test_large_pictures_keep_their_size():
    sheet = images.grid([Image.new("RGB", (300, 200), "red")] * 3, columns=2)
    assert np.asarray(sheet)[8:208, 8:308].reshape(-1, 3).tolist() == [[255, 0, 0]] * 60000
    assert sheet.size == (2 * 308 + 8, 2 * 216)


def test_pictures_are_laid_out_row_by_row():
    colours = ["red", "lime", "blue", "white", "black"]
    sheet = images.grid([Image.new("RGB", (200, 200), colour) for colour in colours], columns=3)
    seen = [sheet.getpixel((108 + 208 * (i % 3), 108 + 216 * (i // 3))) for i in range(5)]
    assert seen == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]


def test_long_captions_are_wrapped_below_their_own_picture():
    words = " ".join(["a very long caption that needs several lines"] * 2)
    bare = images.grid([Image.new("RGB", (160, 160), "white")] * 2, columns=2)
    sheet = images.grid([Image.new("RGB", (160, 160), "white")] * 2, [words, ""], columns=2)
    assert sheet.width == bare.width
    below = np.asarray(sheet.convert("L"))[170:] < 128
    assert sheet.height - bare.height >= 3 * 14
    assert below[:, 8:168].any()
    assert not below[:, 168:].any()  # nothing runs into the neighbour
    assert not below[:, :8].any()


@pytest.mark.parametrize("caption", ["x" * 400, "ü" * 90 + " 🙂 " + "字" * 90, "a\nb\tc", ""])
def test_any_caption_can_be_drawn(caption):
    sheet = images.grid(torch.zeros(1, 3, 32, 32), [caption])
    assert sheet.width == 128 + 16
    assert sheet.height <= 128 + 16 + 6 * 18


def test_a_caption_for_every_picture():
    with pytest.raises(ValueError, match="2 pictures, 1 captions"):
        images.grid(torch.zeros(2, 3, 32, 32), ["one"])


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red circle", "a_red_circle"),
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\boot\0.ini", "C_boot_.ini"),
        ("it's (blue:1.2), on a mat", "it_s_(blue_1.2),_on_a_mat"),
        ("naïve 猫", "naïve_猫"),
        ("   ", "image"),
        ("???", "image"),
        ("..", "image"),
        (".hidden", "hidden"),
        ("con", "image_con"),
        ("NUL.txt", "image_NUL.txt"),
    ],
)
def test_prompts_as_file_names(prompt, name):
    assert images.safe_name(prompt) == name


def test_long_prompts_are_cut_within_bytes_and_stay_different(tmp_path):
    names = {images.safe_name("é" * 100 + end) for end in ("1", "2", "3")}
    assert len(names) == 3
    assert all(len(name.encode()) <= 80 for name in names)
    for name in names:
        (tmp_path / name).touch()
    assert len(list(tmp_path.iterdir())) == 3


# -- files ----------------------------------------------------------------------------------------


def saved(path, picture, **how):
    picture.save(path, **how)
    return path


def test_pictures_are_read_upright_flat_and_whole(tmp_path):
    wide = Image.new("RGB", (4, 2), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    assert images.read_picture(saved(tmp_path / "a.jpg", wide, exif=exif)).size == (2, 4)
    clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    read = images.read_picture(saved(tmp_path / "b.png", clear))
    assert (read.mode, read.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    palette = Image.new("P", (2, 2), 0)
    assert images.read_picture(saved(tmp_path / "c.webp", palette.convert("RGB"))).mode == "RGB"


def unreadable(folder):
    """Files that are no picture to start from, and what the error says of each."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    whole = saved(folder / "whole.png", Image.effect_noise((64, 64), 50))
    cut, page, large = folder / "cut.png", folder / "page.png", folder / "large.png"
    cut.write_bytes(whole.read_bytes()[:900])
    page.write_text("<!DOCTYPE html>")
    saved(large, Image.new("1", (9000, 9000)))
    moving = saved(folder / "moving.webp", frames[0], save_all=True, append_images=frames[1:])
    tiff = saved(folder / "x.tiff", frames[0])
    return [
        (folder / "none.png", "does not exist"),
        (folder, "is a folder"),
        (cut, "cannot be read as a picture"),
        (page, "cannot be read as a picture"),
        (tiff, "JPEG, PNG, WEBP"),
        (large, "9000x9000 px, above 67,108,864 pixels"),
        (moving, "animated (2 frames)"),
    ]


@pytest.mark.parametrize("read", [images.read_picture, images.read_mask])
def test_what_cannot_be_read_is_said(tmp_path, read):
    for path, reason in unreadable(tmp_path):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert reason in str(caught.value)


def test_a_mask_with_transparency_is_ambiguous(tmp_path):
    path = saved(tmp_path / "m.png", Image.new("RGBA", (2, 2), (255, 255, 255, 0)))
    with pytest.raises(ValueError, match=r"m\.png has transparency"):
        images.read_mask(path)
    grey = images.read_mask(saved(tmp_path / "g.png", Image.new("RGB", (2, 2), "white")))
    assert (grey.mode, grey.getpixel((1, 1))) == ("L", 255)


def test_fitting_keeps_the_middle_and_the_edges_of_masks():
    stripes = Image.new("RGB", (6, 2), "blue")
    stripes.paste("red", (2, 0, 4, 2))
    assert set(images.fitted(stripes, (2, 2)).get_flattened_data()) == {(255, 0, 0)}
    mask = stripes.convert("L").point(lambda value: 255 if value > 50 else 0)
    assert set(images.fitted(mask, (12, 36)).get_flattened_data()) == {0, 255}
    assert images.fitted(mask, (12, 36)).size == (36, 12)
