"""The words of a claim: one content, as CLAIM.md and as report.html. Every number links to its JSON."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drifting_core.artifacts import (
    FeatureNetwork,
    Index,
    MetricsTable,
    Neighbours,
    Recommendation,
    ReferenceStatistics,
    TokenizerManifest,
)
from drifting_core.claims.sources import Sources
from drifting_core.evaluation.contract import explain_name
from drifting_core.published import reported

TRAINING = "tables/training.json"  # what the training logged
RECORDS = {  # what a training leaves for readers, and what that is
    "env_snapshot.json": "packages and hardware",
    "env_fingerprint.json": "digest of the software environment",
    "codebase_fingerprint.json": "digest of the code, by file",
    "latent_summary.json": "the training latents in short",
}


@dataclass(frozen=True)
class Link:
    text: str
    place: str


Inline = str | Link | Sequence["str | Link"]


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: Inline


@dataclass(frozen=True)
class Bullets:
    items: Sequence[Inline]


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[Inline]]


@dataclass(frozen=True)
class Picture:
    place: str
    caption: str


@dataclass(frozen=True)
class Code:
    text: str


Block = Heading | Paragraph | Bullets | Table | Picture | Code


# --- content --------------------------------------------------------------------------------------------------------


def claim_content(
    sources: Sources,
    values: Mapping[str, Any],
    run: str,
    commands: str,
    pictures: Mapping[str, str],
) -> list[Block]:
    """The whole card. `pictures`: captions by file name in figures/; `values`: the resolved configuration."""
    return [
        Heading(1, f"Claim of the run {run}"),
        *_claim(sources, values, pictures),
        *_selection(sources, pictures),
        *_neighbours(sources, pictures),
        *_contract(sources),
        *_model_card(sources, values),
        *_check_and_repeat(sources, commands),
        *_provenance(sources),
    ]


def _claim(sources: Sources, values: Mapping[str, Any], pictures: Mapping[str, str]) -> list[Block]:
    table = sources.tables["claim"]
    size = values["data"]["image_size"]
    index = sources.one("index", Index)
    images = f"{index.splits['train'].images:,} images of {size} x {size} pixels in {len(index.wnids):,} classes"
    what = (
        f"A one-step generator, trained by drifting (Generative Modeling via Drifting) on {images}."
        if sources.imported is None
        else f"A one-step generator that was not trained here: its weights are those of {sources.imported.source}, where "
        f"they are called step {sources.imported.step:,}. It is measured against {images}."
    )
    return [
        Paragraph(
            f"{what} The claim's numbers come from images drawn with seeds that chose nothing. Every number links to the "
            "JSON that holds it."
        ),
        Heading(2, "The claim"),
        _claim_table(sources),
        Paragraph(explain_name(table.contract)),
        *_reported(sources),
        Bullets(_reading(table, sources)),
        *_pictures(pictures, "claim_grid.png"),
    ]


def _claim_table(sources: Sources) -> Table:
    """Our numbers; where they are FID and IS of a published generator, what is reported for it below them."""
    own, numbers = metrics_table(sources, "claim"), _numbers_reported(sources)
    if not numbers or sources.tables["claim"].distance_name != "FID":
        return own
    rows = [
        [who, f"{alpha:g}", "-", "50,000", fid, score, *["-"] * (len(own.header) - 6)] for who, alpha, fid, score in numbers
    ]
    return Table(own.header, [*own.rows, *rows])


def _numbers_reported(sources: Sources) -> list[tuple[str, float, str, str]]:
    """(by whom, alpha, FID, IS) of the generator that was imported, if it is one of the authors'."""
    numbers = reported(sources.imported.source) if sources.imported else None
    if numbers is None:
        return []

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:g}"

    return [
        ("reported in the paper", numbers.alpha, shown(numbers.fid_paper), shown(numbers.is_paper)),
        ("reported for these weights", numbers.alpha, shown(numbers.fid_release), shown(numbers.is_release)),
    ]


