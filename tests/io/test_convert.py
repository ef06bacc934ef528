"""Does every format come back as it was, tensor for tensor?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.io.convert import Conversion, Row, convert, not_carried, verify
from ldm.io.load import load_model, open_source
from ldm.io.single_write import Parts, save_single

Foreign = Callable[..., Path]
KINDS = ("sd1", "sd2", "inpaint", "bert")
BUFFERS = ("betas", "alphas", "sqrt_", "log_one", "posterior_")  # made anew on writing


def run(source: Path, output: Path, **options: object) -> tuple[Parts, list[Row]]:
    job = Conversion(input=str(source), output=output, **options)  # type: ignore[arg-type]
    parts = convert(job)
    rows = verify(parts, output)
    assert all(row.good for row in rows), rows
    return parts, rows


def hinted(kind: str) -> dict[str, object]:
    from ldm.io.said import Hints

    return {"hints": Hints(prediction="eps")} if kind == "sd2" else {}


def same_file(one: Path, other: Path) -> None:
    """No missing or unexpected key, identical bytes; buffers equal to 1e-7."""
    before, after = load_file(one), load_file(other)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if name.startswith(BUFFERS):
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-7)
        else:
            assert after[name].dtype == value.dtype, name
            assert torch.equal(after[name], value), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_a_single_file_survives_our_format(
    foreign: Foreign, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    """Also what the model does not use: SD 2's last block, its projection, the EMA's decay."""
    file = foreign(kind, dtype=dtype)
    run(file, tmp_path / "run", format="native", weights="raw", **hinted(kind))
    back = tmp_path / "back.safetensors"
    run(tmp_path / "run", back, format="single", weights="raw", with_ema=True)
    same_file(file, back)


def test_without_the_averaged_weights(foreign: Foreign, tmp_path: Path) -> None:
    """with_ema writes them when asked; else the file holds the chosen weights only."""
    file = foreign("sd1", ema=True)
    run(file, tmp_path / "run", format="native")
    stored = load_file(file)
    for weights in ("ema", "raw"):
        back = tmp_path / f"{weights}.safetensors"
        run(tmp_path / "run", back, format="single", weights=weights)
        found = load_file(back)
        assert not [k for k in found if k.startswith("model_ema.d") and k != "model_ema.decay"]
        name = "model.diffusion_model.input_blocks.0.0.weight"
        averaged = "model_ema.diffusion_modelinput_blocks00weight"
        assert torch.equal(found[name], stored[averaged if weights == "ema" else name])
        assert open_source(back).weights == weights  # the card in the file says which


@pytest.mark.parametrize("kind", KINDS)
def test_a_diffusers_folder_survives_our_format(
    foreign: Foreign, tmp_path: Path, kind: str
) -> None:
    run(foreign(kind), tmp_path / "one", format="diffusers", **hinted(kind))
    run(tmp_path / "one", tmp_path / "run", format="native")
    run(tmp_path / "run", tmp_path / "two", format="diffusers")
    weights = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.safe*"))
    assert len(weights) == 3
    for name in weights:
        before, after = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        assert before.keys() == after.keys()
        assert all(torch.equal(after[k], v) for k, v in before.items())
    for name in ("unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        read = [(tmp_path / folder / name).read_text() for folder in ("one", "two")]
        assert read[0] == read[1]


def test_what_a_run_trained_survives_every_format(finished_run: Path, tmp_path: Path) -> None:
    """Tiny CLIP has a vocabulary of its own: its tokenizer travels in the file."""
    first = load_model(finished_run)
    run(finished_run, tmp_path / "a.safetensors", format="single")
    run(tmp_path / "a.safetensors", tmp_path / "b", format="diffusers")
    run(tmp_path / "b", tmp_path / "c.ckpt", format="single")
    run(tmp_path / "c.ckpt", tmp_path / "d", format="native")
    for name in ("a.safetensors", "b", "c.ckpt", "d"):
        model = load_model(tmp_path / name)
        assert model.weights == "ema"
        assert model.card["objective"] == first.card["objective"]
        assert model.card["sampling"] == first.card["sampling"]
        assert model.text.hash() == first.text.hash()
        captions = ["a red circle", "zwölf Boxkämpfer"]
        context = model.text.encode(captions).context
        assert torch.equal(context, first.text.encode(captions).context)
        for key, value in first.unet.state_dict().items():
            assert torch.equal(model.unet.state_dict()[key], value), key


def test_dtypes(foreign: Foreign, tmp_path: Path) -> None:
    file = foreign("sd1", ema=False)
    run(file, tmp_path / "half.safetensors", format="single", dtype="fp16")
    found = load_file(tmp_path / "half.safetensors")
    network = {v.dtype for k, v in found.items() if k.startswith(("model.", "first", "cond"))}
    assert network == {torch.float16, torch.int64}  # int64: position_ids
    assert load_model(tmp_path / "half.safetensors").unet.conv_in.weight.dtype == torch.float32
    run(file, tmp_path / "bf", format="diffusers", dtype="bf16")
    stored = load_file(tmp_path / "bf/unet/diffusion_pytorch_model.safetensors")
    assert {v.dtype for v in stored.values()} == {torch.bfloat16}


def test_verify_sees_what_differs(foreign: Foreign, tmp_path: Path) -> None:
    """A flipped value, a missing key, one too many and another shape in what was written."""
    parts, rows = run(foreign("sd1"), tmp_path / "out.safetensors", format="single")
    assert [row.part for row in rows] == ["unet", "vae", "text", "unused, kept"]
    assert rows[0].matched == len(parts.networks["ema"])
    assert rows[0].forward == 0.0
    tensors = load_file(tmp_path / "out.safetensors")
    metadata = read_metadata(tmp_path / "out.safetensors")
    tensors["first_stage_model.decoder.conv_in.weight"][0, 0, 0, 0] += 1
    save_file(tensors, tmp_path / "out.safetensors", metadata=metadata)
    changed = {row.part: row for row in verify(parts, tmp_path / "out.safetensors")}
    assert changed["vae"].different == ("decoder.conv_in.weight",)
    assert not changed["vae"].good
    assert changed["unet"].good


def read_metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_what_has_no_place_is_named(foreign: Foreign, tmp_path: Path) -> None:
    parts, _ = run(foreign("sd2"), tmp_path / "out", format="diffusers", **hinted("sd2"))
    lost = not_carried(parts, "diffusers")
    assert "cond_stage_model.model.text_projection" in lost
    assert any("resblocks.3." in name for name in lost)
    assert not_carried(parts, "native") == []


def test_a_failure_leaves_nothing(
    foreign: Foreign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An output is written beside its target and renamed; an old one stays until then."""
    file = foreign("sd1")
    run(file, tmp_path / "out" / "m.safetensors", format="single")
    before = (tmp_path / "out" / "m.safetensors").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("ldm.io.frozen.save_file", full)
    for fmt, name in (("single", "m.safetensors"), ("diffusers", "f"), ("native", "n")):
        job = Conversion(
            input=str(file), output=tmp_path / "out" / name, format=fmt, overwrite=True
        )
        with pytest.raises(OSError, match="No space left"):
            convert(job)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"m.safetensors", "m.README.md"}
    assert (tmp_path / "out" / "m.safetensors").read_bytes() == before


