"""What the report's tests share: a tiny benchmark in the real layout, and a parser of the page."""

from __future__ import annotations

import csv
import json
import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from eval import report
from eval.clips import ClipPair
from eval.results import write_json
from eval.run import Plan, parse_metrics, score_pairs
from eval.scoring import Tools
from ldm_video.video_io import VideoWriter
from tests.cli_support import call
from tests.once_support import once

SIZE, FRAMES = (64, 80), 4
METHODS = {"bicubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}
SPOILT = {"drift": 2, "flash": 3}  # clip -> the frame in which lanczos is spoilt
METRICS = "psnr,psnr_y,ewarp_lai,temporal_flickering"
VOID = {"img", "input", "meta"}


@dataclass
class Element:
    """An element of a parsed page."""

    name: str
    attributes: dict[str, str | None]
    parent: Element | None = None
    children: list[Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            yield from child.walk()

    def find(self, name: str, **attributes: str) -> list[Element]:
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [e for e in self.walk() if e.name == name and wanted.items() <= e.attributes.items()]

    @property
    def text(self) -> str:
        """Its own text and its ``strong``'s, not that of the small print."""
        return "".join(self.texts + [child.text for child in self.children if child.name == "strong"]).strip()


class Parser(HTMLParser):
    """Builds the tree; an end tag that does not fit is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.top = self.at = Element("", {})
        self.feed(page)
        self.close()
        assert self.at is self.top, f"<{self.at.name}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), self.at)
        self.at.children.append(element)
        if tag not in VOID:
            self.at = element

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.at.name and self.at.parent is not None, f"</{tag}> ends <{self.at.name}>"
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.texts.append(data)


def write_clip(path: Path, frames: np.ndarray) -> None:
    """``t h w 3`` uint8, lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, frames.shape[1:3], None, Fraction(25), codec="ffv1", overwrite=True) as writer:
        for frame in frames:
            writer.write(torch.from_numpy(frame).permute(2, 0, 1).float() / 127.5 - 1)


def make_reference(seed: int) -> np.ndarray:
    """Texture that drifts a little, and a bright ball that crosses it fast; ``t h w 3`` uint8."""
    rng = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(rng.random((SIZE[0], SIZE[1] + 8, 3)), (0, 0), 2)
    texture = ((texture - texture.min()) / np.ptp(texture) * 200).astype(np.uint8)
    clip = np.stack([texture[:, t : t + SIZE[1]] for t in range(FRAMES)])
    for t in range(FRAMES):
        cv2.circle(clip[t], (10 + 18 * t, 40), 6, (255, 255, 255), -1)
    return clip


def make_benchmark(out: Path) -> Path:
    """The layout of eval.benchmark, scored by the real scorer; its track is ``clean``."""
    results = {}
    for seed, (clip, spoilt) in enumerate(SPOILT.items()):
        ref = make_reference(seed)
        small = np.stack([cv2.resize(f, (20, 16), interpolation=cv2.INTER_AREA) for f in ref])
        write_clip(out / "inputs" / "ref" / f"{clip}.mkv", ref)
        write_clip(out / "inputs" / "clean" / "lowres" / f"{clip}.mkv", small)
        for method, kernel in METHODS.items():
            large = np.stack([cv2.resize(f, SIZE[::-1], interpolation=kernel) for f in small])
            if method == "lanczos":
                large[spoilt, 10:30, 20:40] = 255 - large[spoilt, 10:30, 20:40]
            write_clip(out / "outputs" / "clean" / method / f"{clip}.mkv", large)
    for method in METHODS:
        pairs = [
            ClipPair(
                clip,
                out / "outputs" / "clean" / method / f"{clip}.mkv",
                out / "inputs" / "ref" / f"{clip}.mkv",
                lowres=out / "inputs" / "clean" / "lowres" / f"{clip}.mkv",
            )
            for clip in SPOILT
        ]
        plan = Plan(parse_metrics(METRICS), Tools(), out / "scores" / "clean" / method)
        summary, failures = score_pairs(pairs, plan, show=False)
        assert not failures
        results[method] = summary | {"seconds": 0.25 if method == "bicubic" else 0.5, "peak_bytes": 3 * 2**20}
    write_json(out / "results.json", {"clean": results})
    return out


def summary_of(bench: Path, method: str) -> dict[str, Any]:
    return json.loads((bench / "scores" / "clean" / method / "summary.json").read_text())


def picture(uri: str | None) -> np.ndarray:
    """``data:`` address -> ``h w 3`` uint8 RGB."""
    head, _, data = (uri or "").partition(",")
    assert re.fullmatch(r"data:image/(png|jpeg);base64", head)
    decoded = cv2.imdecode(np.frombuffer(b64decode(data, validate=True), np.uint8), cv2.IMREAD_COLOR)
    return decoded[..., ::-1]


def frames_csv(bench: Path, method: str, clip: str, column: str) -> list[float]:
    with (bench / "scores" / "clean" / method / "frames" / f"{clip}.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file)]


@once
def one_benchmark(factory: pytest.TempPathFactory) -> Path:
    """Made once, for all to read."""
    return make_benchmark(factory.mktemp("report") / "bench")


@once
def one_page(factory: pytest.TempPathFactory) -> str:
    """The report of :func:`one_benchmark`, made once."""
    bench = one_benchmark(factory)
    out = bench.parent / "report.html"
    assert call(report, bench, "--out", out) == 0
    return out.read_text(encoding="utf-8")
