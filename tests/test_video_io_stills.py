"""Pictures that are not one plain picture: several in a file, and transparent ones."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from ldm_video.core.errors import UserError
from ldm_video.video_io import FrameReader, probe, read_mask
from tests.video_io_support import texture, write_clip

SIZE = (40, 56)
PICTURES = [(texture(*SIZE, seed=seed) * 255).astype(np.uint8) for seed in range(6)]


def write_animation(path: Path, pictures: list[np.ndarray]) -> Path:
    animation = cv2.Animation()
    animation.frames, animation.durations = pictures, [80] * len(pictures)
    assert cv2.imwriteanimation(str(path), animation)
    return path


def write_several(path: Path) -> Path:
    if path.suffix == ".tif":
        assert cv2.imwritemulti(str(path), PICTURES)
        return path
    return write_animation(path, PICTURES)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "\udcff.png"])  # bytes that are not UTF-8
def test_an_animated_png_is_a_video(tmp_path: Path, name: str) -> None:
    path = write_animation(tmp_path / "in.png", PICTURES).rename(tmp_path / name)
    with FrameReader(path) as reader:
        frames = list(reader)
    assert (reader.info.kind, reader.info.size, reader.info.rate) == ("video", SIZE, Fraction(25, 2))
    assert [frame.pts_seconds for frame in frames] == [i * Fraction(2, 25) for i in range(len(PICTURES))]
    for frame, want in zip(frames, PICTURES, strict=True):
        got = ((frame.pixels + 1) * 127.5).round().permute(1, 2, 0).flip(-1).numpy()
        assert np.array_equal(got, want)


def test_an_animation_of_one_picture_is_a_picture(tmp_path: Path) -> None:
    assert probe(write_animation(tmp_path / "a.png", PICTURES[:1])).kind == "image"


@pytest.mark.parametrize("suffix", [".webp", ".tif"])
def test_several_pictures_that_cannot_be_read_as_a_video(tmp_path: Path, suffix: str) -> None:
    path = write_several(tmp_path / f"a{suffix}")
    for read in (probe, FrameReader, lambda path: read_mask(path, None, SIZE, len(PICTURES))):
        with pytest.raises(UserError, match=f"a{suffix} holds several pictures; save each in a file of its own"):
            read(path)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_several_pictures_in_a_folder_of_frames(tmp_path: Path, suffix: str) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), PICTURES[0])
    write_several(tmp_path / f"1{suffix}")
    with pytest.raises(UserError, match=f"1{suffix} holds several pictures"), FrameReader(tmp_path) as reader:
        list(reader)


def test_a_thumbnail_is_no_second_picture(tmp_path: Path) -> None:
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), [PICTURES[0], PICTURES[0][::4, ::4]])
    assert (probe(tmp_path / "a.tif").kind, probe(tmp_path / "a.tif").size) == ("image", SIZE)


def test_an_animated_mask_moves(tmp_path: Path) -> None:
    holes = [np.zeros((*SIZE, 3), np.uint8) for _ in PICTURES]
    for i, hole in enumerate(holes):
        hole[:, 5 * i : 5 * i + 5] = 255
    with read_mask(write_animation(tmp_path / "m.png", holes), None, SIZE, len(holes)) as mask:
        for i, hole in enumerate(holes):
            assert np.array_equal(mask.at(i)[0].numpy(), hole[..., 0] / 255)
        mask.finish(len(holes))


def hole() -> np.ndarray:
    """``h w`` bool."""
    mask = np.zeros(SIZE, bool)
    mask[8:20, 10:33] = True
    return mask


def white_layer(deep: bool = False) -> np.ndarray:
    """``h w 4``: white everywhere, and transparent outside of the hole."""
    layer = np.full((*SIZE, 4), 255, np.uint8)
    layer[..., 3] = 255 * hole()
    return layer.astype(np.uint16) * 257 if deep else layer


def png(header: bytes, rows: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """By the specification (ISO/IEC 15948): ``header`` is depth, colour type and three zeros; ``rows`` are ``h n``."""
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [(b"IHDR", struct.pack(">II", SIZE[1], SIZE[0]) + header), *chunks, (b"IDAT", zlib.compress(lines))]
    packed = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in [*parts, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def grey_with_alpha() -> bytes:
    pairs = np.stack([np.full(SIZE, 255, np.uint8), 255 * hole().astype(np.uint8)], -1)
    return png(bytes([8, 4, 0, 0, 0]), pairs.reshape(SIZE[0], -1))


def palette_with_transparency() -> bytes:
    return png(bytes([8, 3, 0, 0, 0]), hole().astype(np.uint8), (b"PLTE", b"\xff" * 6), (b"tRNS", b"\0\xff"))


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "grey", "palette", "webp", "video"])
def test_what_is_transparent_is_kept(tmp_path: Path, kind: str) -> None:
    """The colour under it is white too, as a painting program leaves it."""
    path = tmp_path / {"webp": "m.webp", "video": "m.mov"}.get(kind, "m.png")
    if kind == "video":
        write_clip(path, [av.VideoFrame.from_ndarray(white_layer(), "rgba").reformat(format="argb")] * 3, codec="qtrle")
    elif kind in ("grey", "palette"):
        path.write_bytes(grey_with_alpha() if kind == "grey" else palette_with_transparency())
    else:
        layer = white_layer(deep=kind == "16 bits")
        if kind == "webp":  # its encoder leaves no colour under what nobody sees at all
            layer[..., 3] = layer[..., 3].clip(1)
        cv2.imwrite(str(path), layer, [cv2.IMWRITE_WEBP_QUALITY, 101])
    with read_mask(path, None, SIZE, 3) as mask:
        assert np.array_equal(mask.at(2)[0].numpy(), hole())


TURNED = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose, 6: lambda a: np.rot90(a, -1)}
"""By the EXIF orientation (CIPA DC-008 4.6.5): how the stored picture is shown."""


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "square", "webp"])
@pytest.mark.parametrize("orientation", TURNED)
def test_transparency_is_turned_as_the_colours_are(tmp_path: Path, orientation: int, kind: str) -> None:
    layer = white_layer(deep=kind == "16 bits")[:, : SIZE[0] if kind == "square" else SIZE[1]]
    path, exif = tmp_path / "m.png", struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x112, 3, 1, orientation, 0, 0)
    if kind == "webp":
        path, layer[..., 3] = tmp_path / "m.webp", layer[..., 3].clip(1)
    metadata = [np.frombuffer(exif, np.uint8)]
    written, data = cv2.imencodeWithMetadata(path.suffix, layer, [cv2.IMAGE_METADATA_EXIF], metadata)
    assert written
    path.write_bytes(data.tobytes())
    want = TURNED[orientation](hole()[:, : layer.shape[1]])
    with read_mask(path, None, want.shape, 3) as mask:
        assert np.array_equal(mask.at(0)[0].numpy(), want)


@pytest.mark.parametrize("kind", ["picture", "video"])
@pytest.mark.parametrize(("alpha", "filled"), [(64, 0), (127, 0), (128, 1)])
def test_a_soft_brush_fills_from_half_on(tmp_path: Path, alpha: int, filled: int, kind: str) -> None:
    layer = white_layer()
    layer[..., 3] = alpha
    if kind == "video":
        path = tmp_path / "m.mov"
        write_clip(path, [av.VideoFrame.from_ndarray(layer, "rgba").reformat(format="argb")] * 3, codec="qtrle")
    else:
        path = tmp_path / "m.png"
        cv2.imwrite(str(path), layer)
    with read_mask(path, None, SIZE, 3) as mask:
        assert mask.at(0).unique().tolist() == [filled]


def test_the_clip_itself_loses_its_transparency(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), white_layer())
    with FrameReader(tmp_path / "a.png") as reader:
        assert next(reader).pixels.min() == 1
