"""A cross-encoder that can compare before it has learned anything: weights written down, not drawn at random.

Learning to compare two texts from a ranking loss alone takes a small transformer very long. What has to be found is known,
though, so the decoder starts as a circuit that does it, with all other weights small and random, and training goes on
from there. Every part stays free to change.

The stream of 384 numbers is divided: `MEANING`, which the score token, having none of its own, uses for the means it
gathers, `SPELLING`, in which words and pictures of words meet, and single numbers for flags.

    layer 0     every token learns whether it stands after the word "query" of the template
    layer 1     a query's token looks for document tokens that are spelled alike (head 0) and that mean the same (heads 1, 2);
                how much attention they draw is its match. Of spelling: the sum over the document's tokens of exp(22 cos), beside
                a sink of exp(10.5), so that a match grows from none at a cosine of 0.4 to a full one at 0.6. Of meaning, with n
                like tokens among L: n / (n + 1 + L exp(-s)), for it finds itself too; this saturates in n and falls with L as
                BM25's term does
    layers 2, 3 the score token takes the mean meaning of the query and of the document, weighted by each token's importance;
                the MLP multiplies the two means: silu(q) d - silu(-q) d = q d, then clears their place.
                Half of the meaning in layer 2, the other half in layer 3
    layer 4     the score token takes the query's mean match, weighted by each token's rarity as BM25 does, and multiplies the
                languages of query and document in the same way as their meanings; one head is free
    layer 5     free
    head        reads the products and the match

So the model starts as the bag of words that was trained before, together with a matcher of words and of their spelling.
`LEVEL_VALUE` is large beside all that the circuit writes, so that RMSNorm multiplies every token by nearly the same and sums stay
sums. No number that counts is the small difference of large ones, so that bfloat16's eight bits carry the circuit.
"""

from __future__ import annotations

import torch
from nano.spelling import SPELLING_SIZE
from nano.tokens import Writer
from torch import Tensor, nn
from torch.nn import functional as F

from m0.inputs.prompt import DOCUMENT_LEAD, QUERY_LEAD
from m0.model.decoder import DecoderLayer
from m0.model.reranker_model import RerankerModel

SIZE, MEANINGS = 384, 200
MEANING = slice(0, MEANINGS)
SPELLING = slice(MEANINGS, MEANINGS + SPELLING_SIZE)
LEVEL, TEMPLATE, QUERY_WORD, DOCUMENT_WORD, SCORE, AFTER, IMPORTANCE, PRODUCT = range(SPELLING.stop, SPELLING.stop + 8)
MATCH, MEAN_MATCH = slice(PRODUCT + 1, PRODUCT + 4), slice(PRODUCT + 4, PRODUCT + 7)
RARITY, LANGUAGE_PRODUCT = PRODUCT + 7, PRODUCT + 8
LANGUAGES = 40
LANGUAGE = slice(PRODUCT + 9, PRODUCT + 9 + LANGUAGES)
"""A number for each language of the manuals: how much a token speaks for it."""
EMBEDDING_CHANNELS = [*range(SPELLING.stop), IMPORTANCE, RARITY, *range(LANGUAGE.start, LANGUAGE.stop)]
"""What embeddings and visual tokens bring along; all else is the circuit's."""
LEVEL_VALUE = 8.0
"""What every token has at LEVEL: it keeps RMSNorm from levelling long and short meanings."""
WORD_SQUARES = 2.3
"""The squares of what a token brings along, about."""
FLAG_VALUE = 2.0
RARITY_SCALE = 0.25
"""The stream holds this times the logarithm of a token's rarity."""
RARITY_POWER = 1.6
"""A query's word counts as this power of its rarity: chosen, like the head's weights, on training sections that the words stage
has not seen."""
MATCH_SCALE, PRODUCT_SCALE = 0.3, 0.3
"""How large a full match and a product of means are in the stream."""
HEAD_SIZE, HEADS = 128, 3
HALF_MEANINGS = MEANINGS // 2  # what one layer compares
# Rotary pair j is (j, j + 64) and turns by 1e10^(-j/64) a token: the last pairs hardly turn, so they carry flags, and those
# before turn little within some hundred tokens, so they carry content.
ROPE_THETA = 1e10
FIRST_FLAG, SECOND_FLAG, THIRD_FLAG = 63, 62, 61
CONTENT_CHANNELS = [*range(16, 61), *range(80, 128)]
SPELLED, SHARP, BLUNT = 22.0, 16.0, 8.0
"""What a token of the same spelling or meaning scores in layer 1: one head wants the spelling, one the word, one what is like it."""
SINK_LOGITS = {SPELLED: 10.5, SHARP: 12.0, BLUNT: 5.0}
NOISE_STD = 0.01
HEAD_WEIGHTS = {
    PRODUCT: 16.0,
    LANGUAGE_PRODUCT: 1.0,
    MEAN_MATCH.start: 4.0,
    MEAN_MATCH.start + 1: 3.0,
    MEAN_MATCH.start + 2: 3.0,
}
"""What a full product or match adds to the logit."""


