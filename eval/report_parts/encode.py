"""Pictures as text: ``data:`` addresses that a page carries in itself."""

from __future__ import annotations

from base64 import b64encode

import cv2
import numpy as np

LEAST_QUALITY = 35


def png_uri(picture: np.ndarray) -> str:
    """``h w 3`` uint8 RGB, lossless."""
    return _uri(picture, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 9])


def jpeg_uri(picture: np.ndarray, quality: int) -> str:
    """``h w 3`` uint8 RGB; ``quality`` 1..100. Colour is kept at full resolution: a crop is looked at closely."""
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return _uri(picture, ".jpeg", [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1, *sampling])


def _uri(picture: np.ndarray, suffix: str, options: list[int]) -> str:
    done, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"OpenCV cannot encode a picture of shape {picture.shape}")
    return f"data:image/{suffix[1:]};base64,{b64encode(data.tobytes()).decode('ascii')}"
