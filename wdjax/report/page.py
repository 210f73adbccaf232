"""The report's page: results.json in, one self-contained HTML file out."""

import html
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from wdjax.report.compared import (
    comparison_figures,
    comparison_table,
    comparison_words,
    read_comparison,
)
from wdjax.report.decayed import decay_table
from wdjax.report.figures import Figure
from wdjax.report.predicted import prediction_figures, prediction_words
from wdjax.report.runs import read_runs, run_figures, runs_table, what_decay_bought
from wdjax.report.sweep import (
    Sweep,
    finished_folds,
    lowest_rows,
    numbers_in_words,
    read_sweep,
    rule_words,
    score_array,
    shared_numbers,
    sweep_figures,
    sweep_table,
)
from wdjax.report.telemetry import (
    read_telemetry,
    telemetry_panels,
    telemetry_table,
    telemetry_words,
)
from wdjax.tables import Table, format_number, to_plain
from wdjax.writing import write_whole

MOST_NOTES = 4
"""Sentences about single choices that are shown; more are folded, as the table says it too."""

STYLE = """
:root { color-scheme: light dark; --paper: #fffefa; --ink: #1c1c1a; --muted: #63635d;
  --first: #a8391c; --second: #1f6391; --rule: #d8d6cc; --wash: #f4efe2;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", Georgia, Cambria, serif;
  --sans: system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181a; --ink: #e4e2dc;
  --muted: #a09e97; --first: #f0896b; --second: #7fb6dd; --rule: #3a3b3d; --wash: #26241f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 64rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 var(--serif); overflow-wrap: break-word; }
h1 { font-size: 1.55rem; line-height: 1.3; font-weight: normal; margin: .2rem 0 1rem;
  max-width: 46rem; }
h2 { font-size: 1.1rem; font-weight: normal; font-style: italic; margin: 2.75rem 0 .75rem; }
h3 { font-size: .9rem; font-weight: normal; font-style: italic; color: var(--muted);
  margin: 0 0 .25rem; }
p { max-width: 42rem; margin: .6rem 0; }
.quiet, .missing, figcaption { color: var(--muted); font-size: .875rem; line-height: 1.45; }
.partial { border-left: 3px solid var(--first); padding-left: .75rem; }
.scroll { overflow: auto; max-height: 38rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
  border-top: 1px solid var(--ink); border-bottom: 1px solid var(--ink); }
th { font-weight: normal; font-style: italic; border-bottom: 1px solid var(--muted);
  position: sticky; top: 0; background: var(--paper); vertical-align: bottom; }
th, td { padding: .14rem .8rem .14rem 0; white-space: nowrap; }
th { white-space: normal; }
th:last-child, td:last-child { padding-right: .2rem; }
tr.chosen { background: var(--wash); }
.facts table { border: 0; }
.facts thead { display: none; }
.facts td { white-space: normal; vertical-align: top; overflow-wrap: anywhere; }
.facts td:first-child { color: var(--muted); white-space: nowrap; }
.facts { display: grid; gap: 1.5rem 2.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 12rem), 1fr)); }
.figures { display: grid; gap: 2rem 2.5rem; margin-top: 1.75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.panels { display: grid; gap: 1.25rem 1.5rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 10.75rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
summary { font-size: .875rem; color: var(--muted); margin: .6rem 0; cursor: pointer; }
pre { overflow-x: auto; font-size: .8rem; margin: .5rem 0; }
@media print { .scroll { max-height: none; } figure, tr { break-inside: avoid; } }
"""


