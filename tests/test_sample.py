"""Does scripts/sample.py draw what its keys say, once, on any number of processes?"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

import ldm
from ldm import app, cli
from ldm.cli import ConfigError
from ldm.gallery import read_recipe, write_picture
from ldm.images import from_pil
from ldm.pipeline import Pipeline, SamplingOptions, drawing

Config = dict[str, Any]
Sample = Callable[..., list[Path]]
RED, BLUE = "a small red circle", "a large blue star"
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def sample(composed: Callable[..., Config], tmp_path: Path) -> Sample:
    """sample("key=value", …): the pictures in the folder, in this process, with four steps."""

    def run(*line: str, out: Path | None = None) -> list[Path]:
        folder = out or tmp_path / "out"
        steps = () if any(part.startswith(("steps=", "recipe=")) for part in line) else ("steps=4",)
        cfg = composed(*line, *steps, "device=cpu", f"out={folder}", config="sample")
        assert app.sample(cfg) == 0
        return pictures(folder)

    return run


@pytest.fixture
def refused(composed: Callable[..., Config], tmp_path: Path) -> Callable[..., str]:
    """refused("key=value", …): the text of the one error; nothing was written or loaded."""

    def run(*line: str) -> str:
        out = tmp_path / "refused"
        with pytest.raises(ConfigError) as caught:
            app.sample(composed(*line, f"out={out}", config="sample"))
        assert not out.exists()
        return str(caught.value)

    return run


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Prompts of the pictures that were asked of a pipeline since the test began."""
    seen: list[str] = []
    draw = Pipeline.draw

    def watched(self: Pipeline, asked: Any, **how: Any) -> Any:
        seen.extend(picture.prompt for picture in asked)
        return draw(self, asked, **how)

    monkeypatch.setattr(Pipeline, "draw", watched)
    return seen


def pictures(folder: Path) -> list[Path]:
    """Those with a recipe, by name."""
    return sorted(path for path in folder.glob("*.png") if read_recipe(path) is not None)


def same(one: Path, other: Path) -> bool:
    difference = ImageChops.difference(Image.open(one), Image.open(other))
    return difference.getbbox() is None


def manifest(folder: Path) -> list[Config]:
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# -- what is drawn --------------------------------------------------------------------------------


def test_pictures_grid_and_manifest(sample: Sample, tmp_path: Path) -> None:
    found = sample(f"prompt={BLUE}", "n=2", "seed=5", "guidance=2", "negative_prompt=it's, é")
    assert [path.name for path in found] == ["a_large_blue_star-5.png", "a_large_blue_star-6.png"]
    want = ldm.load("tiny", device="cpu").txt2img(
        [BLUE] * 2, [5, 6], steps=4, guidance=2.0, negative_prompts="it's, é"
    )
    for path, image in zip(found, want, strict=True):
        assert ImageChops.difference(Image.open(path), image).getbbox() is None
    assert (tmp_path / "out" / "grid.png").is_file()
    lines = manifest(tmp_path / "out")
    assert [line["file"] for line in lines] == [path.name for path in found]
    said = lines[0]["recipe"]
    assert said == read_recipe(found[0])
    assert said["made_with"]["batch_size"] == 1
    expected = {"prompt": BLUE, "seed": 5, "steps": 4, "guidance": 2.0, "sampler": "ddim"}
    expected |= {"negative_prompt": "it's, é", "height": 32, "weights": "ema", "dtype": "fp32"}
    assert {key: said[key] for key in expected} == expected
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "grid.png",
        "manifest.jsonl",
        *(path.name for path in found),
    }


