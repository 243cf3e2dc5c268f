"""The reader's own door: JupyterLab in a browser, a lesson run from its menu, an exercise typed, a report followed.

`uv run --group browser pytest -m browser -n 0 tests/browser`; it wants Debian's chromium, or Google Chrome.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

ROOT = Path(__file__).parents[2]
LESSON = Path("week1-attention/notebooks/1_Scaled Dot-Product Attention.ipynb")
EXERCISES = Path("week1-attention/exercises/1_Scaled Dot-Product Attention.ipynb")
SOLUTIONS = Path("week1-attention/solutions/1_Scaled Dot-Product Attention.ipynb")
pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files: what is run and typed here must not change the checkout."""
    folder = tmp_path_factory.mktemp("course")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def lab(course: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab on a free port; gives the address of a notebook as a pattern."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, home = secrets.token_hex(16), tmp_path_factory.mktemp("home")
    options = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--allow-root"]
    news = "--LabApp.news_url="  # the news of JupyterLab lie on another host
    environment = {**os.environ, "JUPYTER_TOKEN": token, "HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config")}
    environment["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    announcements = home / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    announcements.parent.mkdir(parents=True)
    announcements.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    log = (home / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options, news], cwd=course, env=environment, stdout=log, stderr=log
    )  # fmt: skip
    try:
        for _ in range(240):
            assert server.poll() is None, (home / "log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((home / "log").read_text())
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?reset&token={token}"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def open_notebook(page, lab: str, path: Path) -> None:
    page.goto(lab.format(quote(path.as_posix())))
    page.locator(".jp-NotebookPanel:visible .jp-CodeCell").first.wait_for(timeout=120_000)
    # Before its kernel is there, JupyterLab answers "run" with a question.
    page.locator(".jp-NotebookPanel:visible .jp-Toolbar-kernelName", has_text="Python 3").wait_for(timeout=60_000)
    page.locator(".jp-NotebookPanel:visible .jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=60_000)


def saved(page, path: Path, is_done) -> list[dict]:
    """The code cells of the file, once it is saved and `is_done` is true of them."""
    cells: list[dict] = []
    for _ in range(300):
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
        if is_done(cells):
            return cells
    raise AssertionError(f"{path.name} is not done after 300 s: {[cell['execution_count'] for cell in cells]}")


def printed(cell: dict) -> str:
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def test_a_lesson_runs_from_the_menu(page, lab, course):
    path = course / LESSON
    notebook = json.loads(path.read_text("utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    path.write_text(json.dumps(notebook), "utf-8")
    open_notebook(page, lab, LESSON)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    cells = saved(page, path, lambda cells: all(cell["execution_count"] for cell in cells))
    failed = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert failed == []
    lines = [line for cell in cells for line in printed(cell).splitlines()]
    committed = json.loads((ROOT / LESSON).read_text("utf-8"))["cells"]
    claims = [line for cell in committed for line in printed({"outputs": [], **cell}).splitlines()]
    count = {kind: sum(line.startswith(f"{kind} ") for line in lines) for kind in ("holds", "FAILS")}
    assert count["FAILS"] == 0
    assert count["holds"] == sum(line.startswith("holds ") for line in claims) > 20
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    # What stands on the page is what the file says: the last line that the last printing cell printed.
    last = next(cell for cell in reversed(cells) if printed(cell))
    page.keyboard.press("Escape")
    page.keyboard.press("Control+End")
    shown = page.locator(".jp-OutputArea-output", has_text=printed(last).strip().splitlines()[-1]).last
    shown.scroll_into_view_if_needed()
    assert shown.is_visible()


def test_an_exercise_is_solved_by_typing(page, lab, course):
    solution = json.loads((ROOT / SOLUTIONS).read_text("utf-8"))["cells"]
    answer = next("".join(cell["source"]) for cell in solution if "BEGIN SOLUTION" in "".join(cell["source"]))
    name = answer.split("(")[0]
    open_notebook(page, lab, EXERCISES)

    def run(text: str) -> None:
        page.locator(".jp-CodeCell", has_text=text).first.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")

    def is_run(start: str):
        return lambda cells: any(start in "".join(cell["source"]) and cell["execution_count"] for cell in cells)

    def outputs(cells: list[dict], start: str) -> list[dict]:
        return next(cell["outputs"] for cell in cells if start in "".join(cell["source"]))

    run("from course import check")
    run("import torch.nn.functional")
    stub, proof = f"{name}(", f"= {name.removeprefix('def ')}("
    run(stub)
    run(proof)
    path = course / EXERCISES
    before = outputs(saved(page, path, is_run(proof)), proof)
    assert before[-1]["ename"] == "NotImplementedError", before

    page.locator(".jp-CodeCell", has_text=stub).first.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    for line in answer.splitlines():
        page.keyboard.press("Shift+Home")  # over what the editor indented by itself
        page.keyboard.type(line)
        page.keyboard.press("Enter")
    page.keyboard.press("Shift+Enter")
    page.wait_for_timeout(500)
    run(proof)

    def is_solved(cells: list[dict]) -> bool:
        after = outputs(cells, proof)
        return bool(after) and all(output["output_type"] == "stream" for output in after)

    lines = printed({"outputs": outputs(saved(page, path, is_solved), proof)}).splitlines()
    assert len(lines) == 3 and all(line.startswith("holds ") for line in lines), lines
    assert page.locator(".jp-OutputArea-output", has_text="did you subtract the maximum before exp").last.is_visible()


def test_a_report_and_its_links(page, tmp_path):
    folder = tmp_path / "report"
    command = [sys.executable, "-m", "course", "run", str(ROOT / LESSON), "--output", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    start = (folder / "index.html").as_uri()
    page.goto(start)
    assert page.get_by_text(LESSON.stem.split("_")[1]).first.is_visible()
    links = page.locator("a[href]").evaluate_all("links => links.map(link => link.href)")
    own = sorted({link.split("#")[0] for link in links if link.startswith("file:")} - {start})
    assert any(link.endswith(".html") for link in own)
    for link in own:
        if link.endswith(".html"):
            page.goto(link)
            assert page.locator("body").inner_text().strip(), link
        else:
            assert Path(urllib.request.url2pathname(urlsplit(link).path)).is_file(), link
    pictures = page.locator("img")
    assert all(pictures.nth(i).evaluate("image => image.naturalWidth") for i in range(pictures.count()))
