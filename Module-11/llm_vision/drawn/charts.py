"""Small bar charts, drawn by matplotlib: a question about each, and the answer computed from its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llm_data.whole_files import write_in_place
from llm_data.workspace import cache_folder, digest, locked

BARS = {"red": "#d62728", "green": "#2ca02c", "blue": "#1f4fd0", "yellow": "#e6c619"}  # from left to right
QUESTIONS = ("which bar is highest ?", "which bar is lowest ?")
GAP = 0.12  # between the heights that an answer depends on, of the chart's height


@dataclass(frozen=True)
class Chart:
    """A chart before it is drawn: a height from 0 to 1 for each bar, and a question of `QUESTIONS`."""

    heights: tuple[float, ...]
    question: str

    @property
    def answer(self) -> str:
        """The colour of the bar that is asked for."""
        asked = max if self.question == QUESTIONS[0] else min
        return list(BARS)[self.heights.index(asked(self.heights))]


def draw_charts(number: int, seed: int) -> list[Chart]:
    """Charts at random, the same for the same seed; highest and lowest stand clear of the others.

    Raises:
        ValueError: for a number below 1.
    """
    if number < 1:
        raise ValueError(f"number={number} of charts must be at least 1")
    dice, made = np.random.default_rng(seed), list[Chart]()
    while len(made) < number:
        heights = dice.uniform(0.1, 1.0, size=len(BARS))
        steps = np.diff(np.sort(heights))
        if min(steps[0], steps[-1]) >= GAP:
            made.append(Chart(tuple(heights.round(3).tolist()), QUESTIONS[int(dice.integers(2))]))
    return made


def render_charts(charts: Sequence[Chart], side: int = 64) -> np.ndarray:
    """The charts, (number, side, side, 3) uint8, red first; kept in the course's cache.

    Raises:
        OSError: when the cache cannot be written.
    """
    import matplotlib

    key = digest(side, matplotlib.__version__, tuple(BARS.values()), [chart.heights for chart in charts])
    path = cache_folder() / "pictures" / f"charts-{key}" / "charts.npy"
    if not path.is_file():
        with locked(path.parent):
            if not path.is_file():  # another process may have made it meanwhile
                write_in_place(path, lambda unfinished: _write(unfinished, _render(charts, side)))
    found: np.ndarray = np.load(path, allow_pickle=False)
    return found


def _write(path: Path, pictures: np.ndarray) -> None:
    with path.open("wb") as file:  # numpy would append .npy to another name
        np.save(file, pictures, allow_pickle=False)


def _render(charts: Sequence[Chart], side: int) -> np.ndarray:
    """One figure for all: only the heights change, which is ten times as fast as a figure each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1), dpi=side, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.06, 0.06, 0.9, 0.9))
    bars = axes.bar(range(len(BARS)), [1.0] * len(BARS), color=list(BARS.values()))
    axes.set(ylim=(0, 1.05), xticks=[], yticks=[])
    axes.spines[["top", "right"]].set_visible(False)
    pictures = np.empty((len(charts), side, side, 3), dtype=np.uint8)
    for picture, chart in zip(pictures, charts, strict=True):
        for bar, height in zip(bars, chart.heights, strict=True):
            bar.set_height(height)
        canvas.draw()
        picture[:] = np.asarray(canvas.buffer_rgba())[..., :3]
    return pictures
