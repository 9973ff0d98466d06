"""The page in a real browser, Debian's Chromium: nothing hostile runs, nothing is asked for, everything can be used."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_run import hostile_run

from nslora.graph.runs.page import writing
from nslora.graph.runs.run import Run

pytestmark = pytest.mark.engines
SHOTS = Path(__file__).parents[4] / "build" / "pages"  # for people to look at
# Of every element with text of its own: the contrast of its colour with the first background behind it that is opaque.
CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                          return [...canvas.getImageData(0, 0, 1, 1).data]; };
const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
                      .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const found = [];
for (const each of document.querySelectorAll('body *:not(script):not(meter):not(option)')) {
  const own = [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !each.checkVisibility() || each.closest('svg, .hidden, .skip, .zero')) continue;
  let behind = each, back = [0, 0, 0, 0];
  while (behind && (back = rgb(getComputedStyle(behind).backgroundColor))[3] < 255) behind = behind.parentElement;
  const both = [light(rgb(getComputedStyle(each).color)), light(behind ? back : [255, 255, 255])];
  const [a, b] = both.sort((x, y) => y - x);
  found.push([(a + .05) / (b + .05), each.tagName + '.' + each.className + ' ' + each.textContent.slice(0, 40)]);
}
return found.sort((x, y) => x[0] - y[0])[0];
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; it keeps a record of its console and of every request."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (make test-engines)")
    found, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not found or not driver:
        pytest.skip("Chromium is not installed (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = found
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    found = hostile_run(tmp_path_factory.mktemp("page"))
    found.adapt()
    found.html()
    return found


def opened(browser: Any, path: Path, width: int = 1600, theme: str = "light") -> Any:
    features = [{"name": "prefers-color-scheme", "value": theme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    return browser


def of(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def shown(browser: Any) -> int:
    return sum(each.is_displayed() for each in browser.find_elements("css selector", ".rows > li"))


def test_no_script_runs_but_the_pages_own_and_no_request_leaves(browser: Any, run: Run) -> None:
    browser.get_log("browser"), browser.get_log("performance")
    opened(browser, run.html())
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true;")
    for tab in browser.find_elements("css selector", "[role=tab]"):
        tab.click()
    assert browser.execute_script("return window.hacked") is None
    assert browser.get_log("browser") == []
    sent = [json.loads(each["message"])["message"] for each in browser.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in sent if each["method"] == "Network.requestWillBeSent"]
    assert urls
    assert all(url.startswith(("file:", "data:")) for url in urls)


def test_a_script_that_slipped_through_would_be_stopped_by_the_pages_policy(
    browser: Any, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "slipped.html"
    path.write_text(run.html().read_text().replace("<footer", "<script>window.hacked=1</script><footer"))
    opened(browser, path)
    assert browser.execute_script("return window.hacked") is None
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


def test_tabs_work_by_click_and_by_keyboard(browser: Any, run: Run) -> None:
    opened(browser, run.html())
    of(browser, "#tab-prompt-document").click()
    assert of(browser, "#prompt-document").is_displayed()
    assert not of(browser, "#prompt-diff").is_displayed()
    browser.switch_to.active_element.send_keys("\ue014")  # arrow right, from the last to the first
    assert of(browser, "#prompt-diff").is_displayed()
    assert browser.switch_to.active_element.get_attribute("id") == "tab-prompt-diff"
    browser.switch_to.active_element.send_keys("\ue010")  # end
    assert of(browser, "#prompt-document").is_displayed()
    assert of(browser, "#tab-prompt-document").get_attribute("aria-selected") == "true"
    reached = set()
    for _ in range(120):
        browser.switch_to.active_element.send_keys("\ue004")  # tab
        reached.add(browser.switch_to.active_element.tag_name)
    assert {"summary", "select", "input", "button"} <= reached


def test_filters_work_by_click_and_by_keyboard(browser: Any, run: Run) -> None:
    opened(browser, run.html())
    assert shown(browser) == 12
    of(browser, "[name=outcome] option[value=won]").click()
    assert (shown(browser), of(browser, "output").text) == (6, "6 of 12 rows")
    of(browser, "[name=class] option[value=wind]").click()
    won_of_class = shown(browser)
    assert 0 < won_of_class < 6
    of(browser, "[type=reset]").send_keys("\ue007")  # enter
    assert shown(browser) == 12
    of(browser, "[name=text]").send_keys("test 3 ")
    assert shown(browser) == 1
    of(browser, "[name=text]").send_keys("nowhere")
    assert of(browser, ".empty").is_displayed()
    of(browser, "[type=reset]").click()
    of(browser, "[name=check]").send_keys("result fails the")
    assert shown(browser) == 2


@pytest.fixture(scope="module")
def pages(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one run and a page of several."""
    folder = tmp_path_factory.mktemp("several")
    others = [shutil.copytree(run.folder, folder / f"a run with a rather long name {i}") for i in range(4)]
    return {"one": run.html(), "several": run.html(*others, to=folder / "several.html")}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("kind", ["one", "several"])
def test_the_page_fits_and_can_be_read(browser: Any, pages: dict[str, Path], kind: str, width: int, theme: str) -> None:
    opened(browser, pages[kind], width, theme)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 384) == (theme == "light")
    browser.execute_script("for (const each of document.querySelectorAll('.round details')) each.open = true;")
    least, where = browser.execute_script(CONTRAST)
    assert least >= 4.5, where  # WCAG AA
    clip = {"x": 0, "y": 0, "width": width, "height": 6000, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    SHOTS.mkdir(parents=True, exist_ok=True)
    (SHOTS / f"{kind}-{width}-{theme}.png").write_bytes(base64.b64decode(shot["data"]))


def test_a_page_of_a_run_at_work_reads_itself_anew_and_keeps_open_what_was_opened(
    browser: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    def until(holds: Callable[[Any], Any], seconds: float = 20) -> None:
        WebDriverWait(browser, seconds, ignored_exceptions=[StaleElementReferenceException]).until(holds)

    monkeypatch.setattr(writing, "REFRESH_S", 2)
    folder = shutil.copytree(run.folder, tmp_path / "live")
    shutil.move(folder / "result", tmp_path / "result")
    opened(browser, writing.write_page(folder, run.workspace, at_work=True))
    until(lambda it: of(it, "[data-pause]").click() is None)
    of(browser, "#more-1 summary").click()
    browser.execute_script("window.same = 1")
    with pytest.raises(TimeoutException):
        until(lambda it: not it.execute_script("return window.same"), 5)
    of(browser, "[data-pause]").click()
    until(lambda it: not it.execute_script("return window.same"))
    until(lambda it: of(it, "#more-1").get_attribute("open"))
    shutil.move(tmp_path / "result", folder / "result")
    writing.write_page(folder, run.workspace, at_work=False)
    until(lambda it: it.current_url.endswith("/result/report.html"))
    until(lambda it: of(it, ".status").text == "finished")
