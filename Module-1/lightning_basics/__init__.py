"""Module 1's helper package: an autograd engine, a line classifier, and its training by hand and by Lightning.

`from lightning_basics import Node, load_lines`; each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.lazy import export

if TYPE_CHECKING:
    from lightning_basics.autograd import Node
    from lightning_basics.classifier import ClassifierConfig, LineClassifier
    from lightning_basics.data import load_lines
    from lightning_basics.lit import LineDataModule, LitLineClassifier
    from lightning_basics.recipe import Recipe
    from lightning_basics.vanilla import fit

__all__ = [
    "ClassifierConfig", "LineClassifier", "LineDataModule", "LitLineClassifier", "Node", "Recipe", "fit", "load_lines",
]  # fmt: skip

export(__name__, {
    "ClassifierConfig": "classifier", "LineClassifier": "classifier", "LineDataModule": "lit",
    "LitLineClassifier": "lit", "Node": "autograd", "Recipe": "recipe", "fit": "vanilla", "load_lines": "data",
})  # fmt: skip
