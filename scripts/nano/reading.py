"""Training: the vision tower learns to read, from lines and pages of text drawn at each step.

Every visual token has to say, of its cell of 28 x 28 pixels,

1. which letter stands at each of four places across it (a help of the first stage, by a layer that is thrown away);
2. which letter trigrams have their middle in it (softmax of cosines with the trigrams' fixed vectors, several right answers), and
   later all trigrams of the words that it shows a part of;
3. which word it shows most of (softmax over the spellings of the step's words and others), later;
4. nothing, where there is no text: its spelling has length 0.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import torch
from nano.circuit import IMPORTANCE, LANGUAGE, MEANING, SPELLING
from nano.material import Material
from nano.pages import Drawn, Faces, choose_style, degrade, draw_crop, draw_page, pieces_of, script_of, unspaced
from nano.spelling import Spelling, fold, trigrams_of
from nano.tokens import Writer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from m0.inputs.images import Picture

SCRIPT_SHARES = {"latin": 0.70, "cyrillic": 0.19, "greek": 0.11}
"""Of the texts drawn. Other scripts have to wait for a longer course."""
CROP_SHAPES = ((336, 112), (336, 112), (280, 140), (448, 84), (224, 168), (392, 196))
KNOWN_LETTERS = 110
PLAIN_FACES = re.compile(r"/(NotoSans-Regular|NotoSerif-Regular|DejaVuSans|LiberationSerif-Regular)\.ttf")
PLAIN_LANGUAGES = ("en", "de", "fr", "es", "it", "nl")
"""What reading begins with."""
KNOWN_WORDS = 15_000
"""Words that stand beside those of a step."""
PLACES = 4
TRIGRAM_SCALE, WORD_SCALE = 30.0, 24.0
NEGATIVE_TRIGRAMS, NEGATIVE_WORDS = 3000, 1500
CODE_LETTERS = "ABCDEFGHKLMNPRSTUVWXYZ"
BLANK_IMPORTANCE = -3.0
"""Importance of a visual token that speaks for no meaning: of what is read, and of what shows nothing."""


@dataclass
class Read:
    """What the visual tokens of a step's pictures show."""

    tokens: int
    letter_places: Tensor
    """Token times 4 plus place, of each letter, (letters,)."""
    letters: Tensor
    """Number of each letter, (letters,)."""
    trigram_tokens: Tensor
    trigrams: Tensor
    """Number of each known trigram whose middle lies in a token, (trigrams,)."""
    around_tokens: Tensor
    around: Tensor
    """The same of the other trigrams of words that a token shows a part of."""
    word_tokens: Tensor
    words: list[str]
    """The word that a token shows most letters of."""
    blank: Tensor
    """Tokens that no word touches, (blank,)."""