def norm_factor(*squares: float) -> float:
    """What RMSNorm multiplies a token with whose numbers have these squares beside LEVEL's."""
    return SIZE**0.5 / (LEVEL_VALUE**2 + sum(squares)) ** 0.5


def write_circuit(model: RerankerModel, writer: Writer, generator: torch.Generator) -> None:
    """Write the circuit around embeddings and vision tower that have been trained before."""
    with torch.no_grad():
        _embeddings(model, writer)
        for number, layer in enumerate(model.decoder.layers):
            _fill_with_noise(layer, NOISE_STD / 20 if number < 5 else NOISE_STD / 4, generator)
        layers = list(model.decoder.layers)
        _flag_query_tokens(layers[0])
        _write_match(layers[1])
        for half in (0, 1):
            _write_means(layers[2 + half], half)
        _write_match_and_language(layers[4])
        _write_head(model, generator)


def _embeddings(model: RerankerModel, writer: Writer) -> None:
    config, table = model.config, model.decoder.embed_tokens.weight
    others = [i for i in range(SIZE) if i not in EMBEDDING_CHANNELS]
    table[:, others] = 0.0
    # A word's length is a weight of its own. Matching wants lengths of 1, and the mean's direction stays if the importance takes it.
    length = table[:, MEANING].norm(dim=1).clamp_min(1e-3)
    # A match is of what a head's directions show of two words. A word must match itself as well as any other does itself, so
    # each head's share of it is brought to the length that it has on average.
    words = F.normalize(table[:, MEANING], dim=1)
    for directions in _match_directions():
        part = words @ directions.T
        target_norm = (len(CONTENT_CHANNELS) / MEANINGS) ** 0.5
        words += (F.normalize(part, dim=1) * target_norm - part) @ directions
    table[:, MEANING] = F.normalize(words, dim=1)
    table[:, IMPORTANCE] = (table[:, IMPORTANCE] + length.log()).clamp(-4, 3)
    last = model.vision.merger.mlp[2]
    last.weight[[*others, RARITY]], last.bias[[*others, RARITY]] = 0.0, 0.0  # visual tokens are all equally rare
    table[:, LEVEL] = last.bias[LEVEL] = LEVEL_VALUE
    frame = sorted({i for text in (DOCUMENT_LEAD, QUERY_LEAD) for i in writer.encode(text)})
    query_id, document_id = (writer.tokenizer.token_to_id(word) for word in ("query", "document"))
    template_ids = [*frame, config.score_token_id, config.vision_start_token_id, config.vision_end_token_id]
    table[torch.tensor(template_ids)[:, None], torch.tensor(EMBEDDING_CHANNELS)] = 0.0
    table[template_ids, TEMPLATE] = FLAG_VALUE
    table[query_id, QUERY_WORD] = table[document_id, DOCUMENT_WORD] = table[config.score_token_id, SCORE] = FLAG_VALUE


