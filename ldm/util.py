"""The published module's names; they live in `ldm.config.factory` and, those that need torch, in
`ldm.published.helpers`."""

from ldm.config.factory import get_obj_from_str, instantiate_from_config
from ldm.lazy import names_from

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
__getattr__ = names_from(__name__, dict.fromkeys(_HELPERS, "ldm.published.helpers"))
