"""Does a text encoder learn a new word, alone, and does the word travel to other tools?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ldm
from ldm import app
from ldm.adapters.settings import TextualInversionSettings
from ldm.adapters.token import NewToken, embedding_of
from ldm.cli import ConfigError
from ldm.io.embedding import read_embedding, write_embedding
from ldm.models.text.base import TextEncoder
from ldm.models.text.clip import clip_text

WORD = (
    "adapters=textual_inversion",
    "adapters.token=<thing>",
    "adapters.vectors=2",
    "adapters.initializer=circle",
    'data.templates=["a <thing>, {}"]',
    "training.caption_dropout=0",
    "training.optim.weight_decay=0",
)


@pytest.fixture(scope="module")
def run_dir(
    tmp_path_factory: pytest.TempPathFactory, finished_run: Path, tiny_cfg: Callable[..., Any]
) -> Path:
    """Four steps of a new word on the finished run. Only to be read."""
    folder = tmp_path_factory.mktemp("word") / "run"
    assert app.train(tiny_cfg(folder, f"init_from={finished_run}", *WORD)) == 0
    return folder


@pytest.fixture
def text() -> TextEncoder:
    return clip_text(source="tiny")


def picture(pipe: ldm.Pipeline, prompt: str = "a <thing>") -> np.ndarray:
    return np.asarray(pipe.txt2img([prompt], seeds=[3], steps=3)[0]).astype(int)


def learnt(text: TextEncoder, token: str, vectors: torch.Tensor) -> NewToken:
    word = NewToken(token, vectors)
    word.rows.ids = text.learn(token, len(vectors))
    word.hook(text.module)
    return word


# -- the word in the text encoder -----------------------------------------------------------------


def test_a_new_word_with_the_rows_of_a_known_one_is_that_word(text: TextEncoder) -> None:
    table = embedding_of(text.module).weight
    rows = table[text.ids_of("red circle")].detach().clone()
    assert len(rows) == 2
    expected = text.encode(["a small red circle", "a star"]).context
    learnt(text, "<thing>", rows)
    assert torch.equal(text.encode(["a small <thing>", "a star"]).context, expected)


def test_prompts_with_weights_and_chunks_know_the_word(text: TextEncoder) -> None:
    rows = embedding_of(text.module).weight[text.ids_of("red circle")].detach().clone()
    prompts = ["a (red circle:1.3) " * 9, "x"]
    expected = text.encode_prompts(prompts).context
    learnt(text, "<thing>", rows)
    found = text.encode_prompts([p.replace("red circle", "<thing>") for p in prompts]).context
    assert torch.equal(found, expected)


def test_two_words_do_not_mix_and_the_longer_one_wins(text: TextEncoder) -> None:
    table = embedding_of(text.module).weight.detach()
    red, star = table[text.ids_of("red")].clone(), table[text.ids_of("star")].clone()
    expected = text.encode(["a red star", "a star star"]).context
    learnt(text, "<a>", red)
    learnt(text, "<a>b", star)
    assert torch.equal(text.encode(["a <a> <a>b", "a <a>b <a>b"]).context, expected)


def test_too_long_captions_are_cut_and_counted(text: TextEncoder) -> None:
    rows = embedding_of(text.module).weight[:3].detach().clone()
    learnt(text, "<thing>", rows)
    context = text.encode(["<thing> " * 40]).context
    assert context is not None
    assert context.shape[1] == text.max_tokens
    assert text.truncated == 1


def test_neither_tokenizer_nor_weights_change(text: TextEncoder, tmp_path: Path) -> None:
    spec, plain = text.spec(), text.encode(["a <thing>"]).context
    word = learnt(text, "<thing>", embedding_of(text.module).weight[:2].detach().clone())
    assert text.spec() == spec
    assert not torch.equal(text.encode(["a <thing>"]).context, plain)
    from ldm.adapters.attach import detach

    detach(text.module, word)
    text.forget("<thing>")
    assert torch.equal(text.encode(["a <thing>"]).context, plain)


@pytest.mark.parametrize("token", ["circle", "red", "Circle"])
def test_a_word_that_exists_is_refused(text: TextEncoder, token: str) -> None:
    with pytest.raises(ValueError, match=f"'{token}' exists already.*<{token}-1>"):
        text.learn(token, 1)
    text.learn("<thing>", 1)
    with pytest.raises(ValueError, match="learnt already; learnt: <thing>"):
        text.learn("<thing>", 1)


def test_the_first_vectors_are_those_of_the_initializer(text: TextEncoder) -> None:
    table = embedding_of(text.module).weight.detach()
    ids = text.ids_of("red circle")
    made = TextualInversionSettings(token="<x>", vectors=3, initializer="red circle")
    word = made.build(text.module, text)["text"]
    assert torch.equal(word.vectors, table[[ids[0], ids[1], ids[0]]])
    random = TextualInversionSettings(token="<x>", vectors=200).build(text.module, text)["text"]
    assert random.vectors.std().item() == pytest.approx(table.std(0).mean().item(), rel=0.3)
    with pytest.raises(ValueError, match="is 2 tokens, vectors=1; give vectors=2"):
        TextualInversionSettings(token="<x>", initializer="red circle").build(text.module, text)
    with pytest.raises(ValueError, match=r"without blanks.*vectors=0"):
        TextualInversionSettings(token="a b", vectors=0)


# -- training -------------------------------------------------------------------------------------


def test_only_the_rows_of_the_word_are_trained(
    run_dir: Path, finished_run: Path, document: Callable[..., Any]
) -> None:
    state = document(run_dir)["state_dict"]
    assert [(name, tuple(value.shape)) for name, value in state.items()] == [
        ("adapters.text.rows.vectors", (2, 128))
    ]
    tuned, base = ldm.load(run_dir), ldm.load(finished_run)
    first = embedding_of(base.text.module).weight[base.text.ids_of("circle")]
    assert (tuned.adapters["trained"].parts["text"].vectors - first).abs().max() > 1e-3
    assert (picture(tuned, "a red star") == picture(base, "a red star")).all()
    assert (picture(tuned) != picture(base, "a circle circle")).any()


def test_an_interrupted_word_goes_on_bit_for_bit(
    run_dir: Path,
    finished_run: Path,
    tiny_run: Callable[..., Path],
    document: Callable[..., Any],
    differences: Callable[[Any, Any], list[str]],
    tmp_path: Path,
) -> None:
    lines = (f"init_from={finished_run}", *WORD)
    part = tiny_run(tmp_path / "part", *lines)
    for path in (part / "checkpoints").glob("*32*"):
        path.unlink()
    tiny_run(part, *lines, "resume=auto")
    for key in ("state_dict", "ema", "optimizer_states"):
        assert differences(document(part)[key], document(run_dir)[key]) == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin"])
def test_a_trained_word_is_written_and_comes_back(
    suffix: str, run_dir: Path, finished_run: Path, composed: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / f"thing{suffix}"
    line = [f"input={run_dir}", f"output={out}", "format=embedding"]
    assert app.convert(composed(*line, config="convert")) == 0
    pipe = ldm.load(finished_run)
    alone = picture(pipe)
    name = pipe.attach(out)
    assert (picture(pipe) == picture(ldm.load(run_dir))).all()
    pipe.detach(name)
    assert (picture(pipe) == alone).all()


def test_a_word_is_not_merged_and_is_no_lora(
    run_dir: Path, composed: Callable[..., Any], tmp_path: Path
) -> None:
    for form, message in (("native", "cannot be merged"), ("lora_kohya", "format=embedding")):
        out = tmp_path / ("x.safetensors" if form == "lora_kohya" else "x")
        line = [f"input={run_dir}", f"output={out}", f"format={form}"]
        with pytest.raises(ConfigError, match=message):
            app.convert(composed(*line, config="convert"))


# -- files ----------------------------------------------------------------------------------------


def test_the_files_of_other_tools_are_read(tmp_path: Path) -> None:
    rows = torch.randn(2, 8)
    save_file({"emb_params": rows}, tmp_path / "a.safetensors")
    save_file({"<cat>": rows[0]}, tmp_path / "b.safetensors")
    torch.save({"<cat>": rows[0]}, tmp_path / "c.bin")
    torch.save({"string_to_param": {"*": rows}, "name": "cat", "step": 3}, tmp_path / "d.pt")
    for name, token, expected in (
        ("a.safetensors", "a", rows),
        ("b.safetensors", "<cat>", rows[:1]),
        ("c.bin", "<cat>", rows[:1]),
        ("d.pt", "cat", rows),
    ):
        found = read_embedding(tmp_path / name)
        assert (found.token, found.vectors.tolist()) == (token, expected.tolist())
    write_embedding(tmp_path / "e.safetensors", "<dog>", rows)
    assert list(load_file(tmp_path / "e.safetensors")) == ["<dog>"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"<a>": torch.zeros(1).expand(2**20, 2**20)}, "1024 at most"),
        ({"<a>": torch.zeros(1).expand(8, 2**30)}, "more than the file holds"),
        ({"<a>": torch.zeros(2, 8, dtype=torch.complex64)}, "not numbers"),
        ({"<a>": torch.eye(8).to_sparse()}, "not numbers"),
        ({"<a>": torch.full((8,), 1e300, dtype=torch.float64)}, "is not finite"),
        ({"clip_l": torch.zeros(1, 8), "clip_g": torch.zeros(1, 8)}, "a word of SDXL"),
        ({"<a>": torch.zeros(2, 8), "<b>": torch.zeros(8)}, "holds 2 entries"),
        ({"<a>": torch.zeros(1, 2, 8)}, r"is \(1, 2, 8\); vectors are"),
        ({"<a>": torch.full((8,), torch.nan)}, "is not finite"),
        ({"string_to_param": 3}, "string_to_param is a int"),
        ([torch.zeros(8)], "holds a list"),
    ],
)
def test_files_that_are_no_word_say_what_they_are(
    content: Any, message: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        read_embedding(tmp_path / "x.pt")


def test_words_of_files_are_words(text: TextEncoder) -> None:
    for token in ("", "easy negative"):
        with pytest.raises(ValueError, match="empty or has blanks"):
            text.learn(token, 1)


def test_the_first_container_of_words_is_read_and_nothing_else_is_run(tmp_path: Path) -> None:
    rows = torch.randn(1, 8)
    content = {"string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(rows)})}
    torch.save(content, tmp_path / "old.pt")
    assert torch.equal(read_embedding(tmp_path / "old.pt").vectors, rows)

    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("owned",))

    torch.save({"<a>": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="would run code"):
        read_embedding(tmp_path / "evil.pt")


def test_a_word_that_no_caption_has_is_refused(
    finished_run: Path, tiny_run: Callable[..., Path], tmp_path: Path
) -> None:
    lines = [line for line in WORD if not line.startswith("data.templates")]
    with pytest.raises(ConfigError, match="none of the first captions has the new word <thing>"):
        tiny_run(tmp_path / "run", f"init_from={finished_run}", *lines)


def test_a_word_for_another_encoder_is_refused_and_nothing_stays(
    finished_run: Path, tmp_path: Path
) -> None:
    write_embedding(tmp_path / "x.safetensors", "<thing>", torch.randn(2, 768))
    pipe = ldm.load(finished_run)
    with pytest.raises(ValueError, match="vectors are 768 wide, the embedding here 128"):
        pipe.attach(tmp_path / "x.safetensors")
    write_embedding(tmp_path / "y.safetensors", "<thing>", torch.randn(2, 128))
    pipe.attach(tmp_path / "y.safetensors")  # the word was not kept by the one that failed


@pytest.mark.reference
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_diffusers_reads_our_words(suffix: str, text: TextEncoder, tmp_path: Path) -> None:
    """Two vectors of one word, in its own loader: the same context."""
    from diffusers.loaders import TextualInversionLoaderMixin
    from transformers import CLIPTextModel, CLIPTokenizer

    text.save(tmp_path / "text")
    rows = torch.randn(2, text.width)
    path = tmp_path / f"thing{suffix}"
    write_embedding(path, "<thing>", rows)

    class Holder(TextualInversionLoaderMixin):
        def __init__(self) -> None:
            self.tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "text")
            self.text_encoder = CLIPTextModel.from_pretrained(tmp_path / "text").float()
            self.hf_device_map = None
            self.components = {"tokenizer": self.tokenizer, "text_encoder": self.text_encoder}

    theirs = Holder()
    theirs.load_textual_inversion(str(path))
    prompt = theirs.maybe_convert_prompt("a small <thing> here", theirs.tokenizer)
    ids = theirs.tokenizer(
        prompt, padding="max_length", max_length=text.max_tokens, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        expected = theirs.text_encoder(ids).last_hidden_state
    learnt(text, "<thing>", rows)
    found = text.encode(["a small <thing> here"]).context
    assert found is not None
    assert torch.allclose(found, expected, atol=1e-4)
