"""A cross-encoder that can compare before it has learned anything: weights written down, not drawn at random.

Learning to compare two texts from a ranking loss alone takes a small transformer very long. What has to be found is known,
though, so the decoder starts as a circuit that does it, with all other weights small and random, and training goes on
from there. Every part stays free to change.

The stream of 256 numbers is divided: `MEANING`, which the score token, having none of its own, uses for the means it
gathers, and single numbers for flags.

    layer 0     every token learns whether it stands after the word "query" of the template
    layer 1     a query's token looks for document tokens of like meaning; how much attention they draw is its match: with n
                like tokens among L, n / (n + L exp(-s) + sink), which saturates in n and falls with L as BM25's term does
    layers 2, 3 the score token takes the mean meaning of the query and of the document, weighted by each token's importance,
                and the query's mean match; the MLP multiplies the two means: silu(q) d - silu(-q) d = q d.
                Half of the meaning in layer 2, then the place is cleared and the other half follows in layer 3
    layers 4, 5 free
    head        reads product and match

So the model starts as the bag of words that the warm start trained, and as a matcher of words beside it.
"""

from __future__ import annotations

import torch
from nano.tokens import Writer
from torch import Tensor, nn

from m0.decoder import DecoderLayer
from m0.model import RerankerModel
from m0.prompt import DOCUMENT_LEAD, QUERY_LEAD

SIZE, MEANINGS = 256, 200
MEANING = slice(0, MEANINGS)
LEVEL, TEMPLATE, QUERY_WORD, DOCUMENT_WORD, SCORE, AFTER, IMPORTANCE, PRODUCT = range(200, 208)
MATCH, MEAN_MATCH = slice(208, 212), slice(212, 216)
HEIGHT = 3.0
"""What every token has at LEVEL: it keeps RMSNorm from levelling long and short meanings."""
WORD = 1.3
"""The squares of a token's meaning and importance together, about."""
FLAG = 2.0
HEAD, HEADS, GROUPS = 64, 4, 2
HALF = MEANINGS // 2  # what one layer compares
SHARE = HALF // GROUPS  # what one key/value head carries of it
# Rotary pair j is (j, j + 32) and turns by 1e6^(-j/32) a token: the last pairs hardly turn, so they carry flags, and those
# before turn little within some hundred tokens, so they carry meaning.
CONTENT = [*range(13, 28), *range(45, 60)]
NOISE = 0.01


def normalised(*squares: float) -> float:
    """What RMSNorm multiplies a token with whose numbers have these squares beside LEVEL's."""
    return SIZE**0.5 / (HEIGHT**2 + sum(squares)) ** 0.5


def write_circuit(model: RerankerModel, writer: Writer, generator: torch.Generator) -> None:
    """Write the circuit around embeddings and vision tower that the warm start has trained."""
    with torch.no_grad():
        _embeddings(model, writer)
        for number, layer in enumerate(model.decoder.layers):
            _quiet(layer, NOISE / 10 if number < 4 else NOISE, generator)
        layers = list(model.decoder.layers)
        _after_the_query_word(layers[0])
        _match(layers[1], generator)
        _pool_and_multiply(layers[2], 0)
        _clear(layers[2])
        _pool_and_multiply(layers[3], 1)
        _head(model, generator)


def _embeddings(model: RerankerModel, writer: Writer) -> None:
    config, table = model.config, model.decoder.embed_tokens.weight
    kept = [*range(MEANING.start, MEANING.stop), IMPORTANCE]
    others = [i for i in range(SIZE) if i not in kept]
    table[:, others] = 0.0
    last = model.vision.merger.mlp[2]
    last.weight[others], last.bias[others] = 0.0, 0.0
    table[:, LEVEL] = last.bias[LEVEL] = HEIGHT
    frame = sorted({i for text in (DOCUMENT_LEAD, QUERY_LEAD) for i in writer.encode(text)})
    query_id, document_id = (writer.tokenizer.token_to_id(word) for word in ("query", "document"))
    marked = [*frame, config.score_token_id, config.vision_start_token_id, config.vision_end_token_id]
    table[marked, MEANING], table[marked, IMPORTANCE] = 0.0, 0.0
    table[marked, TEMPLATE] = FLAG
    table[query_id, QUERY_WORD] = table[document_id, DOCUMENT_WORD] = table[config.score_token_id, SCORE] = FLAG


