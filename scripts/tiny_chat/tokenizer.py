"""The tokenizer and the chat template: words of phrasings whole, names in letters.

A word that is met often is one token. Every other word is cut into its letters (the bytes of their
UTF-8), in the same way after a space, in quotes and in JSON, since what is cut alike can be copied.
There is nothing between the two: no pieces of words, so no name is cut by what it looks like.
"""

import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from scripts.tiny_chat.words import LETTERS

VOCABULARY = 2048
MAX_LENGTH = 2048
OFTEN = 24
"""A word that is met less often is cut into letters."""

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
END = "<|end|>"
PAD = "<|pad|>"
# Not special tokens: the parsers of reasoning and of tool calls look for them in the text.
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

WORDS = r" ?\p{L}[\p{L}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+|\s"

CHAT_TEMPLATE = """\
{%- if tools -%}
<|system|>You may call
{%- for tool in tools %} {{ tool.function.name }}(
{%- set wanted = (tool.function.parameters or {}).required | default([]) -%}
{%- for name, about in ((tool.function.parameters or {}).properties | default({})).items() -%}
{{- ', ' if not loop.first }}{{ name }}{{ '?' if wanted and name not in wanted }}
{{- ': ' ~ about.type if about.type in ('integer', 'number', 'boolean', 'array', 'object') }}
{%- endfor -%}
){%- endfor -%}
<|end|>
{%- endif -%}
{%- if enable_thinking -%}<|system|>Think first.<|end|>{%- endif -%}
{%- for message in messages -%}
{{ '<|system|>' if message.role == 'developer' else '<|' ~ message.role ~ '|>' }}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] -%}
<tool_call>
{{ {"name": call.function.name, "arguments": call.function.arguments} | tojson }}
</tool_call>
{%- endfor -%}
<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def new_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are the most frequent ones of the texts."""
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fixed = [PAD, END, *ROLES, *MARKS]
    words = _frequent(texts, splitter, VOCABULARY - len(fixed) - len(alphabet))
    names = [PAD, END, *ROLES, *alphabet, *words]
    vocabulary = {name: number for number, name in enumerate(names)}
    # No merges: a word that is no token of its own stays in bytes.
    bytes_or_words = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    bytes_or_words.pre_tokenizer = splitter
    bytes_or_words.decoder = decoders.ByteLevel()
    bytes_or_words.add_special_tokens([PAD, END, *ROLES])
    marks = [AddedToken(mark, special=False, normalized=False) for mark in MARKS]
    bytes_or_words.add_tokens(marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_or_words,
        eos_token=END,
        pad_token=PAD,
        model_max_length=MAX_LENGTH,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _frequent(texts: Iterable[str], splitter: pre_tokenizers.PreTokenizer, most: int) -> list[str]:
    """The words of several bytes that are met most often, but for those that are to be copied."""
    marks = re.compile("|".join(map(re.escape, (PAD, END, *ROLES, *MARKS))))
    found = Counter(
        word
        for text in texts
        for part in marks.split(text)
        for word, _ in splitter.pre_tokenize_str(part)
    )
    # Only ASCII: characters of other scripts are to arrive in several tokens, as from real models.
    words = [
        word
        for word, count in found.most_common()
        if count >= OFTEN and len(word) > 1 and _may_be_whole(_plain(word))
    ]
    return words[:most]


def _may_be_whole(plain: str) -> bool:
    """Not what is to be copied: names, and single letters but for the words among them."""
    single = len(plain) == 1 and plain.isalpha() and plain not in "aI"
    return bool(plain) and not single and plain.lower() not in LETTERS


def _plain(word: str) -> str:
    """The word without the sign for its leading space; empty for other scripts."""
    plain = word.removeprefix("Ġ")
    return plain if plain.isascii() and plain else ""
