"""`detector labels`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from detector.cli.image_bar import ImageBar
from detector.cli.progress import say, say_warning
from detector.cli.usage import split_words
from detector.data.label_decisions import apply_decisions
from detector.errors import DetectorError
from detector.evaluation.confidence import Target
from detector.io.files import write_whole
from detector.io.nouns import plural
from detector.models.published_weights import resolve_weights
from detector.tasks.requests import Observer
from detector.workflows.label_review import ReviewRequest, review_labels
from detector.workflows.training_progress import TrainingProgress
from detector.workflows.unlabelled_images import UnlabelledRequest, pseudo_label, rank_images

_DEFAULT_NUM = 200
_NUM_PRINTED = 20


def run(arguments: argparse.Namespace) -> int:
    """Carry out an action on labels; return the exit code."""
    action, arguments.words = arguments.words[0], arguments.words[1:]
    actions = {"suspects": _suspects, "apply": _apply, "pseudo": _pseudo, "rank": _rank}
    with ImageBar(is_shown=sys.stderr.isatty() and not arguments.quiet) as bar:
        progress = TrainingProgress(arguments.quiet, arguments.verbose)
        observer = Observer(lambda text: say(text, arguments.quiet), say_warning, progress, bar)
        actions[action](arguments, observer)
    return 0


def _suspects(arguments: argparse.Namespace, observer: Observer) -> None:
    names, overrides = split_words(arguments)
    review = review_labels(
        ReviewRequest(
            out=arguments.out,
            num=arguments.num or _DEFAULT_NUM,
            weights=resolve_weights(Path(names[0])) if names else None,
            overrides=tuple(overrides),
            split=arguments.split,
            results=arguments.results,
            annotations=arguments.annotations,
            images=arguments.images,
        ),
        observer,
    )
    if arguments.json:
        print(json.dumps(review.to_plain()))
        return
    print(f"{plural(review.num_labels, 'label')}, {plural(review.num_listed, 'place')} listed; {review.origin}")
    print(
        f"the first {len(review.suspects):,} are on {review.page}: open it in a browser, decide, and save the decisions"
    )


def _apply(arguments: argparse.Namespace, observer: Observer) -> None:
    applied = apply_decisions(arguments.annotations, Path(arguments.words[0]), arguments.out)
    if applied.num_shapes_dropped:
        observer.note(
            f"{plural(applied.num_shapes_dropped, 'moved label')} lost the mask or key points of the old box: draw "
            "them again where you need them"
        )
    if arguments.json:
        print(json.dumps({**vars(applied), "out": str(arguments.out)}))
        return
    print(
        f"{arguments.out}: {applied.num_added} added, {applied.num_reclassified} with another class, "
        f"{applied.num_moved} moved, {applied.num_removed} removed, {applied.num_kept} confirmed"
    )


def _request(arguments: argparse.Namespace) -> UnlabelledRequest:
    names, overrides = split_words(arguments)
    target = Target.parse(arguments.threshold_for) if arguments.threshold_for else UnlabelledRequest.target
    return UnlabelledRequest(
        weights=resolve_weights(Path(names[0])),
        images=tuple(names[1:]),
        overrides=tuple(overrides),
        split=arguments.split,
        target=target,
        confidence=arguments.confidence,
    )


def _pseudo(arguments: argparse.Namespace, observer: Observer) -> None:
    made = pseudo_label(_request(arguments), arguments.out, keep_empty=arguments.keep_empty, observer=observer)
    if arguments.json:
        print(json.dumps(made.to_plain()))
        return
    print(f"thresholds: {made.origin}")
    for name, threshold in made.thresholds.items():
        print(f"  {name}: {plural(made.num_labels[name], 'label')} of score {threshold:.3f} or more")
    print(
        f"{made.path}: {plural(made.num_images, 'image')}; {made.num_left_out} left out without a label, "
        f"{made.num_unread} not read"
    )


def _rank(arguments: argparse.Namespace, observer: Observer) -> None:
    seed = (arguments.seed or 0) if arguments.random else None
    ranked = rank_images(_request(arguments), seed=seed, observer=observer)[: arguments.num]
    if arguments.out is not None:
        lines = "".join(f"{image.path}\n" for image in ranked)
        try:
            write_whole(arguments.out, lambda file: file.write(lines.encode("utf-8", "surrogateescape")))
        except OSError as error:
            raise DetectorError(f"{arguments.out} cannot be written: {error.strerror}; name another file") from error
        observer.note(f"list: {arguments.out}")
    if arguments.json:
        rows = [{"path": str(i.path), "value": i.value, "num_detections": i.num_detections} for i in ranked]
        print(json.dumps(rows))
        return
    for image in ranked[: None if arguments.out is None else _NUM_PRINTED]:
        print(f"{image.value:7.2f}  {image.path}")
