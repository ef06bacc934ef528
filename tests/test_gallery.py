"""Are the asked-for pictures the ones that are kept, with their recipes, and none of them lost?"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm import gallery
from ldm.gallery import asked, plan, read_recipe, wishes, write_manifest, write_picture
from ldm.gallery.recipes import identity

KEYS = ("prompt", "negative_prompt", "seed", "seeds", "n", "steps", "init_image", "strength")
NOTHING = dict.fromkeys((*KEYS, "prompts", "recipe"))
# each of them was rejected or re-read by one grammar or another
VERBATIM = [
    "a cat, on a mat",
    "it's (blue:1.2) ${out} [x]",
    " é 猫 \u2028 one line \x0b still \x85 and \x1c",
    'a=b "quoted" \\ back',
    "../../etc/passwd",
]


def values(requests: list[gallery.Asked]) -> list[dict[str, Any]]:
    return [request.values for request in requests]


def recipe(**changes: Any) -> dict[str, Any]:
    return {"mode": "txt2img", "prompt": "a cat", "seed": 1, "steps": 3, **changes}


def picture(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


# -- what was asked for ---------------------------------------------------------------------------


def test_lines_of_a_text_file_are_prompts_to_the_letter(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(("\ufeff" + "\r\n".join(VERBATIM) + "\n\n   \n").encode())
    found = asked({**NOTHING, "prompts": str(path), "steps": 4}, KEYS)
    assert values(found) == [{"prompt": line, "steps": 4} for line in VERBATIM]
    assert [request.where for request in found][:2] == ["prompts.txt:1", "prompts.txt:2"]


def test_lines_of_a_jsonl_file_beat_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": line, "seed": i} for i, line in enumerate(VERBATIM)]
    rows += [{"prompt": "", "steps": 9, "init_image": "in/a.png", "seed": None}]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    found = values(asked({**NOTHING, "prompts": str(path), "steps": 4, "seed": 7}, KEYS))
    assert [row["prompt"] for row in found] == [*VERBATIM, ""]
    assert [row["seed"] for row in found] == [0, 1, 2, 3, 4, 7]
    assert [row["steps"] for row in found] == [4] * 5 + [9]
    assert found[5]["init_image"] == str(tmp_path / "in/a.png")  # as seen from the file


def test_the_command_line_beats_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_picture(path, picture(), {**recipe(negative_prompt="fog"), "model": "0" * 16})
    (found,) = values(asked({**NOTHING, "recipe": str(path), "steps": 9}, KEYS))
    assert found == {"prompt": "a cat", "seed": 1, "steps": 9, "negative_prompt": "fog"}
    (found,) = values(asked({**NOTHING, "recipe": str(path), "prompt": "a dog"}, KEYS))
    assert found["prompt"] == "a dog"


def bad_files(folder: Path) -> list[tuple[dict[str, str], str]]:
    """Keys, and what the error says of them."""
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    (folder / "empty.txt").write_text("\n \n")
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n[1]\n')
    (folder / "deep.jsonl").write_text("[" * 100_000)
    picture().save(folder / "plain.png")
    (folder / "page.png").write_text("<html>")
    bomb = PngInfo()
    bomb.add_itxt("ldm", "[" * 100_000)
    picture().save(folder / "deep.png", pnginfo=bomb)
    return [
        ({"prompt": "a", "prompts": "b"}, "one of them"),
        ({}, 'give prompt="..."'),
        ({"prompts": str(folder / "none.txt")}, "none.txt does not exist"),
        ({"prompts": str(folder / "latin.txt")}, "not UTF-8 text (byte 0)"),
        ({"prompts": str(folder / "empty.txt")}, "holds no prompt"),
        ({"prompts": str(folder / "bad.jsonl")}, "bad.jsonl:2 is no JSON"),
        ({"prompts": str(folder / "bad.jsonl")}, "bad.jsonl:3 is no object"),
        ({"prompts": str(folder / "deep.jsonl")}, "deep.jsonl:1 is no JSON"),
        ({"recipe": str(folder / "plain.png")}, "plain.png holds no recipe"),
        ({"recipe": str(folder / "page.png")}, "page.png holds no recipe"),
        ({"recipe": str(folder / "deep.png")}, "deep.png holds no recipe"),
        ({"recipe": str(folder / "x.png")}, "x.png does not exist"),
    ]


def test_what_asks_for_nothing_is_said(tmp_path: Path) -> None:
    for given, text in bad_files(tmp_path):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            asked({**NOTHING, **given}, KEYS)
        assert text in str(caught.value)


# -- which pictures are meant ---------------------------------------------------------------------


def test_every_seed_is_a_picture() -> None:
    assert [wish.seed for wish in wishes({"prompt": "x"})] == [0]
    assert [wish.seed for wish in wishes({"prompt": "x", "seed": 5, "n": 3})] == [5, 6, 7]
    assert [wish.seed for wish in wishes({"prompt": "x", "seed": 5, "seeds": [0, 9]})] == [0, 9]


@pytest.mark.parametrize(
    ("given", "mode", "settled"),
    [
        ({}, "txt2img", {"strength": None, "paste_back": None}),
        ({"init_image": "a"}, "img2img", {"strength": 0.75}),
        ({"init_image": "a", "strength": 0.0}, "img2img", {"strength": 0.0}),
        ({"init_image": "a", "mask": "m"}, "inpaint", {"strength": 1.0, "paste_back": True}),
        ({"init_image": "a", "mask": "m", "paste_back": False}, "inpaint", {"paste_back": False}),
        ({"to_prompt": "y"}, "interpolate", {"frames": 8, "frame": 0}),
        ({"to_seed": 0}, "interpolate", {"to_seed": 0}),
        ({"mode": "invert", "init_image": "a"}, "invert", {"guidance": 1.0}),
        ({"mode": "invert", "init_image": "a", "guidance": 3}, "invert", {"guidance": 3}),
    ],
)
def test_the_mode_is_what_its_keys_are_given_for(
    given: dict[str, Any], mode: str, settled: dict[str, Any]
) -> None:
    wish = wishes({"prompt": "x", **given})[0]
    assert wish.mode == mode
    assert {key: getattr(wish, key) for key in settled} == settled


def test_an_interpolation_is_its_frames() -> None:
    found = wishes({"prompt": "x", "to_prompt": "y", "frames": 3, "seeds": [1, 2]})
    assert [(wish.seed, wish.frame) for wish in found] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
        (2, 1),
        (2, 2),
    ]
    (alone,) = wishes({"prompt": "x", "to_prompt": "y", "frames": 3, "frame": 2})
    assert alone.frame == 2


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"n": 0}, ["n=0", "1 or more"]),
        ({"seeds": []}, ["at least one seed"]),
        ({"mode": "img2im"}, ["'img2im' is unknown (did you mean 'img2img'?)", "interpolate"]),
        ({"mode": "inpaint", "mask": "m"}, ["inpaint needs init_image=..."]),
        ({"mode": "interpolate"}, ["needs to_prompt=... or to_seed=..."]),
        ({"strength": 0.5}, ["strength=0.5 is of no use to txt2img, only to img2img, inpaint"]),
        ({"init_image": "a", "frames": 3}, ["frames=3 is of no use to img2img"]),
        ({"to_seed": 1, "frames": 1}, ["frames=1; give 2 or more"]),
        ({"to_seed": 1, "frames": 3, "frame": 3}, ["frame=3; allowed: 0 to 2"]),
        (
            {"n": 0, "strength": 1.0, "mode": "interpolate"},
            ["n=0", "strength=1.0 is of no use", "needs to_prompt"],
        ),
    ],
    ids=str,
)
def test_keys_that_do_not_go_together(given: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        wishes({"prompt": "x", **given})
    assert [part for part in parts if part not in str(caught.value)] == []


def test_no_prompt() -> None:
    with pytest.raises(ValueError, match="no prompt"):
        wishes({"seed": 1})
    assert wishes({"prompt": ""})[0].prompt == ""  # an empty one is one


# -- recipes in pictures --------------------------------------------------------------------------


def test_a_recipe_comes_back_to_the_letter(tmp_path: Path) -> None:
    for i, prompt in enumerate(VERBATIM):
        said = recipe(prompt=prompt, guidance=7.5, guidance_interval=[0.1, float("inf")])
        write_picture(tmp_path / f"{i}.png", picture("blue"), said)
        assert read_recipe(tmp_path / f"{i}.png") == said
        assert Image.open(tmp_path / f"{i}.png").getpixel((0, 0)) == (0, 0, 255)
    assert len(list(tmp_path.iterdir())) == len(VERBATIM)  # nothing half-written is left


@pytest.mark.parametrize(
    "said",
    ["[]", "1", "{}", '{"format": "other/1"}', '{"format": "ldm-recipe/1", "checkpoint": [1]}'],
)
def test_what_is_no_recipe_of_ours_is_none(tmp_path: Path, said: str) -> None:
    info = PngInfo()
    info.add_itxt("ldm", said)
    picture().save(tmp_path / "x.png", pnginfo=info)
    assert read_recipe(tmp_path / "x.png") is None


def test_equal_recipes_are_equal_wherever_things_lay() -> None:
    own = recipe(checkpoint="runs/a", init_image="a.png", init_image_hash="1")
    moved = recipe(checkpoint="/b", init_image="/c.png", init_image_hash="1", made_with={"x": 1})
    assert identity(own) == identity(moved)
    for changed in ({"steps": 4}, {"init_image_hash": "2"}, {"model": "1"}, {"prompt": "a cat "}):
        assert identity({**own, **changed}) != identity(own)


# -- the folder -----------------------------------------------------------------------------------


def draw(places: list[gallery.Place]) -> None:
    for place in places:
        if not place.done:
            write_picture(place.path, picture(), place.recipe)


@pytest.mark.parametrize("prompt", [*VERBATIM, "", "...", "con", "x" * 5000, "猫" * 500, "\0"])
def test_pictures_stay_in_their_folder_whatever_the_prompt(tmp_path: Path, prompt: str) -> None:
    out = tmp_path / "out"
    draw(plan(out, [recipe(prompt=prompt)]))
    (path,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert path.parent == out
    assert path.suffix == ".png"
    assert not path.name.startswith(".")


def test_prompts_of_one_name_get_two_files(tmp_path: Path) -> None:
    places = plan(tmp_path, [recipe(prompt=p) for p in ("a/b", "a\\b", "a b", "a/b")])
    assert len({place.path for place in places}) == len(places) == 3  # the last is the first
    assert places[0].path.name == "a_b-1.png"
    assert all(place.path.name.startswith("a_b-1-") for place in places[1:])


def test_a_half_finished_folder_is_finished(tmp_path: Path) -> None:
    recipes = [recipe(seed=seed) for seed in range(4)] + [recipe(seed=0, steps=9)]
    whole = plan(tmp_path, recipes)
    draw(whole[2:])
    again = plan(tmp_path, recipes)
    assert [place.path for place in again] == [place.path for place in whole]
    assert [place.done for place in again] == [False, False, True, True, True]
    draw(again)
    assert all(place.done for place in plan(tmp_path, recipes))


def test_a_picture_of_another_recipe_is_kept(tmp_path: Path) -> None:
    (old,) = plan(tmp_path, [recipe()])
    draw([old])
    (new,) = plan(tmp_path, [recipe(steps=9)])
    assert (new.path != old.path, new.done) == (True, False)
    assert new.path.stem.startswith(old.path.stem)
    draw([new])
    assert [p.done for p in plan(tmp_path, [recipe(steps=9), recipe()])] == [True, True]
    (replaced,) = plan(tmp_path, [recipe(steps=9)], overwrite=True)
    assert (replaced.path, replaced.done) == (old.path, False)


def test_files_that_are_no_pictures_of_ours_are_kept(tmp_path: Path) -> None:
    picture("green").save(tmp_path / "a_cat-1.png")
    (place,) = plan(tmp_path, [recipe()])
    assert place.path.name != "a_cat-1.png"
    assert not place.done


def test_a_picture_without_its_companions_is_not_finished(tmp_path: Path) -> None:
    (place,) = plan(tmp_path, [recipe()])
    draw([place])
    (again,) = plan(tmp_path, [recipe()], endings=("steps.png",))
    assert (again.path, again.done) == (place.path, False)
    place.beside("steps.png").touch()
    assert plan(tmp_path, [recipe()], endings=("steps.png",))[0].done


def test_the_manifest_has_a_line_a_picture_of_all_requests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = plan(tmp_path, [recipe()]), plan(tmp_path, [recipe(prompt="é", seed=2)])
    draw(first + second)
    write_manifest(tmp_path, first)
    path = write_manifest(tmp_path, second)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["file"] for line in lines] == ["a_cat-1.png", "é-2.png"]
    assert [line["recipe"] for line in lines] == [recipe(), recipe(prompt="é", seed=2)]
    assert len({line["blake2b"] for line in lines}) == 2
    first[0].path.unlink()
    write_manifest(tmp_path, second)
    assert len(path.read_text().splitlines()) == 1
    path.write_text("{")
    with caplog.at_level(logging.WARNING):
        write_manifest(tmp_path, second)
    assert "is no manifest" in caplog.text
    assert len(path.read_text().splitlines()) == 1


def test_a_manifest_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    out = tmp_path / "out"
    places = plan(out, [recipe()])
    draw(places)
    (out / "manifest.jsonl").write_text(json.dumps({"file": "../secret"}) + "\n")
    text = write_manifest(out, places).read_text()
    assert "secret" not in text


# -- sheets ---------------------------------------------------------------------------------------


def test_the_grid_shows_what_is_there(tmp_path: Path) -> None:
    places = plan(tmp_path, [recipe(seed=seed) for seed in range(4)])
    assert gallery.write_grid(tmp_path, places) is None
    draw(places[:1])
    assert gallery.write_grid(tmp_path, places) is None
    draw(places[:3])
    path = gallery.write_grid(tmp_path, places)
    assert path == tmp_path / "grid.png"
    assert Image.open(path).size[0] == 2 * 136 + 8


def test_frames_become_a_strip_and_an_animation(tmp_path: Path) -> None:
    recipes = [recipe(mode="interpolate", to_seed=2, frames=3, frame=frame) for frame in (2, 0, 1)]
    places = plan(tmp_path, [*recipes, recipe()])
    assert [place.path.stem for place in places][:3] == [
        "a_cat-1-f002",
        "a_cat-1-f000",
        "a_cat-1-f001",
    ]
    for place, colour in zip(places, ("blue", "red", "lime", "white"), strict=True):
        write_picture(place.path, picture(colour), place.recipe)
    assert gallery.interpolations(places[:2]) == []  # one is missing
    (frames,) = gallery.interpolations(places)
    gallery.write_frames(frames)
    strip = Image.open(tmp_path / "a_cat-1-frames.png")
    assert [strip.getpixel((72 + 136 * i, 72)) for i in range(3)] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
    ]
    moving = Image.open(tmp_path / "a_cat-1-frames.webp")
    assert moving.n_frames == 3  # type: ignore[attr-defined]
    assert moving.convert("RGB").getpixel((5, 5)) == (255, 0, 0)