def _quiet(layer: DecoderLayer, joining: float, generator: torch.Generator) -> None:
    """Small random numbers: something to learn from that does not drown the circuit. `joining`: of what joins the stream."""
    attention, mlp = layer.self_attn, layer.mlp
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        linear.weight.normal_(0.0, 2 * NOISE, generator=generator)
        linear.bias.zero_()
    attention.o_proj.weight.normal_(0.0, joining, generator=generator)
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight.normal_(0.0, SIZE**-0.5 / 2, generator=generator)
    mlp.down_proj.weight.normal_(0.0, joining / 2, generator=generator)


def _ask(layer: DecoderLayer, heads: tuple[int, ...], channel: int, strength: float) -> None:
    """A query number that is the same for every token; divided by sqrt(64) in the product, so times 8 here."""
    for head in heads:
        layer.self_attn.q_proj.bias[head * HEAD + channel] = strength * HEAD**0.5


def _after_the_query_word(layer: DecoderLayer) -> None:
    attention = layer.self_attn
    at = normalised(FLAG**2, FLAG**2) * FLAG
    _ask(layer, (0, 1), 31, 1.0)
    attention.k_proj.weight[31, QUERY_WORD], attention.k_proj.weight[31, DOCUMENT_WORD] = 24 / at, 12 / at
    attention.v_proj.weight[:HEAD] *= 0.1
    attention.v_proj.weight[0, QUERY_WORD] = 1 / at
    for head in (0, 1):
        attention.o_proj.weight[AFTER, head * HEAD] = FLAG / 2


def _match(layer: DecoderLayer, generator: torch.Generator) -> None:
    attention = layer.self_attn
    at = normalised(FLAG**2, FLAG**2) * FLAG
    for group in range(GROUPS):
        directions = torch.linalg.qr(torch.randn(MEANINGS, len(CONTENT), generator=generator)).Q.T
        directions *= (MEANINGS / len(CONTENT)) ** 0.5
        rows = torch.tensor(CONTENT)
        attention.k_proj.weight[group * HEAD + rows, MEANING] = 1.6 * directions
        for head in (2 * group, 2 * group + 1):
            attention.q_proj.weight[head * HEAD + rows, MEANING] = 1.6 * directions
            _ask(layer, (head,), 31, 1.0)
            attention.o_proj.weight[MATCH.start + head, head * HEAD] = FLAG
        attention.k_proj.weight[group * HEAD + 31, TEMPLATE] = -6 / at
        attention.k_proj.weight[group * HEAD + 31, DOCUMENT_WORD] = (6 + 5.5) / at
        value = group * HEAD  # 1 for the document's tokens, 0 for the query's and the template's
        attention.v_proj.bias[value] = 1.0
        attention.v_proj.weight[value, AFTER] = -1 / (normalised(FLAG**2, WORD) * FLAG)
        attention.v_proj.weight[value, TEMPLATE] = -1 / (normalised(FLAG**2) * FLAG)


