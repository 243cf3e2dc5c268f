"""Small models of every causal family that transformers builds from a few sizes, with weights large enough to tell."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

SLOW = {"falcon_h1"}  # its recurrence without a kernel takes seconds, whatever its size
FAMILIES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - SLOW)
VOCAB = 60
SIZES = {
    VOCAB: "vocab_size",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_key_value_heads num_kv_heads "
    "n_kv_heads num_experts_per_tok top_k moe_topk num_decoder_layers",
    4: "num_attention_heads n_head n_heads attention_heads decoder_attention_heads encoder_attention_heads num_heads "
    "num_experts num_local_experts n_routed_experts moe_num_experts rotary_dim state_size",
    8: "head_dim attention_head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim",
    16: "q_lora_rank kv_lora_rank",
    32: "hidden_size d_model n_embd dim word_embed_proj_dim emb_dim embedding_size hidden_dim",
    48: "intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim ffn_hidden_size moe_intermediate_size "
    "shared_expert_intermediate_size dff d_inner inner_dim",
    64: "max_position_embeddings n_positions max_seq_len n_ctx",
}
SIZE_OF = {key: size for size, keys in SIZES.items() for key in keys.split()}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MOST_PARAMETERS = 500_000


def small_config(family):
    """The family's configuration with each size that it has made small."""
    kind = CONFIG_MAPPING[family]
    default = kind()
    known = default.to_dict() | {"num_hidden_layers": getattr(default, "num_hidden_layers", "")}
    sizes = {
        key: size
        for key, size in SIZE_OF.items()
        if key in known and (known[key] is None or (isinstance(known[key], int) and not isinstance(known[key], bool)))
    }
    return kind(**sizes, **{key: end for key, end in ENDS.items() if getattr(default, key, None) is not None})


def build(family, **changes):
    """A model in evaluation mode; None where these sizes do not make one, or not a small one."""
    try:
        config = small_config(family)
        for key, value in changes.items():
            setattr(config, key, value)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        if sum(parameter.numel() for parameter in model.parameters()) > MOST_PARAMETERS:
            return None
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        with torch.no_grad():
            model(torch.arange(3, 19)[None], use_cache=False)
    except Exception:  # sizes that a family wants otherwise: it is not in the zoo
        return None
    return model
