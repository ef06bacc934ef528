"""Is a pickle read without anything in it being executed, however it is made?"""

from __future__ import annotations

import collections
import io
import os
import pickle
import pickletools
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from ldm.io import pickles
from ldm.io.foreign import UnreadableWeights
from ldm.io.pickle_calls import Inert, PickledTensor
from ldm.io.pickles import is_pickle, read_pickle
from ldm.io.reading import is_document, open_tensors

PROTOCOLS = range(6)


def read(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data), "FILE").content


class Evil:
    """Pickled, it makes a file on being loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


# -- what would run code ---------------------------------------------------------------------------


def test_the_canary_sings_where_pickles_are_trusted(tmp_path: Path) -> None:
    """So that a canary which cannot sing proves nothing below."""
    pickle.loads(pickle.dumps(Evil(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("container", ["plain", "zip", "legacy", "beside"])
def test_nothing_is_executed(container: str, protocol: int, tmp_path: Path) -> None:
    path, canary = tmp_path / "evil.ckpt", tmp_path / "canary"
    evil = Evil(canary)
    if container == "plain":
        path.write_bytes(pickle.dumps(evil, protocol))
    else:
        # protocol 0 cannot refer to storages, so there the tensor is left out
        tensors = {"w": torch.ones(2)} if container == "beside" and protocol else {}
        content = {"state_dict": tensors, "callbacks": {"x": evil}}
        torch.save(
            content if container == "beside" else evil,
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=container != "legacy",
        )
    for reader in (open_tensors, is_document):
        with pytest.raises(UnreadableWeights, match=r"evil.ckpt refers to (posix|nt).system") as e:
            reader(path)
        assert "nothing was executed. Get the weights as .safetensors" in str(e.value)
    assert not canary.exists()


REFUSED = (
    "os system",
    "posix system",
    "nt system",
    "subprocess Popen",
    "builtins eval",
    "builtins exec",
    "builtins getattr",
    "builtins __import__",
    "builtins Foo",
    "__builtin__ apply",
    "runpy run_path",
    "importlib import_module",
    "operator attrgetter",
    "functools partial",
    "collections namedtuple",
    "shutil rmtree",
    "webbrowser open",
    "sys modules",
    "torch load",
    "torch.hub load",
    "torch.storage _load_from_bytes",
    "torch._utils _import_dotted_name",
    "torch.nn.functional relu",
    "torch.serialization load",
    "numpy load",
    "numpy core.multiarray.fromfile",
    "numpy.testing._private.utils runstring",
    "ldm.util instantiate_from_config",
    "transformers pipeline",
    "pytorch_lightning.utilities.cloud_io load",
    "pytorch_lightning.callbacks ModelCheckpoint.__init__",
    "torchsomething.nn Linear",
    "omegaconf ",
    " Foo",
    "torch.nn Line\tar",
)


@pytest.mark.parametrize("name", REFUSED)
def test_a_callable_is_refused_by_name(name: str) -> None:
    module, _, attribute = name.partition(" ")
    as_text = f"c{module}\n{attribute}\n.".encode()
    short = [bytes([0x8C, len(part)]) + part.encode() for part in (module, attribute)]
    for data in (as_text, b"\x80\x04" + b"".join(short) + b"\x93.", b"(i" + as_text[1:]):
        with pytest.raises(UnreadableWeights, match=r"^FILE refers to .*would run code") as error:
            read(data)
        assert "\t" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint",
        "lightning.pytorch.callbacks ModelCheckpoint",
        "lightning_fabric.utilities.data AttributeDict",
        "omegaconf.dictconfig DictConfig",
        "numpy.core.multiarray scalar",
        "numpy._core.multiarray _reconstruct",
        "numpy dtype",
        "_codecs encode",
        "pathlib PosixPath",
        "argparse Namespace",
        "ldm.models.diffusion.ddpm LatentDiffusion",
        "taming.modules.losses.vqperceptual Discriminator",
        "torch.nn.modules.linear Linear",
        "torch.optim.adamw AdamW",
        "transformers.models.clip.modeling_clip CLIPTextModel",
        "tokenizers Tokenizer",
        "typing Any",
        "__builtin__ set",
        "copy_reg _reconstructor",
    ],
)
def test_what_checkpoints_carry_is_inert(name: str) -> None:
    """As a value, a key, called, built; and the class of that name is left as it was."""
    line = b"c" + name.replace(" ", "\n").encode() + b"\n"
    assert isinstance(read(line + b"."), Inert)
    assert isinstance(read(line + b")R."), Inert)
    assert isinstance(read(line + b")\x81}U\x01aK\x01sb."), Inert)  # NEWOBJ, then BUILD
    assert read(b"}" + line + b"K\x01sU\x01kK\x02s.") == {"k": 2}
    assert isinstance(read(line + b"N(U\x01aK\x01d\x86b."), Inert)


def test_an_object_takes_no_attributes() -> None:
    state = b"N(U\x08tamperedK\x01d\x86"  # (None, {"tampered": 1}): setattr would be called
    for name in (b"torch.nn.modules.module\nModule", b"collections\nOrderedDict", b"torch\nSize"):
        read(b"c" + name + b"\n" + state + b"b.")
    assert not hasattr(torch.nn.Module, "tampered")
    assert not hasattr(collections.OrderedDict, "tampered")
    assert not hasattr(torch.Size, "tampered")


# -- plain values ----------------------------------------------------------------------------------

VALUE = {
    "none": None,
    "numbers": [0, 1, -1, 255, 65536, -(2**31), 2**62, 2**200, 0.5, -1e300, True, False],
    "texts": ["", "é猫", "a\nb'\"\\", "x" * 300, "y" * 70_000],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "nested": {"a": {"b": [{"c": ({"d": 1},)}]}, 3: "int key", 0.5: "float key", None: "none"},
    "ordered": collections.OrderedDict([("z", 1), ("a", [2])]),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_out_as_pickle_gives_them(protocol: int) -> None:
    same = VALUE["texts"]
    value = {**VALUE, "again": same}
    found = read(pickle.dumps(value, protocol))
    assert found == value
    assert found["texts"] is found["again"]  # the memo
    assert list(found["ordered"]) == ["z", "a"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_values_are_inert(protocol: int) -> None:
    value = {
        "set": {1, 2},
        "frozen": frozenset([1]),
        "default": collections.defaultdict(int, a=1),
        "deque": collections.deque([1]),
        "scalar": numpy.float64(0.5),
        "array": numpy.arange(3),
        "path": Path("x"),
        "after": 5,
    }
    found = read(pickle.dumps(value, protocol))
    assert found["after"] == 5
    assert found["default"] == {"a": 1}
    inert = ("set", "frozen", "deque", "scalar", "array", "path")
    assert all(isinstance(found[name], Inert) for name in inert)


def test_python_2_wrote_an_ordered_dict_as_a_list_of_pairs() -> None:
    data = b"ccollections\nOrderedDict\n(l(lS'a'\naI1\naa\x85R."
    assert read(data) == {"a": 1}


def test_the_literals_are_those_of_the_language() -> None:
    assert {"INT", "BININT1", "LONG4", "BINFLOAT", "SHORT_BINSTRING"} <= pickles.LITERALS
    assert {"BINUNICODE8", "BINBYTES8", "BYTEARRAY8"} <= pickles.LITERALS
    left = {op.name for op in pickletools.opcodes} - pickles.LITERALS - pickles.OPERATIONS.keys()
    assert left == {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}


# -- tensors ---------------------------------------------------------------------------------------


def saved(content: Any) -> bytes:
    """The pickle that torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read("archive/data.pkl")