def _pool_and_multiply(layer: DecoderLayer, half: int) -> None:
    attention, mlp = layer.self_attn, layer.mlp
    token, query_token = normalised(WORD), normalised(FLAG**2, WORD)
    marked = normalised(FLAG**2, FLAG**2) * FLAG
    score = normalised(FLAG**2, FLAG**2, FLAG**2) * FLAG
    eight = HEAD**0.5
    for head in range(HEADS):
        group, wants_query = head // 2, head % 2 == 0
        row, key = head * HEAD, group * HEAD
        attention.q_proj.weight[row + 31, SCORE] = (eight if wants_query else -eight) / score
        attention.k_proj.weight[key + 31, AFTER] = 20 / (query_token * FLAG)
        attention.q_proj.weight[row + 30, SCORE] = eight / score
        attention.k_proj.weight[key + 30, TEMPLATE] = -40 / marked
        attention.k_proj.weight[key + 30, IMPORTANCE] = 1 / token
        # All other tokens look at the word "document", which has no meaning to copy.
        attention.q_proj.bias[row + 29] = eight
        attention.q_proj.weight[row + 29, SCORE] = -eight / score
        attention.k_proj.weight[key + 29, DOCUMENT_WORD] = 16 / marked
        mean = (0 if wants_query else HALF) + group * SHARE
        for i in range(SHARE):
            attention.o_proj.weight[mean + i, row + i] = 1.0
        if wants_query and half == 0:
            for i in (0, 1):
                attention.o_proj.weight[MEAN_MATCH.start + 2 * group + i, row + SHARE + i] = 1.0
    for group in range(GROUPS):
        for i in range(SHARE):
            attention.v_proj.weight[group * HEAD + i, :] = 0.0
            attention.v_proj.weight[group * HEAD + i, half * HALF + group * SHARE + i] = 1 / token
        for i in (0, 1):
            attention.v_proj.weight[group * HEAD + SHARE + i, MATCH.start + 2 * group + i] = 1 / query_token
    for i in range(HALF):
        for unit, sign in ((2 * i, 1.0), (2 * i + 1, -1.0)):
            _unit(layer, unit)
            mlp.gate_proj.weight[unit, i] = sign
            mlp.up_proj.weight[unit, HALF + i] = sign
            mlp.down_proj.weight[PRODUCT, unit] = 0.6


def _clear(layer: DecoderLayer) -> None:
    """The score token forgets the means once they are multiplied: minus what stands there, gated by its flag."""
    at = normalised(3 * FLAG**2, 1.0, 1.0)
    gate = 6.0
    for i in range(MEANINGS):
        unit = 2 * HALF + i
        _unit(layer, unit)
        layer.mlp.gate_proj.weight[unit, SCORE] = gate / (at * FLAG)
        layer.mlp.up_proj.weight[unit, i] = 1.0
        layer.mlp.down_proj.weight[i, unit] = -1 / (gate * at)


def _unit(layer: DecoderLayer, unit: int) -> None:
    layer.mlp.gate_proj.weight[unit] = layer.mlp.up_proj.weight[unit] = 0.0
    layer.mlp.down_proj.weight[:, unit] = 0.0


def _head(model: RerankerModel, generator: torch.Generator) -> None:
    first, last = model.head[0], model.head[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    first.weight.normal_(0.0, 2 * NOISE, generator=generator)
    first.bias.zero_()
    last.weight.normal_(0.0, 2 * NOISE, generator=generator)
    first.weight[:2] = 0.0
    first.weight[0, PRODUCT] = first.weight[1, MEAN_MATCH] = 1.0
    first.bias[:2] = 4.0  # far from the corner of ReLU
    last.weight[0, 0], last.weight[0, 1] = 3.0, 1.0
    last.bias.fill_(2.65 - 4.0 * (3.0 + 1.0) - 3.0)


def meaning(states: Tensor) -> tuple[Tensor, Tensor]:
    """What layer 2 takes of embeddings (tokens, hidden): meanings (tokens, 200) and importances (tokens,), levelled alike."""
    words, weight = states[:, MEANING], states[:, IMPORTANCE]
    level = (HEIGHT**2 + words.pow(2).sum(1) + weight.pow(2)).rsqrt() * (HEIGHT**2 + WORD) ** 0.5
    return words * level[:, None], weight * level


def bag_means(states: Tensor, owners: Tensor, count: int) -> Tensor:
    """What layers 2 and 3 pool: the mean meaning by importance of each bag, (count, 200).

    Args:
        states: embeddings of all bags' tokens, (tokens, hidden).
        owners: number of each token's bag, (tokens,).
        count: bags.
    """
    words, importance = meaning(states)
    weight = importance.clamp(-8, 8).exp()[:, None]
    total = torch.zeros(count, MEANINGS).index_add(0, owners, words * weight)
    return total / torch.zeros(count, 1).index_add(0, owners, weight).clamp_min(1e-6)
