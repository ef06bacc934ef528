"""Does a network that cannot be compiled run uncompiled, at once and for good?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from ldm.training.compiling import compile_in_place


class Doubled(nn.Linear):
    """A class of our own: dynamo leaves torch's own modules alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


@pytest.fixture
def network() -> Iterator[nn.Module]:
    with torch._functorch.config.patch(force_non_lazy_backward_lowering=False):  # put back after
        yield Doubled(2, 2)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that the compiled network was called with; it fails at batches of 3."""
    seen: list[tuple[int, ...]] = []

    def compile(function: Any) -> Any:
        def compiled(x: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(x.shape))
            if len(x) == 3:
                raise TorchDynamoException("g++ says no")
            return function(x) + 1

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    return seen


def test_a_failure_at_any_call_is_told_once(
    network: nn.Module, calls: list[tuple[int, ...]]
) -> None:
    plain = network(torch.ones(4, 2)).detach()
    told: list[Exception] = []
    keys = list(network.state_dict())
    compile_in_place(network, told.append)
    assert torch.equal(network(torch.ones(4, 2)), plain + 1)
    assert told == []
    for size in (3, 4, 3):
        assert torch.equal(network(torch.ones(size, 2)), plain[:1].expand(size, 2))
    assert [str(error) for error in told] == ["g++ says no"]
    assert calls == [(4, 2), (3, 2)]
    assert list(network.state_dict()) == keys


def test_other_errors_are_the_networks_own(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)
    told: list[Exception] = []
    compile_in_place(network, told.append)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network(torch.ones(1, 5))
    assert told == []


def test_the_backward_is_compiled_with_the_forward(network: nn.Module) -> None:
    """Else its failure would come in the middle of backward(), where it cannot be caught."""
    failed: list[Exception] = []

    def backend(graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.common import aot_autograd

        def no(graph: Any, inputs: Any) -> Any:
            raise RuntimeError("no backward")

        return aot_autograd(fw_compiler=lambda g, i: g.forward, bw_compiler=no)(graph, inputs)

    plain = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda f: plain(f, backend=backend))
        compile_in_place(network, failed.append)
    network(torch.ones(4, 2)).sum().backward()
    assert "no backward" in str(failed[0])
    assert network.weight.grad is not None
    torch._dynamo.reset()


def test_the_name_of_torch_that_we_rely_on_exists() -> None:
    """A private one: a new torch that renames it must not pass in silence."""
    module = nn.Linear(1, 1)
    assert module._compiled_call_impl is None
    module.compile()
    assert module._compiled_call_impl is not None
