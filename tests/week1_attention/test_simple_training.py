"""The copy task: its data cannot leak, its loop is the plain one, and a run of the script copies."""

import math
import subprocess
import sys

import pytest
import torch
from annotated_transformer import Transformer, label_smoothing_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from simple_training import (
    BOS,
    EOS,
    FIRST_SYMBOL,
    PAD,
    TASKS,
    Pairs,
    answers,
    batch_loss,
    batches,
    copy_config,
    copy_rate,
    cross_attention,
    decoder_input,
    draw_attention,
    exact_match,
    main,
    make_optimizer,
    make_pairs,
    symbols,
    train,
)


@settings(max_examples=15, deadline=None)
@given(task=st.sampled_from(sorted(TASKS)), seed=st.integers(0, 9), max_len=st.integers(3, 6))
def test_held_out_sequences_are_never_trained_on(task, seed, max_len):
    parts = make_pairs(task, 40, 20, seed, min_len=2, max_len=max_len, num_symbols=8)
    train_rows, held_rows = ({tuple(row) for row in part.source.tolist()} for part in parts)
    assert len(train_rows) == 40 and len(held_rows) == 20 and not train_rows & held_rows
    for part in parts:
        for source, target in zip(part.source.tolist(), part.target.tolist(), strict=True):
            length = source.index(EOS)
            assert 2 <= length <= max_len
            assert source[length + 1 :] == target[length + 1 :] == [PAD] * (max_len - length)
            assert target[length] == EOS
            expected = {"copy": source[:length], "reverse": source[:length][::-1], "sort": sorted(source[:length])}
            assert target[:length] == expected[task]


def test_lengths_vary_and_the_seed_decides():
    first, again, other = (make_pairs("copy", 200, 10, seed)[0].source for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert set((first != PAD).sum(1).tolist()) == set(range(4, 12))


def test_impossible_data_is_refused():
    with pytest.raises(ValueError, match=r"^task='copi': must be one of copy, reverse, sort$"):
        make_pairs("copi", 10, 10, 0)
    with pytest.raises(ValueError, match=r"^9 \+ 6 sequences: must be 1 to 14, half of those .* or raise max_len$"):
        make_pairs("copy", 9, 6, 0, min_len=2, max_len=4, num_symbols=2)  # 4 + 8 + 16 exist


def test_batches_are_cut_to_their_longest_and_repeat_with_the_seed():
    pairs = make_pairs("copy", 100, 1, 0)[0]
    first, again = (list(batches(pairs, 3, 20, seed=5)) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.source, two.source) and torch.equal(one.target, two.target)
    assert all((batch.source[:, -1] != PAD).any() for batch in first)
    assert len({batch.source.size(1) for batch in first}) > 1


def test_decoder_input_is_shifted_right():
    assert decoder_input(torch.tensor([[5, 6, EOS, PAD]])).tolist() == [[BOS, 5, 6, EOS]]


def small(**fields):
    torch.manual_seed(0)
    return Transformer(copy_config(**{"max_len": 6, "d_model": 32, "d_ff": 64, **fields}))


def test_the_first_loss_is_that_of_a_uniform_guess():
    pairs = make_pairs("copy", 500, 1, 0, max_len=6)[0]
    for smoothing in (0.0, 0.1):
        assert batch_loss(small(), pairs, smoothing).item() == pytest.approx(math.log(13), rel=0.03)


def test_train_is_the_plain_loop():
    pairs = make_pairs("copy", 200, 1, 0, max_len=6)[0]
    model, seen = small(), []
    losses = train(model, pairs, lambda step: 1e-3 * step, steps=4, batch_size=8, smoothing=0.1, after_step=seen.append)
    plain = small()
    optimizer = make_optimizer(plain)
    for step, batch in enumerate(batches(pairs, 8, 4, 0), start=1):
        optimizer.param_groups[0]["lr"] = 1e-3 * step
        optimizer.zero_grad()
        logits = plain(batch.source, decoder_input(batch.target))
        loss = label_smoothing_loss(logits, batch.target, PAD, 0.1)
        loss.backward()
        optimizer.step()
        assert losses[step - 1] == loss.item()
    assert seen == [1, 2, 3, 4]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_fused_adam_is_the_papers_adam():
    group = make_optimizer(small()).param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.98), 1e-9, 0)


