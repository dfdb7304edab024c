"""The table of a track: a reference row, then every method; the best value of a column is marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.columns import GAP, REFERENCE, Column, best, ordered
from eval.report_parts.load import ScoredMethod, ScoredTrack
from eval.report_parts.markup import Html, join, tag

_MEBIBYTE = 2**20


def score_table(track: ScoredTrack, baseline: str, everyone: Sequence[str] = ()) -> Html:
    """Build the score tables of a track, with notes. ``everyone``: methods of all tracks, to list the absent ones.

    Whole-frame and region scores are separate tables, so that either fits a small screen.
    """
    names = [name for method in track.methods.values() for name in method.summary["scores"]]
    absent = _unavailable(track)
    known = {column.metric for column in ordered(names)}
    columns = ordered([*names, *(name for name in absent if name not in known)])
    regions = {"": [c for c in columns if "@" not in c.name]}
    for region in ("inside", "band", "outside"):
        regions[region] = [c for c in columns if c.name.endswith(f"@{region}")]
    parts = [_table(track, regions[""], baseline, with_costs=True)]
    if regions["inside"]:
        parts.append(tag("h4", "Inside the hole"))
        parts.append(_table(track, regions["inside"], baseline))
    for region, title in (("band", "Around the hole"), ("outside", "Outside the hole")):
        if regions[region]:
            inner = _table(track, regions[region], baseline)
            parts.append(tag("details", tag("summary", title), inner))
    return join(*parts, _notes(track, absent, baseline, everyone))


def _table(track: ScoredTrack, columns: list[Column], baseline: str, with_costs: bool = False) -> Html:
    methods = track.methods
    scores = {
        column.name: {name: m.summary["scores"][column.name] for name, m in methods.items() if _has(m, column.name)}
        for column in columns
    }
    costs = _cost_heads(methods, baseline) if with_costs else []
    head = [tag("th", "method", scope="col")]
    for column in columns:
        head.append(tag("th", column.title + column.arrow, *_unit(column), scope="col"))
        if column.better == "nearer":
            head.append(tag("th", GAP, *_unit(column), scope="col"))
    head += [tag("th", title, scope="col") for title in costs]
    rows = [_reference_row(methods, columns, len(costs))]
    for name, method in methods.items():
        cells = [tag("th", name, scope="row")]
        for column in columns:
            cells += _cells(method, column, name in best(column, scores[column.name]))
        cells += [tag("td", text) for text in _costs(method, methods.get(baseline), costs)]
        rows.append(tag("tr", *cells, data_method=name, class_="baseline" if name == baseline else None))
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows), data_track=track.name)
    return tag("div", table, class_="scroll", tabindex=0)


def _cells(method: ScoredMethod, column: Column, is_best: bool) -> list[Html]:
    score = method.summary["scores"].get(column.name)
    pair = column.better == "nearer"
    if score is None:
        reason = method.summary["unavailable"].get(column.metric, "not measured for this method")
        return [tag("td", "-", title=reason, class_="missing")] * (2 if pair else 1)
    mean = _marked("td", column.text(score["mean"]), is_best and not pair, *_interval(column, score), column=column)
    if not pair:
        return [mean]
    gap = score.get("gap")
    if gap is None:
        return [mean, tag("td", "-", title="the reference has no score of its own here", class_="missing")]
    return [mean, _marked("td", column.text(gap), is_best, column=column, gap=True)]


def _marked(name: str, text: str, is_best: bool, *more: Html, column: Column, gap: bool = False) -> Html:
    inner = tag("strong", text, title="best of the column") if is_best else text
    column_name = f"{column.name}:gap" if gap else column.name
    return tag(name, inner, *more, data_column=column_name, class_="best" if is_best else None)


def _interval(column: Column, score: Mapping[str, Any]) -> list[Html]:
    if score.get("interval") is None:
        return []
    low, high = (column.text(bound) for bound in score["interval"])
    return [tag("small", f"{low} … {high}", title=f"95 % bootstrap interval over {score['clips']} clips")]


def _reference_row(methods: Mapping[str, ScoredMethod], columns: list[Column], costs: int) -> Html:
    cells = [tag("th", "reference", scope="row")]
    for column in columns:
        name = f"{column.name}{REFERENCE}"
        own = next((m.summary["scores"][name]["mean"] for m in methods.values() if _has(m, name)), None)
        if own is not None:
            cells.append(tag("td", column.text(own), data_column=name))
        else:
            cells.append(tag("td", column.perfect))
        if column.better == "nearer":
            cells.append(tag("td", column.text(0.0)))
    return tag("tr", *cells, *[tag("td", "-")] * costs, class_="reference")


def _cost_heads(methods: Mapping[str, ScoredMethod], baseline: str) -> list[str]:
    heads = []
    if any(method.seconds is not None for method in methods.values()):
        heads += ["s / frame", f"time / {baseline}"] if baseline in methods else ["s / frame"]
    if any(method.peak_bytes for method in methods.values()):
        heads.append("peak memory, MiB")
    return heads


def _costs(method: ScoredMethod, baseline: ScoredMethod | None, heads: list[str]) -> list[str]:
    texts = []
    for head in heads:
        seconds, peak = method.seconds, method.peak_bytes
        if head == "s / frame":
            texts.append("-" if seconds is None else f"{seconds:.3g}")
        elif head.startswith("time"):
            time_ratio = seconds / baseline.seconds if seconds and baseline and baseline.seconds else None
            texts.append("-" if time_ratio is None else f"{time_ratio:.1f}")
        else:
            texts.append(f"{peak / _MEBIBYTE:.0f}" if peak else "-")
    return texts


def _unavailable(track: ScoredTrack) -> dict[str, str]:
    return {name: why for method in track.methods.values() for name, why in method.summary["unavailable"].items()}


def _notes(track: ScoredTrack, absent: Mapping[str, str], baseline: str, everyone: Sequence[str]) -> Html:
    lines = [f"{name} is not available: {why}" for name, why in absent.items()]
    lines += [f"{m.name} failed on: {why}" for m in track.methods.values() for why in m.summary.get("failed", [])]
    lines += [f"{name} was not run on this track." for name in everyone if name not in track.methods]
    if baseline not in {*track.methods, *everyone}:
        lines.append(f"There is no {baseline} among these folders to compare with; eval.benchmark always runs it.")
    clips = len(track.clips())
    lines += [
        f"{name} was scored on {len(method.clips)} of {clips} clips: its means are not comparable."
        for name, method in track.methods.items()
        if len(method.clips) < clips
    ]
    return tag("ul", *(tag("li", line) for line in lines), class_="notes") if lines else Html()


def _unit(column: Column) -> list[Html]:
    return [tag("small", column.unit)] if column.unit else []


def _has(method: ScoredMethod, column: str) -> bool:
    return column in method.summary["scores"]