def _reported(sources: Sources) -> list[Block]:
    """What must be said where others' numbers stand beside ours, or cannot."""
    numbers = _numbers_reported(sources)
    if not numbers:
        return []
    if sources.tables["claim"].distance_name == "FID":
        return [
            Paragraph(
                "The rows of others were made under their own contract (their Inception implementation and their statistics "
                "of the training images), at their best guidance strength; they are not checked here."
            )
        ]
    lines = "; ".join(f"{who}: FID {fid}, IS {score} at alpha {alpha:g}" for who, alpha, fid, score in numbers)
    return [Paragraph(f"Not comparable with the numbers above, which are not FID and IS: {lines} (50,000 images).")]


def _reading(table: MetricsTable, sources: Sources) -> list[Inline]:
    classes = len(sources.one("index", Index).wnids)
    items: list[Inline] = [
        f"± of {table.distance_name} is one standard error, from {table.contract.bootstrap} resamples of the "
        f"{table.contract.samples:,} generated "
        "images. It says nothing about another training run, which moves such distances more than resampling does. "
        f"± of {table.score_name} is the standard deviation over 10 splits.",
        "Diversity is the mean feature distance of two generated images of a class over that of two real ones; 1 is real.",
    ]
    reference = sources.one("reference", ReferenceStatistics)
    if reference.imported is not None:
        items.append(_imported_reference(reference, sources.source("reference").place))
    real = reference.real_accuracy
    if real is not None:
        link = Link(f"{real:.2f}", sources.source("reference").place)
        items.append(
            [
                "Class accuracy is the share of generated images that the feature network takes for their class; by "
                f"chance {1 / classes:.3g}, on held-out real images ",
                link,
                ".",
            ]
        )
    return items


def _imported_reference(reference: ReferenceStatistics, place: str) -> Inline:
    """Where published statistics come from, and how near our own images and network come to them."""
    given = reference.imported
    assert given is not None
    said: list[str | Link] = [
        f"The reference was not computed here: {given.name} (SHA-256 {given.sha256[:16]}…), said to be of "
        f"{reference.images:,} {'training' if reference.split == 'train' else 'validation'} images."
    ]
    if given.distance_to_own is not None:
        said += [
            f" The moments of {given.own_images:,} images here, through this feature network, are ",
            Link(f"{given.distance_to_own:.3g}", place),
            " from it.",
        ]
    return said


def _selection(sources: Sources, pictures: Mapping[str, str]) -> list[Block]:
    chosen = sources.one("recommendation", Recommendation)
    place = sources.source("recommendation").place
    tied = ", ".join(f"step {c.step} at alpha {c.alpha:g}" for c in chosen.tied) or "none"
    blocks: list[Block] = [
        Heading(2, "How export and guidance were chosen"),
        *_single_export(sources),
        Paragraph(["Rule, declared before the run: ", Link(chosen.rule, place), "."]),
        Paragraph(f"{chosen.reason} Tied with the lowest: {tied}."),
    ]
    if "curve" in sources.tables:
        blocks += [
            Heading(3, "Over training"),
            metrics_table(sources, "curve"),
            *_pictures(pictures, "curve.png", "progress.png"),
            *_training_numbers(pictures),
            *_pictures(pictures, "steps.png"),
        ]
    blocks += [Heading(3, "Last exports"), metrics_table(sources, "last_k")]
    blocks += [Heading(3, "Guidance strength"), metrics_table(sources, "alpha_sweep")]
    return blocks + _pictures(pictures, "alpha_sweep.png", "alpha_strip.png")


def _training_numbers(pictures: Mapping[str, str]) -> list[Block]:
    if "progress.png" not in pictures:
        return []
    return [Paragraph(["The loss itself is constant by design. What the training logged: ", Link(TRAINING, TRAINING), "."])]


def _single_export(sources: Sources) -> list[Block]:
    if sources.imported is None:
        return []
    return [
        Paragraph(
            "An imported generator is a single export. Last-K is that export alone, whatever K; there is no curve over "
            "training; and the recommendation chooses the guidance strength only."
        )
    ]


