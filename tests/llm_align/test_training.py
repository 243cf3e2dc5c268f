"""Every objective under Lightning: stopped and resumed, cut into batches, on two ranks; and what a round learns."""

from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl
import torch
from align_jobs import data_of, module_of, train
from llm_align.data.records import prompt_of
from llm_align.objectives.advantages import gae, group_advantages
from llm_align.objectives.logprobs import answer_mask
from llm_align.objectives.policy import policy_loss
from llm_align.training.collapse import Collapse
from llm_align.training.ppo import token_rewards, whitened
from llm_core.forgetting import SILENT
from llm_scale.ranks import Ranks

KINDS = ("dpo", "reward", "grpo", "ppo")
BATCH = {"dpo": 4, "reward": 4, "grpo": 8, "ppo": 8}


@pytest.fixture
def places(base, files) -> tuple[str, str]:
    return str(base), str(files)


def same(one, other, atol=0.0):
    """Equal; with `atol` near to each other, but for one weight in 200: Adam's first step is the learning rate whatever
    the gradient is, also where that is rounding alone."""
    assert one.keys() == other.keys() and one
    for name, values in one.items():
        far = ((values - other[name]).abs() > atol).float().mean()
        assert far <= (0.005 if atol else 0.0), (name, float(far))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_stopped_goes_on_bit_for_bit(kind, method, places, tmp_path):
    """Stopped after 3 steps, which is inside a round of two batches and two passes."""
    path, options = str(tmp_path / "x.ckpt"), {"method": method}
    if kind in ("grpo", "ppo"):
        options["data"] = {"passes": 2}
    first = train(kind, *places, BATCH[kind], 3, save=path, **options)
    rest = train(kind, *places, BATCH[kind], 8, resume=path, **options)
    whole = train(kind, *places, BATCH[kind], 8, **options)
    assert len(whole["losses"]) == 8 and len(first["losses"]) == 3
    assert first["losses"] + rest["losses"] == whole["losses"]
    same(whole["state"], rest["state"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_does_not_depend_on_the_batches(kind, places):
    one = train(kind, *places, 2 * BATCH[kind], 2)
    two = train(kind, *places, BATCH[kind], 2, accumulate_grad_batches=2)
    assert two["losses"] == pytest.approx(one["losses"], abs=2e-6)
    same(one["state"], two["state"], atol=2e-5)


def test_two_ranks_are_one_device(places, tmp_path):
    """Losses, weights and measures; and a checkpoint of two ranks inside a round is gone on with on two."""
    runs = [(kind, {}) for kind in KINDS] + [("grpo", {"changes": {"advantage": "batch"}})]
    with Ranks(2) as two:
        for kind, more in runs:
            alone = train(kind, *places, 2 * BATCH[kind], 3, **more)
            results = two.run(train, kind, *places, BATCH[kind], 3, 2, **more)
            for result in results:
                assert result["losses"] == pytest.approx(alone["losses"], abs=2e-6)
                same(alone["state"], result["state"], atol=2e-5)
                for name in ("reward", "kl", "accuracy", "margin", "entropy"):
                    values = [[line.get(name, line.get(f"train_{name}")) for line in each["history"]] for each in
                              (alone, result)]  # fmt: skip
                    if values[0][0] is not None:
                        assert values[1] == pytest.approx(values[0], abs=1e-5), (kind, name)
        path, options = str(tmp_path / "x.ckpt"), {"data": {"passes": 2}}
        two.run(train, "grpo", *places, 4, 3, 2, save=path, **options)
        rest = two.run(train, "grpo", *places, 4, 6, 2, resume=path, **options)
        whole = two.run(train, "grpo", *places, 4, 6, 2, **options)
        assert rest[0]["losses"] == whole[0]["losses"][3:]
    with pytest.raises(ValueError, match="of 2 ranks, and there are 1; go on with as many"):
        train("grpo", *places, 4, 6, resume=path, **options)


def test_another_objective_is_refused(places, tmp_path):
    path = str(tmp_path / "x.ckpt")
    train("dpo", *places, 4, 2, save=path)
    with pytest.raises(ValueError, match=r"made with preference.beta=0.1, and not 0.5; leave it so"):
        train("dpo", *places, 4, 4, resume=path, changes={"beta": 0.5})
    with pytest.raises(ValueError, match="the checkpoint is of DPOModule, and this is RewardModule"):
        train("reward", *places, 4, 4, resume=path)


def prompts_of(module, number=4):
    asked = [{"messages": [{"role": "user", "content": f"What is {each} plus one?"}]} for each in range(number)]
    return [prompt_of(each, module.prepared.tokenizer) for each in asked]


def test_a_round_of_grpo_is_its_formula(base):
    module = module_of("grpo", str(base), temperature=0.8)
    rows = module.make_round(prompts_of(module), [0, 4, 8, 12])
    texts = module.writer.write(prompts_of(module), 0).texts
    rewards = torch.tensor([len(text) % 7 / 7 for text in texts])
    torch.testing.assert_close(rows["advantages"], group_advantages(rewards, 4))
    total, count = module.loss(rows)
    assert int(count) == 16 and abs(float(total.detach())) < 1e-4  # the ratio is 1, and the advantages sum to 0
    total.backward()
    found = module.model.model.layers[0].mlp.up_proj.weight.grad.clone()
    assert found.abs().max() > 1e-4  # a loss of 0, and a gradient that is not
    module.model.zero_grad()
    logits = module.model(rows["input_ids"]).logits / 0.8
    logprobs = logits.log_softmax(-1)[:, :-1].gather(-1, rows["input_ids"][:, 1:, None])[..., 0]
    mask = answer_mask(rows["prompt_lengths"], rows["lengths"], rows["input_ids"].shape[1])
    each = (logprobs * mask).sum(1) / mask.sum(1) * rows["advantages"]
    (-each.sum()).backward()
    torch.testing.assert_close(module.model.model.layers[0].mlp.up_proj.weight.grad, found, rtol=1e-4, atol=1e-6)


def test_a_round_of_ppo_is_its_formula(base):
    module = module_of("ppo", str(base))
    module._steer = lambda *_: None
    with torch.no_grad():  # away from the reference
        for values in module.actor.parameters():
            values.add_(0.01 * torch.randn_like(values))
    prompts = prompts_of(module, 6)
    rollout, rewards = module.writer.write(prompts, 0), torch.arange(6.0)
    with torch.no_grad():
        learned = module.learned(rollout, rewards)
    rows = {**learned, "input_ids": rollout.ids, "prompt_lengths": rollout.prompt_lengths,
            "lengths": rollout.lengths}  # fmt: skip
    mask = rollout.mask
    paid = -0.05 * (rows["old"] - rows["reference"]) * mask
    for row in range(6):
        paid[row, int(rollout.lengths[row]) - 2] += rewards[row]
    assert (rows["old"] - rows["reference"])[mask].abs().mean() > 0.01
    torch.testing.assert_close(token_rewards(rewards, rows["old"] - rows["reference"], mask, 0.05), paid)
    advantages, returns = gae(paid, rows["values"], mask, 1.0, 0.95)
    torch.testing.assert_close(rows["returns"], returns)
    torch.testing.assert_close(rows["advantages"], whitened(advantages, mask))
    assert abs(float(rows["advantages"][mask].mean())) < 1e-5
    assert float(rows["advantages"][mask].std(unbiased=False)) == pytest.approx(1.0, abs=1e-4)
    at_end = token_rewards(rewards, rows["old"] - rows["reference"], mask, 0.05, "end")
    torch.testing.assert_close(at_end.sum(1), paid.sum(1))
    assert (at_end != 0).sum(1).tolist() == [1] * 6 or (at_end != 0).sum() <= 6
    total, count = module.loss(rows)
    wanted = policy_loss(rows["old"], rows["old"], rows["advantages"], mask, normaliser="tokens").total
    missed = 0.5 * ((rows["values"] - returns).pow(2) * mask).sum()
    torch.testing.assert_close(total.detach(), wanted + 0.5 * missed, rtol=1e-4, atol=1e-4)
    assert int(count) == int(mask.sum())


def test_the_price_of_distance_follows_its_target(places):
    lines = [line for line in train("ppo", *places, 8, 8, data={"passes": 1})["history"] if "kl_coef" in line]
    assert lines[0]["kl_coef"] == 0.05
    assert lines[1]["kl_coef"] == pytest.approx(0.05 * 0.96)  # at the reference, far below 2 nats: 4% less a round


def test_equal_rewards_teach_nothing_and_are_no_nan(places):
    found = train("grpo", *places, 8, 4, changes={"reward": lambda prompt, answer: 1.0})
    assert found["losses"] == pytest.approx([0.0] * 4, abs=1e-6)
    assert all(line["equal_groups"] == 1.0 for line in found["history"] if "equal_groups" in line)
    start = module_of("grpo", places[0])
    same({name: each.detach() for name, each in start.model.named_parameters() if name in found["state"]},
         found["state"])  # fmt: skip


def sometimes(prompt: str, answer: str) -> float:
    if len(answer) % 5 == 0:
        raise RuntimeError("no such answer")
    return 1.0


def test_rewards_that_raise_count_zero_and_are_told_once(places, capsys):
    found = train("grpo", *places, 8, 4, changes={"reward": sometimes})
    assert all(math.isfinite(loss) for loss in found["losses"])
    err = capsys.readouterr().err
    assert err.count("align: a reward failed and counts 0 (") == 1 and "no such answer" in err


def test_a_reward_that_mostly_fails_ends_the_run(places):
    def broken(prompt: str, answer: str) -> float:
        raise KeyError("x")

    with pytest.raises(ValueError, match=r"16 of 16 rewards failed .*; mend the function"):
        train("grpo", *places, 8, 4, changes={"reward": broken})


def test_a_reward_that_is_no_number_is_refused(base):
    module = module_of("grpo", str(base))
    module.reward = lambda rollout: torch.full((len(rollout.lengths),), torch.nan)
    with pytest.raises(ValueError, match="a reward is not finite"):
        module.make_round(prompts_of(module), [0, 4, 8, 12])


def test_an_answer_without_an_end_gets_what_the_rule_says(base):
    module = module_of("grpo", str(base), unfinished_reward=-1.0, max_new_tokens=2, advantage="none")
    rollout = module.writer.write(prompts_of(module), 0)
    rows = module.make_round(prompts_of(module), [0, 4, 8, 12])
    rewards = torch.tensor([len(text) % 7 / 7 for text in rollout.texts]).where(rollout.finished, -1.0)
    assert not bool(rollout.finished.all())
    torch.testing.assert_close(rows["advantages"], group_advantages(rewards, 4, "none"))


def test_collapse_is_said_once(capsys):
    watch = Collapse()
    for number in range(40):
        watch.see({"reward": number / 40, "reward_spread": 0.4, "length": 50 - number, "entropy": 2.0})
    assert len(watch.said) == 1 and "length fell from 48 to" in watch.said[0]
    assert capsys.readouterr().err.count("the reward may be hacked") == 1
    quiet = Collapse()
    for number in range(40):  # shorter answers alone, or a higher reward alone, are no collapse
        quiet.see({"reward": 0.5, "reward_spread": 0.4, "length": 50 - number, "entropy": 2.0})
    for number in range(40):
        quiet.see({"reward": number / 40, "reward_spread": 0.4, "length": 50, "entropy": 2.0})
    assert quiet.said == []
    one, half = Collapse(), Collapse()  # a run that stopped compares with its own first rounds, and says nothing twice
    for number in range(40):
        if number == 8:
            one.load_state_dict(half.state_dict())
        (half if number < 8 else one).see({"reward": number / 40, "reward_spread": 0.4, "length": 50 - number})
    assert one.said == watch.said
    again = Collapse()
    again.load_state_dict(one.state_dict())
    again.see({"reward": 1.0, "reward_spread": 0.4, "length": 1})
    assert again.said == watch.said


def test_the_trainer_and_the_engine_agree_in_every_round(places):
    """A round that was written by the weights of before, or with their keys and values, would differ."""
    found = train("grpo", *places, 8, 8)
    mismatches = [line["mismatch"] for line in found["history"] if "mismatch" in line]
    assert len(mismatches) == 4 and max(mismatches) < 1e-5
    assert max(line["kl"] for line in found["history"]) > 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {"advantage": "leave_one_out", "ratio": "answer"}, {"advantage": "none", "normaliser": "length"},
        {"normaliser": "tokens", "beta": 0.04}, {"ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
        {"top_p": 0.8, "truncate": 2.0}, {"engine_dtype": "bfloat16", "truncate": 2.0},
    ],
)  # fmt: skip
def test_the_kin_of_grpo_learn(changes, places):
    """Every member cut into batches is the member whole, over two steps on one round."""
    one = train("grpo", *places, 16, 2, changes=changes, data={"passes": 2})
    two = train("grpo", *places, 8, 2, changes=changes, data={"passes": 2}, accumulate_grad_batches=2)
    assert two["losses"] == pytest.approx(one["losses"], abs=2e-6)
    same(one["state"], two["state"], atol=2e-5)
    start = dict(module_of("grpo", places[0]).model.named_parameters())
    assert any(not torch.equal(values, start[name].detach()) for name, values in one["state"].items())
    if "top_p" in changes:
        assert one["history"][0]["mismatch"] > 0.01


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratio": "answer", "beta": 0.1}, "takes neither beta nor truncate"), ({"advantage": "mean"}, "none of group"),
        ({"truncate": 0.0}, "truncate=0.0 must be above 0"), ({"top_p": 0.0}, "top_p=0.0 must be"),
        ({"engine_dtype": "int8"}, "engine_dtype='int8' is none of"),
    ],
)  # fmt: skip
def test_policies_that_cannot_be(changes, words, base):
    with pytest.raises(ValueError, match=words):
        module_of("grpo", str(base), **changes)


