"""The page in a real browser, driven over DevTools: from a dropped file to an answer, as a person would."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = os.environ.get("HERD_TEST_SCREENSHOTS")  # a folder: the tests leave screenshots there to be looked at
DESKTOP, PHONE = (1280, 900), (390, 844)
SALES = """region,units,price,day
North,5,2.5,2024-01-05
South,7,4.0,2024-01-06
North,1,8.0,2024-01-07
East,9,1.0,2024-01-08
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian: apt-get install chromium)")


class Browser:
    """Headless Chromium; commands and answers are JSON over two pipes, each ended by a zero byte."""

    def __init__(self, profile: Path) -> None:
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        options += ["--disable-background-networking", f"--user-data-dir={profile}"]
        shell = f'exec "$0" "$@" 3<&{read_commands} 4>&{write_answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, str(BROWSER), *options, "about:blank"],
            pass_fds=(read_commands, write_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._held, self._count, self._session = b"", 0, None
        self.requested: list[str] = []
        self.problems: list[str] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "DOM", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters):
        """One command's result; events that come before it are noted."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._held:
                part = os.read(self._answers, 1 << 16)
                assert part, "the browser has ended"
                self._held += part
            data, self._held = self._held.split(b"\0", 1)
            answer = json.loads(data)
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self._note(answer)

    def _note(self, event) -> None:
        if event["method"] == "Network.requestWillBeSent":
            self.requested.append(event["params"]["request"]["url"])
        elif event["method"] == "Log.entryAdded":
            self.problems.append(event["params"]["entry"]["text"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.problems.append(str(event["params"]["exceptionDetails"]))

    def open(self, url: str, size: tuple[int, int], dark: bool = False) -> None:
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if width < 500 else 1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def value(self, expression: str):
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < end, f"never true: {expression}\n{self.text()}\n{self.problems}"
            time.sleep(0.03)

    def text(self) -> str:
        return self.value("document.body.innerText")

    def choose(self, path: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def type(self, text: str, enter: bool = True) -> None:
        self.value("document.getElementById('question').focus()")
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp") if enter else ():
            self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    def shot(self, name: str) -> None:
        if SHOTS:
            time.sleep(0.8)  # until it has scrolled
            data = self.call("Page.captureScreenshot", format="png")["data"]
            Path(SHOTS, f"{name}.png").write_bytes(base64.b64decode(data))

    def close(self) -> None:
        os.write(self._commands, json.dumps({"id": 0, "method": "Browser.close"}).encode() + b"\0")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._commands)
        os.close(self._answers)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture
def sales(tmp_path):
    path = tmp_path / "sales.csv"
    path.write_text(SALES)
    return path


IDLE = "document.querySelector('#composer:not([hidden]) #stop[hidden]') !== null"
WORKING = "document.querySelector('#stop:not([hidden])') !== null"


def shown(section):
    return f"document.querySelector('#{section}:not([hidden])') !== null"


def arrive(browser, server, size, table=None, dark=False):
    browser.open(f"{server.url}/#key={server.key}", size, dark)
    browser.until(shown("start"))
    if table is not None:
        browser.choose(table)
        browser.until(shown("work"))


def ask(browser, question):
    """Ask, and wait for the answer's end: idle before the question has arrived is not idle after it."""
    before = browser.value("document.querySelectorAll('article').length")
    browser.type(question)
    browser.until(f"document.querySelectorAll('article').length > {before} && {IDLE}")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_from_a_file_to_an_answer_and_a_second_one(browser, running, sales, size):
    where = "desktop" if size == DESKTOP else "phone"
    by_region = "df.groupby('region')['units'].sum().sort_values(ascending=False)"
    server = running(
        f"> {by_region}",
        "East sold the most: 9 units.",
        "> df.set_index('day')['units']",
        "By day.",
        "> df",
        "All rows.",
    )
    browser.requested.clear()
    browser.problems.clear()
    arrive(browser, server, size)
    browser.shot(f"{where}-start")
    browser.choose(sales)
    browser.until(shown("work"))
    assert "sales" in browser.text() and "region" in browser.text()
    browser.shot(f"{where}-table")
    ask(browser, "Which region sold the most?")
    assert by_region in browser.text() and "East sold the most: 9 units." in browser.text()
    browser.until("document.querySelectorAll('svg .bar').length === 3")
    browser.shot(f"{where}-bars")
    ask(browser, "Units by day?")
    browser.until("document.querySelectorAll('svg .line').length === 1")
    browser.shot(f"{where}-line")
    ask(browser, "Show all rows")
    browser.until("document.querySelectorAll('article:last-child tbody tr').length === 4")
    browser.shot(f"{where}-more")
    assert browser.value("document.querySelector('article:last-child .code').open")
    assert browser.value("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert server.key not in browser.value("location.href + document.cookie + document.documentElement.outerHTML")
    assert {url.split("/")[2] for url in browser.requested if "://" in url} == {server.url.split("/")[2]}
    assert browser.problems == []


def test_stop_really_stops_and_the_next_question_is_answered(browser, running, sales):
    server = running("...", "> df['units'].sum()", "22 units.")
    model = server.assistant.generator
    model.held = True
    arrive(browser, server, DESKTOP, sales)
    browser.type("Talk for ever")
    browser.until("document.querySelector('article .answer') !== null")
    browser.until(WORKING)
    browser.shot("desktop-writing")
    browser.value("document.getElementById('stop').click()")
    browser.until(IDLE)
    assert model.closed.wait(5) and "Stopped." in browser.text()
    model.held = False
    ask(browser, "How many units?")
    assert "22 units." in browser.text()


def test_what_goes_wrong_is_said_plainly(browser, running, sales, tmp_path):
    server = running("> df['unit'].sum()", "> df['units'].sum()", "22 units.", "> x...", "Hello.")
    arrive(browser, server, DESKTOP, dark=True)
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    browser.choose(empty)
    browser.until("!document.getElementById('start-error').hidden")
    assert "empty.csv" in browser.value("document.getElementById('start-error').textContent")
    browser.shot("dark-empty-file")
    browser.choose(sales)
    browser.until(shown("work"))
    ask(browser, "How many units?")
    assert "KeyError" in browser.text() and "22 units." in browser.text()
    browser.shot("dark-repaired")
    ask(browser, "And now?")
    assert "did not end within" in browser.text()
    ask(browser, "Hello?")
    assert "No code was run for this answer." in browser.text()
    browser.shot("dark-failed")


def test_cells_and_answers_are_never_markup(browser, running, tmp_path):
    path = tmp_path / "<b>bold.csv"
    path.write_text("<img src=x onerror=alert(1)>,n\n<script>document.title='owned'</script>,1\n=cmd|' /C calc'!A0,2\n")
    server = running("> df", "<h1>big</h1> & <b>bold</b>")
    arrive(browser, server, DESKTOP, path)
    ask(browser, "Show <i>all</i>")
    text = browser.text()
    assert "<h1>big</h1> & <b>bold</b>" in text and "<script>document.title" in text and "Show <i>all</i>" in text
    assert "=cmd|' /C calc'!A0" in text
    assert browser.value("document.title") == "herd: ask a table"
    assert browser.value("document.querySelectorAll('main img, main script, article h1, main i').length") == 0


def test_a_wrong_key_asks_for_the_right_one(browser, running):
    server = running()
    browser.open(f"{server.url}/#key=wrong-wrong-wrong", PHONE)
    browser.until(shown("locked"))
    browser.until("document.getElementById('key-error').textContent.includes('not right')")
    browser.shot("phone-locked")
    browser.value("document.getElementById('key').focus()")
    browser.call("Input.insertText", text=server.key)
    browser.value("document.querySelector('#key-form button').click()")
    browser.until(shown("start"))
    assert not browser.value(shown("locked"))


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(browser, running, sales):
    arrive(browser, running(), DESKTOP, sales)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if node.get("role", {}).get("value") in ("button", "textbox")]
    assert len(controls) >= 3 and all(node["name"]["value"].strip() for node in controls)
    assert browser.value("document.activeElement.id") == "question"
