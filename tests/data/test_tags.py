"""Are tags shuffled and dropped, and captions put into templates, as a function of the sample?"""

from __future__ import annotations

import pytest

from ldm.data.tags import Tags, Templates

CAPTION = "1girl, red hair, smile , , blue sky,grass"
TAGS = ["1girl", "red hair", "smile", "blue sky", "grass"]
COUNT = 400


def varied(tags: Tags, caption: str = CAPTION, *, seed: int = 0) -> list[str]:
    return [tags.vary(caption, seed=seed, number=n) for n in range(COUNT)]


def test_by_default_a_caption_is_left_alone() -> None:
    assert set(varied(Tags())) == {CAPTION}
    assert set(varied(Tags(keep_first=2, separator=";"))) == {CAPTION}


def test_shuffling_keeps_every_tag() -> None:
    made = [text.split(", ") for text in varied(Tags(shuffle=True))]
    assert all(sorted(tags) == sorted(TAGS) for tags in made)
    assert len({tuple(tags) for tags in made}) > 100  # of 120
    for place in range(5):  # 80 expected, standard deviation 8
        assert all(45 < sum(tags[place] == tag for tags in made) < 115 for tag in TAGS)


@pytest.mark.parametrize("keep", [1, 3, 5, 9])
def test_the_first_tags_stay_in_front(keep: int) -> None:
    made = [text.split(", ") for text in varied(Tags(shuffle=True, dropout=0.5, keep_first=keep))]
    assert all(tags[:keep] == TAGS[:keep] for tags in made)
    assert len({tuple(tags) for tags in made}) > (1 if keep < 5 else 0)


def test_dropout_leaves_out_each_tag_as_often_as_said() -> None:
    made = [text.split(", ") for text in varied(Tags(dropout=0.25, keep_first=1))]
    for tag in TAGS[1:]:  # 300 expected, standard deviation 9
        assert 265 < sum(tag in tags for tags in made) < 335
    order = {tag: n for n, tag in enumerate(TAGS)}
    assert all(tags == sorted(tags, key=order.__getitem__) for tags in made)  # not shuffled


def test_one_tag_always_stays() -> None:
    assert set(varied(Tags(dropout=1.0))) == {"1girl"}
    assert set(varied(Tags(dropout=1.0, shuffle=True))) == set(TAGS)
    assert set(varied(Tags(dropout=1.0, keep_first=2))) == {"1girl, red hair"}


def test_chance_belongs_to_the_sample() -> None:
    tags = Tags(shuffle=True, dropout=0.3)
    made = varied(tags)
    assert [tags.vary(CAPTION, seed=0, number=n) for n in (399, 7)] == [made[399], made[7]]
    assert varied(tags, seed=1) != made


@pytest.mark.parametrize(
    ("separator", "caption", "sorted_tags"),
    [
        (" ", "red_hair 1girl", ["1girl", "red_hair"]),
        (";", "b;a", ["a", "b"]),
        ("|", "b|a", ["a", "b"]),
        (" | ", "b | a", ["a", "b"]),
    ],
)
def test_other_separators(separator: str, caption: str, sorted_tags: list[str]) -> None:
    made = set(varied(Tags(shuffle=True, separator=separator), caption))
    between = "; " if separator == ";" else separator
    assert made == {between.join(sorted_tags), between.join(reversed(sorted_tags))}


@pytest.mark.parametrize("caption", ["", ",", "one"])
def test_nothing_to_shuffle(caption: str) -> None:
    assert set(varied(Tags(shuffle=True, dropout=0.9), caption)) == {caption}


def test_templates_are_taken_in_turn_by_chance() -> None:
    two = Templates(("a photo of {}", "art: {}!"))
    made = [two.fill("cat {0} {}", seed=0, number=n) for n in range(COUNT)]
    assert set(made) == {"a photo of cat {0} {}", "art: cat {0} {}!"}  # braces mean nothing there
    assert 150 < made.count("art: cat {0} {}!") < 250  # 200, standard deviation 10
    assert two.fill("cat {0} {}", seed=0, number=77) == made[77]
    assert two.problems() == []


def test_one_template_and_none() -> None:
    assert Templates(("a {}",)).fill("cat", seed=0, number=3) == "a cat"
    assert Templates().fill("cat", seed=0, number=3) == "cat"
    assert Templates(("a {}",)).fill("", seed=0, number=3) == ""


@pytest.mark.parametrize("text", ["no place", "{} and {}", "", 5])
def test_a_template_has_one_place(text: object) -> None:
    assert "caption goes" in Templates((text,)).problems()[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        (Tags(dropout=1.5), "dropout=1.5"),
        (Tags(dropout=float("nan")), "dropout=nan"),
        (Tags(keep_first=-1), "keep_first=-1"),
        (Tags(separator=""), "separator=''"),
        (Tags(separator="\n"), "in no caption"),
    ],
)
def test_wrong_settings_say_so(tags: Tags, said: str) -> None:
    (problem,) = tags.problems()
    assert said in problem
