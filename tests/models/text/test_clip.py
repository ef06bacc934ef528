"""ClipText against transformers' own model, and the laws every text encoder keeps."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from ldm.models.text.clip import ClipText, clip_l_config, clip_model, clip_text
from ldm.models.text.folder import load_text, text_from_spec

BITS = {"rtol": 0, "atol": 0}


def reference_ids(tokenizer, captions):
    return torch.tensor(
        tokenizer(captions, padding="max_length", truncation=True, max_length=16)["input_ids"]
    )


def test_context_is_the_last_hidden_state(clip_dir, reference_clip, tokenizer, captions):
    with torch.no_grad():
        expected = reference_clip(reference_ids(tokenizer, captions)).last_hidden_state
    got = clip_text(source=str(clip_dir)).encode(captions)
    assert_close(got.context, expected, **BITS)
    assert got.mask is None


@pytest.mark.parametrize("skip", [1, 2, 4])
def test_clip_skip_is_the_final_norm_on_an_earlier_state(
    clip_dir, reference_clip, tokenizer, captions, skip
):
    with torch.no_grad():
        out = reference_clip(reference_ids(tokenizer, captions), output_hidden_states=True)
        expected = reference_clip.final_layer_norm(out.hidden_states[-skip])
    got = clip_text(source=str(clip_dir), clip_skip=skip).encode(captions)
    assert_close(got.context, expected, **BITS)


def test_clip_skip_equals_a_network_without_the_skipped_layers(clip_dir, captions):
    skipped = clip_text(source=str(clip_dir), clip_skip=2).encode(captions)
    shorter = clip_text(source=str(clip_dir), layers=3)
    assert_close(skipped.context, shorter.encode(captions).context, **BITS)
    assert shorter.spec()["layers"] == 3


def test_null_is_the_empty_caption_or_zeros(clip_dir):
    empty = clip_text(source=str(clip_dir))
    assert_close(empty.null(3).context, empty.encode(["", "", ""]).context, rtol=0, atol=1e-6)
    assert_close(empty.null(1).context, empty.encode([""]).context, **BITS)
    zeros = clip_text(source=str(clip_dir), null="zeros").null(2).context
    assert_close(zeros, torch.zeros(2, 16, 32), **BITS)


def test_save_and_load_are_bit_equal_and_need_nothing_else(clip_dir, captions, tmp_path):
    encoder = clip_text(source=str(clip_dir), clip_skip=2, pad_token="!", null="zeros")
    encoder.save(tmp_path / "frozen")
    again = load_text(tmp_path / "frozen")
    assert again.spec() == encoder.spec()
    assert_close(again.encode(captions).context, encoder.encode(captions).context, **BITS)
    assert again.null_kind == "zeros"


def test_spec_is_plain_and_finds_the_source_again(clip_dir, captions):
    encoder = clip_text(source=str(clip_dir), layers=3)
    spec = json.loads(json.dumps(encoder.spec()))
    assert spec == encoder.spec()
    again = text_from_spec(spec)
    assert_close(again.encode(captions).context, encoder.encode(captions).context, **BITS)


def test_a_card_is_enough_for_a_folder_that_we_did_not_save(clip_dir, captions):
    encoder = clip_text(source=str(clip_dir), clip_skip=2)
    again = load_text(clip_dir, {**encoder.spec(), "source": "org/elsewhere"})
    assert again.spec() == {**encoder.spec(), "source": "org/elsewhere"}
    assert_close(again.encode(captions).context, encoder.encode(captions).context, **BITS)


def test_changed_weights_are_noticed(clip_dir, tmp_path):
    clip_text(source=str(clip_dir)).save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["text_model.final_layer_norm.bias"][0] += 2**-10
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="another text encoder than the one saved: hash"):
        load_text(tmp_path)


def test_a_changed_vocabulary_is_noticed(clip_dir, tmp_path):
    clip_text(source=str(clip_dir)).save(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    fewer = {k: v for k, v in tokenizer.get_vocab().items() if k != "a</w>"}
    CLIPTokenizer(vocab=fewer, merges=[]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer_hash"):
        load_text(tmp_path)


def test_half_precision_file_is_fp32_in_memory(clip_dir, reference_clip, tokenizer, tmp_path):
    # a config of its own: saving writes the dtype into it
    half = CLIPTextModel(copy.deepcopy(reference_clip.config)).half()
    half.load_state_dict(reference_clip.state_dict())
    half.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    encoder = clip_text(source=str(tmp_path))
    assert {p.dtype for p in encoder.module.parameters()} == {torch.float32}
    encoder.save(tmp_path / "frozen")
    assert json.loads((tmp_path / "frozen" / "config.json").read_text())["dtype"] == "float32"
    rounded = CLIPTextModel(reference_clip.config).eval()
    rounded.load_state_dict({k: v.half().float() for k, v in reference_clip.state_dict().items()})
    with torch.no_grad():
        expected = rounded(reference_ids(tokenizer, ["a red star"])).last_hidden_state
    assert_close(encoder.encode(["a red star"]).context, expected, **BITS)


def test_other_dtypes_are_asked_for_and_the_context_stays_fp32(clip_dir):
    encoder = clip_text(source=str(clip_dir), dtype="bf16")
    exact = clip_text(source=str(clip_dir))
    assert {p.dtype for p in encoder.module.parameters()} == {torch.bfloat16}
    context = encoder.encode(["a red star"]).context
    assert context.dtype == torch.float32
    # bf16 keeps 8 bits; four layers of it stay within a few per cent of unit-size states
    assert_close(context, exact.encode(["a red star"]).context, rtol=0, atol=0.1)
    assert encoder.hash() != exact.hash()
    assert exact.cast(torch.bfloat16).hash() == encoder.hash()


def test_autocast_around_it_changes_nothing(clip_dir):
    encoder = clip_text(source=str(clip_dir))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encoder.encode(["a red star"]).context
    assert_close(inside, encoder.encode(["a red star"]).context, **BITS)


def test_frozen_unless_asked_for(clip_dir):
    encoder = clip_text(source=str(clip_dir))
    assert not encoder.module.training
    assert not any(p.requires_grad for p in encoder.module.parameters())
    assert not encoder.encode(["a"]).context.requires_grad

    encoder.unfreeze()
    encoder.encode(["a"]).context.sum().backward()
    assert all(p.grad is not None for p in encoder.module.parameters())
    assert encoder.spec()["trained"]

    encoder.freeze()
    assert not encoder.encode(["a"]).context.requires_grad


def test_an_adapter_gets_gradients_through_frozen_weights(clip_dir):
    encoder = clip_text(source=str(clip_dir)).allow_gradients()
    adapter = torch.zeros(32, requires_grad=True)
    layer = next(m for n, m in encoder.module.named_modules() if n.endswith("layers.0.mlp.fc2"))
    layer.register_forward_hook(lambda module, inputs, output: output + adapter)
    encoder.encode(["a red star"]).context.square().sum().backward()
    assert adapter.grad.abs().sum() > 0
    assert all(p.grad is None for p in encoder.module.parameters())


def test_loading_draws_no_random_numbers(clip_dir):
    before = torch.get_rng_state()
    clip_text(source=str(clip_dir))
    assert torch.equal(torch.get_rng_state(), before)


def test_text_half_of_a_whole_clip(reference_clip, tokenizer, captions, tmp_path):
    config = CLIPConfig(
        text_config=reference_clip.config.to_dict(),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": 16,
            "patch_size": 8,
        },
        projection_dim=8,
    )
    whole = CLIPModel(config)
    whole.text_model.load_state_dict(reference_clip.state_dict())
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = reference_clip(reference_ids(tokenizer, captions)).last_hidden_state
    assert_close(clip_text(source=str(tmp_path)).encode(captions).context, expected, **BITS)


def test_diffusers_layout_and_back(clip_dir, captions, tmp_path):
    encoder = clip_text(source=str(clip_dir), pad_token="!")
    encoder.save_for_diffusers(tmp_path / "text_encoder", tmp_path / "tokenizer")
    with pytest.raises(FileNotFoundError, match="set subfolder to one of text_encoder"):
        clip_text(source=str(tmp_path))
    again = clip_text(source=str(tmp_path), subfolder="text_encoder")
    assert again.pad_token == "!"
    assert_close(again.encode(captions).context, encoder.encode(captions).context, **BITS)

    theirs = CLIPTextModel.from_pretrained(tmp_path / "text_encoder", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    with torch.no_grad():
        expected = theirs(reference_ids(tokenizer, captions[:9])).last_hidden_state
    assert_close(encoder.encode(captions[:9]).context, expected, **BITS)


def test_files_for_older_readers_give_the_same_ids(clip_dir, captions, tmp_path):
    encoder = clip_text(source=str(clip_dir))
    encoder.save_for_diffusers(tmp_path / "text_encoder", tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    old = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert old(captions)["input_ids"] == encoder.tokens.tokenizer(captions)["input_ids"]


def test_pad_of_openclip_is_a_word_in_captions(clip_dir, tokenizer, tmp_path):
    """With SD 2's tokenizer "!" is special and becomes id 0; OpenCLIP reads "!</w>", id 256."""
    sd2 = CLIPTokenizer.from_pretrained(clip_dir, pad_token="!")
    sd2.save_pretrained(tmp_path)
    CLIPTextModel.from_pretrained(clip_dir, dtype=torch.float32).save_pretrained(tmp_path)
    assert sd2("a star !")["input_ids"][-2] == 0  # the trap
    tokens = clip_text(source=str(tmp_path), pad_token="!").tokens(["a star !"])
    length = int(tokens.mask.sum())
    assert tokens.ids[0, :length].tolist() == tokenizer("a star !")["input_ids"]
    assert tokens.ids[0, length - 2] == 256
    assert set(tokens.ids[0, length:].tolist()) == {0}


