"""Every page of the built documentation, opened in Chromium: `make docs` runs it.

Without a network. On each page there is no error on the console, nothing that is missing, and
nothing wider than the window, wide or narrow, light or dark; and the search finds, also where the
site is only a folder.
"""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

SITE = Path(os.environ.get("JAXTRELU_SITE", "build/site")).resolve()
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
if "JAXTRELU_SITE" not in os.environ:
    pytest.skip("the site is looked at by `make docs`", allow_module_level=True)

PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
SIZES = {"wide": 1280, "narrow": 380}

# Put into each page before anything else, as it is served.
WATCH = """<script>
window.faults = [];
addEventListener("error", (e) => faults.push(e.target.src || e.target.href || e.message), true);
addEventListener("unhandledrejection", (e) => faults.push(String(e.reason)));
for (const kind of ["error", "warn"])
  console[kind] = (...words) => faults.push(words.map(String).join(" "));
</script>"""

DRIVE = """<!doctype html><html><body><script>
const pages = PAGES, sizes = SIZES, seen = [];
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
async function shown(address, width) {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px;border:0`;
  const loaded = new Promise((done) => { frame.onload = done; });
  frame.src = address;
  document.body.append(frame);
  await loaded;
  return frame;
}
async function look(page, size, scheme) {
  localStorage.setItem("/.__palette", JSON.stringify(
    {index: scheme === "slate" ? 2 : 1, color: {scheme, primary: "indigo", accent: "indigo"}}));
  const frame = await shown("/" + page, sizes[size]);
  const inside = frame.contentWindow, page_ = frame.contentDocument;
  for (const image of page_.images) image.loading = "eager";
  const waiting = () => [...page_.images].some((image) => !image.complete);
  for (let k = 0; k < 100 && waiting(); k++) await wait(20);
  const images = [...page_.images].filter((image) => getComputedStyle(image).display !== "none");
  seen.push({page, size, scheme, faults: inside.faults, title: page_.title,
    words: page_.body.innerText.length, images: images.length,
    broken: images.filter((image) => !image.naturalWidth).map((image) => image.src),
    too_wide: page_.documentElement.scrollWidth - sizes[size],
    drawn: page_.body.dataset.mdColorScheme});
  frame.remove();
}
async function search(words) {
  const frame = await shown("/index.html?q=" + encodeURIComponent(words), 1280);
  let found = [];
  for (let k = 0; k < 300 && !found.length; k++) {
    await wait(50);
    found = [...frame.contentDocument.querySelectorAll(".md-search-result__item a")];
  }
  seen.push({search: words, found: found.map((a) => a.getAttribute("href"))});
  frame.remove();
}
(async () => {
  for (const page of pages) {
    await look(page, "wide", "default");
    await look(page, "narrow", "slate");
  }
  await search("checkpoint policies");
  await search("smoothed");
  await fetch("/seen", {method: "POST", body: JSON.stringify(seen)});
})();
</script></body></html>"""


class Server(http.server.SimpleHTTPRequestHandler):
    """The site, with the watch in each page; what was seen comes back by POST."""

    def do_GET(self):
        path = self.path.partition("?")[0].lstrip("/")
        if path == "drive":
            page = DRIVE.replace("PAGES", json.dumps(PAGES)).replace("SIZES", json.dumps(SIZES))
            self.answer(page)
        elif path.endswith(".html"):
            text = (SITE / path).read_text(encoding="utf-8")
            self.answer(text.replace("<head>", "<head>" + WATCH, 1))
        elif path == "favicon.ico":
            self.answer("")
        else:
            super().do_GET()

    def answer(self, text):
        data = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        self.server.seen = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer("")
        self.server.done.set()

    def log_message(self, *words):
        if len(words) > 2 and str(words[2]).startswith(("4", "5")):
            self.server.missing.append(words[1])


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(what was seen of each page, the searches, addresses that were not there)."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    handler = functools.partial(Server, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.done, server.seen, server.missing = threading.Event(), [], []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            f"--user-data-dir={tmp_path_factory.mktemp('browser')}", "--window-size=1400,1000",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-port=0",
            f"http://127.0.0.1:{server.server_port}/drive",
        ]  # fmt: skip
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            assert server.done.wait(timeout=60 + 4 * len(PAGES)), "the browser did not come through"
        finally:
            browser.terminate()
            browser.wait(timeout=30)
            server.shutdown()
        pages = [seen for seen in server.seen if "page" in seen]
        searches = {seen["search"]: seen["found"] for seen in server.seen if "search" in seen}
        return pages, searches, server.missing


def test_every_page_opens_without_an_error(opened):
    pages, _, missing = opened
    assert {seen["page"] for seen in pages} == set(PAGES) and len(PAGES) > 20
    assert not missing
    assert not {f"{seen['page']}: {fault}" for seen in pages for fault in seen["faults"]}
    assert all(seen["words"] > 200 for seen in pages if seen["page"] != "404.html")


def test_no_picture_is_missing(opened):
    pages, _, _ = opened
    assert not {broken for seen in pages for broken in seen["broken"]}
    assert sum(seen["images"] for seen in pages) > 20


def test_both_modes_are_drawn_and_nothing_is_wider_than_its_window(opened):
    pages, _, _ = opened
    assert all(seen["drawn"] == seen["scheme"] for seen in pages)
    assert not {(s["page"], s["size"], s["too_wide"]) for s in pages if s["too_wide"] > 0}


def test_the_search_finds_without_a_network(opened):
    _, searches, _ = opened
    assert any("good_to_know" in link for link in searches["checkpoint policies"])
    assert any("reference/theory" in link for link in searches["smoothed"])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_the_search_finds_in_a_folder(tmp_path):
    """Pages opened as files, which no server serves."""
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=20000", "--dump-dom",
        f"{(SITE / 'index.html').as_uri()}?q=smoothed",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert re.search(r'class="md-search-result__item".*reference/theory', done.stdout, re.DOTALL)


def test_nothing_is_fetched_from_elsewhere():
    for path in SITE.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(
            r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"(?:https?:)?//", text
        )
    for path in SITE.rglob("*.css"):
        assert "url(http" not in path.read_text(encoding="utf-8")
