"""The report of a search: a self-contained HTML page and the numbers as JSON, beside the study on held-out images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

from detector.io.atomic import write_atomically
from detector.media.html import chart, page_of, table, text
from detector.media.study_charts import ValuesOfCell as Values
from detector.media.study_charts import effect_chart, trend_chart, value_chart
from detector.workflows.studies.study_report import write_report
from detector.workflows.studies.trials import Trial
from detector.workflows.studies.tuning import Tuning, held_out_folder


def write_tuning_report(tuning: Tuning) -> Path:
    """Write `report.html` and `summary.json` into the folder of a search, and the report of its study.

    Returns:
        The page.

    Raises:
        CheckpointError: a file cannot be written.
    """
    if tuning.summary is not None:
        write_report(tuning.summary, held_out_folder(tuning.folder, tuning.best))
    numbers = json.dumps(tuning.to_plain(), indent=1, allow_nan=False).encode()
    write_atomically(tuning.folder / "summary.json", lambda file: file.write(numbers))
    page = tuning.folder / "report.html"
    title = f"Tuning of {Path(tuning.config.experiment).stem}"
    content = page_of(title, _page(title, tuning)).encode()
    write_atomically(page, lambda file: file.write(content))
    return page


def _page(title: str, tuning: Tuning) -> Iterator[str]:
    config, metric = tuning.config, tuning.config.metric
    yield f"<h1>{text(title)}</h1>"
    facts = f"{'; '.join(config.search)}; {config.held_out:.0%} of the validation images are held out."
    yield f"<p class='soft'>{text(facts)}</p>"
    yield "<div class='card'>" + "".join(f"<p>{text(s)}</p>" for s in tuning.sentences()) + "</div>"
    yield "<div class='charts'>"
    scores = [trial.score for trial in tuning.trials]
    places = [str(trial.number) for trial in tuning.trials]
    cells = [Values([s] if not math.isnan(s) else [], s, math.nan, math.nan) for s in scores]
    yield chart(f"{metric} of every trial", trend_chart(places, {"search share": cells}, "trial", metric))
    if tuning.summary is not None:
        drawn = {c.name: Values(list(c.values.values()), c.mean, c.low, c.high) for c in tuning.summary.cells}
        yield chart(f"{metric} on the held-out share, means with 95 % intervals", value_chart(drawn, metric))
        effect = tuning.summary.comparisons[0].effect
        if effect.num_pairs > 1:
            row = ("tuned", effect.difference, effect.low, effect.high, effect.is_claimed)
            yield chart("difference on the held-out share", effect_chart([row], f"difference in {metric}"))
    yield "</div><h2>Trials</h2>"
    keys = list(dict.fromkeys(key for trial in tuning.trials for key in trial.values))
    yield table(("trial", *keys, metric, "state", "s"), [_row(trial, keys) for trial in tuning.trials])
    if tuning.summary is not None:
        link = f"{held_out_folder(tuning.folder, tuning.best).path.name}/report.html"
        yield f"<p><a href='{link}'>The study on the held-out share</a></p>"
    yield "<p class='soft'>The experiment with the best settings is best.yaml.</p>"


def _row(trial: Trial, keys: list[str]) -> list[str]:
    values = [trial.values.get(key, "") for key in keys]
    shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
    score = "n/a" if math.isnan(trial.score) else f"{trial.score:.4f}"
    total_s = "n/a" if trial.record.total_s is None else f"{trial.record.total_s:.0f}"
    number = f"{trial.number} (given)" if trial.number == 0 else str(trial.number)
    return [number, *shown, score, trial.record.state, total_s]
