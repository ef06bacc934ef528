"""How does a network run compiled, and what when its compilation fails?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def compile_in_place(network: nn.Module, on_failure: Callable[[Exception], None]) -> None:
    """torch.compile of `network`, whose keys stay; when that fails, it runs uncompiled for good.

    Compilation takes place in the first call with arguments of a new kind, which may be in the
    middle of a run: other picture sizes, captions of another length. The backward is compiled with
    the forward, because a failure inside `backward()` could not be caught before gradients are
    lost.
    """
    from torch._dynamo.exc import TorchDynamoException  # takes a second: only who compiles

    torch._functorch.config.force_non_lazy_backward_lowering = True
    network.compile()
    compiled = network._compiled_call_impl
    assert compiled is not None

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except TorchDynamoException as error:
            network._compiled_call_impl = None  # nn.Module calls itself plainly from now on
            on_failure(error)
        return network(*args, **kwargs)

    network._compiled_call_impl = call
