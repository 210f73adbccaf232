"""The documentation: its code runs, its links and names exist, the site builds and opens clean."""

import functools
import html
import http.server
import importlib
import importlib.util
import inspect
import json
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax.tables import Estimate, format_number

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
WITH_CODE = ("guide", "migration", "extending", "articles")
IN_CHINESE = ("articles", "conventions", "derivations")
"""Pages with a twin: `articles.zh.md` is `articles.md`."""
BLOCK = re.compile(r"(?:<!-- needs: (\w+) -->\n)?```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)#]+)[^)]*\)")


def read(page):
    return (DOCS / page).read_text(encoding="utf-8")


def loaded(name):
    """A program of the documentation, as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow) if p == "articles" else p for p in WITH_CODE],
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    text, names = read(f"{page}.md"), {}
    found = list(BLOCK.finditer(text))
    assert found
    for block in found:
        needs, code = block.groups()
        if needs and importlib.util.find_spec(needs) is None:
            continue
        lines_before = "\n" * text[: block.start(2)].count("\n")
        with (
            warnings.catch_warnings(),
            jax.numpy_rank_promotion("allow"),
            jax.debug_nans(False),
        ):
            if needs:  # Another library's warnings are its own.
                warnings.simplefilter("ignore")
            exec(compile(lines_before + code, f"{page}.md", "exec"), names)


ONE_LINE = re.findall(r"^\|[^|]+\|[^|]+\| `(.+)` \|$", read("functions.md"), re.MULTILINE)


def fit_and_score(hparams, train, valid, key):
    w = train.inputs.T @ train.targets / (len(train.targets) + hparams["strength"])
    return {"loss": wdjax.squared_error(valid.inputs @ w, valid.targets)}


def searched(rows):
    """Scores of which the best strength is 30 / sqrt(rows)."""
    strengths = wdjax.grid_product(strength=np.geomspace(0.01, 100, 15))
    off = np.log(strengths["strength"] * np.sqrt(rows) / 30)[:, None, None]
    drawn = np.random.default_rng(rows).normal(size=(15, 3, 2))
    return wdjax.Scores(strengths, {"loss": off**2 / 9 + 0.02 * drawn})


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The names that the lines of functions.md take from the reader's script, and all of ours."""
    import flax.linen as nn

    modules = (
        "checkpoint decay loop selection weights losses standard_measures report sklearn".split()
    )
    names = {
        name: getattr(module, name)
        for module in (*(importlib.import_module(f"wdjax.{name}") for name in modules), wdjax)
        for name in dir(module)
        if not name.startswith("_")
    }
    x, y = np.ones((12, 2), "float32"), np.arange(12) % 2
    model = wdjax.make_mlp(num_outputs=3, widths=(2,))
    params = model.init(jax.random.key(0), x)[0]
    tx = optax.adamw(1e-3, weight_decay=0.1)
    grid = wdjax.grid_product(strength=[0.0, 1.0])
    data = wdjax.Batch(x, x[:, 0] * np.arange(12.0, dtype="float32"), np.ones(12, "float32"))
    folds = wdjax.kfold(jax.random.key(0), 12, num_folds=2)
    step = wdjax.make_train_step(wdjax.regularized_loss(model, wdjax.cross_entropy), tx)
    return names | {
        **dict.fromkeys(("a", "b", "fit_and_score"), fit_and_score),
        "cosine": optax.cosine_decay_schedule(1.0, 100),
        "counts": np.bincount(y),
        "searches": [({"rows": rows}, searched(rows)) for rows in (250, 500, 1000, 2000)],
        "features": np.random.default_rng(0).normal(size=(12, 2)),
        "data": data,
        "fit": wdjax.make_fit(
            model, wdjax.cross_entropy, make_tx=lambda h: tx, num_epochs=1, batch_size=2
        ),
        "folder": tmp_path_factory.mktemp("checkpoints"),
        "folds": folds,
        "grid": grid,
        "jax": jax,
        "key": jax.random.key(0),
        "labels": y,
        "logits": jnp.zeros((12, 3)),
        "loss_fn": wdjax.regularized_loss(model, wdjax.cross_entropy),
        "make_tx": lambda h: tx,
        "model": model,
        "module": nn.Dense(3),
        "optax": optax,
        "params": params,
        "partial": functools.partial,
        "mesh": jax.make_mesh((2,), ("fsdp",), (jax.sharding.AxisType.Auto,)),
        "P": jax.P,
        "parts": {"*": 1.0},
        "rate": 1e-4,
        "run": wdjax.jit_step(step),
        "score": wdjax.make_score(model, loss=wdjax.cross_entropy),
        "scores": wdjax.cross_validate(fit_and_score, grid, data, folds, key=jax.random.key(0)),
        "slope": 2.0,
        "state": wdjax.init_state(params, tx),
        "step": step,
        "stream": iter([]),
        "tx": tx,
        "x": np.linspace(-1.0, 1.0, 12),
        "y": y,
    }


