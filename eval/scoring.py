"""Metrics and how a clip is scored: frame by frame, with memory independent of its length.

A metric is named ``psnr_y``, or ``dists/8`` to compute it on every eighth frame only. Its columns are

* ``name`` for the whole frame; ``name@inside``, ``name@band`` and ``name@outside`` if there is a mask;
* ``name[dis]``: the flow estimator is part of the name;
* ``name:ref``: the reference's score against itself, for metrics whose best value is not known in advance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from eval.clips import ClipPair, zip_frames
from eval.metrics import consistency, fidelity, flow, perceptual, temporal
from eval.metrics.backbones import MetricUnavailable, dists_network, lpips_network
from eval.metrics.seams import SeamBorders, SeamMeter
from eval.regions import regions
from ldm_video.core.device import find_device
from ldm_video.core.errors import UserError

Scores = dict[str, float]


@dataclass(frozen=True)
class Tools:
    """What the metrics need apart from frames. Picklable: networks are loaded (once) where they are used."""

    raft: str | None = None
    device: str = "cpu"
    seams: SeamBorders | None = None

    def __post_init__(self) -> None:
        find_device(self.device)  # before anything is read: an unusable device is a ``UserError``
        if self.raft is not None and not Path(self.raft).is_file():
            raise UserError(
                f"--raft: there is no file {self.raft}; give torchvision's RAFT weights, or leave --raft out for DIS"
            )

    def flow(self) -> flow.FlowEstimator:
        """Return RAFT if its weights are given, else OpenCV's DIS."""
        return flow.RaftFlow(self.raft, self.device) if self.raft else flow.DisFlow()


@dataclass
class Moment:
    """The data of one frame; values shared by several metrics are computed once. ``previous``: one frame back.

    Frames are ``h w 3`` float32 in [0, 1]; ``mask``: ``h w``, 1 = hole.
    """

    pred: np.ndarray
    ref: np.ndarray
    tools: Tools
    mask: np.ndarray | None = None
    lowres: np.ndarray | None = None
    previous: Moment | None = None
    features: dict[str, tuple[perceptual.LpipsFeatures, perceptual.LpipsFeatures]] = field(default_factory=dict)

    @cached_property
    def regions(self) -> dict[str, np.ndarray | None]:
        """Column suffix -> map: the whole frame (None), and the three regions if there is a mask."""
        found: dict[str, np.ndarray | None] = {"": None}
        if self.mask is not None:
            found.update({f"@{name}": where for name, where in regions(self.mask).items()})
        return found

    @cached_property
    def luma(self) -> tuple[np.ndarray, np.ndarray]:
        """BT.601 luma of (pred, ref), each ``h w``, computed once."""
        return fidelity.luma(self.pred), fidelity.luma(self.ref)

    def lpips(self, net: str) -> tuple[perceptual.LpipsFeatures, perceptual.LpipsFeatures]:
        """Return the LPIPS features of (pred, ref), computed once for all metrics that compare them."""
        if net not in self.features:
            device = self.tools.device
            made = [perceptual.lpips_features(frame, net, device) for frame in (self.pred, self.ref)]
            self.features[net] = (made[0], made[1])
        return self.features[net]

    @cached_property
    def estimator(self) -> flow.FlowEstimator:
        """Flow estimator of the warp errors."""
        return self.tools.flow()

    @cached_property
    def backward_matches(self) -> tuple[np.ndarray, np.ndarray]:
        """(flow from the previous reference frame to this one, its valid pixels).

        Raises ``ValueError`` for the first frame.
        """
        if self.previous is None:
            raise ValueError("the first frame has no match")
        before, now = self.previous.ref, self.ref
        forward = self.estimator(before, now)
        return forward, flow.valid_pixels(forward, self.estimator(now, before))


Metric = Callable[[Moment], Scores]


def _regional(name: str, score: Callable[..., float], of: Callable[[Moment], tuple[Any, Any]]) -> Metric:
    """Return the metric ``score(pred, ref, region=...)`` for every region; ``of`` extracts the pair to compare."""

    def metric(m: Moment) -> Scores:
        pred, ref = of(m)
        return {f"{name}{at}": score(pred, ref, region=where) for at, where in m.regions.items()}

    return metric


def _rgb(m: Moment) -> tuple[np.ndarray, np.ndarray]:
    return m.pred, m.ref


def _luma(m: Moment) -> tuple[np.ndarray, np.ndarray]:
    return m.luma


def _lpips(name: str, net: str) -> Metric:
    return _regional(name, partial(perceptual.lpips_between, net=net), lambda m: m.lpips(net))


def _dists(m: Moment) -> Scores:
    return {f"dists{at}": perceptual.dists(m.pred, m.ref, m.tools.device, where) for at, where in m.regions.items()}


