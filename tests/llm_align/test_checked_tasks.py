"""Tasks: what is right gets all, what is wrong gets less, no answer breaks a reward, and the files are read back."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_align.tasks import arithmetic, functions, signatures, strict_json
from llm_align.tasks.named import FILES, NAMES, named, write_files
from llm_align.tasks.task import Question
from llm_data.text.parsing import parses
from llm_peft.chat.records import read_examples

ANSWERS = st.text(max_size=200) | st.sampled_from(
    [
        "(" * 3000,
        "-" * 5000 + "1",
        "a" + ".b" * 3000,
        "[" * 100_000,
        "\0",
        "\ud800",
        "9" * 5000,
        "1e999",
        "def f(a, a):",
    ]
)


@pytest.fixture(scope="module")
def asked() -> dict[str, list[Question]]:
    return {name: named(name).questions(300, seed=3) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_get_all_and_wrong_ones_less(name, asked):
    task, questions = named(name), asked[name]
    assert task.name == name and len({each.text for each in questions}) == 300
    for each in questions:
        assert task.reward(each.text, each.answer) == 1.0, each
        assert 0.0 <= task.reward(each.text, each.wrong) < 1.0, each


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_draws(name, asked):
    task = named(name)
    assert task.questions(20, seed=3) == task.questions(20, seed=3) != task.questions(20, seed=4)
    with pytest.raises(ValueError, match=rf"the task {name} has [\d,]+ questions, and 1,000,000 were asked for"):
        task.questions(1_000_000)


@given(answer=ANSWERS, place=st.integers(0, 19), data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_answer_breaks_a_reward(answer, place, data):
    name = data.draw(st.sampled_from(NAMES))
    task = named(name)
    question = _twenty(name)[place]
    for text in (answer, question.answer + answer, answer + question.answer):
        assert 0.0 <= task.reward(question.text, text) <= 1.0
        assert functions.reward_with_body(question.text, text) in (0.0, 1.0)


def _twenty(name, kept={}):  # noqa: B006
    if name not in kept:
        kept[name] = named(name).questions(20)
    return kept[name]


@pytest.mark.parametrize("task", [arithmetic, signatures, strict_json])
def test_a_prompt_of_another_task_is_an_error(task):
    for prompt in ("", "What is 2 + 2?", "def f("):
        with pytest.raises(ValueError, match=f"is no question of the task {task.name}"):
            task.reward(prompt, "4")


def test_rewards_import_nothing_heavy():
    code = (
        "import sys\nfor name in sys.argv[1:]: __import__(f'llm_align.tasks.{name}')\nimport llm_align.rewards.child\n"
        "heavy = {'torch', 'numpy', 'transformers', 'regex'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *NAMES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_python():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parses(r"'\d'")
    assert parses("") and not parses("def f(") and not parses("\0") and not parses("(" * 10_000)


# --- arithmetic ---

TRAIN = "A train needs 3 hours and 25 minutes. How many minutes is that? Answer with the number and its unit."


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("205 minutes", 1.0), ("205 minutes.", 1.0), (" The train needs 205\nminutes.", 1.0), ("205min", 1.0),
        ("205.0 Minutes", 1.0),
        ("205", 0.5), ("205 hours", 0.5), ("205 minutes or hours", 0.5), ("minutes: 205", 0.5), ("205 bananas", 0.5),
        ("206 minutes", 0.0), ("-205 minutes", 0.0), ("2,05 minutes", 0.0), ("205.5 minutes", 0.0), ("minutes", 0.0),
        ("203 204 205 minutes", 0.0), ("3 * 60 + 25 = 205 minutes", 0.0), ("205e1 minutes", 0.0), ("", 0.0),
        ("205½ minutes", 0.0), ("205² minutes", 0.0), ("205 minutes, ٢٠٥", 0.0),
    ],
)  # fmt: skip
def test_one_number_with_its_unit(answer, reward):
    assert arithmetic.reward(TRAIN, answer) == reward


def test_sums_by_hand():
    sums = {
        "A rope is 3 metres long, and 25 centimetres are cut off. How many centimetres are left?": "275 cm",
        "A jug holds 2 litres and 50 millilitres. How many millilitres is that?": "2,050 ml",
        "A pen costs 15 cents. How many cents do 12 pens cost?": "180 cents",
        "A holiday lasts 3 weeks and 2 days. How many days is that?": "23 days",
    }
    for question, answer in sums.items():
        assert arithmetic.reward(question + arithmetic.END, answer) == 1.0


def test_no_slip_is_right_by_chance():
    for form in arithmetic.FORMS:
        assert all(form.slip(a, b) != form.right(a, b) for a in form.a for b in form.b), form.text
        assert form.unit in arithmetic.UNITS and form.other in arithmetic.UNITS


# --- strict_json ---

PERSON = strict_json.FORMS[0].question.format(name="Anna", age=21, city="Oslo")
WEATHER = strict_json.FORMS[3].question.format(temperature=-3.5, city="Lima", rain="rains")


@pytest.mark.parametrize(
    ("prompt", "answer", "reward"),
    [
        (PERSON, '{"name": "Anna", "age": 21, "city": "Oslo"}', 1.0),
        (PERSON, ' {"city":"Oslo",\n"name":"Anna","age":21}\n', 1.0),
        (PERSON, '{"name": "Anna", "age": 22, "city": "Oslo"}', 0.5),
        (PERSON, '{"name": "", "age": -1, "city": ""}', 0.5),
        (PERSON, '{"name": "Anna", "age": "21", "city": "Oslo"}', 0.2),
        (PERSON, '{"name": "Anna", "age": 21.0, "city": "Oslo"}', 0.2),
        (PERSON, '{"name": "Anna", "age": true, "city": "Oslo"}', 0.2),
        (PERSON, '{"name": "Anna", "age": 21}', 0.2),
        (PERSON, '{"name": "Anna", "age": 21, "city": "Oslo", "more": 1}', 0.2),
        (PERSON, "{}", 0.2),
        (PERSON, '{"name": "Anna", "age": 5, "age": 21, "city": "Oslo"}', 0.0),
        (PERSON, '{"name": "Anna", "age": NaN, "city": "Oslo"}', 0.0),
        (PERSON, '{"name": "Anna", "age": 21, "city": "Oslo"} done', 0.0),
        (PERSON, '```json\n{"name": "Anna", "age": 21, "city": "Oslo"}\n```', 0.0),
        (PERSON, '[{"name": "Anna", "age": 21, "city": "Oslo"}]', 0.0),
        (WEATHER, '{"temperature": -3.5, "city": "Lima", "rain": true}', 1.0),
        (WEATHER, '{"temperature": -3, "city": "Lima", "rain": true}', 0.5),
        (WEATHER, '{"temperature": -3.5, "city": "Lima", "rain": 1}', 0.2),
        (WEATHER, '{"temperature": 1e999, "city": "Lima", "rain": true}', 0.2),
    ],
)
def test_the_grades_of_an_object(prompt, answer, reward):
    assert strict_json.reward(prompt, answer) == reward


# --- signatures ---


@pytest.fixture
def library(tmp_path, monkeypatch):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").write_text(
        'def given(a, /, b=(1, 2), *c, d: int = 3, **e):\n    """Gives what is given to it."""\n'
        'def none():\n    """Takes nothing and gives nothing."""\n    pass\n'
        'def one(a):\n    """A line that two have in common."""\n'
        'def two(b):\n    """A line that two have in common."""\n'
    )
    monkeypatch.setattr(signatures, "_library", lambda: tmp_path)
    signatures._by_line.cache_clear()
    signatures._all.cache_clear()
    yield
    signatures._by_line.cache_clear()
    signatures._all.cache_clear()


def _prompt(line):
    return signatures.QUESTION.format(module="pack", line=line)


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("def given(a, /, b=(1, 2), *c, d: int = 3, **e):", 1.0), ("def given(a, /, b, *c, d, **e): ...", 1.0),
        ("def given(a, b, *c, d, **e):", 0.5), ("def given(b, a, /, *c, d, **e):", 0.5),
        ("def given(a, b, c, d, f):", 0.5 * 4 / 6), ("def given():", 0.0), ("def given(x):", 0.0),
        ("def gives(a, /, b=(1, 2), *c, d: int = 3, **e):", 0.0),
        ("def given(a): ...\ndef given(a, /, b, *c, d, **e): ...", 0.0), ("given(a, b)", 0.0), ("def given(a", 0.0),
        ("class given: ...", 0.0), ("def given(a): ...; x = 1", 0.5 * 1 / 5),
    ],
)  # fmt: skip
def test_a_def_line_by_hand(library, answer, reward):
    assert signatures.reward(_prompt("Gives what is given to it."), answer) == pytest.approx(reward)


def test_what_the_library_cannot_tell_is_not_asked(library):
    assert signatures.reward(_prompt("Takes nothing and gives nothing."), "def none():") == 1.0
    assert {each.answer for each in signatures.questions(2)} == {
        "def none():", "def given(a, /, b=(1, 2), *c, d: int=3, **e):",
    }  # fmt: skip
    for line in ("A line that two have in common.", "What nobody wrote."):
        with pytest.raises(ValueError, match="is no question of the task signatures"):
            signatures.reward(_prompt(line), "def one(a):")


# --- functions ---


def test_prompts_are_beginnings_of_functions(asked):
    for each in asked["functions"]:
        (node,) = ast.parse(each.prompt + each.answer).body
        assert isinstance(node, ast.FunctionDef) and each.prompt.startswith(f"def {node.name}(")
        assert len(each.prompt + each.answer) <= functions.MOST_CHARACTERS
        assert not functions.reward(each.prompt, "")
        assert functions.reward_with_body(each.prompt, each.answer) == 1.0


@pytest.mark.parametrize(
    ("answer", "plain", "with_body"),
    [
        ("): pass", 1, 0),
        ("):\n  a = x()\n  b = a\n  return b", 1, 1),
        ("):\n  if x:\n    a = 1\n  return a", 1, 1),
        ("):\n  a = 1\n  return a", 1, 0),
        ("):\n  pass\n  a = 1\n  return a", 1, 0),
        ("):\n  'text'\n  ...\n  a = 1\n  return a", 1, 0),
        ("):\n  x\n  a = 1\n  return a", 1, 0),
        ("):\n  return x\n  return x\n  return x", 1, 0),
        ("):\n  if x:\n    if x:\n      if x: pass", 1, 0),
        ("): pass\na = 1\nb = 2\nc = 3", 1, 0),
        ("):\n  a = x()\n  b = a\n  return b\ndef g", 0, 0),
        ("):\n  a = 1; b = 2; c = 3", 1, 1),  # the gap that its docstring names
    ],
)
def test_stubs_do_not_win(answer, plain, with_body):
    assert functions.reward("def f(x", answer) == plain
    assert functions.reward_with_body("def f(x", answer) == with_body


# --- files ---


def _lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", ["arithmetic", "functions"])
def test_files_have_different_questions_and_are_read_back(name, tmp_path):
    paths = write_files(name, tmp_path / "new", 20, seed=5)
    assert [path.name for path in paths] == list(FILES) and sorted(tmp_path.rglob("*.*")) == sorted(paths)
    sft, prompts, pairs, held_out = map(_lines, paths)
    task = named(name)

    def text(record):
        users = [each for each in record.get("messages", ()) if each["role"] == "user"]
        return users[-1]["content"] if users else record["prompt"]

    texts = [text(record) for records in (sft, prompts, pairs, held_out) for record in records]
    assert len(texts) == len(set(texts)) == 80
    for record, example in zip(sft, read_examples(paths[0]), strict=True):
        said = example.messages[-1]["content"] if example.messages else example.completion
        assert task.reward(text(record), said) == 1.0
    for record in prompts + held_out:
        assert list(record) in (["prompt"], ["messages"]) and record.get("messages", [{"role": "user"}])[-1][
            "role"
        ] == ("user")
    for record in pairs:
        assert task.reward(text(record), record["chosen"]) == 1.0 > task.reward(text(record), record["rejected"])
        assert list(record)[1:] == ["chosen", "rejected"]


def test_noise_flips_exactly_its_share(tmp_path):
    pairs = {noise: _lines(write_files(arithmetic, tmp_path / str(noise), 30, noise=noise)[2]) for noise in (0, 0.3, 1)}
    clean = pairs[0]
    for noise, number in ((0.3, 9), (1, 30)):
        flipped = 0
        for before, after in zip(clean, pairs[noise], strict=True):
            assert before["messages"] == after["messages"]
            assert {before["chosen"], before["rejected"]} == {after["chosen"], after["rejected"]}
            flipped += before["chosen"] == after["rejected"]
        assert flipped == number
    for wrong in ({"noise": 1.1}, {"noise": -0.1}, {"noise": float("nan")}, {"number": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            write_files(arithmetic, tmp_path / "none", **{"number": 5, **wrong})
    assert not (tmp_path / "none").exists()


def test_names():
    for name in NAMES:
        assert named(name) is importlib.import_module(f"llm_align.tasks.{name}")
    with pytest.raises(ValueError, match="there is no task 'arithmetics'; the tasks are arithmetic, functions"):
        named("arithmetics")
    for wrong in ({}, {"prompt": "a", "messages": ({"role": "user", "content": "b"},)},
                  {"messages": ({"role": "assistant", "content": "b"},)}):  # fmt: skip
        with pytest.raises(ValueError, match="a question"):
            Question("right", "wrong", **wrong)