def render_report(results: Mapping[str, Any]) -> str:
    """Renders a results dict (as in `results.json`) as one self-contained HTML page.

    The page loads nothing: its style and its figures are inline. It follows the reader's light
    or dark theme. What `results` lacks is left out, with a word where its section would stand;
    a score that is null prints "diverged" in a complete run and "-" in one that was stopped.
    """
    results = to_plain(results)
    if results.get("kind") == "transfer":
        sections = _tables(results)
    elif (
        results.get("kind") == "search"
    ):  # Of a loop of one's own: what it did not give is no lack.
        sections = [*_strengths(results), *(_decay(results) if results.get("decay") else ())]
    elif results.get("kind") == "compare":
        sections = _comparison(results)
    elif results.get("kind") == "train":
        moved = _tables(results) if results.get("tables") else ()
        sections = [*_final_runs(results, "The run"), *moved]
        sections += [*_predictions(results), *_decay(results), *_telemetry(results)]
    else:
        sections = [
            *_strengths(results),
            *_final_runs(results, "What decay bought on the test part"),
            *_predictions(results),
            *_each_part(results),
            *_decay(results),
            *_telemetry(results),
        ]
    name = _dict(results, "data").get("name")
    title = " ".join(str(word) for word in ("wdjax", results.get("kind"), name) if word)
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # Not even a hostile name in the results can make this page load or run anything.
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{_text(title)}</title><style>{STYLE}</style></head><body><main>",
            *_opening(results, title),
            *sections,
            *(() if _is_of_ones_own(results) else _circumstances(results)),
            "</main></body></html>\n",
        ]
    )