def _ewarp_lai(m: Moment) -> Scores:
    if m.previous is None:
        return {}
    forward, valid = m.backward_matches
    scores: Scores = {}
    for at, where in m.previous.regions.items():
        name = f"ewarp_lai[{m.estimator.name}]{at}"
        scores[name] = temporal.ewarp_lai_pair(m.previous.pred, m.pred, forward, valid, where)
        scores[f"{name}:ref"] = temporal.ewarp_lai_pair(m.previous.ref, m.ref, forward, valid, where)
    return scores


def _ewarp_evalcrafter(m: Moment) -> Scores:
    if m.previous is None:
        return {}
    pred = temporal.ewarp_evalcrafter_match(m.previous.pred, m.pred, m.estimator)
    ref = temporal.ewarp_evalcrafter_match(m.previous.ref, m.ref, m.estimator)
    scores: Scores = {}
    for at, where in m.previous.regions.items():
        name = f"ewarp_evalcrafter[{m.estimator.name}]{at}"
        scores[name] = temporal.ewarp_evalcrafter_pair(pred, where)
        scores[f"{name}:ref"] = temporal.ewarp_evalcrafter_pair(ref, where)
    return scores


def _tof(m: Moment) -> Scores:
    if m.previous is None:
        return {}
    estimator = flow.FarnebackFlow()
    reference = estimator(m.previous.ref, m.ref)
    pred = (m.previous.pred, m.pred)
    return {
        f"tof[farneback]{at}": temporal.tof_pair(*pred, reference, estimator, where)
        for at, where in m.previous.regions.items()
    }


def _tlpips(m: Moment) -> Scores:
    if m.previous is None:
        return {}
    (pred, ref), (pred_before, ref_before) = m.lpips("alex"), m.previous.lpips("alex")
    pairs = (pred_before, pred), (ref_before, ref)
    return {f"tlpips{at}": temporal.tlpips_pair(*pairs, "alex", where) for at, where in m.previous.regions.items()}


def _temporal_flickering(m: Moment) -> Scores:
    if m.previous is None:
        return {}
    scores: Scores = {}
    for at, where in m.previous.regions.items():
        name = f"temporal_flickering{at}"
        scores[name] = temporal.temporal_flickering_pair(m.previous.pred, m.pred, where)
        scores[f"{name}:ref"] = temporal.temporal_flickering_pair(m.previous.ref, m.ref, where)
    return scores


def _lowres_consistency(m: Moment) -> Scores:
    if m.lowres is None:
        return {}
    return {
        "lowres_consistency": consistency.lowres_consistency(m.pred, m.lowres, m.mask),
        "lowres_consistency:ref": consistency.lowres_consistency(m.ref, m.lowres, m.mask),
    }


LOWRES_CONSISTENCY = "lowres_consistency"  # needs the low-res clip
METRICS: dict[str, Metric] = {
    "psnr": _regional("psnr", fidelity.psnr, _rgb),
    "psnr_y": _regional("psnr_y", fidelity.psnr, _luma),
    "ssim": _regional("ssim", fidelity.ssim, _rgb),
    "ssim_y": _regional("ssim_y", fidelity.ssim, _luma),
    "ssim_window65": _regional("ssim_window65", fidelity.ssim_window65, _rgb),
    "lpips": _lpips("lpips", "alex"),
    "lpips_vgg": _lpips("lpips_vgg", "vgg"),
    "dists": _dists,
    "ewarp_lai": _ewarp_lai,
    "ewarp_evalcrafter": _ewarp_evalcrafter,
    "tof": _tof,
    "tlpips": _tlpips,
    "temporal_flickering": _temporal_flickering,
    LOWRES_CONSISTENCY: _lowres_consistency,
}
LEAST_SIDE = {
    "ssim": 11, "ssim_y": 11, "ssim_window65": 65,  # window size
    "lpips": 31, "tlpips": 31, "lpips_vgg": 16,  # so that the network's strides leave a pixel
    "ewarp_lai": 16, "ewarp_evalcrafter": 32,  # OpenCV's dense inverse search fails or crashes below this
}  # fmt: skip
"""Minimum length in pixels of a frame's shorter side, for metrics that need more than one pixel."""
MOTION_METRICS = ("ewarp_lai", "ewarp_evalcrafter", "tof", "tlpips", "temporal_flickering")  # of two consecutive frames
SEAM_ERROR = "seam_error"  # per clip, not per frame: compares borders with everywhere else
METRIC_NAMES = (*METRICS, SEAM_ERROR)
DEFAULT_METRICS = ("psnr", "psnr_y", "ssim_y", "lpips", "dists", "ewarp_lai", "tof", "tlpips", "lowres_consistency")


