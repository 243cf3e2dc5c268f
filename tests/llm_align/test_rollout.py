"""Answers by the engine: what they were drawn from, with which weights, and the batches that are made of them."""

from __future__ import annotations

import re

import pytest
import torch
from align_jobs import module_of
from llm_align.data.prompts import Numbers
from llm_align.data.records import Prompt, prompt_of
from llm_align.data.rounds import Rounds
from llm_align.models.load import prepare_policy
from llm_align.models.policy import Reference, answer_logprobs, without_adapters
from llm_align.objectives.logprobs import token_logprobs
from llm_align.objectives.policy import truncated_weights
from llm_align.rollout.reward import FunctionReward, ModelReward
from llm_align.rollout.write import Writer
from llm_core.generate import Sampling, generate
from llm_peft.lora.config import LoRAConfig
from llm_peft.settings import FineTune


@pytest.fixture
def policy(base):
    return prepare_policy(str(base), FineTune(method="full"))


def asked(prepared, number=5):
    return [
        prompt_of({"messages": [{"role": "user", "content": f"What is {each} plus one?"}]}, prepared.tokenizer)
        for each in range(number)
    ]


def writer(prepared, group=4, dtype=None, **sampling):
    return Writer(prepared.model, prepared.tokenizer, Sampling(**{"max_new_tokens": 12, **sampling}), group, dtype)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_engine_tells_what_it_drew_from(policy, temperature):
    rollout = writer(policy, temperature=temperature).write(asked(policy))
    said = answer_logprobs(policy.model, rollout.ids, rollout.mask, temperature)
    torch.testing.assert_close(said.logprobs, rollout.engine, rtol=0, atol=2e-5)
    assert bool((rollout.engine[~rollout.mask] == 0).all()) and bool((rollout.engine[rollout.mask] < 0).any())
    assert rollout.ids.shape[0] == 20 and rollout.tokens.tolist() == rollout.mask.sum(1).tolist()


def test_under_top_p_the_ratio_is_the_mass_that_was_kept(policy):
    rollout = writer(policy, top_p=0.6).write(asked(policy))
    mask = rollout.mask
    said = answer_logprobs(policy.model, rollout.ids, mask)
    logits = policy.model(rollout.ids).logits[:, :-1]
    chances, _ = logits.softmax(-1).sort(descending=True)
    before = chances.cumsum(-1) - chances
    kept = (chances * (before < 0.6)).sum(-1)  # the likeliest, until they reach 0.6
    ratio = (said.logprobs - rollout.engine).exp()
    torch.testing.assert_close(ratio[mask], kept[mask], rtol=0, atol=2e-5)
    assert bool((ratio[mask] >= 0.6).all()) and float(ratio[mask].mean()) < 0.9
    weights = truncated_weights(said.logprobs, rollout.engine, 0.7)
    torch.testing.assert_close(weights[mask], kept[mask].clamp(max=0.7), rtol=0, atol=2e-5)


def test_a_narrower_engine_is_a_mismatch_of_its_precision(policy):
    rollout = writer(policy, dtype=torch.bfloat16).write(asked(policy))
    said = answer_logprobs(policy.model, rollout.ids, rollout.mask)
    distance = (said.logprobs - rollout.engine)[rollout.mask].abs()
    assert 1e-4 < float(distance.mean()) < 0.1  # 8 bits of 1, through some ten products


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_adapters_write_too(base, dtype):
    module = module_of("grpo", str(base), "lora")
    with torch.no_grad():
        for name, values in module.model.named_parameters():
            if "lora_B" in name:
                values.normal_(std=0.3)
    rollout = writer(module.prepared, dtype=dtype).write(asked(module.prepared))
    said = answer_logprobs(module.model, rollout.ids, rollout.mask)
    torch.testing.assert_close(said.logprobs, rollout.engine, rtol=0, atol=0.2 if dtype else 2e-5)
    assert (said.logprobs - module.reference.logprobs(rollout.ids, rollout.mask)).abs().max() > 0.5


def test_answers_do_not_depend_on_who_is_beside_them(policy):
    prompts = asked(policy)
    whole = writer(policy).write(prompts, seed=40)
    alone = writer(policy).write(prompts[2:3], seed=40 + 2 * 4)
    assert list(alone.texts) == list(whole.texts[8:12]) and len(set(whole.texts)) > 4


def test_greedy_answers_are_generates(policy):
    prompts = asked(policy)
    rollout = writer(policy, group=1, temperature=0).write(prompts)
    ends = (int(policy.tokenizer.eos_token_id),)
    wanted = generate(policy.model.eval(), [prompt.ids for prompt in prompts],
                      Sampling(12, 0.0, stop_ids=ends))  # fmt: skip
    for place, tokens in enumerate(wanted):
        first = int(rollout.prompt_lengths[place])
        assert rollout.ids[place, first : int(rollout.lengths[place])].tolist() == tokens
        assert bool(rollout.finished[place]) == (tokens[-1] in ends)


