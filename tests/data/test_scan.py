"""Does a scan find everything that is wrong with shards, and leave them as they are?"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.alike import alike, look
from ldm.data.scan import Scan, scan
from ldm.data.scan_samples import digest
from ldm.data.settings import DataConfig, TrainSource


def config_of(*shards: Path, **changes: object) -> DataConfig:
    source = TrainSource(shards=[str(shard) for shard in shards])
    return DataConfig(train=source, **{"size": 8, **changes})  # type: ignore[arg-type]


def scanned(*shards: Path, full: bool = True, **changes: object) -> Scan:
    return scan([str(s) for s in shards], config_of(*shards, **changes), full=full, threads=2)


def jpeg(seed: int, side: int = 64, quality: int = 90) -> bytes:
    """A smooth picture, as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    smooth = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    smooth.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_a_clean_set_has_nothing_to_report(three_shards: list[str]) -> None:
    found = scanned(*map(Path, three_shards))
    assert [shard.samples for shard in found.shards] == [11, 7, 19]
    assert [shard.usable for shard in found.shards] == [11, 7, 19]
    assert not any(shard.problem or shard.fatal or shard.indexed for shard in found.shards)
    assert found.usable == 37
    assert found.bad == ()
    assert sum(found.captions.values()) == 37
    assert found.captions["caption a3"] == 1
    assert found.sizes.tolist() == [[12, 12]] * 37
    assert found.same_key.samples == 0
    # the fixture draws the same pictures in each shard: 11 + 7 + 19 of 19 different ones
    assert found.same_bytes.samples == 37 - 19
    assert len(found.same_bytes.groups[0]) == 3
    again = scanned(*map(Path, three_shards))
    assert all(shard.indexed for shard in again.shards)


def test_every_kind_of_fault_has_its_reason(
    tmp_path: Path, write_shard: Callable[..., Path], png: Callable[..., bytes]
) -> None:
    faults = {
        1: {"png": png(1)[:60]},
        2: {"png": b"no picture"},
        3: {"txt": b"   "},
        4: {"txt": b"\xff\xfe\xfd"},
        5: {"txt": b""},  # the member is not written at all
        6: {"png": b""},
        7: {"png": png(7, width=40, height=40)},
    }
    shard = write_shard(tmp_path / "a.tar", 10, extra=lambda n: faults.get(n, {}))
    before = hashlib.sha256(shard.read_bytes()).hexdigest()
    found = scanned(shard, max_pixels=1000)
    assert hashlib.sha256(shard.read_bytes()).hexdigest() == before
    assert {bad.key[-1]: bad.reason.split(":")[0] for bad in found.bad} == {
        "1": "the image cannot be decoded",
        "2": "the image cannot be decoded",
        "3": "the caption is empty",
        "4": "the .txt member is not UTF-8",
        "5": "no caption (.txt)",
        "6": "no picture (.jpg or .jpeg or .png or .webp)",
        "7": "the image is 40x40, above max_pixels=1000",
    }
    assert found.usable == 3
    assert sum(found.reasons.values()) == 7
    assert len(found.sizes) == 3


_SAID = ("cut off", "is empty", "none of its 1", "gone.tar")


def test_broken_shards_do_not_hide_each_other(
    tmp_path: Path, write_shard: Callable[..., Path], write_tar: Callable[..., Path]
) -> None:
    """Training would stop at the first; all are named."""
    good = write_shard(tmp_path / "good.tar", 6)
    whole = write_shard(tmp_path / "whole.tar", 6, prefix="c").read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: len(whole) // 2])
    empty = tmp_path / "empty.tar"
    empty.write_bytes(b"")
    textless = write_tar(tmp_path / "textless.tar", [("x.png", jpeg(0))])
    gone = tmp_path / "gone.tar"
    found = scanned(good, cut, empty, textless, gone)
    assert [shard.fatal for shard in found.shards] == [False, False, True, True, True]
    problems = [shard.problem for shard in found.shards]
    assert problems[0] == ""
    for part, problem in zip(_SAID, problems[1:], strict=True):
        assert part in problem
    assert 0 < found.shards[1].usable < 6
    assert found.usable == 6 + found.shards[1].usable


