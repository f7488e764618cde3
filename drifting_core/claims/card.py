"""The words of a claim: the content of CLAIM.md and report.html. Every number links to its JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from drifting_core.artifacts import (
    FeatureNetwork,
    Index,
    MetricsTable,
    Neighbours,
    NeighbourSearch,
    Recommendation,
    ReferenceStatistics,
    TokenizerManifest,
)
from drifting_core.claims.pages import Block, Bullets, Code, Heading, Inline, Link, Paragraph, Picture, Table
from drifting_core.claims.sources import Sources
from drifting_core.evaluation.contract import explain_name
from drifting_core.sources import published
from drifting_core.sources.published import Reported

TRAINING = "tables/training.json"  # what the training logged
RECORDS = {  # what a training leaves for readers, and what that is
    "env_snapshot.json": "packages and hardware",
    "env_fingerprint.json": "digest of the software environment",
    "codebase_fingerprint.json": "digest of the code, by file",
    "latent_summary.json": "the training latents in short",
}
USE = (
    "Study of the method and of this pipeline. Images carry what their training images carry, bias included. Not for "
    "deciding anything about people."
)

_TRAINING_NUMBERS = [
    Paragraph(["The loss itself is constant by design. What the training logged: ", Link(TRAINING, TRAINING), "."])
]


def claim_content(
    sources: Sources,
    values: Mapping[str, Any],
    run: str,
    commands: str,
    pictures: Mapping[str, str],
    logged: bool,
) -> list[Block]:
    """The whole card. `pictures`: captions by file name in figures/; `values`: the resolved configuration; `logged`:
    whether there is what the training logged.
    """
    return [
        Heading(1, f"Claim of the run {run}"),
        *_claim(sources, values, pictures),
        *_spaces(sources),
        *_selection(sources, pictures, logged),
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
        metrics_table(sources, table, full=True),
        Paragraph(explain_name(table.contract)),
        *_reported(sources, values["name"]),
        Bullets(_reading(table, sources)),
        *_pictures(pictures, "claim_grid.png"),
    ]


def _reported(sources: Sources, preset: str) -> list[Block]:
    """The paper's and the release's numbers beside ours, where there are any, and whether they can be compared."""
    source = f"released:{published.PRESETS.get(preset, '')}" if sources.imported is None else sources.imported.source
    numbers = published.reported(source)
    if numbers is None:
        return []
    table = sources.tables["claim"]
    comparable = table.distance_name == "FID"
    verdict = "made under their own contract, not checked here" if comparable else f"not comparable: {_unlike(table)}"
    theirs = "the authors' weights" if sources.imported is None else "these weights"
    rows: list[Sequence[Inline]] = [_ours(table, sources), *_theirs(numbers, f"reported for {theirs}", verdict)]
    return [
        Heading(3, "Beside published numbers"),
        Table(["whose", "alpha", "images", "distance", "score", "comparable with the first row?"], rows),
        Paragraph(
            "Theirs are the best over guidance strengths, from their own Inception implementation and their statistics of "
            "the training images."
        ),
    ]


def _unlike(table: MetricsTable) -> str:
    """Why numbers that are not FID cannot be compared with FID, in a few words."""
    how = table.contract
    if how.uses_fid_network:
        return f"ours compares with {how.reference_images:,} {how.reference_split} images"
    network = "Inception with other weights" if how.network == "inception" else f"another network ({how.network})"
    return f"ours is seen through {network}"


def _ours(table: MetricsTable, sources: Sources) -> Sequence[Inline]:
    row = table.rows[0]
    place = sources.of_row(row).place
    cells = {column.title: column.show(row) for column in columns(table)}
    distance, score = (Link(f"{name} {cells[name]}", place) for name in (table.distance_name, table.score_name))
    return ["this claim", f"{row['alpha']:g}", f"{table.contract.samples:,}", distance, score, "-"]


def _theirs(numbers: Reported, release: str, verdict: str) -> list[Sequence[Inline]]:
    """A row for the paper and one for the released weights; FID-50K and IS, - where nobody says."""
    pairs = {
        "reported in the paper": (numbers.fid_paper, numbers.is_paper),
        release: (numbers.fid_release, numbers.is_release),
    }
    return [
        [whose, f"{numbers.alpha:g}", "50,000", f"FID {fid:g}" if fid else "-", f"IS {score:g}" if score else "-", verdict]
        for whose, (fid, score) in pairs.items()
    ]


def _reading(table: MetricsTable, sources: Sources) -> list[Inline]:
    classes = len(sources.one("index", Index).wnids)
    items: list[Inline] = [
        f"± of {table.distance_name} is one standard error, from {table.contract.bootstrap} resamples of the "
        f"{table.contract.samples:,} generated "
        "images. It says nothing about another training run, which moves such distances more than resampling does. "
        f"± of {table.score_name} is the standard deviation over 10 splits.",
        *_reading_of_claim(table),
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


def _reading_of_claim(table: MetricsTable) -> list[Inline]:
    name, how, shown = table.distance_name, table.contract, {column.number for column in columns(table, full=True)}
    items: list[Inline] = []
    if "distance_low" in shown:
        items.append(f"The 95% interval is {name} ∓ 1.96 standard errors: of drawing other noise for the same network.")
    if "distance_infinite" in shown:
        items.append(
            f"{name}∞ is the distance of infinitely many images: where a line in 1/N through subsets of {how.extrapolation} "
            "sizes ends (Chong & Forsyth 2020). It takes most of a finite sample's bias away, and is not what others report."
        )
    if "kernel_distance" in shown:
        items.append(
            f"{how.kernel_name} is the unbiased squared kernel distance to {how.manifold_images:,} validation images, over "
            f"{how.kernel_subsets} subsets of {how.kernel_subset_size:,}."
        )
    residue = max(row["distance_residue"] for row in table.rows) if "distance_residue" in table.rows[0] else None
    if residue is not None:
        items.append(f"The roots of eigenvalues that rounding made negative sum to {residue:.1g}; nothing was clamped.")
    return items


def _spaces(sources: Sources) -> list[Block]:
    """The claim in further feature spaces, one table each: they are of different contracts."""
    held = [source for source in sources.all if source.role == "space_table"]
    blocks: list[Block] = [Heading(2, "In other feature spaces")] if held else []
    for source in held:
        table = source.content
        assert isinstance(table, MetricsTable)
        blocks += [metrics_table(sources, table, full=True), Paragraph(explain_name(table.contract))]
    return blocks


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


def _selection(sources: Sources, pictures: Mapping[str, str], logged: bool) -> list[Block]:
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
            metrics_table(sources, sources.tables["curve"]),
            *_pictures(pictures, "progress.png"),
            *(_TRAINING_NUMBERS if logged else []),
            *_pictures(pictures, "steps.png"),
        ]
    blocks += [Heading(3, "Last exports"), metrics_table(sources, sources.tables["last_k"])]
    blocks += [Heading(3, "Guidance strength"), metrics_table(sources, sources.tables["alpha_sweep"])]
    return blocks + _pictures(pictures, "alpha_sweep.png", "alpha_strip.png")


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
    first = found.spaces[0]
    rows = [
        _neighbour_row(space.name, rule, search, place)
        for space in found.spaces
        for rule, search in (("any class", space.any_class), ("same class", space.same_class))
    ]
    return [
        Heading(2, "Is it memory?"),
        Paragraph(
            f"For {found.samples:,} generated images the nearest of {first.training_images:,} training images were looked "
            f"up, and the same for {first.baseline_images:,} held-out photos, the baseline. Copies would lie nearer than "
            "those do: below the baseline's 1st percentile, where by definition 1% of the held-out photos are. Euclidean "
            "distances, all training images searched, in these spaces:"
        ),
        Bullets([f"{space.name}: {space.description}." for space in found.spaces]),
        *[Paragraph(f"Left out, {space}: {why}.") for space, why in found.left_out.items()],
        Table(
            [
                "space",
                "neighbours",
                "median, generated",
                "median, held-out",
                "1st percentile, held-out",
                "generated below it",
            ],
            rows,
        ),
        *_pictures(pictures, "neighbour_pairs.png"),
    ]


def _neighbour_row(space: str, rule: str, search: NeighbourSearch, place: str) -> list[Inline]:
    distances = (search.generated_median, search.baseline_median, search.baseline_percentile_1)
    shown = [f"{distance:.4g}" for distance in distances] + [f"{100 * search.share_below_percentile_1:.1f}%"]
    return [space, rule, *(Link(number, place) for number in shown)]


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
                f"Use: {USE}",
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
    seen += [
        [Link("RUN.md", "RUN.md"), ": the jobs and their exit codes; ", Link("commands.txt", "commands.txt"), ": in full."],
        ["tables as CSV: ", *_listed([f"tables/{role}.csv" for role in sources.tables])],
        [Link("manifest.json", "manifest.json"), ": SHA-256 of every file of this bundle."],
    ]
    return [Heading(2, "Check and repeat"), Bullets(seen), Code(commands)]


def _listed(places: Sequence[str]) -> list[str | Link]:
    """Links with commas between them."""
    return [part for place in places for part in (", ", Link(place.rsplit("/", 1)[-1], place))][1:]


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


class Column(NamedTuple):
    """A column of a table of evaluations: its title, the number it is there for, and what it shows of a row."""

    title: str
    number: str
    show: Callable[[Mapping[str, Any]], str]


def columns(table: MetricsTable, *, full: bool = False) -> list[Column]:
    """The columns that a table of evaluations has numbers for; `full`: also those that only the claim needs."""
    name, score, kernel = table.distance_name, table.score_name, table.contract.kernel_name
    made = [
        Column(name, "distance", lambda row: f"{row['distance']:.4g} ± {row['distance_error']:.2g}"),
        Column(
            f"{name}, 95% interval", "distance_low", lambda row: f"{row['distance_low']:.4g} to {row['distance_high']:.4g}"
        ),
        Column(
            f"{name}∞",
            "distance_infinite",
            lambda row: f"{row['distance_infinite']:.4g} ± {row['distance_infinite_error']:.2g}",
        ),
        Column(kernel, "kernel_distance", lambda row: f"{row['kernel_distance']:.3g} ± {row['kernel_distance_std']:.1g}"),
        Column(score, "score", lambda row: f"{row['score']:.3f} ± {row['score_std']:.2g}"),
        Column("precision", "precision", lambda row: f"{row['precision']:.3f}"),
        Column("recall", "recall", lambda row: f"{row['recall']:.3f}"),
        Column("class accuracy", "label_accuracy", lambda row: f"{row['label_accuracy']:.3f}"),
        Column("diversity", "within_class_diversity", lambda row: f"{row['within_class_diversity']:.3f}"),
    ]
    only_full = ("distance_low", "distance_infinite", "kernel_distance")
    there = {column.number for column in made if any(row.get(column.number) is not None for row in table.rows)}
    return [column for column in made if column.number in there and (full or column.number not in only_full)]


def plain_metrics(table: MetricsTable) -> Table:
    """A table of evaluations in full, without links."""
    shown = columns(table, full=True)
    rows = [[*_which(table, row), *(column.show(row) for column in shown)] for row in table.rows]
    return Table([*_WHICH, *(column.title for column in shown)], rows)


def metrics_table(sources: Sources, table: MetricsTable, *, full: bool = False) -> Table:
    """A table of evaluations; each number links to the metrics.json of its row."""
    shown = columns(table, full=full)
    rows = [
        [*_which(table, row), *(Link(column.show(row), sources.of_row(row).place) for column in shown)] for row in table.rows
    ]
    return Table([*_WHICH, *(column.title for column in shown)], rows)


_WHICH = ("step", "alpha", "seed", "images")


def _which(table: MetricsTable, row: Mapping[str, Any]) -> list[Inline]:
    return [str(row["step"]), f"{row['alpha']:g}", str(row["seed"]), f"{table.contract.samples:,}"]
