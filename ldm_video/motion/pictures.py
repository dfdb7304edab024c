"""Sample pictures at displaced points and blur them; on a CPU with OpenCV, which is ten times as fast as PyTorch."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from ldm_video.motion.warp import at

_KERNEL_RADIUS = 4  # radius of a Gaussian kernel in standard deviations


def grid_of(size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the coordinates of each pixel: ``2 h w``, x and y, float32."""
    y, x = (torch.arange(n, dtype=torch.float32, device=device) for n in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))


def read_at(picture: Tensor, points: Tensor) -> Tensor:
    """Sample ``c h w`` float32 bicubically at ``2 a b`` (x, y): ``c a b``. The border is replicated."""
    return (_read_with_opencv if picture.device.type == "cpu" else _read_with_torch)(picture, points)


def smooth(picture: Tensor, sigma: tuple[float, float]) -> Tensor:
    """Blur ``c h w`` float32 with a Gaussian of standard deviation ``sigma`` (down, across) in pixels."""
    return (_smooth_with_opencv if picture.device.type == "cpu" else _smooth_with_torch)(picture, sigma)


def _read_with_opencv(picture: Tensor, points: Tensor) -> Tensor:
    return _as_planes(at(_as_image(picture), points.permute(1, 2, 0).numpy(), cv2.INTER_CUBIC))


def _read_with_torch(picture: Tensor, points: Tensor) -> Tensor:
    size = torch.tensor([picture.shape[-1], picture.shape[-2]], device=picture.device)
    centre = (2 * points.permute(1, 2, 0) + 1) / size - 1  # pixel centres in `grid_sample` units
    return F.grid_sample(picture[None], centre[None], mode="bicubic", padding_mode="border", align_corners=False)[0]


def _smooth_with_opencv(picture: Tensor, sigma: tuple[float, float]) -> Tensor:
    down, across = _kernel_size(sigma)
    return _as_planes(cv2.GaussianBlur(_as_image(picture), (across, down), sigmaX=sigma[1], sigmaY=sigma[0]))


def _smooth_with_torch(picture: Tensor, sigma: tuple[float, float]) -> Tensor:
    down, across = _kernel_size(sigma)
    return gaussian_blur(picture, [across, down], [sigma[1], sigma[0]])


def _kernel_size(sigma: tuple[float, float]) -> tuple[int, int]:
    """Kernel size (down, across), odd."""
    return 2 * round(_KERNEL_RADIUS * sigma[0]) + 1, 2 * round(_KERNEL_RADIUS * sigma[1]) + 1


def _as_image(picture: Tensor) -> np.ndarray:
    """``c h w -> h w c``; copies only if the memory layout differs."""
    return picture.permute(1, 2, 0).contiguous().numpy()


def _as_planes(image: np.ndarray) -> Tensor:
    """``h w c -> c h w``, sharing memory. OpenCV drops ``c`` if it is 1."""
    return torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)