def test_copies_are_found_by_key_by_bytes_and_by_look(
    tmp_path: Path, write_shard: Callable[..., Path]
) -> None:
    """Sample 2 is the bytes of 1; 3 is 1 at another size and quality; the rest differ."""
    pictures = [jpeg(0), jpeg(1), jpeg(1), jpeg(1, side=96, quality=60), *map(jpeg, range(4, 20))]
    one = write_shard(tmp_path / "a.tar", 20, extra=lambda n: {"png": b"", "jpg": pictures[n]})
    other = write_shard(tmp_path / "b.tar", 2, extra=lambda n: {"png": b"", "jpg": jpeg(100 + n)})
    found = scanned(one, other)
    assert found.same_bytes.samples == 1
    assert found.same_bytes.groups == (((str(one), "s001"), (str(one), "s002")),)
    assert found.alike.groups == (((str(one), "s001"), (str(one), "s003")),)
    assert found.same_key.samples == 2
    assert found.same_key.groups[0] == ((str(one), "s000"), (str(other), "s000"))


def test_flat_pictures_are_not_alike() -> None:
    flat = [Image.new("RGB", (32, 32), colour) for colour in ("white", "red")]
    assert [look(image) for image in flat] == [(0, 0), (0, 0)]
    assert alike(np.zeros((5, 2), dtype=np.uint64)) == []
    assert digest(b"") != 0


def test_a_drawing_in_another_colour_looks_different() -> None:
    looks = []
    for colour in ("red", "blue", "green", "red"):
        image = Image.new("RGB", (32, 32), "white")
        image.paste(colour, (4, 4, 28, 28))
        looks.append(look(image))
    assert alike(np.array(looks, dtype=np.uint64)) == [[0, 3]]


def test_three_bits_may_differ_wherever_they_are_and_four_may_not() -> None:
    """Against the comparison of all pairs."""
    draws = np.random.default_rng(0)
    hashes = [int(value) for value in draws.integers(1, 1 << 63, 40)]
    for number in range(20):
        flips = sum(1 << int(bit) for bit in draws.choice(64, 3 + number % 2, replace=False))
        hashes.append(hashes[number] ^ flips)
    found = alike(np.array([(value, 0x808080) for value in hashes], dtype=np.uint64))
    assert found == [[number, 40 + number] for number in range(0, 20, 2)]


def test_headers_alone_say_sizes_and_keys_but_nothing_of_the_members(
    tmp_path: Path, write_shard: Callable[..., Path], png: Callable[..., bytes]
) -> None:
    shard = write_shard(
        tmp_path / "a.tar",
        5,
        extra=lambda n: {"png": png(n, width=20 + n), "json": b"{}", "txt": b"\xff"},
    )
    seen: list[tuple[int, int]] = []
    found = scan(
        [str(shard)],
        config_of(shard),
        full=False,
        advance=lambda done, total: seen.append((done, total)),
    )
    assert seen == []
    assert found.sizes[:, 0].tolist() == [20, 21, 22, 23, 24]
    assert (found.usable, found.bad, len(found.captions)) == (5, (), 0)
    assert not found.full


def test_filters_count_what_they_leave_out(
    tmp_path: Path, write_shard: Callable[..., Path]
) -> None:
    shard = write_shard(tmp_path / "a.tar", 10)
    found = scanned(shard, filter={"number": ">=6"})
    assert (found.shards[0].filtered, found.usable) == (6, 4)
    assert found.filters == ("filter number >=6: 4 kept, 6 dropped, 0 without it",)


def test_the_bar_moves_to_the_end(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    shards = [write_shard(tmp_path / f"{name}.tar", 300, prefix=name) for name in "ab"]
    seen: list[tuple[int, int]] = []
    listed = [str(shard) for shard in shards]
    scan(listed, config_of(*shards), advance=lambda done, total: seen.append((done, total)))
    assert seen == [(256, 600), (300, 600), (556, 600), (600, 600)]


@pytest.mark.parametrize("kind", ["moments", "latents"])
def test_latents_are_checked_and_measured(
    tmp_path: Path,
    write_latents: Callable[..., Path],
    npy: Callable[..., bytes],
    kind: str,
) -> None:
    """Of moments the means are measured: the first half of the channels."""
    drawn = [np.random.default_rng(n).normal(1.0, 2.0, (8, 4, 6)) for n in range(6)]
    drawn[5][0, 0, 0] = np.nan
    shard = write_latents(
        tmp_path / "a.tar",
        6,
        extra=lambda n: {"moments.npy": b"", f"{kind}.npy": npy(drawn[n], np.float32)},
    )
    found = scanned(shard, format="latents")
    assert dict(found.layouts) == {(kind, (8, 4, 6), None): 5}
    assert [bad.reason for bad in found.bad] == ["the latents or their context are not finite"]
    channels = 4 if kind == "moments" else 8
    values = np.stack(drawn[:5]).astype(np.float32)[:, :channels].astype(np.float64)
    assert found.channel_mean == pytest.approx(values.mean(axis=(0, 2, 3)))
    assert found.channel_std == pytest.approx(values.std(axis=(0, 2, 3)))
