"""The web page in a real browser, over the real routes."""

import base64
import json
from contextlib import contextmanager

import pytest
from playwright.sync_api import expect

from clipray.index import Index
from clipray.query import Query, Term
from clipray.search import find
from tests.serve.browser import (
    COUNT_BLOBS,
    FAINT,
    GIVE,
    find_browser,
    launched,
    searching,
    visit,
)
from tests.serve.page_server import Faults, PageSearcher, page_server

DESKTOP = {"width": 1280, "height": 860}


@pytest.fixture(scope="module")
def browser():
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium in the PATH, and CLIPRAY_CHROMIUM names none")
    with launched(program) as browser:
        yield browser


@pytest.fixture(scope="module")
def service(browser, flat_index, text_index, encoder):
    faults = Faults()
    roots = {"drawings": [flat_index, text_index], "again": [flat_index]}
    with page_server(PageSearcher(roots, encoder, faults), faults) as url:
        yield url, faults


@pytest.fixture
def faults(service):
    yield service[1]
    service[1].clear()


@pytest.fixture
def page(browser, service, faults):
    with visit(browser, service[0]) as page:
        page.set_viewport_size(DESKTOP)
        yield page


@pytest.fixture
def expected(flat_index, encoder):
    index = Index.open(flat_index)
    return lambda **query: list(find(index, encoder, Query(**query)))


def search(page, words):
    with searching(page):
        page.fill("#box", words)
        page.press("#box", "Enter")


def opened(page, words="a small red ring", more=""):
    with searching(page):
        page.goto(f"{page.url.partition('#')[0]}#q={words.replace(' ', '+')}{more}")


def read(page, selector):
    expect(page.locator(selector)).to_be_visible()
    return page.inner_text(selector)


def captions(page):
    return page.locator(".card .caption").all_inner_texts()


def scores(page):
    return [float(score) for score in page.locator(".card .score").all_inner_texts()]


def chips(page):
    return [" ".join(text.split()) for text in page.locator(".chip").all_inner_texts()]


def told(matches):
    return [match.columns["caption"] for match in matches]


@contextmanager
def asked(page):
    """The body of the search that is sent inside."""
    body = {}
    with searching(page), page.expect_request("**/search") as request:
        yield body
    body.update(request.value.post_data_json)


def add_filter(page, column, operator, value):
    page.select_option("#column", column)
    page.select_option("#operator", operator)
    page.fill("#value", value)
    page.press("#value", "Enter")


def test_words_find_what_the_index_finds_and_where_is_said(page, expected):
    page.wait_for_selector("text=Search 40 images")
    search(page, "a small red ring")
    wanted = expected(text="a small red ring", k=30)
    assert captions(page) == told(wanted)
    assert scores(page) == [pytest.approx(match.score, abs=5e-4) for match in wanted]
    assert page.locator("#index").input_value() == "drawings"
    assert read(page, "#version") == "version 1"
    assert "30 matches · 40 rows searched" in read(page, "#status")


@pytest.mark.parametrize("way", ["pick", "drop", "paste"])
def test_an_image_is_picked_dropped_or_pasted(page, photos, way):
    path = photos / "even/0002.png"
    opened(page)
    with asked(page) as body:
        if way == "pick":
            page.set_input_files("#file", path)
        else:
            data = base64.b64encode(path.read_bytes()).decode()
            page.evaluate(GIVE, [way, data])
    assert base64.b64decode(body["image"]) == path.read_bytes()
    assert captions(page)[0] == "a small blue circle"
    assert chips(page) == [f"Image {'0002.png' if way == 'pick' else 'given.png'} ×"]


def test_more_and_less_like_this(page, expected):
    opened(page)
    first, second = expected(text="a small red ring", k=2)
    with asked(page) as body:
        page.click(".card:nth-child(2) .more")
    assert (body["key"], page.input_value("#box")) == (second.key, "")
    with asked(page) as body:
        page.click(f".card:has-text('{first.columns['caption']}') .less")
    terms = [{"key": second.key}, {"key": first.key, "weight": -0.5}]
    assert body["query"] == terms
    wanted = expected(query=tuple(Term(**term) for term in terms), k=30)
    assert captions(page) == told(wanted)
    assert chips(page) == [f"More like {told([second])[0]} ×", f"Less like {told([first])[0]} ×"]


