"""Describes what a run did and found in plain sentences.

Input: a recipe, the verdict, and how well quality finds known noise. Output: sentences without
markup.
"""

from __future__ import annotations

from pathlib import Path

from forgetting.config import (
    ForgettingSettings,
    LossSettings,
    Recipe,
    SelectionSettings,
    TrainingSettings,
    VariantSettings,
)
from forgetting.method import MEASURES
from forgetting.method.losses import LOSSES
from forgetting.method.schedule import LambdaSchedule
from forgetting.method.terms import DEFAULT_TERM
from forgetting.report.verdict import Verdict
from forgetting.rundir.findings import DetectorSummary, ProbeReport, ShareRange
from forgetting.rundir.selections import KnownNoise

SMALLEST_GAIN = 0.01
"""Change of average precision that is worth mentioning."""


def recipe_paragraph(recipe: Recipe) -> str:
    """What the recipe does: base model, data, reference model, each variant, training."""
    sentences = [_corpus(recipe)]
    if recipe.selecting_variants:
        sentences.append(_quality(recipe))
    sentences += [_variant(name, variant) for name, variant in recipe.variants.items()]
    sentences.append(f"Every variant is trained for {_training(recipe.training)}.")
    return " ".join(sentences)


def base_name(recipe: Recipe) -> str:
    """The id of the base model, or the name of its folder."""
    name = recipe.model.name_or_path
    return Path(name).name if Path(name).is_absolute() else name


def _corpus(recipe: Recipe) -> str:
    labels = list(dict.fromkeys(source.label for source in recipe.data.sources))
    origin = _list(labels) if len(labels) <= 5 else f"{len(labels)} sources"
    return (
        f"The base model {base_name(recipe)} is fine-tuned on {recipe.data.num_train:,} samples "
        f"from {origin}, each at most {recipe.data.max_length:,} tokens long."
    )


def _quality(recipe: Recipe) -> str:
    measures = {recipe.variants[name].selection.quality for name in recipe.selecting_variants}
    formulas = _list([f"{name} ({MEASURES[name].formula})" for name in sorted(measures)])
    models = "the base model"
    if recipe.needs_reference:
        models += f" and {_reference(recipe)}"
    elif recipe.evolving_variants:
        models += " and the model in training"
    return (
        f"The quality of a response token is computed from its scores under {models}. The measure "
        f"is {formulas}, where l is the token's loss; higher is better."
    )


def _reference(recipe: Recipe) -> str:
    own = recipe.reference
    training = f"the base model after {_training(own)}"
    if own.name_or_path is not None:
        return f"the reference model {Path(own.name_or_path).name}"
    if own.folds is not None:
        return (
            f"cross-fitted reference models ({training}, each on {own.folds - 1} of {own.folds} "
            "folds; a sample is scored by the model that was not trained on it)"
        )
    origin = "samples from trusted sources" if own.sources else "separate samples"
    return f"a reference model ({training}, on {recipe.num_reference:,} {origin})"


def _variant(name: str, variant: VariantSettings) -> str:
    sentence = _objective(name, variant)
    loss = variant.loss
    if loss == LossSettings():
        return sentence
    given = "".join(f", {name} {value:g}" for name, value in loss.parameters.items())
    return f"{sentence} Its loss is {loss.name} ({LOSSES[loss.name].formula}{given})."


def weight_formula(variant: VariantSettings) -> str:
    """Weight of a token in a weighted variant, by its probability c of being bad."""
    if variant.caution == 1:
        return "1 − c"
    return f"(1 − c) / (1 − c + {variant.caution:g}c)"


