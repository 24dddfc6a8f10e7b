"""tgdpo inspect --html, and its page in a browser."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from browser import opened
from caches import random_rows, write_cache
from support import Cli, make_tokenizer

HOSTILE = [
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned=1'>",
    "\x1b[31m\x07",
    "\u202egnp.exe\u2066",
    "]]>--><!--",
    "{{ 7 * 7 }}",
    "${alert(1)}",
    "\n\t\r",
    "__proto__",
    "javascript:alert(1)",
    "é😀漢字",
    "\"'`",
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 60 random pairs of a byte-level tokenizer."""
    from tgdpo.stages.inspect.config import InspectConfig
    from tgdpo.stages.inspect.run import inspect

    folder = tmp_path_factory.mktemp("page")
    tokenizer = make_tokenizer(chat=False)
    tokenizer.save_pretrained(folder / "tokenizer")
    cache = write_cache(folder / "cache", random_rows(60), tokenizer, name=str(folder / "tokenizer"))
    inspect(str(cache), InspectConfig(html=str(folder / "page.html")))
    return folder / "page.html"


def text_of(page: Any, selector: str) -> str:
    text: str = page.text_content(selector)
    return text


def test_figures_and_pairs(page_file: Path) -> None:
    with opened(page_file) as page:
        titles = page.locator("figure h3").all_text_contents()
        assert page.locator("figure svg").count() == len(titles) == 8
        assert "Reward by position" in titles
        # Each figure has marks in it.
        for number in range(8):
            assert page.locator("figure").nth(number).locator("svg path[d]").count() > 2
        assert page.locator("#list li").count() == 60
        assert text_of(page, "#drawn") == "All pairs."
        assert page.locator(".response").count() == 2
        assert len(page.screenshot()) > 20_000


def test_f_follows_alpha(page_file: Path) -> None:
    with opened(page_file) as page:
        before, bars = text_of(page, "#f-summary"), page.locator("#f-chart svg").inner_html()
        assert "0.00% below 0" in before
        page.fill("#alpha-number", "30")
        rows = random_rows(60)
        chosen = np.concatenate([row["chosen_rewards"] for row in rows])
        share = (1 + 30 * 0.1 * chosen < 0).mean()
        found = re.search(r"chosen mean ([-\d.]+), ([\d.]+)% below 0", text_of(page, "#f-summary"))
        assert found is not None
        assert float(found[1]) == pytest.approx((1 + 3 * chosen).mean(), abs=0.02)
        assert float(found[2]) / 100 == pytest.approx(share, abs=0.002)
        page.wait_for_timeout(200)
        assert page.locator("#f-chart svg").inner_html() != bars
        assert page.locator(".response span.negative").count() > 0
        page.keyboard.press("Escape")
        page.keyboard.press("]")
        assert page.input_value("#alpha-number") == "30.05"


def test_a_token_shows_its_scores(page_file: Path) -> None:
    row = random_rows(60)[0]
    with opened(page_file) as page:
        page.locator(".response").first.locator("span").nth(1).hover()
        shown = text_of(page, "#tip")
        logp, reward = row["chosen_ref_logps"][1], row["chosen_rewards"][1]
        assert f"2 of {len(row['chosen_ids'])}, id {row['chosen_ids'][1]}" in shown
        assert f"{logp:.3f}" in shown
        assert f"{reward:+.3f}" in shown
        assert f"{logp + reward:.2f}"[:-1] in shown
        assert f"{1 + 0.05 * reward:.3f}" in shown
        page.mouse.move(0, 0)
        assert page.locator("#tip").is_hidden()


