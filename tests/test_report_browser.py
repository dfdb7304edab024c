"""The report's page in a real browser: its script does what a reader asks for."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.report_support import Parser, one_page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return one_page(tmp_path_factory)


# Run in the page after its own script: does what a reader does, and writes down what happened.
DRIVER = """
<script>
  const note = (key, value) => document.body.setAttribute(`data-${key}`, value);
  const stage = document.querySelector("#divide").closest(".stage");
  stage.scrollIntoView({ block: "center" });
  const box = stage.getBoundingClientRect();
  note("under-mouse", document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2).id);
  const range = document.querySelector("#divide");
  range.focus();
  note("focus", document.activeElement.id);
  range.value = 25;
  range.dispatchEvent(new Event("input"));
  note("at", stage.style.getPropertyValue("--at"));
  const left = document.querySelector("#left");
  note("choices", [...left.options].map((option) => option.value).join());
  left.value = "reference";
  left.dispatchEvent(new Event("change"));
  note("left", stage.querySelector("img.left").dataset.label);
  note("right", stage.querySelector("img.right").dataset.label);
  note("lines", document.querySelectorAll("#chart polyline").length);
  const clip = document.querySelector("#clip");
  clip.value = "flash";
  clip.dispatchEvent(new Event("change"));
  const shown = [...document.querySelectorAll("[data-track][data-clip]")].filter((block) => !block.hidden);
  note("shown", [...new Set(shown.map((block) => block.dataset.clip))].join());
  const metric = document.querySelector("#metric");
  metric.value = "ewarp_lai[dis]";
  metric.dispatchEvent(new Event("change"));
  note("warp-lines", document.querySelectorAll("#chart polyline").length);
  note("width", window.innerWidth);
  note("fits", document.documentElement.scrollWidth <= window.innerWidth);
</script>
"""


@pytest.mark.parametrize("width", [500, 1280])  # Chromium has no narrower window; phones are below 560
def test_in_a_browser(page: str, tmp_path: Path, width: int) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    file = tmp_path / "report.html"
    file.write_text(page.replace("</body>", f"{DRIVER}</body>"), encoding="utf-8")
    flags = [
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'profile'}",
        f"window-size={width},900", "dump-dom",
    ]  # fmt: skip
    command = [browser, *(f"--{flag}" for flag in flags), file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (body,) = Parser(done.stdout).top.find("body")
    noted = {key: body.attributes.get(f"data-{key}") for key in re.findall(r'note\("([a-z-]+)"', DRIVER)}
    assert noted == {
        "under-mouse": "divide",  # the range lies over the pictures: dragging anywhere moves the divider
        "focus": "divide",
        "at": "25%",
        "choices": "bicubic,lanczos,reference,input",
        "left": "reference",
        "right": "lanczos",
        "lines": "2",
        "shown": "flash",
        "warp-lines": "3",  # the reference has a warp error of its own
        "width": str(width),
        "fits": "true",  # the page does not scroll sideways
    }
