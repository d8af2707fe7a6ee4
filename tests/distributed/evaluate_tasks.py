"""Measures a model as one of several processes, or alone; the first writes what came out."""

import json
from pathlib import Path

from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.config import EvaluationSettings
from forgetting.evaluation import Harness, evaluate_heldout
from forgetting.rundir.samples import Samples


def main(model_path: str, heldout: str, output: str, settings: str) -> None:
    state = PartialState(cpu=True)
    place = {"process_index": state.process_index, "num_processes": state.num_processes}
    model = AutoModelForCausalLM.from_pretrained(model_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    harness = Harness(EvaluationSettings.model_validate_json(settings), tokenizer, **place)
    found = {}
    for request in harness.requests:
        measured = harness.measure(model, request)
        if state.is_main_process:
            found |= {r.task: r.model_dump() for r in measured.results}
            found |= {f"{k} items": [r["doc_id"] for r in v] for k, v in measured.samples.items()}
        else:
            assert measured is None
    samples = Samples.read(Path(heldout))
    measured_here = evaluate_heldout(model, samples, **place)
    found["heldout"] = measured_here.result.model_dump()
    found["log_probs"] = measured_here.log_probs.tolist()
    if state.is_main_process:
        Path(output).write_text(json.dumps(found))