def test_a_file_of_prompts_with_keys_of_their_own(sample: Sample, tmp_path: Path) -> None:
    """Sizes, samplers and modes are mixed; lines keep their order in the manifest."""
    Image.new("RGB", (32, 32), "orange").save(tmp_path / "in.png")
    Image.new("L", (32, 32), 255).save(tmp_path / "mask.png")
    rows = [
        {"prompt": "a cat, on a mat", "seeds": [1, 2]},
        {"prompt": RED, "height": 16, "width": 40, "sampler": "euler_a", "steps": 2},
        {"prompt": RED, "init_image": "in.png", "strength": 0.5, "seed": 3},
        {"prompt": RED, "init_image": "in.png", "mask": "mask.png", "seed": 3},
        {"prompt": "../x", "guidance": 1, "grid": "karras", "guidance_interval": [0.3, 5]},
        {"prompt": "(blue:1.3) star", "weighting": True},
    ]
    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = sample(f"prompts={path}")
    assert len(found) == 7
    said = [line["recipe"] for line in manifest(tmp_path / "out")]
    assert [(r["prompt"], r["seed"], r["mode"], r["steps"]) for r in said] == [
        ("a cat, on a mat", 1, "txt2img", 4),
        ("a cat, on a mat", 2, "txt2img", 4),
        (RED, 0, "txt2img", 2),
        (RED, 3, "img2img", 4),
        (RED, 3, "inpaint", 4),
        ("../x", 0, "txt2img", 4),
        ("(blue:1.3) star", 0, "txt2img", 4),
    ]
    sizes = {Image.open(p).size for p in found}
    assert sizes == {(32, 32), (40, 16)}


def test_img2img_and_inpainting_from_files(sample: Sample, tmp_path: Path) -> None:
    """An image of another size is cut to the one that is asked for, its mask alike."""
    wide = Image.new("RGB", (64, 48), "white")
    wide.paste("orange", (20, 10, 44, 38))
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (0, 0, 32, 48))
    wide.save(tmp_path / "wide.png")
    mask.save(tmp_path / "mask.png")
    line = (f"prompt={RED}", f"init_image={tmp_path / 'wide.png'}", f"mask={tmp_path / 'mask.png'}")
    (one,) = sample(*line, "height=32", "width=32", out=tmp_path / "one")
    (two,) = sample(*line, out=tmp_path / "two")
    assert (Image.open(one).size, Image.open(two).size) == ((32, 32), (64, 48))
    kept = from_pil([Image.open(two)])[..., 32:] - from_pil([wide])[..., 32:]
    assert float(kept.abs().max()) == 0.0
    (three,) = sample(*line[:2], "strength=0", out=tmp_path / "three")
    assert float((from_pil([Image.open(three)]) - from_pil([wide])).abs().mean()) < 0.2


def test_an_interpolation(sample: Sample, tmp_path: Path) -> None:
    line = (f"prompt={RED}", f"to_prompt={BLUE}", "seed=1", "to_seed=2", "frames=3")
    frames = sample(*line)
    assert [path.stem[-4:] for path in frames] == ["f000", "f001", "f002"]
    ends = ldm.load("tiny", device="cpu").txt2img([RED, BLUE], [1, 2], steps=4)
    for path, image in zip((frames[0], frames[-1]), ends, strict=True):
        assert ImageChops.difference(Image.open(path), image).getbbox() is None
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"a_small_red_circle-1-frames.png", "a_small_red_circle-1-frames.webp"} <= names


def test_inversion_comes_back_and_draws_something_else(sample: Sample, tmp_path: Path) -> None:
    (drawn,) = sample(f"prompt={BLUE}", "seed=2", "steps=25", out=tmp_path / "first")
    line = ("mode=invert", f"init_image={drawn}", f"prompt={BLUE}", "steps=60")
    (back,) = sample(*line, out=tmp_path / "back")
    (other,) = sample(*line, "to_prompt=a large red star", out=tmp_path / "other")
    start, again, edited = (from_pil([Image.open(p)]) for p in (drawn, back, other))
    assert float((start - again).abs().mean()) < 0.05
    assert edited[:, 0].mean() > again[:, 0].mean() + 0.05  # more red, on a white ground