def test_an_interrupted_run_ends_its_line(capsys):
    def stop(step):
        raise KeyboardInterrupt

    pairs = make_pairs("copy", 20, 1, 0, max_len=6)[0]
    with pytest.raises(KeyboardInterrupt):
        train(small(), pairs, lambda step: 0.0, steps=3, after_step=stop)
    assert capsys.readouterr().out.startswith("training 1/3  loss 2.")


def test_the_rate_rises_peaks_at_warm_up_and_ends_near_zero():
    rate = copy_rate(copy_config(), 300, warmup_steps=100)
    rates = [rate(step) for step in range(1, 301)]
    assert 0 < rates[0] < rates[50] < max(rates) and 60 <= rates.index(max(rates)) <= 99
    assert 0 < rates[-1] < max(rates) / 100


class Oracle(Transformer):
    """Answers with what it is told, through the decoder's interface."""

    def __init__(self, written):
        super().__init__(copy_config(max_len=6))
        self.written = written

    def decode(self, target, memory, memory_mask):
        logits = torch.zeros(*target.shape, self.config.vocab_size)
        return logits.scatter(-1, self.written[:, : target.size(1), None], 10.0)


def test_exact_match_forgives_nothing():
    pairs = Pairs(*[torch.tensor([[5, 6, EOS, PAD], [7, 8, 9, EOS]])] * 2)
    right = [[5, 6, EOS, EOS], [7, 8, 9, EOS]]
    assert exact_match(Oracle(torch.tensor(right)), pairs) == 1.0
    for row, column, token in ((0, 0, 9), (0, 2, 5), (1, 3, 5), (1, 2, EOS)):  # wrong, too long, no end, too short
        wrong = torch.tensor(right)
        wrong[row, column] = token
        assert exact_match(Oracle(wrong), pairs) == 0.5


def test_evaluation_leaves_the_mode_and_the_weights_alone():
    model, pairs = small(dropout=0.5).train(), make_pairs("copy", 1, 4, 0, max_len=6)[1]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(answers(model, pairs.source), answers(model, pairs.source)) and model.training
    weights = cross_attention(model, Pairs(pairs.source[:1], pairs.target[:1]))
    length = int((pairs.source[0] != PAD).sum())
    assert weights.shape == (1, 4, length, length) and model.training
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, length))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_symbols_and_picture(tmp_path):
    assert symbols(torch.tensor([FIRST_SYMBOL, FIRST_SYMBOL + 9, EOS, PAD])) == ["0", "9", "end"]
    pairs = make_pairs("sort", 1, 1, 0, max_len=6)[1]
    draw_attention(small(), pairs, tmp_path / "deep" / "map.png")
    assert (tmp_path / "deep" / "map.png").read_bytes().startswith(b"\x89PNG")


def test_a_short_run_learns_to_copy(capsys):
    pairs, held_out = make_pairs("copy", 3_000, 200, 0, max_len=5)
    model = small(max_len=5)
    train(model, pairs, copy_rate(model.config, 200, warmup_steps=60, factor=1.0), steps=200, smoothing=0.1)
    assert exact_match(model, held_out) >= 0.97


def test_the_script_reports_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--steps", "2", "--task", "reverse"]) < 0.1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "task reverse: 20,000 training and 1,000 held-out sequences"
    assert lines[4].startswith("loss of step 1: 2.5") and lines[4].endswith("predicted ln 13 = 2.565")
    assert lines[-1] == "attention map: runs/attention-reverse.png"
    assert (tmp_path / "runs" / "attention-reverse.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "error: --steps 0: must be at least 1"),
        (["--steps", "many"], "error: argument --steps: invalid int value: 'many'"),
        (["--task", "sum"], "error: argument --task: invalid choice: 'sum'"),
        (["--output", "map.jpg"], "error: --output map.jpg: must end in .png"),
        (["--verbose"], "error: unrecognized arguments: --verbose"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1


def test_importing_from_anywhere_writes_nothing(tmp_path):
    code = "import torch; before = torch.get_rng_state(); import annotated_transformer, simple_training; "
    code += "print(torch.equal(before, torch.get_rng_state()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n" and done.stderr == "" and not list(tmp_path.iterdir())
