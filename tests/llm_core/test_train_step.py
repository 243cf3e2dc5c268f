"""The script that fills lesson 5's rows of measured steps."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from llm_core.costs.counts import CONFIGS, flops_per_token

SCRIPT = Path(__file__).parents[2] / "Module-3" / "race" / "train_step.py"


@pytest.fixture
def run(monkeypatch):
    spec = importlib.util.spec_from_file_location("train_step", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_step.py", *map(str, arguments)])
        module.main()

    return main


def test_records_are_appended(run, tmp_path, capsys):
    record = tmp_path / "steps.json"
    record.write_text(json.dumps([{"model": "7B"}]))
    run("1M", "--steps", 3, "--rows", 1, "--record", record)
    first, row = json.loads(record.read_text())
    assert first == {"model": "7B"}
    assert (row["model"], row["devices"], row["steps"], row["context"]) == ("1M", 1, 3, 256)
    per_token = row["model_flops_per_second"] / row["tokens_per_second"]
    assert per_token == pytest.approx(flops_per_token(CONFIGS["1M"], 256), rel=1e-2)
    assert f"tokens_per_second       {row['tokens_per_second']}" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [("2M",), ("1M", "--devices", 0), ("1M", "--steps", 1), ("1M", "--rows", 0)])
def test_what_cannot_be_is_refused(run, capsys, wrong):
    with pytest.raises(SystemExit) as caught:
        run(*wrong)
    assert caught.value.code == 2
    assert str(wrong[-1]) in capsys.readouterr().err.splitlines()[-1]
