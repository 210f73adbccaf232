"""The questions of the articles: each answered by its numbers, in English and Chinese alike."""

import collections
import importlib.util
import json
import pathlib
import re

import pytest

from experiments import table
from wdjax.tables import format_number

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {"en": "faq.md", "zh": "faq.zh.md"}


def read(page):
    return (DOCS / page).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def fill_faq():
    spec = importlib.util.spec_from_file_location("fill_faq", DOCS / "fill_faq.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parts(page):
    """`[(number, question, answer, [line of a claim])]` of a page, the articles after another."""
    found = []
    for block in re.split(r"^(?=\d+\. \*\*)", read(page), flags=re.MULTILINE)[1:]:
        first, *lines = block.split("\n")
        number, ask, answer = re.fullmatch(r"(\d+)\. \*\*(.*?)\*\* ?(.*)", first).groups()
        found.append((int(number), ask, answer, [x for x in lines if x.startswith("    - ")]))
    return found


def test_the_pages_are_what_the_results_say_now(fill_faq):
    for language, page in PAGES.items():
        told = read(page)
        now = fill_faq.page(language)
        assert told == now, "the results changed: run `python docs/fill_faq.py`"


@pytest.mark.parametrize("page", PAGES.values())
def test_every_question_of_both_articles_is_answered_once(page):
    """33 different of the first article's 48, 4 of the second; one of these was asked before."""
    numbers = [number for number, *_ in parts(page)]
    assert numbers == [*range(1, 34), *range(1, 5)]
    asked = [ask for _, ask, *_ in parts(page)]
    assert len(set(asked[:33])) == 33 and len(set(asked[33:])) == 4
    rows = set(re.findall(r"\[([QS]\d+)", read(page)))
    assert {f"Q{n}" for n in range(1, 14)} <= rows  # Q14 stands in the text, not in a FAQ


@pytest.mark.parametrize("page", PAGES.values())
def test_every_answer_prints_the_claim_it_judges_with_both_verdicts_and_a_number(page):
    rows = {row["name"]: row for row in table.claim_rows()}
    verdicts = {"holds": "成立", "fails": "不成立", "undecided": "未定"}
    for _, ask, answer, lines in parts(page):
        assert lines, ask
        assert re.search(r"\d", answer), ask
        for line in lines:
            link = r"\[([\w-]+)\]\(\.\./experiments/(\w+)/run\.py\)"
            name, folder = re.search(link, line).groups()
            row = rows[name]
            assert folder == row["folder"]
            if page == "faq.md":
                assert row["text"] in line
            told = re.findall(r"\*\*(.+?)\*\*", line)
            expected = [row["verdict"], row["holm_verdict"]]
            assert told == (expected if page == "faq.md" else [verdicts[v] for v in expected])


@pytest.mark.parametrize("page", PAGES.values())
def test_no_sentence_of_an_answer_stands_twice(page):
    ends = r"(?<=[.!?])\s+(?=[A-Z])|(?<=[。！？])"
    sentences = [s.strip() for *_, answer, _ in parts(page) for s in re.split(ends, answer)]
    counted = collections.Counter(s for s in sentences if s)
    assert len(counted) > 74
    assert not [s for s, times in counted.items() if times > 1]


def test_no_claim_is_the_first_of_two_questions(fill_faq):
    first = [question["claims"][0] for question in fill_faq.questions()]
    assert len(set(first)) == len(first) == 37


def figures(text):
    """Numbers with their errors, and n, as they print in both languages."""
    text = text.replace("±", "+-").replace("（", " (").replace("）", ")")
    estimate = r"-?[\d.]+(?:e-?\d+)? \+- [\d.]+(?:e-?\d+)? \(n = \d+\)"
    return re.findall(rf"{estimate}|p [=<] [\d.e-]*\d", text)


def test_both_pages_have_the_same_numbers_questions_and_verdicts():
    """Each question: the same estimates, in the order of its sentence, p-values and claims."""
    en, zh = parts("faq.md"), parts("faq.zh.md")
    assert len(en) == len(zh) == 37
    for (number, _, answer, lines), (other, _, other_answer, other_lines) in zip(
        en, zh, strict=True
    ):
        assert number == other
        assert sorted(figures(answer)) == sorted(figures(other_answer))
        assert [figures(line) for line in lines] == [figures(line) for line in other_lines]
        names = lambda found: re.findall(r"\[([\w-]+)\]\(", "\n".join(found))
        assert names(lines) == names(other_lines)


def test_every_count_and_estimate_of_a_question_stands_on_both_pages(fill_faq):
    """By the results' own files: the mean of each number that faq.toml names, to four digits."""
    everything = {folder.name: results for folder, results in table.all_results()}
    rows = {row["name"]: row["folder"] for row in table.claim_rows()}
    pages = [parts(page) for page in PAGES.values()]
    for place, question in enumerate(fill_faq.questions()):
        folders = {rows[name] for name in question["claims"]}
        found = [m for folder in folders for m in everything[folder]["found"]]
        for name in question["numbers"]:
            for one in (m for m in found if m["what"] == name and m["standard_error"] is None):
                shown = rf"(?<![\d.]){re.escape(format_number(one['mean']))}(?!\.?\d)"
                assert all(re.search(shown, page[place][2]) for page in pages), name


def test_a_number_that_changes_changes_both_pages(fill_faq, tmp_path, monkeypatch):
    """No number is typed: another result makes another estimate and another verdict."""
    everything = table.all_results()
    for folder, results in everything:
        if folder.name == "s09_s10_nested":
            results = json.loads(json.dumps(results))
            (one,) = (m for m in results["found"] if m["what"].startswith("test loss, zero"))
            one |= {"mean": -0.216, "standard_error": 0.0123}
            claim = next(c for c in results["claims"] if c["name"] == "S9-buys")
            claim |= {"verdict": "fails"}
            changed = (folder, results)
    others = [pair for pair in everything if pair[0].name != "s09_s10_nested"]
    monkeypatch.setattr(table, "all_results", lambda: [*others, changed])
    en, zh = fill_faq.page("en"), fill_faq.page("zh")
    assert "-0.216 +- 0.012 (n = 20)" in en and "what it chose was worse than no decay" in en
    assert "-0.216 ± 0.012（n = 20）" in zh and "它选出的强度比不用衰减更差" in zh


def test_every_sentence_is_there_for_every_verdict_in_both_languages(fill_faq):
    for question in fill_faq.questions():
        for language in PAGES:
            words = question[language]
            assert {"ask", "holds", "fails", "undecided", "measured"} <= set(words)
            marks = set(re.findall(r"\{(\d)\}", words["measured"]))
            assert marks == {str(i) for i in range(len(question["numbers"]))}
    claimed = {name for question in fill_faq.questions() for name in question["claims"]}
    assert claimed == set(fill_faq.chinese_claims())


def test_the_chinese_page_is_chinese_and_uses_one_word_a_thing():
    text = read("faq.zh.md")
    assert "权重衰减" in text and "权值" not in text
    prose = re.sub(r"\[[^]]*\]\([^)]*\)", "", text)
    assert "轮（epoch）" in prose and not re.search(r"(?<!（)epoch", prose)
    for _, ask, answer, _ in parts("faq.zh.md"):
        assert re.search(r"[\u4e00-\u9fff]", ask) and re.search(r"[\u4e00-\u9fff]", answer)


def test_a_pattern_that_names_no_number_or_two_is_refused(fill_faq):
    with pytest.raises(ValueError, match="'loss' names 0 numbers of S9"):
        fill_faq.number("loss", [], "S9")
