"""The report page in a headless Chromium: no errors, nothing fetched, nothing wider than the screen, clicks work."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_chromium
from report_run import CLASSES, MEMBERS, make_run
from test_report import write

LAPTOP, PHONE = (1280, 860), (390, 844)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium found: install the package chromium to test the page")
    browser = Browser(program)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write(make_run(folder), folder / "report")
    return folder / "report" / "report.html"


@pytest.fixture
def laptop(browser: Browser, page: Path) -> Iterator[Browser]:
    browser.open(page, *LAPTOP)
    yield browser
    assert browser.problems == []


def text(browser: Browser, selector: str) -> str:
    return browser.run(f"document.querySelector({selector!r}).textContent")


def painted(browser: Browser, selector: str) -> str:
    """A canvas's picture, to tell whether it has changed."""
    return browser.run(f"document.querySelector({selector!r}).toDataURL()")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["laptop", "phone"])
def test_page_opens_without_errors_and_fits_the_screen(browser: Browser, page: Path, phone: bool, dark: bool) -> None:
    width, height = PHONE if phone else LAPTOP
    browser.open(page, width, height, dark=dark, phone=phone)
    assert browser.problems == []
    assert browser.run("document.documentElement.scrollWidth") == width
    spilled = browser.run(
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, svg') &&"
        " e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert spilled == []
    red, green, blue = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (red + green + blue < 150) == dark


def test_theme_button_repaints_page_and_figures(laptop: Browser) -> None:
    ink = "getComputedStyle(document.querySelector('.drawing svg text')).fill"
    before = laptop.run(ink), painted(laptop, "#matrix"), painted(laptop, "#actor-left")
    laptop.click("#theme")
    assert laptop.run("document.documentElement.dataset.theme") == "dark"
    after = laptop.run(ink), painted(laptop, "#matrix"), painted(laptop, "#actor-left")
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_overview_sorts_by_a_clicked_column(laptop: Browser) -> None:
    names = "[...document.querySelectorAll('#overview-table tbody th')].map((e) => e.textContent)"
    assert laptop.run(names) == [*(member.split("-")[1] for member in MEMBERS), "two", "six"]
    laptop.click("#overview-table thead th:nth-child(3)")
    assert laptop.run(names)[0] == "six"
    laptop.click("#overview-table thead th:nth-child(3)")
    assert laptop.run(names)[-1] == "six"


def test_skeletons_play_scrub_and_turn(laptop: Browser) -> None:
    state = "sixstream.stage.state()"
    still = painted(laptop, "#actor-left")
    laptop.click("#play")
    laptop.wait(f"{state}.clock > 0.3")
    assert text(laptop, "#play") == "Pause"
    assert painted(laptop, "#actor-left") != still
    laptop.click("#scrub", dx=0.5)
    assert laptop.run(state)["playing"] is False
    assert 400 < laptop.run("Number(document.querySelector('#scrub').value)") < 600
    halfway = painted(laptop, "#actor-left")
    laptop.click("#trails")
    assert painted(laptop, "#actor-left") != halfway
    laptop.drag("#actor-left", 60, 0)
    assert abs(laptop.run(state)["yaw"]) > 0.1
    laptop.click("#front")
    assert laptop.run(state)["yaw"] == 0
    laptop.choose("#speed", "2")


def test_a_confused_pair_shows_a_mistaken_and_a_recognised_clip(laptop: Browser) -> None:
    laptop.click("#pairs button:nth-child(2)")
    assert laptop.run("document.querySelector('#pairs button:nth-child(2)').getAttribute('aria-pressed')") == "true"
    first, second = text(laptop, "#pairs button:nth-child(2)").split(" / ")
    assert text(laptop, "#caption-left").startswith(f"{first}, taken for")
    assert ", recognised" in text(laptop, "#caption-right")
    assert second.startswith(text(laptop, "#caption-right").split(",")[0])
    options = "document.querySelector('#clip-left').options"
    assert laptop.run(f"{options}.length") >= 2
    laptop.choose("#clip-left", laptop.run(f"{options}[1].value"))
    assert text(laptop, "#caption-left").startswith(first)


def test_every_pair_stands_beside_a_recognised_clip(laptop: Browser) -> None:
    pairs = laptop.run("document.querySelectorAll('#pairs button').length")
    right = laptop.run("sixstream.data.clips.filter((clip) => clip.label === clip.predicted).map((clip) => clip.label)")
    for number in range(1, pairs + 1):
        b = int(laptop.run(f"document.querySelector('#pairs button:nth-child({number})').dataset.b"))
        laptop.run(f"document.querySelector('#pairs button:nth-child({number})').click()")
        assert (", recognised" in text(laptop, "#caption-right")) == (b in right)


def test_changes_and_difficulty_are_drawn_against_the_baseline(laptop: Browser) -> None:
    assert laptop.run("document.querySelector('#class-base').selectedOptions[0].text") == "joint"
    headings = laptop.run("[...document.querySelectorAll('#classes h3')].map((e) => e.textContent)")
    assert headings == ["Gained and lost against joint", "By difficulty"]
    assert laptop.run("document.querySelectorAll('#classes figure svg').length") == 2
    assert laptop.run("document.querySelectorAll('#difficulty tbody tr').length") == 4


def test_both_persons_of_an_interaction_are_drawn(laptop: Browser) -> None:
    shake = CLASSES.index("hand shake")
    persons = laptop.run(f"sixstream.data.clips.find((clip) => clip.label === {shake}).persons")
    assert persons == 2
    laptop.run(f"sixstream.stage.compare({shake}, {CLASSES.index('wave')})")
    assert text(laptop, "#caption-left").startswith("hand shake")


def test_a_cell_of_the_matrix_shows_its_two_classes(laptop: Browser) -> None:
    laptop.run("document.querySelector('#matrix').focus()")
    for name in ["ArrowDown"] * 5 + ["ArrowRight"] * 5:  # the first key only enters the matrix
        laptop.key(name)
    assert text(laptop, "#matrix-text").startswith("writing taken for typing on a keyboard: ")
    laptop.key("Enter")
    assert text(laptop, "#caption-left").startswith("writing")
    assert text(laptop, "#caption-right").startswith("typing on a keyboard")


def test_the_matrix_answers_to_mouse_zoom_and_order(laptop: Browser) -> None:
    laptop.click("#matrix", dx=0.97, dy=0.97)
    assert text(laptop, "#matrix-text").startswith("push: ")
    assert text(laptop, "#caption-left").startswith("push")
    laptop.click("#matrix-in")
    laptop.click("#matrix-in")
    assert laptop.run("sixstream.matrix.state().zoom") == pytest.approx(2.25)
    before = laptop.run("sixstream.matrix.state()")
    laptop.drag("#matrix", -80, -60)
    after = laptop.run("sixstream.matrix.state()")
    assert after["x"] > before["x"] and after["y"] > before["y"]
    laptop.click("#matrix-fit")
    assert laptop.run("sixstream.matrix.state().zoom") == 1
    plain = painted(laptop, "#matrix")
    for order in ("accuracy", "similar"):
        laptop.choose("#matrix-sort", order)
        assert sorted(laptop.run("sixstream.matrix.state().order")) == list(range(len(CLASSES)))
    laptop.choose("#matrix-show", "errors")
    assert painted(laptop, "#matrix") != plain
    laptop.choose("#matrix-row", "0")
    assert laptop.run("document.querySelectorAll('#matrix-errors li').length") > 3
    laptop.click("#matrix-errors button")
    assert " taken for " in text(laptop, "#matrix-text")


def test_classes_are_found_sorted_and_compared(laptop: Browser) -> None:
    rows = "[...document.querySelectorAll('#class-table tbody th')].map((e) => e.textContent)"
    assert sorted(laptop.run(rows)) == sorted(CLASSES)
    laptop.choose("#class-sort", "name")
    assert laptop.run(rows) == sorted(CLASSES)
    laptop.run(
        "(() => { const e = document.querySelector('#class-find'); e.value = 'HAND';"
        "e.dispatchEvent(new Event('input')); })()"
    )
    assert laptop.run(rows) == ["hand shake", "rub hands"]
    laptop.click("#class-table tbody button")
    assert text(laptop, "#caption-left").startswith("hand shake")
    laptop.choose("#class-base", "")
    assert text(laptop, "#class-table tbody tr td:nth-child(4)") == "–"
    laptop.choose("#class-base", laptop.run("document.querySelector('#class-row').value"))
    laptop.click("#class-moved")
    assert laptop.run(rows) == []  # nothing differs from itself


def test_fingers_choose_cells_and_turn_skeletons(browser: Browser, page: Path) -> None:
    browser.open(page, *PHONE, phone=True)
    browser.swipe("#matrix", 0, 0, dx=0.97, dy=0.97)
    assert text(browser, "#matrix-text").startswith("push: ")
    assert text(browser, "#caption-left").startswith("push")
    browser.swipe("#actor-right", 60, 0)
    assert browser.run("sixstream.stage.state().yaw") > 0.3
    assert browser.problems == []
