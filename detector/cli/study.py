"""`detector study`."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path

from detector.cli.progress import say
from detector.cli.rehearse import duration
from detector.cli.signals import noted_signals
from detector.cli.usage import split_words
from detector.config.schema import load_config
from detector.io.nouns import plural
from detector.workflows.studies.plan import StudyConfig, find_study, load_study, runs_of
from detector.workflows.studies.records import StudyFolder
from detector.workflows.studies.runner import Outcome, Shard, make_runs
from detector.workflows.studies.step_cost import make_cost_run, make_cost_runs
from detector.workflows.studies.study_report import write_report
from detector.workflows.studies.summary import StudySummary, summarise
from detector.workflows.studies.worker import make_run
from detector.workflows.training_progress import TrainingProgress


def run(arguments: argparse.Namespace) -> int:
    """Make the missing runs, report the results and return the exit code."""
    names, overrides = split_words(arguments)
    if arguments.run:
        return _run_one(arguments, names[0])

    study = load_study(names[0], overrides, arguments.only, arguments.seeds)
    folder = StudyFolder(arguments.out or Path("runs/study") / find_study(names[0]).stem)
    shard = Shard.parse(arguments.shard) if arguments.shard else Shard.of_torchrun()
    if arguments.dry_run:
        print(_estimate(study, folder, shard))
        return 0
    if not arguments.report_only:
        make = make_cost_runs if study.measure == "cost" else make_runs
        make(study, folder, shard, arguments.imports, lambda outcome: say(_line(study, outcome), arguments.quiet))
    summary = _report(study, folder, arguments)
    num_failed, num_ended = summary.num("failed"), summary.num("runs") + summary.num("failed")
    if not arguments.shard and shard.count > 1 and num_ended < summary.num_planned:
        return 0  # torchrun stops all processes if one fails, so the last one reports failures
    return 1 if num_failed else 0


def _run_one(arguments: argparse.Namespace, name: str) -> int:
    caught = noted_signals()  # the run is saved after the step and ends
    study = load_config(StudyConfig, name)
    if study.measure == "cost":
        finished = make_cost_run(arguments.run, StudyFolder(arguments.out).runs, TrainingProgress())
        return 0 if finished else 128 + signal.SIGTERM
    finished = make_run(
        arguments.run,
        StudyFolder(arguments.out).runs,
        study.metric,
        keep_weights=study.keep_weights,
        report=TrainingProgress(),
        should_stop=lambda: bool(caught),
    )
    return 0 if finished else 128 + (caught[0] if caught else signal.SIGTERM)


def _estimate(study: StudyConfig, folder: StudyFolder, shard: Shard) -> str:
    everything, own = runs_of(study), shard.of(runs_of(study))
    records = [folder.read(planned) for planned in own]
    done = [record for record in records if record is not None and record.is_done]
    took = [record.total_s for record in done if record.total_s]
    each_s = sum(took) / len(took) if took else study.seconds_per_run
    axes = " x ".join(f"{len(values)} {axis}" for axis, values in study.axes.items())
    left = len(own) - len(done)
    of_shard = f", {len(own)} of them in this part" if len(own) < len(everything) else ""
    basis = "as the finished ones took" if took else "as stated in the study, on one core"
    return (
        f"{study.title}\n{axes} x {plural(study.seeds, 'seed')} = {plural(len(everything), 'run')}{of_shard}; "
        f"{len(done)} are done\n"
        f"{left} to make at {each_s:.0f} s each ({basis}): about {duration(left * each_s)}"
    )


def _line(study: StudyConfig, outcome: Outcome) -> str:
    record, planned = outcome.record, outcome.planned
    head = f"{outcome.number}/{outcome.count} {planned.key}: "
    if record.state != "finished":
        return f"{head}{record.state}, {(record.error or '').splitlines()[-1] if record.error else ''}"
    took = f" in {outcome.took_s:.0f} s" if outcome.took_s else " (done before)"
    return f"{head}{study.metric} {record.number(study.metric, study.judged):.4f}{took}"


def _report(study: StudyConfig, folder: StudyFolder, arguments: argparse.Namespace) -> StudySummary:
    summary = summarise(study, folder)
    page = write_report(summary, folder)
    if arguments.json:
        print(json.dumps(summary.to_plain()))
    else:
        print("\n".join([*summary.sentences(), f"report: {page}"]))
    return summary
