"""Weighted and long prompts against plain encodes and a plain version of the same sums."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.testing import assert_close
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ldm.models.text.auto import AutoText, auto_text
from ldm.models.text.bert import LDMBertConfig, bert_text
from ldm.models.text.clip import UNKNOWN, clip_text
from ldm.models.text.none import NoText
from ldm.models.text.weighted import cut_between_words, emphasised, start_and_end

BITS = {"rtol": 0, "atol": 0}
# another number of rows takes other kernels: only the order of float32 sums differs
SUMS = {"rtol": 0, "atol": 2e-6}
LONG = "a small red circle, a large blue star, a small green cross, a large yellow heart"  # 19


@pytest.fixture(params=["plain", "skip", "sd2"])
def clip(request, clip_dir):
    """16 tokens: 14 between start and end. sd2 pads with "!", id 0."""
    options = {"plain": {}, "skip": {"clip_skip": 2}, "sd2": {"pad_token": "!", "layers": 3}}
    return clip_text(source=str(clip_dir), **options[request.param])


# -- equal to plain encodes -----------------------------------------------------------------------


def test_short_prompts_are_encode_bit_for_bit(clip, captions):
    prompts = [*(c for c in captions if "flag" not in c), "", "  ", "a star !"]
    expected = clip.encode(prompts).context
    assert clip.truncated == 0
    assert_close(clip.encode_prompts(prompts).context, expected, **BITS)
    assert_close(clip.encode_prompts(prompts, weighting=False).context, expected, **BITS)
    assert clip.chunks_needed(prompts) == 1


def test_weight_one_everywhere_changes_no_bit(clip):
    marked = ["a (small:1.0) red circle", "([a blue]) star!", "un(real:1)istic"]
    plain = ["a small red circle", "a blue star!", "unrealistic"]
    assert_close(clip.encode_prompts(marked).context, clip.encode(plain).context, **BITS)


def test_markup_is_text_unless_asked_for(clip):
    prompts = ["(a cat:1.2)", "a BREAK b"]
    got = clip.encode_prompts(prompts, weighting=False)
    assert_close(got.context, clip.encode(prompts).context, **BITS)
    assert not torch.equal(clip.encode_prompts(["(a cat:1.2)"]).context, got.context[:1])


def test_packaged_clip():
    encoder = clip_text(source="tiny")
    assert encoder.max_tokens == 24
    plain = encoder.encode(["a small red circle"]).context
    assert_close(encoder.encode_prompts(["a small (red:1) circle"]).context, plain, **BITS)
    weighted = encoder.encode_prompts(["a small (red:1.5) circle"]).context
    share = (weighted / plain).nan_to_num(1)[0].median(dim=1).values  # [L]
    assert_close(share / share[0], torch.tensor([1, 1, 1, 1.5] + [1] * 20), rtol=1e-5, atol=0)
    assert encoder.encode_prompts([LONG + ", " + LONG]).context.shape == (1, 48, 128)


# -- chunks ---------------------------------------------------------------------------------------


def test_a_long_prompt_is_the_encodes_of_its_parts_side_by_side(clip):
    parts = ["a small red circle, a large blue star, a small green cross", ", a large yellow heart"]
    assert clip.chunks_needed([LONG]) == 2
    got = clip.encode_prompts([LONG]).context
    assert_close(got, clip.encode(parts).context.flatten(0, 1)[None], **BITS)
    assert got.shape == (1, 32, 32)
    assert clip.truncated == 0


def test_break_ends_a_chunk(clip):
    got = clip.encode_prompts(["a red circle BREAK a blue star"]).context
    expected = clip.encode(["a red circle", "a blue star"]).context
    assert_close(got, expected.flatten(0, 1)[None], **BITS)


def test_shorter_prompts_are_filled_up_with_empty_chunks(clip):
    got = clip.encode_prompts(["a red star", LONG]).context
    expected = clip.encode(["a red star", "", ""]).context
    assert_close(got[0], expected[:2].flatten(0, 1), **SUMS)
    alone = clip.encode_prompts(["a red star"], chunks=3).context
    assert_close(alone, expected.flatten(0, 1)[None], **BITS)
    leading = clip.encode_prompts(["BREAK a red star"]).context
    assert_close(leading[:, :16], expected[1:2], **SUMS)


def test_rows_do_not_know_each_other(clip):
    prompts = ["a (red:1.4) star", LONG, "(" + LONG + ":0.7)", ""]
    there = clip.encode_prompts(prompts).context
    back = clip.encode_prompts(prompts[::-1]).context
    assert_close(back.flip(0), there, **SUMS)
    for row, prompt in enumerate(prompts):
        alone = clip.encode_prompts([prompt], chunks=2).context
        assert_close(alone, there[row : row + 1], **SUMS)


@pytest.mark.parametrize("chunks", [1, 3])
def test_null_is_the_empty_prompt_of_as_many_chunks(clip, chunks):
    null = clip.null(2, chunks)
    got = clip.encode_prompts(["", ""], chunks=chunks)
    assert_close(null.context, got.context, **SUMS)
    assert null.mask is None


def test_null_of_zeros_stays_zeros(clip_dir):
    encoder = clip_text(source=str(clip_dir), null="zeros")
    assert_close(encoder.null(2, chunks=3).context, torch.zeros(2, 48, 32), **BITS)
    filled = encoder.encode_prompts(["a"], chunks=2).context[:, 16:]
    assert_close(filled, encoder.encode([""]).context, **SUMS)  # a prompt is never the null


def word(*ids: int) -> list[tuple[int, float]]:
    return [(i, 1.0) for i in ids]


def test_only_words_longer_than_a_chunk_are_cut():
    def cut(*words: list[tuple[int, float]]) -> list[list[int]]:
        return [[i for i, _ in chunk] for chunk in cut_between_words(words, 3)]

    assert cut() == [[]]
    assert cut(word(1, 2), word(3)) == [[1, 2, 3]]
    assert cut(word(1, 2), word(3, 4), word(5)) == [[1, 2], [3, 4, 5]]
    assert cut(word(0), word(1, 2, 3, 4, 5, 6, 7), word(8)) == [[0], [1, 2, 3], [4, 5, 6], [7, 8]]
    assert cut(word(1, 2, 3), word(4)) == [[1, 2, 3], [4]]


def test_a_word_of_any_length_keeps_all_its_tokens(clip):
    prompt = "日本語の長い文章" * 4 + " a star"
    ids = clip.tokens.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert clip.chunks_needed([prompt]) == -(-len(ids) // 14)


def test_a_word_moves_to_the_next_chunk_whole(clip, tokenizer):
    filler = "a " * 12  # two places are left
    assert len(tokenizer("zebra", add_special_tokens=False)["input_ids"]) > 2
    got = clip.encode_prompts([filler + "zebra"]).context
    expected = clip.encode([filler, "zebra"]).context
    assert_close(got, expected.flatten(0, 1)[None], **BITS)


def test_what_cannot_be_is_refused(clip):
    with pytest.raises(ValueError, match="chunks=1 is too few; use 2 or more"):
        clip.encode_prompts([LONG], chunks=1)
    with pytest.raises(ValueError, match="chunks=0 is too few"):
        clip.null(1, chunks=0)
    with pytest.raises(ValueError, match="weight 20 on 'a'"):
        clip.chunks_needed(["(a:20)"])
    for wrong in ("a red star", []):
        with pytest.raises(ValueError, match="pass a list of at least one string"):
            clip.encode_prompts(wrong)


# -- weights --------------------------------------------------------------------------------------


def test_one_weighted_prompt_written_out(clip):
    """Automatic1111's sums, one line each, with ids and weights written by hand."""
    tokenizer, pad = clip.tokens.tokenizer, clip.tokens.pad_id
    one = {w: tokenizer(w, add_special_tokens=False)["input_ids"] for w in ("a", "red", "star")}
    assert all(len(ids) == 1 for ids in one.values())
    ids = [tokenizer.bos_token_id, *one["a"], *one["red"], *one["star"], tokenizer.eos_token_id]
    weights = torch.tensor([1, 1, 1.5, 1.5 / 1.1] + [1] * 12)
    with torch.no_grad():
        out = clip.module(torch.tensor([ids + [pad] * 11]), output_hidden_states=True)
    z = clip.final_norm(out.hidden_states[-clip.clip_skip])
    original_mean = z.mean()
    z = z * weights[None, :, None]
    assert 1 <= z.mean() / original_mean <= 1.5  # the means agree here: nothing is bounded
    z = z * (original_mean / z.mean())
    got = clip.encode_prompts(["a (red [star]:1.5)"]).context
    assert_close(got, z, rtol=0, atol=1e-5)  # a division and a multiplication, rounded in float32