def test_a_tensor_says_where_it_lies() -> None:
    base = torch.arange(12).reshape(3, 4)
    found = read(saved({"view": base[1:, ::2].T, "p": torch.nn.Parameter(torch.ones(2))}))
    view = found["view"]
    assert isinstance(view, PickledTensor)
    assert (view.dtype, view.offset, view.shape, view.stride) == (torch.int64, 4, (2, 2), (2, 4))
    assert view.storage.nbytes == 12 * 8
    assert found["p"].shape == (2,)


def tensor_pickle(numel: int = 4, offset: int = 0, shape: Any = (4,), stride: Any = (1,)) -> bytes:
    """{"w": tensor} with what is declared chosen freely."""

    class Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
        def persistent_id(self, obj: Any) -> Any:
            kind = torch.FloatStorage
            return ("storage", kind, "0", "cpu", numel) if obj is storage else None

    class Rebuilt:
        def __reduce__(self) -> Any:
            rebuild = torch._utils._rebuild_tensor_v2
            hooks: Any = collections.OrderedDict()
            return rebuild, (storage, offset, shape, stride, False, hooks)

    storage = object()
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"w": Rebuilt()})
    return buffer.getvalue()


def test_a_made_up_tensor_is_read_like_a_real_one() -> None:
    assert read(tensor_pickle())["w"].shape == (4,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offset": 1}, "5 elements in a storage of 16 bytes"),
        ({"shape": (2, 3), "stride": (3, 1)}, "6 elements in a storage"),
        ({"shape": (2**40,)}, "in a storage of 16 bytes"),
        ({"shape": (2**40,), "stride": (0,)}, "shows 1 elements 1,099,511,627,776 times"),
        ({"shape": (2**40, 2**40), "stride": (0, 0)}, "shows 1 elements"),
        ({"shape": (-1,)}, "damaged pickle"),
        ({"stride": (-1,)}, "damaged pickle"),
        ({"shape": (4, 1)}, "damaged pickle"),
        ({"shape": (1,) * 65, "stride": (1,) * 65}, "damaged pickle"),
        ({"shape": 4}, "damaged pickle"),
        ({"offset": "x"}, "damaged pickle"),
        ({"offset": 2**70}, "damaged pickle"),
        ({"numel": -4}, "storage without a name or a size"),
        ({"numel": 0.5}, "storage without a name or a size"),
    ],
)
def test_an_absurd_tensor_is_an_error(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnreadableWeights, match=words):
        read(tensor_pickle(**changes))


