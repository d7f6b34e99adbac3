"""`detector tune`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from detector.cli.progress import say
from detector.cli.usage import split_words
from detector.workflows.studies.plan import found_experiment
from detector.workflows.studies.trials import Budget
from detector.workflows.studies.tuning import SearchConfig, require_possible, tune
from detector.workflows.studies.tuning_report import write_tuning_report


def run(arguments: argparse.Namespace) -> int:
    """Search, measure the best settings on held-out images and report; return the exit code."""
    (name,), overrides = split_words(arguments)
    config = SearchConfig(
        experiment=found_experiment(name, Path.cwd(), {}),
        overrides=tuple(overrides),
        search=tuple(arguments.search),
        metric=arguments.metric,
        held_out=arguments.held_out,
        seed=arguments.seed,
    )
    out = arguments.out or Path("runs/tune") / Path(name).stem
    if arguments.dry_run:
        require_possible(config, out)
        print(
            f"search: {'; '.join(config.search)}\n{arguments.minutes:g} min, of which the last are for "
            f"2 x {arguments.seeds} runs on {config.held_out:.0%} of the validation images"
        )
        return 0
    tuning = tune(
        config,
        Budget(arguments.minutes, arguments.trials, arguments.seeds),
        out,
        imports=arguments.imports,
        told=lambda line: say(line, arguments.quiet),
    )
    page = write_tuning_report(tuning)
    if arguments.json:
        print(json.dumps(tuning.to_plain()))
    else:
        print("\n".join([*tuning.sentences(), f"best settings: {tuning.folder / 'best.yaml'}", f"report: {page}"]))
    return 1 if tuning.summary is not None and tuning.summary.num("failed") else 0
