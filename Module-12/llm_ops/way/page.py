"""The page of a way: its stages, what each found, a picture of four curves, and every claim."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from course import claims
from course.run.report import claims_table, head
from llm_ops.way.settings import BABY
from llm_ops.way.stage import CLAIMS, Place, Seal, Stage, any_seal

FACTS = {
    "data": "{documents[train]:,} documents, {tokens[train]:,} tokens to train on, {bytes_per_token:.2f} bytes each; "
            "{questions} held-out questions",
    "train": "{parameters:,} parameters, {steps} steps: {val_loss:.3f} nats a token, by frequency alone "
             "{unigram_loss:.3f}, untrained {untrained_loss:.3f}",
    "adapt": "{right[before]} of {asked} answers right before, {right[after]} after {steps} steps of "
             "{trained_parameters:,} numbers",
    "align": "answers with a body {before[body]:.0%} before, {after[body]:.0%} after {steps} steps; that parse "
             "{before[parses]:.0%} and {after[parses]:.0%}; bits per byte lost: English {forgot[English]:+.3f}, "
             "Python {forgot[Python]:+.3f}",
    "quantize": "{bits} bits by {method}: {bytes_before:,} bytes become {bytes:,}, for {nats_lost:+.4f} ± "
                "{standard_error:.4f} nats a token",
    "export": "{files} files; {prompts} answers by transformers from this folder are ours, token for token",
    "serve": "{tokens_per_second:.0f} tokens/s to 4 callers; {closed_rate:.2f} requests/s, predicted "
             "{predicted_rate:.2f}; at {rate:.2f} half of the answers within {whole_p50:.3f} s, simulated "
             "{simulated_p50:.3f} s",
    "judge": "score {before:.2f} before, {after:.2f} after, difference {difference}, {questions} questions, answered "
             "greedily; {repeating:.0%} of the new answers have a line twice; the first one: {example!r}",
}  # fmt: skip


def page(place: Place, stages: Sequence[Stage], seals: Mapping[str, Seal]) -> str:
    """One HTML file without anything beside it.

    Args:
        place: of the way.
        stages: all of it.
        seals: those that hold. What lies in other stages' folders may be of another text, and is not shown; but for
            the claims of the first stage without one: that is where the way has stopped.
    """
    first = next((each.name for each in stages if each.name not in seals), "")
    made = {
        each.name: claims.read(place.root / each.name / CLAIMS)
        for each in stages
        if each.name in seals or (each.name == first and not any_seal(place.root / first))
    }
    done = list(seals.values())
    total, held = (sum(values) for values in ([len(each.records) for each in made.values()],
                                              [each.held for each in made.values()]))  # fmt: skip
    tiles = (
        (f"{len(done)} of {len(stages)}", "stages are sealed", len(done) < len(stages)),
        (f"{held} of {total}", "claims held", held < total),
        (f"{sum(len(each.skipped) for each in made.values())}", "claims were skipped", False),
        (f"{sum(seal.seconds for seal in done) / 60:.1f} min", "in stages", False),
    )
    body = ["<header><h1>The whole way</h1>"]
    body.append(
        f"<p>From text to a model that serves. {escape('; '.join(sorted({each.hardware for each in done})))}</p>"
    )
    body.append('</header><section class="tiles">')
    body += [f"<div{' class=bad' * bad}><b>{value}</b><span>{label}</span></div>" for value, label, bad in tiles]
    body.append(
        "</section><h2>Stages</h2><table><thead><tr><th>Stage</th><th>Found</th><th>Time</th></tr></thead><tbody>"
    )
    body += [_row(stage, seals.get(stage.name)) for stage in stages]
    body.append("</tbody></table>")
    if picture := _picture(seals):
        body.append(f'<h2>Curves</h2><img alt="losses, reward and waits of this way" style="max-width: 100%" '
                    f'src="data:image/png;base64,{picture}">')  # fmt: skip
    body += claims_table(made)
    return head("The whole way") + "\n".join(body) + "\n</main></body></html>\n"


def _row(stage: Stage, seal: Seal | None) -> str:
    name = f"<td><b>{escape(stage.name)}</b><small>{escape(stage.purpose)}</small></td>"
    if seal is None:
        return f'<tr>{name}<td><span class="bad">not done</span></td><td></td></tr>'
    found = "".join(f"<div>{escape(line)}</div>" for line in lines(seal))
    typed = "".join(f"<small><code>{escape(each)}</code></small>" for each in seal.commands)
    return f'<tr>{name}<td>{found}{typed}</td><td class="number">{seal.seconds:.1f} s</td></tr>'


def lines(seal: Seal) -> Iterator[str]:
    """What a stage found, in words: a line, or one for each model."""
    form = FACTS.get(seal.stage, "")
    found = {**seal.facts, **seal.measured}
    for name, facts in found.items() if BABY in found else [("", found)]:
        try:
            text = form.format(**facts)
        except (KeyError, IndexError, TypeError, ValueError):  # of an older version of this package
            text = "found what this version cannot show"
        if text:
            yield f"{name}: {text}" if name else text


def _picture(seals: Mapping[str, Seal]) -> str:
    """Losses, reward and waits, as a PNG in base64; empty while there is nothing to draw."""
    curves = {
        "BabyGPT's loss, nats": _curves(seals, "train", ("train_loss", "val_loss")),
        "smollm2's loss, nats": _curves(seals, "adapt", ("train_loss", "val_loss")),
        "reward of GRPO": _curves(seals, "align", ("reward",)),
    }
    drawn = {title: found for title, found in curves.items() if any(found.values())}
    if not drawn:
        return ""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(4 * len(drawn), 2.8), layout="constrained")
    for axes, (title, found) in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True):
        for name, points in found.items():
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 6 else None)
        axes.set(title=title, xlabel="step")
        axes.legend(frameon=False)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=110)
    return base64.b64encode(held.getvalue()).decode()


def _curves(seals: Mapping[str, Seal], stage: str, names: tuple[str, ...]) -> dict[str, Any]:
    found = seals[stage].measured.get("curves") if stage in seals else None
    return {name: found[name] for name in names if found.get(name)} if isinstance(found, dict) else {}
