"""Meanings of tokens and concepts in closed form: latent semantic analysis of which tokens occur with which concepts.

Positive pointwise mutual information of tokens and concepts, cut to its largest singular directions (Deerwester et al.
1990; Levy & Goldberg 2014). A text's concept is then the one whose vector lies nearest to the mean of its tokens.
"""

from __future__ import annotations

from collections import Counter

import torch
from nano.material import Emoji, Material, Section
from nano.tokens import Writer
from torch import Tensor

NAME, KEYWORD, HEADING, TEXT = 2.0, 1.0, 2.0, 0.2
"""What one occurrence counts for."""
TEXT_CHARACTERS = 1500


def concept_key(concept: Emoji | Section) -> object:
    """One concept for a section in all its languages."""
    return concept.id if isinstance(concept, Section) else id(concept)


def concept_numbers(material: Material) -> dict[object, int]:
    keys = dict.fromkeys(concept_key(concept) for concept in [*material.emoji, *material.sections])
    return {key: number for number, key in enumerate(keys)}


def count(material: Material, writer: Writer, numbers: dict[object, int]) -> Tensor:
    """How often each token occurs with each concept, (vocabulary, concepts)."""
    counts: Counter[tuple[int, int]] = Counter()

    def add(text: str, number: int, weight: float) -> None:
        for token in writer.words(text):
            counts[token, number] += weight

    for emoji in material.emoji:
        number = numbers[concept_key(emoji)]
        for name in emoji.names.values():
            add(name, number, NAME)
        for words in emoji.keywords.values():
            for word in words:
                add(word, number, KEYWORD)
    for section in material.sections:
        number = numbers[concept_key(section)]
        add(section.heading, number, HEADING)
        add(section.text_[:TEXT_CHARACTERS], number, TEXT)
    table = torch.zeros(writer.config.decoder.vocab_size, len(numbers))
    tokens, concepts = torch.tensor(list(counts)).T
    table[tokens, concepts] = torch.tensor(list(counts.values()))
    return table


def meanings(counts: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Meaning of each token, length 1, (vocabulary, size); the logarithm of its weight, (vocabulary,); concepts' vectors,
    length 1, (concepts, size)."""
    expected = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True) / counts.sum()
    information = (counts / expected.clamp_min(1e-9)).clamp_min(1).log() * (counts / (counts + 1))
    left, _, right = torch.svd_lowrank(information, q=size, niter=6)
    weight = left.norm(dim=1)
    typical = weight[counts.sum(1) > 0].median()
    words = left / weight.clamp_min(1e-9)[:, None]
    return words, (weight / typical).clamp(0.02, 20).log(), torch.nn.functional.normalize(right, dim=1)
