"""How right are the shipped model's pictures with every solver, by number of steps?

    python benchmarks/solver_accuracy.py [--steps 5 10 20 50] [--seeds 1] [--markdown]

Every caption of the shapes data is drawn by `tiny` with new seeds; the program that judges shapes
says how many have colour, shape and size right. Prints one row a solver.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

import ldm
from ldm.evaluation.report import Request, score_model
from ldm.sampling.presets import SAMPLERS

NOT_FOR_IT = ("euler_flow", "euler_flow_shift")  # tiny's schedule is no flow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--seeds", type=int, default=1, help="pictures a caption")
    parser.add_argument(
        "--samplers", nargs="+", default=[s for s in SAMPLERS if s not in NOT_FOR_IT]
    )
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    pipe = ldm.load("tiny", device="cpu")
    columns = ["sampler", *(f"{steps} steps" for steps in options.steps)]
    rows = []
    for name in options.samplers:
        row = [name]
        for steps in options.steps:
            draw = {"steps": steps, "sampler": name, "guidance": None, "batch_size": 96}
            request = Request(seeds=options.seeds, first_seed=1000, draw=draw)
            row.append(f"{100 * score_model(pipe, request).score.all:.0f} %")
        rows.append(row)
        Console(stderr=True).print(*row)
    if options.markdown:
        for row in (columns, ["---"] * len(columns), *rows):
            print(f"| {' | '.join(row)} |")
        return
    table = Table(*columns, title=f"all right, of {request.count} pictures")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