def test_an_output_that_exists_stays(foreign: Foreign, tmp_path: Path) -> None:
    file = foreign("sd1")
    for fmt, name in (("single", "m.ckpt"), ("diffusers", "folder")):
        job = {"input": str(file), "output": tmp_path / name, "format": fmt}
        convert(Conversion(**job))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="exists; overwrite=true"):
            convert(Conversion(**job))  # type: ignore[arg-type]
        convert(Conversion(**job, overwrite=True))  # type: ignore[arg-type]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_every_wrong_option_is_named_at_once(tmp_path: Path) -> None:
    job = Conversion(
        input="x", output=tmp_path / "x.bin", format="singel", dtype="int8", with_ema=True
    )
    text = "\n".join(job.problems())
    assert all(part in text for part in ("singel", "single, diffusers", "int8", "with_ema"))
    single = Conversion(input="x", output=tmp_path / "x", format="single").problems()
    assert "ends in .safetensors or .ckpt" in single[0]
    folder = Conversion(input="x", output=tmp_path / "x.ckpt", format="native").problems()
    assert "writes a folder" in folder[0]


def test_ema_beside_raw_needs_both(foreign: Foreign, tmp_path: Path) -> None:
    file = foreign("sd1", ema=False)
    job = Conversion(
        input=str(file), output=tmp_path / "o.ckpt", format="single", weights="raw", with_ema=True
    )
    with pytest.raises(ValueError, match="an input that has both"):
        convert(job)


def test_the_model_card(finished_run: Path, tmp_path: Path) -> None:
    """What, from what, licence, sampling defaults, samples."""
    job = {"input": str(finished_run), "format": "diffusers", "licence": "cc-by-4.0"}
    convert(Conversion(**job, output=tmp_path / "folder"))  # type: ignore[arg-type]
    text = (tmp_path / "folder" / "README.md").read_text()
    for part in ("cc-by-4.0", "32 samples seen", "eps", "scaled_linear", "steps 2", "samples.png"):
        assert part in text, part
    assert (tmp_path / "folder" / "samples.png").stat().st_size > 0
    del job["licence"]
    job["format"] = "single"
    convert(Conversion(**job, output=tmp_path / "m.safetensors"))  # type: ignore[arg-type]
    text = (tmp_path / "m.README.md").read_text()
    assert "not stated" in text
    assert (tmp_path / "m.samples.png").is_file()


def test_a_pickle_of_ours_is_plain(finished_run: Path, tmp_path: Path) -> None:
    """torch reads it with weights_only, and so does everybody who is careful."""
    convert(Conversion(input=str(finished_run), output=tmp_path / "m.ckpt", format="single"))
    found = torch.load(tmp_path / "m.ckpt", weights_only=True)
    assert isinstance(found["state_dict"]["betas"], Tensor)
    assert json.loads(found["ldm.card"])["task"] == "diffusion"


def test_flow_models_have_no_buffers(parts_of_kind: Callable[..., Parts], tmp_path: Path) -> None:
    """What the layouts cannot express is an error, or travels in the card."""
    parts = parts_of_kind("sd1")
    objective = {**parts.card["objective"], "schedule": {"name": "flow"}}
    objective["prediction"] = {"name": "flow"}
    parts.card["objective"].update(objective)  # type: ignore[union-attr]
    save_single(tmp_path / "flow.safetensors", parts)
    assert "betas" not in load_file(tmp_path / "flow.safetensors")
    card = open_source(tmp_path / "flow.safetensors").card
    assert card["objective"]["prediction"]["name"] == "flow"
    job = Conversion(
        input=str(tmp_path / "flow.safetensors"), output=tmp_path / "f", format="diffusers"
    )
    with pytest.raises(ValueError, match="cannot hold schedule 'flow'"):
        convert(job)