def test_search_sort_and_keys(page_file: Path) -> None:
    rows = random_rows(60)
    margins = [sum(row["chosen_rewards"]) - sum(row["rejected_rewards"]) for row in rows]
    with opened(page_file) as page:
        page.select_option("#sort", "wrong")
        assert text_of(page, "#pair h3").startswith(f"pair {int(np.argmin(margins))},")
        assert text_of(page, "#list li:first-child b") == f"pair {int(np.argmin(margins))}"
        page.select_option("#filter", "right")
        assert page.locator("#list li").count() == sum(margin > 0 for margin in margins)
        page.select_option("#filter", "all")
        page.select_option("#sort", "number")
        page.keyboard.press("/")
        page.keyboard.type("prompt 17")
        assert text_of(page, "#found") == "1 pairs"
        assert text_of(page, "#pair h3").startswith("pair 17,")
        page.fill("#search", "")
        page.locator("#list li").first.click()
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("k")
        assert text_of(page, "#pair h3").startswith("pair 1,")
        page.keyboard.press("ArrowRight")
        assert "1 of" in text_of(page, "#tip")
        page.fill("#search", "no pair says this")
        assert "No pair" in text_of(page, "#pair")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(page_file: Path, scheme: str) -> None:
    def brightness(page: Any) -> int:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    with opened(page_file, color_scheme=scheme) as page:
        assert (brightness(page) > 380) == (scheme == "light")
        page.keyboard.press("t")
        assert (brightness(page) > 380) == (scheme == "dark")
        assert page.locator("figure svg").count() == 8


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A cache whose every text is an attack, and whose tokens are too."""
    words = {word: number for number, word in enumerate(["<unk>", *HOSTILE])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    (tmp_path / "tokenizer").mkdir()
    backend.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    rows = random_rows(30, vocabulary=len(words))
    for number, row in enumerate(rows):
        row |= {"prompt": "".join(HOSTILE), "pair_id": HOSTILE[number % 6] + str(number)}
    cache = write_cache(tmp_path / "<b>cache<script>alert(1)", rows, backend, name=str(tmp_path / "tokenizer"))
    manifest = cache / "_manifest.json"
    manifest.write_text(manifest.read_text().replace('"made"', '"<script>window.pwned = 1</script>"'))
    return cache


def test_texts_of_the_data_stay_texts(ok: Cli, hostile: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    ok("inspect", hostile, "--html", path)
    text = path.read_text()
    assert all(c.isprintable() or c in "\n\t" for c in text.replace("\N{ZERO WIDTH NO-BREAK SPACE}", ""))
    with opened(path) as page:
        assert page.evaluate("window.pwned === undefined")
        assert page.locator("main script, main img, main b b, h1 *").count() == 0
        assert "<script>window.pwned = 1</script>" in text_of(page, "#facts")
        responses = "".join(page.locator(".response").all_text_contents())
        assert "\x1b" not in responses
        assert "\u202e" not in text_of(page, "body")
        page.locator(".response span").first.hover()
        page.locator("#liked svg path[aria-roledescription=bar]").first.hover()
        page.wait_for_selector("#vg-tooltip-element.visible")
        assert page.evaluate("window.pwned === undefined")


def test_texts_of_the_data_do_not_control_the_terminal(ok: Cli, hostile: Path) -> None:
    for options in ((), ("--sort", "extreme", "--limit", 5), ("--json", "--limit", 3)):
        shown = ok("inspect", hostile, *options).stdout
        assert all(c.isprintable() or c == "\n" for c in shown)


def test_pairs_without_a_tokenizer(ok: Cli, hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    result = ok("inspect", hostile, "--html", tmp_path / "page.html")
    assert "shown by their ids" in result.stderr
    with opened(tmp_path / "page.html") as page:
        assert text_of(page, ".response").startswith(f"<{random_rows(30, vocabulary=13)[0]['chosen_ids'][0]}>")


def test_without_guidance(ok: Cli, models: Any, pairs_file: Path, tmp_path: Path) -> None:
    ok("score", "--dataset", pairs_file, "--reference", models.reference, "--output", tmp_path / "refs")
    ok("inspect", tmp_path / "refs", "--html", tmp_path / "page.html")
    with opened(tmp_path / "page.html") as page:
        assert page.locator("figure:visible").count() == 0
        assert page.locator("#list li").count() == 20
        assert "scored without guidance" in text_of(page, "#sample")


def test_limit_and_sort_choose_the_pairs_of_the_page(ok: Cli, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(chat=False)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    cache = write_cache(tmp_path / "cache", random_rows(100), tokenizer, name=str(tmp_path / "tokenizer"))
    shown = ok("inspect", cache, "--html", tmp_path / "page.html", "--sort", "margin", "--limit", 7).stdout
    assert shown.startswith(f"{tmp_path / 'page.html'}: 7 pairs, ")
    with opened(tmp_path / "page.html") as page:
        assert text_of(page, "#drawn") == "7 of 100 pairs: 7 with the largest margin."
    result = ok("inspect", cache, "--html", tmp_path / "page.html", "--pair", 7, "--pair", 3, "--json")
    assert [pair["number"] for pair in json.loads(result.stdout)["pairs"]] == [7, 3]
    assert "page.html: 2 pairs" in result.stderr
    with opened(tmp_path / "page.html") as page:
        assert page.locator("#list b").all_text_contents() == ["pair 3", "pair 7"]


def test_two_guides_on_one_page(ok: Cli, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(chat=False)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = random_rows(100)
    swapped = [row | {"chosen_rewards": [-r for r in row["chosen_rewards"]]} for row in rows]
    name = str(tmp_path / "tokenizer")
    ours, theirs = (
        write_cache(tmp_path / folder, each, tokenizer, name=name) for folder, each in (("a", rows), ("b", swapped))
    )
    shown = ok("inspect", ours, "--compare", theirs).stdout
    assert "both guides prefer the same response in" in shown
    assert "tokens whose mean rewards differ most" in shown
    found = json.loads(ok("inspect", ours, "--compare", theirs, "--json").stdout)["comparison"]
    assert found["pairs"] == 100
    assert ok("inspect", ours, "--json").stdout.count('"comparison": null') == 1
    ok("inspect", ours, "--compare", theirs, "--html", tmp_path / "page.html")
    with opened(tmp_path / "page.html") as page:
        assert f"{found['agreement']:.1%}" in text_of(page, "#comparison")
        assert page.locator("#both-margins svg path").count() > 50
        assert page.locator("#both-tokens svg path").count() > 20