def test_filters_are_added_combined_and_removed(page):
    opened(page, "a ring")
    page.click("#filter-toggle")
    with searching(page):
        add_filter(page, "caption", "contains", "red")
    with asked(page) as body:
        add_filter(page, "width", "≥", "48")
    at_least = {"$or": [{"width": {"$gte": 48}}, {"width": {"$gte": "48"}}]}
    assert body["filter"] == {"$and": [{"caption": {"$contains": "red"}}, at_least]}
    assert len(captions(page)) == 10
    assert all("red" in caption for caption in captions(page))
    assert chips(page) == ["caption contains red ×", "width ≥ 48 ×"]
    with searching(page):
        page.reload()
    assert len(captions(page)) == 10
    with searching(page):
        page.click("[aria-label='Remove “caption contains red”']")
    assert len(captions(page)) == 30


def test_what_is_typed_as_a_number_compares_as_one(page):
    for operator, value, count in (
        ("=", "48", 30),
        ("≠", "48", 0),
        ("≤", "47.5", 0),
        ("≤", "48", 30),
        ("contains", "4", 0),
    ):
        opened(page, more=f"&where={json.dumps(['width', operator, value])}")
        assert len(captions(page)) == count
    with searching(page):
        page.click("#filters-off")
    assert len(captions(page)) == 30


def test_a_minimum_score_is_kept(page):
    opened(page)
    edge = scores(page)[4] - 0.005
    with searching(page):
        page.fill("#threshold", f"{edge:.2f}")
    assert all(score >= round(edge, 2) for score in scores(page))
    assert 0 < len(captions(page)) < 30
    with searching(page):
        page.fill("#threshold", "1")
    assert page.is_visible("text=Nothing has a score of 1.00 or more.")
    with searching(page):
        page.click("#threshold-off")
    assert len(captions(page)) == 30


def test_another_index_and_texts_can_be_chosen(page):
    conditions = [["caption", "contains", "red"], ["colour", "=", "red"]]
    where = "".join(f"&where={json.dumps(condition)}" for condition in conditions)
    opened(page, more=f"&less=shards/000000000{where}")
    assert "no column colour; there are" in read(page, "#error-message")
    with asked(page) as body:
        page.check("[name=find][value=text]", force=True)
    assert (body["index"], body["modality"]) == ("drawings", "text")
    assert page.locator(".results.texts .card").count() == 10
    with asked(page) as body:
        page.select_option("#index", "again")
    assert (body["index"], body["modality"]) == ("again", "image")
    assert chips(page) == ["caption contains red ×"]  # keys mean nothing there
    assert page.is_hidden("#find-choice")


def test_more_matches_come_while_scrolling(page, expected):
    opened(page)
    assert len(captions(page)) == 30
    with searching(page):
        page.mouse.wheel(0, 5_000)
    assert captions(page) == told(expected(text="a small red ring", k=60))
    assert read(page, "#end") == "No more matches."


def test_the_download_holds_what_is_shown(page, expected):
    opened(page, more="&min=0.1")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "clipray-drawings.json"
    saved = json.loads(download.value.path().read_text())
    wanted = expected(text="a small red ring", k=30, threshold=0.1)
    assert [match["id"] for match in saved["matches"]] == [str(match.id) for match in wanted]
    assert saved["request"]["text"] == "a small red ring"
    assert (saved["version"], saved["degraded"]) == (1, False)


def test_a_search_is_a_link_and_back_goes_back(page):
    opened(page)
    with searching(page):
        page.click(".card:nth-child(3) .less")
    shown, parts = captions(page), chips(page)
    copy = page.context.new_page()
    with searching(copy):
        copy.goto(page.url)
    expect(copy.locator(".chip img")).to_be_visible()
    assert (captions(copy), chips(copy)) == (shown, parts)
    copy.close()
    with searching(page):
        page.go_back()
    assert (chips(page), page.input_value("#box")) == ([], "a small red ring")
    assert captions(page) != shown


def test_a_match_shows_all_that_is_known_of_it(page):
    opened(page)
    page.click(".card:nth-child(2) .picture")
    page.wait_for_selector("dialog[open] dt:text-is('width')")
    terms, facts = (page.locator(f"#facts {tag}").all_inner_texts() for tag in ("dt", "dd"))
    facts = dict(zip(terms, facts, strict=True))
    assert facts["caption"].split("\n")[0] == captions(page)[1]
    assert facts["width"].startswith("48")
    page.wait_for_selector("#original[href^='images/drawings/']")
    with asked(page) as body:
        page.hover("dd:has-text('48')")
        page.click("[aria-label='Only matches with width = 48']")
    assert "width" in str(body["filter"])
    assert page.is_hidden("dialog")


