"""Module 11's helper package: pictures as tokens, and a model that reads them.

`from llm_vision import ViT, VisionConfig, PictureReader`; each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.lazy import export

if TYPE_CHECKING:
    from llm_vision.config import VisionConfig
    from llm_vision.contrastive import clip_loss, siglip_loss
    from llm_vision.data import Pictures, shape_splits
    from llm_vision.errors import PictureError
    from llm_vision.evaluate import with_controls
    from llm_vision.hub import load_vision, save_vision
    from llm_vision.images import Preprocess, read_image
    from llm_vision.llava import load_llava, save_llava
    from llm_vision.patches import patchify, unpatchify
    from llm_vision.probe import Probe
    from llm_vision.projector import Projector
    from llm_vision.reader import PictureReader
    from llm_vision.training import CLIPTrainer, ReaderModule, VisionClassifier
    from llm_vision.vit import ViT

__all__ = [
    "CLIPTrainer", "PictureError", "PictureReader", "Pictures", "Preprocess", "Probe", "Projector", "ReaderModule",
    "ViT", "VisionClassifier", "VisionConfig", "clip_loss", "load_llava", "load_vision", "patchify", "read_image",
    "save_llava", "save_vision", "shape_splits", "siglip_loss", "unpatchify", "with_controls",
]  # fmt: skip

export(__name__, {
    "CLIPTrainer": "training", "PictureError": "errors", "PictureReader": "reader", "Pictures": "data",
    "Preprocess": "images", "Probe": "probe", "Projector": "projector", "ReaderModule": "training", "ViT": "vit",
    "VisionClassifier": "training", "VisionConfig": "config", "clip_loss": "contrastive", "load_llava": "llava",
    "load_vision": "hub", "patchify": "patches", "read_image": "images", "save_llava": "llava", "save_vision": "hub",
    "shape_splits": "data", "siglip_loss": "contrastive", "unpatchify": "patches", "with_controls": "evaluate",
})  # fmt: skip