def test_a_conjugate_view_is_an_error_as_its_bytes_are_other_numbers() -> None:
    with pytest.raises(UnreadableWeights, match="conjugate or negative view"):
        read(saved(torch.ones(2, dtype=torch.complex64).conj()))


def test_a_tensor_with_attributes_is_the_tensor() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "kept elsewhere"  # type: ignore[attr-defined]
    assert read(saved({"p": parameter}))["p"].shape == (2,)


# -- damage and bombs ------------------------------------------------------------------------------

NESTED = 100_000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "damaged pickle"),
        (b"\x80\x04", "damaged pickle"),
        (b".", "damaged pickle"),
        (b"0.", "damaged pickle"),
        (b"h\x07.", "damaged pickle"),
        (b"}K\x01.s.", "^$"),
        (b"}(K\x01u.", "damaged pickle"),
        (b"K\x01K\x02R.", "damaged pickle"),
        (b"K\x01)\x81.", "damaged pickle"),
        (b"K\x01K\x02\x93.", "damaged pickle"),
        (b"\x8d" + struct.pack("<Q", 1 << 60) + b"x", "damaged pickle"),
        (b"\x96" + struct.pack("<Q", 1 << 40) + b"x", "damaged pickle"),
        (b"\x82\x01.", "EXT1"),
        (b"\x84\x01\x00\x00\x00.", "EXT4"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"Psomething\n.", "other things than storages"),
        (b"(U\x06moduleK\x01K\x02K\x03K\x04tQ.", "other things than storages"),
        (b"(U\x07storagectorch.nn\nLinear\nU\x010U\x03cpuK\x01tQ.", "other things than storages"),
        (b"(U\x07storagectorch\nFloatStorage\nK\x00U\x03cpuK\x01tQ.", "without a name"),
    ],
)
def test_a_damaged_pickle_is_an_error_that_says_so(data: bytes, words: str) -> None:
    if words == "^$":  # what follows the end does not matter
        read(data)
        return
    with pytest.raises(UnreadableWeights, match=words):
        read(data)


