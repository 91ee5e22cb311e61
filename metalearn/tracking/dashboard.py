"""Where TensorBoard shows what a run records, and in which words.

Axes: none.

Records keep their names in ``metrics.jsonl``; a dashboard orders its cards by theirs. Sections are
numbered, so that what matters first stands first and what was spent on looking stands last.
"""

from __future__ import annotations

import re

__all__ = ["OVERVIEW", "chart_of", "of_band", "section_of", "shown_as", "shown_figure", "words_of"]

OVERVIEW, _VALIDATION, _TRAINING = "1 overview", "2 validation", "3 training"
_LEARNT, _MEMBERS, _GRADIENTS = "4 learnt", "5 members", "6 gradients"
_WEIGHTS, _FOUND, _TIME = "7 weights", "8 test and findings", "9 time and memory"
_SECTIONS = {
    "validation": _VALIDATION,
    "train": _TRAINING,
    "learnt": _LEARNT,
    "hyper": _LEARNT,
    "privacy": OVERVIEW,
    "best": _FOUND,  # a dot each, as those of tests: curves stand before them
    "weights": _WEIGHTS,
    "test": _FOUND,
    "attribution": _FOUND,
    "speed": _TIME,
    "diagnostics": _TIME,
}
_OF_GRADIENTS = {
    "gradient_norms": "norms",
    "gradient_variance": "variance",
    "gradient_snr": "signal to noise",
    "gradient_cosines": "cosines",
    "noise_scale": "noise scale",
    "fisher_trace": "Fisher trace",
}
_SCORES = {
    "accuracy_after": "accuracy",
    "accuracy": "accuracy",
    "loss_after": "loss",
    "loss": "loss",
    "nll": "loss",
    "rmse": "root mean squared error",
    "objective": "objective",
}
_PARTS = {
    "train": "training",
    "validation": "validation",
    "best": "best validation",
    "test": "test",
}
_WORDS = {
    "ece": "calibration error (ECE)",
    "adaptive_ece": "calibration error (adaptive bins)",
    "brier": "Brier score",
    "entropy": "entropy of predictions (nats)",
    "expected_entropy": "entropy of single members (nats)",
    "mutual_information": "mutual information of members (nats)",
    "disagreement": "members that disagree (share)",
    "epistemic": "members that disagree (per task)",
    "non_finite": "not finite",
    "members_active": "members still training",
    "memory_gb": "memory (GB)",
    "snr": "signal to noise",
    "by_size": "scores by number of members",
    "reliability": "reliability of probabilities",
    "adaptation": "adaptation, step by step",
    "task": "one task",
    "bands": "over training",
    "uncertainty": "uncertainty in and out of distribution",
    "members_accuracy": "accuracy over training, quartiles",
    "members_loss": "loss over training, quartiles",
    "gradient_by_layer": "norm of the gradient by layer",
}
_EXACT = {
    "train/learning_rate": f"{OVERVIEW}/learning rate",
    "speed/tasks_per_s": f"{OVERVIEW}/speed (tasks a second)",
    "speed/samples_per_s": f"{OVERVIEW}/speed (samples a second)",
    "privacy/epsilon": f"{OVERVIEW}/privacy spent (epsilon)",
    "train/loss_after": f"{_TRAINING}/loss after adaptation",
}
_HIDDEN = re.compile(
    r"(best|test|attribution|diagnosis_\w+)/.*"  # dots: of a test that are no score, of findings
    r"|hyper/check_\w+|diagnostics/\w+_seconds|.+_by_layer/.*"
    r"|gradient_norms/\w+_(lowest|q25|q75|highest)"  # a figure has their bands
    r"|noise_scale/[a-z]+(_noise|_signal)?"  # and another the course of their ratio
    r"|validation/(inductive_)?(loss|accuracy)_before"  # that after no inner step
)
"""Records that are left to ``metrics.jsonl`` and to figures."""