def test_the_mean_is_restored_in_each_row():
    context = torch.rand(3, 8, 5, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(3, 8)
    weights[0, 2], weights[1, 3:6] = 2.0, 0.25
    got = emphasised(context, weights)
    assert_close(got.mean((1, 2)), context.mean((1, 2)))
    assert_close(got[2], context[2], **BITS)
    assert_close(got[0, 2] / context[0, 2], 2 * got[0, 0] / context[0, 0])


def test_where_means_cancel_the_scale_stays_within_the_weights():
    """Token means 1, -1, 0.1: with weight 2 on the second the mean turns from 0.1 to -0.9."""
    context = torch.tensor([1.0, -1.0, 0.1])[None, :, None].expand(1, 3, 4)
    got = emphasised(context, torch.tensor([[1.0, 2.0, 1.0]]))
    assert_close(got[0, :, 0], torch.tensor([1.0, -2.0, 0.1]), **BITS)
    got = emphasised(context, torch.tensor([[0.0, 1.0, 1.0]]))
    assert_close(got[0, :, 0], torch.tensor([0.0, -10.0, 1.0]))  # ten times at most
    got = emphasised(torch.zeros(1, 3, 4), torch.tensor([[1.0, 2.0, 1.0]]))
    assert_close(got, torch.zeros(1, 3, 4), **BITS)


def test_the_mean_is_that_of_what_attention_sees():
    context = torch.tensor([1.0, 2.0, -50.0])[None, :, None].expand(1, 3, 4)
    seen = torch.tensor([[True, True, False]])
    got = emphasised(context, torch.tensor([[1.0, 2.0, 1.0]]), seen)
    assert_close(got[0, :2].mean(), torch.tensor(1.5))


def test_gradients_reach_an_adapter_through_weighted_prompts(clip_dir):
    encoder = clip_text(source=str(clip_dir))
    assert not encoder.encode_prompts(["a (red:1.2) star"]).context.requires_grad
    encoder.unfreeze()
    encoder.encode_prompts(["a (red:1.2) star"]).context.square().sum().backward()
    assert all(p.grad is not None for p in encoder.module.parameters())


# -- other encoders -------------------------------------------------------------------------------


@pytest.fixture
def bert(tmp_path):
    """8 tokens: 6 between [CLS] and [SEP]."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "star", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.manual_seed(0)
    sizes = {"vocab_size": 10, "max_tokens": 8, "width": 24, "num_layers": 2}
    sizes |= {"num_heads": 2, "head_dim": 8, "ff_width": 48}
    return bert_text(source="scratch", tokenizer=str(tmp_path), config=LDMBertConfig(**sizes))


def t5_model(vocab_size):
    torch.manual_seed(0)
    config = T5Config(vocab_size=vocab_size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config)


@pytest.fixture
def t5(tmp_path):
    """One id a word and `</s>` at the end; 6 tokens."""
    words = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "star", "circle"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(tmp_path)
    t5_model(len(words)).save_pretrained(tmp_path)
    return auto_text(source=str(tmp_path), max_tokens=6)


def test_bert_chunks_have_cls_and_sep(bert):
    """The two word pieces of "stars" stay together."""
    assert start_and_end(bert.tokens.tokenizer) == ([2], [3])
    got = bert.encode_prompts(["a red (star:1.5) a red stars", "blue"], chunks=3).context
    assert got.shape == (2, 24, 24)
    filled = bert.encode(["stars", "", "blue", ""]).context
    assert_close(got[0, 8:16], filled[0], **SUMS)
    assert_close(got[0, 16:], filled[1], **SUMS)
    assert_close(got[1, :16], filled[2:].flatten(0, 1), **SUMS)
    plain = bert.encode(["a red star a red"]).context
    assert not torch.equal(got[:1, :8], plain)


def test_t5_has_weights_and_no_chunks(t5):
    long = "a red star a blue circle a"
    prompts = ["a red star", long]
    got, plain = t5.encode_prompts(prompts), t5.encode(prompts)
    assert_close(got.context, plain.context, **BITS)
    assert_close(got.mask, plain.mask, **BITS)
    assert t5.truncated == 2  # once in each
    assert t5.chunks_needed(prompts) == 1
    assert t5.truncated == 2
    weighted = t5.encode_prompts(["a (red:1.5) star"], chunks=1)
    share = (weighted.context / plain.context[:1])[0].median(dim=1).values
    assert_close(share / share[0], torch.tensor([1, 1.5, 1, 1, 1, 1]))
    seen = plain.mask[0]
    change = (plain.context[0] * share[:, None] / share[0])[seen].mean() / plain.context[
        0, seen
    ].mean()
    # pads, which nothing sees, have no part in the mean
    assert_close(1 / share[0], change.clamp(1, 1.5), rtol=1e-4, atol=0)
    assert 1 < change < 1.5
    with pytest.raises(ValueError, match=r"BREAK in prompts \[1\]: this text encoder reads"):
        t5.chunks_needed(["a", "a BREAK red"])
    for call in (lambda: t5.encode_prompts(["a"], chunks=2), lambda: t5.null(1, 2)):
        with pytest.raises(ValueError, match="'auto' text has one chunk a prompt; use 1"):
            call()


def test_masks_lie_side_by_side_as_contexts_do(t5, monkeypatch):
    monkeypatch.setattr(type(t5), "chunked", True)
    got, null = t5.encode_prompts(["a red star BREAK blue", "a"]), t5.null(2, chunks=2)
    assert got.mask.sum(1).tolist() == [4 + 2, 2 + 1]
    assert_close(got.mask[0], t5.encode(["a red star", "blue"]).mask.flatten(), **BITS)
    assert_close(null.mask, t5.encode_prompts(["", ""], chunks=2).mask, **BITS)
    assert null.context.shape == got.context.shape == (2, 12, 16)


def test_a_tokenizer_without_words():
    """ByT5 reads bytes in Python, which knows no words."""
    encoder = AutoText(
        model=t5_model(384),
        tokenizer=ByT5Tokenizer(),
        max_tokens=20,
        attention_mask=True,
        null="empty",
        origin=UNKNOWN,
    )
    plain = encoder.encode([" a red star "])
    assert_close(encoder.encode_prompts([" a red star "]).context, plain.context, **BITS)
    weighted = encoder.encode_prompts(["(a red star:1.5)"])
    assert weighted.mask.sum() == len("a red star") + 1


def test_without_text_there_is_nothing_to_weigh():
    encoder = NoText()
    assert encoder.chunks_needed(["(a:99)"]) == 1
    assert encoder.encode_prompts(["a BREAK b"], chunks=1).context is None
    assert encoder.null(2, chunks=3).context is None
