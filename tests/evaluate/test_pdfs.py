"""PDFs in a dataset: the best page counts, the renderer is named, a changed file is noticed, a policy is obeyed."""

import json

import pytest

from m0 import Reranker, SourcePolicy
from m0.errors import ImageError, InputError
from m0.evaluate import Dataset, evaluate
from tests.evaluate.test_store import OF_P1, scored
from tests.inputs.pdfs import pages, words

pytest.importorskip("ir_measures")
pypdfium2 = pytest.importorskip("pypdfium2")
__all__ = ["scored"]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    (folder / "qrels").mkdir(parents=True)
    (folder / "report.pdf").write_bytes(pages([words("one"), words("two"), words("three")]))
    corpus = [
        {"_id": "d1", "text": "one"},
        {"_id": "p1", "pdf": "report.pdf"},
        {"_id": "p2", "pdf": "report.pdf", "pages": "2"},
    ]
    queries = [{"_id": "q1", "text": "words"}, {"_id": "q2", "text": "two"}]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1\nq2\tp1\t1\n", encoding="utf-8")
    return folder


def test_a_pdf_has_the_score_of_its_best_page(tiny, folder):
    found = evaluate(tiny, Dataset.load(folder))
    by_page = tiny.logits([("two", {"pdf": str(folder / "report.pdf"), "pages": str(page)}) for page in (1, 2, 3)])
    assert len(set(by_page)) == 3
    assert found.run["q2"]["p1"] == pytest.approx(max(by_page), abs=1e-6)
    assert found.run["q2"]["p2"] == pytest.approx(by_page[1], abs=1e-6)
    assert not found.failed


def test_the_report_names_renderer_and_resolution(tiny, folder, tmp_path):
    evaluate(tiny, Dataset.load(folder), out=tmp_path / "out")
    notes = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["notes"]
    assert any(f"pypdfium2 {pypdfium2.PYPDFIUM_INFO.version}" in note and "200 dpi" in note for note in notes), notes


def test_a_changed_pdf_is_noticed(tiny, folder, tmp_path, scored):
    dataset, out = Dataset.load(folder), tmp_path / "out"
    evaluate(tiny, dataset, out=out)
    scored.clear()
    evaluate(tiny, dataset, out=out)
    assert not scored
    (folder / "report.pdf").write_bytes(pages([words("one"), words("other"), words("three")]))
    evaluate(tiny, dataset, out=out)
    assert set(scored) == OF_P1 | {("q1", "p2"), ("q2", "p2")}


def test_a_pdf_stands_by_itself(folder):
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "a", "pdf": "report.pdf"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r'corpus\.jsonl.*1.*has "pdf" beside other content; a PDF is a document by itself\.'):
        Dataset.load(folder)


def test_a_policy_is_obeyed(tiny_directory, folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    reranker = Reranker.from_pretrained(tiny_directory, policy=SourcePolicy(root=tmp_path / "elsewhere"))
    found = evaluate(reranker, Dataset.load(folder), out=tmp_path / "out")
    assert found.failed.keys() == {"p1", "p2"}
    assert "the policy allows no path there" in found.failed["p1"]
    hashes = [
        line for line in (tmp_path / "out" / "scores-0.jsonl").read_text(encoding="utf-8").splitlines() if '"document p' in line
    ]
    assert not hashes


def test_what_is_no_policy(tiny_directory):
    with pytest.raises(ImageError, match="policy is str, but must be a SourcePolicy"):
        Reranker.from_pretrained(tiny_directory, policy="everything")
