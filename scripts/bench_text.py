#!/usr/bin/env python3
"""What the padding of texts costs, and what keeping their token ids saves.

Evaluates the network of a recipe, with its weights, on the first test rows: batches filled up to the full length, and
as far as their longest text needs. Then makes the token ids anew, and reads those that were kept.

    finetune fetch minilm rated_texts
    python scripts/bench_text.py                                 # recipes/movie_sentences.yaml with 256 tokens
    python scripts/bench_text.py my.yaml --length 512 --batches 2
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.build.data import build_examples, precision
from finetune.build.layout import build_layout
from finetune.build.model import build_network
from finetune.data.batches import batches_in_order
from finetune.data.examples import Split
from finetune.recipe.loader import load_recipe

ROOT = Path(__file__).resolve().parent.parent


def evaluated(model: Any, rows: Split, batches: int) -> tuple[float, float]:
    """Returns the CPU seconds of evaluating batches of 32 rows the second time, and the loss."""
    data = batches_in_order(rows.x, rows.y, batch_size=32, limit=batches)
    model.evaluate(data, verbose=0)
    begin = time.process_time()
    loss = model.evaluate(data, verbose=0)[0]
    return time.process_time() - begin, loss


def main() -> None:
    """Prints both comparisons."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, default=ROOT / "recipes" / "movie_sentences.yaml")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row at most")
    parser.add_argument("--batches", type=int, default=4, help="batches of 32 rows to evaluate")
    arguments = parser.parse_args()
    overrides = [f"data.tokenizer.length={arguments.length}", "data.tokenizer.padding=buckets"]
    recipe = load_recipe(arguments.recipe, overrides=overrides, allow_code=[])
    with precision(recipe):
        layout = build_layout(recipe)
        rows: Any = layout.examples.test
        full = replace(rows, x=replace(rows.x, batch_width=None))
        for name, split in (("to its longest text", rows), (f"to {arguments.length} tokens", full)):
            seconds, loss = evaluated(layout.model, split, arguments.batches)
            print(f"each batch filled up {name}: {seconds:.2f} CPU seconds, loss {loss:.6f}")
        with tempfile.TemporaryDirectory() as folder:
            kept = load_recipe(
                arguments.recipe,
                overrides=[*overrides, f"data.tokenizer.cache={folder}", "data.limit="],
                allow_code=[],
            )
            network = build_network(kept)
            for name in ("made", "read"):
                begin = time.process_time()
                examples = build_examples(kept, network)
                seconds = time.process_time() - begin
                print(f"table read, token ids {name}: {seconds:.2f} CPU seconds, {len(examples.train):,} training rows")


if __name__ == "__main__":
    main()
