"""The trainer on ranks: one process's losses in every form, what a rank holds, what is refused, and how a run ends."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import trainer_jobs as jobs
import yaml
from llm_core.config import GPTConfig
from llm_core.model import GPT
from llm_scale import start
from llm_scale.cli import main
from llm_scale.trainer.checks import most_numbers, zero_numbers
from llm_scale.trainer.command import find_sharded
from llm_scale.trainer.settings import Parallel
from llm_scale.trainer.strategies import make_strategy, refuse_indivisible
from transformers import GPT2Config, GPT2LMHeadModel

# Sums in another order differ by 1e-7 of a gradient, which AdamW makes a part of a step where a gradient is tiny: some
# 5e-7 of a loss was seen. In 16 bits a rounding is 2^-9 of a value, and a loss here 4 to 6 nats.
CLOSE = {"32-true": 1e-5, "bf16-mixed": 6 * 2**-9, "bf16-true": 12 * 2**-9}

SEARCH = os.pathsep.join(
    [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
)  # the jobs, for other processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("trainer")
    jobs.write_text(made)
    jobs.data_of(made).prepare_data()
    return made


@pytest.fixture(scope="module")
def alone(folder):
    """One process, by precision."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {precision: jobs.train(folder, precision=precision) for precision in CLOSE}
    torch.set_num_threads(threads)


CASES = {
    "ddp": {"strategy": "ddp"},
    "ddp, accumulated": {"strategy": "ddp", "accumulate": 2},
    "fsdp": {"strategy": "fsdp"},
    "fsdp, accumulated": {"strategy": "fsdp", "accumulate": 4},
    "fsdp, checkpointed": {"strategy": "fsdp", "checkpointing": True},
    "fsdp, loss in chunks": {"strategy": "fsdp", "loss_chunk": 40},
    "fsdp, bf16-mixed": {"strategy": "fsdp", "precision": "bf16-mixed"},
    "fsdp, bf16-true": {"strategy": "fsdp", "precision": "bf16-true"},
    "fsdp, all together": {"strategy": "fsdp", "precision": "bf16-mixed", "checkpointing": True, "accumulate": 2},
    "tensor parallel": {"strategy": "tensor-parallel"},
    "tensor parallel, accumulated": {"strategy": "tensor-parallel", "accumulate": 2},
    "tensor parallel, bf16-mixed": {"strategy": "tensor-parallel", "precision": "bf16-mixed"},
}


@pytest.mark.parametrize("case", CASES)
def test_losses_as_one_process(case, two, folder, alone):
    options = CASES[case]
    precision = options.get("precision", "32-true")
    expected = alone[precision]
    results = two.run(jobs.train, folder, devices=2, **options)
    for result in results:
        assert result["losses"] == pytest.approx(expected["losses"], abs=CLOSE[precision], rel=0)
        # A norm of 1 or 2 rounds as a loss does, and bfloat16's gradients three times as coarsely.
        assert result["norms"] == pytest.approx(expected["norms"], abs=3 * CLOSE[precision], rel=0)
        assert result["losses"] == results[0]["losses"] and result["norms"] == results[0]["norms"]
    assert all(result["ended_at_once"] for result in results)  # by SIGTERM; Lightning would wait for its peers
    if precision != "32-true":  # the ranks did compute in 16 bits
        assert results[0]["losses"] != pytest.approx(alone["32-true"]["losses"], abs=CLOSE["32-true"], rel=0)
    batches = jobs.STEPS * options.get("accumulate", 1)
    assert results[0]["calls"] == batches * (2 if options.get("checkpointing") else 1)


def test_a_model_of_transformers(two, folder):
    expected = jobs.train(folder, llama=True, steps=3)["losses"]
    for result in two.run(jobs.train, folder, "fsdp", 2, llama=True, checkpointing=True, steps=3):
        assert result["losses"] == pytest.approx(expected, abs=CLOSE["32-true"], rel=0)
        assert result["weights"] == [0.5, 0.5]
    for told in two.run(jobs.train, folder, "fsdp", 2, llama=True, loss_chunk=8):
        assert "model.loss_chunk calls parts of LlamaForCausalLM, and fsdp gathers" in told