def test_how_a_picture_emerges(sample: Sample, rows: list[str], tmp_path: Path) -> None:
    (alone,) = sample(f"prompt={BLUE}", out=tmp_path / "plain")
    (found,) = sample(f"prompt={BLUE}", "steps_grid=true")
    assert same(alone, found)
    strip = Image.open(tmp_path / "out" / "a_large_blue_star-0-steps.png")
    assert strip.width == 4 * 136 + 8
    moving = Image.open(tmp_path / "out" / "a_large_blue_star-0-steps.webp")
    assert moving.n_frames == 5  # type: ignore[attr-defined]
    rows.clear()
    sample(f"prompt={BLUE}", "steps_grid=true")
    assert rows == []


# -- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["batch_size=auto", "batch_size=3"])
def test_a_recipe_repeats_its_picture_to_the_bit(
    sample: Sample, tmp_path: Path, batch: str
) -> None:
    """Whatever it was drawn beside: the batch is as large again."""
    line = ("sampler=euler_a", "negative_prompt=it's (blue:1.2)", "guidance=2.5", "weighting=true")
    first = sample(f"prompt={BLUE}", "n=4", batch, *line)
    for path in first[1:3]:
        (again,) = sample(f"recipe={path}", out=tmp_path / path.stem)
        assert same(path, again)
        assert read_recipe(again) == read_recipe(path)
        assert again.name == path.name
    (other,) = sample(f"recipe={first[0]}", "guidance=1", out=tmp_path / "other")
    assert not same(first[0], other)
    kept, changed = read_recipe(first[0]), read_recipe(other)
    assert kept is not None
    assert changed == {**kept, "guidance": 1.0}