def _neighbours(sources: Sources, pictures: Mapping[str, str]) -> list[Block]:
    found, place = sources.one("neighbours", Neighbours), sources.source("neighbours").place
    return [
        Heading(2, "Is it memory?"),
        Paragraph(
            [
                f"The nearest of {found.training_images:,} training images was looked up for {found.samples:,} generated "
                f"images, in {found.space}. Held-out photos give the baseline: generated images that were copies would "
                "lie nearer than these do.",
            ]
        ),
        Table(
            ["", "generated", "held-out photos"],
            [
                ["images", str(found.samples), str(found.baseline_images)],
                [
                    "median distance to the nearest training image",
                    Link(f"{found.generated_median:.4g}", place),
                    Link(f"{found.baseline_median:.4g}", place),
                ],
                [
                    f"nearer than the baseline's 1st percentile ({found.baseline_percentile_1:.4g})",
                    Link(f"{100 * found.share_below_percentile_1:.1f}%", place),
                    "1%",
                ],
            ],
        ),
        *_pictures(pictures, "neighbour_pairs.png"),
    ]


def _contract(sources: Sources) -> list[Block]:
    contract = sources.tables["claim"].contract
    rows = [[name, str(value)] for name, value in contract.model_dump().items()]
    return [
        Heading(2, "The evaluation contract"),
        Paragraph(
            f"Numbers are comparable only under one contract. The claim's has the hash "
            f"{sources.tables['claim'].contract_hash[:16]}; selection differs from it in the number of samples at most."
        ),
        Table(["field", "value"], rows),
    ]


def _model_card(sources: Sources, values: Mapping[str, Any]) -> list[Block]:
    tokenizer, network = sources.one("tokenizer", TokenizerManifest), sources.one("network", FeatureNetwork)
    generator = values["generator"]
    psnr = "" if tokenizer.psnr_db is None else f", {tokenizer.psnr_db:.1f} dB on held-out images"
    chosen = sources.one("recommendation", Recommendation).recommended
    return [
        Heading(2, "Model card"),
        Bullets(
            [
                f"Model: diffusion transformer without time, depth {generator['depth']}, width {generator['hidden_size']}, "
                f"patch {generator['patch_size']}; one network evaluation per image; EMA weights of step {chosen.step}.",
                _training(sources, values["training"]),
                f"Tokenizer: {tokenizer.source}; {tokenizer.channels} channels, factor {tokenizer.factor}{psnr}.",
                f"Features of the evaluation: {network.network}, {network.dimensions} numbers, {network.resize}.",
                "Use: study of the method and of this pipeline. Images carry what their training images carry, bias "
                "included. Not for deciding anything about people.",
                *_limits(sources),
            ]
        ),
    ]


def _training(sources: Sources, training: Mapping[str, Any]) -> str:
    if sources.imported is not None:
        return (
            f"Trained: elsewhere. Weights of {sources.imported.source}, SHA-256 {sources.imported.weights_sha256[:16]}; the "
            "sections encoder, objective and training of the configuration are how that was done, as far as is known."
        )
    return (
        f"Trained: drifting objective, learning rate {training['learning_rate']:g}, EMA {training['ema']:g}, "
        f"planned for {training['steps']:,} steps."
    )


def _limits(sources: Sources) -> list[str]:
    index = sources.one("index", Index)
    if index.splits["train"].images >= 100_000 or sources.imported is not None:
        return []
    return [
        f"Limits: {index.splits['train'].images:,} training images and a short run show the mechanism, not pictures: "
        "rows of the grid may differ by class in colour and layout; nothing else is claimed."
    ]


def _check_and_repeat(sources: Sources, commands: str) -> list[Block]:
    records = [source.place for source in sources.all if source.role == "record"]
    seen: list[Inline] = [[Link("configuration.json", "configuration.json"), ": every resolved value of the configuration."]]
    seen += [[Link(place, place), f": {RECORDS[place.rsplit('/', 1)[-1]]}."] for place in records]
    seen.append([Link("manifest.json", "manifest.json"), ": SHA-256 of every file of this bundle."])
    return [Heading(2, "Check and repeat"), Bullets(seen), Code(commands)]