def test_new_weights_write_at_once(policy):
    """The prompts' keys and values of the weights before are forgotten, and the module is left in its mode."""
    policy.model.train()
    kept = writer(policy)
    long = [Prompt(tuple(range(5, 60)), "x")]
    kept.write(long)
    with torch.no_grad():
        for values in policy.model.parameters():
            values.add_(0.2 * torch.randn_like(values))
    rollout = kept.write(long)
    said = answer_logprobs(policy.model, rollout.ids, rollout.mask)
    torch.testing.assert_close(said.logprobs, rollout.engine, rtol=0, atol=2e-5)
    assert policy.model.training


def test_the_head_is_asked_at_answers_alone_and_says_the_same(policy):
    rollout = writer(policy).write(asked(policy))
    said = answer_logprobs(policy.model, rollout.ids, rollout.mask)
    logits = policy.model(rollout.ids).logits
    wanted = token_logprobs(logits, rollout.ids).masked_fill(~rollout.mask, 0.0)
    torch.testing.assert_close(said.logprobs, wanted, rtol=0, atol=1e-5)
    entropy = torch.distributions.Categorical(logits=logits[:, :-1]).entropy().masked_fill(~rollout.mask, 0.0)
    torch.testing.assert_close(said.entropy, entropy, rtol=0, atol=1e-5)
    assert said.logprobs.requires_grad and not said.entropy.requires_grad


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_reference_stays_where_the_policy_began(base, method):
    settings = FineTune(method=method, library="ours", lora=LoRAConfig(r=4))
    prepared = prepare_policy(str(base), settings)
    rollout = writer(prepared).write(asked(prepared))
    began = answer_logprobs(prepared.model, rollout.ids, rollout.mask).logprobs.detach()
    reference = Reference(prepared.model)
    with torch.no_grad():
        for values in prepared.model.parameters():
            if values.requires_grad:
                values.add_(0.1 * torch.randn_like(values))
    moved = answer_logprobs(prepared.model, rollout.ids, rollout.mask).logprobs
    torch.testing.assert_close(reference.logprobs(rollout.ids, rollout.mask), began, rtol=0, atol=1e-6)
    assert (moved - began).abs().max() > 0.05
    torch.testing.assert_close(answer_logprobs(prepared.model, rollout.ids, rollout.mask).logprobs, moved)
    assert not any("reference" in name for name, _ in prepared.model.named_parameters())


def test_a_reference_does_not_drop(base):
    """The policy is in training, with dropout; what it is compared with is not, and the mode is left as it was."""
    settings = FineTune(method="lora", library="ours", lora=LoRAConfig(r=4, lora_dropout=0.5))
    prepared = prepare_policy(str(base), settings)
    object.__setattr__(prepared.model.config, "attention_dropout", 0.5)
    rollout = writer(prepared).write(asked(prepared))
    prepared.model.train()
    reference = Reference(prepared.model)
    one, two = (reference.logprobs(rollout.ids, rollout.mask) for _ in range(2))
    assert torch.equal(one, two) and prepared.model.training
    assert not torch.equal(answer_logprobs(prepared.model, rollout.ids, rollout.mask).logprobs, one)


def test_adapters_come_back_after_an_error(base):
    prepared = prepare_policy(str(base), FineTune(method="lora", library="ours"))
    with pytest.raises(RuntimeError, match="inside"), without_adapters(prepared.model):
        assert not any("lora" in name for name, _ in prepared.model.named_parameters())
        raise RuntimeError("inside")
    assert any("lora" in name for name, _ in prepared.model.named_parameters())


def test_a_broken_model_is_told(policy):
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"no token could be drawn for the prompt .*not finite"):
        writer(policy).write(asked(policy))


# -- rounds -----------------------------------------------------------------------------------------------------------

PROMPTS = [Prompt((1, number), str(number)) for number in range(10)]


def tell(prompts, seeds):
    """A row an answer: the prompt's second token, and the answer's own seed."""
    ids = torch.tensor([[1, prompt.ids[1], seed + each] for prompt, seed in zip(prompts, seeds, strict=True)
                        for each in range(2)])  # fmt: skip
    return {"input_ids": ids, "lengths": torch.full((len(ids),), 3), "old": ids[:, 1:].float()}


def rounds(rank=0, world_size=1, **changes):
    sizes = {"prompts_per_round": 4, "group": 2, "batch_size": 2, "passes": 2, **changes}
    return Rounds(PROMPTS, tell, rank=rank, world_size=world_size, **sizes)