def _fill_with_noise(layer: DecoderLayer, noise: float, generator: torch.Generator) -> None:
    """Small random numbers: something to learn from that does not drown the circuit."""
    attention, mlp = layer.self_attn, layer.mlp
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        linear.weight.normal_(0.0, 2 * noise, generator=generator)
        linear.bias.zero_()
    attention.o_proj.weight.normal_(0.0, noise, generator=generator)
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight.normal_(0.0, SIZE**-0.5 / 2, generator=generator)
    mlp.down_proj.weight.normal_(0.0, noise / 2, generator=generator)


def _set_query_bias(layer: DecoderLayer, head: int, channel: int, strength: float) -> None:
    """A query number that is the same for every token; divided by sqrt(128) in the product, so times that here."""
    layer.self_attn.q_proj.bias[head * HEAD_SIZE + channel] = strength * HEAD_SIZE**0.5


def _flag_query_tokens(layer: DecoderLayer) -> None:
    attention = layer.self_attn
    at = norm_factor(FLAG_VALUE**2, FLAG_VALUE**2) * FLAG_VALUE
    _set_query_bias(layer, 0, FIRST_FLAG, 1.0)
    attention.k_proj.weight[FIRST_FLAG, QUERY_WORD], attention.k_proj.weight[FIRST_FLAG, DOCUMENT_WORD] = 24 / at, 12 / at
    attention.v_proj.weight[0, QUERY_WORD] = 1 / at
    attention.o_proj.weight[AFTER, 0] = FLAG_VALUE


def _match_directions() -> tuple[Tensor, ...]:
    """The part of the meaning that each of heads 1 and 2 compares, orthonormal, none of it another's, (content, meanings) each."""
    drawn = torch.randn(MEANINGS, 2 * len(CONTENT_CHANNELS), generator=torch.Generator().manual_seed(1))
    return torch.linalg.qr(drawn).Q.T.split(len(CONTENT_CHANNELS))


def _spelling_directions() -> Tensor:
    """The part of the spelling that head 0 compares, orthonormal, (content, spelling)."""
    drawn = torch.randn(SPELLING_SIZE, len(CONTENT_CHANNELS), generator=torch.Generator().manual_seed(2))
    return torch.linalg.qr(drawn).Q.T


def _write_match(layer: DecoderLayer) -> None:
    attention = layer.self_attn
    at, word = norm_factor(FLAG_VALUE**2, FLAG_VALUE**2) * FLAG_VALUE, norm_factor(WORD_SQUARES)
    after = norm_factor(FLAG_VALUE**2, WORD_SQUARES) * FLAG_VALUE
    rows = torch.tensor(CONTENT_CHANNELS)
    parts = (
        (_spelling_directions(), SPELLING, SPELLED),
        *zip(_match_directions(), (MEANING,) * 2, (SHARP, BLUNT), strict=True),
    )
    for head, (directions, part, same) in enumerate(parts):
        first = head * HEAD_SIZE
        directions = directions * (directions.shape[1] / len(CONTENT_CHANNELS)) ** 0.5 / word
        attention.k_proj.weight[first + rows, part] = directions
        attention.q_proj.weight[first + rows, part] = same * HEAD_SIZE**0.5 * directions
        # "document" lies outside the document; what a query's token finds there is found nowhere.
        attention.k_proj.weight[first + FIRST_FLAG, TEMPLATE] = -30 / at
        attention.k_proj.weight[first + FIRST_FLAG, DOCUMENT_WORD] = 30 / at
        attention.k_proj.weight[first + SECOND_FLAG, DOCUMENT_WORD] = 1 / at
        if same == SPELLED:  # by its spelling a token does not find itself, nor others of the query
            attention.k_proj.weight[first + THIRD_FLAG, AFTER] = -40 / after
            _set_query_bias(layer, head, THIRD_FLAG, 1.0)
        _set_query_bias(layer, head, FIRST_FLAG, 1.0)
        _set_query_bias(layer, head, SECOND_FLAG, SINK_LOGITS[same])
        attention.o_proj.weight[MATCH.start + head, first] = MATCH_SCALE
        # 1 for the document's tokens, 0 for the query's and the template's
        attention.v_proj.weight[first] = 0.0
        attention.v_proj.bias[first] = 1.0
        attention.v_proj.weight[first, AFTER] = -1 / after
        attention.v_proj.weight[first, TEMPLATE] = -1 / (norm_factor(FLAG_VALUE**2) * FLAG_VALUE)