def test_recipes_of_the_other_modes(sample: Sample, tmp_path: Path) -> None:
    (image,) = sample(f"prompt={RED}", out=tmp_path / "image")
    lines = [
        (f"init_image={image}", "strength=0.5"),
        (f"to_prompt={RED}", "frames=3"),
        ("mode=invert", f"init_image={image}", "to_prompt=a large red star"),
    ]
    for i, line in enumerate(lines):
        found = sample(f"prompt={BLUE}", *line, out=tmp_path / f"{i}")
        (again,) = sample(f"recipe={found[len(found) // 2]}", out=tmp_path / f"{i}b")
        assert same(found[len(found) // 2], again)


def test_nothing_is_drawn_twice(sample: Sample, rows: list[str], tmp_path: Path) -> None:
    line = ("prompts=" + str(tmp_path / "p.txt"), "n=2")
    (tmp_path / "p.txt").write_text("\n".join([RED, BLUE, RED]))
    whole = sample(*line)
    assert rows == [RED, RED, BLUE, BLUE]  # asked for twice, drawn once
    times = {path: path.stat().st_mtime_ns for path in whole}
    whole[1].unlink()
    rows.clear()
    assert sample(*line) == whole
    assert rows == [BLUE]
    changed = [path for path in whole if path.stat().st_mtime_ns != times[path]]
    assert changed == [whole[1]]
    rows.clear()
    assert len(sample(*line, "steps=3")) == 8  # another recipe, beside the others
    assert len(rows) == 4
    rows.clear()
    assert len(sample(*line, "steps=3", "overwrite=true")) == 8
    assert len(rows) == 4


def test_what_was_finished_before_an_error_is_kept(
    sample: Sample, rows: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Memory runs out at the third picture, for good; the folder is then finished elsewhere."""
    real, calls = drawing.solve, []

    def short(*given: Any, **how: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given, **how)

    monkeypatch.setattr(drawing, "solve", short)
    with pytest.raises(ConfigError, match="out of memory with one picture at a time"):
        sample(f"prompt={BLUE}", "n=4")
    assert len(pictures(tmp_path / "out")) == 2
    assert len(manifest(tmp_path / "out")) == 2
    monkeypatch.setattr(drawing, "solve", real)
    rows.clear()
    assert len(sample(f"prompt={BLUE}", "n=4")) == 4
    assert rows == [BLUE] * 2


@pytest.mark.slow
def test_two_processes_draw_what_one_does(
    script: Callable[..., Any], sample: Sample, tmp_path: Path
) -> None:
    """Started by the script; 5 pictures, so that the parts differ; each is drawn by one."""
    line, two = (f"prompt={BLUE}", "n=5", "steps=4"), tmp_path / "two"
    how = ("devices=2", "device=cpu", f"out={two}")
    done = script("sample", *line, *how, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]
    torch.set_num_threads(1)
    one, other = sample(*line), pictures(two)
    assert [path.name for path in one] == [path.name for path in other]
    assert all(same(a, b) for a, b in zip(one, other, strict=True))
    assert len(manifest(two)) == 5
    assert (two / "grid.png").is_file()
    assert done.stderr.count("5 new") == 1  # one process speaks


@pytest.mark.slow
def test_torchrun_and_a_folder_that_is_half_there(sample: Sample, tmp_path: Path) -> None:
    one = sample(f"prompt={BLUE}", "n=4")
    before = {path: path.stat().st_mtime_ns for path in one}
    one[1].unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line = [f"prompt={BLUE}", "n=4", "steps=4", "device=cpu", f"out={tmp_path / 'out'}"]
    script = str(REPOSITORY / "scripts" / "sample.py")
    done = subprocess.run([*command, script, *line], capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stderr[-2000:]
    assert pictures(tmp_path / "out") == one
    assert [path for path in one if path.stat().st_mtime_ns != before[path]] == [one[1]]


@pytest.mark.slow
def test_an_error_in_two_processes_is_said_once(script: Callable[..., Any], tmp_path: Path) -> None:
    line = (f"prompt={BLUE}", "devices=2", "device=cpu", f"out={tmp_path / 'out'}")
    done = script("sample", *line, "height=30", OMP_NUM_THREADS="1")  # known when it is loaded
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert "height=30 is not a multiple of 4" in done.stderr


# -- the command line and bad input ---------------------------------------------------------------


def test_the_command_line_takes_prompts_to_the_letter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prompt = "../a cat, it's ${out} (blue:1.2) é 猫 [x] {0..5} a=b"
    line = (f"prompt={prompt}", f"to_prompt={prompt}!", "frames=2", "steps=1", "device=cpu")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["scripts/sample.py", *line, "out=out"])
    with pytest.raises(SystemExit) as end:
        cli.run(app.sample, config="sample")
    assert end.value.code == 0
    said = [line["recipe"] for line in manifest(tmp_path / "out")]
    assert [(entry["prompt"], entry["to_prompt"]) for entry in said] == [(prompt, prompt + "!")] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_everything_wrong_at_once(refused: Callable[..., str], tmp_path: Path) -> None:
    text = refused(
        "promt=x",
        "prompt=x",
        "steps=3000",
        "sampler=dpmp_2m",
        "grid=kras",
        "strength=2",
        "guidance=-1",
        "guidance_interval=[3,1]",
        "eta=2",
        "height=-4",
        "devices=0",
    )
    for part in (
        "did you mean 'prompt'",
        "steps=3000; allowed: 1 to 2000",
        "known: dpmpp_2m,",
        "known: karras,",
        "strength=2; allowed: 0",
        "guidance=-1",
        "interval=(3, 1)",
        "eta=2",
        "height=-4; give 1 or more",
        "devices=0",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (["seeds=[1,x]"], ["seeds=[1, 'x']", "list[int]"]),
        (["batch_size=many"], ["batch_size='many' is a str", "auto"]),
        (["tiled=maybe"], ["tiled='maybe'"]),
        (["steps_grid=3"], ["steps_grid=3 is a int; allowed: bool"]),
        (["mode=img2im"], ["did you mean 'img2img'"]),
        (["strength=0.5"], ["strength=0.5 is of no use to txt2img"]),
        (["init_image=/nowhere.png"], ["init_image=/nowhere.png does not exist"]),
        (["recipe=/nowhere.png"], ["recipe=/nowhere.png does not exist"]),
        (["prompts=/nowhere.txt"], ["one of them"]),
        (["devices=2", "device=cuda:1"], ["devices=2 and device=cuda:1 contradict"]),
    ],
    ids=str,
)
def test_bad_keys(refused: Callable[..., str], line: list[str], parts: list[str]) -> None:
    text = refused("prompt=x", *line)
    assert [part for part in parts if part not in text] == []


def test_bad_files_before_any_weights(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of the file that is wrong, and every image of it."""
    monkeypatch.setattr("ldm.pipeline.load", lambda *_, **__: pytest.fail("weights were loaded"))
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    Image.new("L", (16, 32)).save(tmp_path / "small.png")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    (tmp_path / "page.png").write_text("<html>")
    rows: list[Config] = [
        {"prompt": "fine"},
        {"prompt": "x", "init_image": "a.png", "mask": "small.png"},
        {"prompt": "x", "init_image": "moving.webp"},
        {"prompt": "x", "init_image": "page.png"},
        {"prompt": "x", "stepss": 3},
        {"prompt": "x", "steps": "3"},
        {"prompt": ["x"]},
        {"seed": 3},
        {"prompt": "x", "checkpoint": "other"},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    text = refused(f"prompts={path}")
    for part in (
        f"mask={tmp_path / 'small.png'} is 16x32 px, init_image={tmp_path / 'a.png'} 32x32",
        "moving.webp is animated (2 frames)",
        "page.png cannot be read as a picture",
        "p.jsonl:5: stepss is unknown (did you mean 'steps'?)",
        "p.jsonl:6: steps='3' is a str",
        "p.jsonl:7: prompt=['x'] is a list",
        "p.jsonl:8: no prompt",
        "p.jsonl:9: checkpoint is unknown",
    ):
        assert part in text, part


def test_a_recipe_of_another_model_or_file(
    sample: Sample, refused: Callable[..., str], finished_run: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (32, 32), "orange").save(tmp_path / "in.png")
    line = (f"prompt={RED}", f"init_image={tmp_path / 'in.png'}", "strength=0.5")
    (path,) = sample(*line)
    said = read_recipe(path)
    assert said is not None
    Image.new("RGB", (32, 32), "navy").save(tmp_path / "in.png")
    write_picture(
        tmp_path / "moved.png", Image.open(path), {**said, "checkpoint": str(finished_run)}
    )
    text = refused(f"recipe={tmp_path / 'moved.png'}")
    assert "holds another model than the one that drew" in text
    assert "in.png is not the file that" in text
    sample(
        f"recipe={tmp_path / 'moved.png'}", "checkpoint=tiny", f"init_image={tmp_path / 'in.png'}"
    )


def test_a_hostile_recipe_is_checked_like_anything_else(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    said = {"mode": "txt2img", "prompt": "x", "seed": 1, "height": "huge", "steps": 1e9}
    write_picture(path, Image.new("RGB", (8, 8)), {**said, "made_with": 3, "out": "/etc"})
    text = refused(f"recipe={path}")
    assert "height='huge' is a str" in text
    assert "steps=1000000000.0 is a float" in text


def test_the_options_reach_the_sampler(sample: Sample, tmp_path: Path) -> None:
    line = ("sampler=ddim", "grid=trailing", "eta=0.5", "guidance=3", "threshold=0.9")
    more = ("threshold_floor=1.5", "guidance_interval=[0.3,6]", "guidance_rescale=0.4")
    (path,) = sample(f"prompt={BLUE}", *line, *more)
    options = SamplingOptions(
        steps=4,
        sampler="ddim",
        grid="trailing",
        eta=0.5,
        guidance=3,
        threshold=0.9,
        threshold_floor=1.5,
        guidance_interval=(0.3, 6.0),
        guidance_rescale=0.4,
    )
    pipe = ldm.load("tiny", device="cpu")
    (want,) = pipe.txt2img(BLUE, [0], options=options)
    assert ImageChops.difference(Image.open(path), want).getbbox() is None
    (plain,) = pipe.txt2img(BLUE, [0], steps=4)
    assert ImageChops.difference(Image.open(path), plain).getbbox() is not None
