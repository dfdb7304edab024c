"""Pictures as ``data:`` URIs, embedded in the page."""

from __future__ import annotations

from base64 import b64encode

import cv2
import numpy as np

LEAST_QUALITY = 35


def png_uri(picture: np.ndarray) -> str:
    """Encode ``h w 3`` uint8 RGB losslessly."""
    return _uri(picture, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 9])


def jpeg_uri(picture: np.ndarray, quality: int) -> str:
    """Encode ``h w 3`` uint8 RGB with ``quality`` 1..100. No chroma subsampling: crops are inspected closely."""
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return _uri(picture, ".jpeg", [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1, *sampling])


def _uri(picture: np.ndarray, suffix: str, options: list[int]) -> str:
    done, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"OpenCV cannot encode a picture of shape {picture.shape}")
    return f"data:image/{suffix[1:]};base64,{b64encode(data.tobytes()).decode('ascii')}"
