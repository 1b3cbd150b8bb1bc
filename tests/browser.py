"""A headless browser (QtWebEngine: Chromium), as a program that renders and inspects pages.

python tests/browser.py PAGE FOLDER light writes light.png and light.json; so do dark and phone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

VIEWS = {"light": (1200, 900, 1), "dark": (1200, 900, 0), "phone": (360, 740, 1)}
FINDINGS = """(() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const link = document.querySelector('.big a');
  const target = document.getElementById(link.hash.slice(1));
  const before = target.open;
  link.click();
  return JSON.stringify({
    title: document.title,
    plots: all('figure svg').map((svg) => svg.getBoundingClientRect().width),
    labels: all('figure svg').map((svg) => svg.getAttribute('aria-label')),
    texts: all('figure svg text').length,
    rows: all('#results tbody tr').length,
    width: document.documentElement.scrollWidth,
    window: innerWidth,
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
    ground: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.querySelector('figure svg text')).fill,
    unfolded: [before],  // and after the link was followed: see below
    focusable: all('a[href], summary, [tabindex="0"]').length,
  });
})()"""


def look_at(page: Path, folder: Path) -> dict[str, dict]:
    """Open a page in every view, each in a separate browser; return the findings."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for view in VIEWS:
        done = subprocess.run(
            [sys.executable, __file__, str(page), str(folder), view],
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found[view] = json.loads((folder / f"{view}.json").read_text())
    return found


def open_page(page: Path, folder: Path, view: str) -> None:
    """Open a page in this process, write its screenshot and the findings, and exit."""
    width, height, scheme = VIEWS[view]
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = (
        f"--no-sandbox --disable-gpu --blink-settings=preferredColorScheme={scheme}"
    )
    from PySide6.QtCore import QTimer, QUrl
    from PySide6.QtWebEngineCore import (
        QWebEnginePage,
        QWebEngineProfile,
        QWebEngineUrlRequestInterceptor,
    )
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    messages, requests, found = [], [], {}

    class Requests(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info):  # noqa: N802
            requests.append(info.requestUrl().toString()[:200])

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level, message, line, source):  # noqa: N802
            messages.append(f"{level.name}: {message}")

    application = QApplication(sys.argv[:1])
    profile = QWebEngineProfile()
    requested = Requests()
    profile.setUrlRequestInterceptor(requested)
    browser = QWebEngineView()
    browser.setPage(Page(profile, browser))
    browser.resize(width, height)
    browser.show()

    def finish(unfolded: bool) -> None:
        found["unfolded"].append(unfolded)
        found.update(messages=messages, requests=requests)
        (folder / f"{view}.json").write_text(json.dumps(found, indent=2))
        application.exit(0)

    def followed() -> None:
        browser.page().runJavaScript("document.querySelector(location.hash).open", finish)

    def keep(text: str) -> None:
        found.update(json.loads(text))
        QTimer.singleShot(300, followed)

    def shoot() -> None:
        browser.grab().save(str(folder / f"{view}.png"))
        browser.page().runJavaScript(FINDINGS, keep)

    def whole(size) -> None:
        browser.resize(width, min(int(float(size)), 12_000))
        QTimer.singleShot(1500, shoot)

    def loaded(ok: bool) -> None:
        if not ok:
            application.exit(1)
        browser.page().runJavaScript("document.documentElement.scrollHeight", whole)

    browser.loadFinished.connect(loaded)
    QTimer.singleShot(120_000, lambda: application.exit(2))
    browser.load(QUrl.fromLocalFile(str(page.resolve())))
    status = application.exec()
    # Qt takes its parts down in an order that can crash; everything is written.
    os._exit(status)


if __name__ == "__main__":
    open_page(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
