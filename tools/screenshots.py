"""Screenshots of pages for the documentation: `make screenshots` recreates them with chromium.

They show the page of a recorded run, in light colours, 1400 pixels wide.
"""

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tools.docs_pages import ROOT, sample_page

SHOTS = {"page.png": "", "page-training.png": "training"}
"""Picture -> tab of the page that it shows; "": the head."""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "report.html"
        page.write_text(sample_page(), "utf-8")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1400, "height": 1000}, color_scheme="light")
        view.goto(page.as_uri())
        for name, tab in SHOTS.items():
            if tab:
                view.locator(f"#show-{tab}").check(force=True)
            (view.locator(f"#{tab}-section") if tab else view).screenshot(path=ROOT / "docs" / name)
        browser.close()
