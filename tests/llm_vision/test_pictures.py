"""Drawn pictures are what their captions say; files of any kind are read the same; a swap of channels is caught."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from llm_vision.config import VisionConfig
from llm_vision.data import as_array
from llm_vision.drawn import charts, glyphs, shapes
from llm_vision.drawn.shapes import ATTRIBUTES, HELD_OUT_PAIRS, KINDS, Drawn, combinations, draw_specs, render
from llm_vision.errors import PictureError
from llm_vision.hub import their_processor
from llm_vision.images import Preprocess, read_image
from llm_vision.probe import Probe, probe_picture
from llm_vision.vit import ViT
from PIL import Image

# -- drawn ------------------------------------------------------------------------------------------------------------


def test_combinations_are_three_kinds_that_share_nothing():
    found = {kind: {spec.caption for spec in combinations(kind)} for kind in KINDS}
    assert [len(each) for each in found.values()] == [243, 27, 30] and len(set().union(*found.values())) == 300
    seen = combinations("seen")
    for name, known in ATTRIBUTES.items():
        for other, values in ATTRIBUTES.items():
            pairs = {(getattr(each, name), getattr(each, other)) for each in seen}
            wanted = len(known) if name == other else len(known) * len(values)
            assert len(pairs) == wanted - (len(HELD_OUT_PAIRS) if {name, other} == {"colour", "shape"} else 0)


def test_pictures_are_the_same_for_the_same_seed():
    one, two = draw_specs(20, 5), draw_specs(20, 5)
    assert one == two and one != draw_specs(20, 6)
    assert np.array_equal(render(one), render(two)) and np.array_equal(render(one[3:4])[0], render(one)[3])
    assert {kind for kind in KINDS for spec in draw_specs(9, 1, kind) if shapes.kind_of(spec) != kind} == set()


@pytest.mark.parametrize("colour", list(ATTRIBUTES["colour"]))
@pytest.mark.parametrize("position", list(ATTRIBUTES["position"]))
def test_pixels_are_what_the_caption_says(colour, position):
    """The colour in the middle of the shape, red first; the shape where it belongs; the large one is larger."""
    small, large = render([Drawn(size, colour, "circle", position) for size in ("small", "large")]).astype(int)
    row, column = shapes.POSITIONS[position]
    middle = large[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1))
    assert abs(middle - shapes.COLOURS[colour]).max() < 15
    areas = [(abs(each - shapes.BACKGROUND).max(axis=-1) > 60).sum() for each in (small, large)]
    assert 40 < areas[0] < 60 < 140 < areas[1] < 165
    rows, columns = np.nonzero(abs(large - shapes.BACKGROUND).max(axis=-1) > 60)
    assert abs(rows.mean() - row) < 1 and abs(columns.mean() - column) < 1


def test_five_shapes_are_five():
    masks = [render([Drawn("large", "white", shape, "centre")])[0, ..., 0] > 140 for shape in shapes.SHAPES]
    for number, one in enumerate(masks):
        assert min([(one != two).sum() for two in masks[number + 1 :]] or [99]) > 20
    assert not masks[4][16, 16] and masks[0][16, 16]  # a ring is empty


def test_captions_and_names_that_are_not_drawn():
    spec = Drawn("small", "red", "circle", "centre")
    assert spec.caption == "a small red circle in the centre" and spec.classes == (0, 0, 0, 4)
    for wrong, words in (({"colour": "pink"}, "colour='pink' is none of red"), ({"down": 3}, "2 pixels at most")):
        with pytest.raises(ValueError, match=words):
            Drawn(**{"size": "small", "colour": "red", "shape": "circle", "position": "centre", **wrong})
    for call in (lambda: draw_specs(0, 1), lambda: draw_specs(1, 1, "new"), lambda: charts.draw_charts(0, 1)):
        with pytest.raises(ValueError, match=r"must be at least 1|none of seen"):
            call()


@pytest.mark.parametrize("stroke", [1, 2, 4])
def test_digits_can_be_read_back_from_their_cells(stroke):
    cell = 8 * stroke
    pages, digits = glyphs.draw_pages(20, 3, side=3 * cell, stroke=stroke)
    assert pages.shape == (20, 3 * cell, 3 * cell, 3) and digits.shape == (20, 3, 3)
    tops, lefts = set(), set()
    for page, row, column in np.ndindex(digits.shape):
        seen = pages[page, cell * row :, cell * column :, 0][:cell, :cell] > 128
        assert not seen[:stroke].any() and not seen[-stroke:].any() and not seen[:, :stroke].any()
        top, bottom = np.nonzero(seen)[0][[0, -1]]
        left, right = np.nonzero(seen)[1].min(), np.nonzero(seen)[1].max() + 1
        assert bottom - top + 1 == 5 * stroke
        wanted = glyphs.glyph(str(digits[page, row, column]), stroke)
        assert np.array_equal(seen[top : bottom + 1, left:right], wanted[:, wanted.any(axis=0)])
        tops.add(top)
        lefts.add(left)
    assert tops == set(range(stroke, 2 * stroke + 1)) and min(lefts) == stroke and max(lefts) == 4 * stroke
    again, _ = glyphs.draw_pages(20, 3, side=3 * cell, stroke=stroke)
    assert np.array_equal(again, pages)
    with pytest.raises(ValueError, match=f"not filled by cells of {cell} pixels.*take a multiple of {cell}"):
        glyphs.draw_pages(1, 0, side=cell + 1, stroke=stroke)
    with pytest.raises(ValueError, match="number=0 must be at least 1"):
        glyphs.draw_pages(0, 0)


def test_places_move_with_the_side_and_shapes_keep_their_size():
    spec = Drawn("small", "white", "square", "bottom left", seed=1)
    small, large = (render([spec], side)[0, ..., 0] > 128 for side in (32, 64))
    (row, column), (below, right) = (np.argwhere(each).mean(axis=0) for each in (small, large))
    assert small.sum() == large.sum() and (row, column) == (23, 9) and (below, right) == (46, 18)


def test_ten_digits_differ():
    assert len({glyphs.BITS[digit] for digit in glyphs.BITS}) == 10


def test_charts_are_what_their_answers_say(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    drawn = charts.draw_charts(12, 0)
    pictures = charts.render_charts(drawn)
    assert {chart.question for chart in drawn} == set(charts.QUESTIONS)
    for chart, picture in zip(drawn, pictures.astype(int), strict=True):
        heights = []
        for colour in charts.BARS.values():
            value = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
            heights.append(int((abs(picture - value).max(axis=-1) < 12).any(axis=1).sum()))
        asked = max if chart.question == charts.QUESTIONS[0] else min
        assert list(charts.BARS)[heights.index(asked(heights))] == chart.answer
        ordered = sorted(chart.heights)
        assert min(ordered[1] - ordered[0], ordered[-1] - ordered[-2]) >= charts.GAP - 0.002
    monkeypatch.setattr(charts, "_render", lambda *_: pytest.fail("drawn twice"))
    assert np.array_equal(charts.render_charts(drawn), pictures)


# -- files ------------------------------------------------------------------------------------------------------------

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def saved(folder, picture, name="one.png", **options):
    picture.save(folder / name, **options)
    return folder / name


def test_modes_become_rgb(tmp_path):
    grey = GREY[..., None].repeat(3, axis=-1)
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(RGB))), RGB)
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(GREY))), grey)
    assert np.array_equal(read_image(saved(tmp_path, Image.fromarray(GREY.astype(np.uint16) * 257))), grey)
    two = Image.fromarray(GREY > 128)
    assert np.array_equal(read_image(saved(tmp_path, two)), (GREY > 128)[..., None].repeat(3, axis=-1) * 255)
    palette = Image.fromarray(RGB // 128 * 128).quantize(8)
    assert np.array_equal(read_image(saved(tmp_path, palette)), np.array(palette.convert("RGB")))
    cmyk = Image.fromarray(RGB).convert("CMYK")
    assert np.array_equal(read_image(saved(tmp_path, cmyk, "one.tif")), RGB)


def test_what_is_clear_is_laid_over_white(tmp_path):
    alpha = np.full((6, 9, 1), 255, dtype=np.uint8)
    alpha[:3] = 0
    found = read_image(saved(tmp_path, Image.fromarray(np.concatenate([RGB, alpha], axis=-1))))
    assert (found[:3] == 255).all() and np.array_equal(found[3:], RGB[3:])
    grey = read_image(saved(tmp_path, Image.fromarray(np.stack([GREY, alpha[..., 0]], axis=-1), "LA")))
    assert (grey[:3] == 255).all() and np.array_equal(grey[3:, :, 0], GREY[3:])


@pytest.mark.parametrize(("orientation", "turn"), [(6, -1), (3, 2), (8, 1), (1, 0)])
def test_the_cameras_note_is_followed(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(RGB), exif=exif)
    assert np.array_equal(read_image(path), np.rot90(RGB, turn))


def test_files_that_cannot_be_read_say_so_in_one_line(tmp_path):
    whole = saved(tmp_path, Image.fromarray(RGB.repeat(20, axis=0).repeat(20, axis=1)), "whole.png").read_bytes()
    bad = bytearray(whole)
    bad[len(bad) // 2] ^= 255
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    large = struct.pack(">IIBBBBB", 10_000, 9_000, 8, 2, 0, 0, 0)
    other = struct.pack(">I", 13) + b"IHDR" + large + struct.pack(">I", zlib.crc32(b"IHDR" + large))
    files = {
        "cut.png": (whole[: len(whole) // 2], "cannot be read as a picture"),
        "bad.png": (bytes(bad), "cannot be read as a picture"),
        "empty.png": (b"", "save it anew as PNG"), "text.jpg": (b"no picture", "cannot be read as a picture"),
        "bomb.png": (whole[:8] + chunk + whole[33:], "make it smaller"),
        "large.png": (whole[:8] + other + whole[33:], "10000 x 9000 pixels, more than max_pixels=50,000,000"),
    }  # fmt: skip
    for name, (data, words) in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PictureError, match=words) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value), name
    with pytest.raises(PictureError, match="has 2 frames"):
        read_image(tmp_path / "moving.gif")
    with pytest.raises(PictureError, match="more than max_pixels=100"):
        read_image(tmp_path / "whole.png", max_pixels=100)
    for place in (tmp_path, tmp_path / "nowhere.png"):
        with pytest.raises(FileNotFoundError, match="no such picture file"):
            read_image(place)


# -- preprocessing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (48, 64), (9, 100), (1, 1)])
def test_preprocessing_is_transformers(shape, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    preprocess = Preprocess(32, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
    wanted = their_processor(preprocess)(picture, return_tensors="pt", input_data_format="channels_last").pixel_values
    torch.testing.assert_close(preprocess(picture), wanted[0], rtol=0, atol=1e-5)
    assert torch.equal(preprocess.batch(picture[None])[0], preprocess(picture))
    Image.fromarray(picture).save(tmp_path / "one.png")
    assert torch.equal(preprocess(tmp_path / "one.png"), preprocess(picture))
    if shape == (32, 32):
        assert np.array_equal(as_array(preprocess(picture), preprocess), picture)


def test_declared_orders_give_the_same_pixels():
    blue_first = np.ascontiguousarray(RGB[..., ::-1])
    assert torch.equal(Preprocess(32, order="BGR")(blue_first), Preprocess(32)(RGB))
    assert torch.equal(Preprocess(6, order="BGR").batch(blue_first[None, :, :6]), Preprocess(6).batch(RGB[None, :, :6]))


@pytest.mark.parametrize(
    ("array", "words"),
    [(RGB / 255, "pixels of the type float64"), (GREY, "repeating their channel"),
     (np.moveaxis(RGB, -1, 0), "its channels come first"), (RGB[:0], "holds no pixel"),
     (RGB[..., :1], "repeating their channel"), (RGB.repeat(2, axis=-1), r"give \(height, width, 3\)")],
)  # fmt: skip
def test_arrays_that_are_no_picture(array, words):
    with pytest.raises(PictureError, match=words):
        Preprocess(8)(array)


def test_settings_that_cannot_be():
    for options, words in (({"size": 0}, "size=0"), ({"size": 8, "std": (0.0, 1.0, 1.0)}, "those of std above 0"),
                           ({"size": 8, "order": "GBR"}, "neither RGB nor BGR")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            Preprocess(**options)


# -- the probe --------------------------------------------------------------------------------------------------------

IMAGENET = Preprocess(16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def probed(tmp_path):
    torch.manual_seed(0)
    vision = ViT(VisionConfig(image_size=16, patch_size=4, hidden_size=24, initializer_range=0.2)).eval()
    return Probe.of(IMAGENET, vision), vision


def test_the_right_pipeline_passes_and_a_folder_keeps_the_probe(probed, tmp_path):
    probe, vision = probed
    path = probe.save(tmp_path)
    assert np.array_equal(read_image(path), probe_picture())
    again = Probe.load(tmp_path)
    again.verify(IMAGENET, path)
    again.verify(lambda picture: IMAGENET(picture)[None], path)
    again.verify_model(vision)
    with pytest.raises(PictureError, match="is no probe"):
        Probe.load(tmp_path / "nowhere")


def bgr(path):
    return np.ascontiguousarray(read_image(path)[..., ::-1])


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        (lambda path: IMAGENET(bgr(path)), r"trained on: red and blue are exchanged \(BGR for RGB\)$"),
        (lambda path: IMAGENET(path).flip(0), "red and blue are exchanged.*after mean and std were taken$"),
        (lambda path: IMAGENET(read_image(path)[..., [1, 2, 0]]), "its channels come in the order GBR$"),
        (lambda path: IMAGENET(path).permute(1, 2, 0), r"its channels come last \(HWC\)"),
        (lambda path: IMAGENET(path).mT, "trained on: height and width are exchanged$"),
        (lambda path: IMAGENET(path).flip(1), "it is upside down$"),
        (lambda path: IMAGENET(path).flip(2), "left and right are exchanged$"),
        (lambda path: Preprocess(16, (0.0,) * 3, (1.0,) * 3)(path), "it is not normalised by mean and std$"),
        (lambda path: Preprocess(16, (0.0,) * 3, (1 / 255,) * 3)(bgr(path)), "go to 255; red and blue are exchanged"),
        (lambda path: Preprocess(8)(path), r"\(3, 16, 16\) is wanted and \(3, 8, 8\) came out; compare both"),
        (lambda path: IMAGENET(path) * 0, "is wanted.*away; compare both"),
    ],
)  # fmt: skip
def test_what_a_pipeline_did_is_named(probed, tmp_path, pipeline, words):
    probe, _ = probed
    with pytest.raises(PictureError, match=words):
        probe.verify(pipeline, probe.save(tmp_path))


def test_a_swap_is_invisible_to_shapes_and_seen_in_features(probed, tmp_path):
    """What the probe is for: the swapped pixels pass every check that looks at a tensor."""
    probe, vision = probed
    swapped = IMAGENET(bgr(probe.save(tmp_path)))
    assert vision.pooled(swapped[None]).shape == vision.pooled(IMAGENET(probe_picture())[None]).shape
    with torch.no_grad():
        weight = vision.embeddings.patch_embeddings.projection.weight
        weight.copy_(weight.unflatten(1, (-1, 3)).flip(-1).flatten(1))
    with pytest.raises(PictureError, match="its patch embedding reads blue first"):
        probe.verify_model(vision)
    with torch.no_grad():
        weight.zero_()
    with pytest.raises(PictureError, match="its weights are others"):
        probe.verify_model(vision)


def test_no_turn_or_swap_leaves_the_probe_as_it_is():
    picture = probe_picture().astype(int)
    for other in (
        picture[::-1],
        picture[:, ::-1],
        picture[..., ::-1],
        picture[..., [1, 0, 2]],
        picture[..., [0, 2, 1]],
    ):
        assert abs(picture - other).mean() > 20
    assert all(
        one != two for one, two in pairwise([tuple(picture[0, 0]), tuple(picture[0, 63]), tuple(picture[47, 0])])
    )
