"""The report of an evaluation as files: `report.json`, and `report.html`, which needs no other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from clipray import storage
from clipray.errors import DamagedError, OutputError
from clipray.evaluate.asked import EvaluateConfig
from clipray.evaluate.charts import histogram, recall_curve, told_settings
from clipray.evaluate.markup import Inner, Markup, tag
from clipray.evaluate.verdict import (
    EvaluateReport,
    HardPair,
    IndexRecall,
    Scores,
    ServiceRecall,
    Threshold,
)
from clipray.manifest import encode_json, read_tree

DATA_FILE, PAGE_FILE = "report.json", "report.html"
LISTED = 100  # samples that were left out
STYLE = Path(__file__).with_name("page.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    report: EvaluateReport, config: EvaluateConfig, pictures: Mapping[str, str]
) -> None:
    """Write the folder `report.report`, which appears whole or not at all.

    Args:
        report: what was found.
        config: what was asked for.
        pictures: data URIs by key.

    Raises:
        OutputError: the folder holds something by now.
    """
    folder = report.report
    if folder is None:
        return
    settings = config.model_dump(mode="json")
    tree = report.model_dump(mode="json") | {"config": settings}
    try:
        with storage.staged_folder(folder.resolve()) as staged:
            storage.write_file(staged / DATA_FILE, encode_json(tree))
            page = html_page(report, settings, pictures)
            storage.write_file(staged / PAGE_FILE, page.encode())
    except FileExistsError:
        raise OutputError(f"{folder}: holds something by now; give --report a new folder") from None


def withdraw(folder: Path, settings: Mapping[str, object]) -> None:
    """Remove a report for which the same was asked; everything else in its folder stays."""
    try:
        found = read_tree(folder / DATA_FILE)
    except DamagedError:
        return
    if found.get("config") == settings:
        for name in (PAGE_FILE, DATA_FILE):
            (folder / name).unlink(missing_ok=True)


def html_page(
    report: EvaluateReport, settings: Mapping[str, object], pictures: Mapping[str, str]
) -> str:
    """The page: all in one, nothing is fetched."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", "clipray evaluate"),
        tag("style", Markup(STYLE.read_text(encoding="utf-8"))),
    )
    body = tag("body", tag("main", tag("h1", "Evaluation"), _parts(report, settings, pictures)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _parts(
    report: EvaluateReport, settings: Mapping[str, object], pictures: Mapping[str, str]
) -> list[Inner]:
    notes = [tag("li", note) for note in report.notes]
    return [
        tag("ul", notes, class_="notes") if notes else "",
        _index(report.index) if report.index else "",
        _service(report.service) if report.service else "",
        _metrics("Captions that find their own row", report.metrics),
        _metrics("Retrieval", report.retrieval),
        _metrics("Zero-shot classification", report.zero_shot),
        _scores(report.scores) if report.scores else "",
        _hardest(report.hardest, pictures) if report.hardest else "",
        _rejected(report.rejected) if report.rejected else "",
        _folded("Versions", report.versions),
        _folded("Settings", settings),
    ]


def _index(found: IndexRecall) -> Markup:
    told = f"{found.index}, version {found.version}: {found.rows:,} rows, {found.method}"
    curve: Inner = tag("p", "Every row is looked at, so there are no settings to choose.")
    if found.curve:
        rows = [
            [
                told_settings(point, found.curve) + (" (chosen)" if point.chosen else ""),
                *(f"{value:.4f}" for value in point.recall.values()),
                *(f"{value:.3f}" for value in point.ms.values()),
            ]
            for point in found.curve
        ]
        kinds = list(found.curve[0].recall)
        columns = ["settings", *(f"recall {kind}" for kind in kinds)]
        table = _table([*columns, *(f"ms {kind}" for kind in kinds)], rows)
        drawn = recall_curve(found.curve, found.curve_k)
        curve = [drawn, tag("details", tag("summary", "The curve as numbers"), table)]
    return _section("Index against exact search", tag("p", told), _recalls(found), curve)


def _service(found: ServiceRecall) -> Markup:
    told = (
        f"{found.url}, index {found.name}, version {found.version}. Rows searched: at least "
        f"{found.searched:.2%}; degraded replies: {found.degraded}; replies from another version: "
        f"{found.strayed}. Texts are encoded by the service, which their latency includes."
    )
    return _section("Service against exact search", tag("p", told), _recalls(found))


def _recalls(found: IndexRecall | ServiceRecall) -> Markup:
    names = list(dict.fromkeys(name for recall in found.recall.values() for name in recall))
    rows = [
        [
            f"{kind}-like",
            f"{found.queries[kind]}",
            *(f"{recall[name]:.4f}" if name in recall else "" for name in names),
            f"{found.latency[kind].p50_ms:.2f}",
            f"{found.latency[kind].p95_ms:.2f}",
        ]
        for kind, recall in found.recall.items()
    ]
    return _table(["queries", "number", *names, "p50 ms", "p95 ms"], rows)


def _metrics(title: str, metrics: Mapping[str, float]) -> Markup:
    rows = [[name, f"{value:.4f}".rstrip("0").rstrip(".")] for name, value in metrics.items()]
    return _section(title, _table(["metric", "value"], rows)) if rows else Markup()


def _scores(found: Scores) -> Markup:
    rows = [
        _threshold("best F1, if there were as many non-pairs as pairs", found.best_f1),
        _threshold("at most 1 % of the non-pairs pass", found.one_percent),
    ]
    told = (
        f"Cosines of {found.pairs:,} pairs and of {found.others:,} non-pairs, which are captions "
        "with other pictures drawn at random. What a threshold lets pass:"
    )
    columns = ["rule", "threshold", "pairs", "non-pairs"]
    return _section("Scores", tag("p", told), _table(columns, rows), histogram(found))


def _threshold(rule: str, found: Threshold) -> list[str]:
    return [rule, f"{found.score:.4f}", f"{found.pairs:.1%}", f"{found.others:.1%}"]


def _hardest(pairs: Sequence[HardPair], pictures: Mapping[str, str]) -> Markup:
    told = "Captions that find their own picture last, and the best other picture."
    cards = [
        tag(
            "li",
            tag("p", pair.caption, class_="caption"),
            _picture(pictures, pair.key, f"its own, rank {pair.rank}", pair.score),
            _picture(pictures, pair.rival, "best other", pair.rival_score),
        )
        for pair in pairs
    ]
    return _section("Hardest pairs", tag("p", told), tag("ul", cards, class_="cards"))


def _picture(pictures: Mapping[str, str], key: str, role: str, score: float) -> Markup:
    source = pictures.get(key)
    image = tag("img", src=source, alt="") if source else tag("div", "no picture", class_="none")
    return tag("figure", image, tag("figcaption", f"{role}, {score:.3f}", tag("br"), key))


def _rejected(rejected: Sequence[str]) -> Markup:
    shown = [tag("li", told) for told in rejected[:LISTED]]
    more = f", the first {LISTED}" if len(rejected) > LISTED else ""
    told = tag("p", f"{len(rejected)} samples were left out{more}:")
    return _section("Left out", told, tag("ul", shown))


def _folded(title: str, values: Mapping[str, object]) -> Markup:
    rows = [[name, str(value)] for name, value in values.items() if value not in (None, [], ())]
    return tag("details", tag("summary", title), _table(["name", "value"], rows))


def _section(title: str, *inner: Inner) -> Markup:
    return tag("section", tag("h2", title), *inner)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    head = tag("tr", [tag("th", name) for name in columns])
    body = [tag("tr", [tag("td", cell) for cell in row]) for row in rows]
    table = tag("table", tag("thead", head), tag("tbody", body))
    return tag("div", table, class_="wide")
