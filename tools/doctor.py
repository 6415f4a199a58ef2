"""Say what is installed on this machine, what it enables, what is missing, and whether a configuration can run here."""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from megatron_focus.diagnosis.doctor import add_config, diagnose
from megatron_focus.diagnosis.doctor_report import report
from megatron_focus.program import run_program

EXAMPLE = """\
examples:
  python tools/doctor.py
  python tools/doctor.py examples/quickstart/config.yaml parallel.tensor_model_parallel_size=1 --world-size 1

exit code: 0 nothing needed is missing, 1 something is (it is listed as a problem), 2 bad arguments
"""


def main(arguments: list[str] | None = None) -> int:
    """Diagnose and print; 1 if there are problems, 2 for arguments or a configuration that cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python tools/doctor.py",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="?", help="YAML file of a run to check as well")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that replace the file's")
    parser.add_argument(
        "--world-size", type=int, help="ranks of the run, over all machines (default: TP x PP, the fewest)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all of it as JSON")
    options = parser.parse_intermixed_args(arguments)
    if options.world_size is not None and (options.config is None or options.world_size < 1):
        parser.error("--world-size goes with a configuration and is 1 or more")
    started = time.perf_counter()
    try:
        diagnosis = diagnose()
        if options.config is not None:
            add_config(diagnosis, options.config, options.overrides, options.world_size)
        if options.json is not None:
            options.json.write_text(json.dumps(diagnosis.to_json(), indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(diagnosis, time.perf_counter() - started))
    return 1 if diagnosis.problems() else 0


if __name__ == "__main__":
    run_program(main)
