"""Meanings of tokens and concepts in closed form: latent semantic analysis of which tokens occur with which concepts.

Positive pointwise mutual information of tokens and concepts, cut to its largest singular directions (Deerwester et al.
1990; Levy & Goldberg 2014). A text's concept is then the one whose vector lies nearest to the mean of its tokens.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import torch
from nano.material import SECTION_CHARACTERS, Drawing, Emoji, Material, Section
from nano.tokens import Writer
from torch import Tensor

NAME_WEIGHT, KEYWORD_WEIGHT, HEADING_WEIGHT, TEXT_WEIGHT = 2.0, 1.0, 2.0, 0.2
"""What one occurrence counts for."""
TEXT_CHARACTERS = 1500


def concept_key(concept: Emoji | Section | Drawing) -> object:
    """One concept for a section in all its languages, and one for all drawings of a folder."""
    if isinstance(concept, Section):
        return concept.id
    return tuple(concept.folder) if isinstance(concept, Drawing) else id(concept)


def concept_numbers(material: Material) -> dict[object, int]:
    """A number for each concept, emoji first and in order."""
    keys = dict.fromkeys(concept_key(concept) for concept in [*material.emoji, *material.studied, *material.drawings])
    return {key: number for number, key in enumerate(keys)}


def count_occurrences(material: Material, writer: Writer, numbers: dict[object, int]) -> Tensor:
    """How often each token occurs with each concept, (vocabulary, concepts)."""
    counts: Counter[tuple[int, int]] = Counter()

    def add(text: str, concept: Emoji | Section | Drawing, weight: float) -> None:
        for token in writer.words(text):
            counts[token, numbers[concept_key(concept)]] += weight

    for emoji in material.emoji:
        for name in emoji.names.values():
            add(name, emoji, NAME_WEIGHT)
        for words in emoji.keywords.values():
            for word in words:
                add(word, emoji, KEYWORD_WEIGHT)
    for section in material.studied:
        add(section.heading, section, HEADING_WEIGHT)
        add(section.text_[:TEXT_CHARACTERS], section, TEXT_WEIGHT)
    for drawing in material.drawings:
        add(drawing.name, drawing, NAME_WEIGHT)
    table = torch.zeros(writer.config.decoder.vocab_size, len(numbers))
    tokens, concepts = torch.tensor(list(counts)).T
    table[tokens, concepts] = torch.tensor(list(counts.values()))
    return table


def inverse_document_frequency(material: Material, writer: Writer) -> Tensor:
    """Inverse document frequency of each token as BM25 has it (Robertson & Zaragoza 2009), (vocabulary,): its mean over the languages
    that the token stands in, for "the" is frequent in English and rare among all. Documents: openings of sections, and functions,
    which count as a language."""
    texts: dict[str, list[str]] = defaultdict(list)
    for section in material.sections:
        texts[section.language].append(section.text_[:SECTION_CHARACTERS])
    texts["code"] = [function.code for function in material.functions]
    size = writer.config.decoder.vocab_size
    total, occurrences, rarest = torch.zeros(size), torch.zeros(size), 0.0
    for language_texts in texts.values():
        frequency = torch.zeros(size)
        for text in language_texts:
            frequency[list(set(writer.words(text)))] += 1
        inverse = (1 + (len(language_texts) - frequency + 0.5) / (frequency + 0.5)).log()
        total, occurrences = total + frequency * inverse, occurrences + frequency
        rarest = max(rarest, float(inverse.max()))
    return torch.where(occurrences > 0, total / occurrences.clamp_min(1), rarest).clamp_min(0.05)


def language_shares(material: Material, writer: Writer) -> tuple[list[str], Tensor]:
    """The sections' languages, and how much more each token speaks for each than by chance, (vocabulary, languages) in [0, 1]."""
    languages = sorted({section.language for section in material.sections})
    counts = torch.zeros(writer.config.decoder.vocab_size, len(languages))
    for section in material.sections:
        column = languages.index(section.language)
        tokens = torch.tensor(writer.words(f"{section.heading}\n{section.text_[:TEXT_CHARACTERS]}"))
        counts[:, column].index_add_(0, tokens, torch.ones(len(tokens)))
    total = counts.sum(1, keepdim=True)
    rates = counts / counts.sum(0).clamp_min(2000)
    share = rates / rates.sum(1, keepdim=True).clamp_min(1e-9)
    return languages, (share - 1 / len(languages)).clamp_min(0) * total / (total + 3)


def factorize_counts(counts: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Meaning of each token, length 1, (vocabulary, size); the logarithm of its weight, (vocabulary,); concepts' vectors,
    length 1, (concepts, size)."""
    expected = counts.sum(1, keepdim=True) * counts.sum(0, keepdim=True) / counts.sum()
    information = (counts / expected.clamp_min(1e-9)).clamp_min(1).log() * (counts / (counts + 1))
    left, _, right = torch.svd_lowrank(information, q=size, niter=6)
    weight = left.norm(dim=1)
    typical = weight[counts.sum(1) > 0].median()
    words = left / weight.clamp_min(1e-9)[:, None]
    return words, (weight / typical).clamp(0.02, 20).log(), torch.nn.functional.normalize(right, dim=1)
