"""The markup of prompts: what is a weight, what is text, and what is refused."""

from __future__ import annotations

import time

import pytest

from ldm.models.text.prompts import Piece, parse_prompt, parse_prompts

# prompt: its pieces
PIECES = {
    "a red circle": [("a red circle", 1)],
    "": [],
    " a ": [(" a ", 1)],
    "(red)": [("red", 1.1)],
    "((red))": [("red", 1.21)],
    "(((red)))": [("red", 1.331)],
    "[red]": [("red", 1 / 1.1)],
    "[[red]]": [("red", 1 / 1.21)],
    "(red:1.2)": [("red", 1.2)],
    "(red:.5)": [("red", 0.5)],
    "(red:2)": [("red", 2)],
    "(red:2.)": [("red", 2)],
    "(red:0)": [("red", 0)],
    "(red:+1.5)": [("red", 1.5)],
    "(red: 1.5 )": [("red", 1.5)],
    "a (red:1.2) circle": [("a ", 1), ("red", 1.2), (" circle", 1)],
    "a (red circle, on (white:1.5):1.2)": [("a ", 1), ("red circle, on ", 1.2), ("white", 1.8)],
    "[a (red:1.1)]": [("a ", 1 / 1.1), ("red", 1)],
    "([((a))])": [("a", 1.21)],
    "(a)(b)": [("ab", 1.1)],
    "(a:1)b": [("ab", 1)],
    "(a) (b)": [("a", 1.1), (" ", 1), ("b", 1.1)],
    "un(real:1.3)istic": [("un", 1), ("real", 1.3), ("istic", 1)],
    "()": [],
    "a [] b": [("a  b", 1)],
    # text by escape
    r"\(red\)": [("(red)", 1)],
    r"\[red\]": [("[red]", 1)],
    r"(smile \(face\):1.2)": [("smile (face)", 1.2)],
    r"(a\)b)": [("a)b", 1.1)],
    r"(a:1.2\)": [("(a:1.2)", 1)],
    r"\\(a)": [("\\", 1), ("a", 1.1)],
    r"a\b": [(r"a\b", 1)],
    "a\\": [("a\\", 1)],
    # text, for it is no markup
    "(red": [("(red", 1)],
    "red)": [("red)", 1)],
    "[red": [("[red", 1)],
    "red]": [("red]", 1)],
    "((red)": [("(", 1), ("red", 1.1)],
    "(red))": [("red", 1.1), (")", 1)],
    "red:1.2)": [("red:1.2)", 1)],
    "(red:1.2": [("(red:1.2", 1)],
    "(red:1.2.3)": [("red:1.2.3", 1.1)],
    "(red:1,2)": [("red:1,2", 1.1)],
    "(red:x)": [("red:x", 1.1)],
    "(red:)": [("red:", 1.1)],
    "(red:1e9)": [("red:1e9", 1.1)],
    "(red:nan)": [("red:nan", 1.1)],
    "(red:\uff11.\uff12)": [("red:\uff11.\uff12", 1.1)],  # full-width digits
    "[red:1.2]": [("red:1.2", 1 / 1.1)],
    "a cat :) :(": [("a cat :) :(", 1)],
    "flag: european union": [("flag: european union", 1)],
    "a:1.2": [("a:1.2", 1)],
    # brackets of two kinds that overlap: each pair weighs what it holds
    "(a [b:1.2) c]": [("a ", 1.2), ("b", 1.2 / 1.1), (" c", 1 / 1.1)],
    # any script
    "(café 😀:1.5) 日本": [("café 😀", 1.5), (" 日本", 1)],
    "（red）": [("（red）", 1)],
    "(line\nline:1.5)": [("line\nline", 1.5)],
}
SECTIONS = {
    "a BREAK b": [["a "], [" b"]],
    "a\nBREAK\nb": [["a\n"], ["\nb"]],
    "BREAK a": [[], [" a"]],
    "a BREAK": [["a "]],
    "a BREAK \n": [["a "]],
    "a BREAK BREAK b": [["a "], [" "], [" b"]],
    "BREAK": [[]],
    "BREAKFAST, OUTBREAK, break, BREAK_": [["BREAKFAST, OUTBREAK, break, BREAK_"]],
    "a,BREAK,b": [["a,"], [",b"]],
}


@pytest.mark.parametrize("prompt", PIECES)
def test_pieces(prompt):
    (section,) = parse_prompt(prompt)
    assert [piece.text for piece in section] == [text for text, _ in PIECES[prompt]]
    # weights are rounded to nine digits
    assert [piece.weight for piece in section] == pytest.approx(
        [weight for _, weight in PIECES[prompt]], rel=0, abs=1e-9
    )


@pytest.mark.parametrize("prompt", SECTIONS)
def test_break_begins_a_section(prompt):
    got = [[piece.text for piece in section] for section in parse_prompt(prompt)]
    assert got == SECTIONS[prompt]


def test_a_weight_goes_on_after_a_break():
    assert parse_prompt("(a BREAK b:1.5) c") == [
        [Piece("a ", 1.5)],
        [Piece(" b", 1.5), Piece(" c", 1.0)],
    ]


def test_brackets_that_cancel_are_exactly_one():
    for prompt in ("[(a)]", "([a])", "[[((a))]]", "[[[(((a)))]]]", "(a:1.0)"):
        assert parse_prompt(f"b {prompt} c") == [[Piece("b a c")]]


def test_weights_out_of_range_are_named_all_at_once():
    prompts = ["fine", "(a cat:12), (a dog:-1)", "(" * 26 + "x" + ")" * 26]
    with pytest.raises(ValueError, match="allowed are 0 to 10") as caught:
        parse_prompts(prompts)
    for part in ("prompt 1: weight 12 on 'a cat'", "weight -1 on 'a dog'", "prompt 2: weight 11."):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match="weight inf"):
        parse_prompts([f"(a:{'9' * 400})"])
    with pytest.raises(ValueError, match="weight nan"):
        parse_prompts([f"((a:{'9' * 400}):0)"])


def test_what_counts_is_the_product():
    assert parse_prompts(["((a:20):0.1)", "(a:10)"]) == [[[Piece("a", 2.0)]], [[Piece("a", 10.0)]]]


@pytest.mark.parametrize("unit", ["1", ":", " ", "(", "\\", "[", ":1.", " BREAK", "1."])
def test_time_grows_with_the_length_only(unit):
    start = time.process_time()
    parse_prompt("(a:" + unit * 20_000)
    assert time.process_time() - start < 1  # a quadratic pattern takes many seconds
