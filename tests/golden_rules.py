"""How the golden data's weights and inputs are made, from names alone, and its models and sampling runs."""

import math
import zlib
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dual_cond import DualCondModel
from ldm.util import instantiate_from_config

GOLDEN = Path(__file__).parent / "golden"
KEPT = (
    "betas",
    "alphas_",
    "sqrt_",
    "log_one",
    "posterior_",
    "logvar",
    "scale_factor",
    "shift_values",
    "vgg_scaling_layer",
)


def rnd(tag: str, *shape: int) -> Tensor:
    numbers = np.random.RandomState(zlib.crc32(tag.encode())).standard_normal(math.prod(shape))
    return torch.from_numpy(numbers.astype(np.float32)).reshape(shape)


def rule_value(key: str, shape: torch.Size) -> Tensor:
    n = rnd(key, *shape)
    if len(shape) > 1:
        return n / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * n if key.endswith("weight") else 0.1 * n


def apply_rule(model: nn.Module) -> nn.Module:
    """Weights by the rule; every EMA shadow is 0.9 times its live weight; schedule and scaling stay."""
    live, state = {}, model.state_dict()
    for key, value in state.items():
        if not key.startswith(KEPT) and "_ema." not in key:
            live[key] = rule_value(key, value.shape)
    shadows = {_shadow(key): 0.9 * value for key, value in live.items() if _shadow(key) in state}
    missing, unexpected = model.load_state_dict({**live, **shadows}, strict=False)
    assert not unexpected, unexpected
    assert all(key.startswith(KEPT) or key.endswith((".decay", ".num_updates")) for key in missing), missing
    return model


def _shadow(key: str) -> str | None:
    for part in ("model.", "null_style_vector."):
        if key.startswith(part):
            return part[:-1] + "_ema." + key.removeprefix(part).replace(".", "")
    return None


def assert_close(
    actual: Tensor | np.ndarray | float, expected: np.ndarray, tolerance: float = 1e-4, name: str = ""
) -> None:
    """Within rtol = tolerance and atol = tolerance times the expected array's standard deviation."""
    actual = np.asarray(actual.detach().cpu() if isinstance(actual, Tensor) else actual, dtype=np.float64)
    spread = float(np.std(expected)) or float(np.max(np.abs(expected)))
    assert actual.shape == expected.shape, name
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * spread, err_msg=name)


def tiny_model() -> DualCondModel:
    """The model of tiny.npz."""
    return _built(GOLDEN / "tiny.yaml")


def full_model() -> DualCondModel:
    """That of kl16_content12_full.npz."""
    return _built(GOLDEN.parents[1] / "configs/kl16_content12.yaml")


def _built(path: Path) -> DualCondModel:
    config = OmegaConf.load(path).model
    config.params.first_stage_config.params.ckpt_path = None
    return apply_rule(instantiate_from_config(config)).eval()


def conditions(model: DualCondModel, data: np.lib.npyio.NpzFile) -> tuple[dict, dict, dict]:
    """Both conditions, null content, null style."""
    c1, c2 = (torch.from_numpy(data[f"{name}_features"]).to(model.device) for name in ("content", "style"))
    return (
        {"c1": c1, "c2": c2},
        {"c1": torch.zeros_like(c1), "c2": c2},
        {"c1": c1, "c2": model.null_style(len(c2))},
    )


def sample(
    model: DualCondModel,
    data: np.lib.npyio.NpzFile,
    steps: int,
    scale_1: float = 1.0,
    scale_2: float = 1.0,
    eta: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """A run of DDIM from the data's noise, on the model's device."""
    both, null_content, null_style = conditions(model, data)
    x_T = torch.from_numpy(data["x_T"]).to(model.device)
    torch.manual_seed(seed)
    return DDIMSampler(model).sample(
        steps, len(x_T), x_T.shape[1:], both, x_T=x_T, eta=eta, verbose=False,
        unconditional_guidance_scale=scale_1, unconditional_conditioning=null_content,
        unconditional_guidance_scale_2=scale_2, unconditional_conditioning_2=null_style,
    )[0]  # fmt: skip