def test_a_huge_memo_index_takes_no_memory() -> None:
    assert read(b"K\x05r\xff\xff\xff\xff0j\xff\xff\xff\xff.") == 5


@pytest.mark.parametrize("one", [b"\x85", b"]K\x01a"], ids=["tuples", "lists"])
def test_deep_nesting_neither_recurses_nor_crashes(one: bytes) -> None:
    deep = b")" + b"\x85" * NESTED if one == b"\x85" else b"]" * NESTED + b"a" * (NESTED - 1)
    read(deep + b".")
    assert read(b"}" + deep + b"K\x01s.") == {}  # as a key it would have to be hashed
    with pytest.raises(UnreadableWeights):
        read(deep + deep + b"\x93.")  # as a name it would have to be printed


def test_what_refers_to_itself_many_times_stays_small(tmp_path: Path) -> None:
    """Each list holds the one before ten times: 10^50 leaves for whoever walks them all."""
    laughs = b"]q\x000" + b"".join(
        b"](" + bytes([ord("h"), level]) * 10 + bytes([ord("e"), ord("q"), level + 1, ord("0")])
        for level in range(50)
    )
    path = tmp_path / "laughs.pt"
    content = b"\x80\x02" + laughs + b"}U\x01ah\x32s."
    assert is_pickle(io.BytesIO(content))
    _write_zip(path, content)
    with pytest.raises(UnreadableWeights, match=r"deeper than 32"):
        open_tensors(path)
    cyclic = b"}q\x00U\x01ah\x00s."
    _write_zip(path, cyclic)
    with pytest.raises(UnreadableWeights, match="without named tensors"):
        open_tensors(path)


def test_a_pickle_beyond_all_bounds_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = pickle.dumps(list(range(300)), 2)
    monkeypatch.setattr(pickles, "MAX_WORK", 100)
    with pytest.raises(UnreadableWeights, match="more than 100 steps"):
        read(ordinary)
    monkeypatch.undo()
    monkeypatch.setattr(pickles, "MAX_BYTES", 100)
    with pytest.raises(UnreadableWeights, match="holds a pickle of more than"):
        read(ordinary)
    with pytest.raises(UnreadableWeights, match="holds a pickle of more than"):
        read(b"S'" + b"x" * 200 + b"'\n.")


def test_calls_on_the_same_long_list_count_as_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a short program could copy a long list again and again."""
    monkeypatch.setattr(pickles, "MAX_WORK", 10_000)
    pairs = b"(" + b"(K\x01K\x02l" * 1000 + b"l\x85q\x00"
    copies = b"ccollections\nOrderedDict\nq\x01h\x00R" + b"0h\x01h\x00R" * 100
    with pytest.raises(UnreadableWeights, match="more than 10,000 steps"):
        read(pairs + copies + b".")


def test_any_change_of_a_byte_is_read_or_refused(tmp_path: Path) -> None:
    """No other error, whatever the byte."""
    content = {"state_dict": {"w": torch.ones(2, 3).T, "b": torch.nn.Parameter(torch.ones(3))}}
    original = saved({**content, "epoch": 3, "scalar": numpy.float64(1), "list": [1, (2, 3)]})
    chance = random.Random(0)
    outcomes = collections.Counter[str]()
    for _ in range(3000):
        changed = bytearray(original)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        try:
            read(bytes(changed))
            outcomes["read"] += 1
        except UnreadableWeights:
            outcomes["refused"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 100


def _write_zip(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
