"""The report's page in a real browser, Debian's Chromium, without a network."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from pipeline.report.answer import answer
from pipeline.report.page import render_page
from pipeline.report.study_charts import study_figures
from tests.made_up_source import made_up_damage, made_up_subspaces
from tests.made_up_study import SCRIPT, made_up_study, unknown

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
PHONE, DESK = 390, 1280

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs Chromium and its driver: apt-get install chromium chromium-driver, or brew install chromium chromedriver",
)


class Browser:
    """A page shown in Chromium, `width` pixels wide, in a light or dark system."""

    def __init__(self, driver: webdriver.Chrome, page: Path) -> None:
        self.driver, self.page = driver, page

    def open(self, width: int, scheme: str = "light") -> None:
        """Show the page, once every chart that can be seen is drawn."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
        preference = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", preference)
        self.driver.get(self.page.as_uri())
        self.until_drawn()

    def until_drawn(self) -> None:
        undrawn = "return document.querySelectorAll('.view:not([hidden]) .chart:not(:has(svg))').length"
        WebDriverWait(self.driver, 20).until(lambda driver: driver.execute_script(undrawn) == 0)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        self.driver.execute_script("arguments[0].click()", self.one(selector))

    def shown_rows(self) -> list[list[str]]:
        script = (
            "return [...document.querySelector('#cells tbody').rows].filter((row) => !row.hidden)"
            ".map((row) => [...row.cells].map((cell) => cell.textContent))"
        )
        rows: list[list[str]] = self.driver.execute_script(script)
        return rows

    def errors(self) -> list[Any]:
        return [entry for entry in self._log("browser") if entry["level"] != "INFO"]

    def requests(self) -> set[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return {
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        }

    def _log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return entries


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    results = made_up_study(quants=("Q8_0", "Q4_K_M"))
    results["subspaces"] = made_up_subspaces()
    unknown(results["cells"][5], "failed", "llama.cpp refused")
    results["cells"][7].update(status="stopped", reason="KL divergence above 1")
    page = tmp_path_factory.mktemp("report") / "report.html"
    with_damage = {**results, "cells": [*results["cells"], *made_up_damage()]}
    page.write_text(render_page(results, answer(results), study_figures(with_damage)))
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield Browser(driver, page)
    driver.quit()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_fits_without_errors_or_requests(browser: Browser, width: int, scheme: str) -> None:
    browser.open(width, scheme)
    assert browser.driver.execute_script("return document.documentElement.scrollWidth") == width
    widths = [element.size["width"] for element in browser.all(".view:not([hidden]) .chart svg")]
    assert len(widths) == 4 + 4 + 2 + 4 + 1
    assert all(width / 4 < chart <= width for chart in widths)
    assert browser.errors() == []
    assert {url for url in browser.requests() if not url.startswith("data:")} == {browser.page.as_uri()}


def test_dark_and_light_differ_in_page_and_charts(browser: Browser) -> None:
    colours = "const label = document.querySelector('.chart svg text'); return [getComputedStyle(document.body)"
    colours += ".backgroundColor, getComputedStyle(document.body).color, label.getAttribute('fill')]"
    browser.open(DESK, "light")
    light = browser.driver.execute_script(colours)
    browser.open(DESK, "dark")
    dark = browser.driver.execute_script(colours)
    assert all(one != other for one, other in zip(light, dark, strict=True))
    browser.click("#theme")
    browser.until_drawn()
    assert browser.driver.execute_script(colours) == light


def test_every_view_of_every_figure_is_drawn(browser: Browser) -> None:
    browser.open(DESK)
    for radio in browser.all(".views input"):
        browser.driver.execute_script("arguments[0].click()", radio)
        browser.until_drawn()
    assert not browser.all(".chart:not(:has(svg))")
    assert browser.errors() == []


def test_the_heat_map_shows_the_chosen_operation(browser: Browser) -> None:
    browser.open(DESK)
    colours = "return [...document.querySelectorAll('[data-chart^=ranks] .role-mark.mark-rect path')].map((p) => p.getAttribute('fill'))"
    before = browser.driver.execute_script(colours)
    select = Select(browser.one("select[data-signal]"))
    select.select_by_visible_text("separate threshold 0.5 weights")
    WebDriverWait(browser.driver, 5).until(lambda driver: driver.execute_script(colours) != before)
    assert len(before) == len(browser.driver.execute_script(colours)) == 60


def test_heat_maps_of_layers_have_the_colours_of_light_and_dark(browser: Browser) -> None:
    colours = "return [...document.querySelectorAll('[data-chart=between-between-weights-1] .role-mark.mark-rect path')].map((p) => p.getAttribute('fill'))"
    drawn = {}
    for scheme in ("light", "dark"):
        browser.open(DESK, scheme)
        drawn[scheme] = browser.driver.execute_script(colours)
    assert len(drawn["light"]) == len(drawn["dark"]) == 30 * 29
    expected = {"light": (255, 255, 255), "dark": (20, 24, 29)}  # where layers are as alike as random weights are
    for scheme, middle in expected.items():
        assert f"rgb{middle}" in drawn[scheme]


def test_the_table_sorts_by_number(browser: Browser) -> None:
    browser.open(DESK)
    heading = browser.one("#cells thead th:nth-child(2)")
    assert "KL divergence" in heading.text
    for direction, sign in (("ascending", 1), ("descending", -1)):
        browser.click("#cells thead th:nth-child(2) button")
        assert heading.get_attribute("aria-sort") == direction
        texts = [row[1] for row in browser.shown_rows()]
        losses = [float(text.split(" ")[0]) for text in texts[:-1]]
        assert losses == sorted(losses, key=lambda loss: sign * loss)
        assert len(losses) == 25
        assert texts[-1] == "\N{EN DASH}"
    browser.click("#cells thead th:first-child button")
    assert heading.get_attribute("aria-sort") == "none"
    labels = [row[0] for row in browser.shown_rows()]
    assert labels == sorted(labels)


def test_the_table_filters(browser: Browser) -> None:
    browser.open(PHONE)
    browser.one("#filter").send_keys("Q4_K_M SHARED")
    assert [row[0] for row in browser.shown_rows()] == [
        f"shared-kv {threshold} attention, Q4_K_M" for threshold in (0.99, 0.9, 0.7, 0.5)
    ]
    assert browser.one("#shown").text == "4 of 26"
    browser.one("#filter").clear()
    browser.one("#filter").send_keys("alone")
    browser.click("#best")
    assert [row[0] for row in browser.shown_rows()] == ["Q8_0 alone", "Q4_K_M alone"]


def test_what_a_model_wrote_is_shown_as_text(browser: Browser) -> None:
    browser.open(DESK)
    shown = [passage for passage in browser.all("[data-passage]") if passage.is_displayed()]
    assert len(shown) == 4
    assert SCRIPT in shown[-1].text
    assert shown[-1].find_element(By.CSS_SELECTOR, "mark").get_attribute("textContent") == "first difference:way"
    browser.click(".choose summary")
    browser.all(".choose input:not(:checked)")[0].click()
    assert len([passage for passage in browser.all("[data-passage]") if passage.is_displayed()]) == 5


def test_a_point_says_what_it_is(browser: Browser) -> None:
    browser.open(DESK)
    point = browser.all("[data-chart^=size] .mark-symbol path")[0]
    webdriver.ActionChains(browser.driver).scroll_to_element(point).move_to_element(point).perform()
    tooltip = WebDriverWait(browser.driver, 5).until(lambda driver: browser.one("#vg-tooltip-element.visible"))
    assert all(heading in tooltip.text for heading in ("combination", "KL divergence", "95% interval", "size"))
