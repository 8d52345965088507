"""Measure speed, memory and accuracy on this machine; each suite prints a Markdown table.

    artfusion benchmark training --config configs/kl16_content12.yaml --batch-size 2
    artfusion benchmark training --config configs/mini.yaml --batch-size 48
    artfusion benchmark sampling --config configs/mini.yaml --reference
    artfusion benchmark sampling --config configs/kl16_content12.yaml --published-steps 10
    artfusion benchmark convergence --config configs/mini.yaml
    artfusion benchmark brush
    artfusion benchmark steadiness
    artfusion benchmark gpu

Rows go from the published way to all that makes it faster, one change at a time. Those of training
and sampling are measured each in a process of its own. --help after a suite's name shows its
options.
"""

import inspect
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from typing import Any

from benchmarks import options
from ldm.program import ArgumentParser, arguments

# Each one's module, which has a `run`, and its options, whose docstring says what it measures.
SUITES = {
    "training": ("benchmarks.training", options.TrainingOptions),
    "sampling": ("benchmarks.sampling", options.SamplingOptions),
    "convergence": ("benchmarks.convergence", options.ConvergenceOptions),
    "brush": ("benchmarks.brush", options.BrushOptions),
    "steadiness": ("benchmarks.steadiness", options.SteadinessOptions),
    "gpu": ("benchmarks.gpu", options.GpuOptions),
}


def main() -> None:
    module, chosen = parse(arguments())
    # Only now: torch, and Lightning, which training imports and which would count in the memory of
    # sampling.
    suite = import_module(module)
    import_module("ldm.device").choose_device(chosen.device)  # or no row could run
    suite.run(chosen)


def parse(given: Sequence[str]) -> tuple[str, Any]:
    """(the suite's module, its options). Raises UserError."""
    parser = ArgumentParser(__doc__)
    parsers = parser.add_subparsers(title="suites", dest="suite", metavar="SUITE", required=True)
    for name, (_, kind) in SUITES.items():
        text = inspect.getdoc(kind)
        suite = parsers.add_parser(name, description=text, help=text.partition("\n")[0])
        for one in fields(kind):
            suite.add_argument(f"--{one.name.replace('_', '-')}", **one.metadata)
    if any(text.startswith("--suite=") for text in given):
        given = [part for text in given for part in text.split("=", text.startswith("--suite="))]
    if "--suite" in given:  # as it was written once
        at = given.index("--suite")
        given = [*given[at + 1 : at + 2], *given[:at], *given[at + 2 :]]
    values = vars(parser.parse_args(given))
    module, kind = SUITES[values.pop("suite")]
    return module, kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