def test_the_keyboard_is_enough(page):
    def at():
        return page.evaluate("[...results.children].indexOf(document.activeElement.closest('li'))")

    opened(page)
    page.press("#box", "ArrowDown")
    places = [at()]
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
        places.append(at())
    assert places == [0, 1, 6, 5, 0]
    page.keyboard.press("i")
    assert read(page, "dialog h2") == captions(page)[0]
    page.keyboard.press("ArrowRight")
    assert read(page, "dialog h2") == captions(page)[1]
    page.keyboard.press("Escape")
    expect(page.locator(".card:nth-child(2) .picture")).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.type("a ring")
    with searching(page):
        page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.wait_for_selector("text=Search 40 images")
    assert page.input_value("#box") == ""


def test_a_key_is_asked_for_used_and_forgotten(page, faults):
    faults.key = "right"
    page.add_init_script(COUNT_BLOBS)
    page.reload()
    expect(page.locator("#gate")).to_contain_text("This service asks for a key")
    assert page.is_hidden(".controls")
    for key, then in (("wrong", "#key-why:text('does not accept this key')"), ("right", "#hint")):
        page.fill("#key-box", key)
        page.press("#key-box", "Enter")
        page.wait_for_selector(then)
    page.reload()  # the key outlives it
    search(page, "a ring")
    expect(page.locator(".card img[src^='blob:']")).to_have_count(30)
    page.evaluate("document.querySelector('.card img').decode()")
    with searching(page):
        page.fill("#threshold", "0.9")
    expect(page.locator(".card img:not([src^='blob:'])")).to_have_count(0)
    count = page.locator(".card").count()
    assert page.evaluate("blobs.size") == count < 30
    page.click("#forget")
    page.wait_for_selector("#gate")
    assert page.evaluate("[blobs.size, sessionStorage.length, results.children.length]") == [0] * 3


def test_a_key_that_is_no_longer_valid_is_asked_for_again(page, faults):
    opened(page)
    faults.key = "new"
    page.press("#box", "Enter")
    page.wait_for_selector("text=This service asks for a key")
    assert captions(page) == []


def test_a_part_that_did_not_answer_is_said(page, faults):
    faults.lost = True
    opened(page)
    assert "Only 1 of 2 shards answered: 20 of 40 rows" in read(page, "#degraded")
    faults.lost = False
    with searching(page):
        page.press("#box", "Enter")
    assert page.is_hidden("#degraded")


@pytest.mark.parametrize(("status", "wait"), [(429, "1"), (503, "7")])
def test_a_busy_service_is_said_and_asked_again(page, faults, status, wait):
    faults.refusals = [(status, wait)]
    opened(page)
    message = read(page, "#error-message")
    assert "too many searches wait (OverloadedError)" in message
    assert f"wait {wait} second" in message
    assert captions(page) == []
    with searching(page):
        page.click("#retry")
    assert len(captions(page)) == 30
    assert page.is_hidden("#error")


def test_a_refused_query_is_said_and_can_be_mended(page):
    opened(page, more=f"&where={json.dumps(['colour', '=', 'red'])}")
    assert "no column colour; there are" in read(page, "#error-message")
    with searching(page):
        page.click(".chip button")
    assert len(captions(page)) == 30


def test_a_service_that_is_gone_is_said(page):
    opened(page)
    page.route("**/search", lambda route: route.abort())
    page.press("#box", "Enter")
    page.wait_for_selector("text=The service cannot be reached.")
    page.unroute("**/search")
    with searching(page):
        page.click("#retry")
    assert len(captions(page)) == 30


def test_a_late_reply_does_not_replace_a_newer_one(page, faults, expected):
    opened(page)
    faults.delay_s = 0.3
    with page.expect_request("**/search"):
        page.fill("#box", "a large blue cross")
        page.press("#box", "Enter")
    search(page, "a large green square")
    page.wait_for_timeout(400)
    assert captions(page) == told(expected(text="a large green square", k=30))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_in_either_scheme(page, faults, scheme):
    page.emulate_media(color_scheme=scheme)
    faults.lost = True
    opened(page, more="&less=shards/000000000")
    page.click("#filter-toggle")
    assert page.evaluate(FAINT) == []
    page.click(".card .open")
    page.wait_for_selector("dt:text-is('width')")
    assert page.evaluate(FAINT) == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(ground[4:].split(",")[0]) < 40) == (scheme == "dark")


def test_a_phone_never_scrolls_sideways(page, faults):
    faults.lost = True
    opened(page, more="&less=shards/000000000")
    page.click("#filter-toggle")
    page.click(".card .picture")
    page.wait_for_selector("dt:text-is('width')")
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("dialog.scrollWidth <= dialog.clientWidth")
        box = page.locator("dialog").bounding_box()
        assert (box["x"] >= 0, box["x"] + box["width"] <= width) == (True, True)
        first, second = (page.locator(".card").nth(at).bounding_box() for at in (0, 1))
        assert first["y"] == second["y"]
