"""Evaluation: a dataset in BEIR's layout, with pictures, reranked and measured.

files       lines and columns of the files read
dataset     corpus, queries, judgements
bm25        a first stage and baseline
candidates  which documents are scored for which queries
evaluation  scoring, resumable and shared over processes
cuts        what was cut or not read
store       scores on disk
picture_hashes  whether pictures have changed since they were scored
metrics     measures, intervals, tests
contrast    Winoground's captions and pictures
runs        TREC files
many        many queries by documents, without judgements
queries     files of queries
selection   which documents are ranked for which of them
score_log   their scores on disk
digests     whether a document has changed since it was scored
rankings    the best documents of each query, and their files
"""

from m0.evaluate.bm25 import bm25_run
from m0.evaluate.contrast import evaluate_contrasts, load_contrasts
from m0.evaluate.dataset import Dataset
from m0.evaluate.evaluation import Evaluation, evaluate
from m0.evaluate.many import rank_many
from m0.evaluate.metrics import winoground
from m0.evaluate.queries import read_queries
from m0.evaluate.rankings import QueryRankings, QueryResult
from m0.evaluate.runs import read_run, write_run

__all__ = [
    "Dataset",
    "Evaluation",
    "QueryRankings",
    "QueryResult",
    "bm25_run",
    "evaluate",
    "evaluate_contrasts",
    "load_contrasts",
    "rank_many",
    "read_queries",
    "read_run",
    "winoground",
    "write_run",
]
