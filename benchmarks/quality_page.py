"""Put what quality.py found for both contrasts into one page, benchmarks/QUALITY.md, and print its first
table.

python benchmarks/quality_page.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SETS = {
    "cohort_t1": "T1: 15 simulated patients",
    "ixi_t1": "T1: 14 IXI heads, simulated strokes",
    "ms_t1": "T1: 2 MS patients",
    "cohort_flair": "FLAIR: 15 simulated patients",
    "glioma_flair": "FLAIR: 4 glioma patients",
    "ms_flair": "FLAIR: 2 MS patients",
}
INTRODUCTION = """# How well each method finds lesions

```bash
# first, for each contrast: the methods that MAD-AD is compared with
python benchmarks/train_baselines.py --data work/ixi work/cohort_t1 \\
    --autoencoder madad_lite/weights/autoencoder --out work/baselines_t1
python benchmarks/train_baselines.py --data work/ixi_flair work/cohort_flair \\
    --autoencoder madad_lite/weights/autoencoder --out work/baselines_flair
python benchmarks/quality.py --contrast t1 --weights t1 --baselines work/baselines_t1
python benchmarks/quality.py --contrast flair --weights flair --baselines work/baselines_flair
python benchmarks/quality_page.py                # this page
```

Pooled max Dice on the test sets. **Bold**: the highest. ≈: not clearly another than MAD-AD's, the 95 %
interval of the difference over subjects contains 0; of sets with less than six patients nothing is said.
Settings and thresholds of every method are chosen on validation subjects (`splits.json`). "The baselines'
budget": MAD-AD trained for as many steps as they were. "Not weighed by intensity": the weights of `flair`,
scored as those of `t1` are (the recipe `lite`). "Mask floor 0": each difference multiplied by the predicted
mask alone, see the card of `flair`.
"""


def summary(test: dict[str, dict]) -> str:
    """test: {set: {method: result}}. Methods down, sets across."""
    sets = [s for s in SETS if s in test]
    lines = ["| method | " + " | ".join(SETS[s] for s in sets) + " |", "|---" * (len(sets) + 1) + "|"]
    fullest_first = sorted(sets, key=lambda s: -len(test[s]))  # so that a method of few sets keeps its place
    for method in dict.fromkeys(m for s in fullest_first for m in test[s]):
        cells = []
        for s in sets:
            result, highest = test[s].get(method), max(r["pooled_max_dice"] for r in test[s].values())
            if result is None:
                cells.append("-")
                continue
            low, high = result.get("mad_ad_minus_this", (1, 1))
            text = f"{result['pooled_max_dice']:.3f}"
            text = f"**{text}**" if result["pooled_max_dice"] == highest else text
            cells.append(text + " ≈" * (low <= 0 <= high))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(test: dict[str, dict]) -> str:
    lines = []
    for s, results in test.items():
        parts = [
            f"{m} {r['mad_ad_minus_this'][0]:+.2f} to {r['mad_ad_minus_this'][1]:+.2f}"
            for m, r in results.items()
            if "mad_ad_minus_this" in r
        ]
        if parts:
            lines.append(f"- {SETS[s]}: {'; '.join(parts)}.")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--results", type=Path, default=Path("results/quality"), help="where quality.py has written"
    )
    p.add_argument("--out", type=Path, default=Path(__file__).with_name("QUALITY.md"))
    args = p.parse_args()
    test, tables = {}, []
    for contrast in ("t1", "flair"):
        test |= json.loads((args.results / f"{contrast}.json").read_text())["test"]
        tables.append((args.results / f"{contrast}.md").read_text())
    first = summary(test)
    parts = [
        INTRODUCTION,
        first,
        "95 % intervals of MAD-AD's pooled max Dice minus the other's:",
        differences(test),
        *tables,
    ]
    args.out.write_text("\n\n".join(x.strip() for x in parts) + "\n")
    print(first)


if __name__ == "__main__":
    main()