def _attend_to_side(layer: DecoderLayer, weight: int, scale: float) -> None:
    """The score token looks at all of the query's tokens with head 0, at all of the document's with head 1, at each by the
    exponential of its number `weight` times `scale`."""
    attention = layer.self_attn
    token, query_token = norm_factor(WORD_SQUARES), norm_factor(FLAG_VALUE**2, WORD_SQUARES)
    marked = norm_factor(FLAG_VALUE**2, FLAG_VALUE**2) * FLAG_VALUE
    score = norm_factor(FLAG_VALUE**2, FLAG_VALUE**2, FLAG_VALUE**2) * FLAG_VALUE
    root = HEAD_SIZE**0.5
    for head, sign in ((0, 1.0), (1, -1.0)):
        row = head * HEAD_SIZE
        attention.k_proj.weight[row + FIRST_FLAG, AFTER] = 20 / (query_token * FLAG_VALUE)
        attention.k_proj.weight[row + SECOND_FLAG, TEMPLATE] = -40 / marked
        attention.k_proj.weight[row + SECOND_FLAG, weight] = scale / token
        # All other tokens look at the word "document", which has nothing to copy.
        attention.k_proj.weight[row + THIRD_FLAG, DOCUMENT_WORD] = 16 / marked
        attention.q_proj.weight[row + FIRST_FLAG, SCORE] = sign * root / score
        attention.q_proj.weight[row + SECOND_FLAG, SCORE] = root / score
        attention.q_proj.bias[row + THIRD_FLAG] = root
        attention.q_proj.weight[row + THIRD_FLAG, SCORE] = -root / score


def _write_means(layer: DecoderLayer, half: int) -> None:
    attention, token = layer.self_attn, norm_factor(WORD_SQUARES)
    _attend_to_side(layer, IMPORTANCE, 1.0)
    for head, side in ((0, 0), (1, HALF_MEANINGS)):
        for i in range(HALF_MEANINGS):
            attention.v_proj.weight[head * HEAD_SIZE + i, :] = 0.0
            attention.v_proj.weight[head * HEAD_SIZE + i, half * HALF_MEANINGS + i] = 1 / token
            attention.o_proj.weight[side + i, head * HEAD_SIZE + i] = 1.0
    _write_product(layer, HALF_MEANINGS, HALF_MEANINGS, PRODUCT)
    _write_clearing(layer, 2 * HALF_MEANINGS, MEANINGS)


def _write_match_and_language(layer: DecoderLayer) -> None:
    attention = layer.self_attn
    token, query_token = norm_factor(WORD_SQUARES), norm_factor(FLAG_VALUE**2, WORD_SQUARES)
    _attend_to_side(layer, RARITY, RARITY_POWER / RARITY_SCALE)
    for head, side in ((0, 0), (1, HALF_MEANINGS)):
        first = head * HEAD_SIZE
        attention.v_proj.weight[first : first + LANGUAGES + 3, :] = 0.0
        for i in range(LANGUAGES):
            attention.v_proj.weight[first + i, LANGUAGE.start + i] = 1 / token
            attention.o_proj.weight[side + i, first + i] = 1.0
    for i in range(3):
        attention.v_proj.weight[LANGUAGES + i, MATCH.start + i] = 1 / query_token
        attention.o_proj.weight[MEAN_MATCH.start + i, LANGUAGES + i] = 1.0
    _write_product(layer, LANGUAGES, HALF_MEANINGS, LANGUAGE_PRODUCT)
    _write_clearing(layer, 2 * LANGUAGES, HALF_MEANINGS + LANGUAGES)


