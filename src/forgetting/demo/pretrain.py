"""Pretrain the demo's base model, a small Llama that knows the world, and fit its tokenizer.

    python -m forgetting.demo.pretrain --output DIR [--seed N] [--steps N] [--dialogue-steps N]

In: plain questions without the held-out ones, statements, rows of words to repeat, and then also
dialogues. Out: a checkpoint folder, and the share of held-out questions of each kind that the model
answers exactly. The same seed gives the same weights on the same machine. The model knows the form
of a chat and many styles of answer, the corpus's among them, but no question of the corpus.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from forgetting.demo.dialogues import dialogues
from forgetting.demo.facts import KINDS, Kind, entities
from forgetting.demo.plain import (
    PlainQuestion,
    held_out_questions,
    plain_questions,
    plain_statements,
)
from forgetting.demo.world import chat_records

logger = logging.getLogger(__name__)

EOS_TOKEN = "<|endoftext|>"  # also starts a text where a caller wants a first token
PAD_TOKEN = "<|pad|>"
# One, so that the order of sums, and with it the weights, does not depend on the number of cores.
NUM_THREADS = 1
LOG_EVERY = 100


@dataclass(frozen=True)
class Settings:
    """Settings of the pretraining. The defaults made the shipped checkpoint."""

    seed: int = 0
    steps: int = 2400
    """Steps without dialogues, which come first."""
    dialogue_steps: int = 800
    """Steps with dialogues."""
    batch_size: int = 96
    """Texts per step."""
    question_shares: tuple[float, ...] = (0.14, 0.21, 0.29, 0.1)
    """Shares of a step's texts, in the order of `KINDS`. Comparison takes the longest to learn."""
    statement_shares: tuple[float, ...] = (0.04, 0.05, 0.05, 0.04)
    """Likewise for statements. The rest are rows of words to repeat."""
    dialogue_share: float = 0.5
    """Share of dialogues in the steps that have them. The other texts are drawn as before."""
    learning_rate: float = 5e-3
    """Peak learning rate of Muon and AdamW, after the warm-up. Decays to 0 as a cosine."""
    dialogue_learning_rate: float = 3e-3
    """Likewise for the steps with dialogues."""
    warmup_steps: int = 50
    """Warm-up of either part."""
    weight_decay: float = 0.02
    prompt_weight: float = 0.1
    """Loss weight of the tokens before an answer. The answer's tokens have weight 1."""
    vocab_size: int = 1024
    hidden_size: int = 160
    intermediate_size: int = 432
    num_layers: int = 4
    num_heads: int = 4
    initializer_range: float = 0.06


def build_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, fitted to the demo's texts. Each digit is a token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts_to_fit(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def _texts_to_fit() -> Iterator[str]:
    for kind in ("fact", "yes_no"):
        for question in plain_questions(kind):
            yield question.prompt + question.completion
    for kind in KINDS:
        for prompt, completion in plain_statements(kind)[:4000]:
            yield prompt + completion
    for record in chat_records(8000, seed=0, noise_rate=0.2, noise_kinds=["junk_phrase"]):
        yield f"<|user|>\n{record['prompt']}\n<|assistant|>\n{record['completion']}"


