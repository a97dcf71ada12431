"""Makes the file that the engine loads from what the package of all-MiniLM-L6-v2 holds: weights and vocabulary.

From safetensors and a list of words to GGUF, without another library: the weights of the large matrices are rounded to
16 bits, which changes a vector by less than one part in a million. The same input always gives the same bytes, so that
the file is pinned by its hash like one that was fetched. It knows this one model only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

import msgspec

LAYERS: Final = 6
HEADS: Final = 12
WIDTH: Final = 384
"""Numbers of a vector."""
INNER: Final = 1536
CONTEXT: Final = 512
"""Tokens that it can read at a time. It was trained on texts of up to 256."""
EPSILON: Final = 1e-12

# Types of GGUF, version 3.
_VERSION: Final = 3
_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _INT32 = 4, 6, 7, 8, 9, 5
_TENSOR_F32, _TENSOR_F16 = 0, 1
_ALIGNMENT: Final = 32
_NORMAL, _CONTROL = 1, 3
_MEAN: Final = 1
"""Pooling: the mean over all tokens."""

_SPECIAL: Final = {"padding": "[PAD]", "unknown": "[UNK]", "cls": "[CLS]", "seperator": "[SEP]", "mask": "[MASK]"}
"""`seperator` is how the format writes it."""
_EMBEDDINGS: Final = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
_LAYER: Final = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_EXACT: Final = frozenset({"position_embd", "token_types"})
"""Matrices that the engine wants in 32 bits."""
_CHUNK: Final = 1 << 18


class _Held(msgspec.Struct, frozen=True):
    """Where a tensor stands in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class _Tensor(msgspec.Struct, frozen=True):
    """A tensor on its way into the new file."""

    name: str
    shape: tuple[int, ...]
    begin: int
    """Of its bytes in the old file."""
    halved: bool
    """To 16 bits a number."""

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        return self.numbers * (2 if self.halved else 4)


def make(parts: Sequence[Path], target: Path) -> None:
    """Write the file. `parts`: the weights and the vocabulary; see `models.weights.Make`."""
    weights, vocabulary = parts
    words = vocabulary.read_text("utf-8").split("\n")[:-1]
    with weights.open("rb") as source, target.open("wb") as out:
        tensors = _tensors(source)
        out.write(_head(words, tensors))
        out.write(bytes(-out.tell() % _ALIGNMENT))
        for tensor in tensors:
            for piece in _numbers(source, tensor):
                out.write(piece)
            out.write(bytes(-tensor.size % _ALIGNMENT))


def _tensors(source: IO[bytes]) -> list[_Tensor]:
    """What the engine needs of a safetensors file, in its order; the rest is for training."""
    (length,) = struct.unpack("<Q", source.read(8))
    listed = msgspec.json.decode(source.read(length), type=dict[str, msgspec.Raw])
    listed.pop("__metadata__", None)
    names = dict(_EMBEDDINGS)
    for layer in range(LAYERS):
        names |= {f"encoder.layer.{layer}.{old}": f"blk.{layer}.{new}" for old, new in _LAYER.items()}
    tensors = []
    for old, raw in listed.items():
        module, _, kind = old.rpartition(".")
        if (name := names.get(module)) is None:
            continue
        held = msgspec.json.decode(raw, type=_Held)
        halved = len(held.shape) == 2 and name not in _EXACT
        tensors.append(_Tensor(f"{name}.{kind}", held.shape, 8 + length + held.data_offsets[0], halved))
    return tensors


def _numbers(source: IO[bytes], tensor: _Tensor) -> Iterator[bytes]:
    source.seek(tensor.begin)
    left = tensor.numbers * 4
    while left:
        piece = source.read(min(left, _CHUNK))
        left -= len(piece)
        count = len(piece) // 4
        yield struct.pack(f"<{count}e", *struct.unpack(f"<{count}f", piece)) if tensor.halved else piece


def _head(words: Sequence[str], tensors: Sequence[_Tensor]) -> bytes:
    facts = _facts(words)
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(facts)), *facts]
    offset = 0
    for tensor in tensors:
        kind = _TENSOR_F16 if tensor.halved else _TENSOR_F32
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        parts += (_text(tensor.name), shape, struct.pack("<IQ", kind, offset))
        offset += tensor.size + -tensor.size % _ALIGNMENT
    return b"".join(parts)


def _facts(words: Sequence[str]) -> list[bytes]:
    """What the engine has to know of the model: its shape, how vectors are made, how text becomes tokens."""
    special = {name: words.index(word) for name, word in _SPECIAL.items()}
    special |= {"bos": special["cls"], "eos": special["seperator"]}
    kinds = [_CONTROL if word in _SPECIAL.values() else _NORMAL for word in words]
    tokens = b"".join(_text(_token(word)) for word in words)
    return [
        _fact("general.architecture", _STRING, _text("bert")),
        _fact("general.name", _STRING, _text("all-MiniLM-L6-v2")),
        _fact("general.license", _STRING, _text("apache-2.0")),
        _number("bert.block_count", LAYERS),
        _number("bert.context_length", CONTEXT),
        _number("bert.embedding_length", WIDTH),
        _number("bert.feed_forward_length", INNER),
        _number("bert.attention.head_count", HEADS),
        _fact("bert.attention.layer_norm_epsilon", _FLOAT32, struct.pack("<f", EPSILON)),
        _fact("bert.attention.causal", _BOOL, b"\0"),
        _number("bert.pooling_type", _MEAN),
        _fact("tokenizer.ggml.model", _STRING, _text("bert")),
        _fact("tokenizer.ggml.pre", _STRING, _text("default")),
        _number("tokenizer.ggml.token_type_count", 2),
        _fact("tokenizer.ggml.tokens", _ARRAY, struct.pack("<IQ", _STRING, len(words)) + tokens),
        _fact("tokenizer.ggml.token_type", _ARRAY, struct.pack(f"<IQ{len(kinds)}i", _INT32, len(kinds), *kinds)),
        *[_number(f"tokenizer.ggml.{name}_token_id", token) for name, token in special.items()],
    ]


def _token(word: str) -> str:
    """The engine marks where a word begins; the vocabulary marks with ## where one goes on."""
    if word.startswith("[") and word.endswith("]"):
        return word
    return word[2:] if word.startswith("##") else "\N{LOWER ONE EIGHTH BLOCK}" + word


def _number(key: str, value: int) -> bytes:
    return _fact(key, _UINT32, struct.pack("<I", value))


def _fact(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
