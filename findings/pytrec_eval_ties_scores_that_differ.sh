#!/bin/sh
# pytrec-eval-terrier 0.5.11 (trec_eval, under ir-measures 0.4.3): scores are kept as float32, and of two documents with equal scores the
# one whose id is larger as a string counts as ranked first. Relevances from a sigmoid crowd near 1, so documents that a reranker put
# in order tie after the rounding, and the measure is that of an order by id. The same model measured by its logits is right.
#
# Seen: logits 18.0 (relevant, id "a") and 17.5 (not relevant, id "b"): by logits RR is 1.0; by sigmoid(logit), which differ as Python
#       floats, RR is 0.5. With the two ids exchanged it is 1.0 by either.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pytrec-eval-terrier==0.5.11 ir-measures==0.4.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import math

import ir_measures

logits = {"relevant": 18.0, "other": 17.5}
found = {}
for ids in (("a", "b"), ("b", "a")):
    names = dict(zip(logits, ids))
    qrels = {"q": {names["relevant"]: 1, names["other"]: 0}}
    for kind, score in {"logit": float, "relevance": lambda x: 1 / (1 + math.exp(-x))}.items():
        run = {"q": {names[name]: score(value) for name, value in logits.items()}}
        assert run["q"][names["relevant"]] > run["q"][names["other"]]
        found[ids[0], kind] = ir_measures.calc_aggregate([ir_measures.RR], qrels, run)[ir_measures.RR]
        print(f"relevant document is {ids[0]!r}, scores are {kind}s {list(run['q'].values())}: RR {found[ids[0], kind]}")
assert found == {("a", "logit"): 1.0, ("a", "relevance"): 0.5, ("b", "logit"): 1.0, ("b", "relevance"): 1.0}, found
PYTHON
echo "as described"
