"""A Slurm cluster on this machine, and jobs on it, as the tests use them."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
_STEP = re.compile(r"^step (\d+)/\d+ \| loss ([^ ]+) .* grad norm ([^ ]+)", re.MULTILINE)


class CannotRun(RuntimeError):
    """This machine cannot have such a cluster."""


class Cluster:
    """Nodes of a real Slurm, started by ``cluster.sh``."""

    def __init__(self, state: Path, nodes: int) -> None:
        self.state = state
        done = self._command("up", str(nodes), check=False)
        if done.returncode == 3:
            raise CannotRun(done.stderr.strip())
        if done.returncode:
            self.down()
            raise RuntimeError(done.stderr)

    def down(self) -> None:
        """End all of it."""
        self._command("down")

    def crash(self, node: str) -> None:
        """Power loss: every process of the node is killed."""
        self._command("crash", node)

    def orphan(self, node: str) -> None:
        """Kill the node's slurmd alone; tasks on it go on."""
        self._command("orphan", node)

    def boot(self, node: str) -> None:
        """Start it again."""
        self._command("boot", node)

    def ask(self, *command: str, check: bool = True) -> str:
        """Output of one of Slurm's commands."""
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=60, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout.strip()

    def submit(
        self, folder: Path, script: str, *arguments: str, options: tuple[str, ...] = (), **variables: str
    ) -> "Job":
        """``sbatch OPTIONS script ARGUMENTS`` in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(ROOT / script), *arguments],
            env=self.environment() | {"MEGATRON_FOCUS_ROOT": str(ROOT), "PREFLIGHT": "0"} | variables,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Job(self, done.stdout.strip(), folder)

    def environment(self) -> dict[str, str]:
        """Variables of a shell that uses the cluster and the Python of the tests."""
        left = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "PYTEST_"))
        }
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return left | {"SLURM_CONF": str(self.state / "etc" / "slurm.conf"), "PATH": path}

    def _command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        script = Path(__file__).with_name("cluster.sh")
        done = subprocess.run(
            ["bash", str(script), str(self.state), *arguments], capture_output=True, text=True, timeout=600, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done


@dataclass
class Job:
    """A job that was submitted."""

    cluster: Cluster
    id: str
    folder: Path
    seen: set[str] = field(default_factory=set)

    @property
    def log(self) -> str:
        """The job's log, of all its lives."""
        found = list(self.folder.glob(f"*-{self.id}.log"))
        return found[0].read_text() if found else ""

    @property
    def logs(self) -> Path:
        """Folder of the ranks' logs."""
        return next((self.folder / "logs").glob(f"*-{self.id}"))

    @property
    def state(self) -> str:
        """Slurm's word for where the job stands."""
        return self._field("JobState")

    @property
    def exit_code(self) -> str:
        """``CODE:SIGNAL`` of the batch script."""
        return self._field("ExitCode")

    @property
    def restarts(self) -> int:
        """How often it was requeued."""
        return int(self._field("Restarts"))

    def wait_for(self, condition: Callable[[], bool], what: str, within: float = 300.0) -> None:
        """Poll until ``condition`` holds; the log is part of the error."""
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() > deadline or (self.ended and not condition()):
                raise AssertionError(f"job {self.id} ({self.state}): no {what}\n{self.log[-6000:]}")
            time.sleep(0.2)

    def wait_for_step(self, step: int, within: float = 300.0) -> None:
        """Until this many steps are in the log."""
        self.wait_for(lambda: step in self.steps, f"step {step}", within)

    def wait(self, within: float = 400.0) -> str:
        """Until it has left the queue for good; returns its state."""
        self.wait_for(lambda: self.ended, "end", within)
        return self.state

    @property
    def ended(self) -> bool:
        """Nothing will come after this."""
        return self.state in {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE"}

    @property
    def steps(self) -> dict[int, tuple[str, str]]:
        """Loss and gradient norm of each training step as logged, by the life that took it last."""
        return {int(number): (loss, norm) for number, loss, norm in _STEP.findall(self.log)}

    @property
    def resumed_at(self) -> list[int]:
        """Steps that its lives went on from."""
        return [int(step) for step in re.findall(r"^continuing from .* at step (\d+)", self.log, re.MULTILINE)]

    def rank_process(self, rank: int) -> int:
        """Process id of a rank of the training step."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                variables = dict(
                    entry.split("=", 1) for entry in (path / "environ").read_text().split("\0") if "=" in entry
                )
                words = (path / "cmdline").read_text().split("\0")
                parent = (path / "stat").read_text().rsplit(")")[-1].split()[1]
                launched = "slurmstepd" in Path("/proc", parent, "comm").read_text()
            except (OSError, UnicodeDecodeError):
                continue  # it has ended, or is none of ours
            ours = variables.get("SLURM_JOB_ID") == self.id and variables.get("RANK") == str(rank)
            if ours and launched and "megatron_focus.train" in words:
                return int(path.name)
        raise AssertionError(f"job {self.id} has no rank {rank}")

    def _field(self, name: str) -> str:
        match = re.search(rf"\b{name}=(\S+)", self.cluster.ask("scontrol", "show", "job", self.id))
        assert match, name
        return match[1]
