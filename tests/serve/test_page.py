"""The page in a headless Chromium, used as a person would."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from raygan.serve.messages import Champions
from tests.serve.conftest import Running
from tests.serve.local import CAT, CLASSIFIER, local_service

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="the page is untested: its tests need chromium and chromedriver on PATH"
)

#: A folder for screenshots of the page.
PICTURES = os.environ.get("RAYGAN_PAGE_PICTURES")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(CHROMIUM)
    quiet = "no-first-run disable-background-networking disable-component-update disable-sync disable-quic"
    for flag in ("headless=new no-sandbox disable-gpu " + quiet).split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


def wait(browser, script, seconds=40):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds, 0.05).until(lambda driver: driver.execute_script(f"return {script}"))


def opened(browser, address, width=1100, height=900):
    browser.set_window_size(width, height)
    browser.get(address)
    drawn(browser)
    return browser


def drawn(browser):
    wait(
        browser,
        "document.querySelectorAll('#samples img').length === 16 && "
        "!document.getElementById('draw').hasAttribute('aria-disabled')",
    )


def picture(browser, name):
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(f"{PICTURES}/{name}.png")


def click(browser, selector):
    browser.execute_script(f"document.querySelector({selector!r}).click()")


def test_samples_appear_on_loading_and_by_the_form(browser, running):
    page = opened(browser, running.address)
    picture(page, "desktop")
    first = page.execute_script("return document.querySelector('#samples img').src")
    assert "seed 7" in page.find_element("css selector", "#samples li").text
    page.execute_script("document.getElementById('n').value = 3; document.getElementById('seed').value = 9")
    page.find_element("id", "draw").click()
    wait(page, "document.querySelectorAll('#samples img').length === 3")
    wait(page, "!document.getElementById('draw').hasAttribute('aria-disabled')")
    assert page.execute_script("return document.activeElement.id") == "draw"
    assert page.execute_script("return document.querySelector('#samples img').src") != first
    assert "%" in page.find_element("css selector", ".verdict").text
    assert "3 images" in page.find_element("id", "status").text
    assert "version 1" in page.find_element("id", "model").text


def test_a_sample_opens_by_keyboard_and_its_seed_is_copied_and_used_for_a_morph(browser, running):
    from selenium.webdriver.common.keys import Keys

    page = opened(browser, running.address)
    page.find_element("css selector", "#samples li:nth-child(3) button").send_keys(Keys.ENTER)
    assert wait(page, "document.getElementById('large').open")
    assert "seed 9" in page.find_element("id", "large-title").text
    picture(page, "large")
    page.find_element("id", "copy").click()
    wait(page, "document.getElementById('seed').value === '9'")
    page.find_element("id", "morph-from").click()
    assert not page.execute_script("return document.getElementById('large').open")
    page.execute_script("document.getElementById('to').value = 12")
    page.find_element("css selector", "#morph-form button").click()
    assert wait(page, "document.getElementById('walk-image').naturalWidth === 32")
    assert page.execute_script("return document.getElementById('walk-image').alt").endswith("from seed 9 to seed 12")


def test_screen_readers_hear_about_a_mistake(browser, running):
    page = opened(browser, running.address)
    page.execute_script(
        "const c = document.getElementById('confidence'); c.max = 1; c.step = 'any'; c.value = 1;"
        "document.getElementById('n').value = 1; document.getElementById('form').requestSubmit()"
    )
    wait(page, "document.getElementById('status').className === 'bad'")
    status = page.find_element("id", "status")
    assert "min_confidence" in status.text
    assert status.get_attribute("role") == "status"


def test_the_page_fits_a_phone(browser, running):
    page = opened(browser, running.address, 390, 844)
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    picture(page, "phone")
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    small = page.execute_script(
        "return [...document.querySelectorAll('main button, main select')]"
        ".filter(e => e.offsetHeight && e.offsetHeight < 40).map(e => e.id || e.textContent)"
    )
    assert small == []
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_every_control_has_a_name_and_nothing_is_loaded_from_elsewhere(browser, running):
    page = opened(browser, running.address)
    unnamed = page.execute_script(
        "return [...document.querySelectorAll('input, select')].filter(e => !e.labels.length).map(e => e.id)"
        ".concat([...document.querySelectorAll('button')]"
        ".filter(e => !(e.textContent.trim() || e.ariaLabel)).map(e => e.id))"
        ".concat([...document.querySelectorAll('#samples img')].filter(e => !e.alt).map(e => e.src))"
    )
    assert unnamed == []
    origins = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith((running.address, "data:", "blob:")) for name in origins)
    page.get(running.address + "/docs")
    wait(page, "document.querySelectorAll('h2').length >= 7")
    assert "truncation" in page.find_element("id", "routes").text
    complaints = [
        entry["message"] for entry in page.get_log("browser") if "Content Security Policy" in entry["message"]
    ]
    assert complaints == []


def test_the_page_asks_for_the_token(browser, models):
    champions = Champions({"cat": CAT}, CLASSIFIER)
    with Running(lambda: local_service(models, champions, token="s3cret")) as server:  # noqa: S106
        browser.get(server.address)
        wait(browser, "document.getElementById('ask').open")
        picture(browser, "token")
        assert browser.execute_script("return document.getElementById('ask-why').offsetHeight") == 0
        for wrong in ("secret", "s\u732bcret"):
            browser.find_element("id", "token").send_keys(wrong + "\n")
            wait(browser, "document.getElementById('ask').open && document.getElementById('ask-why').offsetHeight > 0")
            assert "does not accept" in browser.find_element("id", "ask-why").text
            browser.execute_script("document.getElementById('ask-why').hidden = true")  # to see it reappear
        browser.execute_script("window.more = Promise.all(['/v1/models', '/v1/models'].map((path) => ask(path)))")
        browser.find_element("id", "token").send_keys("s3cret\n")
        drawn(browser)
        assert browser.execute_async_script("more.then((all) => arguments[0](all.length))") == 2


def test_hidden_elements_take_no_room(browser, models):
    with Running(lambda: local_service(models, Champions({"cat": CAT}, None))) as server:
        page = opened(browser, server.address)
        hidden = "return [...document.querySelectorAll('[hidden]')].map(e => [e.id, e.offsetHeight])"
        found = dict(page.execute_script(hidden))
        assert found.keys() >= {"confidence-field", "walk"}
        assert set(found.values()) == {0}
        assert "%" not in page.find_element("id", "samples").text


def test_drawing_works_after_a_failed_start(browser, running):
    script = browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {
            "source": "let failed = false; const real = window.fetch; window.fetch = (path, ...rest) => {"
            "if (failed) return real(path, ...rest); failed = true; return Promise.reject(new Error('away')); }"
        },
    )
    try:
        browser.get(running.address)
        wait(browser, "document.getElementById('status').textContent === 'away'")
        browser.find_element("id", "draw").click()
        drawn(browser)
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_the_dice_wait_while_samples_are_drawn(browser, running):
    page = opened(browser, running.address)
    seeds = page.execute_script(
        "const seed = document.getElementById('seed'), dice = document.getElementById('dice');"
        "dice.click(); const first = seed.value; dice.click(); return [first, seed.value]"
    )
    assert seeds[0] == seeds[1] != "7"
    wait(page, f"document.querySelector('#samples .seed').textContent === 'seed {seeds[0]}'")


def test_the_status_is_visible_on_a_phone_at_any_scroll_position(browser, running):
    page = opened(browser, running.address, 390, 844)
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 500, "deviceScaleFactor": 2, "mobile": True}
    )
    for place in ("0", "document.body.scrollHeight / 2"):
        box = page.execute_script(
            f"window.scrollTo(0, {place}); const b = document.getElementById('status').getBoundingClientRect();"
            "return [b.top, b.bottom, window.innerHeight]"
        )
        assert 0 <= box[0] < box[1] <= box[2]
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
