"""The live page while things happen: runs start and grow, the collector goes and comes back, asks for a token."""

import time

import pytest
from playwright.sync_api import expect

from learnmech.collector.judging import Judge

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

TOKEN = "a-token-for-the-tests-0123456789"
EDGE = "#law-edge_of_stability .plot canvas"


def test_page_is_live(collectors, synthetic, visit) -> None:
    """An empty store, a run that starts, grows and ends: all of it without a reload."""
    s = synthetic
    url, store, _ = collectors.start(name="growing")
    seen = visit(url)
    expect(seen.page.locator(".welcome")).to_contain_text("No runs yet")
    expect(seen.page.locator(".welcome")).to_contain_text(f'"{url}"')
    run = s.info("grows", s.SGD, created=time.time(), seed="grows")
    batches = list(s.descent(run, steps=1000))
    judge = Judge(store)

    def send(index: int) -> None:
        store.ingest(batches[index])
        judge.judge(run.id)

    send(0)
    expect(seen.page.locator("h1")).to_contain_text("grows")
    expect(seen.page.locator(".run .status")).to_have_text("running")
    expect(seen.page.locator("#law-edge_of_stability .readings .badge")).to_be_visible()
    seen.drawn()
    before, asked = seen.image(EDGE), len(seen.addresses)
    with seen.page.expect_request(lambda request: "/residuals" in request.url and "after_step" in request.url):
        send(1)  # other plots that come late redraw this one too: a new picture alone would not show that it grew
    expect(seen.page.locator(".run .progress")).to_contain_text("step 790")
    seen.page.wait_for_function("([s, old]) => document.querySelector(s).toDataURL() !== old", arg=[EDGE, before])
    deltas = [address for address in seen.addresses[asked:] if "/residuals" in address]
    assert deltas
    assert all("after_step=390" in address for address in deltas), "only what is new is fetched"
    send(2)
    expect(seen.page.locator(".run .status")).to_have_text("finished")

    another = list(s.descent(s.info("second", s.SGD, created=time.time() + 1, seed="second"), steps=300))
    store.ingest(another[0])
    notice = seen.page.locator(".notice")
    expect(notice).to_contain_text("New run second")
    expect(seen.page.locator("h1")).to_contain_text("grows")
    notice.get_by_role("button", name="lay it over").click()
    expect(seen.page.locator(".verdicts tbody tr")).to_have_count(2)


def test_page_comes_back_after_the_collector_does(collectors, runs, synthetic, visit) -> None:
    url, store, service = collectors.start(filled=[runs["other"]], name="comes-back")
    page = visit(url).page
    expect(page.locator(".connection")).to_have_text("live")
    service.stop()
    expect(page.locator(".connection")).to_contain_text("connection lost")
    s = synthetic
    store.ingest(next(s.descent(s.info("meanwhile", s.SGD, created=time.time(), seed="meanwhile"), steps=100)))
    collectors.start(name="comes-back", port=int(url.rsplit(":", 1)[1]))
    expect(page.locator(".connection")).to_have_text("live")
    expect(page.locator(".run")).to_have_count(2)


def test_page_asks_for_the_token_until_it_is_right(collectors, runs, visit) -> None:
    url, _, _ = collectors.start(filled=[runs["other"]], name="guarded", token=TOKEN)
    page = visit(url).page
    dialog = page.locator("dialog")
    expect(dialog).to_contain_text("asks for a token")
    dialog.locator("input").fill("wrong")
    dialog.get_by_role("button").click()
    expect(dialog).to_contain_text("refused")
    dialog.locator("input").fill(TOKEN)
    dialog.get_by_role("button").click()
    expect(page.locator(".run")).to_have_count(1)
    expect(page.locator(".connection")).to_have_text("live")
    assert page.evaluate("sessionStorage.getItem('learnmech.token')") == TOKEN
    assert TOKEN not in page.url
    page.reload()
    expect(page.locator(".run")).to_have_count(1)
    expect(dialog).to_have_count(0)


def test_a_hundred_runs(collectors, synthetic, visit) -> None:
    s = synthetic
    url, store, _ = collectors.start(name="hundred")
    for n in range(100):
        store.ingest(next(s.descent(s.info(f"sweep-{n:03d}", s.SGD, created=s.T0 + n), steps=0, end=None)))
    page = visit(f"{url}/#run={','.join(run.id for run in store.runs()[:7])}").page
    expect(page.locator(".run")).to_have_count(100)
    expect(page.locator(".verdicts tbody tr")).to_have_count(7)
    boxes = page.locator(".run:not(.chosen) input")
    boxes.first.check()
    expect(page.locator(".verdicts tbody tr")).to_have_count(8)
    boxes.first.click()
    expect(page.locator(".notice")).to_contain_text("8 runs fit in one picture")
    expect(boxes.first).not_to_be_checked()
    page.get_by_role("searchbox", name="Filter runs").fill("sweep-04")
    expect(page.locator(".run")).to_have_count(10)