def test_rounds_show_every_answer_in_every_pass():
    batches = [batch["input_ids"] for batch in rounds()]
    assert len(batches) == len(rounds()) == 2 * 8
    for first in (0, 8):
        one, two = (sorted(torch.cat(batches[first + turn : first + turn + 4]).tolist()) for turn in (0, 4))
        assert one == two and len({row[2] for row in one}) == 8
        assert [b.tolist() for b in batches[first : first + 4]] != [b.tolist() for b in batches[first + 4 : first + 8]]
    shown = {row[1] for batch in batches for row in batch.tolist()}
    assert len(shown) == 8  # two prompts fill no round
    loader = rounds()
    seeds = [[row[2] for batch in loader for row in batch["input_ids"].tolist()] for _ in range(3)]
    assert len({*seeds[0], *seeds[1], *seeds[2]}) == 3 * 16  # no seed is drawn from twice


@pytest.mark.parametrize("steps", [0, 3, 8, 11, 16, 19])
def test_rounds_go_on_where_they_were(steps):
    loader, wanted = rounds(), []
    for _ in range(3):
        wanted += [batch["input_ids"].tolist() for batch in loader]
    first, taken = rounds(), []
    while len(taken) < steps:
        for batch in first:
            taken.append(batch["input_ids"].tolist())
            if len(taken) == steps:
                break
    again = rounds()
    again.load_state_dict(first.state_dict())
    while len(taken) < 48:
        taken += [batch["input_ids"].tolist() for batch in again]
    assert taken == wanted


def test_ranks_share_a_round():
    whole = sorted(row for batch in rounds(passes=1) for row in batch["input_ids"].tolist())
    shared = [row for rank in range(2) for batch in rounds(rank, 2, passes=1) for row in batch["input_ids"].tolist()]
    assert sorted(shared) == whole


def test_batches_are_as_long_as_their_longest_row():
    def make(prompts, seeds):
        ids = torch.arange(8 * 9).view(8, 9)
        return {"input_ids": ids, "lengths": torch.tensor([3, 3, 3, 3, 3, 3, 3, 9]), "old": ids[:, 1:].float()}

    sizes = {"prompts_per_round": 4, "group": 2, "batch_size": 2}
    shapes = [(batch["input_ids"].shape[1], batch["old"].shape[1]) for batch in Rounds(PROMPTS, make, **sizes)]
    assert set(shapes) == {(3, 2), (9, 8)} and shapes.count((9, 8)) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 3}, "choose numbers that divide each other"),
        ({"prompts_per_round": 12}, "less than a round of 12"),
    ],
)
def test_sizes_that_do_not_go_together(changes, words):
    with pytest.raises(ValueError, match=words):
        rounds(**changes)


def test_another_rounds_state_is_refused():
    with pytest.raises(ValueError, match="belongs to other prompts or sizes"):
        rounds(seed=1).load_state_dict(rounds().state_dict())
    with pytest.raises(ValueError, match="no state of a run"):
        rounds().load_state_dict({"epoch": 0})


def test_validation_prompts_are_shared_out():
    shared = [number for rank in range(3) for batch in Numbers(11, 2, rank, 3) for number in batch["numbers"].tolist()]
    assert sorted(shared) == list(range(11)) and {len(Numbers(11, 2, rank, 3)) for rank in range(3)} == {2}
    assert [len(each["numbers"]) for each in Numbers(1, 2, 1, 2)] == [0]


# -- what answers are worth -------------------------------------------------------------------------------------------


def test_a_reward_model_reads_the_last_token(base, tmp_path):
    from llm_align.models.scalar import save_scalar

    module = module_of("reward", str(base))
    save_scalar(module.model, module.prepared.tokenizer, tmp_path / "reward")
    policy = prepare_policy(str(base), FineTune(method="full"))
    rollout = writer(policy, group=9).write(asked(policy))
    found = ModelReward(tmp_path / "reward", policy.tokenizer)(rollout)
    for row in range(0, 45, 7):
        alone = module.model(rollout.ids[row : row + 1, : int(rollout.lengths[row])])
        torch.testing.assert_close(found[row], alone[0, -1], rtol=0, atol=1e-5)


def test_a_reward_model_of_other_words_is_refused(base, tmp_path):
    from llm_align.models.scalar import save_scalar
    from llm_data.tokenizers.fast import train_fast_tokenizer

    module = module_of("reward", str(base))
    save_scalar(module.model, train_fast_tokenizer(["other words, all of them"] * 9, 300), tmp_path / "reward")
    with pytest.raises(ValueError, match="has another tokenizer than the policy"):
        ModelReward(tmp_path / "reward", module.prepared.tokenizer)
    with pytest.raises(ValueError, match=re.escape("no such folder; give that of a reward model")):
        ModelReward(tmp_path / "nowhere", module.prepared.tokenizer)
    with pytest.raises(ValueError, match=r"ForSequenceClassification|weights lack"):
        ModelReward(base, module.prepared.tokenizer)


def test_a_reward_in_its_own_process(policy):
    reward = FunctionReward("builtins:len")  # takes one argument, so that every call fails
    with pytest.raises(ValueError, match="20 of 20 rewards failed"):
        reward(writer(policy).write(asked(policy)))
    reward.close()
