"""Drawings of structure: arrows end at the boxes' edges, letters stay readable, mistakes are named."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest
from matplotlib.patches import FancyBboxPatch

from course import plots


@pytest.fixture
def drawing() -> Iterator[plots.Drawing]:
    drawn = plots.Drawing(3, 2, "Two steps")
    drawn.box("x", 0, 0, shape="B, T, C").box("W", 1, 0, look="weight").box("loss", 2, 1, look="loss")
    yield drawn
    plt.close("all")


def test_an_arrow_joins_the_edges_of_two_boxes(drawing: plots.Drawing) -> None:
    drawing.chain("x", "W", "loss")
    level, slanted = drawing.ax.texts[-2:]
    x, weight, loss = (drawing.boxes[name] for name in ("x", "W", "loss"))
    assert level.xyann == pytest.approx((x.x + x.width / 2, x.y))
    assert level.xy == pytest.approx((weight.x - weight.width / 2, weight.y))
    # A slanted one leaves on the line between the middles, at the nearer of two edges.
    across, down = slanted.xyann[0] - weight.x, slanted.xyann[1] - weight.y
    assert across / down == pytest.approx((loss.x - weight.x) / (loss.y - weight.y))
    assert abs(across) == pytest.approx(weight.width / 2) or abs(down) == pytest.approx(weight.height / 2)


def test_what_stands_where(drawing: plots.Drawing) -> None:
    drawing.arrow("x", "W", "(B, T, C)").group(["x", "W"], "one module").note(1, 1, "a note")
    texts = [text.get_text() for text in drawing.ax.texts if text.get_text()]
    assert texts == ["x\n(B, T, C)", "W", "loss", "(B, T, C)", "one module", "a note"]
    boxes = [patch for patch in drawing.ax.patches if isinstance(patch, FancyBboxPatch)]
    around = boxes[-1].get_bbox()
    for name in ("x", "W"):
        box = drawing.boxes[name]
        assert around.x0 < box.x - box.width / 2 and box.x + box.width / 2 < around.x1
        assert around.y0 < box.y - box.height / 2 and box.y + box.height / 2 < around.y1
    (bottom, top), (left, right) = drawing.ax.get_ylim(), drawing.ax.get_xlim()
    assert top < around.y0 and around.y1 < bottom and left <= around.x0 and around.x1 <= right


def test_a_wide_drawing_stays_readable() -> None:
    drawn = plots.Drawing(9, 1).box("a", 0, 0).box("b", 8, 0).arrow("a", "b", "far")
    assert drawn.ax.figure.get_size_inches()[0] <= 7
    assert min(text.get_fontsize() for text in drawn.ax.texts) >= 8
    plt.close("all")


def test_mistakes_are_named(drawing: plots.Drawing) -> None:
    with pytest.raises(KeyError, match="no box 'y'; there are x, W, loss"):
        drawing.arrow("x", "y")
    with pytest.raises(ValueError, match="a box 'x' already"):
        drawing.box("x", 1, 1)
    with pytest.raises(ValueError, match="choose one of data, weight, step, loss, gone"):
        drawing.box("y", 1, 1, look="pretty")


@pytest.mark.parametrize("bend", [-0.4, 0.4])
@pytest.mark.parametrize(("start", "end"), [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"), ("b", "c")])
def test_a_text_stands_on_the_side_to_which_its_arrow_bends(bend: float, start: str, end: str) -> None:
    draw = plots.Drawing(3, 3).box("a", 0, 0).box("b", 2, 0).box("c", 0, 2)
    draw.arrow(start, end, "text", bend=bend)
    draw.ax.figure.canvas.draw()
    arrow = next(text.arrow_patch for text in draw.ax.texts if getattr(text, "arrow_patch", None))
    first, control, last = arrow.get_path().vertices[:3]
    place = next(text for text in draw.ax.texts if text.get_text() == "text")
    shown = draw.ax.transData.transform(place.get_position())
    middle = (first + last) / 2
    assert (control - middle) @ (shown - middle) > 0


@pytest.mark.parametrize(("column", "row"), [(2.2, 0), (-0.5, 0), (0, 1.5), (0, -0.6)])
def test_a_box_that_would_be_cut_off_is_refused(column: float, row: float) -> None:
    with pytest.raises(ValueError, match=r"box 'x' at (column|row) .* is cut off: the drawing has"):
        plots.Drawing(3, 2).box("x", column, row)
