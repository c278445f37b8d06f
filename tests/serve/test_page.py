"""The page in a headless Chromium, used as a person would."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from raygan.serve.messages import Champions, ModelVersion
from tests.serve.conftest import Running
from tests.serve.local import CAT, CLASSIFIER, DOG, local_service, make_generator, save

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
    driver.set_script_timeout(240)
    yield driver
    driver.quit()


def wait(browser, script, seconds=240):
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
            "if (failed) return real(path, ...rest); failed = true; return Promise.reject(new TypeError('Failed')); }"
        },
    )
    try:
        browser.get(running.address)
        wait(browser, "document.getElementById('status').textContent.startsWith('The service does not answer')")
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


def sources(page):
    return page.execute_script("return [...document.querySelectorAll('#samples img')].map(e => e.src)")


async def two_versions(models, tmp_path, champion):
    newer = ModelVersion(CAT.name, "2")
    files = {**models, newer: save(tmp_path, make_generator(9))}
    return await local_service(files, Champions({"cat": newer if champion == "2" else CAT, "dog": DOG}, CLASSIFIER))


def test_the_address_and_downloads_name_what_is_shown_whatever_the_champion_is(browser, models, tmp_path):
    with Running(lambda: two_versions(models, tmp_path, "1")) as server:
        page = opened(browser, server.address + "/?label=cat&seed=40&truncation=0.5&n=16")
        before, address = sources(page), page.current_url
        assert "version=1" in address
        newer = Champions({"cat": ModelVersion(CAT.name, "2"), "dog": DOG}, CLASSIFIER)
        server.call(server.local.service.refresh(newer))
        page.execute_script(
            "window.asked = []; const real = window.fetch;"
            "window.fetch = (path, ...rest) => { asked.push(path); return real(path, ...rest); }"
        )
        page.find_element("css selector", "[data-format=zip]").click()
        wait(page, "document.getElementById('status').textContent.startsWith('Downloading')")
        assert "version=1" in page.execute_script("return asked[0]")
        page.get(server.address)
        drawn(page)
        assert "version 2" in page.find_element("id", "model").text
        page.get(address)
        drawn(page)
        assert sources(page) == before
        page.find_element("id", "newest").click()
        wait(page, "document.getElementById('model').textContent.endsWith('version 2')")
        page.back()
        wait(page, "document.getElementById('model').textContent.endsWith('version 1')")


@pytest.mark.parametrize(
    ("query", "says", "count"),
    [
        ("label=bird&version=3", "no generator for 'bird'; available: cat, dog", 0),
        ("label=cat&truncation=0.512&n=99&version=x&seed=5", "not as the address asks: n, truncation, version", 16),
        ("label=cat&moves=0,7&seed=5", "not as the address asks: moves", 16),
        ("label=cat&moves=1,0.0,0&seed=5", "16 images", 16),
    ],
)
def test_the_page_says_what_it_can_not_show_of_an_address(browser, running, query, says, count):
    browser.get(f"{running.address}/?{query}")
    wait(browser, f"document.getElementById('status').textContent.includes({says!r})".replace('"', "`"))
    picture(browser, f"address-{count}")
    assert len(sources(browser)) == count
    if count:
        assert "seed 5" in browser.find_element("css selector", "#samples li").text
        said = browser.find_element("id", "status").text
        assert says in said.split("; ")[-1]


def test_the_page_works_below_a_route_prefix(browser, models):
    async def below():
        local = await local_service(models, Champions({"cat": CAT}, CLASSIFIER))
        inner = local.app

        async def prefixed(scope, receive, send):  # as Serve calls it
            await inner({**scope, "root_path": "/faces"} if scope["type"] == "http" else scope, receive, send)

        local.app = prefixed
        return local

    with Running(below) as server:
        page = opened(browser, server.address + "/faces?label=cat")
        page.find_element("css selector", "footer a").click()
        wait(page, "document.querySelectorAll('h2').length >= 7")
        page.find_element("css selector", "footer a").click()
        drawn(page)
        assert page.current_url.startswith(server.address + "/faces/?label=cat")


def test_labels_come_and_go_and_the_chosen_one_stays(browser, models):
    def show(*labels):
        known = {"cat": CAT, "dog": DOG}
        server.call(server.local.service.refresh(Champions({label: known[label] for label in labels}, CLASSIFIER)))
        page.execute_script("document.dispatchEvent(new Event('visibilitychange'))")
        wait(page, f"[...document.getElementById('label').options].map(e => e.value).join() === '{','.join(labels)}'")

    with Running(lambda: local_service(models, Champions({"cat": CAT}, CLASSIFIER))) as server:
        page = opened(browser, server.address)
        page.execute_script("document.activeElement.blur()")
        show("cat", "dog")
        page.execute_script("document.getElementById('label').value = 'dog'")
        show("dog")
        server.call(server.local.service.refresh(Champions({"cat": CAT}, CLASSIFIER)))
        page.execute_script("document.dispatchEvent(new Event('visibilitychange'))")
        wait(page, "document.getElementById('label').length === 2")
        assert page.execute_script("return document.getElementById('label').value") == "dog"
        page.find_element("id", "draw").click()
        wait(page, "document.getElementById('status').className === 'bad'")
        assert "available: cat" in page.find_element("id", "status").text


def test_a_morph_is_of_the_pictures_label_not_of_the_forms(browser, running):
    page = opened(browser, running.address + "/?label=dog")
    page.execute_script("document.getElementById('label').value = 'cat'")
    page.find_element("css selector", "#samples button").click()
    page.find_element("id", "morph-from").click()
    page.find_element("css selector", "#morph-form button").click()
    assert wait(page, "document.getElementById('walk-image').naturalWidth === 32")
    assert page.execute_script("return document.getElementById('walk-image').alt").startswith("Generated dog")
    page.find_element("id", "walk-stop").click()
    assert not page.find_element("id", "walk").is_displayed()


def test_kept_pictures_stay_and_go_by_keyboard(browser, running):
    from selenium.webdriver.common.keys import Keys

    page = opened(browser, running.address)
    page.find_element("css selector", "#samples button").send_keys(Keys.ARROW_RIGHT)
    page.switch_to.active_element.send_keys(Keys.ENTER)
    assert "seed 8" in page.find_element("id", "large-title").text
    page.find_element("id", "keep").send_keys(Keys.ENTER)
    page.find_element("id", "keep").send_keys(Keys.ARROW_RIGHT)
    assert "seed 9" in page.find_element("id", "large-title").text
    page.find_element("id", "keep").send_keys(Keys.ENTER)
    page = opened(browser, running.address)
    kept = "[...document.querySelectorAll('#kept .seed')].map(e => e.textContent).join()"
    assert wait(page, kept) == "seed 9,seed 8"
    picture(page, "kept")
    page.find_element("css selector", "#kept li:nth-child(2) button").send_keys(Keys.ENTER)
    page.find_element("id", "close").send_keys(Keys.ENTER)
    assert page.execute_script("return document.activeElement.closest('#kept li')?.innerText.includes('seed 8')")
    page.find_element("css selector", "#kept button").click()
    assert page.find_element("id", "keep").get_attribute("aria-pressed") == "true"
    page.find_element("id", "keep").click()
    assert page.execute_script(f"return {kept}") == "seed 8"
    page.execute_script("localStorage.clear()")


def test_copying_twice_leaves_the_buttons_label(browser, running):
    page = opened(browser, running.address)
    page.execute_script("const b = document.getElementById('copy-link'); b.click(); setTimeout(() => b.click(), 300)")
    labels = page.execute_async_script(
        "const b = document.getElementById('copy-link'), done = arguments[0], seen = [];"
        "setTimeout(() => seen.push(b.textContent), 700);"
        "setTimeout(() => done([...seen, b.textContent]), 2500)"
    )
    assert labels[0] != labels[1] == "Copy link"


def test_a_morph_needs_no_drawing_before_it(browser, running):
    browser.get(f"{running.address}/?label=cat&version=99")
    wait(browser, "document.getElementById('status').className === 'bad'")
    browser.find_element("css selector", "#morph-form button").click()
    assert wait(browser, "document.getElementById('walk-image').naturalWidth === 32")


def test_no_kept_picture_goes_unasked(browser, running):
    page = opened(browser, running.address)
    page.execute_script(
        "localStorage.setItem('raygan.kept', JSON.stringify([...Array(200).keys()].map((seed) =>"
        "({ label: 'cat', version: '1', seed: 1000 + seed, source: 'data:image/png;base64,' })))); showKept()"
    )
    page.find_element("css selector", "#samples button").click()
    page.find_element("id", "keep").click()
    assert "200 pictures" in page.find_element("id", "status").text
    assert not page.find_element("id", "large").is_displayed()
    seeds = page.execute_script("return [...document.querySelectorAll('#kept .seed')].map(e => e.textContent)")
    assert seeds == [f"seed {1000 + number}" for number in range(200)]
    page.execute_script("localStorage.clear()")


def test_going_back_twice_while_a_drawing_is_under_way_shows_the_first_one(browser, running):
    page = opened(browser, running.address + "/?label=cat&n=16&seed=1")
    shown = "document.querySelector('#samples .seed').textContent"
    for seed in (2, 3):
        page.execute_script(f"document.getElementById('seed').value = {seed}")
        page.find_element("id", "draw").click()
        wait(page, f"{shown} === 'seed {seed}'")
        drawn(page)
    page.execute_script(
        "const real = window.fetch; const later = () => new Promise((go) => setTimeout(go, 400));"
        "window.fetch = async (...all) => { await later(); return real(...all); };"
        "history.back(); setTimeout(() => history.back(), 150)"
    )
    wait(page, f"{shown} === 'seed 1'", 30)
    drawn(page)
    assert "seed=1&" in page.current_url


def test_a_photo_gets_the_classifiers_verdict(browser, running, http, tmp_path):
    (tmp_path / "photo.png").write_bytes(http.get("/v1/sample?label=cat&n=1&seed=3").content)
    expected = http.get("/v1/sample?label=cat&n=1&seed=3&format=json").json()["images"][0]["probabilities"]
    page = opened(browser, running.address)
    page.find_element("id", "photo").send_keys(str(tmp_path / "photo.png"))
    page.find_element("css selector", "#photo-form button").click()
    wait(page, "document.getElementById('photo-image').naturalWidth === 32")
    first = page.find_element("css selector", "#photo-verdict li").text.split()
    label = max(expected, key=expected.get)
    assert first[0] == label
    assert abs(float(first[1]) - 100 * expected[label]) < 0.2
    picture(page, "photo")


def test_sliders_move_the_pictures_and_the_address_keeps_them(browser, running):
    page = opened(browser, running.address + "/?label=cat&n=16&seed=7")
    before = sources(page)
    page.find_element("css selector", "#moves-field summary").click()
    assert wait(page, "document.querySelectorAll('#moves input').length") == 6
    page.execute_script(
        "const slider = document.getElementById('move-1'); slider.value = 4;"
        "slider.dispatchEvent(new Event('input')); slider.dispatchEvent(new Event('change'))"
    )
    wait(page, "location.search.includes('moves=0%2C4')")
    drawn(page)
    moved = sources(page)
    assert moved != before
    picture(page, "moves")
    page.get(page.current_url)
    drawn(page)
    assert sources(page) == moved
    page.execute_script("document.getElementById('moves-reset').click()")
    wait(page, "!location.search.includes('moves')")
    drawn(page)
    assert sources(page) == before
