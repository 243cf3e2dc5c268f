"""The page to talk on, as a reader uses it: typed into, answered word by word, stopped, and told of a mistake."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
KEY = "a key"


@pytest.fixture(scope="module")
def address():
    """A server of the real model, with a key."""
    command = [sys.executable, "-m", "llm_serve.cli", "smollm2-135m", "--port", "0"]
    environment = {**os.environ, "LLM_SERVE_API_KEY": KEY}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        assert process.wait(60) == 0


def ask(page, question: str) -> None:
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Send").click()


def test_a_conversation(page, address):
    page.goto(address)
    assert page.locator("#name").inner_text() == "smollm2-135m"
    page.get_by_text("Settings").click()
    page.get_by_label("API key").fill(KEY)
    page.get_by_label("most tokens").fill("40")
    ask(page, "What is the capital of France?")
    answer = page.locator(".assistant").first
    page.wait_for_function("document.querySelector('.assistant')?.textContent.includes('Paris')", timeout=60_000)
    page.wait_for_function("!document.getElementById('send').disabled", timeout=60_000)
    said = answer.inner_text()
    page.get_by_label("most tokens").fill("400")
    ask(page, "Tell me a long story about it.")
    page.wait_for_function("document.querySelectorAll('.assistant')[1]?.textContent.length > 20", timeout=60_000)
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function("!document.getElementById('send').disabled", timeout=10_000)
    stopped = page.locator(".assistant").nth(1).inner_text()
    page.wait_for_timeout(1_000)
    assert page.locator(".assistant").nth(1).inner_text() == stopped and answer.inner_text() == said
    assert page.locator(".error").count() == 0
    if "PICTURES" in os.environ:  # to look at
        page.screenshot(path=os.path.join(os.environ["PICTURES"], "chat.png"))


def test_markup_in_a_question_is_text(page, address):
    page.goto(address)
    page.get_by_text("Settings").click()
    page.get_by_label("API key").fill(KEY)
    page.get_by_label("most tokens").fill("3")
    ask(page, "<img src=x onerror=alert(1)> Hello.")
    page.wait_for_function("document.querySelectorAll('.assistant')[0]?.textContent.length > 0", timeout=60_000)
    assert page.locator("#talk img").count() == 0 and "<img" in page.locator(".user").first.inner_text()
