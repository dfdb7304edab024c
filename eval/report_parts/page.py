"""The HTML page: its sections, ordered as a reviewer would read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.resources import files

import cv2
import numpy as np

from eval import columns
from eval.report_parts.curves import column_titles, track_curves
from eval.report_parts.encode import jpeg_uri, png_uri
from eval.report_parts.load import REFERENCE, ScoredTrack
from eval.report_parts.markup import Html, join, json_script, tag
from eval.report_parts.pictures import MOST_LINES, ClipPictures
from eval.report_parts.score_table import score_table

_PROFILE_HEIGHT = 240  # target height of a temporal profile in CSS pixels
_MAP_WIDTH = 420
_ORANGE, _BLUE = (255, 140, 0), (0, 170, 255)
# Nothing may be fetched: only embedded pictures are shown, and no script can connect anywhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

Pictured = Mapping[str, Mapping[str, ClipPictures]]  # track -> clip -> pictures


def html_page(title: str, tracks: list[ScoredTrack], pictured: Pictured, quality: int) -> str:
    """Return a self-contained document. ``quality``: of its JPEGs, 1..100."""
    shots = [(track, clip) for track, clips in pictured.items() for clip in clips.values()]
    crops = (_crops(track, clip, quality) for track, clip in shots)
    profiles = (_profiles(track, clip) for track, clip in shots)
    stages = (_stage(track, clip, quality) for track, clip in shots)
    sections = [
        _scores(tracks),
        _bar(),
        _curves(),
        _section("crops", "Crops", _crops_rule(shots), *crops, _unpictured()),
        _section("profiles", "One scan line over time", _PROFILE_TEXT, *profiles, _unpictured()),
        _section("compare", "Two at once", _COMPARE_TEXT, _compare_controls(), *stages, _divider(), _unpictured()),
    ]
    style, script = ((files(__package__) / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(style)),
    )
    body = tag("body", _header(title, tracks), *sections, _data(tracks, pictured), tag("script", Html(script)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


_PROFILE_TEXT = (
    "Left to right: one row of the picture. Top to bottom: time, a frame a line. Motion leans; flicker is a horizontal "
    f"stripe that the reference does not have. The row is the one in which the reference changes most from frame to "
    f"frame (mean absolute difference, the first {MOST_LINES} frames), and on it the part that changes most."
)
_COMPARE_TEXT = "The frame in which methods differ most. Drag, or use the arrow keys when the divider has the focus."


def _header(title: str, tracks: list[ScoredTrack]) -> Html:
    clips = {clip for track in tracks for clip in track.clips()}
    counts = ((len(_all_methods(tracks)), "method"), (len(clips), "clip"), (len(tracks), "track"))
    summary = ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for count, what in counts)
    noscript = tag("noscript", tag("p", "The choices, the curves and the slider need this page's own script."))
    return tag(
        "header", tag("h1", title), tag("p", f"{summary}. Everything is in this file; nothing is fetched."), noscript
    )


def _bar() -> Html:
    """Build the sticky bar that selects the track and clip of the sections below it."""
    choices = tag("div", _choice("track", "track"), _choice("clip", "clip"), class_="controls")
    return tag("div", choices, class_="bar", id="bar", hidden=True)


def _scores(tracks: list[ScoredTrack]) -> Html:
    explained = (
        "Means over clips; small, the 95 % bootstrap interval. Green: best of the column as printed. Warp errors (and "
        "the other measures for which the reference itself does not score zero) are won by blur: the best is the one "
        "whose score is nearest to the reference's own, clip by clip; that is the gap."
    )
    everyone = _all_methods(tracks)
    tables = [join(tag("h3", _track_title(track)), score_table(track, columns.BASELINE, everyone)) for track in tracks]
    return _section("scores", "Scores", explained, *tables)


def _all_methods(tracks: list[ScoredTrack]) -> list[str]:
    return list(dict.fromkeys(method for track in tracks for method in track.methods))


def _track_title(track: ScoredTrack) -> str:
    count = len(track.clips())
    return f"{track.name}, {count} {'clip' if count == 1 else 'clips'}"


def _curves() -> Html:
    text = "The chosen metric on each frame. Dashed uprights: the frames that are pictured below."
    chart = tag("div", id="chart")
    controls = tag("div", _choice("metric", "metric"), class_="controls")
    return _section("curves", "Frame by frame", text, controls, chart, tag("div", id="legend", class_="legend"))


def _crops_rule(shots: list[tuple[str, ClipPictures]]) -> str:
    deciding = list(dict.fromkeys(f"{columns.describe(clip.decided_by).title} on {track}" for track, clip in shots
                                  if clip.decided_by))  # fmt: skip
    return (
        "Chosen by rule: the frames with the largest difference between the methods' scores (highest minus lowest; "
        f"{', '.join(deciding) or 'no score is shared by all'}), the second at least a quarter of the clip away; the "
        "box is where the methods' pixels differ most. With a single method: its worst frames, and where it differs "
        "most from the reference."
    )


def _crops(track: str, clip: ClipPictures, quality: int) -> Html:
    parts = [_map(clip, quality)]
    column = columns.describe(clip.decided_by)
    for cropped in clip.cropped:
        top, left, height, width = cropped.box
        known = len(cropped.scores) > 1 and math.isfinite(cropped.difference)
        why = f", {column.title} differs by {column.text(cropped.difference)}" if known else ""
        parts.append(tag("h4", f"Frame {cropped.frame}{why}; {width}x{height} pixels at x {left}, y {top}"))
        shown = []
        for label, crop in _in_order(cropped.crops).items():
            score = cropped.scores.get(label, math.nan)
            note = column.text(score) if math.isfinite(score) else ""
            shown.append(_figure(label, jpeg_uri(crop, quality), crop, pixels=True, note=note))
        parts.append(tag("div", *shown, class_="grid"))
    return _block(track, clip, *parts)


def _map(clip: ClipPictures, quality: int) -> Html:
    """Draw the boxes of the crops and the scan line on a small copy of the reference."""
    picture = clip.whole[REFERENCE]
    scale = min(1.0, _MAP_WIDTH / picture.shape[1])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    ratio = small.shape[1] / clip.size[1]
    for cropped in clip.cropped:
        top, left, height, width = (round(edge * ratio) for edge in cropped.box)
        cv2.rectangle(small, (left, top), (left + width - 1, top + height - 1), _ORANGE, 2)
    row, left, width = (round(edge * ratio) for edge in clip.line)
    cv2.line(small, (left, row), (left + width - 1, row), _BLUE, 2)
    caption = f"{clip.clip}, frame {clip.cropped[0].frame}: orange the crops, blue the scan line"
    return tag("div", _figure(caption, jpeg_uri(small, quality), small), class_="map")


def _profiles(track: str, clip: ClipPictures) -> Html:
    row, left, width = clip.line
    where = tag("p", f"{clip.clip}: row {row}, x {left} to {left + width - 1}.")
    shown = []
    for label, profile in _in_order(clip.profiles).items():
        zoom = max(1, min(16, _PROFILE_HEIGHT // len(profile)))
        style = f"height:{zoom * len(profile)}px"
        shown.append(_figure(label, png_uri(profile), profile, pixels=True, style=style))
    return _block(track, clip, where, tag("div", *shown, class_="grid wide"))


def _compare_controls() -> Html:
    choices = (_choice("left", "left"), _choice("right", "right"))
    return tag("div", *choices, class_="controls", id="compare-controls")


def _stage(track: str, clip: ClipPictures, quality: int) -> Html:
    height, width = clip.whole[REFERENCE].shape[:2]
    images = [
        tag("img", src=jpeg_uri(picture, quality), alt=f"{label}, frame {clip.cropped[0].frame}", data_label=label)
        for label, picture in clip.whole.items()
    ]
    labels = (tag("b", class_="left"), tag("b", class_="right"), tag("div", class_="divider"))
    style = f"aspect-ratio:{width}/{height};--at:50%"
    return tag("div", *images, *labels, class_="stage", style=style, data_track=track, data_clip=clip.clip)


def _divider() -> Html:
    """Build the slider, which the script moves to the visible stage. A range input handles mouse, touch and keys."""
    return tag("input", type="range", id="divide", min=0, max=100, step="0.5", value=50, aria_label="divider")


def _data(tracks: list[ScoredTrack], pictured: Pictured) -> Html:
    leading = {}
    for track in tracks:
        versions = [version.scores for clip in track.clips() for version in track.of_clip(clip).values()]
        leading[track.name] = columns.leading(versions)
    start = max(tracks, key=lambda track: len(track.methods)).name
    frames = {
        track: {name: [c.frame for c in clip.cropped] for name, clip in clips.items()}
        for track, clips in pictured.items()
    }
    content = {
        "methods": _all_methods(tracks),
        "start": start,
        "leading": leading,
        "columns": column_titles(tracks),
        "tracks": {track.name: track_curves(track) for track in tracks},
        "pictured": frames,
    }
    return json_script("data", content)


def _in_order(pictures: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Order pictures as input, methods, reference."""
    ends = ("input", REFERENCE)
    inner = {label: picture for label, picture in pictures.items() if label not in ends}
    first = {label: pictures[label] for label in ("input",) if label in pictures}
    return first | inner | {REFERENCE: pictures[REFERENCE]}


def _figure(
    label: str, uri: str, picture: np.ndarray, pixels: bool = False, style: str | None = None, note: str = ""
) -> Html:
    height, width = picture.shape[:2]
    kind = "pixels" if pixels else None
    image = tag("img", src=uri, alt=label, width=width, height=height, style=style, class_=kind)
    notes = [tag("span", note)] if note else []
    return tag("figure", image, tag("figcaption", *notes, label), data_label=label)


def _block(track: str, clip: ClipPictures, *parts: Html) -> Html:
    return tag("div", *parts, class_="block", data_track=track, data_clip=clip.clip)


def _choice(identity: str, label: str) -> Html:
    return tag("label", label, tag("select", id=identity))


def _section(identity: str, title: str, text: str, *parts: Html) -> Html:
    return tag("section", tag("h2", title), tag("p", text), *parts, id=identity)


def _unpictured() -> Html:
    """Build the note that the script fills in for a clip that only has curves."""
    return tag("p", class_="unpictured", hidden=True)
