"""Does docs/finetuning/memory.md say what benchmarks/memory_table.py derives?"""

from __future__ import annotations

import pytest

from ldm.training.estimate_gpus import GIB


def test_what_is_trained_and_held() -> None:
    from memory_table import step

    lora = step("lora", True, 1)
    # rank 16 at kohya's 192 places: four times the 1,695,744 parameters of rank 4
    assert lora.trained == 4 * 1_695_744
    assert lora.parameters == 859_520_964 + lora.trained


def test_a_frozen_network_keeps_less_than_a_trained_one() -> None:
    """No gradients of weights: their inputs, and the copies of weights, need not stay."""
    from memory_table import step

    lora, full = step("lora", True, 1).trace, step("full", True, 1).trace
    assert lora.casts < 0.2 * full.casts
    assert lora.backward_flops < 0.85 * full.backward_flops


@pytest.mark.slow
def test_memory_is_a_line_in_the_number_of_images() -> None:
    from memory_table import WAYS, images_in, total

    way = WAYS["LoRA, rank 16, checkpointing"]
    one, two, five = (total(way, images) for images in (1, 2, 5))
    assert five == pytest.approx(one + 4 * (two - one), rel=0.01)
    assert images_in(way, five + 1) in (4, 5)
    assert images_in(way, one - 1) == 0


@pytest.mark.slow
def test_beside_measurements_of_others() -> None:
    """Within 15 %, and above where their script frees the gradients before the forward."""
    from memory_table import MEASURED, total

    for name, (way, images, theirs) in MEASURED.items():
        assert 0.88 < total(way, images) / 1e9 / theirs < 1.15, name


@pytest.mark.slow
def test_8_gb_do_not_hold_a_full_fine_tune() -> None:
    from memory_table import WAYS, total

    assert total(WAYS["full, checkpointing, 8-bit AdamW, no EMA"], 1) > 8 * GIB


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    """After a change of the networks: python benchmarks/memory_table.py --write."""
    from memory_table import problems

    assert problems() == []
