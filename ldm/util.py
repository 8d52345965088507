"""The published module's names; they live in `ldm.config.factory` and, those that need torch, in `ldm.published.helpers`."""

import importlib
from typing import Any

from ldm.config.factory import get_obj_from_str, instantiate_from_config

__all__ = ["get_obj_from_str", "instantiate_from_config"]

_HELPERS = (
    "count_params",
    "default",
    "exists",
    "get_ckpt_path",
    "isimage",
    "ismap",
    "log_txt_as_img",
    "mean_flat",
)


def __getattr__(name: str) -> Any:
    if name not in _HELPERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("ldm.published.helpers"), name)
