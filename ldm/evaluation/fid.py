"""The Fréchet inception distance of two sets of pictures (Heusel et al. 2017), and ArtFID (Wright &
Ommer 2022).

The Inception network is that of the package torch-fidelity, which computes as the original did; its
weights are the user's.
"""

import io
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoint import read_state_dict
from ldm.errors import UserError

FEATURES = "2048"  # torch-fidelity's name of the layer that the distance is defined on

Inception = Callable[[Tensor], Tensor]  # pictures (N, 3, H, W) in [-1, 1] to features (N, 2048)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between the Gaussians that have the means and covariances of features (N, D) and (M, D), at
    least two of each.

    |mean_a - mean_b|^2 + tr(A'A) + tr(B'B) - 2 tr(sqrt(A'A B'B)), with the covariances as A'A and B'B. The last trace is
    the sum of the singular values of AB': the eigenvalues of A'A B'B are those of (AB')(AB')', zeros aside.
    """
    a, b = a.double().cpu(), b.double().cpu()
    root_a, root_b = _root_of_covariance(a), _root_of_covariance(b)
    cross = torch.linalg.svdvals(root_a @ root_b.mT).sum()
    distance = ((a.mean(0) - b.mean(0)) ** 2).sum() + (root_a**2).sum() + (root_b**2).sum() - 2 * cross
    return max(distance.item(), 0.0)  # rounding can take equal sets below


def _root_of_covariance(features: Tensor) -> Tensor:
    """A matrix A whose A'A is the covariance of features (N, D): (min(N, D), D)."""
    centred = (features - features.mean(0)) / math.sqrt(len(features) - 1)
    return centred if len(features) <= features.shape[1] else torch.linalg.qr(centred, mode="r").R


def art_fid(lpips: float | None, fid: float | None) -> float | None:
    """(1 + content distance) (1 + style distance); None where one is missing."""
    return None if lpips is None or fid is None else (1 + lpips) * (1 + fid)


def check_extra() -> None:
    """Raises UserError where torch-fidelity is not installed."""
    try:
        import torch_fidelity  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--inception-weights needs the package torch-fidelity: pip install 'artfusion[evaluation]'"
        ) from error


def load_inception(path: str | Path, device: torch.device) -> Inception:
    """torch-fidelity's Inception network with the weights of a file. Raises UserError if they do
    not fit."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity's own reading would run what a hostile file asks for: it gets the tensors
    # alone, in memory.
    tensors = io.BytesIO()
    torch.save(read_state_dict(path), tensors)
    tensors.seek(0)
    try:
        net = FeatureExtractorInceptionV3("inception", [FEATURES], feature_extractor_weights_path=tensors).to(
            device
        )
    except RuntimeError as error:
        raise UserError(
            f"{path}: not the weights of torch-fidelity's Inception network ({str(error).splitlines()[0]})"
        ) from error
    return lambda pictures: _features(net, pictures.to(device))


@torch.no_grad()
def _features(net: torch.nn.Module, pictures: Tensor) -> Tensor:
    return net(((pictures + 1) * 127.5).round().to(torch.uint8))[0].cpu()
