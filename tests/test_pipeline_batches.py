"""What happens when memory runs out, and how many pictures are drawn at once?"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

import ldm
from ldm.pipeline import Picture, Pipeline, SamplingOptions
from ldm.pipeline.batches import Batches, first_size

FEW = SamplingOptions(steps=2)
PROMPTS = [f"a large {colour} star" for colour in ("red", "blue", "green", "black", "yellow")]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return ldm.load("tiny", device="cpu")


class Memory:
    """More rows than `rows` do not fit into the module that it limits."""

    def __init__(self) -> None:
        self.rows = 1000
        self.error: Exception = torch.OutOfMemoryError("CUDA: 9 GiB")
        self.hooks: list[RemovableHandle] = []

    def limit(self, module: nn.Module, rows: int) -> None:
        self.rows = rows
        if not self.hooks:
            self.hooks.append(module.register_forward_pre_hook(self._check))

    def _check(self, module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > self.rows:
            raise self.error


@pytest.fixture
def memory() -> Iterator[Memory]:
    limits = Memory()
    yield limits
    for hook in limits.hooks:
        hook.remove()


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
]


def drawn(pipe: Pipeline, batch_size: int) -> list[tuple[int, int, bytes]]:
    pictures = [Picture(prompt=prompt, seed=i) for i, prompt in enumerate(PROMPTS)]
    return [
        (d.index, d.batch_size, d.image.tobytes())
        for d in pipe.draw(pictures, options=FEW, batch_size=batch_size)
    ]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: str(e)[:24])
def test_the_batch_is_halved_and_nothing_is_lost(
    pipe: Pipeline,
    memory: Memory,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    want = drawn(pipe, 2)
    memory.limit(pipe.unet, rows=5)  # guidance: two rows a picture
    memory.error = error
    with caplog.at_level(logging.WARNING, "ldm"):
        got = drawn(pipe, 4)
    assert got == want
    assert [line.getMessage()[:13] for line in caplog.records] == ["out of memory"]
    assert caplog.records[0].getMessage().endswith("going on with batch_size=2")


def test_one_at_a_time_is_too_much(pipe: Pipeline, memory: Memory) -> None:
    memory.limit(pipe.unet, rows=1)
    with pytest.raises(MemoryError, match="one picture at a time; lower height and width") as e:
        pipe.txt2img(PROMPTS, options=FEW, batch_size=4)
    assert "dtype=bf16" in str(e.value)


def test_the_decoder_has_its_own_batch_and_advice(pipe: Pipeline, memory: Memory) -> None:
    """The network's work is not done again for it."""
    calls: list[int] = []
    count = pipe.unet.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    decoder = pipe.codec.vae.decoder
    assert isinstance(decoder, nn.Module)
    memory.limit(decoder, rows=1)
    try:
        images = pipe.txt2img(PROMPTS[:4], options=FEW, batch_size=4)
    finally:
        count.remove()
    assert len(images) == 4
    assert calls == [8, 8]  # two steps of four pictures, once
    memory.limit(decoder, rows=0)
    with pytest.raises(MemoryError, match=r"decode in tiles \(tiled=true\)"):
        pipe.txt2img(PROMPTS[0], options=FEW)


def test_what_was_finished_is_given_out_before_the_error(pipe: Pipeline) -> None:
    seen: list[int] = []

    def work(batch: list[int]) -> list[int]:
        if 7 in batch:
            raise torch.OutOfMemoryError("no")
        return [item * 10 for item in batch]

    def collect() -> None:
        for _, results in Batches(4, advice="buy more").run(range(9), work):
            seen.extend(results)

    with pytest.raises(MemoryError, match="buy more"):
        collect()
    assert seen == [0, 10, 20, 30, 40, 50, 60]


def test_other_errors_pass(pipe: Pipeline) -> None:
    def work(batch: list[int]) -> list[int]:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(Batches(4, advice="").run(range(3), work))


def test_every_batch_is_full() -> None:
    sizes: list[int] = []

    def work(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        return batch

    got = [r for _, results in Batches(3, advice="").run(range(7), work) for r in results]
    assert got == list(range(7))
    assert sizes == [3, 3, 3]


@pytest.mark.parametrize(
    ("side", "count", "device", "size"),
    [
        (64, 40, GPU, 14),  # 3 batches of at most 16, equally full
        (64, 3, GPU, 3),
        (128, 40, GPU, 4),
        (512, 40, GPU, 1),
        (8, 1000, GPU, 63),
        (64, 40, CPU, 1),
    ],
)
def test_auto(side: int, count: int, device: torch.device, size: int) -> None:
    assert first_size("auto", positions=side**2, count=count, device=device) == size
    assert first_size(5, positions=side**2, count=count, device=device) == 5