def _objective(name: str, variant: VariantSettings) -> str:
    if variant.objective == "full":
        return f"“{name}” learns all response tokens."
    if variant.objective == "weighted":
        return (
            f"“{name}” learns all response tokens. The weight of each is "
            f"{weight_formula(variant)}, where c is the probability that it is bad, estimated by a "
            "detector of planted noise."
        )
    if variant.objective == "corrected":
        return (
            f"“{name}” learns all response tokens, each with a weight of 1 minus the probability "
            "that it is bad, estimated by a detector of planted noise. It gives that probability "
            "to the tokens that the reference model, or without one the base model, expects there."
        )
    if variant.rounds:
        return (
            f"“{name}” learns {variant.rounds} equal parts of the samples one after the other: the "
            f"first whole, and of each other {_chosen(variant.selection)}, by their quality with "
            "the model of the parts before it as the reference. It ignores the others."
        )
    chosen = _chosen(variant.selection)
    ignores = variant.objective == "ignoring"
    unlearned = _unlearned(variant.selection_in_effect)
    rest = "ignores the others" if ignores else f"unlearns {unlearned}"
    sentence = f"“{name}” learns {chosen} and {rest}"
    if not ignores:
        sentence += f", {_weight(variant.forgetting)}"
    return f"{sentence}."


def _chosen(selection: SelectionSettings) -> str:
    rho = selection.rho
    what = "samples" if selection.granularity == "sequence" else "tokens"
    within = " of each source" if selection.balance == "source" else ""
    if selection.by == "known":
        return "the tokens that the data does not mark as noise"
    if selection.threshold == "mixture":
        return (
            f"the {what}{within} that a two-component mixture does not assign to the bad component"
        )
    if selection.threshold == "posterior":
        return f"the {what} that are bad with a probability below 1/2"
    if selection.threshold == "zero" or rho == "auto":
        if selection.by == "random":
            return f"random {what}, as many as have quality above 0,"
        return f"the {what} with quality above 0"
    if selection.by == "random":
        return f"a random {_percent(rho)} of the {what}{within}"
    return f"the best {_percent(rho)} of the {what}{within}"


def _unlearned(selection: SelectionSettings) -> str:
    if selection.threshold in ("mixture", "posterior"):
        return f"those that are bad with a probability of at least {selection.negative_from:g}"
    if selection.forget_rate is None:
        return "the others"
    return f"the worst {_percent(selection.forget_rate)}, ignoring those in between"


def _weight(settings: ForgettingSettings) -> str:
    schedule = LambdaSchedule(settings.schedule, settings.t_min, settings.t_max)
    start, end = schedule(0, 1), schedule(1, 1)
    if start == end:
        weight = f"with a constant weight lambda of {end:g}"
    else:
        shape = "with a cosine" if settings.schedule == "cosine" else "linearly"
        weight = f"with a weight lambda that rises {shape} from {start:g} to {end:g}"
    return weight if settings.term == DEFAULT_TERM else f"{weight} and the term {settings.term}"