@dataclass(frozen=True)
class MetricChoice:
    """A metric and how often to compute it: on frames 0, ``every``, 2 ``every``, …"""

    name: str
    every: int = 1

    @classmethod
    def parse(cls, text: str) -> MetricChoice:
        """Parse ``"lpips"`` or ``"dists/8"``. ``ValueError`` for an unknown name lists the metrics."""
        name, _, every = text.strip().partition("/")
        if name not in METRIC_NAMES:
            raise ValueError(f"unknown metric {name!r}; there are {', '.join(METRIC_NAMES)}")
        if every and not (every.isdigit() and int(every) > 0):
            raise ValueError(f"{text!r}: after the slash comes a whole number of frames, as in dists/8")
        return cls(name, int(every or 1))

    def __str__(self) -> str:
        return self.name if self.every == 1 else f"{self.name}/{self.every}"


_NETWORKS: Mapping[str, Callable[[Tools], object]] = {
    "lpips": lambda tools: lpips_network("alex", device=tools.device),
    "tlpips": lambda tools: lpips_network("alex", device=tools.device),
    "lpips_vgg": lambda tools: lpips_network("vgg", device=tools.device),
    "dists": lambda tools: dists_network(device=tools.device),
    "ewarp_lai": Tools.flow,
    "ewarp_evalcrafter": Tools.flow,
}


def without_weights(metrics: Iterable[MetricChoice], tools: Tools) -> dict[str, str]:
    """Return the metrics whose networks cannot be loaded here, and why."""
    missing = {}
    for name in {choice.name: None for choice in metrics if choice.name in _NETWORKS}:
        try:
            _NETWORKS[name](tools)
        except MetricUnavailable as error:
            missing[name] = str(error)
    return missing


@dataclass
class ClipScores:
    """Scores of a clip. ``rows``: one mapping per frame, column -> value; ``whole``: per-clip scores.

    ``unavailable``: metric -> why it was not computed.
    """

    rows: list[Scores] = field(default_factory=list)
    whole: Scores = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    def means(self) -> Scores:
        """Return column -> mean over the frames that have a value (a frame without a hole has no ``@inside``)."""
        columns = {column: None for row in self.rows for column in row}
        means: Scores = {}
        for column in columns:
            values = [row[column] for row in self.rows if not math.isnan(row.get(column, math.nan))]
            if values:
                means[column] = float(np.mean(values))
        return means | self.whole


def moments(pair: ClipPair, tools: Tools) -> Iterator[Moment]:
    """Yield the clip's frames as :class:`Moment`, each linked to the previous one only."""
    previous: Moment | None = None
    for frames in zip_frames(pair):
        mask, lowres = frames.get("mask"), frames.get("lowres")
        moment = Moment(frames["pred"], frames["ref"], tools, mask, lowres, previous)
        yield moment
        moment.previous = None
        previous = moment


def check_size(metric: str, frame: np.ndarray) -> None:
    """Raise ``MetricUnavailable`` if the frame ``h w c`` is too small for the metric."""
    height, width = frame.shape[:2]
    least = LEAST_SIDE.get(metric, 1)
    if min(height, width) < least:
        raise MetricUnavailable(f"frames of {width}x{height} are too small; it takes {least} pixels a side or more")


def score_clip(
    pair: ClipPair, metrics: tuple[MetricChoice, ...], tools: Tools, tick: Callable[[], None] = lambda: None
) -> ClipScores:
    """Score one clip; ``tick`` is called after each frame.

    A metric without its weights, or for which the frames are too small, is left out and noted in ``unavailable``.
    Raises ``UserError`` for unreadable or mismatched inputs.
    """
    result = ClipScores()
    borders = tools.seams if any(choice.name == SEAM_ERROR for choice in metrics) else None
    meter = SeamMeter(borders) if borders is not None else None
    for index, moment in enumerate(moments(pair, tools)):
        row: Scores = {}
        for choice in metrics:
            if choice.name == SEAM_ERROR or index % choice.every or choice.name in result.unavailable:
                continue
            try:
                check_size(choice.name, moment.ref)
                row.update(METRICS[choice.name](moment))
            except MetricUnavailable as error:
                result.unavailable[choice.name] = str(error)
        if meter is not None:
            meter.add(moment.pred - moment.ref)
        result.rows.append(row)
        tick()
    if len(result.rows) == 1:
        undefined = [choice.name for choice in metrics if choice.name in MOTION_METRICS]
        result.unavailable = dict.fromkeys(undefined, f"{pair.name} has one frame, nothing moves") | result.unavailable
    if meter is not None:
        result.whole.update({f"{SEAM_ERROR}:{axis}": ratio for axis, ratio in meter.ratios().items()})
    return result