@pytest.mark.parametrize("line", ONE_LINE)
def test_each_line_of_the_page_from_task_to_function_runs(line, script):
    is_argument = re.match(r"\w+=", line)  # `parts=matrices_only`: of whatever takes it
    exec(f"dict({line})" if is_argument else line, dict(script))


def test_each_command_of_the_page_from_task_to_function_is_understood():
    from wdjax import cli, jobs

    commands = re.findall(r"^\|[^|]+\| `wdjax (.+)` \|$", read("functions.md"), re.MULTILINE)
    assert {line.split()[0] for line in commands} == set(cli.EXAMPLES)
    for line in commands:
        cli._parser(jobs, frozenset({"streamed"} if "--stream" in line else ())).parse_args(
            line.split()
        )


def test_no_page_has_code_that_no_test_runs():
    # The code of a Chinese page is that of its twin; `test_recipes.py` runs the recipes.
    elsewhere = {"articles.zh", "recipes"}
    with_code = {page.stem for page in PAGES if "```python" in page.read_text(encoding="utf-8")}
    assert with_code - elsewhere == set(WITH_CODE)


@pytest.mark.parametrize("page", IN_CHINESE)
def test_the_chinese_twin_has_the_same_sections_formulas_code_and_links(page):
    one, other = read(f"{page}.md"), read(f"{page}.zh.md")
    assert BLOCK.findall(one) == BLOCK.findall(other)
    one, other = (BLOCK.sub("", text) for text in (one, other))
    for what in (
        r"^(#+ [\d.-]*)",  # headings, by their numbers
        r"^\*\*(\d+\.\d+)",  # statements
        r"^    .*$",  # formulas
        r"^> .*$",  # quoted formulas
        r"`(test_\w+)`",
        r"`(wdjax[^`]*|[\w.]+\([^`]*\))`",  # calls
    ):
        assert re.findall(what, one, re.MULTILINE) == re.findall(what, other, re.MULTILINE)
    numbers = lambda text: sorted(re.findall(r"\d+\.\d+(?:e-?\d+)?", text))
    assert numbers(one) == numbers(other)
    rows = lambda text: [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert rows(one) == rows(other)
    english = lambda text: sorted(x.replace(".zh.md", ".md") for x in LINK.findall(text))
    assert english(one) == english(other)
    # A page leads to the Chinese version of another where there is one.
    leads_to = {x for x in LINK.findall(other) if x in {f"{twin}.md" for twin in IN_CHINESE}}
    assert leads_to == {f"{page}.md"} and f"{page}.zh.md" in LINK.findall(one)


def test_the_article_page_counts_the_questions_that_the_faq_answers():
    asked = re.findall(r"^\d+\. \*\*([^*]+)\*\*", read("faq.md"), re.MULTILINE)
    assert f"({len(set(asked))} different ones: how to choose the coefficient is in both)" in (
        read("articles.md")
    )
    assert [q for q in set(asked) if asked.count(q) > 1] == ["How is the coefficient chosen?"]
    assert f"不同的有 {len(set(asked))} 个" in read("articles.zh.md")


def test_the_chinese_pages_use_one_word_for_each_thing():
    """The field's words; the other word for weight decay stands once, where it is named."""
    pages = "".join(BLOCK.sub("", read(f"{page}.zh.md")) for page in IN_CHINESE)
    assert pages.count("权值") == pages.count("又称权值衰减") == 1
    assert "部件权重" not in pages and " epoch " not in pages and "默默" not in pages


def test_every_page_is_in_the_table_of_contents():
    tables = "\n".join(re.findall(r"```\{toctree\}\n(.*?)```", read("index.md"), re.DOTALL))
    listed = re.findall(r"^[\w.]+$", tables, re.MULTILINE)
    assert sorted(listed) == sorted(page.stem for page in PAGES if page.stem != "index")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_relative_link_leads_to_a_file(page):
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_every_test_that_the_pages_name_exists():
    tests = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    )
    defined = set(re.findall(r"def (test_\w+)", tests))
    named = {
        name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text("utf-8"))
    }
    assert named and named <= defined


