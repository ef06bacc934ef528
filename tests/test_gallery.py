"""Are the asked-for pictures the ones that are kept, with their recipes?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ldm.gallery import requests, save


def test_every_prompt_meets_every_seed(tmp_path: Path) -> None:
    listed = tmp_path / "prompts.txt"
    listed.write_text("a cat, on a mat\n\n  it's (blue:1.2)\n", encoding="utf-8")
    prompts, seeds = requests(None, str(listed), seed=5, seeds=None, n=2)
    assert list(zip(prompts, seeds, strict=True)) == [
        ("a cat, on a mat", 5),
        ("a cat, on a mat", 6),
        ("it's (blue:1.2)", 5),
        ("it's (blue:1.2)", 6),
    ]
    assert requests("x", None, seed=5, seeds=[0, 9], n=1) == (["x", "x"], [0, 9])


@pytest.mark.parametrize(
    ("prompt", "prompts", "n", "seeds", "names"),
    [
        (None, None, 1, None, "prompt="),
        ("x", "file", 1, None, "one of them"),
        ("x", None, 0, None, "n=0"),
        ("x", None, 1, [], "at least one seed"),
    ],
)
def test_refuses_what_names_no_picture(
    prompt: str | None, prompts: str | None, n: int, seeds: list[int] | None, names: str
) -> None:
    with pytest.raises(ValueError, match=names):
        requests(prompt, prompts, seed=0, seeds=seeds, n=n)


def test_pictures_stay_in_their_folder_and_carry_their_recipe(tmp_path: Path) -> None:
    images = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    prompts = ["../../etc/passwd", "é"]
    paths = save(tmp_path / "out", images, prompts, [1, 2], {"steps": 3})
    assert [path.parent for path in paths] == [tmp_path / "out"] * 3
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        path.name for path in paths
    }
    with Image.open(paths[0]) as kept:
        assert kept.getpixel((0, 0)) == (255, 0, 0)
        recipe = json.loads(kept.text["ldm"])
    assert recipe == {"steps": 3, "prompt": "../../etc/passwd", "seed": 1}
