"""Takes the screenshots of these documents in a real browser.

`make demo`, `hqinet up`, `python docs/screenshots.py hqinet-home`: the report of the demo, and the
deployments on Prefect's page. Needs the extra `test` and Debian's chromium.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from flows.operations import services

DOCS = Path(__file__).parent
SETTLED = 8000
"""Milliseconds after which a page is taken to show what it has."""


def main() -> None:
    """Write `report.png` and `prefect.png` beside this file."""
    home = Path(sys.argv[1]).absolute()
    known = services.require_up(home)
    (report, *_) = sorted((home / "reports").glob("*/report.html"))
    pages = {
        "report": (report.as_uri(), 1500),
        "prefect": (f"{known.prefect.removesuffix('/api')}/deployments", 900),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name, (url, height) in pages.items():
            page = browser.new_page(viewport={"width": 1280, "height": height})
            page.goto(url)
            # Pages that ask their server time and again are never idle.
            page.wait_for_timeout(SETTLED)
            page.screenshot(path=DOCS / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