def test_every_statement_of_the_derivations_is_proven_in_float64_or_quoted_with_its_source():
    """A statement begins with its number in bold and ends with the tests that prove it."""
    test_files = {path.name: path.read_text("utf-8") for path in ROOT.glob("tests/test_*.py")}
    proofs = test_files["test_derivations.py"]
    assert "autouse=True)\ndef float64(x64):" in proofs
    in_float64 = set(re.findall(r"def (test_\w+)", proofs))
    for text in test_files.values():
        in_float64 |= set(re.findall(r"def (test_\w+)\([^)]*\bx64\b[^)]*\)", text))
    sections = re.split(r"^## ", read("derivations.md"), flags=re.MULTILINE)[1:]
    for number, section in enumerate(sections, start=1):
        _, *statements = re.split(r"^(?=\*\*\d+\.\d+)", section, flags=re.MULTILINE)
        labels = [re.match(r"\*\*(\d+\.\d+)", text)[1] for text in statements]
        assert labels == [f"{number}.{i}" for i in range(1, len(statements) + 1)] and labels
        for label, text in zip(labels, statements, strict=True):
            *_, proof = text.strip().split("\n\n")
            tests = re.findall(r"`(test_\w+)`", proof)
            proven = proof.startswith("*Test:*") and tests
            quoted = re.match(r"\*Quoted:\* \S", proof)
            assert proven or quoted, f"{label} has neither a test nor a source"
            assert set(tests) <= in_float64, f"{label}: {set(tests) - in_float64} not in float64"


def test_every_proof_of_a_derivation_is_named_by_a_statement():
    proofs = (ROOT / "tests" / "test_derivations.py").read_text("utf-8")
    named = set(re.findall(r"`(test_\w+)`", read("derivations.md")))
    assert set(re.findall(r"def (test_\w+)", proofs)) <= named


def test_every_fault_has_a_row_with_a_test_that_provokes_it():
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]+) \|$", read("faults.md"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 57))
    assert all(re.fullmatch(r"`test_\w+`(, `test_\w+`)*", tests) for _, tests in rows)


@pytest.mark.parametrize("page", ["articles.md", "articles.zh.md"])
def test_every_system_of_the_articles_has_its_line(page):
    rows = re.findall(r"^\| (S\d+) \|", read(page), flags=re.MULTILINE)
    assert rows == [f"S{n}" for n in range(1, 18)]


def test_every_row_of_the_articles_stands_in_the_page_about_them():
    rows = {f"S{n}" for n in range(1, 18)} | {f"Q{n}" for n in (1, 8, 9, 10, 11, 13, 14)}
    text = re.sub(r"S(\d+)-S(\d+)", _written_out, read("articles.md"))
    assert rows <= set(re.findall(r"\b[SQ]\d+\b", text))


def _written_out(match):
    return " ".join(f"S{n}" for n in range(int(match[1]), int(match[2]) + 1))


# The API page.


def public_names():
    """The names of `wdjax`: what its `__init__` imports, without the modules themselves."""
    names = {name for name in dir(wdjax) if not name.startswith("_")}
    return {name for name in names if not isinstance(getattr(wdjax, name), types.ModuleType)}


def test_the_api_page_has_every_public_name_once_under_a_heading():
    conf = loaded("conf")
    written = conf.names()
    listed = re.findall(r"^\.\. auto(?:function|class|data):: wdjax\.(\w+)$", written, re.MULTILINE)
    assert sorted(listed) == sorted(public_names())
    assert written.startswith("\n### ") and "<!-- names -->" in read("api.md")


def modules_of_the_api_page():
    return re.findall(r"automodule:: (wdjax\.[\w.]+)", read("api.md"))


def test_the_api_page_has_every_module_that_gives_a_public_name():
    """A module's section documents the rest of it: all that it exports beside these names."""
    modules = modules_of_the_api_page()
    homes = {getattr(wdjax, name).__module__ for name in public_names()}
    assert all(any(home == m or home.startswith(f"{m}.") for m in modules) for home in homes)