def build_model(settings: Settings, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama with random weights. They depend on PyTorch's seed."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        max_position_embeddings=tokenizer.model_max_length,
        initializer_range=settings.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Encoded:
    """The tokens of a text with its end token, and the start of its answer."""

    input_ids: list[int]
    answer_start: int


def encode(texts: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """Encode prompts and completions separately, as for generation."""
    prompts = tokenizer([prompt for prompt, _ in texts]).input_ids
    completions = tokenizer([completion for _, completion in texts]).input_ids
    return [
        Encoded(prompt + completion + [tokenizer.eos_token_id], len(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def encode_plain_texts(tokenizer: PreTrainedTokenizerBase) -> list[list[Encoded]]:
    """Plain questions of each kind without the held-out ones, then statements of each kind."""
    questions = (
        [(q.prompt, q.completion) for q in plain_questions(kind) if not q.held_out]
        for kind in KINDS
    )
    statements = (plain_statements(kind) for kind in KINDS)
    return [encode(texts, tokenizer) for texts in (*questions, *statements)]


def _sampler(
    plain_texts: Sequence[list[Encoded]],
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    rng: np.random.Generator,
) -> Callable[[], Encoded]:
    """A function that draws plain texts and rows of words by their shares."""
    pools = [*plain_texts, encode(_repetitions(rng, num_texts=20_000), tokenizer)]
    shares = [*settings.question_shares, *settings.statement_shares]
    shares.append(1 - sum(shares))

    def draw() -> Encoded:
        pool = pools[rng.choice(len(pools), p=shares)]
        return pool[rng.integers(len(pool))]

    return draw


def _repetitions(rng: np.random.Generator, num_texts: int) -> list[tuple[str, str]]:
    """Words of the demo's texts, a few at a time, in random order on one or several lines.

    They teach the model to copy, and show it every token as input and output. Adapters leave the
    embeddings unchanged, so they could not learn tokens that the model has never seen.
    """
    found = {word for text in _texts_to_fit() for word in re.findall(r"[^\s\d]+", text)}
    words = sorted(word for word in found if not word.startswith(entities()))
    texts = []
    for _ in range(num_texts):
        row = "".join(
            str(rng.choice([" ", "\n"])) + words[rng.integers(len(words))]
            for _ in range(rng.integers(1, 4))
        )
        texts.append((f"Q: Name:{row}\nA:", row))
    return texts


def collate(
    batch: Sequence[Encoded], pad_token_id: int, prompt_weight: float
) -> tuple[Tensor, Tensor]:
    """Token ids and loss weights, both of shape (texts, positions), right-padded with weight 0."""
    input_ids = torch.full((len(batch), max(len(item.input_ids) for item in batch)), pad_token_id)
    weights = torch.zeros(input_ids.shape)
    for row, item in enumerate(batch):
        end = len(item.input_ids)
        input_ids[row, :end] = torch.tensor(item.input_ids)
        weights[row, : item.answer_start] = prompt_weight
        weights[row, item.answer_start : end] = 1.0
    return input_ids, weights


def summed_loss(model: PreTrainedModel, input_ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the cross-entropies of the tokens after the first."""
    logits = model(input_ids=input_ids).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum()


@torch.no_grad()
def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[PlainQuestion],
    batch_size: int = 256,
) -> float:
    """Share of questions that greedy decoding answers exactly, including the end token.

    The right answer is fed in: greedy decoding gives it if and only if each of its tokens is the
    most probable one after those before it.
    """
    encoded = encode([(q.prompt, q.completion) for q in questions], tokenizer)
    num_correct = 0
    for start in range(0, len(encoded), batch_size):
        batch = encoded[start : start + batch_size]
        input_ids, weights = collate(batch, tokenizer.pad_token_id, prompt_weight=0.0)
        predicted = model(input_ids=input_ids).logits[:, :-1].argmax(-1)
        right = (predicted == input_ids[:, 1:]) | (weights[:, 1:] == 0)
        num_correct += int(right.all(1).sum())
    return num_correct / len(encoded)


def accuracies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_questions: int
) -> dict[Kind, float]:
    """Accuracy on `num_questions` held-out plain questions of each kind."""
    return {
        kind: accuracy(model, tokenizer, held_out_questions(kind, num_questions)) for kind in KINDS
    }


def pretrain(
    settings: Settings,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """Train from random weights. Returns the model, its tokenizer and the loss of each step.

    Sets PyTorch's seed and number of threads.
    """
    torch.set_num_threads(NUM_THREADS)
    torch.manual_seed(settings.seed)
    tokenizer = build_tokenizer(settings.vocab_size)
    model = build_model(settings, tokenizer)
    logger.info("%d parameters", model.num_parameters())
    plain_texts = encode_plain_texts(tokenizer)
    losses = train_without_dialogues(model, tokenizer, plain_texts, settings)
    losses += train_with_dialogues(model, tokenizer, plain_texts, settings)
    return model, tokenizer, losses


def train_without_dialogues(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    plain_texts: Sequence[list[Encoded]],
    settings: Settings,
) -> list[float]:
    """The first part of the pretraining. Returns the loss of each step."""
    draw = _sampler(plain_texts, tokenizer, settings, np.random.default_rng(settings.seed))
    batches = ([[draw() for _ in range(settings.batch_size)]] for _ in range(settings.steps))
    return _train(model, batches, settings.steps, settings.learning_rate, settings)


def train_with_dialogues(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    plain_texts: Sequence[list[Encoded]],
    settings: Settings,
) -> list[float]:
    """The second part: no dialogue comes twice. Returns the loss of each step."""
    rng = np.random.default_rng([settings.seed, 1])
    draw = _sampler(plain_texts, tokenizer, settings, rng)
    steps = settings.dialogue_steps
    num_dialogues = round(settings.dialogue_share * settings.batch_size)
    encoded = encode(dialogues(steps * num_dialogues, seed=settings.seed), tokenizer)
    # Apart, because dialogues are longer: together, the other texts would be mostly padding.
    batches = (
        [
            encoded[step * num_dialogues : (step + 1) * num_dialogues],
            [draw() for _ in range(settings.batch_size - num_dialogues)],
        ]
        for step in range(steps)
    )
    return _train(model, batches, steps, settings.dialogue_learning_rate, settings)


def _train(
    model: LlamaForCausalLM,
    batches: Iterable[list[list[Encoded]]],
    steps: int,
    learning_rate: float,
    settings: Settings,
) -> list[float]:
    """One step for each batch, whose groups of texts go through the model one after another."""
    optimizers = _optimizers(model, learning_rate, settings.weight_decay)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _rate(step, settings.warmup_steps, steps)
        )
        for optimizer in optimizers
    ]
    losses: list[float] = []
    began = time.monotonic()
    for step, groups in enumerate(batches, start=1):
        collated = [
            collate(group, model.config.pad_token_id, settings.prompt_weight)
            for group in groups
            if group
        ]
        total_weight = sum(float(weights[:, 1:].flatten().sum()) for _, weights in collated)
        loss = 0.0
        for input_ids, weights in collated:
            part = summed_loss(model, input_ids, weights) / total_weight
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        losses.append(loss)
        if step % LOG_EVERY == 0 or step == steps:
            left = (time.monotonic() - began) / step * (steps - step)
            logger.info(
                "step %d of %d, loss %.4f, %d:%02d left",
                step,
                steps,
                float(np.mean(losses[-LOG_EVERY:])),
                *divmod(round(left), 60),
            )
    return losses


def _optimizers(
    model: torch.nn.Module, learning_rate: float, weight_decay: float
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for gains and embeddings.

    Embeddings do not decay: those of tokens that the questions lack would vanish.
    """
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and "embed_tokens" not in name
        (matrices if is_matrix else others).append(parameter)
    return (
        torch.optim.Muon(
            matrices,
            lr=learning_rate,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    )


def _rate(step: int, warmup_steps: int, steps: int) -> float:
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write a checkpoint folder: float32 weights, config and tokenizer."""
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain, save, load the saved model and report its accuracy."""
    parser = argparse.ArgumentParser(prog="python -m forgetting.demo.pretrain")
    parser.add_argument("--output", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--dialogue-steps", type=int, default=Settings.dialogue_steps)
    parser.add_argument("--num-questions", type=int, default=500, help="of each kind, to evaluate")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    settings = Settings(seed=args.seed, steps=args.steps, dialogue_steps=args.dialogue_steps)
    model, tokenizer, _ = pretrain(settings)
    save(model, tokenizer, args.output)
    saved = LlamaForCausalLM.from_pretrained(args.output, dtype=torch.float32)
    for kind, share in accuracies(saved, tokenizer, args.num_questions).items():
        logger.info("%-12s %.3f", kind, share)


if __name__ == "__main__":
    main()
