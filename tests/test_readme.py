"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting import score_dataset

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_trains(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    rng = np.random.default_rng(0)
    input_ids = [rng.integers(5, 200, length).tolist() for length in (12, 7, 9, 15)]
    labels = [[-100] * 3 + row[3:] for row in input_ids]
    model, reference = (AutoModelForCausalLM.from_pretrained(tiny_model) for _ in range(2))
    for parameter in reference.parameters():
        parameter.data.mul_(1.1)
    given = {
        "model": model,
        "reference_model": reference,
        "tokenizer": AutoTokenizer.from_pretrained(tiny_model),
        "input_ids": input_ids,
        "labels": labels,
    }
    before = np.concatenate(score_dataset(model, input_ids, labels))
    exec(compile(example, str(README), "exec"), given)
    polarity = np.concatenate(given["polarity"])
    assert (polarity == 1).sum() == round(0.7 * before.size)
    assert (polarity == -1).sum() == before.size - round(0.7 * before.size)
    assert given["trainer"].state.global_step > 0
    after = np.concatenate(score_dataset(given["trainer"].model, input_ids, labels))
    assert np.abs(after - before).max() > 0
