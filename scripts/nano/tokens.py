"""m0-nano's tokenizer, and pieces of prompts packed for the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from nano.material import Content
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from m0.inputs.images import ImageSettings, Picture, prepare_picture
from m0.inputs.prompt import DOCUMENT_LEAD, QUERY_LEAD
from m0.model.attention import Packing
from m0.model.config import RerankerConfig
from m0.model.reranker_model import RerankerModel
from m0.model.rotary import Grid, mrope_positions

IMAGE_SETTINGS = ImageSettings(min_pixels=84 * 84, max_pixels=768 * 28 * 28)
"""Small pictures are enlarged to 3 x 3 visual tokens, so that most that the tower sees come at one scale; large ones are
reduced to what the released model takes."""
VOCABULARY_SIZE = 24_000  # without the special tokens
SPECIAL_TOKENS = """
    <|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
    <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
""".split()
SCORE_TOKEN = 100
# Words with the space before them, Chinese and Japanese characters one by one, numbers by up to three digits with the space
# before them, punctuation, whitespace.
PRETOKEN_PATTERN = r"[\p{Han}]| ?[^\s\p{Han}\p{P}\p{S}\p{N}]+| ?\p{N}{1,3}| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The first word of a line is written like any other word, with a blank before it: one token for one word.
LINE_START_PATTERN = r"\n(?=[^\s\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Khmer}\p{Myanmar}\p{P}\p{S}])"


def train_tokenizer(texts: Iterable[str], out: Path) -> Tokenizer:
    """A byte-level BPE on lower-cased text with Qwen2-VL's special tokens, written to OUT/tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(LINE_START_PATTERN), "\n ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    frame = DOCUMENT_LEAD + QUERY_LEAD
    tokenizer.train_from_iterator((f"\n{text}" for text in (*[frame] * 5000, *texts)), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    assert tokenizer.id_to_token(SCORE_TOKEN) == "§", "the byte alphabet puts the score token at id 100"
    assert tokenizer.encode(frame).tokens.count("query") == 1, "the words of the frame are whole tokens"
    return tokenizer


@dataclass
class Piece:
    """Tokens of a document with its template, or of a query with the score token."""

    ids: list[int] = field(default_factory=list)
    runs: list[int | Grid] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)

    def add(self, ids: list[int]) -> None:
        self.ids += ids
        if self.runs and isinstance(self.runs[-1], int):
            self.runs[-1] += len(ids)
        else:
            self.runs.append(len(ids))


class Writer:
    """Text and pictures -> Piece, in the prompt's words (see `m0.inputs.prompt`)."""

    def __init__(self, tokenizer: Tokenizer, config: RerankerConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.cache: dict[str, list[int]] = {}

    def picture(self, image: Image.Image) -> Picture:
        """Resized as for 2x2 merging, whatever the model merges, so that models see the same pixels."""
        picture = prepare_picture(image, IMAGE_SETTINGS)
        return replace(picture, settings=replace(picture.settings, merge_size=self.config.vision.spatial_merge_size))

    def encode(self, text: str) -> list[int]:
        if (ids := self.cache.get(text)) is None:
            ids = self.tokenizer.encode(text).ids
            if len(text) < 60:
                self.cache[text] = ids
        return ids

    def words(self, text: str) -> list[int]:
        """A text's tokens as they are where it follows the template."""
        return self.encode(f"\n{text}")[1:]

    def document(self, content: Content) -> Piece:
        return self._write(DOCUMENT_LEAD, content, QUERY_LEAD, [])

    def query(self, content: Content) -> Piece:
        if isinstance(content, str):
            piece = Piece()
            piece.add([*self.words(content), self.config.score_token_id])
            return piece
        return self._write("", content, "", [self.config.score_token_id])

    def _write(self, before: str, content: Content, after: str, last: list[int]) -> Piece:
        piece, text = Piece(), before
        for part in content if isinstance(content, list) else [content]:
            if isinstance(part, str):
                text += part
                continue
            picture = self.picture(part)
            piece.add([*self.encode(text), self.config.vision_start_token_id])
            piece.ids += [self.config.image_token_id] * picture.num_tokens
            piece.runs.append(picture.token_grid)
            piece.pictures.append(picture)
            piece.add([self.config.vision_end_token_id])
            text = ""
        piece.add([*self.encode(text + after), *last])
        return piece


def next_position(runs: list[int | Grid]) -> int:
    return sum(run if isinstance(run, int) else max(run) for run in runs)


def compute_visual_tokens(model: RerankerModel, pictures: list[Picture]) -> list[Tensor]:
    """Visual tokens of each picture, (tokens, hidden)."""
    features = model.vision(torch.cat([picture.patches for picture in pictures]), [picture.grid for picture in pictures])
    return list(features.split([picture.num_tokens for picture in pictures]))


def pack(model: RerankerModel, pieces: list[Piece], parents: list[int | None]) -> tuple[Tensor, Tensor, Packing]:
    """Pieces end to end: embeddings, positions, packing. A picture goes through the vision tower once, however often shown."""
    ids, positions = [], []
    pictures = {id(picture): picture for piece in pieces for picture in piece.pictures}
    for piece, parent in zip(pieces, parents, strict=True):
        start = 0 if parent is None else next_position(pieces[parent].runs)
        ids.extend(piece.ids)
        positions.append(mrope_positions(piece.runs) + start)
    features = None
    if pictures:
        features_by_picture = dict(zip(pictures, compute_visual_tokens(model, list(pictures.values())), strict=True))
        features = torch.cat([features_by_picture[id(picture)] for piece in pieces for picture in piece.pictures])
    packing = Packing([len(piece.ids) for piece in pieces], causal=True, prefix_of=parents)
    return model.embed(torch.tensor(ids), features), torch.cat(positions, dim=1), packing
