"""The preflight: meet, compare facts, look at the shared folder, measure speeds, name the nodes that differ.

Nothing collective happens before all ranks are known to be there with the same libraries.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist

from megatron_focus.config.loading import load_config
from megatron_focus.config.schema import RunConfig
from megatron_focus.config.validation import validate
from megatron_focus.diagnosis.clocks import clock_offset
from megatron_focus.diagnosis.comparison import compare, speed_can_be_measured
from megatron_focus.diagnosis.launch import Launch
from megatron_focus.diagnosis.meeting import Meeting, MeetingEnded, MeetingError
from megatron_focus.diagnosis.rank_facts import RankFacts, collect_facts
from megatron_focus.diagnosis.shared_folder import check_shared_folder
from megatron_focus.diagnosis.speed import Speeds, Workload, measure
from megatron_focus.diagnosis.stragglers import judge_speeds, slow_network
from megatron_focus.diagnosis.verdict import GPU_MIN_SHARE, Verdict
from megatron_focus.diagnosis.watchdog import Watchdog

GOOD, BAD_NODE, BAD_CONFIGURATION = 0, 1, 2
_MAX_CLOCK_OFFSET_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is tolerated."""

    rendezvous_timeout_s: float = 300.0
    stage_timeout_s: float = 180.0
    min_share: float | None = None
    """None: ``GPU_MIN_SHARE`` with GPUs, no comparison without."""
    min_bandwidth: float | None = None
    """GB/s."""


@dataclass
class Outcome:
    """What rank 0 knows at the end."""

    exit_code: int
    verdict: Verdict
    facts: list[RankFacts] = field(default_factory=list)
    speeds: list[Speeds] = field(default_factory=list)
    clocks: list[float] = field(default_factory=list)
    """Seconds ahead of rank 0, by rank."""
    seconds: float = 0.0
    configuration_error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 3),
            "problems": self.verdict.problems,
            "warnings": self.verdict.warnings,
            "everywhere": self.verdict.everywhere,
            "configuration_error": self.configuration_error,
            "ranks": [
                asdict(facts) | {"clock_offset_s": clock, "speeds": asdict(speeds) if speeds else None}
                for facts, clock, speeds in zip_longest(self.facts, self.clocks, self.speeds)
            ],
        }


def run_preflight(
    launch: Launch,
    path: str,
    overrides: Sequence[str],
    limits: Limits,
    announce: Callable[[Outcome], None],
    collect: Callable[[Launch, RunConfig], RankFacts] = collect_facts,
) -> int:
    """Everything, on every rank.

    Args:
        launch: this process.
        path: YAML file of the run.
        overrides: ``section.key=value`` strings.
        limits: what is tolerated.
        announce: called on rank 0 with what was found, before any rank ends: a launcher may end all with the first.
        collect: looks at a rank's node.

    Returns:
        the exit code. Missing ranks are named on standard error.
    """
    started = time.perf_counter()
    try:
        meeting = Meeting(launch, limits.rendezvous_timeout_s)
    except MeetingError as error:
        _complain(str(error))
        return BAD_NODE
    try:
        meeting.wait_for_all()
        outcome = _examine(meeting, path, overrides, limits, collect)
        if outcome is not None:
            outcome.seconds = time.perf_counter() - started
            announce(outcome)
        return int(meeting.share(outcome.exit_code if outcome is not None else None))
    except MeetingEnded:
        return BAD_NODE  # rank 0 has said why
    except MeetingError as error:
        _complain(str(error))
        meeting.end()
        return BAD_NODE
    finally:
        meeting.leave()


def _complain(message: str) -> None:
    print(f"preflight: {message}", file=sys.stderr, flush=True)


