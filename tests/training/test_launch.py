"""Do processes find each other, agree, and share what there is to do?"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ldm.training.launch import Processes, launch

SCRIPT = """
import sys
from pathlib import Path
from ldm.training.launch import launch

with launch(int(sys.argv[2]), "cpu") as processes:
    said = processes.agree(["from", processes.rank])
    everyone = processes.gather({"rank": processes.rank})
    mine = processes.share(list("abcde"))
    text = f"{processes.rank}/{processes.world} {processes.device} {said} {everyone} {mine}"
    Path(sys.argv[1], str(processes.rank)).write_text(text)
"""


def test_alone_nothing_is_started() -> None:
    with launch(1, "cpu") as processes:
        assert processes == Processes(0, 1, "cpu")
        assert processes.agree({"a": 1}) == {"a": 1}
        assert processes.gather("x") == ["x"]
        assert processes.share("abc") == ["a", "b", "c"]
    with launch("auto", "cpu") as processes:
        assert processes.world == 1


def test_every_item_has_one_process() -> None:
    parts = [Processes(rank, 3, "cpu").share(range(8)) for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]


@pytest.mark.parametrize(
    ("devices", "device", "environment", "reason"),
    [
        (0, "cpu", {}, "devices=0; give 1 or more"),
        (2, "cuda:1", {}, "devices=2 and device=cuda:1 contradict each other"),
        (99, "cuda", {}, "devices=99, but torch sees"),
        (
            3,
            "cpu",
            {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"},
            "devices=3, but torchrun started 2 processes",
        ),
    ],
)
def test_devices_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch,
    devices: int,
    device: str,
    environment: dict[str, str],
    reason: str,
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=reason), launch(devices, device):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("by_torchrun", [False, True])
def test_two_processes(tmp_path: Path, by_torchrun: bool) -> None:
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *(torchrun if by_torchrun else []), str(script), str(tmp_path)]
    subprocess.run([*command, "1" if by_torchrun else "2"], check=True, timeout=300)
    everyone = [{"rank": 0}, {"rank": 1}]
    for rank, mine in ((0, ["a", "c", "e"]), (1, ["b", "d"])):
        text = (tmp_path / str(rank)).read_text()
        assert text == f"{rank}/2 cpu {['from', 0]} {everyone} {mine}"
