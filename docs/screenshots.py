"""Takes the screenshots of these documents in a real browser.

`make demo`, `hqinet up`, `python docs/screenshots.py hqinet-home`: the report of the demo, and the
pages of the home's servers. Needs the extra `test` and Debian's chromium.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from flows.operations import services

DOCS = Path(__file__).parent


def main() -> None:
    """Write `report.png`, `prefect.png` and `mlflow.png` beside this file."""
    home = Path(sys.argv[1]).absolute()
    known = services.require_up(home)
    (report, *_) = sorted((home / "reports").glob("*/report.html"))
    pages = {
        "report": (report.as_uri(), 1500),
        "prefect": (f"{known.prefect.removesuffix('/api')}/deployments", 900),
        "mlflow": (f"{known.mlflow}/#/models/hqinet", 700),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name, (url, height) in pages.items():
            page = browser.new_page(viewport={"width": 1280, "height": height})
            page.goto(url, wait_until="networkidle")
            page.screenshot(path=DOCS / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
