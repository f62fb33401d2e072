"""A real Chromium without a window; without it, or without Playwright, the tests are skipped.

With CDM_REQUIRE_BROWSER set they fail instead.
"""

import functools
import http.server
import importlib
import importlib.util
import os
import shutil
import threading

import pytest

from cdm_jax.publish import publish_run
from tests import helpers
from tests.report import samples

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--no-first-run",
)
TIMEOUT = 120_000  # ms; WebGL is drawn by the CPU


@pytest.fixture(scope="session")
def browser():
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    lack = pytest.fail if os.environ.get("CDM_REQUIRE_BROWSER") else pytest.skip
    if path is None:
        lack("no Chromium here: apt-get install chromium")
    if importlib.util.find_spec("playwright") is None:
        lack("no Playwright here: pip install '.[browser]'")
    playwright = importlib.import_module("playwright.sync_api")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """Folder of a report of made-up patients."""
    return samples.save(tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="session")
def published(evaluated_run, tmp_path_factory):
    """Folder of the report of a run: trained, evaluated and published as by the commands."""
    workdir = tmp_path_factory.mktemp("published")
    return publish_run(*helpers.evaluated(evaluated_run, workdir), 1).parent


@pytest.fixture(scope="session")
def served(report):
    """The same folder from a server of this machine."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Silent, directory=report)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def open_page(browser, report):
    """Opens a page of the report; what it complains of or asks for is in `heard` and `asked`."""
    contexts = []

    def open_page(name, *, root=None, width=1280, height=800):
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.heard, page.asked = [], []
        page.on("console", lambda message: page.heard.append(message.text))
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(f"{root or report.as_uri()}/{name}")
        return page

    yield open_page
    for context in contexts:
        context.close()
