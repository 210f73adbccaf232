"""The site: `sphinx-build -W -b html docs docs/_build` (packages: the extra `docs`)."""

import inspect
import json
import pathlib
import re
import sys
import textwrap

import wdjax
from wdjax.tables import Estimate, format_number

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # The experiments stand beside the package, not in it.
from experiments import table as claims_table  # noqa: E402

project = "wdjax"
author = "the wdjax authors"
copyright = author
release = version = "0.1"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "wdjax"
html_show_sourcelink = False
myst_heading_anchors = 3
highlight_language = "none"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"


def setup(app):
    app.connect("source-read", fill_page)
    app.connect("autodoc-skip-member", leave_out)
    app.connect("autodoc-process-docstring", to_restructured_text)


# Pages: links that leave the folder; the names, from the code; the gallery, from the results.


def fill_page(app, docname, source):
    """Links to the table of experiments and to the README point into the site."""
    text = source[0]
    if docname == "gallery":
        text = text.replace("<!-- table -->", table()).replace("<!-- figures -->", figures())
    if docname == "choosing":
        page = (ROOT / "experiments" / "choosing" / "README.md").read_text(encoding="utf-8")
        text = page.replace("(regret.svg)", "(../experiments/choosing/regret.svg)")
    for outside, inside in (
        ("../experiments/choosing/README.md", "choosing.md"),
        ("../experiments/README.md", "gallery.md"),
        ("../README.md", "index.md"),
    ):
        text = text.replace(f"({outside}", f"({inside}")
    if docname == "api":
        text = text.replace("<!-- names -->", names())
    source[0] = text


def names():
    """A section for each group of names that `wdjax/__init__.py` imports under a comment."""
    lines, heading = [], ""
    for line in pathlib.Path(wdjax.__file__).read_text(encoding="utf-8").splitlines():
        if line.strip().startswith("# "):
            heading = line.strip()[2:]
        elif imported := re.fullmatch(r" *from wdjax\S* import \w+ as ([a-zA-Z]\w*)", line):
            name = imported[1]
            if heading:
                lines += ["```", "", f"### {heading}", "", "```{eval-rst}"]
                heading = ""
            public = getattr(wdjax, name)
            kind = "class" if inspect.isclass(public) else "function"
            kind = kind if inspect.isclass(public) or inspect.isfunction(public) else "data"
            lines.append(f".. auto{kind}:: wdjax.{name}")
            lines += ["   :members:"] * (kind == "class")
    return "\n".join([*lines[1:], "```"])


def results_of(folder):
    """Every result of an experiment: one a kind of device."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("results*.json"))]


def experiments():
    """The folders with results, in the order of their names."""
    found = sorted(path.parent for path in (ROOT / "experiments").glob("*/results.json"))
    return [folder for folder in found if (folder / "run.py").exists()]


def table():
    """A line a claim: whether it holds, alone and with Holm's correction over all, its program."""
    lines = ["| claim | verdict | with Holm's correction | measured |", "| --- | --- | --- | --- |"]
    for row in claims_table.claim_rows():
        results = row["results"]
        device = f"{results['device']['count']} {results['device']['platform'].upper()}"
        verdict = f"[{row['verdict']}](../experiments/{row['folder']}/run.py)"
        claim = f"{row['name']}: {row['text']}".replace("|", "/")
        date = results["date"].replace("-", "\N{NON-BREAKING HYPHEN}")
        lines.append(f"| {claim} | {verdict} | {row['holm_verdict']} | {date}, {device} |")
    return "\n".join(lines)


def figures():
    """A section an experiment: what was found, the numbers, the figure, the command."""
    sections = []
    for folder in experiments():
        for path in sorted(folder.glob("results*.json"), reverse=True):  # The CPU's first.
            results = json.loads(path.read_text("utf-8"))
            on = "" if path.stem == "results" else f" ({results['device']['kind']})"
            sections += [
                f"### {results['title']}{on}",
                f"Claim: {results['claim']}",
                "\n".join(
                    f"- {one['finding']} ({one['name']}: **{one['verdict']}**)"
                    for one in results["claims"]
                ),
                "\n".join(f"- {number(one)}" for one in results["found"]),
            ]
            figure = path.stem.replace("results", "figure") + ".svg"
            if (folder / figure).exists():
                sections.append(f"![{results['title']}](../experiments/{folder.name}/{figure})")
            sections.append(f"```\n{results['command']}\n```")
    return "\n\n".join(sections)


def number(one):
    """`gap 0.0423 ± 0.0087 (n = 10)`; a count has no error."""
    if one["standard_error"] is None:
        return f"{one['what']} {format_number(one['mean'])}"
    estimate = f"{Estimate(one['mean'], one['standard_error'])}".replace("+-", "±")
    return f"{one['what']} {estimate} (n = {one['n']})"


# Docstrings: Markdown's backticks, indented formulas and sections, as reStructuredText.


def leave_out(app, what, name, obj, skip, options):
    """A module's section leaves out what `wdjax` itself exports: it stands above."""
    public = getattr(wdjax, name, None)
    return True if what == "module" and public is not None and public is obj else None


SECTIONS = ("Args:", "Returns:", "Raises:", "Warns:", "Example:")


def to_restructured_text(app, what, name, obj, options, lines):
    if lines and lines[0].startswith("Alias for field number"):
        lines[:] = [""]
        return
    out, section = [], ""
    for block in blocks(lines):
        header, rest = block[0].strip(), block[1:]
        if header in SECTIONS:
            section, block = header, rest
            out += ["", f"*{header}*", ""]
        elif not block[0].startswith(" "):
            section = ""
        if not block:
            continue
        text = textwrap.dedent("\n".join(block))
        if section == "Example:":
            out += ["::", "", *textwrap.indent(text, "    ").splitlines()]
        elif section in ("Args:", "Raises:", "Warns:"):
            out += [f"* {entry(item)}" for item in items(text, r"\w[\w, *.]*: ")]
        elif block[0].startswith("    ") and not section:
            out += ["", "::", "", *textwrap.indent(text, "    ").splitlines()]
        elif re.match(r"\w+: +`", text):
            out += [f"* {inline(item)}" for item in items(text, r"\w+: +`")]
        elif text.startswith("- "):
            out += [f"* {inline(item[2:])}" for item in items(text, "- ")]
        else:
            out.append(inline(text))
        out.append("")
    lines[:] = out


def blocks(lines):
    """Runs of lines without a blank one; an indented formula is a block of its own."""
    block = []
    for line in lines:
        starts_section = line.strip() in SECTIONS and not line.startswith(" ")
        if block and (not line.strip() or starts_section):
            yield block
            block = []
        if line.strip():
            block.append(line)
    if block:
        yield block


def items(text, start):
    """Entries that begin at the margin with `start` and go on indented, each as one string."""
    entries = []
    for line in text.splitlines():
        if re.match(start, line) or not entries:
            entries.append(line)
        else:
            entries[-1] += "\n" + line.strip()
    return entries


def entry(item):
    name, colon, rest = item.partition(": ")
    return f"``{name}``: {inline(rest)}" if colon else inline(item)


def inline(text):
    """One line: `code` as literal, everything else without meaning to reStructuredText."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"([\\*_|`])", r"\\\1", parts[i])
        if i and parts[i][:1].isalnum():
            parts[i] = "\\ " + parts[i]
        if i + 1 < len(parts) and parts[i][-1:].isalnum():
            parts[i] += "\\ "
    for i in range(1, len(parts), 2):
        parts[i] = f"``{parts[i]}``"
    return "".join(parts)