def shown_as(name: str) -> str | None:
    """The name under which TensorBoard shows the numbers of a record; None where it does not.

    Args:
        name: of the record, as ``"validation/accuracy_after"``. One without a room, or of a room
            that is not known, keeps its words; its section stands before that of time.
    """
    room, _, short = name.partition("/")
    if not short:
        return name
    if name in _EXACT:
        return _EXACT[name]
    score = _SCORES.get(short.removeprefix("inductive_").removeprefix("member_"))
    if score and room in _PARTS and name not in ("train/accuracy",):
        own = short.startswith("member_") and room in ("train", "validation")
        alone = ", each query alone" if short.startswith("inductive_") else ""
        if not own:
            place = OVERVIEW if room in ("train", "validation") else _FOUND
            return f"{place}/{score} ({_PARTS[room]}{alone})"
    if _HIDDEN.fullmatch(name):
        return None
    return f"{_section(room, short)}/{_inside(room, short)}"


def shown_figure(name: str) -> str:
    """The name under which TensorBoard shows a figure, or a distribution.

    Args:
        name: that the trainer, or whoever looks into its run, gave it.
    """
    room, _, short = name.partition("/")
    found = re.fullmatch(r"diagnosis_(\w+)", room)
    if found and short:
        return f"{_FOUND}/diagnosis ({found[1]}): {words_of(short)}"
    return f"{_section(room, short)}/{_inside(room, short)}" if short else name


def chart_of(tag: str) -> str | None:
    """The chart of Custom Scalars in which training and validation of a score stand together."""
    found = re.fullmatch(rf"{OVERVIEW}/(.+) \((training|validation)\)", tag)
    return found[1] if found else None


def section_of(name: str) -> str:
    """The section of a record, or of a figure."""
    room, _, short = name.partition("/")
    return _section(room, short)


def of_band(name: str, title: str) -> str:
    """A number that has a band, and what the band is, in words.

    Args:
        name: of the number, without its room.
        title: of the band, as ``"members: median and extremes"``.
    """
    short = name.removeprefix("inductive_").removeprefix("member_")
    words = _SCORES.get(short, words_of(short))
    words += " of members" if "member_" in name else ""
    words += ", each query alone" if name.startswith("inductive_") else ""
    return f"{words}, {title.rpartition(': ')[2]}"


def words_of(name: str) -> str:
    """A name in words."""
    parts = [_WORDS.get(part, part.replace("_", " ")) for part in name.split("/")]
    return ": ".join(parts)


def _section(room: str, short: str) -> str:
    if room in _OF_GRADIENTS:
        return _GRADIENTS
    if "member" in short or room.endswith("_by_member"):
        return _MEMBERS
    if room.startswith("learnt"):
        return _LEARNT
    if room == "validation_by_step":
        return _VALIDATION
    return _SECTIONS.get(room) or f"6 {words_of(room)}"


def _inside(room: str, short: str) -> str:
    if room in _OF_GRADIENTS:
        kind, _, rest = short.partition("_")
        words = f"{_OF_GRADIENTS[room]} of {kind}s" if kind != "over" else "noise over training"
        if kind == "over":
            return words
        rest = rest.removeprefix(f"{room}_")
        return f"{words}, {words_of(rest)}" if rest else words
    step = re.fullmatch(r"(inductive_)?(accuracy|loss)_(\d+)", short)
    if room == "validation_by_step" and step:
        alone = ", each query alone" if step[1] else ""
        return f"{step[2]} after {int(step[3])} inner step{'' if step[3] == '1' else 's'}{alone}"
    if room == "diagnostics":
        return f"{words_of(short.removesuffix('_share'))} (share of all time)"
    if room in ("train", "validation") and "member_" in short:
        return f"{words_of(short.replace('member_', ''))} ({_PARTS[room]}, median)"
    if short.endswith("_before"):
        return f"{words_of(short.removesuffix('_before'))} before adaptation"
    along = room.endswith("_by_member") or room.startswith("learnt_")
    return words_of(f"{room}/{short}" if along else short)
