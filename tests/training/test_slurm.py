"""Does a job that SLURM starts, stops and requeues do what docs/scaling-up.md promises?

SLURM itself is not needed: srun is what sets its variables for each task.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

from ldm import app
from ldm.parts import check_train
from ldm.training.launch import Launcher, cluster_environment, launch, launcher
from ldm.training.trainer import TrainerSettings

REPOSITORY = Path(__file__).parents[2]
JOB = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "ldm", "SLURM_NTASKS": "16", "SLURM_NNODES": "2"}
JOB |= {"SLURM_NTASKS_PER_NODE": "8"}
STEP = {**JOB, "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """environment({…}): these variables, and no others of SLURM or torchrun."""

    def put(variables: dict[str, str]) -> None:
        for name in [n for n in os.environ if n.startswith(("SLURM_", "TORCHELASTIC_"))]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("variables", "expected", "plugin"),
    [
        ({}, None, None),
        (TORCHRUN, Launcher("torchrun", 4, 2), None),
        (STEP, Launcher("srun", 16, 8), SLURMEnvironment),
        ({**STEP, **TORCHRUN}, Launcher("torchrun", 4, 2), None),  # srun torchrun …
        (JOB, None, LightningEnvironment),  # python in the job's script itself
        ({**STEP, "SLURM_JOB_NAME": "bash"}, None, None),  # srun --pty bash
        ({**STEP, "SLURM_JOB_NAME": "interactive"}, None, None),  # salloc
    ],
)
def test_who_started_the_processes(
    environment: Callable[..., None],
    variables: dict[str, str],
    expected: Launcher | None,
    plugin: type | None,
) -> None:
    environment(variables)
    assert launcher() == expected
    assert [type(found) for found in cluster_environment()] == ([plugin] if plugin else [])


def test_lightning_leaves_signals_and_requeueing_to_us(environment: Callable[..., None]) -> None:
    environment(STEP)
    (plugin,) = cluster_environment()
    assert isinstance(plugin, SLURMEnvironment)
    assert not plugin.auto_requeue


def test_other_processes_than_the_run_needs_are_an_error(environment: Callable[..., None]) -> None:
    """They would wait for each other until the time-out."""
    environment(STEP)
    assert TrainerSettings(accelerator="cpu", devices=8, num_nodes=2).problems() == []
    assert TrainerSettings(accelerator="cpu", devices=8, num_nodes=2).world_size == 16
    (problem,) = TrainerSettings(accelerator="cpu", devices=8).problems()
    assert "srun started 16 process(es), 8 on each machine" in problem
    assert "devices=8 x num_nodes=1 is 8; set devices=8 num_nodes=2" in problem
    with pytest.raises(ValueError, match="devices=4, but srun started 8"), launch(4, "cpu"):
        pass
    environment(JOB)  # without srun we start what is asked for on this machine
    assert TrainerSettings(accelerator="cpu", devices=4).world_size == 4
    assert TrainerSettings(accelerator="cpu", devices=4).problems() == []


# -- the template of docs/scaling-up.md ------------------------------------------------------------

# sbatch(1): the long options that concern where a job runs, how it is told to stop, and its output
OPTIONS = {
    *("account", "array", "chdir", "comment", "constraint", "container", "cpus-per-gpu"),
    *("cpus-per-task", "dependency", "distribution", "error", "exclude", "exclusive", "export"),
    *("gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task", "gres", "hint", "input"),
    *("job-name", "kill-on-invalid-dep", "mail-type", "mail-user", "mem", "mem-per-cpu"),
    *("mem-per-gpu", "nice", "no-requeue", "nodelist", "nodes", "ntasks", "ntasks-per-gpu"),
    *("ntasks-per-node", "open-mode", "output", "partition", "priority", "qos", "requeue"),
    *("reservation", "signal", "switches", "threads-per-core", "time", "time-min", "wait"),
}
VARIABLES = {"SLURM_JOB_ID"}  # that sbatch sets for the script


@pytest.fixture(scope="module")
def template() -> str:
    text = (REPOSITORY / "docs" / "scaling-up.md").read_text()
    (found,) = [
        block for block in re.findall(r"```bash\n(.*?)```", text, re.S) if "#SBATCH" in block
    ]
    return found


def options_of(template: str) -> dict[str, str]:
    words = [w for line in re.findall(r"^#SBATCH (.*)$", template, re.M) for w in line.split()]
    assert all(word.startswith("--") for word in words)
    return dict(word[2:].partition("=")[::2] for word in words)


def train_line(template: str) -> list[str]:
    """The arguments of train.py, the variables of the script put in."""
    (line,) = [line for line in template.splitlines() if line.startswith("srun ")]
    command = shlex.split(line.replace("$START", "resume=auto"))
    assert command[:3] == ["srun", "python", "scripts/train.py"]
    return command[3:]


def test_the_template_is_bash_that_sbatch_reads(template: str) -> None:
    assert template.startswith("#!/bin/bash\n#SBATCH ")
    subprocess.run(["bash", "-n"], input=template, text=True, check=True)
    options = options_of(template)
    assert set(options) <= OPTIONS
    assert "requeue" in options
    assert re.fullmatch(r"SIGUSR1@\d+", options["signal"])  # to the tasks, not to the script (B:)
    code = re.sub(r"^#.*$", "", template, flags=re.M)
    used = set(re.findall(r"\$\{?(\w+)", code))
    assert used - set(re.findall(r"^(\w+)=", code, re.M)) <= VARIABLES


def test_the_template_asks_for_the_processes_that_the_run_needs(
    template: str, composed: Callable[..., dict[str, Any]]
) -> None:
    """And every key that it gives to train.py exists."""
    options, line = options_of(template), train_line(template)
    cfg = composed(*line, "training.trainer.accelerator=cpu")
    assert check_train(cfg) == []
    trainer = cfg["training"]["trainer"]
    assert trainer["devices"] == int(options["ntasks-per-node"]) == int(options["gpus-per-node"])
    assert trainer["num_nodes"] == int(options["nodes"])
    assert cfg["resume"] == "auto"


@pytest.mark.parametrize(("status", "requeued"), [(0, []), (75, ["requeue 4711"]), (1, [])])
def test_the_template_requeues_what_was_preempted_and_nothing_else(
    template: str, tmp_path: Path, status: int, requeued: list[str]
) -> None:
    for name, ending in (("srun", f"exit {status}"), ("scontrol", "exit 0")):
        program = tmp_path / name
        program.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/{name}.said\n{ending}\n')
        program.chmod(0o755)
    subprocess.run(
        ["bash", "-s"],
        input=template,
        text=True,
        check=False,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"},
    )
    assert (tmp_path / "srun.said").read_text().startswith("python scripts/train.py experiment=")
    said = tmp_path / "scontrol.said"
    assert (said.read_text().splitlines() if said.exists() else []) == requeued


# -- tasks as srun starts them, on one node --------------------------------------------------------


class Tasks:
    """Two tasks of one step."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        step = {**STEP, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
        step |= {"SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "MASTER_PORT": port}
        self.processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **step, "SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)},
                cwd=cwd,
                stderr=subprocess.PIPE,
                text=True,
            )
            for n in range(2)
        ]

    def wait(self) -> list[int]:
        ended = [process.communicate(timeout=300)[1] for process in self.processes]
        self.said = "".join(ended)
        return [process.returncode for process in self.processes]


