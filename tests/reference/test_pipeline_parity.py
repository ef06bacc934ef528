"""Does diffusers' own pipeline load what we write, and draw what we draw?"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.io.convert import Conversion, convert
from ldm.pipeline import Pipeline, SamplingOptions, load

pytestmark = pytest.mark.reference
STEPS, GUIDANCE, PROMPT = 10, 3.0, "a photo of a red circle"
SIDE = 32  # px


def _io_fixtures() -> Any:
    """tests/io/conftest.py: the small models of the released kinds."""
    path = Path(__file__).parents[1] / "io" / "conftest.py"
    spec = importlib.util.spec_from_file_location("io_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault("io_conftest", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


def theirs(pipe: Any, start: Tensor, prediction: str) -> Tensor:
    from diffusers import DDIMScheduler

    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    word = {"eps": "epsilon", "v": "v_prediction"}[prediction]
    assert pipe.scheduler.config.prediction_type == word
    with torch.no_grad():
        return pipe(
            PROMPT,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=start.clone(),
            height=SIDE,
            width=SIDE,
            output_type="latent",
        ).images


def ours(pipe: Pipeline, start: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr("ldm.rng.normal", lambda *_: start.clone())
    with torch.no_grad():
        return pipe.latents(
            pipe.text.encode([PROMPT]),
            pipe.text.null(1),
            [0],
            size=(SIDE, SIDE),
            options=SamplingOptions(steps=STEPS, sampler="ddim", guidance=GUIDANCE),
        )


@pytest.mark.parametrize(("kind", "prediction"), [("sd1", "eps"), ("sd2", "v"), ("sd2", "eps")])
def test_ten_ddim_steps_with_guidance(
    kind: str, prediction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our folder and our single file in their loaders; their folder in ours: the same latents."""
    from diffusers import StableDiffusionPipeline

    from ldm.io.single_write import save_single

    parts = _io_fixtures().small_parts(kind, prediction=prediction)
    save_single(tmp_path / "first.safetensors", parts)
    for fmt, name in (("diffusers", "folder"), ("single", "file.safetensors")):
        job = {"input": str(tmp_path / "first.safetensors"), "format": fmt}
        convert(Conversion(**job, output=tmp_path / name))  # type: ignore[arg-type]
    start = torch.randn(1, 4, SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(0))
    expected = ours(load(tmp_path / "first.safetensors", device="cpu"), start, monkeypatch)
    assert expected.std() > 0.1

    folder = StableDiffusionPipeline.from_pretrained(tmp_path / "folder", torch_dtype=torch.float32)
    close(theirs(folder, start, prediction), expected)
    single = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "file.safetensors"),
        config=str(tmp_path / "folder"),
        local_files_only=True,
        torch_dtype=torch.float32,
    )
    close(theirs(single, start, prediction), expected)

    folder.save_pretrained(tmp_path / "theirs")
    found = load(tmp_path / "theirs", device="cpu")
    assert found.card["objective"]["prediction"]["name"] == prediction
    close(ours(found, start, monkeypatch), expected)


def test_half_precision_variants_and_shards(tmp_path: Path) -> None:
    """What diffusers writes with variant="fp16" and max_shard_size is read."""
    from diffusers import StableDiffusionPipeline

    from ldm.io.load import load_model
    from ldm.io.single_write import save_single

    save_single(tmp_path / "first.safetensors", _io_fixtures().small_parts("sd1"))
    convert(
        Conversion(
            input=str(tmp_path / "first.safetensors"), output=tmp_path / "a", format="diffusers"
        )
    )
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "a")
    reference = load_model(tmp_path / "a")
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    assert len(list((tmp_path / "shards" / "unet").glob("*-of-*.safetensors"))) > 2
    same(load_model(tmp_path / "shards").unet, reference.unet, 0)
    pipe.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    assert not (tmp_path / "half/unet/diffusion_pytorch_model.safetensors").exists()
    same(load_model(tmp_path / "half").unet, reference.unet, 1e-3)
    assert load_model(tmp_path / "half").text.hash() != ""


def test_their_inpainting_pipeline_loads_ours(tmp_path: Path) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    from ldm.io.single_write import save_single

    save_single(tmp_path / "first.safetensors", _io_fixtures().small_parts("inpaint"))
    convert(
        Conversion(
            input=str(tmp_path / "first.safetensors"), output=tmp_path / "a", format="diffusers"
        )
    )
    pipe = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "a")
    assert pipe.unet.config.in_channels == 9


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def same(one: torch.nn.Module, other: torch.nn.Module, atol: float) -> None:
    state = other.state_dict()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=atol)
