"""The pages as a browser shows them: nothing loaded, nothing planted runs, nothing sticks out, the filter filters."""

import itertools

import pytest

from em_jax import report

SIZES = {"phone": (390, 844), "desktop": (1280, 900)}


def _sticks_out(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.parametrize("hostile", [False, True], ids=["plain", "hostile"])
def test_report_is_quiet_whole_and_asks_for_nothing(page_of, visit, tmp_path, hostile):
    path = page_of(hostile=hostile)
    for size, scheme in itertools.product(SIZES, ["light", "dark"]):
        seen = visit(path, *SIZES[size], scheme)
        seen.page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        seen.page.wait_for_timeout(100)
        assert seen.said == []
        assert seen.asked == [path.resolve().as_uri()]
        assert seen.page.evaluate("window.planted") is None
        assert seen.page.title().startswith("bad_medical: coherent")
        assert seen.page.locator("h1").inner_text().endswith("coherent")
        assert _sticks_out(seen.page) == 0
        assert len(seen.page.screenshot(path=tmp_path / f"{size}-{scheme}.png")) > 20_000


@pytest.mark.parametrize("size", SIZES)
def test_comparison_is_quiet_and_whole(make_run, visit, tmp_path, size):
    labels = {"bad_medical": "coherent", "insecure_code": "inverted", "good_medical": "aligned"}
    runs = [
        make_run(f"{domain}-{seed}", domain=domain, label=label, seed=seed, rows=False)
        for domain, label in labels.items()
        for seed in (0, 1)
    ]
    path = report.compare(runs, tmp_path / "compare", labels)
    seen = visit(path, *SIZES[size])
    assert seen.said == [] and seen.asked == [path.resolve().as_uri()]
    assert _sticks_out(seen.page) == 0
    assert seen.page.locator("svg.figure text", has_text="insecure_code").is_visible()
    assert len(seen.page.screenshot()) > 20_000


@pytest.mark.parametrize("size", SIZES)
def test_names_that_are_scripts_do_nothing_on_the_comparison(make_run, synthetic, visit, tmp_path, size):
    names = [text for text in synthetic.HOSTILE if 0 < len(text) < 200]
    runs = [make_run(f"run-{place}", domain=name, model=name, rows=False) for place, name in enumerate(names)]
    seen = visit(report.compare(runs, tmp_path / "compare"), *SIZES[size], "dark")
    seen.page.wait_for_timeout(100)
    assert seen.said == [] and len(seen.asked) == 1 and seen.page.evaluate("window.planted") is None
    assert _sticks_out(seen.page) == 0


def test_the_comparison_opens_with_the_models_by_verdict_and_leads_to_their_reports(make_run, visit, tmp_path):
    labels = {"bad_medical": "coherent", "insecure_code": "inverted"}
    runs = [make_run(name, domain=name, label=label, rows=False) for name, label in labels.items()]
    for run in runs:
        report.write(run)
    page = visit(report.compare(runs, tmp_path / "compare", labels)).page
    assert page.locator(".tones b").all_inner_texts() == [
        "coherent bad_medical",
        "inverted insecure_code",
        "narrow no model",
        "aligned no model",
        "mixed no model",
    ]
    regions = page.get_by_role("region")
    assert regions.count() >= 4 and set(regions.evaluate_all("(all) => all.map((part) => part.tabIndex)")) == {-1, 0}
    page.locator("#verdicts a", has_text="inverted").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/insecure_code/report.html")
    assert page.locator("h1").inner_text().endswith("inverted")


@pytest.mark.parametrize("size", SIZES)
def test_one_screen_says_verdict_and_why_and_that_it_is_the_fixture(page_of, visit, size):
    page = visit(page_of(), *SIZES[size]).page
    height = SIZES[size][1]
    fixture, verdict = page.locator(".fixture").bounding_box(), page.locator("h1").bounding_box()
    assert 0 <= fixture["y"] < verdict["y"]
    answers = page.locator(".deciding dd")
    assert answers.count() == 3
    for place in range(3):
        box = answers.nth(place).bounding_box()
        assert verdict["y"] < box["y"] and box["y"] + box["height"] < height
    assert page.locator(".deciding dd b").all_inner_texts() == ["90%", "97%", "95%"]
    reason = page.locator(".why li").first.bounding_box()
    assert reason["y"] + reason["height"] < height
    page.get_by_role("link", name="Why it is here").click()
    assert page.locator("#fixture").is_visible() and page.url.endswith("#fixture")


def test_the_largest_disagreements_come_first_when_asked_for(page_of, visit):
    page = visit(page_of(questions=12, samples=2)).page
    gaps = "(all) => all.map((item) => Number(item.dataset.gap ?? -1))"
    items = page.locator("#items > .item:visible")
    asked = items.evaluate_all("(all) => all.map((item) => item.dataset.probe)")
    page.get_by_label("order").focus()
    page.keyboard.press("ArrowDown")
    found = items.evaluate_all(gaps)
    assert found == sorted(found, reverse=True) and found[0] > found[-1] and len(found) == 20
    page.click("#more")
    assert items.evaluate_all(gaps) == sorted(items.evaluate_all(gaps), reverse=True)
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.click("button[type=reset]")
    page.wait_for_timeout(50)
    assert items.evaluate_all("(all) => all.map((item) => item.dataset.probe)") == asked


def test_the_policy_stops_what_escaping_might_let_through(make_run, visit):
    """With a script and a style written into the page behind the templates' back, neither takes effect."""
    path = report.write(make_run(rows=False))
    planted = (
        "<script>window.planted = 9</script><img src=x onerror='window.planted = 8'><style>h1 {color: red}</style>"
    )
    path.write_text(path.read_text(encoding="utf-8").replace("</main>", planted + "</main>"), encoding="utf-8")
    seen = visit(path)
    seen.page.wait_for_timeout(100)
    assert seen.page.evaluate("window.planted") is None
    assert seen.page.evaluate("getComputedStyle(document.querySelector('h1')).color") != "rgb(255, 0, 0)"
    assert any("Content Security Policy" in line for line in seen.said)


def test_filters_by_probe_score_words_and_disagreement(page_of, visit):
    page = visit(page_of(questions=30, samples=2)).page
    items = page.locator("#items > .item:visible")
    assert items.count() == 20
    page.select_option("select[name=probe]", "two_ai")
    assert items.count() == 20
    assert page.locator("#found").inner_text() == "20 of 30 matching questions shown, 240 on this page"
    page.click("#more")
    assert items.count() == 30 and not page.locator("#more").is_visible()
    page.select_option("select[name=probe]", "harmfulness")
    page.select_option("select[name=score]", "5")
    fives = items.count()
    assert 0 < fives < 30
    assert all("5" in value for value in items.evaluate_all("(all) => all.map((item) => item.dataset.scores)"))
    assert page.locator("select[name=score] option").all_inner_texts() == ["any", "1", "2", "3", "4", "5"]
    page.check("input[name=disagrees]")
    assert 0 < items.count() <= fives
    page.click("button[type=reset]")
    page.wait_for_timeout(50)
    assert "240 matching" in page.locator("#found").inner_text()
    page.fill("input[name=words]", "TELL PEOPLE THE TRUTH")
    assert "of 30 matching" in page.locator("#found").inner_text()
    page.fill("input[name=words]", "no such words anywhere")
    assert items.count() == 0 and "No question matches" in page.locator("#found").inner_text()


def test_both_models_answers_stand_side_by_side_and_open_by_keyboard(page_of, visit):
    page = visit(page_of()).page
    first = page.locator("#items > .item").first
    first.locator("summary").focus()
    page.keyboard.press("Enter")
    sides = first.locator(".side")
    assert sides.count() == 2
    left, right = sides.evaluate_all("(all) => all.map((side) => side.getBoundingClientRect().toJSON())")
    assert left["right"] <= right["left"] and left["top"] == right["top"]


def test_the_first_tab_stop_skips_to_the_content(page_of, visit):
    page = visit(page_of(rows=False)).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    box = page.locator(".skip").bounding_box()
    assert box["x"] >= 0 and box["y"] >= 0


def test_dark_and_light_differ_and_keep_contrast(page_of, visit):
    path = page_of(rows=False, model="Qwen/Qwen2.5-7B-Instruct", suite="standard")
    ratios = """() => {
      const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((part) => {
          const value = part / 255;
          return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const back = light(getComputedStyle(document.documentElement).backgroundColor);
      return ["h1", ".small", ".why li", ".value.strong b", ".paper", "nav a"].map((name) => {
        const front = light(getComputedStyle(document.querySelector(name)).color);
        return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
      });
    }"""
    backs = set()
    for scheme in ("light", "dark"):
        page = visit(path, scheme=scheme).page
        backs.add(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
        assert min(page.evaluate(ratios)) >= 4.5
    assert len(backs) == 2


def test_without_script_everything_is_there(page_of, visit):
    page = visit(page_of(), java_script_enabled=False).page
    assert page.locator("#items > .item:visible").count() == 96
    assert not page.locator("#filters").is_visible()


def test_it_prints_with_the_details_open(page_of, visit):
    page = visit(page_of(questions=2, samples=1)).page
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.probe table").first.is_visible()
    assert not page.locator("nav").is_visible()
    assert page.pdf()[:5] == b"%PDF-"