def test_a_policy_that_drops_is_refused(base):
    from llm_align.models.load import prepare_policy
    from llm_align.training.policy import GRPOModule
    from llm_peft.lora.config import LoRAConfig
    from llm_peft.settings import FineTune

    settings = FineTune(library="ours", lora=LoRAConfig(r=4, lora_dropout=0.1))
    with pytest.raises(ValueError, match=r"lora_dropout=0.1.*set both to 0"):
        GRPOModule(prepare_policy(str(base), settings), settings, lambda rollout: rollout.engine.sum(1))


def test_a_first_round_of_equal_rewards_in_two_batches(places):
    """Nothing to learn from is no mistake, also where the second round's first batch comes before any step changed."""
    rounds = iter(range(99))

    def later(prompt: str, answer: str) -> float:
        return 0.0 if next(rounds) < 16 else float(len(answer) % 2)

    found = train("grpo", *places, 8, 3, changes={"reward": later}, accumulate_grad_batches=2)
    assert found["history"][0]["equal_groups"] == 1.0 and len(found["losses"]) == 3


def test_validation_has_the_rule_for_unfinished_answers(places):
    """Or the best checkpoint would be chosen by another reward than the one that is learned."""
    values = []

    class Seen(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            values.append(
                (float(trainer.callback_metrics["val_reward"]), float(trainer.callback_metrics["val_finished"]))
            )

    module, rows = module_of("grpo", places[0], unfinished_reward=-3.0, max_new_tokens=2), data_of("grpo", places[1], 8)
    rows.tokenizer = module.prepared.tokenizer
    made = {**SILENT, "devices": 1, "accelerator": "cpu", "max_steps": 1, "max_epochs": -1, "val_check_interval": 1}
    pl.Trainer(**{**made, "check_val_every_n_epoch": None, "callbacks": [Seen()]}).fit(module, rows)
    assert values[-1][1] < 0.5 and values[-1][0] < -1.0