def _training(settings: TrainingSettings) -> str:
    epochs = f"{settings.epochs:g} epoch{'' if settings.epochs == 1 else 's'}"
    lora = settings.lora
    weights = (
        "of full fine-tuning" if lora is None else f"of LoRA fine-tuning with rank {lora.rank}"
    )
    return (
        f"{epochs} {weights}, batch size {settings.batch_size} and learning rate "
        f"{settings.learning_rate:g}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:g}%"


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def noise_sentence(variant: str, noise: KnownNoise) -> str:
    """How well quality finds the known noise."""
    if noise.auroc is None:
        return "AUROC is undefined because all tokens are noisy or none are."
    auroc = f"AUROC {noise.auroc:.2f}"
    if auroc == "AUROC 0.50":
        found = f"No better than chance: quality does not tell noisy from clean tokens ({auroc})"
    elif noise.auroc < 0.5:
        found = f"Worse than chance: quality ranks noisy tokens above clean ones ({auroc})"
    else:
        found = (
            f"In {100 * noise.auroc:.0f} of 100 pairs of a noisy and a clean token, quality ranks "
            f"the noisy one lower ({auroc}; chance: 50 of 100)"
        )
    if noise.precision is None or noise.recall is None:
        return f"{found}."
    return (
        f"{found}. {100 * noise.precision:.1f}% of the tokens that {variant} does not learn are "
        f"noisy, compared with {100 * noise.share_noisy:.1f}% of all tokens. They cover "
        f"{100 * noise.recall:.1f}% of the noisy tokens."
    )


def verdict_sentence(verdict: Verdict) -> str:
    """Which model to use, by how much, or that there is no difference."""
    where = f"on {verdict.num_samples:,} held-out responses"
    sentences = [f"{_reason(verdict, where)}."]
    if verdict.differences and verdict.is_weighted:
        sentences.append("Each token counts as much as the detector takes it to be good.")
    why = ", because the detector found nothing" if verdict.found_nothing else ""
    sentences += [f"{name} is the same model as {x}{why}." for name, x in verdict.same.items()]
    return " ".join(sentences)


def _reason(verdict: Verdict, where: str) -> str:
    use, model, baseline = f"Use {verdict.model}", verdict.model, verdict.baseline
    if not verdict.is_enough:
        return f"{use}: {where}, no difference can be shown, because they are too few"
    nearest = verdict.runner_up
    if nearest is None:
        return use
    found = verdict.differences[model if model != baseline else nearest]
    low, high = sorted((abs(found.low), abs(found.high)))
    interval = f"90% interval: {low:.4f} to {high:.4f}"
    by = f"{abs(found.value):.4f} nats per token"
    if model != baseline:
        return f"{use}: {where}, its loss is {by} below that of {baseline} ({interval})"
    if found.low > 0:
        return f"{use}: {where}, its loss is {by} below that of {nearest} ({interval})"
    interval = f"90% interval: {found.low:+.4f} to {found.high:+.4f}"
    return (
        f"{use}: {where}, the loss of {nearest} does not differ beyond chance "
        f"({found.value:+.4f} nats per token, {interval})"
    )


def detector_sentences(summary: DetectorSummary) -> list[str]:
    """What the detector found: the verdict, the shares, and each kind of planted noise."""
    sentences = [summary.verdict]
    if summary.found:
        sentences.append(share_sentence(summary))
    for kind in summary.kinds:
        if kind.auroc is not None and kind.recall is not None:
            precision = (
                ""
                if kind.precision is None
                else f", and of the tokens marked so, {100 * kind.precision:.0f}% are planted"
            )
            sentences.append(
                f"{kind.words} ({kind.kind}): AUROC {kind.auroc:.2f}, "
                f"{100 * kind.recall:.0f}% of the planted tokens are found{precision}."
            )
    return sentences


def share_sentence(summary: DetectorSummary) -> str:
    """The estimated shares of D_train with their intervals, or that they were not measured."""
    if not summary.is_measured or summary.tokens is None or summary.samples is None:
        return "The share of bad tokens was not measured."
    return (
        f"Bad tokens: {_range(summary.tokens)}. {100 * summary.samples.share:.1f}% of the samples "
        "hold a token that is bad with a probability of 1/2 or more."
    )


def reference_sentence(report: ProbeReport) -> str | None:
    """Whether the reference model's passes helped; None if there are none."""
    alone = report.auroc_without_reference
    precision_alone = report.average_precision_without_reference
    if alone is None or precision_alone is None:
        return None
    gain = report.average_precision - precision_alone
    if abs(gain) < SMALLEST_GAIN:
        verdict = "The reference model’s passes make no difference"
    else:
        verdict = f"The reference model’s passes {'help' if gain > 0 else 'hurt'}"
    return (
        f"{verdict}: AUROC is {report.auroc:.3f} with them and {alone:.3f} without, average "
        f"precision {report.average_precision:.3f} and {precision_alone:.3f}."
    )


def _range(share: ShareRange) -> str:
    low, high = (f"{100 * value:.1f}" for value in (share.low, share.high))
    return f"{100 * share.share:.1f}% (90% interval: {low} to {high}%)"
