"""Silence library logs about problems that are reported as errors, or corrected, here; and progress bars."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Silence a library's logger and progress bars (``diffusers``, ``transformers``), then restore their state."""
    logger, bars = logging.getLogger(library), importlib.import_module(f"{library}.utils.logging")
    level, shown, hub_hides = logger.level, bars.is_progress_bar_enabled(), are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    if shown:
        bars.disable_progress_bar()  # transformers' switch is the hub's as well
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            bars.enable_progress_bar()
            if hub_hides:
                disable_progress_bars()
