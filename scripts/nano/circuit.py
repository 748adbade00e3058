"""A cross-encoder that can compare before it has learned anything: weights written down, not drawn at random.

Learning to compare two texts from a ranking loss alone takes a small transformer very long. What has to be found is known,
though, so the decoder starts as a circuit that does it, with all other weights small and random, and training goes on
from there. Every part stays free to change.

The stream of 256 numbers is divided: `MEANING`, which the score token, having none of its own, uses for the means it
gathers, and single numbers for flags.

    layer 0     every token learns whether it stands after the word "query" of the template
    layer 1     a query's token looks for document tokens of like meaning; how much attention they draw is its match: with n
                like tokens among L, n / (n + 1 + L exp(-s)), for it finds itself too; this saturates in n and falls with L as
                BM25's term does
    layers 2, 3 the score token takes the mean meaning of the query and of the document, weighted by each token's importance;
                the MLP multiplies the two means: silu(q) d - silu(-q) d = q d, then clears their place.
                Half of the meaning in layer 2, the other half in layer 3
    layer 4     the score token takes the query's mean match, weighted by each token's rarity as BM25 does, and multiplies the
                languages of query and document in the same way as their meanings; two heads are free
    layer 5     free
    head        reads the products and the match

So the model starts as the bag of words that was trained before, and as a matcher of words beside it. `HEIGHT` is large
beside all that the circuit writes, so that RMSNorm multiplies every token by nearly the same and sums stay sums.
"""

from __future__ import annotations

import torch
from nano.tokens import Writer
from torch import Tensor, nn
from torch.nn import functional as F

from m0.inputs.prompt import DOCUMENT_LEAD, QUERY_LEAD
from m0.model.decoder import DecoderLayer
from m0.model.reranker_model import RerankerModel

SIZE, MEANINGS = 256, 200
MEANING = slice(0, MEANINGS)
LEVEL, TEMPLATE, QUERY_WORD, DOCUMENT_WORD, SCORE, AFTER, IMPORTANCE, PRODUCT = range(200, 208)
MATCH, MEAN_MATCH = slice(208, 212), slice(212, 216)
RARITY, LANGUAGE_PRODUCT = 216, 217
LANGUAGES = 30
LANGUAGE = slice(218, 218 + LANGUAGES)
"""A number for each language of the manuals: how much a token speaks for it."""
WRITTEN = [*range(MEANINGS), IMPORTANCE, RARITY, *range(LANGUAGE.start, LANGUAGE.stop)]
"""What embeddings and visual tokens bring along; all else is the circuit's."""
HEIGHT = 8.0
"""What every token has at LEVEL: it keeps RMSNorm from levelling long and short meanings."""
WORD = 1.3
"""The squares of what a token brings along, about."""
FLAG = 2.0
RARITY_SCALE = 0.25
"""The stream holds this times the logarithm of a token's rarity."""
RARITY_POWER = 1.6
"""A query's word counts as this power of its rarity: chosen, like the head's weights, on training sections that the words stage
has not seen."""
MATCHED, MULTIPLIED = 0.3, 0.3
"""How large a full match and a product of means are in the stream."""
HEAD, HEADS, GROUPS = 64, 4, 2
HALF = MEANINGS // 2  # what one layer compares
SHARE = HALF // GROUPS  # what one key/value head carries of it
# Rotary pair j is (j, j + 32) and turns by 1e6^(-j/32) a token: the last pairs hardly turn, so they carry flags, and those
# before turn little within some hundred tokens, so they carry meaning.
CONTENT = [*range(16, 29), *range(48, 64)]
SHARP, BLUNT = 16.0, 8.0
"""What a token of the same meaning scores in layer 1: one head of each group wants the word, the other what is like it."""
SINK = {SHARP: 12.0, BLUNT: 5.0}
NOISE = 0.01


def normalised(*squares: float) -> float:
    """What RMSNorm multiplies a token with whose numbers have these squares beside LEVEL's."""
    return SIZE**0.5 / (HEIGHT**2 + sum(squares)) ** 0.5


def write_circuit(model: RerankerModel, writer: Writer, generator: torch.Generator) -> None:
    """Write the circuit around embeddings and vision tower that have been trained before."""
    with torch.no_grad():
        _embeddings(model, writer)
        for number, layer in enumerate(model.decoder.layers):
            _quiet(layer, NOISE / 20 if number < 5 else NOISE / 4, generator)
        layers = list(model.decoder.layers)
        _after_the_query_word(layers[0])
        _match(layers[1])
        for half in (0, 1):
            _means(layers[2 + half], half)
        _match_and_language(layers[4])
        _head(model, generator)


