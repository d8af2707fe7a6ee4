"""What reaches the Hub: no pickle, whole checkpoints, and a card that says what was done."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers.trainer

from forgetting.training.checkpoints import SEAL
from tests.contract.conftest import Case, make_trainer


class Hub:
    """Notes what would be uploaded."""

    def __init__(self):
        self.pushes = []

    def create_repo(self, repo_id, **given):
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, *, folder_path, ignore_patterns=(), path_in_repo="", **given):
        names = {p.relative_to(folder_path).as_posix() for p in Path(folder_path).rglob("*")}
        ignored = [name for name in names for p in ignore_patterns if fnmatch(name, p)]
        kept = names.difference(ignored)
        self.pushes.append({f"{path_in_repo}/{name}": Path(folder_path) / name for name in kept})
        return SimpleNamespace(is_done=lambda: True, done=lambda: True, result=lambda: None)


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    return hub


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_pushes_hold_no_pickle_and_whole_checkpoints(strategy, hub, models, tmp_path):
    args = {
        "push_to_hub": True,
        "hub_model_id": "me/model",
        "hub_strategy": strategy,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 2,
    }
    trainer = make_trainer(Case("Hub", args), True, models, tmp_path)
    trainer.train()
    trainer.push_to_hub()
    with_checkpoints = strategy.endswith(("checkpoint", "checkpoints"))
    assert len(hub.pushes) == 1 + {"end": 0, "every_save": 2}.get(strategy, 4)
    for push in hub.pushes:
        assert any(name.endswith("/model.safetensors") for name in push)
        assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in push)
    sealed = [name for push in hub.pushes for name in push if name.endswith(SEAL)]
    assert len(sealed) == 2 * with_checkpoints


def test_the_card_says_what_was_forgotten_and_how(models, tmp_path):
    args = {"save_strategy": "steps", "max_steps": 1, "save_steps": 1}
    own = {"term": "satimp", "beta1": 2.0, "floor": 0.01, "schedule": "cosine", "t_max": 0.125}
    trainer = make_trainer(Case("Hub", {**args, **own}), True, models, tmp_path)
    trainer.train()
    card = (Path(trainer.args.output_dir) / "README.md").read_text(encoding="utf-8")
    assert "trained with SFT" not in card
    assert "None" not in card
    assert "licence: license" not in card
    assert f"fine-tuned version of `{Path(trainer.model.config._name_or_path).name}`" in card
    assert f'model="{Path(trainer.args.output_dir).name}"' in card
    assert "trained with Forgetting, a method introduced in [Forgetting: A New Mechanism" in card
    assert "https://huggingface.co/papers/2508.04329" in card
    assert "- forgetting" in card.split("---")[1]
    assert "- sft" not in card.split("---")[1]
    assert "| term of negative tokens | satimp, beta1 2, beta2 1, floor 0.01 |" in card
    assert "| lambda | cosine, t_min 0.0001, t_max 0.125 |" in card
    assert "| loss of positive tokens | cross_entropy |" in card
    assert card.index("### Forgetting") < card.index("### Framework versions")
