"""Writes faq.md and faq.zh.md from faq.toml and the results: `python docs/fill_faq.py`.

Each answer is the sentence that faq.toml has for the verdict on its claim, then what was measured,
then the claims that are judged, with their verdicts alone and with Holm's correction over all
claims of the table of experiments. No number is typed.
"""

import functools
import pathlib
import sys
import tomllib
from typing import Any

DOCS = pathlib.Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))  # The experiments stand beside the package, not in it.

from experiments import claims, common, table  # noqa: E402
from wdjax.tables import Estimate, format_number  # noqa: E402

PAGES = {"en": "faq.md", "zh": "faq.zh.md"}


@functools.cache
def _texts() -> dict[str, Any]:
    return tomllib.loads((DOCS / "faq.toml").read_text(encoding="utf-8"))


def questions() -> list[dict[str, Any]]:
    """The questions in their order."""
    return _texts()["question"]


def chinese_claims() -> dict[str, str]:
    """The claims that are judged, in Chinese."""
    return _texts()["claims"]["zh"]


def number(pattern: str, numbers: list[common.Measurement], claim: str) -> common.Measurement:
    """The one number that a name or a pattern names.

    Raises:
      ValueError: if it names none, or several.
    """
    found = claims.matching(pattern, numbers)
    if len(found) != 1:
        raise ValueError(
            f"{pattern!r} names {len(found)} numbers of {claim}'s experiments; name one of: "
            f"{', '.join(m.what for m in numbers)}."
        )
    return found[0]


def number_text(one: common.Measurement, language: str) -> str:
    """A number with its error and n, or a count."""
    if one.standard_error is None:
        return format_number(one.mean)
    estimate = f"{Estimate(one.mean, one.standard_error)}"
    if language == "zh":
        estimate = estimate.replace("+-", "±")
    return _texts()["page"][language]["number"].format(estimate=estimate, n=one.n)


def claim_line(row: dict[str, Any], language: str) -> str:
    """A claim, and both verdicts."""
    words = _texts()["page"][language]
    p_text = lambda p: words["counted"] if p == 0 else common.p_text(p)
    return words["claim"].format(
        link=f"[{row['name']}](../experiments/{row['folder']}/run.py)",
        text=row["text"] if language == "en" else chinese_claims()[row["name"]],
        verdict=words["verdict"][row["verdict"]],
        p=p_text(row["p"]),
        holm=words["verdict"][row["holm_verdict"]],
        holm_p=p_text(row["holm_p"]),
    )


def page(language: str) -> str:
    """The whole page in a language, from the results as they are now."""
    words, modules = _texts()["page"][language], {}
    rows = {
        row["name"]: row
        for row in table.claim_rows()
        if not common.device_mark(row["results"]["device"])
    }
    lines = [f"# {words['title']}", "", words["top"].strip().format(count=len(rows))]
    article, place = 0, 0
    for question in questions():
        if question["article"] != article:
            article, place = question["article"], 0
            lines += ["", f"## {words['articles'][article - 1]}", "", words["order"], ""]
        place += 1
        judged = [rows[name] for name in question["claims"]]
        numbers = []
        for folder in dict.fromkeys(row["folder"] for row in judged):
            results = next(row["results"] for row in judged if row["folder"] == folder)
            if folder not in modules:
                modules[folder] = common.load(common.ROOT / folder)
            numbers += common.numbers_of(results, modules[folder])
        told = [number(name, numbers, question["claims"][0]) for name in question["numbers"]]
        says = question[language]
        answer = [
            says[judged[0]["verdict"]],
            says["measured"].format(*(number_text(one, language) for one in told)),
            *([says["remark"]] if "remark" in says else []),
        ]
        lines.append(f"{place}. **{says['ask']}** {words['space'].join(answer)}")
        lines += [f"    - {claim_line(row, language)}" for row in judged]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for language, name in PAGES.items():
        (DOCS / name).write_text(page(language), encoding="utf-8")
