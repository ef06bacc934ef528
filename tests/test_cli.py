"""Does what is typed reach the program, letter for letter?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldm import cli
from ldm.cli import FREE_TEXT, ConfigError, encode

VALUES = [
    "a cat, on a mat",
    "it's",
    "é",
    "猫 🙂",
    "(blue:1.2)",
    "x-{0..5}.tar",
    "a=b.ckpt",
    "${out}",
    "${oc.env:HOME}",
    'a "quoted" word',
    "'single'",
    '"double"',
    "two\nlines",
    "[cat]",
    "{a: b}",
    "a: b",
    "!; # % @ ~ & |",
    "back\\slash",
    "trailing\\",
    " spaces ",
    "true",
    "1e5",
    "pipe:curl -s 'https://x/y?a=1&b=2'",
    "+x",
    "=",
]


@pytest.mark.parametrize("value", VALUES)
def test_free_text_arrives_verbatim(composed: Callable[..., dict[str, Any]], value: str) -> None:
    cfg = composed(f"prompt={value}", f"checkpoint={value}", f"out={value}", config="sample")
    assert (cfg["prompt"], cfg["checkpoint"], cfg["out"]) == (value, value, value)


def test_every_free_text_key_is_taken_verbatim() -> None:
    for key in FREE_TEXT:
        (argument,) = encode([f"{key}=it's, {{0..3}}"])
        assert "it's" not in argument
        assert argument.startswith(f"++{key}=")


def test_free_text_of_nested_keys_arrives_verbatim(composed: Callable[..., dict[str, Any]]) -> None:
    cfg = composed(
        "data.train.shards=/a b/x-{00000..00005}.tar",
        "data.val.shards=/c=d/it's.tar",
        "run_dir=runs/lr=0.1, x",
        "name=ünï(1)",
    )
    assert cfg["data"]["train"]["shards"] == "/a b/x-{00000..00005}.tar"
    assert cfg["data"]["val"]["shards"] == "/c=d/it's.tar"
    assert (cfg["run_dir"], cfg["name"]) == ("runs/lr=0.1, x", "ünï(1)")


def test_the_run_folder_follows_the_name(composed: Callable[..., dict[str, Any]]) -> None:
    assert composed("name=it's")["run_dir"] == "runs/it's"
    assert composed("experiment=quickstart")["run_dir"] == "runs/quickstart"


def test_shards_may_be_a_list(composed: Callable[..., dict[str, Any]]) -> None:
    cfg = composed("""data.train.shards=[a-{0..2}.tar, "b c.tar",x-{1,2}.tar,it's]""")
    assert cfg["data"]["train"]["shards"] == ["a-{0..2}.tar", "b c.tar", "x-{1,2}.tar", "it's"]
    assert composed("data.train.shards=[a.tar]")["data"]["train"]["shards"] == ["a.tar"]


def test_null_and_nothing_are_null(composed: Callable[..., dict[str, Any]]) -> None:
    cfg = composed("prompt=null", "negative_prompt=", config="sample")
    assert (cfg["prompt"], cfg["negative_prompt"]) == (None, None)


def test_other_values_keep_hydras_grammar(composed: Callable[..., dict[str, Any]]) -> None:
    cfg = composed("seeds=[1, 2]", "guidance=5", "steps=null", config="sample")
    assert (cfg["seeds"], cfg["guidance"], cfg["steps"]) == ([1, 2], 5, None)


def test_experiments_and_groups_beat_defaults_and_the_line_beats_both(
    composed: Callable[..., dict[str, Any]],
) -> None:
    plain, quickstart = composed(), composed("experiment=quickstart")
    assert plain["diffusion"]["weighting"]["_target_"].endswith("Uniform")
    assert quickstart["diffusion"]["weighting"]["_target_"].endswith("MinSNR")
    both = composed(
        "experiment=quickstart", "diffusion/weighting=p2", "training.optim.lr=3", "seed=9"
    )
    assert both["diffusion"]["weighting"]["_target_"].endswith("P2")
    assert (both["training"]["optim"]["lr"], both["seed"]) == (3, 9)
    assert both["training"]["max_samples"] == quickstart["training"]["max_samples"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["seed=1", "seed=2"],
        ["data.train.shards=a-0.tar", "data.train.shards=a-1.tar", "data.train.shards=a-2.tar"],
        ["models/unet=tiny", "models/unet=sd15"],
        ["seed=1", "++seed=2"],
    ],
)
def test_a_key_given_twice_is_an_error(arguments: list[str]) -> None:
    key = arguments[0].partition("=")[0]
    with pytest.raises(ValueError, match="given more than once") as caught:
        encode(arguments)
    assert key in str(caught.value)
    assert '"data.train.shards=x-{0..5}.tar"' in str(caught.value)