def _embeddings(model: RerankerModel, writer: Writer) -> None:
    config, table = model.config, model.decoder.embed_tokens.weight
    others = [i for i in range(SIZE) if i not in WRITTEN]
    table[:, others] = 0.0
    # A word's length is a weight of its own. Matching wants lengths of 1, and the mean's direction stays if the importance takes it.
    length = table[:, MEANING].norm(dim=1).clamp_min(1e-3)
    # A match is of what each group's directions show of two words. A word must match itself as well as any other does itself, so
    # each group's share of it is brought to the length that it has on average.
    words = F.normalize(table[:, MEANING], dim=1)
    for directions in _directions():
        shown = words @ directions.T
        usual = (len(CONTENT) / MEANINGS) ** 0.5
        words += (F.normalize(shown, dim=1) * usual - shown) @ directions
    table[:, MEANING] = F.normalize(words, dim=1)
    table[:, IMPORTANCE] = (table[:, IMPORTANCE] + length.log()).clamp(-4, 3)
    last = model.vision.merger.mlp[2]
    last.weight[[*others, RARITY]], last.bias[[*others, RARITY]] = 0.0, 0.0  # visual tokens are all equally rare
    table[:, LEVEL] = last.bias[LEVEL] = HEIGHT
    frame = sorted({i for text in (DOCUMENT_LEAD, QUERY_LEAD) for i in writer.encode(text)})
    query_id, document_id = (writer.tokenizer.token_to_id(word) for word in ("query", "document"))
    marked = [*frame, config.score_token_id, config.vision_start_token_id, config.vision_end_token_id]
    table[torch.tensor(marked)[:, None], torch.tensor(WRITTEN)] = 0.0
    table[marked, TEMPLATE] = FLAG
    table[query_id, QUERY_WORD] = table[document_id, DOCUMENT_WORD] = table[config.score_token_id, SCORE] = FLAG


def _quiet(layer: DecoderLayer, noise: float, generator: torch.Generator) -> None:
    """Small random numbers: something to learn from that does not drown the circuit."""
    attention, mlp = layer.self_attn, layer.mlp
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        linear.weight.normal_(0.0, 2 * noise, generator=generator)
        linear.bias.zero_()
    attention.o_proj.weight.normal_(0.0, noise, generator=generator)
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight.normal_(0.0, SIZE**-0.5 / 2, generator=generator)
    mlp.down_proj.weight.normal_(0.0, noise / 2, generator=generator)


def _ask(layer: DecoderLayer, heads: tuple[int, ...], channel: int, strength: float) -> None:
    """A query number that is the same for every token; divided by sqrt(64) in the product, so times 8 here."""
    for head in heads:
        layer.self_attn.q_proj.bias[head * HEAD + channel] = strength * HEAD**0.5


def _after_the_query_word(layer: DecoderLayer) -> None:
    attention = layer.self_attn
    at = normalised(FLAG**2, FLAG**2) * FLAG
    _ask(layer, (0, 1), 31, 1.0)
    attention.k_proj.weight[31, QUERY_WORD], attention.k_proj.weight[31, DOCUMENT_WORD] = 24 / at, 12 / at
    attention.v_proj.weight[0, QUERY_WORD] = 1 / at
    for head in (0, 1):
        attention.o_proj.weight[AFTER, head * HEAD] = FLAG / 2


def _directions() -> tuple[Tensor, ...]:
    """The part of the meaning that each group of layer 1 compares, orthonormal, none of it another's, (content, meanings) each."""
    drawn = torch.randn(MEANINGS, GROUPS * len(CONTENT), generator=torch.Generator().manual_seed(1))
    return torch.linalg.qr(drawn).Q.T.split(len(CONTENT))


def _match(layer: DecoderLayer) -> None:
    attention = layer.self_attn
    at, word = normalised(FLAG**2, FLAG**2) * FLAG, normalised(WORD)
    for group, directions in enumerate(_directions()):
        directions = directions * (MEANINGS / len(CONTENT)) ** 0.5 / word
        rows = torch.tensor(CONTENT)
        attention.k_proj.weight[group * HEAD + rows, MEANING] = directions
        # "document" lies outside the document; what a query's token finds there is found nowhere.
        attention.k_proj.weight[group * HEAD + 31, TEMPLATE] = -30 / at
        attention.k_proj.weight[group * HEAD + 31, DOCUMENT_WORD] = 30 / at
        attention.k_proj.weight[group * HEAD + 30, DOCUMENT_WORD] = 1 / at
        for head, same in ((2 * group, SHARP), (2 * group + 1, BLUNT)):
            attention.q_proj.weight[head * HEAD + rows, MEANING] = same * HEAD**0.5 * directions
            _ask(layer, (head,), 31, 1.0)
            _ask(layer, (head,), 30, SINK[same])
            attention.o_proj.weight[MATCH.start + head, head * HEAD] = MATCHED
        value = group * HEAD  # 1 for the document's tokens, 0 for the query's and the template's
        attention.v_proj.bias[value] = 1.0
        attention.v_proj.weight[value, AFTER] = -1 / (normalised(FLAG**2, WORD) * FLAG)
        attention.v_proj.weight[value, TEMPLATE] = -1 / (normalised(FLAG**2) * FLAG)