def write_report(results: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes `render_report(results)` to `path`, in UTF-8, whole or not at all.

    Raises:
      WriteError: if it cannot be written; what stood there before stays.
    """
    write_whole(path, render_report(results))


def _is_of_ones_own(results: Mapping[str, Any]) -> bool:
    """Whether no command wrote them: what circumstances it had, its author knows."""
    kind = results.get("kind")
    return kind == "search" or (kind == "compare" and not results.get("config"))


def _opening(results: Mapping[str, Any], title: str) -> Iterable[str]:
    yield f'<p class="quiet">{_text(title)}</p><h1>{_text(results.get("headline") or title)}</h1>'
    yield from (_paragraph(str(line)) for line in results.get("advice") or ())
    if results.get("status") == "partial":
        yield _paragraph(
            "This run was stopped before it ended. Scores not reached are shown as \u201c-\u201d; "
            "what would have followed is missing.",
            "partial",
        )


def _strengths(results: Mapping[str, Any]) -> Iterable[str]:
    yield "<h2>Strengths tried</h2>"
    sweep = read_sweep(results)
    if sweep is None:
        yield _missing("No table of scores in these results.")
        return
    lowest = lowest_rows(sweep)
    if len(lowest) < len(sweep.rows):
        yield _scrolling(sweep_table(sweep, lowest))
        yield _paragraph(
            "The rows of lowest loss"
            + (
                ", those that the rules chose, and no decay beside these." if sweep.choices else "."
            ),
            "quiet",
        )
        yield f"<details><summary>All {len(sweep.rows)} rows, in the order of the grid</summary>"
        yield _scrolling(sweep_table(sweep)) + "</details>"
    else:
        yield _scrolling(sweep_table(sweep))
    yield _paragraph(_how_scored(results, sweep), "quiet")
    for rule, choice in _dict(results, "choices").items():
        reason = choice.get("reason") if isinstance(choice, Mapping) else None
        if rule in sweep.choices and reason:
            numbers = numbers_in_words(sweep, sweep.choices[rule])
            yield _paragraph(f"By the rule of {rule_words(rule)}: {numbers}. {reason}")
    yield from _figures(
        sweep_figures(sweep), "No figure: nothing varies in this grid, or no score."
    )


def _comparison(results: Mapping[str, Any]) -> Iterable[str]:
    yield "<h2>The choices, each at its best numbers</h2>"
    found = read_comparison(results)
    if found is None:
        yield _missing("No comparison in these results.")
        return
    yield _scrolling(comparison_table(found))
    shared, of_one = comparison_words(found)
    yield _paragraph(shared, "quiet") if shared else ""
    long = len(of_one) > MOST_NOTES
    yield "<details><summary>Each choice in words</summary>" if long else ""
    yield from (_paragraph(note, "quiet") for note in of_one)
    yield "</details>" if long else ""
    yield from _figures(comparison_figures(found), "No figure: nothing to compare was trained.")


def _tables(results: Mapping[str, Any]) -> Iterable[str]:
    """Of a transfer: the sizes and the law, then what rules say beside it; of a run that was tuned:
    how its numbers moved."""
    tables = [table for table in results.get("tables") or () if isinstance(table, Mapping)]
    if not tables:
        yield _missing("No size was searched to its end.")
    for table in tables:
        yield f"<h2>{_text(table.get('title') or 'The sizes searched')}</h2>"
        headers = tuple(map(str, table.get("headers") or ()))
        rows = tuple(tuple(row) for row in table.get("rows") or ())
        yield _scrolling(Table(headers, rows))
        yield _paragraph(str(table.get("note") or ""), "quiet")


def _how_scored(results: Mapping[str, Any], sweep: Sweep) -> str:
    """Counted from the scores themselves, so that it is true of a run that was stopped too."""
    sentences = ["Mean \u00b1 standard error over folds."]
    losses = score_array(results, "loss")
    if losses is not None:
        _, num_folds, num_seeds = losses.shape
        done = num_folds if results.get("table") else len(finished_folds(losses))
        unscored = np.sum(~np.isfinite(losses))
        over = (
            f"{num_folds} folds" if done == num_folds else f"{done} of {num_folds} folds finished"
        )
        each = f", each the mean of {num_seeds} seeds" if num_seeds > 1 else ""
        without = f", {unscored} of them without a score" if unscored else ""
        sentences = [
            f"Mean \u00b1 standard error over {over}{each}.",
            f"{losses.size} runs{without}.",
        ]
    shared = shared_numbers(sweep)
    if shared and sweep.varying:
        words = (f"{name.replace('_', ' ')} {format_number(x)}" for name, x in shared.items())
        sentences.append(f"In every row: {', '.join(words)}.")
    if sweep.chosen is not None:
        rule = str(results["rule"])
        sentences.append(f"The marked row was chosen by the rule in force: {rule_words(rule)}.")
    return " ".join(sentences)


def _final_runs(results: Mapping[str, Any], heading: str) -> Iterable[str]:
    yield f"<h2>{_text(heading)}</h2>"
    runs = read_runs(results)
    if not runs:
        stopped = results.get("status") == "partial"
        nothing = "trained" if results.get("kind") == "train" else "refit"
        before = ": the run was stopped before." if stopped else "."
        yield _missing(f"Nothing was {nothing}{before}")
        return
    bought = what_decay_bought(runs)
    if bought:
        yield _paragraph(bought)
    yield _scrolling(runs_table(runs))
    held = any(run.get("errors") for run in runs.values())
    over = "of the test part over its examples and the seeds" if held else "over seeds"
    yield _paragraph(f"Mean \u00b1 standard error {over}, where there are several.", "quiet")
    yield from _figures(run_figures(runs), "No learning curves in these results.")


def _predictions(results: Mapping[str, Any]) -> Iterable[str]:
    """Of results that hold them; those of texts, of a stream and of earlier versions do not."""
    drawn, words = prediction_figures(results), prediction_words(results)
    if not drawn and not words:
        return
    yield "<h2>Predicted and true, on the test part</h2>"
    if words:
        yield _paragraph(words[:1].upper() + words[1:])
    yield from _figures(drawn, "Too many classes for a matrix.")


def _each_part(results: Mapping[str, Any]) -> Iterable[str]:
    """Of a selection that was to tell it."""
    told = _dict(results, "each_part")
    if not told:
        return
    yield "<h2>Which parts want more decay</h2>"
    rows = [part for part in told.get("parts") or () if isinstance(part, Mapping)]
    if rows:
        names = ("part", "strength", "slope", "error", "z", "wants")
        cells = tuple(tuple(row.get(name) for name in names) for row in rows)
        yield _scrolling(Table(names, cells))
        yield _paragraph(
            f"Slope: d validation {told.get('value')} / d log strength of the part; z: what more "
            "gains, in standard errors. What a part wants holds for all of them at once with 95 %.",
            "quiet",
        )
    yield from (_paragraph(str(told[n])) for n in ("headline", "verdict") if told.get(n))


def _decay(results: Mapping[str, Any]) -> Iterable[str]:
    yield "<h2>Who was decayed, and by how much</h2>"
    rows = [row for row in results.get("decay") or () if isinstance(row, Mapping)]
    if not rows:
        yield _missing("No table of decay in these results.")
        return
    table, left_out = decay_table(rows)
    yield _scrolling(table)
    if left_out:
        yield _paragraph(left_out, "quiet")
    yield from (_paragraph(f"Warning: {line}") for line in results.get("warnings") or ())


def _telemetry(results: Mapping[str, Any]) -> Iterable[str]:
    """Of a run that was to record it; a selection does not."""
    telemetry = read_telemetry(results)
    if telemetry is None and results.get("kind") != "train":
        return
    yield "<h2>What the parts did on the way</h2>"
    if telemetry is None:
        yield _missing("No telemetry in these results.")
        return
    yield _paragraph(telemetry_words(telemetry), "quiet")
    if telemetry.note:
        yield _paragraph(telemetry.note)
    yield _scrolling(telemetry_table(telemetry))
    rows = [row for row in results.get("decay") or () if isinstance(row, Mapping)]
    panels, words = telemetry_panels(telemetry, rows)
    yield from _figures(panels, "Nothing to draw.", "panels")
    yield _paragraph(words, "quiet") if words else ""


def _circumstances(results: Mapping[str, Any]) -> Iterable[str]:
    yield "<h2>Circumstances</h2>"
    command = results.get("command")
    yield f"<pre><code>{_text(command)}</code></pre>" if command else _missing("No command given.")
    machine = {**_dict(results, "versions")}
    devices = results.get("devices")
    machine |= {"devices": devices} if devices else {}
    machine |= {"seed": results["seed"]} if results.get("seed") is not None else {}
    seconds = {
        part: f"{format_number(float(f'{s:.3g}'))} s"
        for part, s in _dict(results, "timing").items()
        if isinstance(s, int | float)
    }
    cached = results.get("cached", results.get("kept"))  # Its name in files of version 0.1.
    if isinstance(cached, int) and cached > 0:
        seconds["cached"] = f"{cached} trainings, from earlier runs"
    data = _dict(results, "data")
    if results.get("kind") == "train":  # Nothing is chosen: these examples train.
        data = {"num_train" if name == "num_choose" else name: v for name, v in data.items()}
    config, told = _dict(results, "config"), results.get("told")
    if isinstance(told, list):
        yield _paragraph(f"Other than the defaults: {_told(config, told)}", "quiet")
    groups = {"Configuration": config, "Data": data}
    groups |= {"Versions and devices": machine, "Timing": seconds}
    # What the defaults say is for who looks for it.
    folded = isinstance(told, list)
    yield "<details><summary>All options, data, versions and times</summary>" if folded else ""
    yield '<div class="facts">'
    for heading, facts in groups.items():
        rows = tuple((name, _fact(value)) for name, value in facts.items())
        body = Table(("", ""), rows)._repr_html_() if rows else _missing("Not recorded.")
        yield f"<section><h3>{heading}</h3>{body}</section>"
    yield "</div></details>" if folded else "</div>"


def _told(config: Mapping[str, Any], names: list[Any]) -> str:
    """The options that differ from their defaults."""
    words = [f"{str(n).replace('_', ' ')} {_fact(config[n])}" for n in names if n in config]
    return "; ".join(words) + "." if words else "nothing but defaults."


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_fact, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items()) or "none"
    if value is None or isinstance(value, bool):
        return format_number(value)
    return str(value)


def _figures(drawn: list[Figure], otherwise: str, kind: str = "figures") -> Iterable[str]:
    if not drawn:
        yield _missing(otherwise)
        return
    yield f'<div class="{kind}">'
    for figure in drawn:
        words = f"<figcaption>{_text(figure.caption)}</figcaption>" if figure.caption else ""
        yield f"<figure>{figure.svg}{words}</figure>"
    yield "</div>"


def _scrolling(table: Table) -> str:
    """A table wider or longer than the screen scrolls by itself; the page does not."""
    return f'<div class="scroll" tabindex="0">{table._repr_html_()}</div>'


def _paragraph(words: str, kind: str = "") -> str:
    return f'<p class="{kind}">{_text(words)}</p>' if kind else f"<p>{_text(words)}</p>"


def _missing(words: str) -> str:
    return _paragraph(words, "missing")


def _text(words: Any) -> str:
    return html.escape(str(words)).replace("+-", "&plusmn;")


def _dict(results: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = results.get(key)
    return dict(value) if isinstance(value, Mapping) else {}
