"""The report as a browser shows it: nothing wider than the page, no error, no request, and all of it on paper."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from alignkit.contract.events import Sample
from alignkit.store.runs import KeptRun
from alignkit.text import number

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PDFTOTEXT = shutil.which("pdftotext")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")

LOOK = """
<script>
addEventListener("load", () => {
  const wide = document.documentElement.clientWidth;
  document.querySelectorAll("details").forEach((one) => (one.open = true));
  const over = [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > wide + 1);
  const chart = document.querySelector("svg[data-chart]"), box = chart.getBoundingClientRect();
  const at = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2, bubbles: true };
  chart.dispatchEvent(new PointerEvent("pointermove", at));
  document.title = JSON.stringify({
    wide, over: over.map((one) => one.tagName + "." + one.className.toString()).slice(0, 9),
    asked: performance.getEntriesByType("resource").map((one) => one.name),
    told: document.getElementById("values").textContent,
  });
});
</script>
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> KeptRun:
    """Make up a run with every kind of figure, picture and sample."""
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(BENCHMARKS))
        from report_speed import make_run

        made: KeptRun = make_run(tmp_path_factory.mktemp("runs"), 400)
        return made


def browse(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_page(run: KeptRun, tmp_path: Path, width: int, scheme: str) -> None:
    # a window may not be as narrow as a phone, a frame in it may
    page = tmp_path / "report.html"
    page.write_text(run.report.read_text("utf-8") + LOOK)
    colours = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="report.html" style="width: {width}px; height: 900px; border: 0"></iframe><script>'
        'addEventListener("load", () => { document.title = frames[0].document.title; });</script>'
    )

    done = browse("--allow-file-access-from-files", "--enable-logging=stderr", colours, "--dump-dom", frame.as_uri())

    found: dict[str, Any] = json.loads(re.findall(r"<title>(.*?)</title>", done.stdout)[0].replace("&amp;", "&"))
    assert (found["wide"], found["over"], found["asked"]) == (width, [], [])
    assert re.fullmatch(r"step [0-9.]+: .+ [-0-9.e]+", found["told"])
    assert "CONSOLE" not in done.stderr


@pytest.mark.skipif(PDFTOTEXT is None, reason="there is no pdftotext here")
def test_paper_has_every_figure_and_every_sample(run: KeptRun, tmp_path: Path) -> None:
    paper = tmp_path / "report.pdf"
    browse("--no-pdf-header-footer", f"--print-to-pdf={paper}", run.report.as_uri())

    printed = subprocess.run([str(PDFTOTEXT), str(paper), "-"], capture_output=True, text=True, check=True).stdout
    text = "".join(printed.split())
    figures = [number(result.after) for stage in run.stages for result in stage.results]
    samples = [str(event.row["after"]) for one in run.stages for event in one.events if isinstance(event, Sample)]
    assert [figure for figure in figures if figure not in text] == []
    assert len(samples) == 5 * 24
    assert [sample for sample in samples if "".join(sample.split()) not in text] == []
