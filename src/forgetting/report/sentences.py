"""What a run did and found, in plain words.

Goes in: a recipe, and what was found about noise. Comes out: sentences without markup.
"""

from __future__ import annotations

from pathlib import Path

from forgetting.config import (
    ForgettingSettings,
    Recipe,
    SelectionSettings,
    TrainingSettings,
    VariantSettings,
)
from forgetting.method import MEASURES
from forgetting.method.schedule import LambdaSchedule
from forgetting.method.terms import DEFAULT_TERM
from forgetting.rundir.findings import DetectorSummary, ShareRange
from forgetting.rundir.selection import KnownNoise


def recipe_paragraph(recipe: Recipe) -> str:
    """What the recipe does: base, data, reference, each variant, training."""
    sentences = [_corpus(recipe)]
    if recipe.selecting_variants:
        sentences.append(_quality(recipe))
    sentences += [_variant(name, variant) for name, variant in recipe.variants.items()]
    sentences.append(f"Every variant is trained with {_training(recipe.training)}.")
    return " ".join(sentences)


def base_name(recipe: Recipe) -> str:
    """The base model's id, or the name of its folder."""
    name = recipe.model.name_or_path
    return Path(name).name if Path(name).is_absolute() else name


def _corpus(recipe: Recipe) -> str:
    labels = list(dict.fromkeys(source.label for source in recipe.data.sources))
    origin = _list(labels) if len(labels) <= 5 else f"{len(labels)} sources"
    return (
        f"The base model {base_name(recipe)} is fine-tuned on {recipe.data.num_train:,} samples "
        f"from {origin}, of at most {recipe.data.max_length:,} tokens."
    )


def _quality(recipe: Recipe) -> str:
    measures = {recipe.variants[name].selection.quality for name in recipe.selecting_variants}
    formulas = _list([f"{name} ({MEASURES[name].formula})" for name in sorted(measures)])
    models = "the base"
    if recipe.needs_reference:
        models += f" and from {_reference(recipe)}"
    return (
        f"The quality of a response token comes from {models}; it is measured by {formulas}, where "
        "l is the loss of the token and more is better."
    )


def _reference(recipe: Recipe) -> str:
    own = recipe.reference
    training = f"the base after {_training(own)}"
    if own.name_or_path is not None:
        return f"a given reference model, {Path(own.name_or_path).name}"
    if own.folds is not None:
        return (
            f"a reference model ({training}, on the {own.folds - 1} of {own.folds} parts of the "
            "samples that do not hold the one that is judged)"
        )
    origin = "samples of trusted sources" if own.sources else "other samples"
    return f"a reference model ({training}, on {recipe.num_reference:,} {origin})"


def _variant(name: str, variant: VariantSettings) -> str:
    if variant.objective == "full":
        return f"“{name}” learns all response tokens."
    if variant.objective == "weighted":
        return (
            f"“{name}” learns each response token with the weight 1 minus the probability that it "
            "is bad, as a detector of planted noise sees it."
        )
    chosen = _chosen(variant.selection)
    ignores = variant.objective == "ignoring"
    unlearned = _unlearned(variant.selection_in_effect)
    rest = "leaves the others out" if ignores else f"unlearns {unlearned}"
    sentence = f"“{name}” learns {chosen} and {rest}"
    if not ignores:
        sentence += f", {_weight(variant.forgetting)}"
    return f"{sentence}."


def _chosen(selection: SelectionSettings) -> str:
    rho = selection.rho
    what = "samples" if selection.granularity == "sequence" else "tokens"
    within = " of each source" if selection.balance == "source" else ""
    if selection.threshold == "mixture":
        return f"the {what}{within} that a fit of two components does not count as bad"
    if selection.threshold == "posterior":
        return f"the {what} that are bad with a probability below 1/2"
    if selection.threshold == "zero" or rho == "auto":
        if selection.by == "random":
            return f"as many {what} as have quality above 0, chosen by chance,"
        return f"the {what} of quality above 0"
    if selection.by == "random":
        return f"{_percent(rho)} of the {what}{within}, chosen by chance,"
    return f"the best {_percent(rho)} of the {what}{within}"


def _unlearned(selection: SelectionSettings) -> str:
    if selection.threshold in ("mixture", "posterior"):
        return f"those that are bad with a probability of at least {selection.negative_from:g}"
    if selection.forget_rate is None:
        return "the others"
    return f"the worst {_percent(selection.forget_rate)} of all, leaving out those between"


def _weight(settings: ForgettingSettings) -> str:
    schedule = LambdaSchedule(settings.schedule, settings.t_min, settings.t_max)
    start, end = schedule(0, 1), schedule(1, 1)
    if start == end:
        weight = f"with a constant weight lambda of {end:g}"
    else:
        shape = "a cosine" if settings.schedule == "cosine" else "a straight line"
        weight = f"with a weight lambda that rises from {start:g} to {end:g} in {shape}"
    return weight if settings.term == DEFAULT_TERM else f"{weight}, by the term {settings.term}"


def _training(settings: TrainingSettings) -> str:
    epochs = f"{settings.epochs:g} epoch{'' if settings.epochs == 1 else 's'}"
    lora = settings.lora
    weights = "of all weights" if lora is None else f"of a LoRA adapter of rank {lora.rank}"
    return (
        f"{epochs} {weights} in batches of {settings.batch_size}, at a learning rate of "
        f"{settings.learning_rate:g}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:g}\u00a0%"


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def noise_sentence(variant: str, noise: KnownNoise) -> str:
    """How well the quality score finds the known noise."""
    if noise.auroc is None:
        return "There is nothing to tell apart: all tokens are noisy, or none is."
    auroc = f"AUROC {noise.auroc:.2f}"
    if auroc == "AUROC 0.50":
        found = (
            f"No better than chance: the score does not tell noisy tokens from clean ones ({auroc})"
        )
    elif noise.auroc < 0.5:
        found = (
            f"Worse than chance: the score ranks noisy tokens as better than clean ones ({auroc})"
        )
    else:
        found = (
            f"In {100 * noise.auroc:.0f} of 100 pairs of a noisy and a clean token, the score "
            f"ranks the noisy one as worse ({auroc}; chance: 50 of 100)"
        )
    if noise.precision is None or noise.recall is None:
        return f"{found}."
    return (
        f"{found}. Of the tokens that {variant} does not learn, {100 * noise.precision:.1f} % are "
        f"noisy (of all tokens: {100 * noise.share_noisy:.1f} %); they are "
        f"{100 * noise.recall:.1f} % of all noisy tokens."
    )


def detector_sentences(summary: DetectorSummary) -> list[str]:
    """What the detector found: the verdict, the shares, and each kind of planted noise."""
    sentences = [summary.verdict]
    if summary.found and summary.tokens is not None and summary.samples is not None:
        sentences.append(
            f"Bad tokens: {_range(summary.tokens)}. Samples with one: {_range(summary.samples)}."
        )
    for kind in summary.kinds:
        if kind.auroc is not None and kind.recall is not None:
            sentences.append(
                f"{kind.words} ({kind.kind}): AUROC {kind.auroc:.2f}, "
                f"{100 * kind.recall:.0f}\u00a0% of the planted tokens are found."
            )
    return sentences


def _range(share: ShareRange) -> str:
    low, high = (f"{100 * value:.1f}" for value in (share.low, share.high))
    return f"{100 * share.share:.1f}\u00a0% (90\u00a0% interval: {low} to {high}\u00a0%)"
