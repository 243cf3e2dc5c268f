"""The script that fills lesson 5's rows of measured steps."""

import importlib.util
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


def test_a_step_is_measured_and_printed(run, capsys):
    run("1M", "--steps", 3, "--rows", 1)
    row = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (row["model"], row["devices"], row["steps"], row["context"]) == ("1M", "1", "3", "256")
    per_token = float(row["model_flops_per_second"].replace(",", "")) / float(row["tokens_per_second"])
    assert per_token == pytest.approx(flops_per_token(CONFIGS["1M"], 256), rel=1e-2)


@pytest.mark.parametrize("wrong", [("2M",), ("1M", "--devices", 0), ("1M", "--steps", 1), ("1M", "--rows", 0)])
def test_what_cannot_be_is_refused(run, capsys, wrong):
    with pytest.raises(SystemExit) as caught:
        run(*wrong)
    assert caught.value.code == 2
    assert str(wrong[-1]) in capsys.readouterr().err.splitlines()[-1]
