"""What a run survives: signals, damaged and unwritable checkpoints, bad steps, a second life; and what ends it."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

from megatron_focus.checkpoint import checksums, saver
from megatron_focus.checkpoint.saver import CheckpointSaver
from megatron_focus.config.loading import dump_config
from megatron_focus.training import trainer
from megatron_focus.training.step_guard import StepGuard
from tests.distributed.assemble import assemble
from tests.distributed.harness import run_ranks
from tests.functional.runs import train

DP2: dict = {}


def asked_to_stop_in_step_4(config):
    """A rank other than 0 gets the signal: the others learn of it."""
    step = trainer.train_step

    def signalled_step(*args):
        metrics = step(*args)
        signalled_step.count += 1
        if signalled_step.count == 4 and torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return metrics

    signalled_step.count = 0
    trainer.train_step = signalled_step
    with trainer.StopRequest() as stop:
        return train(config, stop)


def test_a_signal_to_one_rank_saves_and_ends_all_and_the_run_goes_on_as_if_nothing_had_been(run_config):
    expected = run_ranks(train, 2, run_config(DP2, name="undisturbed"))
    config = run_config(DP2, name="signalled")
    before = run_ranks(asked_to_stop_in_step_4, 2, config)
    assert [result.outcome.status for result in before] == ["interrupted"] * 2
    assert before[0].outcome.iteration == 4
    assert any(line.startswith("interrupted after 4 steps") for line in before[0].said)
    after = run_ranks(train, 2, config)
    assert after[0].outcome.status == "finished"
    assert before[0].losses + after[0].losses == expected[0].losses
    a, b = (assemble(result.weights for result in results) for results in (after, expected))
    assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.parametrize("damage", ["one byte", "missing"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_taken(run_config, damage):
    expected = run_ranks(train, 1, run_config(name="undisturbed"))
    config = run_config({}, {"exit_iter": 5}, name="damaged")
    run_ranks(train, 1, config)
    names = set(os.listdir(config.checkpoint.save))
    assert names == {"iter_0000003", "iter_0000005", "owner"}
    newest = os.path.join(config.checkpoint.save, "iter_0000005")
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=newest).returncode == 0
    file = max((entry for entry in os.scandir(newest)), key=lambda entry: entry.stat().st_size).path
    middle = os.path.getsize(file) // 2
    if damage == "missing":
        os.remove(file)
    else:
        with open(file, "r+b") as stream:
            stream.seek(middle)
            byte = stream.read(1)
            stream.seek(middle)
            stream.write(bytes([byte[0] ^ 1]))
    config.training.exit_iter = None
    after = run_ranks(train, 1, config)
    assert after[0].losses == expected[0].losses[3:]
    assert any("iter_0000005 is damaged" in line and os.path.basename(file) in line for line in after[0].said)
    assert any(name.startswith("iter_0000005.damaged-") for name in os.listdir(config.checkpoint.save))


def beside_an_older_life(config):
    """A writer on a node that was cut off finishes while this life trains."""
    next_step = trainer.StepFeeder.next_step

    def feed(self, step):
        if step == 1:
            os.mkdir(os.path.join(config.checkpoint.save, "iter_0000003"))
        return next_step(self, step)

    trainer.StepFeeder.next_step = feed
    return train(config)


def test_a_checkpoint_that_an_older_life_has_just_finished_is_left_alone(run_config):
    expected = run_ranks(train, 1, run_config(name="undisturbed"))
    config = run_config(name="beside")
    (result,) = run_ranks(beside_an_older_life, 1, config)
    assert result.losses == expected[0].losses
    assert os.listdir(os.path.join(config.checkpoint.save, "iter_0000003")) == []
    assert not any("saved" in line and "iter_0000003" in line for line in result.said)


def with_storage_that_fails_rank_1(config):
    """One node cannot read: an input/output error."""
    if os.environ["RANK"] == "1":

        def fails(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

        checksums._sum = fails
    return train(config)


def test_a_node_that_cannot_read_is_not_taken_for_a_damaged_checkpoint(run_config):
    config = run_config(DP2, {"exit_iter": 3})
    run_ranks(train, 2, config)
    config.training.exit_iter = None
    with pytest.raises(AssertionError, match=r"OSError: .*iter_0000003 cannot be read: .*Input/output error"):
        run_ranks(with_storage_that_fails_rank_1, 2, config)
    assert sorted(os.listdir(config.checkpoint.save)) == ["iter_0000003", "owner"]


def test_with_every_checkpoint_damaged_nothing_starts_from_scratch_in_silence(run_config):
    config = run_config({}, {"exit_iter": 3})
    run_ranks(train, 1, config)
    os.truncate(os.path.join(config.checkpoint.save, "iter_0000003", ".metadata"), 10)
    with pytest.raises(AssertionError, match="no undamaged checkpoint is left"):
        run_ranks(train, 1, config)


def without_room_for_the_first_checkpoint(config):
    """The writing process may not write more than 1,000 bytes to a file: the operating system refuses."""
    write_and_sum = saver._write_and_sum

    def limited(write, folder, *args):
        if folder.name.startswith("iter_0000003"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        write_and_sum(write, folder, *args)

    saver._write_and_sum = limited
    return train(config)


def test_a_checkpoint_that_cannot_be_written_does_not_stop_training(run_config):
    expected = run_ranks(train, 2, run_config(DP2, name="undisturbed"))
    config = run_config(DP2, name="full")
    results = run_ranks(without_room_for_the_first_checkpoint, 2, config)
    assert results[0].losses == expected[0].losses
    said = [line for line in results[0].said if line.startswith("checkpoint not saved, training goes on:")]
    assert len(said) == 1 and "iter_0000003" in said[0] and "cannot be written" in said[0]
    assert sorted(os.listdir(config.checkpoint.save)) == ["iter_0000006", "owner"]


def with_a_writer_that_waits_for_step_5(config, go):
    """The process that writes the checkpoint of step 3 begins only when step 5 is done."""
    write_and_sum, step = saver._write_and_sum, trainer.train_step

    def waiting(write, folder, *args):
        while folder.name.startswith("iter_0000003") and not os.path.exists(go):
            time.sleep(0.02)
        write_and_sum(write, folder, *args)

    def counted(*args):
        metrics = step(*args)
        counted.count += 1
        if counted.count == 5:
            open(go, "w").close()
        return metrics

    counted.count = 0
    saver._write_and_sum, trainer.train_step = waiting, counted
    return train(config)


def test_training_goes_on_while_a_checkpoint_of_an_earlier_step_is_written(run_config, tmp_path):
    """What is written late is the state of step 3: a run that continues from it repeats steps 4 to 6."""
    config = run_config({}, {"train_iters": 6}, name="late")
    config.checkpoint.keep_last = 0
    whole = run_ranks(with_a_writer_that_waits_for_step_5, 1, config, str(tmp_path / "go"))
    shutil.rmtree(os.path.join(config.checkpoint.save, "iter_0000006"))
    again = run_ranks(train, 1, config)
    assert again[0].losses == whole[0].losses[3:]


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(run_config):
    config = run_config({}, {"train_iters": 3}, name="full")
    with pytest.raises(AssertionError, match=r"SaveError: .*iter_0000003.*cannot be written \([\d,]+ MiB are free"):
        run_ranks(without_room_for_the_first_checkpoint, 1, config)
    assert os.listdir(config.checkpoint.save) == ["owner"]


def with_a_writer_that_is_killed(config):
    """What writes the files of the first checkpoint is killed, as when memory runs out."""
    write = FileSystemWriterAsync.write_preloaded_data

    def killed(transforms, *args, write_bucket, **kwargs):
        if "iter_0000003" in str(write_bucket[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        return write(transforms, *args, write_bucket=write_bucket, **kwargs)

    FileSystemWriterAsync.write_preloaded_data = staticmethod(killed)
    return train(config)


def test_a_killed_writer_is_noticed_and_the_next_checkpoint_is_written(run_config):
    config = run_config(DP2, name="killed")
    results = run_ranks(with_a_writer_that_is_killed, 2, config)
    assert any("iter_0000003" in line and "not saved, training goes on" in line for line in results[0].said)
    assert sorted(os.listdir(config.checkpoint.save)) == ["iter_0000006", "owner"]


def with_broken_gradients(config, steps):
    """In some steps the balance loss has a gradient that is NaN."""
    next_step = trainer.StepFeeder.next_step

    def broken(self, step):
        self.config.model.vision_sampler.balance_loss_coeff = float("nan") if step + 1 in steps else 0.1
        return next_step(self, step)

    trainer.StepFeeder.next_step = broken
    return train(config)


@pytest.mark.parametrize(
    ("parallel", "freeze", "scope"),
    [
        ({"overlap_grad_reduce": True}, [], "batch"),
        ({"pipeline_model_parallel_size": 2}, ["language_model"], "row"),  # the last stage has nothing to train
        ({"tensor_model_parallel_size": 2}, [], "batch"),
    ],
)
def test_a_step_that_is_not_finite_is_skipped_and_its_samples_are_named(run_config, parallel, freeze, scope):
    config = run_config(parallel, {"train_iters": 4}, name="nan", freeze=freeze)
    config.model.vision_sampler.balance_scope = scope
    results = run_ranks(with_broken_gradients, 2, config, {2, 3})
    skipped = [line for line in results[0].said if line.startswith(("step 2 skipped", "step 3 skipped"))]
    assert len(skipped) == 2
    for line in skipped:
        reason, ids = line.split("; its samples: ")
        assert reason.endswith("the gradient norm is nan")
        assert len(set(re.findall(r"s\d+", ids))) == config.training.global_batch_size  # of all ranks
        assert len(ids.split(", ")) == config.training.global_batch_size
    assert any(line.endswith("2 steps skipped (listed above)") for line in results[0].said)
    assert all(torch.isfinite(w).all() for w in assemble(result.weights for result in results).values())


def test_too_many_skipped_steps_end_the_run_with_sound_checkpoints(run_config):
    config = run_config(name="nan")
    config.training.max_skipped_steps, config.checkpoint.save_interval = 1, 1
    with pytest.raises(AssertionError, match=r"FloatingPointError: 2 steps in a row.*step 5 skipped.*samples: .*s\d"):
        run_ranks(with_broken_gradients, 1, config, {4, 5})
    # The weights of step 4 are those of step 3, which are sound.
    assert sorted(os.listdir(config.checkpoint.save)) == ["iter_0000003", "iter_0000004", "owner"]


def test_a_spike_is_skipped(run_config):
    """With next to no learning the losses depend on the samples alone, and a factor of next to 1 makes some spikes."""
    training = {"train_iters": 8, "max_skipped_steps": 100}
    plain = run_ranks(train, 1, run_config({}, training, name="plain", lr=1e-9))[0].losses
    guard = StepGuard(spike_factor=1.0 + 1e-9)
    expected = [step for step, loss in enumerate(plain, 1) if guard.objection(loss, 1.0) is not None]
    assert expected
    config = run_config({}, training | {"loss_spike_factor": 1.0 + 1e-9}, name="skipping", lr=1e-9)
    said = run_ranks(train, 1, config)[0].said
    seen = [re.match(r"step (\d+) skipped: the loss is .* times the usual", line) for line in said]
    assert [int(match[1]) for match in seen if match] == expected


def taken_over_in_between(config):
    """Another life of the job takes the folder while this one trains."""
    start = CheckpointSaver.start

    def late(self, content, iteration, *args, **kwargs):
        start(self, content, iteration, *args, **kwargs)
        if torch.distributed.get_rank() == 0:
            (self.store.folder / "owner").write_text("the-next-life")

    CheckpointSaver.start = late
    return train(config)


def test_an_older_life_can_save_no_more(run_config):
    config = run_config()
    with pytest.raises(AssertionError, match=r"SupersededError: .*belongs to the-next-life now"):
        run_ranks(taken_over_in_between, 1, config)
    assert os.listdir(config.checkpoint.save) == ["owner"]


def launch(config, folder, *options):
    (folder / "run.yaml").write_text(dump_config(config))
    command = [sys.executable, "-u", "-m", "megatron_focus.train", str(folder / "run.yaml"), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_the_command_line_tells_a_script_how_the_run_ended(run_config, tmp_path):
    config = run_config({}, {"train_iters": 400}, lr_decay_style="constant")
    outcome = tmp_path / "how" / "outcome.json"
    process = launch(config, tmp_path, "--outcome", str(outcome), "--life", "77.0")
    for line in process.stdout:
        if line.startswith("saved "):
            # To all its processes, those that write checkpoints too, as schedulers do.
            os.killpg(process.pid, signal.SIGTERM)
            break
    said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    ended = json.loads(outcome.read_text())
    assert ended["status"] == "interrupted" and 3 <= ended["iteration"] < 400 and ended["train_iters"] == 400
    assert os.path.isdir(os.path.join(config.checkpoint.save, f"iter_{ended['iteration']:07d}"))
    config.training.exit_iter = ended["iteration"] + 1
    process = launch(config, tmp_path, "--outcome", str(outcome), "--life", "77.1")
    said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert json.loads(outcome.read_text()) == {
        "status": "finished",
        "iteration": ended["iteration"] + 1,
        "train_iters": 400,
    }


HANGING = """
import os, sys, time
from megatron_focus import train
from megatron_focus.training.batch import StepFeeder
from megatron_focus.training import hang_detection
from megatron_focus.training.hang_detection import HangDetection

hang_detection._GRACE_S = 5.0

def never(self, step):
    time.sleep(1000)

def late(self, begin=HangDetection.step_begins):
    time.sleep(2)  # so its time ends later than the other's
    begin(self)

if os.environ["RANK"] == "1":
    StepFeeder.next_step = never
else:
    HangDetection.step_begins = late
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_hang_shows_where_all_ranks_stand_and_ends_them(run_config, tmp_path):
    config = run_config()
    config.training.step_timeout_minutes = 0.1
    (tmp_path / "run.yaml").write_text(dump_config(config))
    (tmp_path / "hanging.py").write_text(HANGING)
    outcome = tmp_path / "outcome.json"
    # It ends all ranks when the first one ends, as srun does.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(tmp_path / "hanging.py"), str(tmp_path / "run.yaml"), "--outcome", str(outcome)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "SIGALRM" in ended.stderr
    assert ended.stderr.count("Timeout (0:00:06)!") == 2
    assert ended.stderr.index("in never") < ended.stderr.index("in all_reduce")
    assert not outcome.exists()