def test_encoding_leaves_flags_and_groups_alone() -> None:
    line = ["-m", "--cfg", "job", "experiment=sd15", "models/unet=tiny", "data=emoji", "+x=1"]
    assert encode(line) == line
    assert encode(["hydra.verbose=true", "seed=1,2"]) == ["hydra.verbose=true", "++seed=1,2"]


# -- running --------------------------------------------------------------------------------------


@pytest.fixture
def typed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[object, list[dict[str, Any]]]]:
    """typed(task, config, "key=value", …): the exit code, and what `task` was given."""
    monkeypatch.chdir(tmp_path)

    def run(task: Callable[..., Any], config: str, *line: str) -> tuple[object, list[Any]]:
        given: list[dict[str, Any]] = []

        def watched(cfg: dict[str, Any]) -> Any:
            given.append(cfg)
            assert sys.argv == ["scripts/x.py", *line]  # what DDP's children are started with
            return task(cfg)

        monkeypatch.setattr(sys, "argv", ["scripts/x.py", *line])
        with pytest.raises(SystemExit) as end:
            cli.run(watched, config=config)
        left = [] if "-m" not in line else [tmp_path / "multirun"]
        assert list(tmp_path.iterdir()) == left  # of hydra's
        return end.value.code, given

    return run


@pytest.mark.parametrize("code", [0, 75, None])
def test_the_exit_code_is_the_tasks(typed: Callable[..., Any], code: int | None) -> None:
    status, (cfg,) = typed(lambda _: code, "sample", "prompt=a cat, red", "seed=3")
    assert status == (code or 0)
    assert type(cfg) is dict
    assert (cfg["prompt"], cfg["seed"]) == ("a cat, red", 3)


def test_bad_input_is_one_line_and_code_1(typed: Callable[..., Any]) -> None:
    """sys.exit with a text prints it to stderr and exits with 1, without a traceback."""

    def fail(cfg: dict[str, Any]) -> None:
        raise ConfigError("seed=x; give an integer")

    assert typed(fail, "sample", "seed=x")[0] == "error: seed=x; give an integer"


def test_a_key_given_twice_ends_before_anything_runs(typed: Callable[..., Any]) -> None:
    status, given = typed(lambda _: 0, "sample", "seed=1", "seed=2")
    assert str(status).startswith("error: given more than once: seed.")
    assert given == []


def test_a_sweep_gets_a_folder_a_job(typed: Callable[..., Any]) -> None:
    _, given = typed(lambda _: 0, "train", "-m", "seed=1,2", "name=it's, é")
    assert [(cfg["seed"], cfg["run_dir"]) for cfg in given] == [
        (1, "runs/it's, é/0"),
        (2, "runs/it's, é/1"),
    ]


def test_make_shards_has_a_friendlier_name_for_its_group(typed: Callable[..., Any]) -> None:
    _, (cfg,) = typed(lambda _: 0, "make_shards", "source=folder", "out=x, y", "data.root=it's")
    assert cfg["data"]["_target_"].endswith("FolderSource")
    assert (cfg["out"], cfg["writer"]["out"], cfg["data"]["root"]) == ("x, y", "x, y", "it's")


def test_every_primary_config_composes(composed: Callable[..., dict[str, Any]]) -> None:
    for path in cli.CONF.glob("*.yaml"):
        assert composed(config=path.stem)
