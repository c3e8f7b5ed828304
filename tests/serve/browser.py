"""A browser without a window, and what every visit of the page must keep to."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, ConsoleMessage, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
REFUSED = re.compile(r"status of (400|401|429|503)|net::ERR_FAILED")  # as tests ask for

# Drops or pastes an image.
GIVE = """([way, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "given.png", { type: "image/png" }));
  const event = way === "drop"
    ? new DragEvent(way, { dataTransfer: transfer, bubbles: true, cancelable: true })
    : new ClipboardEvent(way, { clipboardData: transfer, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""
# `blobs` holds what is made and not yet freed.
COUNT_BLOBS = """
  window.blobs = new Set();
  const [make, free] = [URL.createObjectURL, URL.revokeObjectURL];
  URL.createObjectURL = (blob) => { const url = make(blob); blobs.add(url); return url; };
  URL.revokeObjectURL = (url) => { blobs.delete(url); free(url); };
"""

# Texts whose contrast with what is behind them is below 4.5, or 3 where they are large.
FAINT = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour).map((c) => c / 255)
      .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((channels(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const { textContent, parentElement: element } = texts.currentNode;
    if (!textContent.trim() || !element.checkVisibility({ opacityProperty: true })) continue;
    const style = getComputedStyle(element);
    const [dark, bright] = [light(style.color), light(ground(element))].sort((a, b) => a - b);
    const ratio = (bright + 0.05) / (dark + 0.05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) faint.push(`${textContent} ${ratio}`);
  }
  return faint;
}"""


def find_browser() -> str | None:
    """The program to start, or None where there is none; `CLIPRAY_CHROMIUM` names another."""
    named = os.environ.get("CLIPRAY_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def launched(program: str) -> Iterator[BrowserContext]:
    """Start the browser; gives its one profile."""
    alone = ["--no-sandbox"] if os.geteuid() == 0 else []  # it refuses to sandbox root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=[*OPTIONS, *alone])
        context = browser.new_context(reduced_motion="reduce")
        context.set_default_timeout(15_000)
        yield context
        browser.close()


@contextmanager
def visit(context: BrowserContext, url: str) -> Iterator[Page]:
    """A tab at `url`, in which nothing may fail unasked and no other host be reached."""
    page = context.new_page()
    problems: list[str] = []
    asked = {_host(url)}
    page.on("console", lambda message: problems.extend(_told(message)))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.add(_host(request.url)))
    page.goto(url)
    yield page
    page.close()
    assert not problems
    assert asked - {""} == {_host(url)}


@contextmanager
def searching(page: Page) -> Iterator[None]:
    """Wait until what is done inside has been searched for, and is shown."""
    with page.expect_response("**/search"):
        yield
    page.wait_for_selector("main[aria-busy=false]")


def _told(message: ConsoleMessage) -> list[str]:
    bad = message.type in ("error", "warning")
    return [message.text] if bad and not REFUSED.search(message.text) else []


def _host(url: str) -> str:
    return urlsplit(url.removeprefix("blob:")).netloc  # data: has none
