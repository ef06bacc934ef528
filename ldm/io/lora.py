"""How is a LoRA read from the files of other tools, and written for them?

Read: kohya, diffusers (new, old, oldest) and PEFT, see lora_names.py; safetensors only. Written:
kohya and diffusers. Layers change W by (alpha/rank) up down in all of them; a file without any
alpha means alpha = rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.adapters.lora import LoRA, adaptable
from ldm.adapters.lora_layer import LoRAWeights, weight_shapes
from ldm.adapters.targets import nearest
from ldm.io.lora_alpha import (
    diffusers_alphas,
    diffusers_metadata,
    json_object,
    kohya_metadata,
    peft_alpha,
)
from ldm.io.lora_names import THEIR_PARTS, diffusers_name, dotted, kohya_name, layer_of
from ldm.io.lora_tensors import SHOWN, layers_of, listed, open_lora, places

WRITTEN = ("kohya", "diffusers")


@dataclass(frozen=True)
class LoRAFile:
    """What a file holds: the layers' tensors as stored, by name (see layer_of), for each part.

    format: one of lora_names.FORMATS, the most frequent where a file mixes them.
    """

    path: Path
    format: str
    unet: dict[str, LoRAWeights]
    text: dict[str, LoRAWeights]
    metadata: dict[str, str]

    def for_unet(self, unet: nn.Module, *, dropout: float = 0.0) -> LoRA | None:
        """The LoRA for this UNet, in fp32 and beside its weights; None: the file has no such part.

        Raises ValueError listing the layers that do not fit.
        """
        return self._lora("unet", self.unet, unet, dropout)

    def for_text(self, text: nn.Module, *, dropout: float = 0.0) -> LoRA | None:
        """The LoRA for this text encoder (transformers' module), as for_unet."""
        return self._lora("text", self.text, text, dropout)

    def _lora(
        self, part: str, layers: Mapping[str, LoRAWeights], base: nn.Module, dropout: float
    ) -> LoRA | None:
        if not layers:
            return None
        modules = adaptable(base)
        paths = {layer_of(path, part): path for path in modules}
        unknown = [layer for layer in layers if layer not in paths]
        if unknown:
            told = [f"{name} (nearest: {nearest(name, paths, 1)})" for name in unknown[:SHOWN]]
            raise ValueError(
                f"{self.path} is for another architecture: {len(unknown)} of its {len(layers)} "
                f"{part} layers are not in this {type(base).__name__}: {listed(told, unknown)}"
            )
        weights = {paths[n]: _shaped(value, modules[paths[n]]) for n, value in layers.items()}
        try:
            return LoRA.from_weights(base, weights, dropout=dropout)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error


def read_lora(path: str | Path) -> LoRAFile:
    """A LoRA file, a PEFT adapter's folder, or a folder with diffusers' file.

    Raises FileNotFoundError, or ValueError that says what the file is, or lists what is wrong.
    """
    file, config = places(Path(path))
    tensors, keys, metadata = open_lora(file)
    alphas = diffusers_alphas(metadata, str(file))
    if config is not None:
        said = peft_alpha(json_object(config.read_bytes(), str(config)), str(config))
        alphas = dict.fromkeys(THEIR_PARTS.values(), said)
    layers = layers_of(file, tensors, keys, alphas)
    return LoRAFile(
        path=file,
        format=Counter(key.format for key in keys.values()).most_common(1)[0][0],
        unet=layers["unet"],
        text=layers["text"],
        metadata=metadata,
    )


def write_lora(
    path: str | Path,
    *,
    unet: LoRA | None = None,
    text: LoRA | None = None,
    format: str = "kohya",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes one or both LoRAs into a file, atomically; alpha is always in it.

    dtype: of the tensors (None: as they are), alpha stays fp32. metadata: texts for the header,
    which kohya's tools expect to be called ss_…. Raises ValueError.
    """
    if format not in WRITTEN:
        raise ValueError(f"format={format!r}; written are {', '.join(WRITTEN)}")
    parts = {"unet": unet, "text": text}
    given = {part: lora.weights() for part, lora in parts.items() if lora is not None}
    if not given:
        raise ValueError("nothing to write: give a LoRA for unet, for text, or both")
    named = _kohya_tensors(given) if format == "kohya" else _diffusers_tensors(given)
    ready = {
        name: value.detach().to("cpu", value.dtype if name.endswith(".alpha") else dtype)
        for name, value in named.items()
    }
    if bad := [name for name, value in ready.items() if not value.isfinite().all()]:
        raise ValueError(
            f"{len(bad)} tensors are not finite, as {bad[0]}: the training diverged, or "
            f"dtype={dtype} is too narrow"
        )
    ready = {name: value.contiguous() for name, value in ready.items()}
    texts = dict(metadata or {})
    if format == "kohya":
        pairs = [(w.rank, w.alpha) for layers in given.values() for w in layers.values()]
        texts = kohya_metadata(ready, pairs, texts)
    else:
        texts |= diffusers_metadata(
            {
                THEIR_PARTS[part]: {dotted(p, part): (w.rank, w.alpha) for p, w in layers.items()}
                for part, layers in given.items()
            }
        )
    _save(Path(path), ready, texts)


def _shaped(weights: LoRAWeights, module: nn.Module) -> LoRAWeights:
    """In fp32, beside the module; tools differ in whether they write the ones of a 1x1 kernel."""
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    made = []
    expected = weight_shapes(module, weights.rank)
    for value, shape in zip((weights.down, weights.up), expected, strict=True):
        same = _without_ones(value.shape) == _without_ones(shape)
        value = value.to(module.weight.device, torch.float32)
        made.append(value.reshape(shape) if same else value)
    return replace(weights, down=made[0], up=made[1])


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if all(size == 1 for size in shape[2:]) else tuple(shape)


def _kohya_tensors(given: Mapping[str, Mapping[str, LoRAWeights]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part, layers in given.items():
        for path, weights in layers.items():
            name = kohya_name(path, part)
            tensors[f"{name}.lora_down.weight"] = weights.down
            tensors[f"{name}.lora_up.weight"] = weights.up
            tensors[f"{name}.alpha"] = torch.tensor(weights.alpha)
    return tensors


def _diffusers_tensors(given: Mapping[str, Mapping[str, LoRAWeights]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part, layers in given.items():
        for path, weights in layers.items():
            name = diffusers_name(path, part)
            tensors[f"{name}.lora_A.weight"] = weights.down
            tensors[f"{name}.lora_B.weight"] = weights.up
    return tensors


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    save_file(tensors, temporary, metadata)
    temporary.chmod(0o644)  # safetensors makes files that only their owner can read
    temporary.replace(path)