def test_added_tokens_survive_another_pad(clip_dir, tokenizer, reference_clip):
    learnt = CLIPTokenizer.from_pretrained(clip_dir, pad_token="!")
    learnt.add_tokens(["<my-cat>"])
    config = reference_clip.config.__class__.from_dict(
        {**reference_clip.config.to_dict(), "vocab_size": len(learnt)}
    )
    encoder = ClipText(model=CLIPTextModel(config), tokenizer=learnt)
    tokens = encoder.tokens(["a <my-cat> !"])
    assert tokens.ids[0, 2] == len(tokenizer)
    assert tokens.ids[0, 3] == 256


def test_all_problems_are_named_at_once(clip_dir, reference_clip, tokenizer):
    small = reference_clip.config.__class__.from_dict(
        {**reference_clip.config.to_dict(), "vocab_size": 100, "eos_token_id": 99}
    )
    with pytest.raises(ValueError, match=r"clip_skip=9.*pad_token='<pad>'.*100 rows"):
        ClipText(model=CLIPTextModel(small), tokenizer=tokenizer, clip_skip=9, pad_token="<pad>")
    with pytest.raises(ValueError, match="null='none' is not known; use one of empty, zeros"):
        clip_text(source=str(clip_dir), null="none")
    with pytest.raises(ValueError, match="dtype='float' is not known"):
        clip_text(source=str(clip_dir), dtype="float")
    with pytest.raises(ValueError, match="layers=5; use 1 to 4, or 0 for all 4"):
        clip_text(source=str(clip_dir), layers=5)


def test_missing_weights_are_an_error(reference_clip):
    state = dict(reference_clip.state_dict())
    state.pop("encoder.layers.1.mlp.fc1.bias")
    with pytest.raises(RuntimeError, match=r"layers\.1\.mlp\.fc1\.bias"):
        clip_model(state, reference_clip.config, dtype=torch.float32)


def test_clip_l_has_the_published_size():
    with torch.device("meta"):
        model = CLIPTextModel(clip_l_config())
    assert sum(p.numel() for p in model.parameters()) == 123_060_480
    assert len(model.state_dict()) == 196
