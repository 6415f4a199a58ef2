"""Takes the place of megatron_focus.train where a test is about the batch script: starts in no time, learns nothing.

``python -m megatron_focus.train FILE [steps=N] [fail_at=STEP (if it starts from 0)] [code=C] [slow_start=SECONDS]
[unsaved= (no checkpoints)] ...``
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Count seconds as steps, with a checkpoint after every third."""
    settings = dict(a.split("=", 1) for a in arguments if "=" in a)
    if "--dry-run" in arguments:
        if "refused" in settings:
            print(f"error: refused={settings['refused']}", file=sys.stderr)
            return 2
        print("checkpoint:\n  save: checkpoints")
        return 0
    rank, steps = int(os.environ["RANK"]), int(settings.get("steps", 6))
    time.sleep(float(settings.get("slow_start", 0)))
    asked = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.append(number))
    saved, broken = Path("checkpoints"), Path(f"broken-{os.environ['LIFE']}")
    step = max((int(path.name[5:]) for path in saved.glob("iter_*")), default=0)
    start = step
    print(f"continuing at step {step}", flush=True)
    while step < steps and not asked:
        time.sleep(1)
        step += 1
        print(f"step {step}", flush=True)
        if rank == 2 and start == 0 and step == int(settings.get("fail_at", 0)):
            broken.touch()
            if code := settings.get("code"):
                return int(code)
            raise RuntimeError(f"the failure of step {step}")
        if rank == 0 and step % 3 == 0 and "unsaved" not in settings:
            (saved / f"iter_{step:07d}").mkdir(parents=True, exist_ok=True)
    if broken.exists():
        return 1  # as a collective would end without one of its ranks
    if rank == 0:
        if step > start and "unsaved" not in settings:
            (saved / f"iter_{step:07d}").mkdir(parents=True, exist_ok=True)
        status = "finished" if step >= steps else "interrupted"
        outcome = Path(arguments[arguments.index("--outcome") + 1])
        outcome.write_text(json.dumps({"status": status, "iteration": step, "train_iters": steps}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