def _look_at_a_side(layer: DecoderLayer, group: int, weight: int, scale: float) -> None:
    """The score token looks at all of the query's tokens with the first head of the group, at all of the document's with the
    second, at each by the exponential of its number `weight` times `scale`."""
    attention, key = layer.self_attn, group * HEAD
    token, query_token = normalised(WORD), normalised(FLAG**2, WORD)
    marked = normalised(FLAG**2, FLAG**2) * FLAG
    score = normalised(FLAG**2, FLAG**2, FLAG**2) * FLAG
    eight = HEAD**0.5
    attention.k_proj.weight[key + 31, AFTER] = 20 / (query_token * FLAG)
    attention.k_proj.weight[key + 30, TEMPLATE] = -40 / marked
    attention.k_proj.weight[key + 30, weight] = scale / token
    # All other tokens look at the word "document", which has nothing to copy.
    attention.k_proj.weight[key + 29, DOCUMENT_WORD] = 16 / marked
    for head, sign in ((2 * group, 1.0), (2 * group + 1, -1.0)):
        row = head * HEAD
        attention.q_proj.weight[row + 31, SCORE] = sign * eight / score
        attention.q_proj.weight[row + 30, SCORE] = eight / score
        attention.q_proj.bias[row + 29] = eight
        attention.q_proj.weight[row + 29, SCORE] = -eight / score


def _means(layer: DecoderLayer, half: int) -> None:
    attention, token = layer.self_attn, normalised(WORD)
    for group in range(GROUPS):
        _look_at_a_side(layer, group, IMPORTANCE, 1.0)
        for i in range(SHARE):
            attention.v_proj.weight[group * HEAD + i, :] = 0.0
            attention.v_proj.weight[group * HEAD + i, half * HALF + group * SHARE + i] = 1 / token
            for head, side in ((2 * group, 0), (2 * group + 1, HALF)):
                attention.o_proj.weight[side + group * SHARE + i, head * HEAD + i] = 1.0
    _multiply(layer, HALF, HALF, PRODUCT)
    _clear(layer, 2 * HALF, MEANINGS)


def _match_and_language(layer: DecoderLayer) -> None:
    attention = layer.self_attn
    token, query_token = normalised(WORD), normalised(FLAG**2, WORD)
    _look_at_a_side(layer, 0, RARITY, RARITY_POWER / RARITY_SCALE)
    attention.v_proj.weight[: LANGUAGES + 4, :] = 0.0
    for i in range(LANGUAGES):
        attention.v_proj.weight[i, LANGUAGE.start + i] = 1 / token
        attention.o_proj.weight[i, i] = 1.0
        attention.o_proj.weight[HALF + i, HEAD + i] = 1.0
    for i in range(4):
        attention.v_proj.weight[LANGUAGES + i, MATCH.start + i] = 1 / query_token
        attention.o_proj.weight[MEAN_MATCH.start + i, LANGUAGES + i] = 1.0
    _multiply(layer, LANGUAGES, HALF, LANGUAGE_PRODUCT)
    _clear(layer, 2 * LANGUAGES, HALF + LANGUAGES)


def _multiply(layer: DecoderLayer, count: int, distance: int, into: int) -> None:
    """The product of the first `count` numbers with those `distance` further, summed."""
    mlp, at = layer.mlp, normalised(3 * FLAG**2, 1.0)
    for i in range(count):
        for unit, sign in ((2 * i, 1.0), (2 * i + 1, -1.0)):
            _unit(layer, unit)
            mlp.gate_proj.weight[unit, i] = sign
            mlp.up_proj.weight[unit, distance + i] = sign
            mlp.down_proj.weight[into, unit] = MULTIPLIED / at**2


def _clear(layer: DecoderLayer, first: int, count: int) -> None:
    """The score token forgets the means once they are multiplied: minus what stands there, gated by its flag. `first`: unit."""
    at, gate = normalised(3 * FLAG**2, 1.0), 6.0
    for i in range(count):
        unit = first + i
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
    at = normalised(3 * FLAG**2)
    reads = {PRODUCT: (16.0, MULTIPLIED), LANGUAGE_PRODUCT: (1.0, MULTIPLIED), MEAN_MATCH.start: (3.0, MATCHED)}
    reads |= {MEAN_MATCH.start + 2: (3.0, MATCHED)}
    first.weight[: len(reads)] = 0.0
    first.bias[: len(reads)] = 4.0  # far from the corner of ReLU
    for unit, (channel, (worth, full)) in enumerate(reads.items()):
        first.weight[unit, channel] = 1 / (full * at)
        last.weight[0, unit] = worth
    last.bias.fill_(2.65 - 4.0 * sum(worth for worth, _ in reads.values()) - 4.0)


def meaning(states: Tensor) -> tuple[Tensor, Tensor]:
    """What layer 2 takes of embeddings (tokens, hidden): meanings (tokens, 200) and importances (tokens,), levelled alike."""
    level = (HEIGHT**2 + states[:, WRITTEN].square().sum(1)).rsqrt() * (HEIGHT**2 + WORD) ** 0.5
    return states[:, MEANING] * level[:, None], states[:, IMPORTANCE] * level


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