def test_the_api_page_has_each_module_once_under_its_own_name():
    modules = modules_of_the_api_page()
    assert len(set(modules)) == len(modules)
    assert re.findall(r"^#### (wdjax\.\S+)$", read("api.md"), re.MULTILINE) == modules
    for name in modules:  # an old path would warn, and a warning is an error here
        assert importlib.import_module(name).__name__ == name


def test_an_example_in_a_docstring_is_shown_as_it_stands():
    conf = loaded("conf")
    lines = ["Adds.", "", "Example:", "  >>> f(`a`)", "  1", "", "Source: a page."]
    conf.to_restructured_text(None, "function", "f", None, None, lines)
    assert "    >>> f(`a`)" in lines and "    1" in lines and "::" in lines


def test_every_public_name_has_a_docstring_of_its_own():
    missing = [name for name in public_names() if not inspect.getdoc(getattr(wdjax, name))]
    assert not missing


# The site, and the browser.


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("sphinx", reason="pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run([*command, str(DOCS), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.slow
def test_the_site_builds_with_warnings_as_errors_and_shows_the_figures(site):
    gallery = (site / "gallery.html").read_text(encoding="utf-8")
    figures = list((ROOT / "experiments").glob("*/figure.svg"))
    assert gallery.count("<img") >= len(figures) + 1
    for path in figures:
        results = json.loads(path.with_name("results.json").read_text(encoding="utf-8"))
        assert html.escape(results["command"]) in gallery
    api = (site / "api.html").read_text(encoding="utf-8")
    assert all(f'id="wdjax.{name}"' in api for name in public_names())
    for page in IN_CHINESE:  # between Chinese characters a star may not begin or end anything
        body = re.search(
            r"<article.*</article>", (site / f"{page}.zh.html").read_text("utf-8"), re.S
        )
        text = re.sub(r"<pre.*?</pre>|<code.*?</code>|<[^>]+>", "", body[0], flags=re.DOTALL)
        assert "*" not in text and "`" not in text
    assert "Alias for field number" not in api


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def opened(folder, page, tmp_path):
    """The page's elements as headless Chromium leaves them, and what it logged to the console."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed")
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{page}"
        flags = "--headless --no-sandbox --disable-gpu --enable-logging=stderr --v=0".split()
        done = subprocess.run(
            [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}"]
            + ["--virtual-time-budget=5000", "--dump-dom", address],
            capture_output=True,
            text=True,
            timeout=120,
        )
        server.shutdown()
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index.html", "gallery.html", "articles.zh.html", "api.html"])
def test_the_site_opens_in_a_browser_without_a_console_message(site, page, tmp_path):
    dom, console = opened(site, page, tmp_path)
    assert not console
    # What a script had to do: furo's has run once the theme is set on the body.
    assert re.search(r"<body[^>]*data-theme", dom)
    for image in re.findall(r'<img[^>]* src="([^"]+)"', dom):
        assert (site / image).is_file()


@pytest.mark.slow
def test_the_report_opens_in_a_browser_with_its_figures_and_the_tables_of_its_json(tmp_path):
    out = tmp_path / "run"
    words = "select --data iris --epochs 2 --seeds 1 --folds 2 --batch-size 20 --devices 1"
    subprocess.run(
        [sys.executable, "-m", "wdjax.cli", *words.split(), "--strengths", "0", "0.1", "1"]
        + ["--learning-rates", "0.003", "--out", str(out)],
        check=True,
        capture_output=True,
        timeout=280,
    )
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    dom, console = opened(out, "report.html", tmp_path)
    assert not console
    assert dom.count("<svg") >= 2 and dom.count("<figure") >= 2
    cells = [
        [html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<td.*?</td>", row)]
        for row in re.findall(r"<tr.*?</tr>", dom, re.DOTALL)
    ]
    for row in results["table"]:
        mean, error = row["loss"]["mean"], row["loss"]["standard_error"]
        strength, shown = format_number(row["strength"]), f"{Estimate(mean, error)}"
        shown = shown.replace("+-", "±")
        assert any(strength in c[:2] and shown in c for c in cells), (strength, shown, cells)
    assert np.isfinite([row["loss"]["mean"] for row in results["table"]]).all()
