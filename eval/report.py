"""Build an HTML report: ``python -m eval.report DIR [DIR ...] --out report.html``.

A DIR is the output of ``eval.benchmark --out`` (with all its tracks and methods) or of ``eval.run --out`` (one method,
named after its folder). The page is one self-contained file that works offline. It holds the table of scores, per-frame
curves, crops of the frames where methods differ most, one scan line over time, and a slider between two methods.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from eval.report_parts.encode import LEAST_QUALITY
from eval.report_parts.load import ScoredTrack, load_tracks
from eval.report_parts.page import html_page
from eval.report_parts.pictures import ClipPictures, chosen_clips, clip_pictures
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.core.files import atomic_path

LARGEST_PAGE = 16_000_000  # bytes; larger pages open slowly on a phone, and many sites refuse the upload
_STEP = 10  # decrement of the quality while the page is too large
log = Console(stderr=True)


def make_report(folders: list[Path], title: str, clips: int, quality: int) -> str:
    """Return the page's text, at most ``LARGEST_PAGE`` bytes.

    Args:
        folders: output folders of eval.benchmark or eval.run.
        title: of the page.
        clips: number of clips shown per track; all have curves.
        quality: of the JPEGs, 1..100; lowered (down to 35) while the page is too large.

    Raises ``UserError`` for folders that cannot be read and for a page that is too large at any quality.
    """
    tracks = load_tracks(folders)
    pictured = {track.name: _pictures(track, clips) for track in tracks}
    for attempt in range(quality, min(quality, LEAST_QUALITY) - 1, -_STEP):
        page = html_page(title, tracks, pictured, attempt)
        if (size := len(page.encode())) <= LARGEST_PAGE:
            if attempt < quality:
                log.print(f"JPEG quality {attempt} instead of {quality}, to stay under {LARGEST_PAGE // 10**6} MB")
            return page
    raise UserError(f"the page would have {size / 1e6:.0f} MB; choose fewer --clips or a lower --quality")


def _pictures(track: ScoredTrack, count: int) -> dict[str, ClipPictures]:
    pictures = {}
    for clip in chosen_clips(track, count):
        log.print(f"{track.name}: {clip}", highlight=False, markup=False)
        pictures[clip] = clip_pictures(clip, track.of_clip(clip))
    return pictures


def _arguments() -> argparse.Namespace:
    parser = ArgumentParser(prog="python -m eval.report", description="One self-contained HTML page of a comparison.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="of eval.benchmark or eval.run")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="default: %(default)s")
    parser.add_argument("--title", default="Evaluation report", help="default: %(default)s")
    parser.add_argument(
        "--clips", type=int, default=3, help="clips pictured a track, those that differ most (default: 3)"
    )
    parser.add_argument("--quality", type=int, default=88, help="of the JPEGs, 1 to 100 (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    args = _arguments()
    if not 1 <= args.quality <= 100:
        raise UserError("--quality must be 1 to 100")
    if args.clips < 0:
        raise UserError("--clips must be 0 or more")
    page = make_report(args.folders, args.title, args.clips, args.quality)
    with atomic_path(args.out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    Console().print(f"{args.out} ({len(page.encode()) / 1e6:.1f} MB)", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_cli(main)
