"""The report in a browser as wide as a phone: what is wide scrolls, the page does not."""

import re

import pytest
from synthetic_results import synthetic_results
from test_docs import opened
from test_report_panels import compared, telemetry_of, trained, with_points
from test_report_predictions import confused

from wdjax.jobs.options import TrainOptions
from wdjax.jobs.train import run_train
from wdjax.report import write_report

PHONE = 420

LONG = "encoder/block_7/attention/an_unbreakable_name_of_a_projection/kernel"

REPORTS = {
    "select": lambda: synthetic_results(learning_rates=(0.001, 0.003, 0.01)),
    "train": lambda: trained(telemetry=telemetry_of([LONG, LONG.replace("7", "8"), "b/kernel"])),
    "compare": lambda: compared(12),
    "classes": lambda: confused(30),
    "numbers": with_points,
    "command": lambda: synthetic_results() | {"command": f"wdjax select {'--a-long-option ' * 30}"},
    "headline": lambda: synthetic_results() | {"headline": "A" * 200, "advice": ["b" * 300]},
}

# Of the page in the frame: by how much it is too wide, its widest figure, and the elements that
# begin or end outside of it without a box around them that scrolls.
MEASURE = """<!doctype html><title>frames</title><body style="margin:0">
<script>
function measured(frame) {
  const page = frame.contentDocument, root = page.documentElement;
  for (const folded of page.querySelectorAll("details")) folded.open = true;
  const scrolls = e => e && (e.matches(".scroll, pre") || scrolls(e.parentElement));
  const out = [...page.querySelectorAll("body *")].filter(e => {
    const box = e.getBoundingClientRect();
    const outside = box.left < 0 || box.right > root.clientWidth;
    return outside && box.width > 0 && !e.closest("svg") && !scrolls(e);
  });
  const figures = [...page.querySelectorAll("svg")].map(e => e.getBoundingClientRect().width);
  const said = document.createElement("p");
  said.textContent = ["found", NAME, root.scrollWidth - root.clientWidth,
    Math.max(...figures), out.length].join(" ");
  document.body.append(said);
}
</script><iframe src="PAGE" onload="measured(this)" style="border:0;width:WIDEpx;height:900px">
</iframe>"""


@pytest.mark.slow
@pytest.mark.parametrize("name", REPORTS)
def test_a_phone_shows_the_whole_width_of_the_page_and_scales_its_figures(name, tmp_path):
    write_report(REPORTS[name](), tmp_path / "report.html")
    frame = MEASURE.replace("PAGE", "report.html").replace("WIDE", str(PHONE))
    (tmp_path / "frame.html").write_text(frame.replace("NAME", f'"{name}"'), "utf-8")
    dom, console = opened(tmp_path, "frame.html", tmp_path)
    assert not console
    excess, widest, outside = re.search(rf"<p>found {name} (\d+) ([\d.]+) (\d+)</p>", dom).groups()
    assert int(excess) == 0 and int(outside) == 0
    assert 150 < float(widest) <= PHONE - 40  # The margins of the page are 20 pixels each.


@pytest.mark.slow
def test_the_table_of_decay_fits_a_page_with_all_that_a_run_knows_of_its_leaves(tmp_path):
    options = dict(data="iris", model="mlp", epochs=2, batch_size=16, strength=0.1, devices=1)
    run_train(TrainOptions(out=str(tmp_path / "run"), **options), say=lambda text: None)
    frame = MEASURE.replace("PAGE", "run/report.html").replace("WIDE", "1100")
    frame = frame.replace("NAME", '"run"').replace(
        "out.length",
        '...[...page.querySelectorAll(".scroll")].map(e => e.scrollWidth <= e.clientWidth)',
    )
    (tmp_path / "frame.html").write_text(frame, "utf-8")
    dom, _ = opened(tmp_path, "frame.html", tmp_path)
    excess, fit = re.search(r"<p>found run (\d+) \S+ ([a-z ]+)</p>", dom).groups()
    assert int(excess) == 0 and fit.split() == ["true"] * 3  # The run's, decay's, telemetry's.


@pytest.mark.slow
def test_a_page_that_is_too_wide_is_found(tmp_path):
    wide = '<!doctype html><body><svg width="9"></svg><p style="width:900px">wide</p>'
    (tmp_path / "report.html").write_text(wide, "utf-8")
    frame = MEASURE.replace("PAGE", "report.html").replace("WIDE", str(PHONE))
    (tmp_path / "frame.html").write_text(frame.replace("NAME", '"wide"'), "utf-8")
    dom, _ = opened(tmp_path, "frame.html", tmp_path)
    excess, outside = re.search(r"<p>found wide (\d+) \S+ (\d+)</p>", dom).groups()
    assert int(excess) > PHONE and int(outside) == 1