def test_what_the_cases_compare_with(alone, folder):
    """Each part had something to do: the model learns, clipping changes the run, and so do 16 bits."""
    losses = alone["32-true"]["losses"]
    assert len(losses) == jobs.STEPS and losses[-1] < losses[0] - 1
    assert min(alone["32-true"]["norms"]) > jobs.CLIP
    unclipped = jobs.train(folder, clip=None)["losses"]
    assert abs(unclipped[-1] - losses[-1]) > 100 * CLOSE["32-true"]
    for precision in ("bf16-mixed", "bf16-true"):
        assert max(abs(a - b) for a, b in zip(alone[precision]["losses"], losses, strict=True)) > CLOSE["32-true"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tensor-parallel"])
def test_what_a_rank_holds(strategy, two, folder):
    """Weights, and AdamW's two averages of each: all, half, and half of all but the norms (5 of 32)."""
    numbers = sum(parameter.numel() for parameter in GPT(GPTConfig(300, 32, num_hidden_layers=2,
                  num_attention_heads=4, num_key_value_heads=2)).parameters())  # fmt: skip
    share = {"ddp": 1.0, "fsdp": 0.5, "tensor-parallel": 0.5 * (1 + 5 * 32 / numbers)}[strategy]
    for result in two.run(jobs.train, folder, strategy, 2, steps=3):
        assert result["weights"] == result["states"] == pytest.approx([share, share], rel=1e-12)


def test_lightnings_defaults_shard_nothing_and_are_refused(two, folder):
    for told in two.run(jobs.train_with_lightnings_defaults, folder):
        assert "rank 0 of 2 holds 100.0% of the weights, and strategy=fsdp leaves it 50.0%" in told
        assert "ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)" in told


def test_the_most_a_rank_may_hold(monkeypatch):
    """By hand: of 5 x 3 and 4 numbers on two ranks."""
    shapes = [(5, 3), (4,)]
    for strategy, most in (("ddp", 19), ("fsdp", 3 * 3 + 2), ("tensor-parallel", 3 * 3 + 4)):
        assert most_numbers(shapes, Parallel(strategy, 2, accelerator="cpu")) == most
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for stage, weights, states in ((1, 19, 2 * 4 + 2), (2, 19, 2 * 4 + 2), (3, 8 + 2, 8 + 2)):
        parallel = Parallel("deepspeed", 2, accelerator="cpu", zero_stage=stage)
        assert zero_numbers(shapes, parallel) == (weights, states)


def test_ranks_that_begin_with_other_weights_are_refused(two, folder):
    for told in two.run(jobs.train, folder, "fsdp", 2, seed=[0, 1]):
        assert "rank 1 begins with other weights than rank 0; call seed_everything on each rank" in told


def test_models_that_cannot_be_cut(two, folder):
    for told in two.run(jobs.train, folder, "tensor-parallel", 2, heads=2):
        assert told == ("strategy=tensor-parallel: num_key_value_heads=1 is no multiple of 2 ranks; change one of them")
    for told in two.run(jobs.train, folder, "tensor-parallel", 2, loss_chunk=8):
        assert "model.loss_chunk has no form for strategy=tensor-parallel; set it to 0" in told
    for told in two.run(jobs.train, folder, "fsdp", 2, clipped_by="value"):
        assert "gradient_clip_algorithm=value with strategy=fsdp: shards are clipped by norm; take norm" in told
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=10, n_positions=8))
    with pytest.raises(ValueError, match="for llm_core's GPT, not for GPT2LMHeadModel; take fsdp"):
        refuse_indivisible(other, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "zero"}, "strategy='zero' is none of single, ddp, fsdp, fsdp1, deepspeed, tensor-parallel"),
        ({"devices": 0}, "devices=0 must be a whole number and at least 1"),
        ({"devices": 2}, "strategy=single is one process, and 2 are asked for; take ddp or fsdp"),
        ({"precision": "8-mixed"}, "precision='8-mixed' is none of"),
        ({"accelerator": "tpu"}, "accelerator='tpu' is none of auto, cpu, gpu"),
        ({"strategy": "fsdp", "precision": "16-mixed"}, "a loss scale of its own; take bf16-mixed"),
        ({"strategy": "fsdp1", "accelerator": "cpu"}, "FSDPStrategy takes GPUs only; take fsdp"),
        ({"strategy": "deepspeed"}, r"strategy=deepspeed: DeepSpeed is not installed \(uv sync .*\); or take fsdp"),
        ({"strategy": "fsdp", "zero_stage": 2}, "zero_stage=2 has no effect on strategy=fsdp; take deepspeed"),
        ({"zero_stage": 4}, "zero_stage=4 is none of 1, 2, 3"),
        ({"timeout": 0}, "timeout=0 must be a number of seconds above 0"),
        ({"timeout": float("nan")}, "timeout=nan must be a number of seconds above 0"),
    ],
)
def test_settings_that_cannot_be(options, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        Parallel(**options)


def test_what_deepspeed_cannot_be(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert Parallel("deepspeed", 2, accelerator="cpu").zero_stage == 3
    with pytest.raises(ValueError, match="bf16-true with strategy=deepspeed: DeepSpeed keeps float32 weights beside"):
        Parallel("deepspeed", 2, accelerator="cpu", precision="bf16-true")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tensor-parallel"])
def test_a_strategy_waits_as_long_as_it_is_told(strategy):
    """What `Module-5/cluster/cut_off.py` shows of a cable that is pulled; Lightning's own 1800 s are the default."""
    for seconds in (7, Parallel.timeout):
        made = make_strategy(Parallel(strategy, 2, accelerator="cpu", timeout=seconds))
        assert made._timeout.total_seconds() == seconds


def test_more_ranks_than_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert Parallel("fsdp", 1).device == "cuda"
    with pytest.raises(ValueError, match="devices=4, and this machine has 1 GPUs; lower devices"):
        Parallel("fsdp", 4)
    assert Parallel("fsdp", 4, accelerator="cpu").device == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no CUDA GPU; take accelerator=cpu"):
        Parallel("fsdp", 2, accelerator="gpu")


def test_ranks_that_somebody_else_has_started(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    assert start.joined() is None
    monkeypatch.setattr("lightning_fabric.plugins.environments.SLURMEnvironment.detect", lambda: True)
    assert start.joined({"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}) == (4, 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    environment = {"TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6"}
    assert start.joined(environment) == (2, 3)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["fit", "--devices", "4"]) == 1


def left_over(marker):
    """Processes whose command line has a word in it."""
    found = []
    for process in psutil.process_iter():
        try:
            found += [process] if marker in " ".join(process.cmdline()) else []
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize(("how", "rank", "words"), [("raises", 1, "has had enough"), ("sleeps", 0, "does not wait")])
def test_a_rank_that_raises_stops_all(how, rank, words, capfd, monkeypatch):
    """Also one that sleeps, in no collective whose end could wake it."""
    monkeypatch.setenv("PYTHONPATH", SEARCH)
    began = time.monotonic()
    assert start.start_ranks(2, "failing_ranks", [how, "marked-for-this-test"]) == 1
    assert time.monotonic() - began < 60
    told = capfd.readouterr().err.splitlines()
    assert told[-1] == f"llm-scale: rank {rank} failed first: ValueError: rank {rank} {words}"
    assert left_over("marked-for-this-test") == []


def test_which_rank_was_first():
    """torchrun sees both at once and names rank 0, whose peer was killed, or said what was wrong."""
    summary = (
        "Failures:\n[1]:\n  time : a\n  host : b\n  rank      : 1 (local_rank: 1)\n  exitcode  : {} (pid: 3)\n---\n"
        "Root Cause (first observed failure):\n[0]:\n  rank      : 0 (local_rank: 0)\n  exitcode  : 1 (pid: 2)\n"
    )
    said = {0: ["llm-scale: Connection closed by peer"], 1: ["llm-scale: too warm"]}
    assert start._reason(summary.format(-9), {0: said[0]}) == ("rank 1 was killed by SIGKILL; all ranks are stopped")
    for code in (1, -15):  # also when torchrun has stopped it, or it ended so slowly that its peer came first
        assert start._reason(summary.format(code), said) == "rank 1 failed first: too warm"
    assert start._reason(summary.format(-9), {0: ["[rank0]: ValueError: no"]}).endswith(
        "rank 0 failed first: ValueError: no"
    )
    assert "rank 0 ended first, with exit code 1" in start._reason(summary.format(1), {**said, 1: said[0]})
    assert start._reason("oh\nno room\n", {}) == "the ranks did not start: no room"


def log_of(path):
    return {line["step"]: line for line in map(json.loads, Path(path).read_text().splitlines())}


def test_the_command_killed_on_two_ranks_goes_on_with_one(folder, tmp_path, monkeypatch, capsys):
    """SIGKILL of one rank ends the other within seconds; what goes on in one process is the same run."""
    monkeypatch.setenv("COURSE_CACHE", str(folder / "cache"))
    monkeypatch.chdir(tmp_path)
    values = {
        "data": {"corpus": f"text:{folder / 'own.txt'}", "tokenizer": "bpe-300", "context": 32, "batch_size": 8,
                 "val_percent": 10, "test_percent": 10, "progress": False},
        "model": {"config": {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 32},
                  "warmup_steps": 2},
        "trainer": {"max_steps": 6, "val_check_interval": 3},
        "run": {"checkpoint_every": 2},
    }  # fmt: skip
    Path("config.yaml").write_text(yaml.safe_dump(values))
    command = ["fit", "--config", "config.yaml"]
    assert main([*command, "--run.folder", "whole", "--log", "whole.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert "strategy                  single" in printed and "weights a rank            100.0%" in printed

    kill = json.dumps({"class_path": "trainer_jobs.AtStep", "init_args": {"rank": 1, "step": 5}})
    ranks = [*command, "--run.folder", "cut", "--log", "cut.jsonl", "--strategy", "fsdp", "--devices", "2",
             "--data.batch_size", "4", "--trainer.callbacks+", kill]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "llm_scale", *ranks], env={**os.environ, "PYTHONPATH": SEARCH}, capture_output=True,
        text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "llm-scale: rank 1 was killed by SIGKILL; all ranks are stopped"
    assert left_over(str(tmp_path)) == []
    with pytest.raises(ValueError, match="cut holds a run; add --ckpt_path last"):
        find_sharded(None, Path("cut/checkpoints"))
    assert main([*command, "--run.folder", "cut", "--log", "cut.jsonl", "--ckpt_path", "last"]) == 0
    whole, cut = log_of("whole.jsonl"), log_of("cut.jsonl")
    assert list(whole) == list(cut) == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "grad_norm", "learning_rate"):
        assert [line[name] for line in cut.values()] == pytest.approx(
            [line[name] for line in whole.values()], abs=CLOSE["32-true"], rel=0
        )


def test_commands_that_cannot_be(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for given, message in (
        (["fit", "--devices", "two"], "invalid int value: 'two'"),
        (["fit", "--strategy", "zero"], "strategy='zero' is none of"),
        (["fit", "--trainer.strategy", "ddp"], "trainer.strategy=ddp has no effect here; give --strategy"),
        (["fit", "--trainer.num_nodes", "2"], "trainer.num_nodes=2 has no effect here; give --devices"),
        (["train"], "no command 'train'; choose fit, plan or consolidate"),
        (["consolidate", "a"], "consolidate takes a sharded checkpoint and a new folder"),
        (["consolidate", "a", "b"], "a is no whole checkpoint (there is no such folder)"),
    ):
        assert main(given) == 1, given
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1, (given, told)
    (tmp_path / "last.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"last.ckpt is a file, of babygpt perhaps; give last, best"):
        find_sharded("last.ckpt", tmp_path)
    with pytest.raises(ValueError, match="ckpt_path away: no such folder"):
        find_sharded("away", tmp_path)
    assert find_sharded("last", tmp_path) is None


def test_an_error_that_rank_0_has_told_is_not_told_twice(capfd, monkeypatch, tmp_path):
    """Where the other rank was stopped before it could say the same, as on a busy machine."""
    slow = tmp_path / "slow_rank.py"
    slow.write_text(
        "import os, sys, time\n"
        "if os.environ['RANK'] == '1':\n    time.sleep(60)\n"
        "print('llm-scale: r=0: no rank; raise r', file=sys.stderr)\nsys.exit(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert start.start_ranks(2, "slow_rank", []) == 1
    assert capfd.readouterr().err == "llm-scale: r=0: no rank; raise r\n"