def _write_product(layer: DecoderLayer, count: int, distance: int, into: int) -> None:
    """The product of the first `count` numbers with those `distance` further, summed."""
    mlp, at = layer.mlp, norm_factor(3 * FLAG_VALUE**2, 1.0)
    for i in range(count):
        for unit, sign in ((2 * i, 1.0), (2 * i + 1, -1.0)):
            _zero_unit(layer, unit)
            mlp.gate_proj.weight[unit, i] = sign
            mlp.up_proj.weight[unit, distance + i] = sign
            mlp.down_proj.weight[into, unit] = PRODUCT_SCALE / at**2


def _write_clearing(layer: DecoderLayer, first: int, count: int) -> None:
    """The score token forgets the means once they are multiplied: minus what stands there, gated by its flag. `first`: unit."""
    at, gate = norm_factor(3 * FLAG_VALUE**2, 1.0), 6.0
    for i in range(count):
        unit = first + i
        _zero_unit(layer, unit)
        layer.mlp.gate_proj.weight[unit, SCORE] = gate / (at * FLAG_VALUE)
        layer.mlp.up_proj.weight[unit, i] = 1.0
        layer.mlp.down_proj.weight[i, unit] = -1 / (gate * at)


def _zero_unit(layer: DecoderLayer, unit: int) -> None:
    layer.mlp.gate_proj.weight[unit] = layer.mlp.up_proj.weight[unit] = 0.0
    layer.mlp.down_proj.weight[:, unit] = 0.0


def _write_head(model: RerankerModel, generator: torch.Generator) -> None:
    """Two units for each number, one for what is above zero and one for what is below, so that none carries a large constant."""
    first, last = model.head[0], model.head[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    first.weight.normal_(0.0, 2 * NOISE_STD, generator=generator)
    first.bias.zero_()
    last.weight.normal_(0.0, 2 * NOISE_STD, generator=generator)
    at = norm_factor(3 * FLAG_VALUE**2)
    first.weight[: 2 * len(HEAD_WEIGHTS)] = 0.0
    for number, (channel, weight) in enumerate(HEAD_WEIGHTS.items()):
        full = PRODUCT_SCALE if channel in (PRODUCT, LANGUAGE_PRODUCT) else MATCH_SCALE
        for unit, sign in ((2 * number, 1.0), (2 * number + 1, -1.0)):
            first.weight[unit, channel] = sign / (full * at)
            last.weight[0, unit] = sign * weight
    last.bias.fill_(2.65 - 4.0)


def meaning_and_importance(states: Tensor) -> tuple[Tensor, Tensor]:
    """What layer 2 takes of embeddings (tokens, hidden): meanings (tokens, 200) and importances (tokens,), levelled alike."""
    level = (LEVEL_VALUE**2 + states[:, EMBEDDING_CHANNELS].square().sum(1)).rsqrt() * (LEVEL_VALUE**2 + WORD_SQUARES) ** 0.5
    return states[:, MEANING] * level[:, None], states[:, IMPORTANCE] * level


def bag_means(states: Tensor, owners: Tensor, count: int) -> Tensor:
    """What layers 2 and 3 pool: the mean meaning by importance of each bag, (count, 200).

    Args:
        states: embeddings of all bags' tokens, (tokens, hidden).
        owners: number of each token's bag, (tokens,).
        count: bags.
    """
    words, importance = meaning_and_importance(states)
    weight = importance.clamp(-8, 8).exp()[:, None]
    total = torch.zeros(count, MEANINGS).index_add(0, owners, words * weight)
    return total / torch.zeros(count, 1).index_add(0, owners, weight).clamp_min(1e-6)
