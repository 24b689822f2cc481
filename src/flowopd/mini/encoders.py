"""The mini world's text side: two tiny CLIP encoders and a tiny T5, with tokenizers made from its vocabulary.

Every word of a caption is one token; a sign's string is spelt out, one T5 token a character, so spelling reaches the
transformer through T5, as it does in Stable Diffusion 3 (2403.03206).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from flowopd.mini.captions import caption, reworded
from flowopd.mini.wishes import random_wish
from flowopd.mini.world import LETTERS, TASKS
from flowopd.types import Condition

TOKENS = 16
"""Length of each of the two blocks of text tokens, CLIP's and T5's."""

WIDTH = 128
"""Width of the text tokens that the transformer sees: T5's, and the two CLIPs' side by side."""


@dataclass(frozen=True)
class TextSide:
    """Tokenizers and encoders in the order of a `StableDiffusion3Pipeline`: CLIP, CLIP, T5."""

    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase, PreTrainedTokenizerBase]
    encoders: nn.ModuleList

    def tokenize(self, captions: list[str]) -> Tensor:
        """(B, 2, TOKENS) int64: CLIP's ids, which both CLIPs share, and T5's."""
        clip, _, t5 = (
            tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids
            for tokenizer in self.tokenizers
        )
        return torch.stack([clip, t5], 1)

    def encode(self, ids: Tensor) -> Condition:
        """What `StableDiffusion3Pipeline.encode_prompt` gives for these ids, with gradients."""
        first, second = (encoder(ids[:, 0], output_hidden_states=True) for encoder in self.encoders[:2])
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        t5 = self.encoders[2](ids[:, 1])[0]
        return Condition(
            {
                "prompt_embeds": torch.cat([clip, t5], 1),
                "pooled_prompt_embeds": torch.cat([first.text_embeds, second.text_embeds], -1),
            }
        )


def new_text_side() -> TextSide:
    """Untrained encoders with their tokenizers."""
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    encoders = nn.ModuleList([_clip(len(clip), clip), _clip(len(clip), clip), _t5(len(t5))])
    return TextSide((clip, clip_tokenizer(), t5), encoders)


def vocabulary() -> list[str]:
    """Every lower-case word and mark that captions use, sorted."""
    rng = np.random.default_rng(0)
    words: set[str] = set()
    for task in (*TASKS, "text"):
        for _ in range(1500):
            wish = random_wish(task, rng)
            text = " ".join(
                [caption(wish, "composition", rng), caption(wish, "quality", rng), reworded(wish, "quality", rng)]
            )
            words.update(re.sub(r'"[^"]*"', "", text).split())
    return sorted(words)


def clip_tokenizer() -> CLIPTokenizer:
    """Byte-pair merges in which each word of the vocabulary becomes one token."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        special_tokens=[start, end, *(f"{letter}</w>" for letter in alphabet)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(vocabulary(), trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return CLIPTokenizer(
        vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]], model_max_length=TOKENS
    )


def t5_tokenizer() -> T5Tokenizer:
    """A unigram vocabulary of whole words, and single characters for all else."""
    words = [(f"▁{word}", -2.0) for word in vocabulary()]
    letters = [(letter, -4.0) for letter in LETTERS]
    marks = [('"', -3.0), ('▁"', -3.0)]
    known = {piece for piece, _ in [*words, *letters, *marks]}
    others = [(chr(code), -9.0) for code in range(33, 127) if chr(code) not in known]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -5.0)]
    pieces = special + words + letters + marks + others
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TOKENS)


def _clip(vocab_size: int, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=WIDTH // 2,
            intermediate_size=WIDTH * 2,
            projection_dim=WIDTH // 2,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


NEIGHBOURS = {1: 0, 9: 1, 2: 2, 10: 3}
"""Bucket of a relative position -> the head that starts by looking there: one and two tokens back and ahead."""

ATTENTIVE = 5.0
"""The bias with which it does: about nine tenths of its attention."""


@torch.no_grad()
def _t5(vocab_size: int) -> T5EncoderModel:
    """A T5 whose heads look at neighbours at first, so that the order of words is there to be learned from.

    Drawn as T5 draws them, the biases of relative positions are far weaker than the embeddings, and the encoder stays
    blind to order.
    """
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=vocab_size,
            d_model=WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
    bias = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    for bucket, head in NEIGHBOURS.items():
        bias[bucket, head] += ATTENTIVE
    return t5