class Texts:
    """Texts of every language to draw words and lines from."""

    def __init__(self, material: Material) -> None:
        sections: dict[str, list[str]] = defaultdict(list)
        vocabulary: dict[str, Counter[str]] = defaultdict(Counter)
        for section in material.sections:
            sections[section.language].append(f"{section.heading}. {section.text_}")
            vocabulary[section.language].update(pieces_of(f"{section.heading} {section.text_[:1500]}", section.language))
        for emoji in material.emoji:
            for language in emoji.languages:
                for text in [emoji.names.get(language, ""), *emoji.keywords.get(language, [])]:
                    vocabulary[language].update(pieces_of(text, language))
        self.sections = dict(sections)
        self.vocabulary = {language: list(words) for language, words in vocabulary.items() if len(words) > 200}
        self.languages: dict[str, list[str]] = defaultdict(list)
        for language in self.vocabulary:
            self.languages[script_of(language)].append(language)

    def language(self, rng: random.Random) -> str:
        languages = self.languages.get(draw_script(rng)) or self.languages["latin"]
        weights = [len(self.vocabulary[language]) ** 0.5 for language in languages]
        return rng.choices(languages, weights)[0]

    def line(self, language: str, pieces: int, rng: random.Random) -> str:
        """Running text, words of the language by themselves, or numbers and codes among them."""
        own, joiner = self.sections.get(language), "" if unspaced(language) else " "
        if own and rng.random() < 0.45:
            text = rng.choice(own)
            start = rng.randrange(max(1, len(text) - 8 * pieces))
            text = text[start : start + 14 * pieces]
            text = text[text.find(" ") + 1 :] if joiner else text
        else:
            text = joiner.join(rng.choices(self.vocabulary[language], k=pieces))
        if rng.random() < 0.25:
            words = text.split(" ")
            for _ in range(1 + len(words) // 5):
                words.insert(rng.randrange(len(words) + 1), code(rng))
            text = " ".join(words)
        chance = rng.random()
        return text.upper() if chance < 0.06 else text.title() if chance < 0.14 else text


def draw_script(rng: random.Random) -> str:
    return rng.choices(list(SCRIPT_SHARES), list(SCRIPT_SHARES.values()))[0]


def code(rng: random.Random) -> str:
    """A number, a date, a version or a part's number."""
    kind = rng.randrange(5)
    if kind == 0:
        return str(rng.randrange(10 ** rng.randint(1, 6)))
    if kind == 1:
        return f"{rng.randint(1900, 2040)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    if kind == 2:
        return f"{rng.randint(0, 30)}.{rng.randint(0, 99)}"
    if kind == 3:
        return f"{''.join(rng.choices(CODE_LETTERS, k=rng.randint(1, 3)))}{rng.randint(1, 9999)}"
    return f"{rng.randint(1, 999)},{rng.randint(0, 99):02} {rng.choice(['€', '$', '%', 'kg', 'km', 'MB'])}"


class Reading:
    """Pictures of text and what has to be said of them."""

    def __init__(self, material: Material, writer: Writer, spelling: Spelling, faces: Faces, hidden: int, seed: int) -> None:
        self.texts, self.writer, self.spelling, self.faces = Texts(material), writer, spelling, faces
        self.sections = [section for section in material.sections if len(section.text_) > 300]
        self.by_script = defaultdict(list)
        for section in self.sections:
            self.by_script[script_of(section.language)].append(section)
        seen = [set(faces.seen[script]) for script in SCRIPT_SHARES]
        self.plain_faces = sorted(set.intersection(*seen), key=lambda face: face.path)
        self.plain_faces = [face for face in self.plain_faces if PLAIN_FACES.search(face.path)]
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        letters: Counter[str] = Counter()
        for languages in (self.texts.languages[script] for script in SCRIPT_SHARES):
            for language in languages:
                for word in self.texts.vocabulary[language]:
                    letters.update(fold(word))
        common = [letter for letter, _ in letters.most_common() if re.match(r"[^\W_]", letter)]
        self.letter_number = {letter: number for number, letter in enumerate(common[:KNOWN_LETTERS])}
        self.letters = nn.Linear(hidden, PLACES * KNOWN_LETTERS)
        common_words = [word for word, _ in spelling.word_counts.most_common(6 * KNOWN_WORDS) if len(word) > 1]
        self.vocabulary = random.Random(seed).sample(common_words, min(KNOWN_WORDS, len(common_words)))
        self.word_vectors = spelling.of_words(self.vocabulary)

    # --- pictures -----------------------------------------------------------------------------------------------------

    def crop(
        self, sizes: tuple[int, int], shape: tuple[int, int] = CROP_SHAPES[0], noise: float = 1.0
    ) -> tuple[Image.Image, Drawn]:
        """Lines of text; without noise in few typefaces, black on white: the first letters are learned from these."""
        rng = self.rng
        language = self.texts.language(rng) if noise else rng.choice(PLAIN_LANGUAGES)
        size = round(sizes[0] * (sizes[1] / sizes[0]) ** rng.random())
        pieces = 3 + int(shape[0] * shape[1] / (size * size * 3.5))
        text = self.texts.line(language, pieces * (4 if unspaced(language) else 1), rng)
        text = text if noise else " ".join(rng.choices(self.texts.vocabulary[language], k=pieces)).lower()
        face = self.faces.choose(language, rng) if noise else rng.choice(self.plain_faces)
        picture, drawn = draw_crop(text, language, face, size, shape, rng, plain=not noise)
        return degrade(picture, drawn, rng, noise)

    def page(self) -> tuple[Image.Image, Drawn]:
        rng = self.rng
        section = rng.choice(self.by_script.get(draw_script(rng)) or self.by_script["latin"])
        style = choose_style(section.language, self.faces, rng)
        picture, drawn = draw_page(section.heading, section.text_[:3000], section.language, style, rng)
        if rng.random() < 0.5:  # a crop of it
            width, height = 28 * rng.randint(10, 20), 28 * rng.randint(6, 14)
            x, y = rng.randrange(max(1, picture.width - width)), rng.randrange(max(1, (picture.height - height) // 2))
            picture, drawn = picture.crop((x, y, x + width, y + height)), drawn.moved(-x, -y)
        return degrade(picture, drawn, rng, 0.6)

    def batch(
        self, crops: int, pages: int, sizes: tuple[int, int] = (12, 40), noise: float = 1.0
    ) -> tuple[list[Picture], Read]:
        shape = self.rng.choice(CROP_SHAPES)  # one for all: attention inside pictures of one size is one product
        shown = [self.crop(sizes, shape, noise) for _ in range(crops)] + [self.page() for _ in range(pages)]
        pictures = [self.writer.picture(image) for image, _ in shown]
        return pictures, self.describe([(image.size, drawn) for image, drawn in shown], pictures)

    def describe(self, shown: list[tuple[tuple[int, int], Drawn]], pictures: list[Picture]) -> Read:
        letter_places: dict[int, tuple[float, int]] = {}
        centred: set[tuple[int, int]] = set()
        around: set[tuple[int, int]] = set()
        word_of_token: dict[int, Counter[str]] = defaultdict(Counter)
        touched: set[int] = set()
        first = 0
        for (size, drawn), picture in zip(shown, pictures, strict=True):
            rows, columns = picture.token_grid
            across, down = columns / size[0], rows / size[1]
            for word, box, middles in zip(drawn.words, drawn.boxes, drawn.middles, strict=True):
                top, bottom = max(0, int(box[1] * down)), min(rows - 1, int(box[3] * down))
                for row in range(top, bottom + 1):
                    for column in range(max(0, int(box[0] * across)), min(columns - 1, int(box[2] * across)) + 1):
                        touched.add(first + row * columns + column)
                trigrams = [self.spelling.number.get(t, -1) for t in trigrams_of(word)]
                own = []
                for number, (x, y) in enumerate(middles):
                    column, row = x * across, y * down
                    if not (0 <= column < columns and 0 <= row < rows):
                        own.append(-1)
                        continue
                    token = first + int(row) * columns + int(column)
                    own.append(token)
                    word_of_token[token][word] += 1
                    letter = self.letter_number.get(word[number])
                    if letter is not None:
                        place = PLACES * token + int((column % 1) * PLACES)
                        off = abs(row % 1 - 0.5)
                        if place not in letter_places or off < letter_places[place][0]:
                            letter_places[place] = (off, letter)
                    if trigrams[number] >= 0:
                        centred.add((token, trigrams[number]))
                if -1 not in own:  # words that stand there whole
                    for token in set(own):
                        around.update((token, trigram) for trigram in trigrams if trigram >= 0)
            first += rows * columns
        around -= centred
        pairs = torch.tensor(sorted(centred), dtype=torch.long).view(-1, 2)
        others = torch.tensor(sorted(around), dtype=torch.long).view(-1, 2)
        places = sorted(letter_places)
        blank = torch.ones(first, dtype=torch.bool)
        blank[torch.tensor(sorted(touched), dtype=torch.long)] = False
        tokens = sorted(word_of_token)
        return Read(
            first,
            torch.tensor(places, dtype=torch.long),
            torch.tensor([letter_places[place][1] for place in places], dtype=torch.long),
            pairs[:, 0],
            pairs[:, 1],
            others[:, 0],
            others[:, 1],
            torch.tensor(tokens, dtype=torch.long),
            [word_of_token[token].most_common(1)[0][0] for token in tokens],
            blank.nonzero()[:, 0],
        )

    # --- losses -------------------------------------------------------------------------------------------------------

    def loss(
        self, tokens: Tensor, read: Read, letters: float, trigrams: float, around: float, words: float
    ) -> tuple[Tensor, dict[str, float]]:
        """Of visual tokens (tokens, hidden); the numbers say how much each part counts, `around` how much a word's other trigrams do."""
        total, notes = tokens.new_zeros(()), {}
        if letters and len(read.letters):
            logits = self.letters(tokens).view(-1, KNOWN_LETTERS)[read.letter_places]
            total = total + letters * F.cross_entropy(logits, read.letters)
            notes["letters right"] = (logits.argmax(1) == read.letters).float().mean().item()
        spelling = tokens[:, SPELLING]
        if trigrams and len(read.trigrams):
            loss, right = self._trigram_loss(spelling, read, around)
            total, notes["trigrams right"] = total + trigrams * loss, right
        if words and read.words:
            loss, right = self._word_loss(spelling, read)
            total, notes["words right"] = total + words * loss, right
        text = torch.zeros(read.tokens, dtype=torch.bool)
        text[read.word_tokens] = True
        length = spelling.norm(dim=1)
        calm = F.smooth_l1_loss(length[text], torch.ones(int(text.sum()))) + 2 * length[read.blank].sum() / max(
            1, len(read.blank)
        )
        calm = calm + 0.3 * tokens[:, MEANING].norm(dim=1).mean() + 0.3 * tokens[:, LANGUAGE].norm(dim=1).mean()
        calm = calm + 0.1 * F.smooth_l1_loss(tokens[:, IMPORTANCE], torch.full((len(tokens),), BLANK_IMPORTANCE))
        notes["blank"] = length[read.blank].mean().item() if len(read.blank) else 0.0
        return total + 0.1 * calm, notes

    def _trigram_loss(self, spelling: Tensor, read: Read, around: float) -> tuple[Tensor, float]:
        chosen = torch.cat(
            [
                read.trigrams,
                read.around,
                torch.randint(len(self.spelling.trigrams), (NEGATIVE_TRIGRAMS,), generator=self.generator),
            ]
        )
        classes = chosen.unique()
        column = torch.full((len(self.spelling.trigrams),), -1)
        column[classes] = torch.arange(len(classes))
        row_of = torch.full((read.tokens,), -1)
        rows = read.trigram_tokens.unique()
        row_of[rows] = torch.arange(len(rows))
        target = torch.zeros(len(rows), len(classes))
        target[row_of[read.trigram_tokens], column[read.trigrams]] = 1.0
        if around:
            known = row_of[read.around_tokens] >= 0
            target[row_of[read.around_tokens[known]], column[read.around[known]]] = around
        logits = TRIGRAM_SCALE * F.normalize(spelling[rows], dim=1) @ self.spelling.vectors[classes].T
        right = (target.gather(1, logits.argmax(1, keepdim=True)) == 1).float().mean().item()
        return F.cross_entropy(logits, target / target.sum(1, keepdim=True)), right

    def _word_loss(self, spelling: Tensor, read: Read) -> tuple[Tensor, float]:
        own = list(dict.fromkeys(read.words))
        number = {word: i for i, word in enumerate(own)}
        answer = torch.tensor([number[word] for word in read.words])
        rows = torch.randint(len(self.vocabulary), (NEGATIVE_WORDS,), generator=self.generator).tolist()
        others = self.word_vectors[[row for row in rows if self.vocabulary[row] not in number]]
        vectors = torch.cat([self.spelling.of_words(own), others])
        logits = WORD_SCALE * F.normalize(spelling[read.word_tokens], dim=1) @ vectors.T
        return F.cross_entropy(logits, answer), (logits.argmax(1) == answer).float().mean().item()
