"""The texts of the measured dialogues: the same in every run, as long as real ones, and no two alike."""

from __future__ import annotations

import random
from typing import Final

USER_CHARACTERS: Final = 120
ANSWER_CHARACTERS: Final = 400

_WORDS: Final = tuple(
    """the to a is it of in you for that and on with this be are can as not if your at or from by one when will we an
    but which there so then has more first after before only each other them they was were had have into out up
    down over under again once between while because until without within about also often never always usually
    perhaps soon later now here where why how what who both either neither every some any most few many much less
    least several another next last same new old good better best small large short long quick slow early late
    open closed empty full clear plain simple hard easy ready server client answer question message number table
    column row record file folder page line letter word sentence story garden kitchen window door bread butter
    apple lemon pepper river bridge harbour island valley meadow forest winter summer morning evening weather
    thunder lantern candle mirror ladder basket bottle pocket jacket teacher doctor farmer baker sailor writer
    painter neighbour stranger cousin daughter brother captain engine wheel signal ticket station platform journey
    mountain village market museum library theatre concert violin trumpet chapter recipe budget invoice customer
    contract deadline meeting schedule reminder password network printer keyboard battery backup release version
    feature measure compare remember forget explain describe suggest repair replace collect deliver arrange
    prepare consider decide follow finish begin continue return remain improve reduce increase separate combine
    translate summarise calculate walk run read write speak listen carry bring send keep hold turn move wait watch
    learn teach build break find lose seven eleven twenty hundred thousand percent minute hour week month century
    copper silver yellow purple orange
    """.split()  # noqa: SIM905 - three hundred quoted words are no better to read
)


def texts(count: int, characters: int, seed: int) -> list[str]:
    """Sentences of common words; frequent words are frequent in them, so that they pack about as well as prose does."""
    chance = random.Random(seed)
    weights = [1 / (rank + 3) for rank in range(len(_WORDS))]
    return [_text(chance, weights, characters) for _ in range(count)]


def _text(chance: random.Random, weights: list[float], characters: int) -> str:
    sentences: list[str] = []
    size = 0
    while size < characters:
        sentence = " ".join(chance.choices(_WORDS, weights, k=chance.randint(6, 14))).capitalize() + "."
        sentences.append(sentence)
        size += len(sentence) + 1
    return " ".join(sentences)[:characters]


def pieces(text: str, size: int = 4) -> tuple[str, ...]:
    """Cut into chunks about as long as tokens are."""
    return tuple(text[start : start + size] for start in range(0, len(text), size))
