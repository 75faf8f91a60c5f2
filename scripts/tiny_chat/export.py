"""Writes a trained network down as vLLM and transformers read it."""

from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.tiny_chat.network import EPSILON, ROTARY_BASE, Network
from scripts.tiny_chat.tokenizer import MAX_LENGTH


def export(network: Network, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model and its tokenizer into `folder`."""
    shape = network.shape
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head,
        attention_bias=True,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=EPSILON,
        rope_theta=ROTARY_BASE,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    weights = {name: weight.detach() for name, weight in network.named().items()}
    # Llama has these too, where queries and keys have biases.
    zeros = {f"model.layers.{i}.self_attn.o_proj.bias" for i in range(shape.layers)}
    weights |= {name: torch.zeros(shape.width) for name in zeros}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    # What vLLM samples with when the request does not say: near what it has read.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.3,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