def _provenance(sources: Sources) -> list[Block]:
    rows: list[Sequence[Inline]] = []
    for node in sources.graph():
        parts: list[str | Link] = []
        for role, of in node.made_from.items():
            outside = of.startswith("sha256:")
            parts += [", "] if parts else []
            parts.append(f"{role} {of[:19]}" if outside else Link(role, of))
        rows.append([Link(node.artifact, node.artifact), parts or "-", (node.configuration or "-")[:12]])
    return [
        Heading(2, "Provenance"),
        Paragraph(
            [
                "What each artifact was made from, by content hash; in full in ",
                Link("provenance.json", "provenance.json"),
                ".",
            ]
        ),
        Table(["artifact", "made from", "configuration"], rows),
    ]


def _pictures(captions: Mapping[str, str], *names: str) -> list[Block]:
    return [Picture(f"figures/{name}", captions[name]) for name in names if name in captions]


def metrics_table(sources: Sources, role: str) -> Table:
    """A table of evaluations; each number links to the metrics.json of its row."""
    table = sources.tables[role]
    columns: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        (table.distance_name, lambda row: f"{row['distance']:.4g} ± {row['distance_error']:.2g}"),
        (table.score_name, lambda row: f"{row['score']:.3f} ± {row['score_std']:.2g}"),
        ("precision", lambda row: f"{row['precision']:.3f}"),
        ("recall", lambda row: f"{row['recall']:.3f}"),
        ("class accuracy", lambda row: "-" if row["label_accuracy"] is None else f"{row['label_accuracy']:.3f}"),
        ("diversity", lambda row: f"{row['within_class_diversity']:.3f}"),
    ]
    rows = []
    for row in table.rows:
        place = sources.of_row(row).place
        cells: list[Inline] = [str(row["step"]), f"{row['alpha']:g}", str(row["seed"]), f"{table.contract.samples:,}"]
        rows.append(cells + [Link(show(row), place) for _, show in columns])
    return Table(["step", "alpha", "seed", "images", *(name for name, _ in columns)], rows)


# --- rendering ------------------------------------------------------------------------------------------------------


def _parts(text: Inline) -> Sequence[str | Link]:
    return [text] if isinstance(text, str | Link) else text


def markdown(blocks: Sequence[Block]) -> str:
    """GitHub-flavoured Markdown."""
    return "\n\n".join(_markdown_block(block) for block in blocks) + "\n"


def _markdown_block(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return _markdown_inline(text)
        case Bullets(items):
            return "\n".join(f"- {_markdown_inline(item)}" for item in items)
        case Table(header, rows):
            lines = [header, ["---"] * len(header), *([_markdown_inline(cell) for cell in row] for row in rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Picture(place, caption):
            return f"![{caption}]({place})\n\n*{caption}*"
        case Code(text):
            return f"```sh\n{text}\n```"


def _markdown_inline(text: Inline) -> str:
    return "".join(f"[{p.text}]({p.place})" if isinstance(p, Link) else p.replace("|", "\\|") for p in _parts(text))


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2, h3 { line-height: 1.2; margin-top: 2em; } h1 { margin-top: 0; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: left; white-space: nowrap; }
th { border-bottom: 2px solid #888; } a { color: #1b4f72; }
figure { margin: 1.5em 0; } img { max-width: 100%; } figcaption { color: #555; font-size: 90%; }
pre { background: #f4f4f4; padding: .8em; overflow-x: auto; }
"""


def report(blocks: Sequence[Block], title: str, picture: Callable[[str], str]) -> str:
    """One HTML file without outside resources; `picture` gives the base64 of a PNG of the bundle."""
    body = "\n".join(_html_block(block, picture) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style></head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _html_block(block: Block, picture: Callable[[str], str]) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_html_inline(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{_html_inline(item)}</li>" for item in items) + "</ul>"
        case Table(header, rows):
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            lines = ("".join(f"<td>{_html_inline(cell)}</td>" for cell in row) for row in rows)
            return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
        case Picture(place, caption):
            words = html.escape(caption)
            source = f"data:image/png;base64,{picture(place)}"
            return f'<figure><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"


def _html_inline(text: Inline) -> str:
    return "".join(
        f'<a href="{html.escape(p.place)}">{html.escape(p.text)}</a>' if isinstance(p, Link) else html.escape(p)
        for p in _parts(text)
    )
