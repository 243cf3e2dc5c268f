"""`course run`: notebooks in order or side by side, with a report and a state that survives Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from course import claims
from course.author import exercises
from course.engine.execute import environment, execute
from course.errors import NotebookError, one_line, traceback_wanted
from course.files import write_text
from course.notebook.format import Notebook, code_sha256, read, write
from course.plan import timings
from course.plan.curriculum import Curriculum
from course.run import history, report
from course.run.display import Display, Running
from course.run.output import files
from course.terminal import INTERRUPTED, TERMINATED

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Options:
    """What one call of `course run` asks for.

    Attributes:
        notebooks: to run, relative to the root, in order.
        output: the folder for executed copies, pages, claims and state.
        jobs: notebooks at a time.
        timeout: seconds for one cell.
        fresh: run also what an interrupted run has finished.
        only_failed: keep to what failed or was not reached in the last run.
    """

    notebooks: list[str]
    output: Path
    jobs: int = 1
    timeout: int = 600
    fresh: bool = False
    only_failed: bool = False


class Runner:
    """One call of `course run`."""

    def __init__(self, curriculum: Curriculum, options: Options, console: Console | None = None) -> None:
        self.curriculum, self.options = curriculum, options
        self.state = history.load(options.output)
        self.expected = _expected(curriculum, self.state)
        last = self.state
        if options.only_failed:
            self.todo = [path for path in options.notebooks if path in last.unfinished()]
            self.kept: list[str] = []
        else:
            self.kept = [] if options.fresh or last.complete else self._finished_before()
            self.todo = [path for path in options.notebooks if path not in self.kept]
            if not self.kept:
                last.run = time.strftime("%Y-%m-%dT%H:%M:%S") + f".{time.time_ns() // 1000 % 1000000:06}"
            last.selection = options.notebooks
        self.display = Display(len(self.todo) + len(self.kept), len(self.kept), console)
        self._terminated = False

    def _finished_before(self) -> list[str]:
        """Notebooks that ended well in the interrupted run and have the same code still."""
        kept = []
        for path in self.options.notebooks:
            record = self.state.finished(path)
            if record is not None and record.ok:
                with contextlib.suppress(NotebookError):
                    if code_sha256(read(self.curriculum.root / path, path)) == record.code_sha256:
                        kept.append(path)
        return kept

    def run(self) -> int:
        """Run what is to be run; returns the exit status: 0, 1 after a failure, 130 after Ctrl-C, 143 after SIGTERM."""
        say = self.display.say
        if self.options.only_failed and not self.todo:
            say(
                "nothing to do: nothing failed in the last run"
                if self.state.run
                else "nothing to do: nothing was run yet"
            )
            return 0
        if self.kept:
            say(f"continuing: {len(self.kept)} of {self.display.total} were finished before the interruption")
        self.state.complete = False
        history.save(self.state, self.options.output)
        interrupted = False
        with self.display:
            try:
                asyncio.run(self._all())
            except (KeyboardInterrupt, asyncio.CancelledError):
                interrupted = True
        self.state.complete = not interrupted
        history.save(self.state, self.options.output)
        report.write(self.curriculum, self.state, self.options.output)
        return self._conclude(interrupted)

    def _conclude(self, interrupted: bool) -> int:
        say, display = self.display.say, self.display
        page = self.options.output / "index.html"
        if page.is_relative_to(Path.cwd()):
            page = page.relative_to(Path.cwd())
        if interrupted:
            say(f"interrupted: {display.finished} of {display.total} finished; the same command continues")
            return TERMINATED if self._terminated else INTERRUPTED
        failed = [path for path in self.todo if not self.state.notebooks[path].ok]
        held = sum(self.state.notebooks[path].held for path in self.todo + self.kept)
        left = sum(self.state.notebooks[path].skipped for path in self.todo + self.kept)
        skipped = f", {left} skipped" if left else ""
        good = display.total - len(failed)
        say(f"{good} of {display.total} notebooks ran to the end, {held} claims held{skipped}; report: {page}")
        if failed:
            say(f"{len(failed)} failed; again only the failed: `course run --only-failed`")
        return 1 if failed else 0

    async def _all(self) -> None:
        main = asyncio.current_task()
        assert main is not None
        # asyncio itself turns Ctrl-C into a cancelled task; a plain `kill` must end the kernels too.
        with contextlib.suppress(NotImplementedError, RuntimeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._terminate, main)
        queue = iter(self.todo)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.options.jobs, len(self.todo))):
                group.create_task(self._worker(queue))

    def _terminate(self, main: asyncio.Task[None]) -> None:
        self._terminated = True
        main.cancel()

    async def _worker(self, queue: Iterator[str]) -> None:
        for path in queue:
            try:
                record = await self._one(path)
            except OSError:
                raise  # a full disk, a pipe that is closed: no notebook's own trouble
            except Exception as error:
                if traceback_wanted():
                    raise
                # What this notebook holds cannot be written: its own line, and the others go on.
                record = self._record(ok=False, error=[f"FAILED  {path}: {one_line(error)}"])
            self.state.notebooks[path] = record
            history.save(self.state, self.options.output)
            self.display.finish(path, record)

    async def _one(self, path: str) -> history.Result:
        root, output = self.curriculum.root, self.options.output
        copy, page, kept, part = files(path, output)
        copy.parent.mkdir(parents=True, exist_ok=True)
        for old in (copy, page, kept, part):
            old.unlink(missing_ok=True)
        try:
            notebook = read(root / path, path)
        except NotebookError as error:
            return self._record(ok=False, error=[f"FAILED  {error}"])
        part.write_text("", encoding="utf-8")
        running = Running(path, self.expected.get(path), lambda: claims.read(part).held)
        self.display.start(running)
        is_exercise = "/exercises/" in path
        try:
            outcome = await execute(
                notebook,
                (root / path).parent,
                environment(path, part),
                timeout=self.options.timeout,
                keep_going=is_exercise,
                on_cell=running.on_cell,
            )
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            self.display.drop(path)
        with contextlib.suppress(FileNotFoundError):  # a notebook may have removed it
            os.replace(part, kept)
        write(notebook, copy)
        await asyncio.to_thread(self._page, notebook, path, page)
        made = claims.read(kept)
        return self._record(
            ok=outcome.ok,
            code_sha256=code_sha256(notebook),
            seconds=round(outcome.seconds, 2),
            peak_memory_bytes=outcome.peak_memory_bytes,
            held=made.held,
            claims=len(made.records),
            damaged=made.damaged,
            skipped=len(made.skipped),
            error=outcome.failures[0].lines(path) if outcome.failures else [],
            solved=exercises.solved(notebook) if is_exercise else 0,
            exercises=len(exercises.checks(notebook)) if is_exercise else 0,
        )

    def _page(self, notebook: Notebook, path: str, page: Path) -> None:
        try:
            text = report.page(notebook, Path(path).stem, path.count("/"))
        except Exception as error:  # nbconvert raises anything for outputs of a wrong shape: that costs the page
            self.display.say(f"no page  {path}: {one_line(error)}")
        else:
            write_text(page, text)

    def _record(self, **values: object) -> history.Result:
        blank = {"code_sha256": "", "seconds": 0.0, "peak_memory_bytes": 0, "held": 0, "claims": 0}
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        return history.Result(**{**blank, **values, "run": self.state.run, "finished": now})  # type: ignore[arg-type]


def _expected(curriculum: Curriculum, last: history.History) -> dict[str, float]:
    """Seconds each notebook took last: here, else where its times were recorded."""
    # Asking torch for the scale would cost seconds; the driver's tool says as much as an estimate needs.
    scale = os.environ.get("COURSE_SCALE") or ("gpu" if shutil.which("nvidia-smi") else "cpu")
    recorded = timings.load(curriculum.root).get(scale, {}).get("notebooks", {})
    times = {path: float(entry["seconds"]) for path, entry in recorded.items()}
    return times | {path: record.seconds for path, record in last.notebooks.items() if record.ok}
