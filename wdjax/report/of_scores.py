"""Results of anybody's search, in the form that a report is drawn from."""

from collections.abc import Sequence
from typing import Any

from wdjax.diagnostics import AuditReport
from wdjax.selection import Choice, Comparison, Scores, choose
from wdjax.tables import to_plain


def results_of(
    scores: Scores,
    choice: Choice | None = None,
    *,
    audit: AuditReport | None = None,
    name: str = "",
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The results dict of scores that a loop of one's own found, for `write_report`.

    The page says what `choice.reason` says, which is what the evidence allows, and shows the table
    and the curves of the scores, the rows that cannot be told from the best, and who decays.

    Args:
      scores: `Scores.of(...)` of plain numbers, or what `cross_validate` found.
      choice: what `choose` made of them; by default of its lowest mean loss.
      audit: `wdjax.audit` of the optimiser at the chosen numbers.
      name: of the data, for the page's title.
      notes: sentences that stand under the headline.

    Raises:
      ValueError: as `choose`, where no choice is given; for a choice of a row that the scores
        lack.

    Example:
      >>> from wdjax.report import results_of, write_report
      >>> losses = {"loss": [[0.9, 1.1], [0.5, 0.6]]}
      >>> scores = wdjax.Scores.of(losses, {"strength": [0.0, 0.1]})
      >>> results_of(scores)["choices"]["min"]["hparams"]
      {'strength': 0.1}
    """
    choice = choose(scores) if choice is None else choice
    num_rows = len(next(iter(scores.values.values())))
    if not 0 <= choice.index < num_rows:
        raise ValueError(
            f"`choice` is of row {choice.index}, and `scores` have {num_rows} rows; give the "
            "choice that `choose(scores)` makes of them."
        )
    numbers = ", ".join(f"{axis.replace('_', ' ')} {x:g}" for axis, x in choice.hparams.items())
    found: dict[str, Any] = {
        "kind": "search",
        "status": "complete",
        "headline": f"Chosen: {numbers}. {choice.reason}",
        "advice": list(notes),
        "data": {"name": name} if name else {},
        "grid": dict(scores.grid),
        "scores": dict(scores.values),
        "rule": choice.rule,
        "choices": {choice.rule: choice.to_dict()},
        "higher_is_better": dict(scores.higher_is_better),
    }
    if audit is not None:
        found["decay"] = [leaf._asdict() for leaf in audit.leaves]
        found["warnings"] = [warning.text for warning in audit.warnings]
    return to_plain(found)


def results_of_comparison(
    comparison: Comparison, *, name: str = "", what: str = "choice", notes: Sequence[str] = ()
) -> dict[str, Any]:
    """The results dict of a comparison, for `write_report`: what `wdjax compare` draws its page of.

    The page says `comparison.in_words(what)`, and shows the table of the choices, each at its best
    numbers, and how far each is behind the best, with paired intervals.

    Args:
      comparison: of `wdjax.compare` or `wdjax.selection.compare_scores`.
      name: of the data, for the page's title.
      what: differs between the choices, in a word: `optimizer`.
      notes: sentences that stand under the headline.

    Example:
      >>> from wdjax.report import results_of_comparison
      >>> from wdjax.selection import compare_scores
      >>> of = lambda losses: wdjax.Scores.of({"loss": losses}, {"strength": [0.0, 0.1]})
      >>> scores = {"sgd": of([[0.9, 1.1], [0.5, 0.6]]), "adam": of([[0.8, 1.0], [0.7, 0.8]])}
      >>> results_of_comparison(compare_scores(scores))["comparison"]["best"]
      'sgd'
    """
    return to_plain(
        {
            "kind": "compare",
            "status": "complete",
            "headline": comparison.in_words(what),
            "advice": list(notes),
            "data": {"name": name} if name else {},
            "comparison": comparison,
        }
    )
