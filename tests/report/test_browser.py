"""The page in a real browser: what it shows is what Python computes, and no request leaves the file."""

import re
import shutil

import pytest
from helpers.handmade import explanation

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; .ci/run installs it")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def result():
    return explanation(2, 3, (4, 5), (96, 120))


@pytest.fixture
def page(browser, result, tmp_path):
    """The opened page; anything on its console, and any request but the page's own, fails the test."""
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    page, troubles = context.new_page(), []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("data:", "file:")) else troubles.append(request))
    page.goto(result.to_html(tmp_path / "page.html").as_uri())
    page.wait_for_selector("#panel-0 canvas")
    yield page
    context.close()
    assert troubles == []


def value_at(page, x, y):
    """The saliency that the first panel shows under the pointer, at a place in [0, 1]."""
    canvas = page.locator("#panel-0 canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    caption = page.locator("#panel-0 figcaption.value").first.text_content()
    return float(re.search(r"saliency ([\d.]+)", caption).group(1))


def select(page, control, value):
    page.locator(f"#{control}").select_option(value)
    page.wait_for_timeout(100)


def close_to(value, saliency, x, y, steps=65535):
    """Whether it is the saliency of the pixel there, or of a neighbour: the pointer stands between pixels."""
    height, width = saliency.shape
    row, col = int(y * height), int(x * width)
    around = saliency[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
    return float(around.min()) - 1e-3 - 1 / steps <= value <= float(around.max()) + 1e-3 + 1 / steps


POINTS = [(0.1, 0.2), (0.52, 0.47), (0.83, 0.91)]


def test_values_under_the_pointer(page, result):
    saliency = result.saliency()[0]
    for target in range(3):
        page.locator(f"#tab-0-{target}").click()
        page.wait_for_timeout(100)
        for point in POINTS:
            assert close_to(value_at(page, *point), saliency[target], *point), (target, point)


def test_shared_scale(page, result):
    select(page, "scale", "shared")
    saliency = result.saliency(normalize="shared")[0]
    for point in POINTS:
        assert close_to(value_at(page, *point), saliency[0], *point)


def test_layers(page, result):
    page.locator("#layer").fill("2")
    page.wait_for_timeout(100)
    assert page.locator("#layer-name").text_content() == f"layer {result.layers[1]}"
    view = result.view(0)
    saliency = view.saliency(result.layer_relevance[0, 0, 1], None, "map")
    for point in POINTS:
        assert close_to(value_at(page, *point), saliency, *point, steps=255)


def test_tabs_by_keyboard_and_comparison(page, result):
    page.locator("#tab-0-0").focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(100)
    assert page.locator("#tab-0-1").get_attribute("aria-selected") == "true"
    assert page.locator("#panel-0 canvas").count() == 1
    select(page, "compare", "beside")
    assert page.locator("#panel-0 canvas").count() == 3
    select(page, "compare", "minus")
    caption = page.locator("#panel-0 figcaption").first.text_content()
    assert caption == f"{result.labels[0][1]} rather than {result.labels[0][0]}"


def test_views_change_the_pixels(page):
    def pixels():
        return page.evaluate("document.querySelector('#panel-0 canvas').toDataURL()")

    images = set()
    for view in ("overlay", "map", "contour", "original"):
        select(page, "view", view)
        images.add(pixels())
    assert len(images) == 4
    page.locator("#opacity").fill("0.2")
    page.wait_for_timeout(100)
    assert pixels() in images  # the original knows no opacity
    select(page, "view", "overlay")
    assert pixels() not in images


def test_phone_in_the_dark(browser, result, tmp_path):
    context = browser.new_context(viewport={"width": 360, "height": 700}, color_scheme="dark")
    page = context.new_page()
    page.goto(result.to_html(tmp_path / "page.html").as_uri())
    page.wait_for_selector("#panel-0 canvas")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 23, 27)"
    context.close()


def test_gallery(browser, tmp_path):
    many = explanation(130, 2, labels=[[f"thing {index}", "cow"] for index in range(130)])
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    page, troubles = context.new_page(), []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(many.to_html(tmp_path / "page.html").as_uri())
    page.wait_for_selector("#panel-0 canvas")
    assert page.locator("section.image").count() == 100
    page.locator("#more").click()
    assert page.locator("section.image").count() == 130
    assert page.locator("#more").is_hidden()
    page.locator("#search").fill("THING 12")
    assert page.locator("section.image").count() == 11
    assert page.locator("#count").text_content() == "11 of 130 images"
    page.locator("#search").fill("")
    page.locator("#order").select_option("score")
    highest = many.names[int(many.scores.amax(1).argmax())].rpartition("/")[2]
    assert page.locator("section.image h2").first.text_content() == highest
    context.close()
    assert troubles == []
