"""How is a pickled checkpoint read when nothing in it may be executed?

A pickle is a program for a stack machine. The standard library's pickletools decodes it, and the
machine here runs it with everything left out that could act: it imports nothing, sets no
attribute, and calls only the functions of pickle_calls.py, which put plain values together. So its
stack only ever holds plain values, `PickledTensor`s that say where a tensor lies, and `Inert`
objects for whatever else the file wants built. pickle_names.py has the names that are let through.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ldm.io.foreign import UnreadableWeights, shown
from ldm.io.pickle_calls import CALLS, Inert, Refused, Storage, called, pairs
from ldm.io.pickle_names import DTYPES, STORAGES, canonical, is_class, is_inert, is_storage

MAX_BYTES = 256 << 20  # of one pickle; a checkpoint's has some MB, as its tensors lie outside it
TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
MAX_WORK = 10_000_000  # operations and list items, some 10 s; 10,000 tensors take 400,000


@dataclass(frozen=True)
class Pickle:
    """content: what was pickled; storages: those it names, by key; left_out: the classes whose
    objects are inert in it."""

    content: Any
    storages: dict[str, Storage]
    left_out: list[str]


def read_pickle(file: BinaryIO, where: str) -> Pickle:
    """One pickle from where `file` stands up to its end; `where` begins the errors.

    Raises UnreadableWeights for one that names what could run code, is damaged or absurdly large.
    """
    machine, limited = _Machine(), _Limited(file)
    try:
        content = machine.run(limited)
    except Refused as error:
        raise UnreadableWeights(f"{where} {error}") from error
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise UnreadableWeights(
            f"{where} holds a damaged pickle (byte {limited.used}: {type(error).__name__}); "
            "get the file once more"
        ) from error
    return Pickle(content, machine.storages, sorted(machine.left_out))


def is_pickle(file: BinaryIO) -> bool:
    """Whether a whole pickle begins where `file` stands; it is decoded, not run."""
    try:
        for _ in pickletools.genops(_Limited(file)):  # type: ignore[arg-type]
            pass
    except ValueError:
        return False
    return True


@dataclass
class _Limited:
    """What pickletools needs of a file, of which it gives MAX_BYTES at most. used: so far."""

    file: BinaryIO
    used: int = 0

    def read(self, size: int) -> bytes:
        return self._counted(self.file.read(min(size, MAX_BYTES + 1)))

    def readline(self) -> bytes:
        return self._counted(self.file.readline(MAX_BYTES + 1))

    def _counted(self, data: bytes) -> bytes:
        self.used += len(data)
        if self.used > MAX_BYTES:
            raise Refused(
                f"holds a pickle of more than {MAX_BYTES >> 20} MiB; no checkpoint does, as "
                "tensors lie outside it"
            )
        return data


@dataclass
class _Machine:
    """marks: heights of the stack that the program marked; work: what was done so far."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    work: int = 0

    def run(self, file: _Limited) -> Any:
        for operation, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]
            self.spend(1)
            if operation.name in LITERALS:
                self.stack.append(argument)
            elif operation.name in OPERATIONS:
                OPERATIONS[operation.name](self, argument)
            else:  # EXT1, NEXT_BUFFER …: names and data from outside the file
                raise Refused(f"holds a pickle with {operation.name}; no checkpoint does")
        return self.stack.pop()

    def spend(self, amount: int) -> None:
        self.work += amount
        if self.work > MAX_WORK:
            raise Refused(f"holds a pickle of more than {MAX_WORK:,} steps; no checkpoint does")

    def items(self) -> list[Any]:
        """Everything above the last mark, popped."""
        height = self.marks.pop()
        taken = self.stack[height:]
        del self.stack[height:]
        return taken

    def pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def freeze_set(self) -> None:
        self.items()
        self.stack.append(Inert("builtins.frozenset"))

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(values)

    def set_items(self, flat: list[Any]) -> None:
        if type(self.stack[-1]) is dict:
            self.stack[-1].update(pairs(flat))

    def named(self, module: Any, name: Any) -> Any:
        """What stands for a name; refuses those that no checkpoint needs."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name that is no text")
        full = canonical(module, name)
        if not (full in DTYPES or full in CALLS or is_storage(full) or is_inert(full)):
            raise Refused(
                f"refers to {shown([full])}: loading it would run code; nothing was executed. "
                "Get the weights as .safetensors"
            )
        if is_class(full) and not (full in CALLS or full in TENSORS or is_storage(full)):
            self.left_out.add(full)
        return DTYPES.get(full) or Inert(full)

    def call(self, function: Any, arguments: Any, _keywords: Any = None) -> None:
        if type(arguments) not in (list, tuple):
            raise TypeError("arguments that are none")
        self.spend(len(arguments) + sum(len(a) for a in arguments if isinstance(a, (list, tuple))))
        self.stack.append(called(function, arguments))

    def call_first(self, items: list[Any]) -> None:
        self.call(items[0], items[1:])

    def storage(self, identity: Any) -> None:
        """Pushes the storage of a persistent id ("storage", type, key, location, numel)."""
        if not isinstance(identity, tuple) or len(identity) not in (5, 6):
            raise Refused("holds a pickle that refers to other things than storages")
        mark, kind, key, _, numel, *view = identity
        if mark != "storage" or not (isinstance(kind, Inert) and is_storage(kind.name)):
            raise Refused("holds a pickle that refers to other things than storages")
        if not isinstance(key, str) or type(numel) is not int or numel < 0 or any(view):
            raise Refused("holds a storage without a name or a size")
        storage = Storage(key, STORAGES[kind.name.rpartition(".")[2]], numel)
        if self.storages.setdefault(key, storage) != storage:
            raise Refused(f"declares storage {shown([key])} twice, in different ways")
        self.stack.append(storage)


# -- the machine's operations, by pickletools' names -----------------------------------------------

LITERALS = {  # those that push their own argument; GET, GLOBAL and PERSID push "any object"
    op.name
    for op in pickletools.opcodes
    if op.arg and not op.stack_before and op.stack_after not in ([], [pickletools.anyobject])
}
OPERATIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "STOP": lambda m, a: None,
    "NONE": lambda m, a: m.stack.append(None),
    "NEWTRUE": lambda m, a: m.stack.append(True),
    "NEWFALSE": lambda m, a: m.stack.append(False),
    "EMPTY_LIST": lambda m, a: m.stack.append([]),
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "EMPTY_TUPLE": lambda m, a: m.stack.append(()),
    "EMPTY_SET": lambda m, a: m.stack.append(Inert("builtins.set")),
    "MARK": lambda m, a: m.marks.append(len(m.stack)),
    "POP": lambda m, a: m.pop(),
    "POP_MARK": lambda m, a: m.items(),
    "DUP": lambda m, a: m.stack.append(m.stack[-1]),
    "LIST": lambda m, a: m.stack.append(m.items()),
    "DICT": lambda m, a: m.stack.append(pairs(m.items())),
    "TUPLE": lambda m, a: m.stack.append(tuple(m.items())),
    "TUPLE1": lambda m, a: m.stack.append((m.stack.pop(),)),
    "TUPLE2": lambda m, a: m.stack.append((m.stack.pop(-2), m.stack.pop())),
    "TUPLE3": lambda m, a: m.stack.append((m.stack.pop(-3), m.stack.pop(-2), m.stack.pop())),
    "FROZENSET": lambda m, a: m.freeze_set(),
    "APPEND": lambda m, a: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, a: m.extend(m.items()),
    "SETITEM": lambda m, a: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, a: m.set_items(m.items()),
    "ADDITEMS": lambda m, a: m.items(),
    "PUT": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": lambda m, a: m.remember(len(m.memo)),
    "GET": lambda m, a: m.stack.append(m.memo[a]),
    "BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "GLOBAL": lambda m, a: m.stack.append(m.named(*a.split(" ", 1))),
    "STACK_GLOBAL": lambda m, a: m.stack.append(m.named(m.stack.pop(-2), m.stack.pop())),
    "REDUCE": lambda m, a: m.call(m.stack.pop(-2), m.stack.pop()),
    "NEWOBJ": lambda m, a: m.call(m.stack.pop(-2), m.stack.pop()),
    "NEWOBJ_EX": lambda m, a: m.call(m.stack.pop(-3), m.stack.pop(-2), m.stack.pop()),
    "OBJ": lambda m, a: m.call_first(m.items()),
    "INST": lambda m, a: m.call(m.named(*a.split(" ", 1)), m.items()),
    "BUILD": lambda m, a: m.stack.pop(),  # no attribute of anything is wanted
    "BINPERSID": lambda m, a: m.storage(m.stack.pop()),
    "PERSID": lambda m, a: m.storage(a),
}
