"""The tables of the race, Markdown, from its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from madad_lite.family.registry import method_class
from madad_lite.files import replace_file

BEGIN, END = "<!-- begin: tables -->", "<!-- end: tables -->"
HEAD = (
    "method|steps|max Dice, pooled, mean of seeds|range of seeds|95 %, first seed|minus MAD-AD, 95 %, first seed|"
    "seeds in which clearly ahead, behind|at the validation threshold|mean of lesion slices|AP|"
    "small / medium / large|of healthy brains found|ms a slice|its own settings|after the map"
).split("|")


def mean(rows: list[dict], key: str) -> str:
    values = [float(r[key]) for r in rows if r[key] != ""]
    return f"{np.mean(values):.3f}" if values else "-"


def between(row: dict, key: str, sign: str = "") -> str:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return f"[{float(low):{sign}.2f}, {float(high):{sign}.2f}]" if low != "" else "-"


def apart(rows: list[dict]) -> str:
    """In how many seeds the interval of the difference leaves out 0, above and below it."""
    asked = [r for r in rows if r["minus_low"] != ""]
    ahead, behind = (
        sum(sign * float(r[end]) > 0 for r in asked) for sign, end in ((1, "minus_low"), (-1, "minus_high"))
    )
    return f"{ahead}, {behind} of {len(asked)}" if asked else "-"


def share(rows: list[dict]) -> str:
    """Of healthy brains found, where the set has any."""
    text = mean(rows, "found_in_healthy")
    return "-" if text == "-" else f"{100 * float(text):.1f} %"


def cells(rows: list[dict]) -> list[str]:
    """A line of the table: of one method and one test set, the rows of its seeds."""
    first, dice = min(rows, key=lambda r: int(r["seed"])), [float(r["max_dice"]) for r in rows]
    return [
        method_class(first["method"]).title,
        first["steps"],
        f"{np.mean(dice):.3f}",
        f"{min(dice):.3f} to {max(dice):.3f}" if len(dice) > 1 else "-",
        between(first, "max_dice"),
        between(first, "minus", "+"),
        apart(rows),
        *(mean(rows, key) for key in ("at_threshold", "per_lesion_slice", "ap")),
        " / ".join(mean(rows, size) for size in ("small", "medium", "large")),
        share(rows),
        mean(rows, "ms_a_slice").split(".")[0],
        first["settings"].strip("{}").replace('"', "") or "-",
        first["after"],
    ]


def tables(rows: list[dict]) -> str:
    """A part for each race, in it a table for each test set; the best mean first."""
    lines = []
    for race in dict.fromkeys(r["race"] for r in rows):
        lines += [f"## {race}", ""]
        of_race = [r for r in rows if r["race"] == race]
        for test in dict.fromkeys(r["test"] for r in of_race):
            here = [r for r in of_race if r["test"] == test]
            about = [here[0][k] for k in ("subjects", "slices", "lesion_slices")]
            lines += ["### {}: {} subjects, {} slices, {} of them with a lesion".format(test, *about), ""]
            lines += [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
            names = dict.fromkeys(r["method"] for r in here)
            found = [cells([r for r in here if r["method"] == n]) for n in names]
            lines += [f"| {' | '.join(c)} |" for c in sorted(found, key=lambda c: -float(c[2]))]
            lines.append("")
    return "\n".join(lines)


def put(page: Path, text: str) -> None:
    """Between the page's marks, in place of what is there."""
    before, _, rest = page.read_text().partition(BEGIN)
    replace_file(page, f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")


def write_page(page: Path | None, rows: list[dict]) -> None:
    """Put the tables into a page; without a page print them."""
    if page is None:
        print(tables(rows))
    else:
        put(page, tables(rows))