def _examine(
    meeting: Meeting,
    path: str,
    overrides: Sequence[str],
    limits: Limits,
    collect: Callable[[Launch, RunConfig], RankFacts],
) -> Outcome | None:
    launch = meeting.launch
    config, error = _load(path, overrides, launch.world_size)
    errors = meeting.gather("configuration", [launch.node, error])
    # The same error everywhere is the user's; an error on some nodes is theirs.
    usable = meeting.share(errors is not None and not any(e for _, e in errors))
    if not usable:
        return _bad_configuration(errors) if errors is not None else None
    assert config is not None
    try:
        facts = collect(launch, config)
    except Exception as error:  # whatever a sick GPU or disk raises, it is this node's, and the others must not wait
        facts = RankFacts(launch.node, launch.rank, launch.local_rank, problems=[_said(launch, error)])
    clock = clock_offset(meeting)
    if config.checkpoint.save is not None and (problem := check_shared_folder(config.checkpoint.save, meeting)):
        facts.problems.append(problem)
    gathered = meeting.gather("facts", [asdict(facts), clock])
    outcome, nodes = None, None
    if gathered is not None:
        outcome = _compare(gathered)
        nodes = [rank.node for rank in outcome.facts] if speed_can_be_measured(outcome.facts) else None
    nodes = meeting.share(nodes)
    if nodes is not None:
        measured = _measure(meeting, nodes, limits)
        if outcome is not None and measured is not None:
            _judge(outcome, nodes, measured, limits)
    if outcome is not None:
        if outcome.verdict.everywhere:
            outcome.exit_code = BAD_CONFIGURATION
        if outcome.verdict.problems:
            outcome.exit_code = BAD_NODE
    return outcome


def _judge(outcome: Outcome, nodes: list[str], measured: list[list[Any]], limits: Limits) -> None:
    errors = [(rank, error) for rank, (_, error) in enumerate(measured) if error is not None]
    for rank, error in errors:
        outcome.verdict.problem(nodes[rank], error)
    if errors:
        return
    outcome.speeds = [Speeds(**plain) for plain, _ in measured]
    on_gpus = all(rank.gpu for rank in outcome.facts)
    share = GPU_MIN_SHARE if limits.min_share is None and on_gpus else limits.min_share
    if on_gpus and limits.min_bandwidth is None and (message := slow_network(nodes, outcome.speeds)) is not None:
        outcome.verdict.warning("", message)
    judge_speeds(outcome.verdict, nodes, outcome.speeds, share, limits.min_bandwidth)


def _said(launch: Launch, error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"rank {launch.rank}: {type(error).__name__}: {text[0] if text else ''}"


def _load(path: str, overrides: Sequence[str], world_size: int) -> tuple[RunConfig | None, str | None]:
    try:
        config = load_config(path, overrides)
        validate(config, world_size)
    except (ValueError, OSError) as error:
        return None, str(error)
    return config, None


def _bad_configuration(errors: list[list[Any]]) -> Outcome:
    verdict, messages = Verdict(), {error for _, error in errors}
    if len(messages) == 1:
        return Outcome(BAD_CONFIGURATION, verdict, configuration_error=messages.pop())
    for node, error in errors:
        if error is not None:
            verdict.problem(node, error)
    return Outcome(BAD_NODE, verdict)


def _compare(gathered: list[list[Any]]) -> Outcome:
    facts = [RankFacts(**plain) for plain, _ in gathered]
    outcome = Outcome(GOOD, compare(facts), facts=facts, clocks=[clock for _, clock in gathered])
    for rank, clock in zip(facts, outcome.clocks, strict=True):
        if rank.local_rank == 0 and abs(clock) > _MAX_CLOCK_OFFSET_S:
            outcome.verdict.problem(rank.node, f"its clock is {abs(clock):.1f} s {'ahead' if clock > 0 else 'behind'}")
    return outcome


def _measure(meeting: Meeting, nodes: list[str], limits: Limits) -> list[list[Any]] | None:
    """Speeds and error of each rank, on rank 0 (collective). A watchdog ends what hangs although all are there."""
    launch = meeting.launch
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", launch.local_rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    watchdog = Watchdog(launch, nodes, meeting.store, limits.stage_timeout_s)
    speeds, error = None, None
    if on_gpu:  # or collectives without a tensor would all take the node's first GPU
        torch.cuda.set_device(device)
    try:
        watchdog.stage("start of the process group")
        # Without device_id: NCCL would then make groups by splitting, which waits for ranks outside the group as well.
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("speed", meeting.store),
            rank=launch.rank,
            world_size=launch.world_size,
            # Longer than the watchdog's, which says more than an aborted collective.
            timeout=timedelta(seconds=2 * limits.stage_timeout_s),
        )
        speeds = asdict(measure(nodes, device, Workload.for_device(device), watchdog.stage))
        dist.destroy_process_group()
    except RuntimeError as failure:
        error = _said(launch, failure)
        _complain(f"{launch.node}: {error}")  # in case that the others hang
        watchdog.stage("after an error")
    gathered = meeting.gather("speeds", [speeds, error])
    watchdog.done()
    return gathered
