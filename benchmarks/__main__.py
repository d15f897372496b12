"""The speed benchmarks: python -m benchmarks [training detection metrics data start gpu] [--write]

Without a name all of them run, each in a process of its own, about ten minutes on two cores. Each prints its
tables and writes results/speed/NAME.json; --write also puts the tables into benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.measuring import RESULTS, ROOT, markdown, use_cores

NAMES = ("training", "detection", "metrics", "data", "start", "gpu")
PAGE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- begin: measured -->", "<!-- end: measured -->"


def write_page() -> None:
    """The figures of the last run of each benchmark take the place of the page's; of one that was not run here they
    stay.
    """
    before, _, rest = PAGE.read_text().partition(BEGIN)
    old, _, after = rest.partition(END)
    sections = {
        part.partition("\n")[0]: part.strip() for part in re.split(r"^## ", old, flags=re.MULTILINE)[1:]
    }
    for name in NAMES:
        if (file := RESULTS / f"{name}.json").exists():
            sections[name] = markdown(json.loads(file.read_text())).strip().removeprefix("## ")
    kept = "\n\n".join(f"## {sections[name]}" for name in NAMES if name in sections)
    PAGE.write_text(f"{before}{BEGIN}\n\n{kept}\n\n{END}{after}")


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    p.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(NAMES)}")
    p.add_argument("--cores", type=int, default=2, help="how many cores may be used (default: 2)")
    p.add_argument(
        "--quick", action="store_true", help="small sizes, one round: to see that it runs; nothing is kept"
    )
    p.add_argument(
        "--compile", action="store_true", help="training, gpu: torch.compile too; that takes minutes on a CPU"
    )
    p.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    args = p.parse_args()
    if unknown := set(args.names) - set(NAMES):
        p.error(f"no benchmark {sorted(unknown)[0]!r}: choose from {', '.join(NAMES)}")
    use_cores(args.cores)
    names, code = args.names or NAMES, 0
    if len(names) == 1:
        options = {"compiled": True} if args.compile and names[0] in ("training", "gpu") else {}
        importlib.import_module(f"benchmarks.speed_{names[0]}").measure(quick=args.quick, **options).publish(
            keep=not args.quick
        )
    else:
        flags = ["--cores", str(args.cores)] + ["--quick"] * args.quick + ["--compile"] * args.compile
        for name in names:  # one goes on when another fails
            code |= subprocess.run([sys.executable, "-m", "benchmarks", name, *flags], cwd=ROOT).returncode
    if args.write:
        write_page()
    return code


if __name__ == "__main__":
    sys.exit(main())