@pytest.mark.slow
def test_two_tasks_are_one_run_that_is_preempted_and_goes_on(
    tmp_path: Path,
    tiny_line: Callable[..., list[str]],
    tiny_cfg: Callable[..., dict[str, Any]],
    document: Callable[[Path], dict[str, Any]],
) -> None:
    """SIGUSR1 to every task, as --signal=SIGUSR1@300 does."""
    run_dir = tmp_path / "run"
    script = str(REPOSITORY / "scripts" / "train.py")
    changes = (f"run_dir={run_dir}", "resume=auto", "training.trainer.devices=2")
    line = tiny_line(*changes, "training.max_samples=1e6")
    tasks = Tasks([sys.executable, script, *line], tmp_path)
    try:
        deadline = time.monotonic() + 300
        while not (run_dir / "checkpoints" / "s000000016.ckpt").exists():
            assert time.monotonic() < deadline
            assert [p.poll() for p in tasks.processes] == [None, None]
            time.sleep(0.2)
        for process in tasks.processes:
            process.send_signal(signal.SIGUSR1)
        assert tasks.wait() == [75, 75], tasks.said[-3000:]
    finally:
        for process in tasks.processes:
            process.kill()
    assert "8 = 2 device(s) x micro_batch 4" in (run_dir / "plan.txt").read_text()
    assert not list(tmp_path.rglob("hpc_ckpt*"))  # Lightning's own
    seen = document(run_dir)["samples_seen"]
    cfg = tiny_cfg(run_dir, "resume=auto", f"training.max_samples={seen + 8}")
    assert app.train(cfg) == 0
    assert document(run_dir)["samples_seen"] == seen + 8


@pytest.mark.slow
def test_without_srun_the_run_starts_its_processes_itself(
    script: Callable[..., Any], tmp_path: Path, metrics: Callable[..., list[dict[str, float]]]
) -> None:
    """Lightning alone would wait for the other tasks of the job."""
    job = {**JOB, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1"}
    line = (f"run_dir={tmp_path / 'run'}", "training.trainer.devices=2")
    done = script("train", *line, cwd=tmp_path, **job, SLURM_PROCID="0", SLURM_LOCALID="0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["samples_seen"] for row in metrics(tmp_path / "run")] == [8, 16, 24, 32]


@pytest.mark.slow
def test_two_tasks_share_the_work_of_other_scripts(tmp_path: Path) -> None:
    work = tmp_path / "work.py"
    work.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from ldm.training.launch import launch\n"
        "with launch('auto', 'cpu') as processes:\n"
        "    text = f'{processes.rank}/{processes.world} {processes.gather(processes.rank)}'\n"
        "    Path(sys.argv[1], str(processes.rank)).write_text(text)\n"
    )
    tasks = Tasks([sys.executable, str(work), str(tmp_path)], tmp_path)
    assert tasks.wait() == [0, 0], tasks.said[-3000:]
    assert [(tmp_path / str(n)).read_text() for n in range(2)] == ["0/2 [0, 1]", "1/2 [0, 1]"]
